//! Purpose: the live page in a real browser. Headless Chromium opens a running proxy's page and is asked, over its
//! DevTools protocol, what it shows. Run by `make interop`.
//!
//! Shape: [`Browser`] is the process, [`Page`] one tab of it with everything it told us; a WebSocket client just wide
//! enough for both is at the foot.
//!
//! Errors: a missing Chromium fails the test and names the command that installs it.
//!
//! Source: RFC 6455; Chrome DevTools Protocol (Target, Runtime, Log, Network, Emulation).

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger_tests::world::load::{LoadRequest, RunningLoad};
use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource::{self, cluster, forward, merge, plain, route};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::{Answer, Io, Load, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};

const CHROMIUM: &str = "/usr/bin/chromium";
const PATIENCE: Duration = Duration::from_secs(30);
const RATE: f64 = 100.0;
/// What a person sees, as one value.
const SEEN: &str = r##"(() => {
    const words = (id) => document.getElementById(id).textContent;
    const all = (what) => [...document.querySelectorAll(what)].map((one) => one.innerText);
    return {
        node: words("node"), state: words("state-text"), io: words("io"), xds: words("xds"), epoch: words("epoch"),
        uptime: words("uptime"), rate: words("t-rate"), success: words("t-success"), retries: words("t-retries"),
        p99: words("t-p99"), p99_unit: words("t-p99-unit"), tile: words("t-ejected") + " " + words("t-endpoints"),
        routes: all("#route-rows .name"), endpoints: all(".clusters .addr"), ejected: all(".clusters tr.ejected"),
        notice: document.getElementById("notice").hidden ? "" : words("notice"),
        fresh: document.getElementById("main").dataset.fresh,
    };
})()"##;

#[test]
#[ignore = "needs a real browser: make interop"]
fn the_page_shows_the_second_that_is_and_says_when_it_cannot() {
    let is_ill = Arc::new(AtomicBool::new(false));
    let moody = Upstream::start({
        let is_ill = is_ill.clone();
        move |_| if is_ill.load(Ordering::SeqCst) { Answer::status(503) } else { Answer::ok("well") }
    });
    let well = Upstream::named("well");
    let long_name = format!("shop/{}", "a-rule-with-a-very-long-name-".repeat(8));
    let bootstrap = bootstrap(&[moody.address(), well.address()], &long_name);
    let mut proxy = Proxy::start(&ProxySetup::new(Io::Epoll, bootstrap.clone()));
    let admin = proxy.admin();
    let mut load = start_load(proxy.listener("main"));

    let browser = Browser::start();
    let mut page = browser.open(&format!("http://{admin}/"));
    let seen = page.wait("the rate of the load", |seen| near(seen, "rate", RATE) && number(seen, "p99") > Some(0.0));
    assert_eq!((&seen["node"], &seen["state"], &seen["fresh"]), (&json!("test-0"), &json!("Ready"), &json!("yes")));
    assert_eq!((&seen["success"], &seen["retries"], &seen["notice"]), (&json!("100"), &json!("0"), &json!("")));
    assert_eq!((&seen["routes"], &seen["tile"]), (&json!(["orders", long_name]), &json!("0 of 2")));
    assert!(["µs", "ms"].contains(&seen["p99_unit"].as_str().unwrap()), "{seen}");
    assert!(seen["io"].as_str().unwrap().starts_with("epoll ") && seen["xds"] == "none static configuration", "{seen}");
    assert!(seen["epoch"].as_str().unwrap().starts_with("1 "), "{seen}");
    page.expect_steady_frames(4);
    page.expect_no_overflow();

    is_ill.store(true, Ordering::SeqCst);
    let ill = moody.address().to_string();
    let seen = page.wait("the ejected endpoint", |seen| {
        seen["tile"] == "1 of 2" && number(seen, "retries") > Some(0.0) && near(seen, "rate", RATE)
    });
    let marked = seen["ejected"].as_array().unwrap();
    let row = marked[0].as_str().unwrap();
    assert!(marked.len() == 1 && row.contains(&ill) && row.contains("Ejected"), "{seen}");
    assert_eq!(seen["endpoints"], json!([ill, well.address().to_string()]), "it keeps its place");
    assert_eq!(page.complaints(), Vec::<String>::new());

    load.stop();
    proxy.process().kill();
    let seen = page.wait("the stale banner", |seen| seen["state"] == "No data");
    assert!(seen["notice"].as_str().unwrap().starts_with("No data since ") && seen["fresh"] == "no", "{seen}");
    assert_eq!(seen["tile"], "1 of 2", "the last numbers stay");

    is_ill.store(false, Ordering::SeqCst);
    let again = merge(bootstrap, json!({ "admin": { "address": resource::address(admin) } }));
    proxy = Proxy::start(&ProxySetup::new(Io::Epoll, again));
    load = start_load(proxy.listener("main"));
    let seen = page.wait("the page to come back", |seen| {
        seen["state"] == "Ready" && seen["tile"] == "0 of 2" && near(seen, "rate", RATE)
    });
    assert_eq!((&seen["notice"], &seen["fresh"], &seen["ejected"]), (&json!(""), &json!("yes"), &json!([])));
    page.expect_steady_frames(2);
    load.stop();

    // Only the stream may have failed, and only because nobody was there.
    let allowed = format!("network: http://{admin}/events ");
    let complaints = page.complaints();
    assert!(complaints.iter().all(|one| one.starts_with(&allowed)), "{complaints:#?}");
    let strangers: Vec<String> = page.requested().into_iter().filter(|url| !is_own(url, admin)).collect();
    assert_eq!(strangers, Vec::<String>::new(), "requests to another origin");
    assert!(page.requested().contains(&format!("http://{admin}/page.js")), "{:?}", page.requested());
}

fn bootstrap(endpoints: &[SocketAddr], long_name: &str) -> Value {
    let retrying = json!({ "name": "orders", "route": { "retry_policy": { "retry_on": "5xx", "num_retries": 2 } } });
    let routes = vec![
        route("/orders", merge(forward("app"), retrying)),
        route("/", merge(forward("app"), json!({ "name": long_name }))),
    ];
    let outlier = json!({
        "consecutive_5xx": 3, "interval": "0.1s", "base_ejection_time": "120s", "max_ejection_percent": 100,
    });
    plain(routes, vec![merge(cluster("app", endpoints), json!({ "outlier_detection": outlier }))])
}

fn start_load(address: SocketAddr) -> RunningLoad {
    let load = Load {
        address,
        connections: 4,
        rate: Some(RATE),
        limit: Duration::from_secs(180),
        request: Box::new(|_| LoadRequest::get("/orders")),
        verdict: Box::new(|_, _| Ok("answered")),
    };
    load.start()
}

fn number(seen: &Value, key: &str) -> Option<f64> {
    seen[key].as_str()?.parse().ok()
}

fn near(seen: &Value, key: &str, wanted: f64) -> bool {
    number(seen, key).is_some_and(|value| (value - wanted).abs() <= wanted / 5.0)
}

fn is_own(url: &str, admin: SocketAddr) -> bool {
    url.starts_with(&format!("http://{admin}/")) || url.starts_with("data:")
}

/// A headless Chromium with a profile of its own.
struct Browser {
    process: Process,
    port: u16,
    path: String,
    scratch: Scratch,
}

impl Browser {
    fn start() -> Self {
        assert!(
            Path::new(CHROMIUM).exists(),
            "{CHROMIUM} is missing: `apt-get install -y --no-install-recommends chromium`"
        );
        let scratch = Scratch::new("browser").unwrap();
        let launch = Launch { program: CHROMIUM.into(), ..Launch::default() };
        let launch = launch.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
        let launch = launch.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        let launch = launch.args(["--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0"]);
        let launch = launch.args([format!("--user-data-dir={}", scratch.path().display()), "about:blank".to_owned()]);
        let mut process = Process::start("chromium", &launch).unwrap();
        process.is_loud = false;
        let told = scratch.path().join("DevToolsActivePort");
        let (port, path) = wait_for("Chromium's DevTools port", PATIENCE, || {
            if let Ok(Some(status)) = process.try_exit() {
                panic!("{}", process.failure(&format!("ended with {status}")));
            }
            let text = std::fs::read_to_string(&told).map_err(|error| error.to_string())?;
            let (port, path) = text.split_once('\n').ok_or_else(|| text.clone())?;
            let port = port.parse().map_err(|error| format!("{text:?}: {error}"))?;
            if path.starts_with('/') { Ok((port, path.trim().to_owned())) } else { Err(text) }
        });
        Self { process, port, path, scratch }
    }

    fn open(&self, url: &str) -> Page {
        let socket = WebSocket::connect(self.port, &self.path);
        let mut page = Page { socket, session: None, last_id: 0, events: Vec::new() };
        let target = page.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let to = json!({ "targetId": target["targetId"], "flatten": true });
        page.session = Some(page.call("Target.attachToTarget", &to)["sessionId"].clone());
        for domain in ["Runtime", "Log", "Network", "Page"] {
            page.call(&format!("{domain}.enable"), &json!({}));
        }
        page.resize(1280);
        page.call("Page.navigate", &json!({ "url": url }));
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked, so that its own children end too; a browser that does not is killed with its process.
        let _ = self.process.signal(rustix::process::Signal::TERM);
        let _ = self.process.wait_exit(Duration::from_secs(5));
        let _ = std::fs::remove_dir_all(self.scratch.path());
    }
}

/// One tab.
struct Page {
    socket: WebSocket,
    session: Option<Value>,
    last_id: u64,
    events: Vec<Value>,
}

impl Page {
    /// One command and its result; events that come before it are kept.
    #[track_caller]
    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = session.clone();
        }
        self.socket.send(&command.to_string());
        loop {
            let mut message: Value = serde_json::from_str(&self.socket.receive()).unwrap();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    #[track_caller]
    fn evaluate(&mut self, expression: &str) -> Result<Value, String> {
        let mut told = self.call("Runtime.evaluate", &json!({ "expression": expression, "returnByValue": true }));
        let failed = &told["exceptionDetails"];
        if failed.is_null() { Ok(told["result"]["value"].take()) } else { Err(failed.to_string()) }
    }

    /// Waits until what it shows is as wanted.
    #[track_caller]
    fn wait(&mut self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || {
            let seen = self.evaluate(SEEN)?;
            if is_wanted(&seen) { Ok(seen) } else { Err(seen.to_string()) }
        })
    }

    /// The next frames come about a second apart, and each changes what is shown.
    #[track_caller]
    fn expect_steady_frames(&mut self, count: usize) {
        let before = self.frame_times().len();
        let mut shown = Vec::new();
        wait_for(&format!("{count} more frames"), PATIENCE, || {
            let uptime = self.evaluate(SEEN)?["uptime"].clone();
            if shown.last() != Some(&uptime) {
                shown.push(uptime);
            }
            let frames = self.frame_times().len() - before;
            if frames > count && shown.len() > count { Ok(()) } else { Err(format!("{frames}: {shown:?}")) }
        });
        let times = self.frame_times().split_off(before);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (0.3..3.0).contains(gap)), "seconds between frames: {gaps:?}");
    }

    /// When each frame came, in seconds.
    fn frame_times(&self) -> Vec<f64> {
        let messages = self.of("Network.eventSourceMessageReceived");
        messages.filter(|told| told["eventName"] == "frame").filter_map(|told| told["timestamp"].as_f64()).collect()
    }

    /// Nothing is wider than the window, long names and all.
    #[track_caller]
    fn expect_no_overflow(&mut self) {
        for width in [700, 1280] {
            self.resize(width);
            let widest = self.evaluate("document.documentElement.scrollWidth").unwrap();
            assert!(widest.as_u64().is_some_and(|widest| widest <= width), "{widest} px in a window of {width}");
        }
    }

    fn resize(&mut self, width: u64) {
        let screen = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &screen);
    }

    fn of(&self, method: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |event| event["method"] == method).map(|event| &event["params"])
    }

    /// What stands in its console as an error: uncaught exceptions, console.error, and what the browser itself refused.
    fn complaints(&self) -> Vec<String> {
        let thrown = self.of("Runtime.exceptionThrown").map(|told| format!("thrown: {told}"));
        let written = self.of("Runtime.consoleAPICalled").map(|told| format!("console: {told}"));
        let logged = self.of("Log.entryAdded").map(|told| &told["entry"]).filter(|entry| entry["level"] != "verbose");
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let logged =
            logged.map(|entry| format!("{}: {} {}", word(&entry["source"]), word(&entry["url"]), word(&entry["text"])));
        thrown.chain(written).chain(logged).collect()
    }

    fn requested(&self) -> Vec<String> {
        let sent = self.of("Network.requestWillBeSent").filter_map(|told| told["request"]["url"].as_str());
        sent.filter(|url| *url != "about:blank").map(str::to_owned).collect()
    }
}

/// The client's side of a WebSocket: whole text messages out, text messages in.
struct WebSocket {
    stream: BufReader<TcpStream>,
}

impl WebSocket {
    fn connect(port: u16, path: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = BufReader::new(stream);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: b3V0cmlnZ2VyLXRlc3RzIQ==\r\n\r\n"
        );
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
        }
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self { stream }
    }

    fn send(&mut self, text: &str) {
        const FINAL_TEXT: u8 = 0x81;
        const MASKED: u8 = 0x80;
        const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];
        let mut frame = vec![FINAL_TEXT];
        match u16::try_from(text.len()).unwrap() {
            length @ 0..=125 => frame.push(MASKED | u8::try_from(length).unwrap()),
            length => {
                frame.push(MASKED | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(text.bytes().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.get_mut().write_all(&frame).unwrap();
    }

    fn receive(&mut self) -> String {
        let mut message = Vec::new();
        loop {
            let [first, second] = self.bytes();
            let length = match second {
                126 => u64::from(u16::from_be_bytes(self.bytes())),
                127 => u64::from_be_bytes(self.bytes()),
                length => u64::from(length),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut payload).unwrap();
            match first & 0x0f {
                0 | 1 => message.extend(payload),
                8 => panic!("Chromium closed the DevTools connection"),
                _ => continue, // a ping or pong: the DevTools server wants no answer
            }
            if first & 0x80 != 0 {
                return String::from_utf8(message).unwrap();
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}
