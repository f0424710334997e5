use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use outrigger_xds_proto::json;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::config::{
    Capture, Codec, Discovery, HashCookie, HashPolicy, HashSource, HeaderTest, Inspection, LoadBalancing,
    OriginalCluster, OriginalDestination, PathMatch, Protocol, ProxyVersion, RouteAction, TlsInspection,
    UpstreamProtocol,
};

/// Lays `over` over `base`: objects merge, the rest replaces.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn with(mut base: Value, over: &Value) -> Value {
    merge(&mut base, over);
    base
}

fn base_cluster() -> Value {
    json!({ "name": "pay", "type": "STATIC" })
}

fn base_endpoints() -> Value {
    json!({ "cluster_name": "pay", "endpoints": [locality(&json!({}), &[endpoint(1, 80)])] })
}

fn endpoint(last: u8, port: u32) -> Value {
    json!({ "endpoint": { "address": { "socket_address": {
        "address": format!("10.0.0.{last}"), "port_value": port } } } })
}

fn locality(over: &Value, endpoints: &[Value]) -> Value {
    with(json!({ "lb_endpoints": endpoints }), over)
}

fn base_route() -> Value {
    json!({ "match": { "prefix": "/" }, "route": { "cluster": "pay" } })
}

fn base_table(routes: &Value) -> Value {
    json!({ "name": "t", "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": routes }] })
}

fn hcm(over: &Value) -> Value {
    with(
        json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "s",
            "route_config": base_table(&json!([base_route()])),
            "http_filters": [router()],
        }),
        over,
    )
}

fn router() -> Value {
    json!({ "name": "router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } })
}

fn tcp_proxy(over: &Value) -> Value {
    with(
        json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "s",
            "cluster": "pay",
        }),
        over,
    )
}

fn base_listener(hcm: &Value) -> Value {
    json!({ "name": "in", "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": hcm }] }] })
}

fn read_cluster(value: &Value) -> Converted<crate::config::ClusterConfig> {
    cluster(&json::from_value::<Cluster>(value).unwrap().encode_to_vec())
}

/// A cluster's HTTP options.
fn http_options(options: &Value) -> Value {
    const NAME: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let typed = with(json!({ "@type": format!("type.googleapis.com/{NAME}") }), options);
    json!({ "typed_extension_protocol_options": { NAME: typed } })
}

fn read_endpoints(value: &Value) -> Converted<crate::config::EndpointSet> {
    endpoints(&json::from_value::<ClusterLoadAssignment>(value).unwrap().encode_to_vec())
}

fn read_table(value: &Value) -> Converted<crate::config::RouteTable> {
    route_table(&json::from_value::<RouteConfiguration>(value).unwrap().encode_to_vec())
}

fn read_listener(value: &Value) -> Converted<crate::config::ListenerConfig> {
    listener(&json::from_value::<Listener>(value).unwrap().encode_to_vec())
}

/// Every one is refused, and says so at its place.
fn all_refused<T: std::fmt::Debug>(read: impl Fn(&Value) -> Converted<T>, base: &Value, cases: &[(Value, &str)]) {
    for (over, text) in cases {
        let outcome = read(&with(base.clone(), over)).result;
        let told = outcome.expect_err(&format!("{over} was taken")).to_string();
        assert!(told.contains(text), "{over}\n told: {told}\nexpected: {text}");
    }
}

#[test]
fn a_rejection_reads_as_promised() {
    let value =
        json!({ "cluster_name": "pay", "endpoints": [locality(&json!({}), &[endpoint(1, 80), endpoint(2, 70_000)])] });
    assert_eq!(
        read_endpoints(&value).result.unwrap_err().to_string(),
        "endpoints \"pay\": endpoints[0].lb_endpoints[1].endpoint.address.socket_address.port_value: \
         70000 is not in 0..=65535"
    );
    let value = with(base_cluster(), &json!({ "connect_timeout": "0s", "outlier_detection": { "interval": "0s" } }));
    assert_eq!(
        read_cluster(&value).result.unwrap_err().to_string(),
        "cluster \"pay\": connect_timeout: 0s is not above 0s; \
         cluster \"pay\": outlier_detection.interval: 0s is not above 0s"
    );
}

#[test]
fn clusters_keep_their_constraints() {
    let eds = json!({ "type": "EDS", "eds_cluster_config": { "eds_config": { "ads": {} } } });
    assert!(matches!(
        read_cluster(&with(base_cluster(), &eds)).result.unwrap().discovery,
        Discovery::Eds(service) if &*service == "pay"
    ));
    all_refused(
        read_cluster,
        &base_cluster(),
        &[
            (json!({ "name": "" }), "name: is empty"),
            (json!({ "name": "a\nb" }), "name: \"a\\nb\" has control characters"),
            (json!({ "type": "EDS" }), "eds_cluster_config: is not set"),
            (json!({ "type": "EDS", "eds_cluster_config": {} }), "eds_cluster_config.eds_config: is not set"),
            (json!({ "type": "ORIGINAL_DST" }), "lb_policy: ROUND_ROBIN is not for ORIGINAL_DST; use CLUSTER_PROVIDED"),
            (json!({ "type": "STRICT_DNS" }), "load_assignment: is not set"),
            (json!({ "type": "STRICT_DNS", "dns_refresh_rate": "0s" }), "dns_refresh_rate: 0s is not above 0s"),
            (json!({ "lb_policy": "CLUSTER_PROVIDED" }), "lb_policy: CLUSTER_PROVIDED is not served here"),
            (
                json!({ "lb_policy": "LEAST_REQUEST", "least_request_lb_config": { "choice_count": 1 } }),
                "least_request_lb_config.choice_count: 1 is not in 2..=",
            ),
            (json!({ "load_balancing_policy": { "policies": [] } }), "load_balancing_policy.policies: none of these"),
            (
                json!({ "common_lb_config": { "healthy_panic_threshold": { "value": 100.5 } } }),
                "healthy_panic_threshold.value: 100.5 is not in 0..=100",
            ),
            (
                json!({ "outlier_detection": { "max_ejection_percent": 101 } }),
                "max_ejection_percent: 101 is not in 0..=100",
            ),
            (
                json!({ "outlier_detection": { "base_ejection_time": "10s", "max_ejection_time": "9s" } }),
                "max_ejection_time: 9s is below base_ejection_time, 10s",
            ),
            (json!({ "outlier_detection": { "enforcing_consecutive_5xx": 101 } }), "101 is not in 0..=100"),
            (
                json!({ "transport_socket": { "name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" } } }),
                "transport_socket.typed_config: transport socket envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            ),
            (
                http_options(&json!({ "explicit_http_config": { "http3_protocol_options": {} } })),
                "explicit_http_config.http3_protocol_options: HTTP/3 is not served",
            ),
            (http_options(&json!({ "explicit_http_config": {} })), "explicit_http_config: names no protocol"),
            (http_options(&json!({})), "HttpProtocolOptions\"]: names no protocol"),
            (http_options(&json!({ "auto_config": {} })), "auto_config: chooses by ALPN"),
            (
                http_options(&json!({ "explicit_http_config": { "http2_protocol_options": {
                    "max_concurrent_streams": 0 } } })),
                "explicit_http_config.http2_protocol_options.max_concurrent_streams: 0 is not in 1..=2147483647",
            ),
            (
                json!({ "http2_protocol_options": { "initial_stream_window_size": 1 } }),
                "http2_protocol_options.initial_stream_window_size: 1 is not in 65535..=2147483647",
            ),
            (
                json!({ "metadata": { "typed_filter_metadata": { "outrigger.policy.v1.ClusterPolicy": {
                "@type": "type.googleapis.com/outrigger.policy.v1.ClusterPolicy",
                "local_rate_limit": { "max_tokens": 1, "fill_interval": "0.001s" } } } } }),
                "local_rate_limit.fill_interval: 1ms is below 50ms",
            ),
        ],
    );
}

#[test]
fn clusters_say_how_their_endpoints_are_spoken_to() {
    let http2 = json!({ "max_concurrent_streams": 7, "allow_connect": true });
    let explicit = |options: Value| http_options(&json!({ "explicit_http_config": options }));
    let downstream = json!({ "use_downstream_protocol_config": { "http2_protocol_options": http2 } });
    let both = with(explicit(json!({ "http_protocol_options": {} })), &json!({ "http2_protocol_options": http2 }));
    for (over, protocol, streams) in [
        (json!({}), UpstreamProtocol::Http1, 1024),
        (explicit(json!({ "http_protocol_options": {} })), UpstreamProtocol::Http1, 1024),
        (explicit(json!({ "http2_protocol_options": http2 })), UpstreamProtocol::Http2, 7),
        (http_options(&downstream), UpstreamProtocol::Downstream, 7),
        (http_options(&json!({ "use_downstream_protocol_config": {} })), UpstreamProtocol::Downstream, 1024),
        (json!({ "http2_protocol_options": http2 }), UpstreamProtocol::Http2, 7),
        (json!({ "protocol_selection": "USE_DOWNSTREAM_PROTOCOL" }), UpstreamProtocol::Downstream, 1024),
        (both.clone(), UpstreamProtocol::Http1, 1024),
    ] {
        let cluster = read_cluster(&with(base_cluster(), &over)).result.unwrap();
        assert_eq!((cluster.protocol, cluster.http2.max_concurrent_streams), (protocol, streams), "{over}");
        assert_eq!(cluster.http2.allow_connect, streams == 7, "{over}");
    }
    assert_eq!(read_cluster(&with(base_cluster(), &both)).ignored, ["cluster.http2_protocol_options"]);
    let idle = json!({ "timeout": "1s", "connection_idle_interval": "9s" });
    let idle = json!({ "http2_protocol_options": { "connection_keepalive": idle } });
    let expected = ["cluster.http2_protocol_options.connection_keepalive.connection_idle_interval"];
    assert_eq!(read_cluster(&with(base_cluster(), &idle)).ignored, expected);
    let trailers = explicit(json!({ "http_protocol_options": { "enable_trailers": true } }));
    let ignored = read_cluster(&with(base_cluster(), &trailers)).ignored;
    assert!(ignored.iter().all(|path| path.ends_with(".http_protocol_options.enable_trailers")), "{ignored:?}");
    assert_eq!(ignored.len(), 1);
}

#[test]
fn clusters_have_envoys_defaults() {
    let cluster = read_cluster(&base_cluster()).result.unwrap();
    assert_eq!((cluster.balancing, cluster.panic_threshold_percent), (LoadBalancing::RoundRobin, 50));
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!((cluster.limits.max_requests, cluster.limits.max_retries), (1024, 3));
    assert_eq!((cluster.idle_timeout, cluster.outlier), (Some(Duration::from_secs(3600)), None));
    let over = json!({ "outlier_detection": {}, "metadata": { "typed_filter_metadata": {
        "outrigger.policy.v1.ClusterPolicy": { "@type": "type.googleapis.com/outrigger.policy.v1.ClusterPolicy",
            "rule": "RateLimit shop/pay", "local_rate_limit": { "max_tokens": 7, "fill_interval": "1s" } } } } });
    let cluster = read_cluster(&with(base_cluster(), &over)).result.unwrap();
    let outlier = cluster.outlier.unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.max_ejection_percent), (5, 10));
    assert_eq!((outlier.max_ejection_time, outlier.always_eject_one), (Duration::from_secs(300), false));
    let limit = cluster.rate_limit.unwrap();
    assert_eq!((&*limit.rule, limit.bucket.max_tokens, limit.enforced_ppm), ("RateLimit shop/pay@pay", 7, 1_000_000));
}

#[test]
fn endpoints_keep_their_constraints() {
    let one = |over: Value| json!({ "endpoints": [locality(&json!({}), &[with(endpoint(1, 80), &over)])] });
    all_refused(
        read_endpoints,
        &base_endpoints(),
        &[
            (json!({ "cluster_name": "" }), "cluster_name: is empty"),
            (one(json!({ "load_balancing_weight": 0 })), "lb_endpoints[0].load_balancing_weight: 0 is not in 1..="),
            (
                one(json!({ "endpoint": { "address": { "socket_address": { "address": "pay.local" } } } })),
                "socket_address.address: \"pay.local\" is not an IP address",
            ),
            (
                json!({ "endpoints": [locality(&json!({ "load_balancing_weight": 0 }), &[endpoint(1, 80)])] }),
                "endpoints[0].load_balancing_weight: 0 is not in 1..=",
            ),
            (
                json!({ "endpoints": [locality(&json!({ "priority": 129 }), &[endpoint(1, 80)])] }),
                "endpoints[0].priority: 129 is not in 0..=128",
            ),
            (json!({ "endpoints": [{ "lb_endpoints": [{}] }] }), "lb_endpoints[0]: has no endpoint"),
            (
                json!({ "endpoints": [{ "lb_endpoints": [{ "endpoint": {} }] }] }),
                "lb_endpoints[0].endpoint.address: is not set",
            ),
            (json!({ "policy": { "overprovisioning_factor": 0 } }), "overprovisioning_factor: 0 is not in 1..="),
            (
                json!({ "endpoints": [locality(&json!({}), &[
                with(endpoint(1, 80), &json!({ "load_balancing_weight": u32::MAX })), endpoint(2, 80)])] }),
                "endpoints[0].lb_endpoints: the sum of weights, 4294967296, is above 4294967295",
            ),
        ],
    );
}

#[test]
fn a_localitys_share_does_not_depend_on_its_size() {
    let value = json!({ "cluster_name": "pay", "endpoints": [
        locality(&json!({ "locality": { "zone": "a" }, "load_balancing_weight": 3 }), &[endpoint(1, 80), endpoint(2, 80)]),
        locality(&json!({ "locality": { "zone": "b" }, "load_balancing_weight": 1 }), &[endpoint(3, 80)]),
        locality(&json!({ "priority": 7 }), &[endpoint(4, 80), endpoint(1, 80)]),
    ] });
    let set = read_endpoints(&value).result.unwrap();
    let seen: Vec<_> = set.endpoints.iter().map(|e| (e.address.ip().to_string(), e.weight, e.priority)).collect();
    // 3 : 1 between zones; the gap in priorities is closed; an address counts once.
    let expected = [("10.0.0.1", 3, 0), ("10.0.0.2", 3, 0), ("10.0.0.3", 2, 0), ("10.0.0.4", 1, 1)];
    assert_eq!(seen, expected.map(|(ip, weight, priority)| (ip.to_owned(), weight, priority)));
}

fn hashing(policy: Value) -> Value {
    json!({ "route": { "hash_policy": [policy] } })
}

#[test]
fn routes_hash_what_they_are_told_to() {
    let policies = json!([
        { "header": { "header_name": "X-User" }, "terminal": true },
        { "cookie": { "name": "Id", "ttl": "5s", "path": "/a", "attributes": [{ "name": "SameSite", "value": "Lax" }, { "name": "Secure" }] } },
        { "query_parameter": { "name": "K" } },
        { "connection_properties": { "source_ip": true } },
    ]);
    let over = json!({ "route": { "hash_policy": policies } });
    let converted = read_table(&base_table(&json!([with(base_route(), &over)])));
    assert!(!converted.ignored.iter().any(|path| path.contains("hash_policy")), "{:?}", converted.ignored);
    let table = converted.result.unwrap();
    let RouteAction::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
    let attributes = "; Path=/a; SameSite=Lax; Secure".into();
    let cookie = HashCookie { name: "Id".into(), ttl: Some(Duration::from_secs(5)), attributes };
    let later = |source| HashPolicy { source, is_terminal: false };
    let expected = [
        HashPolicy { source: HashSource::Header("x-user".into()), is_terminal: true },
        later(HashSource::Cookie(cookie)),
        later(HashSource::Query("K".into())),
        later(HashSource::SourceIp),
    ];
    assert_eq!(forward.hash, expected);
}

#[test]
fn hash_policies_keep_their_constraints() {
    let table = |route: &Value| read_table(&base_table(&json!([route])));
    all_refused(
        table,
        &base_route(),
        &[
            (hashing(json!({})), "route.hash_policy[0]: names nothing to hash"),
            (
                hashing(json!({ "header": { "header_name": "a b" } })),
                "route.hash_policy[0].header.header_name: \"a b\" is not a header name",
            ),
            (
                hashing(json!({ "header": { "header_name": "a", "regex_rewrite": {} } })),
                "route.hash_policy[0].header.regex_rewrite: is not served",
            ),
            (
                hashing(json!({ "connection_properties": {} })),
                "route.hash_policy[0].connection_properties: names no property",
            ),
            (
                hashing(json!({ "query_parameter": { "name": "" } })),
                "route.hash_policy[0].query_parameter.name: is empty",
            ),
            (hashing(json!({ "filter_state": { "key": "a" } })), "route.hash_policy[0].filter_state: is not served"),
            (
                hashing(json!({ "cookie": { "name": "a b" } })),
                "route.hash_policy[0].cookie.name: \"a b\" is not a header name",
            ),
            (
                hashing(json!({ "cookie": { "name": "a", "path": "/; Secure" } })),
                "route.hash_policy[0].cookie.path: is no part of a cookie",
            ),
            (
                hashing(json!({ "cookie": { "name": "a", "attributes": [{ "name": "a", "value": "b;" }] } })),
                "route.hash_policy[0].cookie.attributes[0].value: is no part of a cookie",
            ),
            (
                hashing(json!({ "cookie": { "name": "a", "ttl": "-1s" } })),
                "route.hash_policy[0].cookie.ttl: -1s is not in",
            ),
        ],
    );
}

#[test]
fn routes_keep_their_constraints() {
    let table = |route: &Value| read_table(&base_table(&json!([route])));
    all_refused(
        table,
        &base_route(),
        &[
            (json!({ "match": { "prefix": null } }), "routes[0].match: has no path"),
            (
                json!({ "match": { "prefix": null, "safe_regex": { "regex": "(" } } }),
                "match.safe_regex.regex: \"(\" is not",
            ),
            (
                json!({ "match": { "prefix": null, "path_separated_prefix": "/a/" } }),
                "path_separated_prefix: \"/a/\" is not",
            ),
            (
                json!({ "match": { "headers": [{ "name": "a b" }] } }),
                "match.headers[0].name: \"a b\" is not a header name",
            ),
            (
                json!({ "match": { "headers": [{ "name": "a", "string_match": { "prefix": "" } }] } }),
                "prefix: is empty",
            ),
            (
                json!({ "match": { "runtime_fraction": { "default_value": { "numerator": 101 } } } }),
                "runtime_fraction.default_value.numerator: 101 is not in 0..=100",
            ),
            (json!({ "route": { "cluster": null } }), "routes[0].route: names no cluster"),
            (json!({ "route": { "cluster": "" } }), "route.cluster: is empty"),
            (json!({ "route": null }), "routes[0]: has no action"),
            (json!({ "route": { "timeout": "-1s" } }), "route.timeout: -1s is not in 0s..="),
            (
                json!({ "route": { "max_stream_duration": { "max_stream_duration": "-1s" } } }),
                "route.max_stream_duration.max_stream_duration: -1s is not in 0s..=",
            ),
            (json!({ "route": { "max_grpc_timeout": "-1s" } }), "route.max_grpc_timeout: -1s is not in 0s..="),
            (
                json!({ "route": { "upgrade_configs": [{ "upgrade_type": "h2c" }] } }),
                "route.upgrade_configs[0].upgrade_type: h2c is not tunnelled",
            ),
            (
                json!({ "route": { "cluster": null, "weighted_clusters": { "clusters": [{ "name": "a", "weight": 0 }] } } }),
                "weighted_clusters.clusters: the sum of weights, 0, is not in 1..=4294967295",
            ),
            (
                json!({ "route": { "cluster": null, "weighted_clusters": { "clusters": [
                { "name": "a", "weight": u32::MAX }, { "name": "b", "weight": 1 }] } } }),
                "the sum of weights, 4294967296, is not in",
            ),
            (json!({ "route": { "prefix_rewrite": "/a b" } }), "route.prefix_rewrite: \"/a b\" has blanks"),
            (
                json!({ "route": { "host_rewrite_literal": "a\r\nb" } }),
                "host_rewrite_literal: \"a\\r\\nb\" is not a host",
            ),
            (
                json!({ "route": null, "direct_response": { "status": 199 } }),
                "direct_response.status: 199 is not in 200..=599",
            ),
            (
                json!({ "route": null, "direct_response": { "status": 200, "body": { "inline_string": "x".repeat(4097) } } }),
                "direct_response.body: 4097 bytes; at most 4096",
            ),
            (
                json!({ "route": null, "redirect": { "port_redirect": 70_000 } }),
                "port_redirect: 70000 is not in 0..=65535",
            ),
            (
                json!({ "response_headers_to_add": [{ "header": { "key": "a", "value": "%NOW%" } }] }),
                "response_headers_to_add[0].header.value: operator %NOW% is not served",
            ),
        ],
    );
}

#[test]
fn the_life_of_a_stream_is_bounded_as_its_route_says() {
    let secs = |secs| Some(Duration::from_secs(secs));
    for (over, timeout, life, grpc) in [
        (json!({}), secs(15), None, None),
        (json!({ "max_grpc_timeout": "3s" }), secs(15), None, secs(3)),
        (json!({ "max_grpc_timeout": "0s" }), secs(15), None, None),
        (json!({ "max_stream_duration": {} }), None, None, None),
        (json!({ "timeout": "2s", "max_stream_duration": { "max_stream_duration": "9s" } }), secs(2), secs(9), None),
        (json!({ "max_stream_duration": { "max_stream_duration": "0s" } }), None, None, None),
        (
            json!({ "max_grpc_timeout": "3s", "max_stream_duration": { "grpc_timeout_header_max": "4s" } }),
            None,
            None,
            secs(4),
        ),
    ] {
        let route = with(base_route(), &json!({ "route": over }));
        let table = read_table(&base_table(&json!([route]))).result.unwrap();
        let RouteAction::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("no forward") };
        let read = (forward.timeout, forward.max_stream_duration, forward.grpc_timeout_max);
        assert_eq!(read, (timeout, life, grpc), "{over}");
    }
}

#[test]
fn calls_of_grpc_and_tunnels_have_matches_of_their_own() {
    let routes = json!([
        with(base_route(), &json!({ "match": { "prefix": null, "connect_matcher": {} } })),
        with(
            base_route(),
            &json!({ "match": { "grpc": {} }, "route": {
            "upgrade_configs": [{ "upgrade_type": "WebSocket", "enabled": false }] } })
        ),
    ]);
    let read = read_table(&base_table(&routes));
    assert_eq!(read.ignored, Vec::<String>::new());
    let table = read.result.unwrap();
    let [connect, grpc] = &table.virtual_hosts[0].routes[..] else { panic!("two routes") };
    assert_eq!(connect.matches.path, PathMatch::Connect);
    assert_eq!((&*grpc.matches.headers[0].name, &grpc.matches.headers[0].test), ("content-type", &HeaderTest::Grpc));
    let RouteAction::Forward(forward) = &grpc.action else { panic!("no forward") };
    assert_eq!((&*forward.upgrades[0].kind, forward.upgrades[0].enabled), ("websocket", false));
}

#[test]
fn domains_are_there_once() {
    let host = |name: &str, domains: Value| json!({ "name": name, "domains": domains });
    let table = |hosts: Value| json!({ "name": "t", "virtual_hosts": hosts });
    assert!(read_table(&table(json!([host("a", json!(["a.b", "*.b", "a.*", "*"]))]))).result.is_ok());
    for (hosts, text) in [
        (json!([host("a", json!(["x"])), host("b", json!(["X"]))]), "domain \"x\" is already in virtual host \"a\""),
        (json!([host("a", json!(["*"])), host("b", json!(["*"]))]), "domain \"*\" is already"),
        (json!([host("a", json!([]))]), "domains: is empty"),
        (json!([host("", json!(["x"]))]), "name: is empty"),
        (json!([host("a", json!(["a.*.b"]))]), "domains[0]: \"a.*.b\" is not a domain"),
        (json!([host("a", json!(["a b"]))]), "domains[0]: \"a b\" is not a domain"),
    ] {
        let told = read_table(&table(hosts)).result.unwrap_err().to_string();
        assert!(told.contains(text), "{told}");
    }
}

#[test]
fn listeners_keep_their_constraints() {
    let read = |over: &Value| read_listener(&base_listener(&hcm(over)));
    assert!(read(&json!({})).result.is_ok());
    let unknown = json!({ "name": "lua", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua" } });
    all_refused(
        read,
        &json!({}),
        &[
            (json!({ "stat_prefix": "" }), "typed_config.stat_prefix: is empty"),
            (json!({ "http_filters": [] }), "http_filters: does not end in the router"),
            (json!({ "http_filters": [router(), router()] }), "http_filters[1]: comes after the router"),
            (json!({ "http_filters": [unknown, router()] }), "http_filters[0].typed_config: filter \"lua\" with"),
            (json!({ "codec_type": "HTTP3" }), "codec_type: HTTP/3 is not served"),
            (
                json!({ "http2_protocol_options": { "connection_keepalive": {} } }),
                "http2_protocol_options.connection_keepalive.timeout: is not set",
            ),
            (
                json!({ "upgrade_configs": [{ "upgrade_type": "h2c" }] }),
                "upgrade_configs[0].upgrade_type: h2c is not tunnelled",
            ),
            (json!({ "max_request_headers_kb": 8193 }), "max_request_headers_kb: 8193 is not in 1..=8192"),
            (json!({ "route_config": null }), "typed_config: has no routes"),
            (
                json!({ "route_config": null, "rds": { "config_source": { "ads": {} } } }),
                "rds.route_config_name: is empty",
            ),
            (
                json!({ "common_http_protocol_options": { "max_headers_count": 0 } }),
                "max_headers_count: 0 is not in 1..=",
            ),
        ],
    );
    let optional = with(unknown, &json!({ "is_optional": true }));
    let taken = read(&json!({ "http_filters": [optional, router()] }));
    assert!(taken.result.is_ok());
    assert_eq!(taken.ignored, ["listener.filter_chains.filters.typed_config.http_filters.typed_config"]);
    all_refused(
        read_listener,
        &base_listener(&hcm(&json!({}))),
        &[
            (json!({ "address": null }), "address: is not set"),
            (json!({ "address": { "socket_address": { "protocol": "UDP" } } }), "protocol: UDP is not served"),
            (json!({ "filter_chains": [] }), "filter_chains: is empty; at least one is required"),
            (
                json!({ "filter_chains": [{}] }),
                "filter_chains[0].filters: does not end in the HTTP connection manager or the TCP proxy",
            ),
            (
                json!({ "bind_to_port": false, "use_original_dst": true }),
                "use_original_dst: a listener that is handed its connections hands none over",
            ),
        ],
    );
}

#[test]
fn endpoints_may_be_told_addresses_in_proxy_headers() {
    const URL: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    let raw = json!({ "transport_socket": { "name": "envoy.transport_sockets.raw_buffer" } });
    let read = |over: &Value| {
        let socket = with(json!({ "@type": URL }), over);
        read_cluster(&with(base_cluster(), &json!({ "transport_socket": { "name": "p", "typed_config": socket } })))
    };
    for (over, version) in [
        (json!({}), ProxyVersion::V1),
        (json!({ "config": {} }), ProxyVersion::V1),
        (json!({ "config": { "version": "V2" } }), ProxyVersion::V2),
    ] {
        let converted = read(&with(raw.clone(), &over));
        assert_eq!((converted.result.unwrap().proxy_header, converted.ignored.len()), (Some(version), 0));
    }
    let tls = json!({ "transport_socket": { "name": "t", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" } } });
    for (over, text) in [
        (json!({}), "transport_socket.typed_config.transport_socket: is not set"),
        (tls, "transport_socket.typed_config.transport_socket.typed_config: transport socket envoy"),
        (with(raw, &json!({ "config": { "added_tlvs": [{}] } })), "config.added_tlvs: additional values are not sent"),
    ] {
        let told = read(&over).result.expect_err(&format!("{over} was taken")).to_string();
        assert!(told.contains(text), "{over}\n told: {told}");
    }
    assert_eq!(read_cluster(&base_cluster()).result.unwrap().proxy_header, None);
}

#[test]
fn tables_of_hashes_keep_their_constraints() {
    let listed = |kind: &str, over: &Value| {
        let url = format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{kind}");
        let policy = json!({ "name": "p", "typed_config": with(json!({ "@type": url }), over) });
        json!({ "load_balancing_policy": { "policies": [{ "typed_extension_config": policy }] } })
    };
    let ring = |minimum, maximum| LoadBalancing::RingHash { minimum, maximum };
    let maglev = |table_size| LoadBalancing::Maglev { table_size };
    for (over, read) in [
        (json!({ "lb_policy": "RING_HASH" }), ring(1024, 8 << 20)),
        (json!({ "lb_policy": "MAGLEV" }), maglev(65_537)),
        (
            json!({ "lb_policy": "RING_HASH", "ring_hash_lb_config": { "minimum_ring_size": 7, "maximum_ring_size": 7 } }),
            ring(7, 7),
        ),
        (json!({ "lb_policy": "MAGLEV", "maglev_lb_config": { "table_size": 2 } }), maglev(2)),
        (listed("ring_hash.v3.RingHash", &json!({ "minimum_ring_size": 9 })), ring(9, 8 << 20)),
        (listed("maglev.v3.Maglev", &json!({ "table_size": 5_000_011 })), maglev(5_000_011)),
        (listed("maglev.v3.Maglev", &json!({ "consistent_hashing_lb_config": {} })), maglev(65_537)),
    ] {
        let converted = read_cluster(&with(base_cluster(), &over));
        assert_eq!((converted.result.unwrap().balancing, converted.ignored.len()), (read, 0), "{over}");
    }
    let old = |over: &Value| with(json!({ "lb_policy": "RING_HASH" }), &json!({ "ring_hash_lb_config": over }));
    let bounded = json!({ "consistent_hashing_lb_config": { "hash_balance_factor": 120 } });
    let cases = [
        (old(&json!({ "minimum_ring_size": 0 })), "minimum_ring_size: 0 is not in 1..=8388608"),
        (old(&json!({ "maximum_ring_size": 8_388_609 })), "maximum_ring_size: 8388609 is not in 1..=8388608"),
        (old(&json!({ "maximum_ring_size": 10 })), "minimum_ring_size: 1024 is above maximum_ring_size, 10"),
        (old(&json!({ "hash_function": "MURMUR_HASH_2" })), "hash_function: MURMUR_HASH_2 is not served"),
        (listed("maglev.v3.Maglev", &json!({ "table_size": 65_536 })), "table_size: 65536 is not a prime number"),
        (listed("maglev.v3.Maglev", &json!({ "table_size": 5_000_012 })), "table_size: 5000012 is not in 1..=5000011"),
        (listed("ring_hash.v3.RingHash", &bounded), "hash_balance_factor: bounded loads are not served"),
    ];
    all_refused(read_cluster, &base_cluster(), &cases);
}

fn chain(name: &str, asked: &Value) -> Value {
    json!({ "name": name, "filter_chain_match": asked, "filters": [{ "name": "tcp", "typed_config": tcp_proxy(&json!({})) }] })
}

fn listener_of(chains: &[Value], over: &Value) -> Value {
    with(base_listener(&json!(null)), &with(json!({ "filter_chains": chains }), over))
}

fn listener_filter(kind: &str, over: &Value) -> Value {
    let url = format!("type.googleapis.com/envoy.extensions.filters.listener.{kind}");
    json!({ "name": "f", "typed_config": with(json!({ "@type": url }), over) })
}

#[test]
fn filter_chain_matches_keep_their_constraints() {
    let cases = [
        (json!({ "destination_port": 0 }), "destination_port: 0 is not in 1..=65535"),
        (json!({ "destination_port": 65_536 }), "destination_port: 65536 is not in 1..=65535"),
        (
            json!({ "prefix_ranges": [{ "address_prefix": "a" }] }),
            "prefix_ranges[0].address_prefix: \"a\" is not an IP",
        ),
        (
            json!({ "source_prefix_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 33 }] }),
            "source_prefix_ranges[0].prefix_len: 33 is not in 0..=32",
        ),
        (
            json!({ "direct_source_prefix_ranges": [{ "address_prefix": "::", "prefix_len": 129 }] }),
            "direct_source_prefix_ranges[0].prefix_len: 129 is not in 0..=128",
        ),
        (json!({ "source_ports": [1, 0] }), "source_ports[1]: 0 is not in 1..=65535"),
        (json!({ "server_names": ["*a.example"] }), "server_names[0]: \"*a.example\" is neither a name nor \"*.\""),
        (json!({ "server_names": ["*"] }), "server_names[0]: \"*\" is neither"),
        (json!({ "server_names": ["a.*.b"] }), "server_names[0]: \"a.*.b\" is neither"),
        (json!({ "server_names": [""] }), "server_names[0]: \"\" is not a server name"),
        (json!({ "transport_protocol": "quic" }), "transport_protocol: \"quic\" is not one of"),
        (json!({ "application_protocols": [""] }), "application_protocols[0]: 0 bytes are not in 1..=255"),
        (json!({ "address_suffix": "a", "suffix_len": 1 }), "address_suffix: is not served"),
    ];
    for (asked, text) in cases {
        let told = read_listener(&listener_of(&[chain("", &asked)], &json!({}))).result;
        let told = told.expect_err(&format!("{asked} was taken")).to_string();
        assert!(told.contains(&format!("filter_chains[0].filter_chain_match.{text}")), "{asked}\n told: {told}");
    }
    let named = |names: &[&str]| chain("", &json!({ "server_names": names }));
    for chains in [[named(&["a", "B"]), named(&["c", "b"])], [chain("", &json!({})), chain("", &json!(null))]] {
        let told = read_listener(&listener_of(&chains, &json!({}))).result.unwrap_err().to_string();
        assert!(told.contains("filter_chains[1].filter_chain_match: matches connections ("), "{told}");
        assert!(told.contains("that filter_chains[0] matches as well"), "{told}");
    }
    let default = json!({ "default_filter_chain": chain("", &json!({ "destination_port": 1 })) });
    let told = read_listener(&listener_of(&[], &default)).result.unwrap_err().to_string();
    assert!(told.contains("default_filter_chain.filter_chain_match: matches (destination_port=1)"), "{told}");
    let tls = json!({ "transport_socket": { "name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" } } });
    let second = with(chain("", &json!({ "server_names": ["a"] })), &tls);
    let told =
        read_listener(&listener_of(&[chain("", &json!({})), second], &json!({}))).result.unwrap_err().to_string();
    assert!(told.contains("filter_chains[1].transport_socket.typed_config: transport socket"), "{told}");
}

#[test]
fn filter_chains_are_read_and_named_apart() {
    let asked = json!({
        "destination_port": 443, "prefix_ranges": [{ "address_prefix": "10.1.2.3", "prefix_len": 8 }],
        "server_names": ["A.example", "*.b.example"], "transport_protocol": "tls", "application_protocols": ["h2"],
        "direct_source_prefix_ranges": [{ "address_prefix": "::1" }], "source_type": "EXTERNAL",
        "source_prefix_ranges": [{ "address_prefix": "192.0.2.0", "prefix_len": 24 }], "source_ports": [5, 6],
    });
    let chains = [
        chain("", &asked),
        chain("same", &json!({ "transport_protocol": "tls" })),
        chain("same", &json!({ "transport_protocol": "raw_buffer" })),
        chain("alone", &json!({ "destination_port": 80 })),
    ];
    let default = json!({ "default_filter_chain": chain("", &json!({})) });
    let converted = read_listener(&listener_of(&chains, &default));
    assert_eq!(converted.ignored, Vec::<String>::new());
    let listener = converted.result.unwrap();
    let names: Vec<&str> = listener.chains.iter().map(|chain| chain.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "destination_port=443; destinations=10.0.0.0/8; server_names=a.example,*.b.example; transport=tls; \
             protocols=h2; direct_sources=::/0; source_type=external; sources=192.0.2.0/24; source_ports=5,6",
            "same (transport=tls)",
            "same (transport=raw_buffer)",
            "alone",
            "default",
        ]
    );
    assert!(listener.only_chain().is_none());
    let inspection = &listener.inspection;
    assert_eq!(inspection.tls, Some(TlsInspection::default()), "put in, since a chain asks for it");
    assert_eq!((&inspection.proxy, &inspection.http), (&None, &None));
    assert_eq!((inspection.timeout, inspection.goes_on), (Some(Duration::from_secs(15)), false));
    let one = read_listener(&listener_of(&[chain("", &json!({}))], &json!({}))).result.unwrap();
    assert!(one.only_chain().is_some() && one.inspection == Inspection::default());
}

#[test]
fn listener_filters_keep_their_constraints() {
    const TLS: &str = "tls_inspector.v3.TlsInspector";
    const PROXY: &str = "proxy_protocol.v3.ProxyProtocol";
    let read = |filters: &Value| {
        let over = json!({ "listener_filters": filters, "listener_filters_timeout": "0s",
            "continue_on_listener_filters_timeout": true });
        read_listener(&listener_of(&[chain("", &json!({}))], &over))
    };
    let none = json!({});
    let off = |filter: Value, rule: Value| with(filter, &json!({ "filter_disabled": rule }));
    let range = |start: i32, end: i32| json!({ "destination_port_range": { "start": start, "end": end } });
    let mut deep = range(1, 2);
    (0..16).for_each(|_| deep = json!({ "not_match": deep }));
    for (filters, text) in [
        (
            json!([listener_filter(TLS, &none), listener_filter(TLS, &none)]),
            "[1]: envoy.extensions.filters.listener.tls",
        ),
        (json!([listener_filter(TLS, &none), listener_filter(PROXY, &none)]), "[1]: comes after an inspector"),
        (
            json!([listener_filter(TLS, &json!({ "max_client_hello_size": 16385 }))]),
            "max_client_hello_size: 16385 is not",
        ),
        (
            json!([listener_filter(PROXY, &json!({ "disallowed_versions": ["V1", "V2"] }))]),
            "disallowed_versions: names both",
        ),
        (
            json!([off(listener_filter("original_dst.v3.OriginalDst", &none), range(1, 2))]),
            "[0].filter_disabled: is not served for original_dst",
        ),
        (json!([listener_filter("original_src.v3.OriginalSrc", &none)]), "[0].typed_config: listener filter envoy"),
        (json!([{ "name": "f" }]), "[0]: has no typed_config"),
        (json!([off(listener_filter(TLS, &none), json!({}))]), "[0].filter_disabled: has no rule"),
        (json!([off(listener_filter(TLS, &none), range(5, 5))]), "destination_port_range: 5..5 is not a range"),
        (json!([off(listener_filter(TLS, &none), range(-1, 5))]), "destination_port_range: -1..5 is not a range"),
        (json!([off(listener_filter(TLS, &none), json!({ "or_match": { "rules": [range(1, 2)] } }))]), "has 1 rules"),
        (json!([off(listener_filter(TLS, &none), deep)]), "nests more than 16 deep"),
    ] {
        let told = read(&filters).result.expect_err(&format!("{filters} was taken")).to_string();
        assert!(told.contains("listener_filters") && told.contains(text), "{filters}\n told: {told}");
    }
    let proxy =
        json!({ "allow_requests_without_proxy_protocol": true, "disallowed_versions": ["V2"], "stat_prefix": "p" });
    let ports = json!({ "or_match": { "rules": [range(1, 2), json!({ "not_match": range(3, 4) })] } });
    let filters = json!([
        listener_filter(PROXY, &proxy),
        off(listener_filter(TLS, &none), ports),
        listener_filter("http_inspector.v3.HttpInspector", &none)
    ]);
    let converted = read(&filters);
    assert_eq!(converted.ignored, ["listener.listener_filters.typed_config.stat_prefix"]);
    let inspection = converted.result.unwrap().inspection;
    let read = inspection.proxy.unwrap();
    assert_eq!((read.is_optional, read.refused), (true, Some(ProxyVersion::V2)));
    assert_eq!(inspection.tls.unwrap().off.unwrap().to_string(), "(1..2 or not 3..4)");
    assert!(inspection.http.is_some() && inspection.timeout.is_none() && inspection.goes_on);
}

#[test]
fn listeners_say_how_connections_come_to_them() {
    let read = |over: &Value| read_listener(&listener_of(&[chain("", &json!({}))], over)).result.unwrap();
    let asking = json!({ "listener_filters": [listener_filter("original_dst.v3.OriginalDst", &json!({}))] });
    let capture = |is_bound, is_transparent, original| Capture { is_bound, is_transparent, original };
    for (over, expected) in [
        (json!({}), Capture::default()),
        (json!({ "bind_to_port": true, "use_original_dst": false }), Capture::default()),
        (asking.clone(), capture(true, false, OriginalDestination::Asked)),
        (with(asking, &json!({ "use_original_dst": true })), capture(true, false, OriginalDestination::HandsOver)),
        (json!({ "bind_to_port": false }), capture(false, false, OriginalDestination::Unasked)),
        (json!({ "transparent": true, "use_original_dst": true }), capture(true, true, OriginalDestination::HandsOver)),
    ] {
        let listener = read(&over);
        assert_eq!(listener.capture, expected, "{over}");
        assert_eq!(listener.bound_addresses().is_empty(), !expected.is_bound);
        assert_eq!(listener.knows_destinations(), expected != Capture::default());
        assert!(!listener.is_behind_rules(), "it does not say which way its traffic flows");
    }
    let beside = read(&json!({ "use_original_dst": true, "traffic_direction": "OUTBOUND" }));
    assert!(beside.is_behind_rules());
}

#[test]
fn original_destinations_may_be_endpoints() {
    let original = json!({ "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED" });
    let base = with(base_cluster(), &original);
    let read = |over: &Value| read_cluster(&with(base.clone(), over));
    let plain = OriginalCluster { header: None, port: None, cleanup_interval: Duration::from_secs(5) };
    for (over, expected) in [
        (json!({}), plain.clone()),
        (
            json!({ "cleanup_interval": "1s" }),
            OriginalCluster { cleanup_interval: Duration::from_secs(1), ..plain.clone() },
        ),
        (
            json!({ "original_dst_lb_config": { "use_http_header": true } }),
            OriginalCluster { header: Some("x-envoy-original-dst-host".into()), ..plain.clone() },
        ),
        (
            json!({ "original_dst_lb_config":
                { "use_http_header": true, "http_header_name": "X-To", "upstream_port_override": 65535 } }),
            OriginalCluster { header: Some("x-to".into()), port: Some(65_535), ..plain },
        ),
    ] {
        let converted = read(&over);
        assert_eq!(converted.ignored, Vec::<String>::new(), "{over}");
        assert_eq!(converted.result.unwrap().discovery, Discovery::Original(expected), "{over}");
    }
    let outlier = read(&json!({ "outlier_detection": {} }));
    assert_eq!(outlier.ignored, ["cluster.outlier_detection"]);
    assert!(outlier.result.unwrap().outlier.is_none());
    all_refused(
        read_cluster,
        &base,
        &[
            (json!({ "load_assignment": { "cluster_name": "pay" } }), "load_assignment: is not for ORIGINAL_DST"),
            (json!({ "load_balancing_policy": {} }), "load_balancing_policy: is not for ORIGINAL_DST"),
            (json!({ "cleanup_interval": "0s" }), "cleanup_interval: 0s is not above 0s"),
            (json!({ "original_dst_lb_config": { "upstream_port_override": 65536 } }), "65536 is not in 1..=65535"),
            (json!({ "original_dst_lb_config": { "upstream_port_override": 0 } }), "0 is not in 1..=65535"),
            (
                json!({ "original_dst_lb_config": { "use_http_header": true, "http_header_name": "a b" } }),
                "original_dst_lb_config.http_header_name: \"a b\" is not a header name",
            ),
            (
                json!({ "original_dst_lb_config": { "metadata_key": { "key": "k" } } }),
                "original_dst_lb_config.metadata_key: ",
            ),
        ],
    );
}

#[test]
fn listeners_say_what_their_connections_speak() {
    let filter = |kind: &str| {
        json!({ "name": kind, "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{kind}") } })
    };
    let over = json!({
        "codec_type": "HTTP2",
        "http2_protocol_options": { "max_concurrent_streams": 5, "connection_keepalive": { "timeout": "1s" } },
        "http_protocol_options": { "enable_trailers": true },
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "http_filters": [filter("grpc_stats.v3.FilterConfig"), filter("grpc_web.v3.GrpcWeb"), router()],
    });
    let read = read_listener(&base_listener(&hcm(&over)));
    assert_eq!(read.ignored, ["listener.filter_chains.filters.typed_config.http_filters.typed_config"]);
    let listener = read.result.unwrap();
    let http = listener.https().next().unwrap();
    assert_eq!((http.codec, http.http2.max_concurrent_streams), (Codec::Http2, 5));
    assert!(http.http2.keepalive.is_some() && http.http1_trailers && http.grpc_web);
    assert_eq!(&*http.upgrades[0].kind, "websocket");
    let plain = read_listener(&base_listener(&hcm(&json!({})))).result.unwrap();
    let http = plain.https().next().unwrap();
    assert_eq!((http.codec, &http.upgrades), (Codec::Auto, &Vec::new()));
    assert!(!http.http1_trailers && !http.grpc_web);
    let upstream = http_options(&json!({ "explicit_http_config": { "http_protocol_options": {} },
        "http_filters": [filter("grpc_web.v3.GrpcWeb"), filter("upstream_codec.v3.UpstreamCodec")] }));
    all_refused(read_cluster, &base_cluster(), &[(upstream, "http_filters[0].typed_config: filter \"grpc_web")]);
}

#[test]
fn opaque_listeners_keep_their_constraints() {
    const AT: &str = "filter_chains[0].filters[0].typed_config";
    let read = |over: &Value| read_listener(&base_listener(&tcp_proxy(over)));
    let weighted = |clusters: Value| json!({ "cluster": null, "weighted_clusters": { "clusters": clusters } });
    let metadata = json!({ "filter_metadata": { "envoy.lb": { "a": "b" } } });
    let cases = [
        (json!({ "stat_prefix": "" }), "stat_prefix: is empty; a name is required"),
        (json!({ "cluster": null }), ": names no cluster; one of cluster, weighted_clusters is required"),
        (json!({ "cluster": "" }), "cluster: is empty; a name is required"),
        (weighted(json!([])), "weighted_clusters.clusters: is empty; at least one cluster is required"),
        (weighted(json!([{ "name": "a" }])), "weighted_clusters.clusters[0].weight: 0 is not in 1..=4294967295"),
        (weighted(json!([{ "weight": 1 }])), "weighted_clusters.clusters[0].name: is empty; a name is required"),
        (
            weighted(json!([{ "name": "a", "weight": 1, "metadata_match": metadata }])),
            "weighted_clusters.clusters[0].metadata_match: is not served",
        ),
        (json!({ "metadata_match": metadata }), "metadata_match: is not served"),
        (json!({ "idle_timeout": "-1s" }), "idle_timeout: -1s is not in 0s..="),
        (json!({ "max_connect_attempts": 0 }), "max_connect_attempts: 0 is not in 1..=4294967295"),
        (
            json!({ "max_downstream_connection_duration": "0.000999s" }),
            "max_downstream_connection_duration: 999µs is below 1ms",
        ),
        (
            json!({ "hash_policy": [{ "filter_state": { "key": "a" } }] }),
            "hash_policy[0]: is not served; use source_ip",
        ),
        (json!({ "hash_policy": [{ "source_ip": {} }, { "source_ip": {} }] }), "hash_policy: has 2 policies"),
        (json!({ "on_demand": {} }), "on_demand: clusters on demand are not served"),
        (json!({ "tunneling_config": { "hostname": "a" } }), "tunneling_config: is not served"),
        (json!({ "upstream_connect_mode": "ON_DOWNSTREAM_DATA" }), "upstream_connect_mode: "),
    ];
    for (over, text) in cases {
        let told = read(&over).result.expect_err(&format!("{over} was taken")).to_string();
        let joint = if text.starts_with(':') { "" } else { "." };
        assert!(told.contains(&format!("{AT}{joint}{text}")), "{over}\n told: {told}\nexpected: {AT}{joint}{text}");
    }
    let twice = json!({ "filter_chains": [{ "filters": [
        { "name": "a", "typed_config": tcp_proxy(&json!({})) }, { "name": "b", "typed_config": hcm(&json!({})) }] }] });
    all_refused(read_listener, &base_listener(&json!(null)), &[(twice, "filters[1]: comes after the HTTP connection")]);
}

#[test]
fn opaque_listeners_have_envoys_defaults() {
    let read = |over: &Value| {
        let converted = read_listener(&base_listener(&tcp_proxy(over)));
        let Protocol::Tcp(tcp) = converted.result.unwrap().chains.remove(0).protocol else {
            panic!("{over} is not opaque")
        };
        (tcp, converted.ignored)
    };
    let (tcp, ignored) = read(&json!({}));
    assert_eq!(ignored, Vec::<String>::new());
    assert_eq!((tcp.clusters[0].cluster.as_str(), tcp.clusters[0].weight, tcp.clusters.len()), ("pay", 1, 1));
    assert_eq!((tcp.idle_timeout, tcp.max_connect_attempts), (Some(Duration::from_secs(3600)), 1));
    assert_eq!(tcp.max_connection_duration, None);
    let (tcp, ignored) = read(&json!({
        "cluster": null, "idle_timeout": "0s", "max_connect_attempts": 3, "max_downstream_connection_duration": "0.001s",
        "weighted_clusters": { "clusters": [{ "name": "a", "weight": 4294967295_u32 }, { "name": "b", "weight": 4294967295_u32 }] },
        "access_log": [{ "name": "a" }], "hash_policy": [{ "source_ip": {} }], "downstream_idle_timeout": "1s",
    }));
    assert_eq!((tcp.idle_timeout, tcp.max_connect_attempts), (None, 3));
    assert_eq!(tcp.max_connection_duration, Some(Duration::from_millis(1)));
    let shares: Vec<_> = tcp.clusters.iter().map(|share| (share.cluster.as_str(), share.weight)).collect();
    assert_eq!(shares, [("a", u32::MAX), ("b", u32::MAX)]);
    let at = |field: &str| format!("listener.filter_chains.filters.typed_config.{field}");
    assert!(tcp.hashes_source);
    assert_eq!(ignored.len(), 2, "{ignored:?}");
    for field in ["access_log", "downstream_idle_timeout"] {
        assert!(ignored.contains(&at(field)), "{field} in {ignored:?}");
    }
}

#[test]
fn what_is_set_and_not_used_is_counted_by_its_path() {
    let over = json!({ "alt_stat_name": "x", "health_checks": [] , "circuit_breakers": {
        "thresholds": [{ "max_requests": 5 }, { "priority": "HIGH" }] } });
    let read = read_cluster(&with(base_cluster(), &over));
    assert_eq!(read.ignored, ["cluster.circuit_breakers.thresholds", "cluster.alt_stat_name"]);
    assert_eq!(read.result.unwrap().limits.max_requests, 5);
}

#[test]
fn the_routes_own_limit_hides_or_replaces_the_one_above() {
    let limit = json!({ "typed_per_filter_config": { "envoy.filters.http.local_ratelimit": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true } } });
    let table = read_table(&base_table(&json!([with(base_route(), &limit)]))).result.unwrap();
    assert_eq!(table.virtual_hosts[0].routes[0].rate_limit.as_ref().unwrap().enabled_ppm, 0);
    let policy = json!({ "route": { "retry_policy": { "retry_on": "5xx" } }, "typed_per_filter_config": {
        "outrigger.policy.v1.RoutePolicy": { "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
            "is_optional": true, "config": { "@type": "type.googleapis.com/outrigger.policy.v1.RoutePolicy",
                "retry_non_idempotent": true } } } });
    let table = read_table(&base_table(&json!([with(base_route(), &policy)]))).result.unwrap();
    let RouteAction::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("no forward") };
    assert!(forward.retry.as_ref().unwrap().retry_non_idempotent);
}

/// Cases of the random tests: `OUTRIGGER_FUZZ_CASES`, default 256.
fn fuzz_cases() -> ProptestConfig {
    let cases = std::env::var("OUTRIGGER_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(256);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn seeds() -> Vec<Vec<u8>> {
    let eds = json!({ "type": "EDS", "eds_cluster_config": { "eds_config": { "ads": {} } }, "outlier_detection": {
        "interval": "1s", "base_ejection_time": "2s" }, "circuit_breakers": { "thresholds": [{ "max_requests": 1 }] } });
    let http2 = json!({ "max_concurrent_streams": 5, "connection_keepalive": { "timeout": "1s" } });
    let eds = with(eds, &http_options(&json!({ "explicit_http_config": { "http2_protocol_options": http2 } })));
    let limited = json!({ "typed_per_filter_config": { "envoy.filters.http.local_ratelimit": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "l", "token_bucket": { "max_tokens": 1, "fill_interval": "1s" } } },
        "route": { "retry_policy": { "retry_on": "5xx", "retry_back_off": { "base_interval": "1s" } },
            "max_stream_duration": { "grpc_timeout_header_max": "1s" },
            "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] },
        "match": { "headers": [{ "name": "a", "string_match": { "safe_regex": { "regex": "a+" } } }] } });
    let chains = [chain("a", &json!({ "server_names": ["a", "*.b"], "source_ports": [1] })), chain("b", &json!({}))];
    let filters = json!({ "listener_filters": [
        listener_filter("proxy_protocol.v3.ProxyProtocol", &json!({ "disallowed_versions": ["V1"] })),
        listener_filter("tls_inspector.v3.TlsInspector", &json!({})) ] });
    vec![
        json::from_value::<Cluster>(&with(base_cluster(), &eds)).unwrap().encode_to_vec(),
        json::from_value::<ClusterLoadAssignment>(&base_endpoints()).unwrap().encode_to_vec(),
        json::from_value::<RouteConfiguration>(&base_table(&json!([with(base_route(), &limited)])))
            .unwrap()
            .encode_to_vec(),
        json::from_value::<Listener>(&base_listener(&hcm(&json!({ "codec_type": "HTTP2",
            "http2_protocol_options": http2, "upgrade_configs": [{ "upgrade_type": "websocket" }] }))))
        .unwrap()
        .encode_to_vec(),
        json::from_value::<Listener>(&base_listener(&tcp_proxy(&json!({ "idle_timeout": "1s" }))))
            .unwrap()
            .encode_to_vec(),
        json::from_value::<Listener>(&listener_of(&chains, &filters)).unwrap().encode_to_vec(),
    ]
}

/// Every reason has a place, unless the message as a whole could not be decoded.
fn outcome_is_sound<T>(converted: Converted<T>) {
    if let Err(rejection) = converted.result {
        assert!(!rejection.reasons.is_empty());
        let whole = rejection.reasons.iter().filter(|reason| reason.path.is_empty()).count();
        assert!(whole <= 1, "{rejection}");
        assert!(rejection.to_string().len() < 128 * 1024);
    }
}

fn convert_all(bytes: &[u8]) {
    outcome_is_sound(cluster(bytes));
    outcome_is_sound(endpoints(bytes));
    outcome_is_sound(route_table(bytes));
    outcome_is_sound(listener(bytes));
}

proptest! {
    #![proptest_config(fuzz_cases())]

    #[test]
    fn fuzz_random_bytes_are_converted_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        convert_all(&bytes);
    }

    #[test]
    fn fuzz_mutated_messages_are_converted_or_refused(
        seed in 0_usize..6,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..8),
    ) {
        let mut bytes = seeds().swap_remove(seed);
        for (at, value, how) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        convert_all(&bytes);
    }
}

#[test]
fn what_our_own_control_plane_compiles_is_taken_whole() {
    const SHOP: &str = include_str!("../../../control-api/src/compile/golden/shop.xds.yaml");
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in SHOP.lines() {
        match line.strip_suffix(':').filter(|key| key.bytes().all(|b| b.is_ascii_lowercase())) {
            Some(key) => sections.push((key.to_owned(), "resources:\n".to_owned())),
            None => sections.last_mut().unwrap().1.push_str(&format!("{line}\n")),
        }
    }
    let mut taken = 0;
    for (kind, text) in sections {
        for resource in json::from_yaml::<DiscoveryResponse>(&text).unwrap().resources {
            let (refused, ignored) = match kind.as_str() {
                "clusters" => outcome(cluster(&resource.value)),
                "endpoints" => outcome(endpoints(&resource.value)),
                "listeners" => outcome(listener(&resource.value)),
                "routes" => outcome(route_table(&resource.value)),
                other => panic!("{other} is no type"),
            };
            assert_eq!((refused, ignored), (None, Vec::<String>::new()));
            taken += 1;
        }
    }
    assert!(taken > 8, "{taken}");
    let guarded = include_str!("../../../control-api/src/compile/golden/access.xds.yaml").replace('\n', "\n  ");
    let resource =
        json::from_yaml::<DiscoveryResponse>(&format!("resources:\n- {guarded}")).unwrap().resources.remove(0);
    assert_eq!(outcome(listener(&resource.value)), (None, Vec::new()));
}

fn outcome<T>(converted: Converted<T>) -> (Option<String>, Vec<String>) {
    (converted.result.err().map(|rejection| rejection.to_string()), converted.ignored)
}

/// What RBAC may not ask for is refused at its place, never left out: with fewer conditions more calls would be allowed.
#[test]
fn rbac_that_is_not_served_is_refused_by_its_field() {
    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
    let any = json!({ "any": true });
    let policy = |permission: &Value, principal: &Value| json!({ "rules": { "policies": { "p": { "permissions": [permission], "principals": [principal] } } } });
    let permission = |asked: Value| policy(&asked, &any);
    let principal = |asked: Value| policy(&any, &asked);
    let deep = (0..20).fold(any.clone(), |inner, _| json!({ "not_rule": inner }));
    let cases = [
        (permission(json!({ "metadata": { "filter": "f" } })), "permissions[0]: asks for what is not served"),
        (
            permission(json!({ "requested_server_name": { "exact": "a" } })),
            "permissions[0]: asks for what is not served",
        ),
        (permission(json!({})), "permissions[0]: asks nothing"),
        (permission(json!({ "any": false })), "permissions[0].any: false is not true"),
        (
            permission(json!({ "destination_port": 70_000 })),
            "permissions[0].destination_port: 70000 is not in 0..=65535",
        ),
        (
            permission(json!({ "destination_port_range": { "start": 8, "end": 8 } })),
            "destination_port_range: 8..8 is empty",
        ),
        (permission(json!({ "or_rules": { "rules": [] } })), "permissions[0].or_rules.rules: is empty"),
        (permission(json!({ "url_path": {} })), "permissions[0].url_path: has no path"),
        (permission(deep), "nests more than 16 deep"),
        (principal(json!({ "metadata": { "filter": "f" } })), "principals[0]: asks for what is not served"),
        (
            principal(json!({ "remote_ip": { "address_prefix": "10.0.0.300" } })),
            "remote_ip.address_prefix: \"10.0.0.300\" is not",
        ),
        (
            principal(json!({ "source_ip": { "address_prefix": "10.0.0.0", "prefix_len": 33 } })),
            "prefix_len: 33 is not in 0..=32",
        ),
        (json!({ "rules": { "policies": { "p": { "permissions": [any] } } } }), "principals: is empty"),
        (
            json!({ "rules": { "policies": { "p": { "permissions": [any], "principals": [any], "condition": {} } } } }),
            "condition: conditions in CEL",
        ),
        (json!({ "matcher": {} }), "matcher: a matcher tree is not served"),
    ];
    for (over, text) in &cases {
        let filter = json!({ "name": "rbac", "typed_config": with(json!({ "@type": RBAC }), over) });
        let listener = base_listener(&hcm(&json!({ "http_filters": [filter, router()] })));
        all_refused(read_listener, &listener, &[(json!({}), text)]);
        let filter =
            json!({ "name": "rbac", "typed_config": with(json!({ "@type": NETWORK, "stat_prefix": "s" }), over) });
        let listener = with(
            base_listener(&json!(null)),
            &json!({ "filter_chains": [{ "filters": [
            filter, { "name": "tcp", "typed_config": tcp_proxy(&json!({})) }] }] }),
        );
        if !text.contains("url_path") {
            all_refused(read_listener, &listener, &[(json!({}), text)]);
        }
    }
}

#[test]
fn rbac_is_refused_where_it_could_not_be_asked() {
    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
    let any = json!({ "any": true });
    let network = |permission: Value| {
        let typed = with(
            json!({ "@type": NETWORK, "stat_prefix": "s" }),
            &json!({ "rules": { "policies": { "p": { "permissions": [permission], "principals": [any] } } } }),
        );
        json!({ "name": "rbac", "typed_config": typed })
    };
    let chain =
        |filters: Value| with(base_listener(&json!(null)), &json!({ "filter_chains": [{ "filters": filters }] }));
    let tcp = json!({ "name": "tcp", "typed_config": tcp_proxy(&json!({})) });
    let path = json!({ "url_path": { "path": { "exact": "/" } } });
    let header = json!({ "header": { "name": "a", "present_match": true } });
    for (filters, text) in [
        (json!([network(path), tcp]), "url_path: an opaque connection has none"),
        (json!([network(header), tcp]), "header: an opaque connection has none"),
        (
            json!([network(any.clone()), { "name": "hcm", "typed_config": hcm(&json!({})) }]),
            "network RBAC filter in front of HTTP",
        ),
    ] {
        all_refused(read_listener, &chain(filters), &[(json!({}), text)]);
    }
    let disabled = json!({ "name": "rbac", "disabled": true, "typed_config": { "@type": RBAC } });
    all_refused(
        read_listener,
        &base_listener(&hcm(&json!({ "http_filters": [disabled, router()] }))),
        &[(json!({}), "disabled: a disabled RBAC filter is not served")],
    );
}
