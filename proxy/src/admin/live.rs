//! `/routes`, `/clusters`, `/listeners`: what is configured, with the numbers of the moment.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::render::{Format, reply};
use super::{Admin, AdminSources};
use crate::config::{Capture, HttpConnectionConfig, ListenerConfig, Protocol, RouteSource, Snapshot, VirtualHost};
use crate::observe::describe;
use crate::stats::{
    ClusterCell, Counter, Detected, EndpointCell, FaultCounters, Histogram, HistogramReport, ListenerCell, MethodCell,
    MethodKey, RouteCell, RouteKey, SuppressReason,
};

pub(super) async fn routes(State(admin): State<Admin>, format: Format) -> Response {
    let snapshot = admin.publisher.current();
    let levels: HashMap<String, Value> =
        (admin.limits)().into_iter().map(|limit| (limit.rule.clone(), json!(limit.tokens))).collect();
    let mut numbers = BTreeMap::new();
    admin.registry.routes(|key, cells| {
        numbers.insert(key.clone(), route_numbers(cells));
    });
    let mut listeners = Vec::new();
    for listener in snapshot.listeners() {
        // Chains may share a table; its routes are counted once.
        let mut seen = HashSet::new();
        for http in listener.https() {
            if !seen.insert((route_table_name(http), snapshot.routes_of(http).map(Arc::as_ptr))) {
                continue;
            }
            let hosts = snapshot.routes_of(http).map(|table| {
                let hosts = table.virtual_hosts.iter();
                hosts.map(|host| host_routes(listener, host, &mut numbers, &levels)).collect::<Vec<_>>()
            });
            listeners.push(json!({
                "listener": listener.name.as_str(),
                "route_table": route_table_name(http),
                "virtual_hosts": hosts,
            }));
        }
    }
    // What is left over counted under no route, or under one that has left the configuration.
    let others: Vec<Value> = numbers
        .into_iter()
        .map(|(key, numbers)| {
            json!({
                "listener": &*key.listener,
                "virtual_host": &*key.virtual_host,
                "route": &*key.route,
                "numbers": numbers,
            })
        })
        .collect();
    reply(format, &json!({ "epoch": snapshot.epoch, "listeners": listeners, "not_in_configuration": others }))
}

fn route_table_name(http: &HttpConnectionConfig) -> &str {
    match &http.routes {
        RouteSource::Inline(table) => table.name.as_str(),
        RouteSource::Named(name) => name.as_str(),
    }
}

fn host_routes(
    listener: &ListenerConfig,
    host: &VirtualHost,
    numbers: &mut BTreeMap<RouteKey, Value>,
    levels: &HashMap<String, Value>,
) -> Value {
    let routes = host.routes.iter().map(|route| {
        let key = RouteKey {
            listener: Arc::from(listener.name.as_str()),
            virtual_host: host.name.clone(),
            route: route.name.clone(),
        };
        let mut told = describe::route(route);
        told["summary"] = json!(describe::matches_line(&route.matches));
        if route.rate_limit.is_none() {
            // The host's limit binds routes that have none of their own.
            told["rate_limit"] = json!(host.rate_limit.as_deref().map(describe::rate_limit));
        }
        if let Some(rule) = told["rate_limit"]["rule"].as_str() {
            told["rate_limit"]["tokens"] = levels.get(rule).cloned().unwrap_or_default();
        }
        told["numbers"] = numbers.remove(&key).unwrap_or_else(|| route_numbers(&[]));
        told
    });
    json!({
        "name": &*host.name,
        "domains": host.domains.iter().map(|domain| &**domain).collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
    })
}

fn route_numbers(cells: &[Arc<RouteCell>]) -> Value {
    let sum = |part: fn(&RouteCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum::<u64>();
    json!({
        "requests": sum(|cell| &cell.requests),
        "active": cells.iter().map(|cell| cell.active.value()).sum::<i64>().max(0),
        "responses": classes(cells.iter().map(|cell| &cell.by_class)),
        "latency": latency(cells.iter().map(|cell| &cell.latency)),
        "retries": sum(|cell| &cell.retries),
        "retry_successes": sum(|cell| &cell.retry_success),
        "retry_suppressed": suppressed(cells.iter().map(|cell| &cell.retry_suppressed)),
        "limited": sum(|cell| &cell.limited),
        "would_limit": sum(|cell| &cell.would_limit),
        "faults": faults(cells.iter().map(|cell| &cell.faults)),
        "received_bytes": sum(|cell| &cell.bytes_in),
        "sent_bytes": sum(|cell| &cell.bytes_out),
    })
}

pub(super) async fn clusters(State(admin): State<Admin>, format: Format) -> Response {
    let snapshot = admin.publisher.current();
    let mut numbers = HashMap::new();
    admin.registry.clusters(|name, cells| {
        numbers.insert(name.clone(), cluster_numbers(cells));
    });
    let mut methods: HashMap<Arc<str>, Vec<Value>> = HashMap::new();
    admin.registry.methods(|key, cells| {
        methods.entry(key.cluster.clone()).or_default().push(method_numbers(key, cells));
    });
    let mut states: HashMap<Arc<str>, HashMap<SocketAddr, EndpointState>> = HashMap::new();
    admin.registry.endpoints(|cluster, address, cell| {
        let state = EndpointState { told: endpoint_state(&admin, cell), active: cell.active.load(Relaxed) };
        states.entry(cluster.clone()).or_default().insert(address, state);
    });
    let clusters = snapshot.clusters().iter().map(|(config, set)| {
        let name = config.name.as_str();
        let mut states = states.remove(name).unwrap_or_default();
        let active: u64 = states.values().map(|state| u64::from(state.active)).sum();
        let mut told = describe::cluster(config);
        told["numbers"] = numbers.remove(name).unwrap_or_else(|| cluster_numbers(&[]));
        told["grpc_methods"] = json!(methods.remove(name).unwrap_or_default());
        told["usage"] = json!({ "connections": told["numbers"]["connections"], "requests": active });
        let endpoints = set.endpoints.iter().map(|endpoint| {
            let mut told = describe::endpoint(endpoint);
            told["state"] = states.remove(&endpoint.address).map(|state| state.told).unwrap_or_default();
            told
        });
        told["endpoints"] = endpoints.collect();
        told["overprovisioning_percent"] = json!(set.overprovisioning_percent);
        told
    });
    reply(format, &json!({ "epoch": snapshot.epoch, "clusters": clusters.collect::<Vec<_>>() }))
}

struct EndpointState {
    told: Value,
    active: u32,
}

fn endpoint_state(sources: &AdminSources, cell: &EndpointCell) -> Value {
    let uptime_ms = u64::try_from(sources.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let is_ejected = cell.ejected.load(Relaxed);
    let [at_ms, until_ms] = [&cell.ejected_at_ms, &cell.ejected_until_ms].map(|cell| cell.load(Relaxed));
    json!({
        "active": cell.active.load(Relaxed),
        "connections": cell.connections.load(Relaxed),
        "requests": cell.requests.load(Relaxed),
        "successes": cell.successes.load(Relaxed),
        "failures": cell.failures.load(Relaxed),
        "connect_failures": cell.connect_failures.load(Relaxed),
        "is_ejected": is_ejected,
        "ejection_age_ms": (is_ejected && at_ms > 0).then(|| uptime_ms.saturating_sub(at_ms)),
        "ejection_remaining_ms": (is_ejected && until_ms > 0).then(|| until_ms.saturating_sub(uptime_ms)),
        "ejections": cell.ejections.load(Relaxed),
    })
}

fn cluster_numbers(cells: &[Arc<ClusterCell>]) -> Value {
    let sum = |part: fn(&ClusterCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum::<u64>();
    json!({
        "requests": sum(|cell| &cell.requests),
        "responses": classes(cells.iter().map(|cell| &cell.by_class)),
        "latency": latency(cells.iter().map(|cell| &cell.latency)),
        "retries": sum(|cell| &cell.retries),
        "retry_suppressed": suppressed(cells.iter().map(|cell| &cell.retry_suppressed)),
        "connects": sum(|cell| &cell.connects),
        "connect_failures": sum(|cell| &cell.connect_failures),
        "connections": cells.iter().map(|cell| cell.connections.value()).sum::<i64>().max(0),
        "reuses": sum(|cell| &cell.reuses),
        "panic_picks": sum(|cell| &cell.panic_picks),
        "faults": faults(cells.iter().map(|cell| &cell.faults)),
    })
}

fn method_numbers(key: &MethodKey, cells: &[Arc<MethodCell>]) -> Value {
    let sum = |part: fn(&MethodCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum::<u64>();
    let codes: Vec<_> = MethodCell::sum(cells).collect();
    let calls: u64 = codes.iter().map(|(_, count)| count).sum();
    let failures: u64 = codes.iter().filter(|(code, _)| code.is_failure()).map(|(_, count)| count).sum();
    let codes: Map<String, Value> = codes.iter().map(|(code, count)| (code.label().to_owned(), json!(count))).collect();
    json!({
        "service": &*key.service,
        "method": &*key.method,
        "calls": calls,
        "success_rate": success_rate(calls, failures),
        "codes": codes,
        "request_messages": sum(|cell| &cell.request_messages),
        "response_messages": sum(|cell| &cell.response_messages),
    })
}

/// The share of calls that are no failure of the upstream, `0.0..=1.0`; `null` before the first.
#[allow(clippy::cast_precision_loss, reason = "a share of 2^53 calls is still right to many digits")]
fn success_rate(calls: u64, failures: u64) -> Option<f64> {
    (calls > 0).then(|| calls.saturating_sub(failures) as f64 / calls as f64)
}

pub(super) async fn listeners(State(admin): State<Admin>, format: Format) -> Response {
    let snapshot = admin.publisher.current();
    let mut numbers = HashMap::new();
    admin.registry.listeners(|name, cells| {
        numbers.insert(name.clone(), listener_numbers(cells));
    });
    let listeners = snapshot.listeners().iter().map(|listener| {
        let name = listener.name.as_str();
        let mut told = json!({
            "name": name,
            "addresses": listener.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "direction": describe::direction(listener.direction),
            "numbers": numbers.remove(name).unwrap_or_else(|| listener_numbers(&[])),
        });
        if listener.capture != Capture::default() {
            told["capture"] = describe::capture(listener.capture);
        }
        if let Some(only) = listener.only_chain() {
            add_protocol(&mut told, &only.protocol, &snapshot);
        } else {
            let chains = listener.chains.iter().map(|chain| {
                let mut told = json!({ "name": chain.name.as_str(), "takes": describe::takes(&chain.takes) });
                add_protocol(&mut told, &chain.protocol, &snapshot);
                told
            });
            told["chains"] = chains.collect();
            told["inspection"] = describe::inspection(&listener.inspection);
        }
        told
    });
    reply(format, &json!({ "epoch": snapshot.epoch, "listeners": listeners.collect::<Vec<_>>() }))
}

fn detections(cells: &[Arc<ListenerCell>]) -> Value {
    let counts = Detected::ALL.iter().enumerate().map(|(at, detected)| {
        let count: u64 = cells.iter().map(|cell| cell.detected[at].value()).sum();
        (detected.label().to_owned(), json!(count))
    });
    Value::Object(counts.filter(|(_, count)| *count != json!(0)).collect())
}

fn add_protocol(told: &mut Value, protocol: &Protocol, snapshot: &Snapshot) {
    match protocol {
        Protocol::Http(http) => {
            told["protocol"] = json!("http");
            told["route_table"] = json!(route_table_name(http));
            told["has_routes"] = json!(snapshot.routes_of(http).is_some());
        }
        Protocol::Tcp(tcp) => {
            told["protocol"] = json!("tcp");
            told["clusters"] = describe::shares(&tcp.clusters);
        }
    }
}

fn listener_numbers(cells: &[Arc<ListenerCell>]) -> Value {
    let sum = |part: fn(&ListenerCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum::<u64>();
    json!({
        "accepted": sum(|cell| &cell.accepted),
        "accept_failures": sum(|cell| &cell.accept_failures),
        "connections": cells.iter().map(|cell| cell.connections.value()).sum::<i64>().max(0),
        "requests": sum(|cell| &cell.requests),
        "received_bytes": sum(|cell| &cell.bytes_in),
        "sent_bytes": sum(|cell| &cell.bytes_out),
        "proxy_headers": sum(|cell| &cell.proxy_headers),
        "server_first": sum(|cell| &cell.server_first),
        "detections": detections(cells),
        "faults": faults(cells.iter().map(|cell| &cell.faults)),
    })
}

fn classes<'a>(parts: impl Iterator<Item = &'a [Counter; 6]>) -> Value {
    let mut sums = [0; 6];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, counter)| *sum += counter.value());
    }
    json!({ "none": sums[0], "1xx": sums[1], "2xx": sums[2], "3xx": sums[3], "4xx": sums[4], "5xx": sums[5] })
}

fn suppressed<'a>(parts: impl Iterator<Item = &'a [Counter; 5]>) -> Value {
    let mut sums = [0; 5];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, counter)| *sum += counter.value());
    }
    SuppressReason::ALL
        .iter()
        .zip(sums)
        .map(|(reason, sum)| (reason.label().to_owned(), json!(sum)))
        .collect::<Map<_, _>>()
        .into()
}

fn faults<'a>(parts: impl Iterator<Item = &'a FaultCounters>) -> Value {
    let mut sums = BTreeMap::new();
    for (kind, count) in parts.flat_map(FaultCounters::nonzero) {
        sums.entry(kind as usize).or_insert((kind, 0)).1 += count;
    }
    sums.into_values()
        .map(|(kind, count)| {
            json!({
                "side": kind.side().label(),
                "stage": kind.stage().label(),
                "kind": kind.label(),
                "count": count,
            })
        })
        .collect()
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds for people")]
fn latency<'a>(parts: impl Iterator<Item = &'a Histogram>) -> Value {
    let report = HistogramReport::merge(parts);
    let ms = |q| report.quantile(q).map(|us| us as f64 / 1000.0);
    json!({ "count": report.count, "p50_ms": ms(0.5), "p90_ms": ms(0.9), "p99_ms": ms(0.99) })
}
