use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::{Dangling, RouteAction, Snapshot};

const STATIC: &str = include_str!("testdata/static.yaml");
const DYNAMIC: &str = include_str!("testdata/dynamic.yaml");

fn errors(text: &str) -> String {
    parse(Path::new("b.yaml"), text).unwrap_err().to_string()
}

#[test]
fn a_static_file_becomes_linked_resources() {
    let bootstrap = parse(Path::new("b.yaml"), STATIC).unwrap();
    assert_eq!(&*bootstrap.node.id, "orders-0");
    assert_eq!(&*bootstrap.node.locality, "eu/a");
    assert_eq!(bootstrap.admin.unwrap().port(), 9901);
    assert_eq!(bootstrap.ads, None);
    let (snapshot, dangling) = Snapshot::link(1, &bootstrap.resources);
    assert_eq!(dangling, []);
    let listener = snapshot.listener("ingress").unwrap();
    let table = snapshot.routes_of(listener.https().next().unwrap()).unwrap();
    let route = &table.virtual_hosts[0].routes[0];
    assert_eq!(&*route.rate_limit.as_ref().unwrap().rule, "orders_limit@ingress_routes/all/orders");
    let RouteAction::Forward(forward) = &route.action else { panic!("{route:?}") };
    assert_eq!(forward.timeout, Some(Duration::from_secs(3)));
    assert!(forward.retry.as_ref().unwrap().on.connect_failure);
    let (cluster, endpoints) = &snapshot.clusters()[0];
    assert_eq!(cluster.outlier.unwrap().consecutive_5xx, 3);
    assert_eq!(endpoints.endpoints.len(), 2);
}

#[test]
fn json_says_the_same_as_yaml() {
    let message: proto::Bootstrap = json::from_yaml(STATIC).unwrap();
    let text = json::to_json(&message).to_string();
    let yaml = parse(Path::new("b.yaml"), STATIC).unwrap();
    for name in ["b.json", "b"] {
        let json = parse(Path::new(name), &text).unwrap();
        assert_eq!(json.resources.listeners, yaml.resources.listeners);
        assert_eq!(json.resources.clusters, yaml.resources.clusters);
    }
}

#[test]
fn a_dynamic_file_names_its_server() {
    let bootstrap = parse(Path::new("b.yaml"), DYNAMIC).unwrap();
    let ads = bootstrap.ads.unwrap();
    assert_eq!(ads.servers, [("127.0.0.1".into(), 15_010)]);
    assert_eq!((ads.listeners, ads.clusters, ads.initial_fetch_timeout), (true, true, Duration::from_secs(2)));
    assert_eq!(ads.metadata, [("authorization".to_owned(), "Bearer x".to_owned())]);
    assert_eq!(bootstrap.admin, Some(DEFAULT_ADMIN));
    let (_, dangling) = Snapshot::link(1, &bootstrap.resources);
    assert!(matches!(dangling[..], [Dangling::RouteTable { .. }]), "{dangling:?}");
}

#[test]
fn an_admin_block_without_address_turns_the_port_off() {
    assert_eq!(parse(Path::new("b.yaml"), "admin: {}").unwrap().admin, None);
}

#[test]
fn every_problem_is_told_at_once() {
    let text = STATIC
        .replace("connect_timeout: 1s", "connect_timeout: 0s")
        .replace("port_value: 18082", "port_value: 70000")
        .replace("prefix: /orders", "safe_regex: { regex: \"(\" }")
        .replace("port_value: 9901", "port_value: 99010");
    let text = errors(&text);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "b.yaml: static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[1].endpoint.address.\
             socket_address.port_value: 70000 is not in 0..=65535",
            "b.yaml: static_resources.clusters[0].connect_timeout: 0s is not above 0s",
            "b.yaml: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.\
             virtual_hosts[0].routes[0].match.safe_regex.regex: \"(\" is not a regular expression: error: unclosed group",
            "b.yaml: admin.address.socket_address.port_value: 99010 is not in 0..=65535",
        ]
    );
}

#[test]
fn delta_unknown_servers_and_missing_sources_are_refused_with_a_remedy() {
    let delta = DYNAMIC.replace("api_type: GRPC", "api_type: DELTA_GRPC");
    assert_eq!(errors(&delta), "b.yaml: dynamic_resources.ads_config.api_type: DELTA_GRPC is not served yet; use GRPC");
    let unknown = DYNAMIC.replace("cluster_name: xds", "cluster_name: xdss");
    assert!(errors(&unknown).contains("grpc_services[0].envoy_grpc.cluster_name: \"xdss\" is not in static_resources"));
    let cut = DYNAMIC.split("  ads_config:").next().unwrap();
    let listeners = DYNAMIC.split("static_resources:").nth(1).unwrap();
    let text = errors(&format!("{cut}static_resources:{listeners}"));
    assert!(text.contains("dynamic_resources.ads_config: is not set, though"), "{text}");
    assert!(text.contains("static_resources.listeners[0]: its routes come by ads; set dynamic_resources"), "{text}");
}

#[test]
fn broken_text_is_told_with_line_and_column() {
    let text = errors("node:\n  id: [a\n");
    assert!(text.starts_with("b.yaml: ") && text.contains("line") && text.contains("column"), "{text}");
    let text = errors("node: { id: 1.5, ids: x }\nadmin: { port: 1 }\n");
    assert!(text.lines().count() >= 3 && text.contains("node.ids: unknown field"), "{text}");
}

#[test]
fn a_missing_file_and_a_folder_are_told_with_a_remedy() {
    let text = load(Some(Path::new("/nonexistent/bootstrap.yaml")), None).unwrap_err().to_string();
    assert_eq!(text, "/nonexistent/bootstrap.yaml: no such file; name an existing bootstrap file with -c");
    assert!(load(Some(Path::new("/")), None).unwrap_err().to_string().contains("is a folder"));
}

#[test]
fn names_and_addresses_are_there_once() {
    let twice = STATIC.replace("  clusters:\n", "  clusters:\n  - { name: orders, type: STATIC }\n");
    assert!(errors(&twice).contains("static_resources.clusters[1].name: cluster \"orders\" is there twice"));
}

#[test]
fn text_is_laid_over_a_file() {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/bootstrap/testdata/static.yaml"));
    let alone = load(Some(file), None).unwrap();
    let over = "{node: {id: other, metadata: {outrigger: {capture: {addresses: '10.0.0.7, fd00::7,$(NO)'}}}}, \
         static_resources: {clusters: [{name: more, type: STATIC}]}}";
    let both = load(Some(file), Some(over)).unwrap();
    assert_eq!((&*both.node.id, &*both.node.locality), ("other", "eu/a"), "what it sets wins, the rest stays");
    assert_eq!(both.resources.clusters.len(), alone.resources.clusters.len() + 1, "lists are appended");
    assert_eq!(both.node.addresses, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
    let text = load(Some(file), Some("admin: { port: 1 }")).unwrap_err().to_string();
    assert!(text.starts_with("--config-yaml: admin.port: unknown field"), "{text}");
    let text = load(Some(file), Some("static_resources: { clusters: [{ name: orders }] }")).unwrap_err().to_string();
    assert!(text.contains("static.yaml with --config-yaml: static_resources.clusters[1].name"), "{text}");
}

#[test]
fn text_alone_is_enough() {
    let bootstrap = load(None, Some("node: { id: a, metadata: { INSTANCE_IPS: '10.0.0.8' } }")).unwrap();
    assert_eq!((&*bootstrap.node.id, bootstrap.node.addresses.len()), ("a", 1));
    let text = load(None, Some("nodes: 1")).unwrap_err().to_string();
    assert!(text.starts_with("--config-yaml: nodes: unknown field"), "{text}");
}
