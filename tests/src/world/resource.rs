//! Purpose: bootstraps and xDS resources as JSON, short enough to read inside a test.
//!
//! Shape: each function gives a plain value; [`merge`] lays a test's own settings over it.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// Type URL of a cluster.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of a set of endpoints.
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of a listener.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of a route table.
pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// Lays `over` on `base`: objects are merged, everything else is replaced.
#[must_use]
pub fn merge(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                let below = base.remove(&key).unwrap_or(Value::Null);
                base.insert(key, merge(below, value));
            }
        }
        (base, over) => *base = over,
    }
    base
}

/// An address.
pub fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// A loopback address with a port of the kernel's choice.
pub fn any_port() -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } })
}

/// A set of endpoints.
pub fn endpoints(cluster: &str, addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|one| json!({ "endpoint": { "address": address(*one) } })).collect();
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": endpoints }] })
}

/// A STATIC cluster, round robin, one second to connect.
pub fn cluster(name: &str, addresses: &[SocketAddr]) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s", "lb_policy": "ROUND_ROBIN",
        "load_assignment": endpoints(name, addresses),
    })
}

/// The settings that make a cluster's endpoints be spoken to in HTTP/2; `over` is laid over its HTTP/2 options.
pub fn http2(over: Value) -> Value {
    json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": over },
        },
    }})
}

/// As [`cluster`], spoken to in HTTP/2.
pub fn http2_cluster(name: &str, addresses: &[SocketAddr]) -> Value {
    merge(cluster(name, addresses), http2(json!({})))
}

/// A cluster whose endpoints come over ADS.
pub fn eds_cluster(name: &str) -> Value {
    json!({
        "name": name, "type": "EDS", "connect_timeout": "1s", "lb_policy": "ROUND_ROBIN",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
    })
}

/// A route by path prefix.
pub fn route(prefix: &str, action: Value) -> Value {
    merge(json!({ "match": { "prefix": prefix } }), action)
}

/// The action of forwarding to a cluster.
pub fn forward(cluster: &str) -> Value {
    json!({ "route": { "cluster": cluster } })
}

/// A virtual host for all authorities.
pub fn any_host(routes: Vec<Value>) -> Value {
    json!({ "name": "all", "domains": ["*"], "routes": routes })
}

/// A route table with these virtual hosts.
pub fn table(name: &str, hosts: Vec<Value>) -> Value {
    json!({ "name": name, "virtual_hosts": hosts })
}

/// The local rate limit filter, without a bucket of its own.
pub fn local_rate_limit_filter() -> Value {
    json!({ "name": "envoy.filters.http.local_ratelimit", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "local_rate_limit",
    }})
}

/// A route's or host's own local rate limit.
pub fn local_rate_limit(max_tokens: u32, tokens_per_fill: u32, fill_interval: &str) -> Value {
    json!({ "typed_per_filter_config": { "envoy.filters.http.local_ratelimit": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limit",
        "token_bucket": { "max_tokens": max_tokens, "tokens_per_fill": tokens_per_fill, "fill_interval": fill_interval },
        "filter_enabled": { "default_value": { "numerator": 100, "denominator": "HUNDRED" } },
        "filter_enforced": { "default_value": { "numerator": 100, "denominator": "HUNDRED" } },
    }}})
}

/// A connection manager with a route table of its own, or settings laid over it.
pub fn http(over: Value) -> Value {
    merge(
        json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "main",
            "http_filters": [local_rate_limit_filter(), { "name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            }}],
        }),
        over,
    )
}

/// The connection manager's setting that takes its routes over ADS.
pub fn rds(table: &str) -> Value {
    json!({ "rds": { "route_config_name": table, "config_source": { "ads": {}, "resource_api_version": "V3" } } })
}

/// A listener on a port of the kernel's choice.
pub fn listener(name: &str, http: Value) -> Value {
    json!({
        "name": name, "address": any_port(),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": http,
        }]}],
    })
}

/// A listener of opaque connections; `over` says at least where they go.
pub fn opaque_listener(name: &str, over: Value) -> Value {
    let tcp = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name,
    });
    json!({
        "name": name, "address": any_port(),
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": merge(tcp, over) }]}],
    })
}

/// A bootstrap of static resources.
pub fn bootstrap(listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
    json!({
        "node": { "id": "test-0", "cluster": "test" },
        "admin": { "address": any_port() },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

/// A bootstrap with one listener `main` that has these routes for all authorities.
pub fn plain(routes: Vec<Value>, clusters: Vec<Value>) -> Value {
    plain_hosts(vec![any_host(routes)], clusters)
}

/// A bootstrap with one listener `main` that has these virtual hosts.
pub fn plain_hosts(hosts: Vec<Value>, clusters: Vec<Value>) -> Value {
    let http = http(json!({ "route_config": table("main", hosts) }));
    bootstrap(vec![listener("main", http)], clusters)
}

/// A bootstrap that forwards everything to one cluster of these endpoints.
pub fn forwarding(addresses: &[SocketAddr]) -> Value {
    plain(vec![route("/", forward("app"))], vec![cluster("app", addresses)])
}

/// A bootstrap with one listener `main` that forwards everything to the cluster `app`, with settings of both.
pub fn forwarding_with(http_over: Value, app: Value) -> Value {
    let routes = table("main", vec![any_host(vec![route("/", forward("app"))])]);
    let http = http(merge(json!({ "route_config": routes }), http_over));
    bootstrap(vec![listener("main", http)], vec![app])
}

/// A bootstrap that takes everything over ADS from `xds`; `outrigger` is what the node says about itself.
pub fn dynamic(node: &str, xds: SocketAddr, outrigger: Value) -> Value {
    let xds_cluster = http2_cluster("xds", &[xds]);
    json!({
        "node": { "id": node, "cluster": "test", "metadata": { "outrigger": outrigger } },
        "admin": { "address": any_port() },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC", "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [xds_cluster] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_is_not_laid_over() {
        let merged = merge(json!({ "a": { "b": 1, "c": [1] }, "d": 2 }), json!({ "a": { "c": [2] }, "e": 3 }));
        assert_eq!(merged, json!({ "a": { "b": 1, "c": [2] }, "d": 2, "e": 3 }));
    }
}
