//! **Purpose.** Configuration as readable JSON: for `/config_dump`, `/routes`, `/clusters`, `/listeners` and epoch
//! differences.
//!
//! **Units.** Spans are written as in the JSON form of protobuf: `"0.25s"`. Shares are written in percent.
//!
//! **Tests.** The golden dump in the admin room's tests.

mod route;

pub use route::{action, matches, matches_line, route, route_table};

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{
    Capture, CircuitLimits, ClusterConfig, ClusterShare, Direction, Discovery, EndpointConfig, EndpointHealth,
    EndpointSet, FilterChain, HeaderEdit, HeaderEdits, Http2Config, HttpConnectionConfig, Inspection, ListenerConfig,
    LoadBalancing, LocalRateLimit, OriginalDestination, OutlierDetection, Protocol, RetryOn, RetryPolicy, RouteSource,
    Snapshot, Takes, TcpConnectionConfig, Upgrade, UpstreamProtocol,
};

/// The whole snapshot.
pub fn snapshot(snapshot: &Snapshot) -> Value {
    let mut tables: Vec<_> = snapshot.route_tables().collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    json!({
        "epoch": snapshot.epoch,
        "listeners": snapshot.listeners().iter().map(|one| listener(one)).collect::<Vec<_>>(),
        "route_tables": tables.into_iter().map(|one| route_table(one)).collect::<Vec<_>>(),
        "clusters": snapshot.clusters().iter().map(|(one, endpoints)| {
            let mut told = cluster(one);
            told["endpoints"] = endpoint_set(endpoints);
            told
        }).collect::<Vec<_>>(),
    })
}

/// A listener with the settings of its chains, inline routes included.
pub fn listener(listener: &ListenerConfig) -> Value {
    let mut told = json!({
        "name": listener.name.as_str(),
        "addresses": listener.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "direction": direction(listener.direction),
    });
    if listener.capture != Capture::default() {
        told["capture"] = capture(listener.capture);
    }
    if let Some(only) = listener.only_chain() {
        add_protocol(&mut told, &only.protocol);
    } else {
        told["inspection"] = inspection(&listener.inspection);
        told["chains"] = listener.chains.iter().map(chain).collect();
    }
    told
}

/// How connections come to a listener.
pub fn capture(capture: Capture) -> Value {
    json!({
        "is_bound": capture.is_bound,
        "is_transparent": capture.is_transparent,
        "original_destination": match capture.original {
            OriginalDestination::Asked => "asked",
            OriginalDestination::HandsOver => "hands-over",
            OriginalDestination::Unasked => "unasked",
        },
    })
}

fn add_protocol(told: &mut Value, protocol: &Protocol) {
    match protocol {
        Protocol::Http(settings) => told["http"] = http(settings),
        Protocol::Tcp(settings) => told["tcp"] = tcp(settings),
    }
}

fn chain(chain: &FilterChain) -> Value {
    let mut told = json!({ "name": chain.name.as_str(), "takes": takes(&chain.takes) });
    add_protocol(&mut told, &chain.protocol);
    told
}

/// Which connections a chain takes, in one line.
pub fn takes(takes: &Takes) -> String {
    match takes {
        Takes::Match(asked) => asked.to_string(),
        Takes::Rest => "what no other chain takes".to_owned(),
    }
}

/// What is looked at of a connection before it gets its chain.
pub fn inspection(inspection: &Inspection) -> Value {
    json!({
        "proxy_protocol": inspection.proxy.as_ref().map(|proxy| json!({
            "is_optional": proxy.is_optional,
            "refused": proxy.refused.map(|version| word(&version)),
            "off_at_ports": proxy.off.as_ref().map(ToString::to_string),
        })),
        "tls": inspection.tls.as_ref().map(|tls| json!({
            "hello_max_bytes": tls.hello_max,
            "closes_on_error": tls.closes_on_error,
            "off_at_ports": tls.off.as_ref().map(ToString::to_string),
        })),
        "http": inspection.http.as_ref().map(|http| json!({
            "off_at_ports": http.off.as_ref().map(ToString::to_string),
        })),
        "timeout": span(inspection.timeout),
        "goes_on": inspection.goes_on,
    })
}

fn tcp(tcp: &TcpConnectionConfig) -> Value {
    json!({
        "stat_prefix": &*tcp.stat_prefix,
        "clusters": shares(&tcp.clusters),
        "idle_timeout": span(tcp.idle_timeout),
        "max_connection_duration": span(tcp.max_connection_duration),
        "max_connect_attempts": tcp.max_connect_attempts,
        "hashes_source": tcp.hashes_source,
    })
}

/// Where opaque connections go, by weight.
pub fn shares(shares: &[ClusterShare]) -> Value {
    shares.iter().map(|share| json!({ "cluster": share.cluster.as_str(), "weight": share.weight })).collect()
}

/// Which way traffic flows, in lower case.
pub fn direction(direction: Direction) -> String {
    word(&direction)
}

fn http(http: &HttpConnectionConfig) -> Value {
    let routes = match &http.routes {
        RouteSource::Inline(table) => json!({ "inline": route_table(table) }),
        RouteSource::Named(name) => json!({ "named": name.as_str() }),
    };
    json!({
        "stat_prefix": &*http.stat_prefix,
        "routes": routes,
        "idle_timeout": span(http.idle_timeout),
        "request_headers_timeout": span(http.request_headers_timeout),
        "request_timeout": span(http.request_timeout),
        "stream_idle_timeout": span(http.stream_idle_timeout),
        "max_connection_duration": span(http.max_connection_duration),
        "max_requests_per_connection": http.max_requests_per_connection,
        "max_head_bytes": http.max_head_bytes,
        "max_headers": http.max_headers,
        "underscore_headers": word(&http.underscore_headers),
        "use_remote_address": http.use_remote_address,
        "skip_xff_append": http.skip_xff_append,
        "xff_trusted_hops": http.xff_trusted_hops,
        "normalize_path": http.normalize_path,
        "merge_slashes": http.merge_slashes,
        "escaped_slashes": word(&http.escaped_slashes),
        "server_name": &*http.server_name,
        "server_header": word(&http.server_header),
        "via": &*http.via,
        "generate_request_id": http.generate_request_id,
        "preserve_request_id": http.preserve_request_id,
        "strip_any_host_port": http.strip_any_host_port,
        "accept_http_10": http.accept_http_10,
        "codec": word(&http.codec),
        "http2": http2(&http.http2),
        "upgrades": upgrades(&http.upgrades),
        "http1_trailers": http.http1_trailers,
        "grpc_web": http.grpc_web,
        "rate_limit": http.rate_limit.as_deref().map(rate_limit),
        "response_edits": edits(&http.response_edits),
    })
}

/// A cluster without its endpoints.
pub fn cluster(cluster: &ClusterConfig) -> Value {
    json!({
        "name": cluster.name.as_str(),
        "discovery": discovery(&cluster.discovery),
        "connect_timeout": span(Some(cluster.connect_timeout)),
        "load_balancing": match cluster.balancing {
            LoadBalancing::LeastRequest { choices } => json!({ "least_request": { "choices": choices } }),
            LoadBalancing::Maglev { table_size } => json!({ "maglev": { "table_size": table_size } }),
            LoadBalancing::Random => json!("random"),
            LoadBalancing::RingHash { minimum, maximum } => {
                json!({ "ring_hash": { "minimum_ring_size": minimum, "maximum_ring_size": maximum } })
            }
            LoadBalancing::RoundRobin => json!("round_robin"),
        },
        "limits": limits(&cluster.limits),
        "outlier_detection": cluster.outlier.as_ref().map(outlier),
        "panic_threshold_percent": cluster.panic_threshold_percent,
        "idle_timeout": span(cluster.idle_timeout),
        "max_requests_per_connection": cluster.max_requests_per_connection,
        "protocol": word(&cluster.protocol),
        "http2": match cluster.protocol {
            UpstreamProtocol::Http1 => Value::Null,
            UpstreamProtocol::Downstream | UpstreamProtocol::Http2 => http2(&cluster.http2),
        },
        "proxy_header": cluster.proxy_header.map(|version| word(&version)),
        "rate_limit": cluster.rate_limit.as_deref().map(rate_limit),
    })
}

/// Settings of HTTP/2 connections.
fn http2(http2: &Http2Config) -> Value {
    json!({
        "max_concurrent_streams": http2.max_concurrent_streams,
        "stream_window": http2.stream_window,
        "connection_window": http2.connection_window,
        "allow_connect": http2.allow_connect,
        "keepalive": http2.keepalive.map(|keepalive| json!({
            "interval": span(keepalive.interval),
            "timeout": span(Some(keepalive.timeout)),
            "jitter_percent": keepalive.jitter_percent,
        })),
    })
}

/// What may be tunnelled; `null` when nothing is said.
fn upgrades(upgrades: &[Upgrade]) -> Value {
    if upgrades.is_empty() {
        return Value::Null;
    }
    let told = upgrades
        .iter()
        .map(|upgrade| json!({ "kind": &*upgrade.kind, "enabled": upgrade.enabled, "ends_here": upgrade.ends_here }));
    told.collect()
}

fn discovery(discovery: &Discovery) -> Value {
    match discovery {
        Discovery::Eds(name) => json!({ "eds": &**name }),
        Discovery::Dns { targets, strict, refresh } => json!({
            "dns": {
                "kind": if *strict { "strict" } else { "logical" },
                "refresh": span(Some(*refresh)),
                "targets": targets.iter().map(|(host, port, weight)| {
                    json!({ "host": &**host, "port": port, "weight": weight })
                }).collect::<Vec<_>>(),
            }
        }),
        Discovery::Original(original) => json!({
            "original_destination": {
                "header": original.header.as_deref(),
                "port": original.port,
                "cleanup_interval": span(Some(original.cleanup_interval)),
            }
        }),
        Discovery::Static(_) => json!("static"),
    }
}

/// Circuit limits.
pub fn limits(limits: &CircuitLimits) -> Value {
    json!({
        "max_connections": limits.max_connections,
        "max_pending_requests": limits.max_pending_requests,
        "max_requests": limits.max_requests,
        "max_retries": if limits.retry_budget.is_some() { Value::Null } else { json!(limits.max_retries) },
        "retry_budget": limits.retry_budget.map(|budget| json!({
            "budget_percent": f64::from(budget.budget_bp) / 100.0,
            "min_concurrency": budget.min_concurrency,
        })),
    })
}

fn outlier(outlier: &OutlierDetection) -> Value {
    json!({
        "consecutive_5xx": outlier.consecutive_5xx,
        "consecutive_gateway_failure": outlier.consecutive_gateway_failure,
        "consecutive_local_origin_failure": outlier.consecutive_local_origin_failure,
        "split_external_local_origin": outlier.split_external_local_origin,
        "enforcing_consecutive_5xx_percent": outlier.enforcing_consecutive_5xx,
        "enforcing_consecutive_gateway_failure_percent": outlier.enforcing_consecutive_gateway_failure,
        "enforcing_consecutive_local_origin_failure_percent": outlier.enforcing_consecutive_local_origin_failure,
        "interval": span(Some(outlier.interval)),
        "base_ejection_time": span(Some(outlier.base_ejection_time)),
        "max_ejection_time": span(Some(outlier.max_ejection_time)),
        "max_ejection_time_jitter": span(Some(outlier.max_ejection_time_jitter)),
        "max_ejection_percent": outlier.max_ejection_percent,
        "always_eject_one": outlier.always_eject_one,
    })
}

/// The endpoints of a cluster.
pub fn endpoint_set(set: &EndpointSet) -> Value {
    json!({
        "overprovisioning_percent": set.overprovisioning_percent,
        "endpoints": set.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// One endpoint as configured.
pub fn endpoint(endpoint: &EndpointConfig) -> Value {
    json!({
        "address": endpoint.address.to_string(),
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "locality": &*endpoint.locality,
        "health": health(endpoint.health),
    })
}

/// Health as discovery tells it, in lower case.
pub fn health(health: EndpointHealth) -> &'static str {
    match health {
        EndpointHealth::Degraded => "degraded",
        EndpointHealth::Draining => "draining",
        EndpointHealth::Healthy => "healthy",
        EndpointHealth::Timeout => "timeout",
        EndpointHealth::Unhealthy => "unhealthy",
        EndpointHealth::Unknown => "unknown",
    }
}

/// A local rate limit.
pub fn rate_limit(limit: &LocalRateLimit) -> Value {
    json!({
        "rule": &*limit.rule,
        "max_tokens": limit.bucket.max_tokens,
        "tokens_per_fill": limit.bucket.tokens_per_fill,
        "fill_interval": span(Some(limit.bucket.fill_interval)),
        "enabled_percent": percent(limit.enabled_ppm),
        "enforced_percent": percent(limit.enforced_ppm),
        "status": limit.status,
    })
}

/// A retry policy.
pub fn retry(policy: &RetryPolicy) -> Value {
    json!({
        "on": retry_words(&policy.on),
        "retries": policy.retries,
        "per_try_timeout": span(policy.per_try_timeout),
        "status_codes": policy.status_codes,
        "response_headers": texts(&policy.response_headers),
        "backoff_base": span(Some(policy.backoff_base)),
        "backoff_max": span(Some(policy.backoff_max)),
        "endpoint_attempts": policy.endpoint_attempts,
        "retry_non_idempotent": policy.retry_non_idempotent,
    })
}

fn retry_words(on: &RetryOn) -> Vec<&'static str> {
    let words = [
        (on.any_5xx, "5xx"),
        (on.gateway_error, "gateway-error"),
        (on.reset, "reset"),
        (on.reset_before_request, "reset-before-request"),
        (on.connect_failure, "connect-failure"),
        (on.retriable_4xx, "retriable-4xx"),
        (on.refused_stream, "refused-stream"),
        (on.status_codes, "retriable-status-codes"),
        (on.response_headers, "retriable-headers"),
        (on.grpc_cancelled, "cancelled"),
        (on.grpc_deadline_exceeded, "deadline-exceeded"),
        (on.grpc_internal, "internal"),
        (on.grpc_resource_exhausted, "resource-exhausted"),
        (on.grpc_unavailable, "unavailable"),
    ];
    words.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect()
}

/// Header edits; `null` when there are none.
pub(super) fn edits(edits: &HeaderEdits) -> Value {
    if edits.is_empty() {
        return Value::Null;
    }
    let add = edits.add.iter().map(|edit| {
        let (how, name, value) = match edit {
            HeaderEdit::AddIfAbsent(name, value) => ("add_if_absent", name, value),
            HeaderEdit::Append(name, value) => ("append", name, value),
            HeaderEdit::Overwrite(name, value) => ("overwrite", name, value),
            HeaderEdit::OverwriteIfExists(name, value) => ("overwrite_if_exists", name, value),
        };
        json!({ "action": how, "name": &**name, "value": &**value })
    });
    json!({ "remove": texts(&edits.remove), "add": add.collect::<Vec<_>>() })
}

/// `"0.25s"`, or `null` for none.
pub(super) fn span(span: Option<Duration>) -> Value {
    span.map_or(Value::Null, |span| Value::String(format!("{}s", span.as_secs_f64())))
}

/// Millionths as percent.
pub(super) fn percent(ppm: u32) -> f64 {
    f64::from(ppm) / 10_000.0
}

pub(super) fn texts(texts: &[std::sync::Arc<str>]) -> Vec<&str> {
    texts.iter().map(|text| &**text).collect()
}

/// A field-less variant in snake case: `KeepUnchanged` becomes `keep_unchanged`.
fn word(variant: &dyn std::fmt::Debug) -> String {
    let mut word = String::new();
    for c in format!("{variant:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}
