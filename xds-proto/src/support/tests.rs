use std::collections::BTreeSet;

use super::*;
use crate::json;
use crate::reflect::MessageDescriptor;

fn find(type_name: &str, yaml: &str) -> Vec<(String, Verdict)> {
    let descriptor = descriptor::message(type_name).unwrap();
    let message = json::parse_yaml(yaml, &descriptor).unwrap();
    walk(&message, "").into_iter().map(|finding| (finding.path, finding.verdict)).collect()
}

fn refused(path: &str) -> (String, Verdict) {
    (path.to_owned(), Verdict::Refuse)
}

fn ignored(path: &str) -> (String, Verdict) {
    (path.to_owned(), Verdict::Ignore)
}

#[test]
fn the_table_is_sorted_and_unique() {
    for pair in TABLE.windows(2) {
        assert!(pair[0].message < pair[1].message, "{} stands before {}", pair[0].message, pair[1].message);
    }
    for row in TABLE {
        for pair in row.fields.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{}: {} stands before {}", row.message, pair[0].0, pair[1].0);
        }
    }
    assert!(IDLE_TYPES.is_sorted());
}

#[test]
fn every_row_names_a_message_and_its_fields() {
    for row in TABLE {
        let message = descriptor::message(row.message).unwrap_or_else(|| panic!("no message {}", row.message));
        for (name, _) in row.fields {
            assert!(message.get_field_by_name(name).is_some(), "{} has no field {name}", row.message);
        }
    }
}

/// Each field of a message, with its rule.
fn rules(row: &Row) -> Vec<(FieldDescriptor, Rule)> {
    let message = descriptor::message(row.message).unwrap();
    message.fields().map(|field| (field, rule(row.message, field.name()).unwrap())).collect()
}

fn content(field: &FieldDescriptor) -> Kind {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
        kind => kind,
    }
}

#[test]
fn every_served_message_has_a_row() {
    for row in TABLE {
        for (field, rule) in rules(row) {
            let name = field.full_name();
            if let (Rule::Serve, Kind::Message(message)) = (rule, content(&field)) {
                let message: MessageDescriptor = message;
                assert!(
                    super::row(message.full_name()).is_some() || message.full_name().starts_with("google.protobuf."),
                    "{name} is served, but {} has no row",
                    message.full_name()
                );
                assert_ne!(message.full_name(), "google.protobuf.Any", "{name} is served whatever it carries");
            }
        }
    }
}

#[test]
fn every_rule_fits_its_field() {
    for row in TABLE {
        for (field, rule) in rules(row) {
            let name = field.full_name();
            match (rule, content(&field)) {
                (Rule::Carry(types) | Rule::CarryOrIgnore(types), Kind::Message(message)) => {
                    assert_eq!(message.full_name(), "google.protobuf.Any", "{name}");
                    for carried in types {
                        assert!(super::row(carried).is_some(), "{name} may carry {carried}, which has no row");
                    }
                }
                (Rule::Carry(_) | Rule::CarryOrIgnore(_), kind) => panic!("{name} carries nothing: {kind:?}"),
                (Rule::Only(allowed), Kind::Enum(values)) => {
                    for value in allowed {
                        assert!(values.get_value_by_name(value).is_some(), "{name} has no value {value}");
                    }
                }
                (Rule::Only(allowed), Kind::Bool) => assert!(allowed == ["true"] || allowed == ["false"], "{name}"),
                (Rule::Only(allowed), Kind::Message(message)) => {
                    assert_eq!(message.full_name(), "google.protobuf.BoolValue", "{name}");
                    assert!(allowed == ["true"] || allowed == ["false"], "{name}");
                }
                (Rule::Only(_), kind) => panic!("{name} has no values to choose from: {kind:?}"),
                (Rule::Refuse(reason), _) => assert!(reason.len() > 10 && !reason.ends_with('.'), "{name}: {reason}"),
                (Rule::Ignore | Rule::Serve, _) => {}
            }
        }
    }
}

#[test]
fn every_row_is_reached_from_a_resource() {
    let mut reached = BTreeSet::new();
    let mut next = vec![
        "envoy.config.bootstrap.v3.Bootstrap".to_owned(),
        "envoy.config.cluster.v3.Cluster".to_owned(),
        "envoy.config.endpoint.v3.ClusterLoadAssignment".to_owned(),
        "envoy.config.listener.v3.Listener".to_owned(),
        "envoy.config.route.v3.RouteConfiguration".to_owned(),
    ];
    while let Some(message) = next.pop() {
        let Some(row) = super::row(&message) else { continue };
        if !reached.insert(message) {
            continue;
        }
        for (field, rule) in rules(row) {
            match (rule, content(&field)) {
                (Rule::Serve, Kind::Message(message)) => next.push(message.full_name().to_owned()),
                (Rule::Carry(types) | Rule::CarryOrIgnore(types), _) => {
                    next.extend(types.iter().map(|carried| (*carried).to_owned()));
                }
                _ => {}
            }
        }
    }
    let idle: Vec<_> = TABLE.iter().map(|row| row.message).filter(|message| !reached.contains(*message)).collect();
    assert!(idle.is_empty(), "rows that no resource leads to: {idle:?}");
}

const LISTENER: &str = r#"
name: inbound
address: { socket_address: { address: 127.0.0.1, port_value: 80 } }
bind_to_port: true
stat_prefix: in
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: in
      codec_type: AUTO
      tracing: {}
      route_config:
        virtual_hosts:
        - name: all
          domains: ["*"]
          routes:
          - match: { prefix: / }
            route: { cluster: orders, hash_policy: [{ header: { header_name: x } }] }
            decorator: { operation: order }
            typed_per_filter_config:
              outrigger.policy.v1.RoutePolicy:
                "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
                is_optional: true
                config: { "@type": type.googleapis.com/outrigger.policy.v1.RoutePolicy, rule: r }
      http_filters:
      - name: envoy.filters.http.router
        typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
"#;

const FILTER: &str = "filter_chains[0].filters[0].typed_config";

#[test]
fn a_served_listener_has_ignored_fields_only() {
    assert_eq!(
        find("envoy.config.listener.v3.Listener", LISTENER),
        [
            ignored(&format!("{FILTER}.route_config.virtual_hosts[0].routes[0].decorator")),
            ignored(&format!("{FILTER}.tracing")),
            ignored("stat_prefix"),
        ]
    );
}

/// Each edit of the served listener or cluster, and the one place it is refused at.
#[test]
fn what_weakens_security_or_moves_traffic_is_refused() {
    let route = format!("{FILTER}.route_config.virtual_hosts[0].routes[0]");
    for (good, bad, path) in [
        ("codec_type: AUTO", "codec_type: HTTP3", format!("{FILTER}.codec_type")),
        ("bind_to_port: true", "filter_chain_matcher: {}", "filter_chain_matcher".into()),
        (
            "codec_type: AUTO",
            "upgrade_configs: [{ upgrade_type: websocket, filters: [{ name: f }] }]",
            format!("{FILTER}.upgrade_configs[0].filters"),
        ),
        ("{ prefix: / }", "{ prefix: /, cookies: [{ name: a }] }", format!("{route}.match.cookies")),
        (
            "{ prefix: / }",
            "{ prefix: /, headers: [{ name: a, string_match: { custom: { name: b } } }] }",
            format!("{route}.match.headers[0].string_match.custom"),
        ),
        ("cluster: orders", "cluster_specifier_plugin: p", format!("{route}.route.cluster_specifier_plugin")),
        (
            "- filters:",
            "- transport_socket: { name: tls, typed_config: { \"@type\": type.googleapis.com/\
             envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext } }\n  filters:",
            "filter_chains[0].transport_socket.typed_config".into(),
        ),
        (
            "- filters:",
            "- filter_chain_match: { address_suffix: a }\n  filters:",
            "filter_chains[0].filter_chain_match.address_suffix".into(),
        ),
        (
            "http_filters:\n",
            "http_filters:\n      - { name: authz, typed_config: { \"@type\": type.googleapis.com/\
             envoy.extensions.filters.http.ext_authz.v3.ExtAuthz } }\n",
            format!("{FILTER}.http_filters[0].typed_config"),
        ),
    ] {
        assert!(LISTENER.contains(good), "{good}");
        let found = find("envoy.config.listener.v3.Listener", &LISTENER.replacen(good, bad, 1));
        let refusals: Vec<_> = found.iter().filter(|(_, verdict)| *verdict == Verdict::Refuse).collect();
        assert_eq!(refusals, [&refused(&path)], "{bad}");
    }
}

#[test]
fn an_optional_or_idle_filter_is_ignored() {
    let filter = |body: &str| {
        find(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
            &format!("{{ name: f, {body} }}"),
        )
    };
    let authz = "typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz }";
    assert_eq!(filter(authz), [refused("typed_config")]);
    assert_eq!(filter(&format!("is_optional: true, {authz}")), [ignored("typed_config")]);
    assert_eq!(filter(&format!("disabled: true, {authz}")), [ignored("typed_config")]);
    let inspector = "{ name: i, typed_config: { \"@type\": type.googleapis.com/\
                     envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }";
    assert_eq!(find("envoy.config.listener.v3.ListenerFilter", inspector), []);

    let descriptor = descriptor::message(OPTIONAL[1]).unwrap();
    let mut message = DynamicMessage::new(descriptor);
    for (url, verdict) in [("x/stats.PluginConfig", Verdict::Ignore), ("x/other.Config", Verdict::Refuse)] {
        let any = Any { type_url: url.into(), value: vec![0xff] };
        let mut carried = DynamicMessage::new(descriptor::message("google.protobuf.Any").unwrap());
        carried.transcode_from(&any).unwrap();
        message.set_field_by_name("typed_config", Value::Message(carried));
        let findings = walk(&message, "");
        assert_eq!((findings.len(), findings[0].verdict), (1, verdict), "{findings:?}");
    }
}

#[test]
fn a_cluster_is_walked() {
    let cluster = |yaml: &str| find("envoy.config.cluster.v3.Cluster", yaml);
    assert_eq!(cluster("{ name: a, type: EDS, lb_policy: LEAST_REQUEST, connect_timeout: 1s }"), []);
    let original = "original_dst_lb_config: { use_http_header: true, upstream_port_override: 80 }";
    assert_eq!(cluster(&format!("{{ type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, {original} }}")), []);
    assert_eq!(
        cluster("{ original_dst_lb_config: { metadata_key: { key: k } } }"),
        [refused("original_dst_lb_config.metadata_key")]
    );
    assert_eq!(
        cluster("{ health_checks: [{}], alt_stat_name: b }"),
        [ignored("health_checks"), ignored("alt_stat_name")]
    );
    let options = |body: &str| {
        let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster(&format!(
            "typed_extension_protocol_options: {{ {key}: {{ \"@type\": type.googleapis.com/{key}, {body} }} }}"
        ))
    };
    let at = "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"]";
    assert_eq!(options("explicit_http_config: { http_protocol_options: {} }"), []);
    assert_eq!(
        options("explicit_http_config: { http2_protocol_options: { allow_connect: true, hpack_table_size: 0 } }"),
        [ignored(&format!("{at}.explicit_http_config.http2_protocol_options.hpack_table_size"))]
    );
    assert_eq!(
        options("explicit_http_config: { http3_protocol_options: {} }"),
        [refused(&format!("{at}.explicit_http_config.http3_protocol_options"))]
    );
    assert_eq!(options("auto_config: {}"), [refused(&format!("{at}.auto_config"))]);
    assert_eq!(cluster("metadata: { filter_metadata: { istio: { a: b } } }"), [ignored("metadata.filter_metadata")]);
}

#[test]
fn a_prefix_and_the_full_name_are_reported() {
    let descriptor = descriptor::message("envoy.config.cluster.v3.Cluster").unwrap();
    let message = json::parse_yaml("alt_stat_name: b", &descriptor).unwrap();
    let findings = walk(&message, "static_resources.clusters[2]");
    assert_eq!(findings[0].path, "static_resources.clusters[2].alt_stat_name");
    assert_eq!(findings[0].field, "envoy.config.cluster.v3.Cluster.alt_stat_name");
}

#[test]
fn enum_values_and_fields_of_a_newer_api_are_found() {
    // Cluster: field 3000 as a number; type (field 2) = 99; RouteMatch: field 3000.
    let findings = |message: &str, bytes: &[u8]| -> Vec<_> {
        let found = walk_bytes(message, bytes, "").unwrap();
        found.into_iter().map(|finding| (finding.path, finding.verdict)).collect()
    };
    let newer = [0xc0, 0xbb, 0x01, 1];
    assert_eq!(findings("envoy.config.cluster.v3.Cluster", &newer), [ignored("#3000")]);
    assert_eq!(findings("envoy.config.route.v3.RouteMatch", &newer), [refused("#3000")]);
    assert_eq!(findings("envoy.config.cluster.v3.Cluster", &[0x10, 99]), [refused("type")]);
    // LbEndpoint.health_status (field 2), served whatever its value, as long as it has a name.
    assert_eq!(findings("envoy.config.endpoint.v3.LbEndpoint", &[0x10, 99]), [refused("health_status")]);
    assert_eq!(findings("envoy.config.endpoint.v3.LbEndpoint", &[0x10, 2]), []);
}

/// Locality balancing around locality balancing, `depth` times.
fn nested_policies(depth: usize) -> Any {
    use crate::envoy::envoy::config::cluster::v3::LoadBalancingPolicy;
    use crate::envoy::envoy::config::cluster::v3::load_balancing_policy::Policy;
    use crate::envoy::envoy::config::core::v3::TypedExtensionConfig;
    use crate::envoy::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
    (1..depth).fold(any::pack(&WrrLocality::default()), |inside, _| {
        let extension = TypedExtensionConfig { name: "wrr".into(), typed_config: Some(inside) };
        let policies = vec![Policy { typed_extension_config: Some(extension) }];
        any::pack(&WrrLocality { endpoint_picking_policy: Some(LoadBalancingPolicy { policies }) })
    })
}

#[test]
fn any_in_any_is_bounded() {
    use crate::envoy::envoy::config::core::v3::TypedExtensionConfig;
    let findings = |depth| {
        let outer = TypedExtensionConfig { name: "wrr".into(), typed_config: Some(nested_policies(depth)) };
        walk_message(&outer, "").unwrap()
    };
    assert_eq!(findings(MAX_ANY_DEPTH), []);
    let found = findings(MAX_ANY_DEPTH + 1);
    assert_eq!((found.len(), found[0].verdict), (1, Verdict::Refuse), "{found:?}");
}

#[test]
fn the_number_of_findings_is_bounded_and_refusals_survive() {
    let mut yaml = String::from("{ name: a, additional_addresses: [");
    let idle = "{ address: { socket_address: { address: '::', port_value: 1, ipv4_compat: true } } },";
    yaml.push_str(&idle.repeat(MAX_FINDINGS + 1));
    yaml.push_str("], udp_listener_config: {} }");
    let found = find("envoy.config.listener.v3.Listener", &yaml);
    assert_eq!(found.len(), MAX_FINDINGS + 1);
    assert!(found.contains(&refused("udp_listener_config")));
}
