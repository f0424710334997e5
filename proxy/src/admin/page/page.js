// The live page. Everything told by the server is put in place by textContent and attributes, never parsed as markup.
"use strict";

const MINUTE = 60;
const STALE_AFTER_MS = 3500;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const state = { frame: null, seenAt: 0, paused: false, filter: "", ejected: null, routes: new Map(), total: [], io: "" };

/* ---- Formats: a value that cannot be told is a dash, never 0 ---- */

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function rate(value) {
  if (value === 0) return "0";
  if (value < 0.05) return "<0.1";
  if (value < 9.95) return value.toFixed(1);
  return value < 1e6 ? grouped.format(value) : (value / 1e6).toFixed(2) + "M";
}

// Rounded down, so that 100 means all.
function percent(share) {
  if (share === null) return "–";
  return share === 1 ? "100" : (Math.floor(share * 10000) / 100).toFixed(2);
}

function latency(us) {
  if (us === null) return ["–", ""];
  if (us < 1000) return [String(us), "µs"];
  const [value, unit] = us < 1e6 ? [us / 1e3, "ms"] : [us / 1e6, "s"];
  return [value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0), unit];
}

function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + String(s % 60).padStart(2, "0") + " s";
  if (s < 86400) return Math.floor(s / 3600) + " h " + String(Math.floor(s / 60) % 60).padStart(2, "0") + " min";
  return Math.floor(s / 86400) + " d " + (Math.floor(s / 3600) % 24) + " h";
}

function successLevel(share) {
  return share === null || share >= 0.999 ? "" : share >= 0.99 ? "warn" : "bad";
}

/* ---- Elements ---- */

function make(tag, className, parent) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (parent) parent.append(element);
  return element;
}

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

function attribute(element, name, value) {
  if (!value) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function numberCell(row, className) {
  return make("td", className ? "n " + className : "n", row);
}

function setRate(cell, value, level) {
  text(cell, rate(value));
  cell.classList.toggle("zero", value === 0);
  attribute(cell, "data-level", level);
}

function setCount(cell, value) {
  text(cell, grouped.format(value));
  cell.classList.toggle("zero", value === 0);
}

function setWithUnit(cell, value, unit) {
  if (!cell.unit) {
    cell.value = make("span", "", cell);
    cell.unit = make("span", "u", cell);
  }
  text(cell.value, value);
  text(cell.unit, unit);
  cell.classList.toggle("zero", value === "–");
}

function sparkline(parent) {
  const svg = document.createElementNS(SVG, "svg");
  attribute(svg, "class", "spark");
  attribute(svg, "viewBox", "0 0 120 32");
  attribute(svg, "preserveAspectRatio", "none");
  attribute(svg, "aria-hidden", "true");
  for (const part of ["area", "line"]) attribute(svg.appendChild(document.createElementNS(SVG, "path")), "class", part);
  parent.append(svg);
  return svg;
}

// The newest second is at the right edge; a minute that has not passed yet is empty at the left.
function draw(svg, values) {
  const most = Math.max(1, ...values);
  const x = (at) => (120 * (MINUTE - values.length + at) / (MINUTE - 1)).toFixed(1);
  const points = values.map((value, at) => x(at) + " " + (31 - 29 * value / most).toFixed(1));
  const line = points.length > 1 ? "M" + points.join("L") : "";
  attribute(svg.children[0], "d", line && line + "L120 32L" + x(0) + " 32Z");
  attribute(svg.children[1], "d", line);
}

function push(values, value) {
  values.push(value);
  if (values.length > MINUTE) values.shift();
}

// Puts rows in the order of `keys`, making and dropping as few as it can: a row keeps its place under the reader's eye.
function arrange(parent, rows, keys, build) {
  const wanted = new Set(keys);
  for (const [key, row] of rows) {
    if (!wanted.has(key)) {
      row.element.remove();
      rows.delete(key);
    }
  }
  let at = parent.firstElementChild;
  while (at && !at.isRow) at = at.nextElementSibling;
  for (const key of keys) {
    let row = rows.get(key);
    if (!row) {
      row = build();
      row.element.isRow = true;
      rows.set(key, row);
    }
    if (row.element === at) at = at.nextElementSibling;
    else parent.insertBefore(row.element, at);
  }
}

/* ---- Header and tiles ---- */

function showState() {
  const frame = state.frame;
  const stale = !frame || Date.now() - state.seenAt > STALE_AFTER_MS;
  const [kind, words] = !frame && state.seenAt === 0 ? ["wait", "Connecting"]
    : stale ? ["stale", "No data"]
    : state.paused ? ["paused", "Paused"]
    : frame.is_ready ? ["ready", "Ready"] : ["not-ready", "Not ready"];
  attribute(byId("state"), "data-state", kind);
  text(byId("state-text"), words);
  attribute(byId("main"), "data-fresh", stale ? "no" : "yes");
  attribute(byId("state"), "title", frame ? frame.not_ready.join("\n") : "");
  const notice = byId("notice");
  if (stale && state.seenAt) {
    text(notice, "No data since " + new Date(state.seenAt).toTimeString().slice(0, 8) + ". Numbers are old; reconnecting.");
  } else if (frame && !frame.is_ready && frame.not_ready.length) {
    text(notice, "Not ready: " + frame.not_ready[0] + (frame.not_ready.length > 1 ? " (and " + (frame.not_ready.length - 1) + " more)" : ""));
  }
  notice.hidden = !((stale && state.seenAt) || (frame && !frame.is_ready && frame.not_ready.length));
}

function fact(id, strong, rest, off) {
  const element = byId(id);
  if (!element.strong) {
    element.textContent = "";
    element.strong = make("b", "", element);
    element.rest = make("small", "", element);
  }
  text(element.strong, strong);
  text(element.rest, rest ? " " + rest : "");
  element.strong.classList.toggle("off", Boolean(off));
  attribute(element, "title", rest ? strong + " " + rest : strong);
}

function showFacts(frame) {
  const since = frame.epoch_unix_ms ? span(frame.at_unix_ms - frame.epoch_unix_ms) + " ago" : "";
  fact("epoch", String(frame.epoch), frame.xds.rejections.length ? "last push refused: " + frame.xds.rejections[0] : since,
    frame.xds.rejections.length > 0);
  const xds = frame.xds;
  if (!xds.configured) fact("xds", "none", "static configuration");
  else if (xds.connected) fact("xds", "connected", xds.server);
  else fact("xds", "disconnected", xds.server + (xds.last_error ? ": " + xds.last_error : ""), true);
  fact("uptime", span(frame.uptime_seconds * 1000), "");
}

function level(id, value) {
  attribute(byId(id).closest(".tile"), "data-level", value);
}

function showTotals(totals, listeners) {
  // What comes in by one listener and leaves by another is counted by both.
  text(byId("t-listeners"), listeners.length > 1 ? ", " + listeners.length + " listeners" : "");
  text(byId("t-rate"), rate(totals.rate));
  text(byId("t-success"), percent(totals.success));
  level("t-success", successLevel(totals.success));
  for (const [id, us] of [["t-p50", totals.p50_us], ["t-p99", totals.p99_us]]) {
    const [value, unit] = latency(us);
    text(byId(id), value);
    text(byId(id + "-unit"), unit);
  }
  text(byId("t-active"), grouped.format(totals.active));
  text(byId("t-retries"), rate(totals.retry_rate));
  text(byId("t-limited"), rate(totals.limited_rate));
  text(byId("t-ejected"), String(totals.ejected));
  text(byId("t-endpoints"), "of " + totals.endpoints);
  level("t-ejected", totals.ejected > 0 ? "bad" : "");
  draw(byId("t-spark"), state.total);
}

/* ---- Routes ---- */

const routeKey = (route) => JSON.stringify([route.listener, route.virtual_host, route.route]);

function buildRoute() {
  const element = document.createElement("tr");
  const th = make("th", "", element);
  th.scope = "row";
  const row = { element, th, name: make("span", "name", th), sub: make("span", "sub", th), history: [] };
  row.spark = sparkline(make("td", "c-spark", element));
  for (const cell of ["rate", "success"]) row[cell] = numberCell(element);
  for (const cell of ["p50", "p99"]) row[cell] = numberCell(element, "with-unit");
  row.active = numberCell(element, "c-active");
  for (const cell of ["retries", "limited"]) row[cell] = numberCell(element);
  row.refused = make("td", "c-refused", element);
  return row;
}

// Upstream kinds say little without their stage: a reset may be of the send or of the response.
const faultName = (fault) => fault.side === "upstream" ? fault.stage + " " + fault.kind : fault.kind;

// Two lines: the busiest kinds, in the server's fixed order. What is shown keeps its line against others near to it.
function showFaults(cell, faults) {
  const shown = cell.shown || new Set();
  const worth = (fault) => fault.rate * (shown.has(faultName(fault)) ? 2 : 1);
  const busiest = [...faults].sort((a, b) => worth(b) - worth(a));
  const top = new Set(busiest.slice(0, busiest.length > 2 ? 1 : 2));
  cell.shown = new Set([...top].map(faultName));
  const lines = faults.filter((fault) => top.has(fault)).map((fault) => [faultName(fault), rate(fault.rate)]);
  if (busiest.length > 2) {
    const rest = busiest.slice(1).reduce((sum, fault) => sum + fault.rate, 0);
    lines.push(["+ " + (busiest.length - 1) + " other kinds", rate(rest)]);
  }
  while (cell.children.length > lines.length) cell.lastElementChild.remove();
  lines.forEach(([kind, value], at) => {
    const line = cell.children[at] || make("span", "", cell);
    const name = line.firstElementChild || make("i", "", line);
    const number = line.children[1] || make("b", "", line);
    text(name, kind);
    text(number, value);
  });
  attribute(cell, "title", faults.map((f) => f.side + " · " + f.stage + " · " + f.kind + "  " + rate(f.rate) + "/s").join("\n"));
}

function showRoute(row, route) {
  text(row.name, route.route || "(no route matched)");
  text(row.sub, [route.matches, route.virtual_host, route.listener].filter(Boolean).join(" · "));
  attribute(row.th, "title", [route.route, route.listener, route.virtual_host, route.matches].filter(Boolean).join("\n"));
  row.element.classList.toggle("idle", row.history.every((value) => value === 0) && route.active === 0);
  setRate(row.rate, route.rate);
  text(row.success, percent(route.success));
  row.success.classList.toggle("zero", route.success === null);
  attribute(row.success, "data-level", successLevel(route.success));
  setWithUnit(row.p50, ...latency(route.p50_us));
  setWithUnit(row.p99, ...latency(route.p99_us));
  setCount(row.active, route.active);
  setRate(row.retries, route.retry_rate);
  attribute(row.retries, "title", route.suppressed_rate > 0 ? rate(route.suppressed_rate) + "/s wanted and not made" : "");
  setRate(row.limited, route.limited_rate);
  showFaults(row.refused, route.faults);
  draw(row.spark, row.history);
}

function showRoutes(frame) {
  const routes = new Map(frame.routes.map((route) => [routeKey(route), route]));
  arrange(byId("route-rows"), state.routes, [...routes.keys()], buildRoute);
  let shown = 0;
  for (const [key, route] of routes) {
    const row = state.routes.get(key);
    const words = [route.route, route.listener, route.virtual_host, route.matches].join(" ").toLowerCase();
    row.element.hidden = !words.includes(state.filter);
    shown += row.element.hidden ? 0 : 1;
    showRoute(row, route);
  }
  const empty = byId("routes-empty");
  empty.hidden = shown > 0;
  text(empty, routes.size ? "No route matches the filter." : "No routes in the configuration.");
  text(byId("routes-hint"), "In the order they are tried. Rate of the last second, all else of the last ten."
    + (frame.routes_left_out ? " " + grouped.format(frame.routes_left_out) + " without traffic are not listed." : ""));
}

/* ---- Clusters, endpoints, listeners ---- */

const clusters = new Map();
const listeners = new Map();

function buildCluster() {
  const element = document.createElement("tbody");
  const group = make("tr", "group", element);
  const th = make("th", "", group);
  th.scope = "rowgroup";
  th.colSpan = 2;
  const cluster = { element, name: make("span", "name", th), sub: make("span", "sub", th), endpoints: new Map() };
  for (const part of ["rate", "failures", "active"]) cluster[part] = numberCell(group);
  cluster.ejections = numberCell(group, "c-last");
  cluster.connections = numberCell(group, "c-less");
  make("td", "c-less", group);
  return cluster;
}

function buildEndpoint() {
  const element = document.createElement("tr");
  const th = make("th", "", element);
  th.scope = "row";
  const row = { element, address: make("span", "addr", th) };
  const cell = make("td", "c-state", element);
  row.cell = cell;
  row.state = make("span", "state", cell);
  row.word = make("span", "", row.state);
  row.more = make("small", "", row.state);
  for (const part of ["rate", "failures", "active"]) row[part] = numberCell(element);
  row.ejections = numberCell(element, "c-last");
  for (const part of ["connections", "weight"]) row[part] = numberCell(element, "c-less");
  return row;
}

function showEndpoint(row, endpoint) {
  text(row.address, endpoint.address);
  const ejected = endpoint.ejected;
  row.element.classList.toggle("ejected", Boolean(ejected));
  const usable = ["healthy", "unknown"].includes(endpoint.health);
  attribute(row.state, "data-health", usable ? "" : endpoint.health === "degraded" ? "degraded" : "off");
  if (ejected) {
    text(row.word, "Ejected");
    const since = ejected.age_ms === null ? "" : "for " + span(ejected.age_ms);
    const until = ejected.remaining_ms === null ? "" : ejected.remaining_ms === 0 ? "returns at the next sweep" : "back in " + span(ejected.remaining_ms);
    text(row.more, [since, until].filter(Boolean).join(", "));
  } else {
    text(row.word, endpoint.health === "unknown" ? "In use" : endpoint.health[0].toUpperCase() + endpoint.health.slice(1));
    text(row.more, [endpoint.locality, endpoint.priority ? "priority " + endpoint.priority : ""].filter(Boolean).join(" · "));
  }
  attribute(row.cell, "title", row.state.textContent);
  setRate(row.rate, endpoint.rate);
  const failing = endpoint.failure_rate / Math.max(endpoint.rate, endpoint.failure_rate, 1e-9);
  setRate(row.failures, endpoint.failure_rate, failing > 0.1 ? "bad" : failing > 0.01 ? "warn" : "");
  for (const part of ["active", "connections", "ejections", "weight"]) setCount(row[part], endpoint[part]);
}

function showClusters(frame) {
  arrange(document.querySelector(".clusters"), clusters, frame.clusters.map((cluster) => cluster.name), buildCluster);
  for (const cluster of frame.clusters) {
    const row = clusters.get(cluster.name);
    text(row.name, cluster.name);
    const out = cluster.endpoints.filter((endpoint) => endpoint.ejected).length;
    const count = cluster.endpoints.length + cluster.endpoints_left_out;
    const [p99, unit] = latency(cluster.p99_us);
    text(row.sub, (count === 1 ? "1 endpoint" : count + " endpoints") + (out ? ", " + out + " ejected" : "")
      + (cluster.success === null ? "" : " · success " + percent(cluster.success) + " %")
      + (cluster.p99_us === null ? "" : " · p99 " + p99 + " " + unit)
      + (cluster.endpoints_left_out ? " · " + cluster.endpoints_left_out + " not listed" : ""));
    const sum = (part) => cluster.endpoints.reduce((total, endpoint) => total + endpoint[part], 0);
    setRate(row.rate, cluster.rate);
    setRate(row.failures, sum("failure_rate"));
    setCount(row.active, sum("active"));
    setCount(row.ejections, sum("ejections"));
    setCount(row.connections, cluster.connections);
    arrange(row.element, row.endpoints, cluster.endpoints.map((endpoint) => endpoint.address), buildEndpoint);
    for (const endpoint of cluster.endpoints) showEndpoint(row.endpoints.get(endpoint.address), endpoint);
  }
  byId("clusters-empty").hidden = frame.clusters.length > 0;
  text(byId("clusters-hint"), frame.clusters_left_out ? grouped.format(frame.clusters_left_out) + " clusters without traffic are not listed." : "");
}

function buildListener() {
  const element = document.createElement("tr");
  const th = make("th", "", element);
  th.scope = "row";
  const row = { element, name: make("span", "name", th), address: make("td", "c-state", element) };
  for (const part of ["connections", "accepted", "rate"]) row[part] = numberCell(element);
  row.refused = make("td", "c-refused", element);
  return row;
}

function showListeners(frame) {
  arrange(byId("listener-rows"), listeners, frame.listeners.map((listener) => listener.name), buildListener);
  for (const listener of frame.listeners) {
    const row = listeners.get(listener.name);
    text(row.name, listener.name);
    text(row.address, listener.addresses.join(", "));
    setCount(row.connections, listener.connections);
    setRate(row.accepted, listener.accept_rate);
    setRate(row.rate, listener.rate);
    showFaults(row.refused, listener.faults);
  }
  byId("listeners-empty").hidden = frame.listeners.length > 0;
}

/* ---- The stream ---- */

function show(frame) {
  showFacts(frame);
  showTotals(frame.totals, frame.listeners);
  showRoutes(frame);
  showClusters(frame);
  showListeners(frame);
}

function remember(frame) {
  push(state.total, frame.totals.rate);
  for (const route of frame.routes) {
    const row = state.routes.get(routeKey(route));
    if (row) push(row.history, route.rate);
  }
}

function onFrame(frame) {
  if (state.frame && frame.at_unix_ms === state.frame.at_unix_ms) return;
  state.frame = frame;
  state.seenAt = Date.now();
  remember(frame);
  if (!state.paused) show(frame);
  showState();
}

function onHello(hello) {
  text(byId("version"), hello.version);
  text(byId("node"), hello.node || "Outrigger");
  document.title = hello.node ? hello.node + " · Outrigger" : "Outrigger";
  fact("io", hello.io.driver, hello.io.reason);
  if (!hello.frame) return;
  state.total = hello.history.total.slice(0, -1);
  showRoutes(hello.frame);
  hello.frame.routes.forEach((route, at) => {
    state.routes.get(routeKey(route)).history = hello.history.routes[at].slice(0, -1);
  });
  state.frame = null;
  onFrame(hello.frame);
}

let retryMs = 1000;

function connect() {
  const source = new EventSource("/events");
  source.addEventListener("hello", (event) => {
    retryMs = 1000;
    onHello(JSON.parse(event.data));
  });
  source.addEventListener("frame", (event) => onFrame(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    // A broken stream is taken up again by the browser; one that was refused is not.
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(connect, retryMs * (0.5 + Math.random()));
    retryMs = Math.min(retryMs * 2, 15000);
    if (!state.seenAt) state.seenAt = Date.now() - STALE_AFTER_MS - 1;
  });
}

byId("filter").addEventListener("input", (event) => {
  state.filter = event.target.value.trim().toLowerCase();
  if (state.frame) showRoutes(state.frame);
});

byId("pause").addEventListener("click", (event) => {
  state.paused = !state.paused;
  attribute(event.currentTarget, "aria-pressed", String(state.paused));
  text(event.currentTarget, state.paused ? "Resume" : "Pause");
  if (!state.paused && state.frame) show(state.frame);
  showState();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== byId("filter") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId("filter").focus();
  } else if (event.key === "Escape" && event.target === byId("filter")) {
    event.target.value = "";
    event.target.dispatchEvent(new Event("input"));
    event.target.blur();
  }
});

setInterval(showState, 500);
showState();
connect();
