//! An Envoy bootstrap in YAML: read, written back, and refused with every path.

use outrigger_xds_proto::envoy::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_xds_proto::envoy::envoy::config::cluster::v3::Cluster;
use outrigger_xds_proto::envoy::envoy::config::listener::v3::filter::ConfigType;
use outrigger_xds_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrigger_xds_proto::envoy::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use outrigger_xds_proto::json::FieldNames;
use outrigger_xds_proto::policy::v1::RoutePolicy;
use outrigger_xds_proto::{any, json};

const BOOTSTRAP: &str = include_str!("bootstrap.yaml");

#[test]
fn a_bootstrap_is_read_through_every_any() {
    let bootstrap: Bootstrap = json::from_yaml(BOOTSTRAP).unwrap();
    let resources = bootstrap.static_resources.unwrap();
    let listener = &resources.listeners[0];
    let Some(ConfigType::TypedConfig(config)) = &listener.filter_chains[0].filters[0].config_type else {
        panic!("no typed_config");
    };
    let manager: HttpConnectionManager = any::unpack(config).unwrap();
    assert_eq!(manager.stat_prefix, "h1");
    assert_eq!(manager.http_filters[0].name, "envoy.filters.http.router");
    let timeout = resources.clusters[0].connect_timeout.unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (5, 250_000_000));
    let options = &resources.clusters[1].typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    any::unpack::<HttpProtocolOptions>(options).unwrap();
}

#[test]
fn a_bootstrap_survives_json_in_both_spellings() {
    let bootstrap: Bootstrap = json::from_yaml(BOOTSTRAP).unwrap();
    let written = json::to_json(&bootstrap);
    assert_eq!(json::from_value::<Bootstrap>(&written).unwrap(), bootstrap);
    assert_eq!(json::from_json::<Bootstrap>(&written.to_string()).unwrap(), bootstrap);
    assert_eq!(written["static_resources"]["clusters"][0]["connect_timeout"], "5.250s");

    let bytes = prost::Message::encode_to_vec(&bootstrap);
    let camel = json::to_json_bytes("envoy.config.bootstrap.v3.Bootstrap", &bytes, FieldNames::Camel).unwrap();
    assert_eq!(camel["staticResources"]["clusters"][0]["connectTimeout"], "5.250s");
    assert_eq!(json::from_value::<Bootstrap>(&camel).unwrap(), bootstrap);
}

#[test]
fn our_policy_travels_in_a_route() {
    let text = r#"
"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
is_optional: true
config:
  "@type": type.googleapis.com/outrigger.policy.v1.RoutePolicy
  retry_non_idempotent: true
  rule: TrafficPolicy/shop/orders
"#;
    let any = json::from_yaml::<outrigger_xds_proto::envoy::google::protobuf::Any>(text).unwrap();
    let wrapped: outrigger_xds_proto::envoy::envoy::config::route::v3::FilterConfig = any::unpack(&any).unwrap();
    let policy: RoutePolicy = any::unpack(&wrapped.config.unwrap()).unwrap();
    assert_eq!(policy.retry_non_idempotent, Some(true));
}

/// Each wrong edit of the good bootstrap, and what is said about it.
const WRONG: [(&str, &str, &str); 13] = [
    (
        "stat_prefix: h1",
        "statprefix: h1",
        "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.statprefix: unknown field of \
         envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager; did you mean stat_prefix?",
    ),
    (
        "connect_timeout: 5.25s",
        "connect_timeout: 250ms",
        "static_resources.clusters[0].connect_timeout: expected a span of time such as 0.25s, found text \"250ms\"; \
         write 0.250s",
    ),
    (
        "type: STATIC",
        "type: STATICK",
        "static_resources.clusters[0].type: text \"STATICK\" is not one of STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST",
    ),
    ("type: STATIC", "type: 77", "static_resources.clusters[0].type: 77 is not one of STATIC, "),
    (
        "max_requests: 20000",
        "max_requests: -1",
        "static_resources.clusters[0].circuit_breakers.thresholds[0].max_requests: -1 is not in 0..=4294967295",
    ),
    (
        "max_requests: 20000",
        "max_requests: .nan",
        "static_resources.clusters[0].circuit_breakers.thresholds[0].max_requests: expected a whole number, found NaN",
    ),
    (
        "value: 50 ",
        "value: .nan ",
        "static_resources.clusters[0].common_lb_config.healthy_panic_threshold.value: NaN is not a finite number",
    ),
    (
        "address: 127.0.0.1, port_value: 9903",
        "address: 12, port_value: 9903",
        "admin.address.socket_address.address: expected text, found 12; put it in quotes",
    ),
    ("domains: [\"*\"]", "domains: \"*\"", "route_config.virtual_hosts[0].domains: expected a list, found text \"*\""),
    (
        "match: { prefix: \"/\" }",
        "match: { prefix: \"/\", path: \"/\" }",
        "routes[0].match.path: prefix is given too; only one of them may be",
    ),
    ("stat_prefix: h1", "{ stat_prefix: h1, statPrefix: h2 }", "line "),
    (
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.http.router.v3.Ruoter",
        "http_filters[0].typed_config.@type: type \"type.googleapis.com/envoy.extensions.filters.http.router.v3.Ruoter\" is not known",
    ),
    (
        "explicit_http_config: { http_protocol_options: {} }",
        "explicit_http_config: { http_protocol_option: {} }",
        "static_resources.clusters[1].typed_extension_protocol_options\
         [\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"].explicit_http_config.http_protocol_option: \
         unknown field",
    ),
];

#[test]
fn each_mistake_is_named_with_its_path() {
    for (good, bad, expected) in WRONG {
        assert!(BOOTSTRAP.contains(good), "{good}");
        let error = json::from_yaml::<Bootstrap>(&BOOTSTRAP.replacen(good, bad, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{bad}\n  got      {error}\n  expected {expected}");
        assert!(!error.contains('\n'), "one mistake, one line: {error}");
    }
}

#[test]
fn all_mistakes_are_named_at_once() {
    let text = BOOTSTRAP
        .replacen("stat_prefix: h1", "statprefix: h1", 1)
        .replacen("max_requests: 20000", "max_requests: -1", 1)
        .replacen("type: STATIC", "type: STATICK", 1);
    let error = json::from_yaml::<Bootstrap>(&text).unwrap_err();
    assert_eq!(error.rejections().len(), 3, "{error}");
}

#[test]
fn the_number_of_rejections_is_bounded() {
    let clusters = vec![serde_json::json!({ "name": 1 }); json::MAX_REJECTIONS + 1];
    let error = json::from_value::<Bootstrap>(&serde_json::json!({ "static_resources": { "clusters": clusters } }))
        .unwrap_err();
    assert_eq!(error.rejections().len(), json::MAX_REJECTIONS);
}

#[test]
fn a_document_that_is_no_message_is_refused() {
    for (text, expected) in [
        ("", "the document is empty"),
        ("# nothing\n", "the document is empty"),
        ("[]", "expected a mapping (envoy.config.cluster.v3.Cluster), found a list"),
        ("name", "expected a mapping (envoy.config.cluster.v3.Cluster), found text \"name\""),
        ("name: a\nname: b\n", "\"name\" stands twice"),
        ("name: [a\n", "line "),
    ] {
        let error = json::from_yaml::<Cluster>(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    assert_eq!(json::from_yaml::<Cluster>("{}").unwrap(), Cluster::default());
}
