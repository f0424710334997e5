//! gRPC's own interop client and server (grpc-go) through the proxy, and a gRPC-Web client before it.

use std::process::Command;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource::{self, http2_cluster};
use outrigger_tests::world::{Proxy, ProxySetup};
use serde_json::json;

use super::{BOTH, fetched, free_port, wait_accepts};

/// All cases that need neither TLS nor accounts and that pass without a proxy: `pick_first_unary`, `orca_per_rpc` and
/// `orca_oob` ask for what this server does not tell.
const CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
];

fn server() -> (Process, std::net::SocketAddr) {
    let address = free_port();
    let launch = Launch { program: fetched("grpc-server").into(), ..Launch::default() };
    let mut process = Process::start("grpc-server", &launch.args(["-port", &address.port().to_string()])).unwrap();
    wait_accepts(address, &mut process);
    (process, address)
}

#[test]
#[ignore = "needs grpc-go's interop binaries: make interop"]
fn every_case_of_grpc_go_passes() {
    let (_server, address) = server();
    let client = fetched("grpc-client");
    for io in BOTH {
        let bootstrap = resource::forwarding_with(json!({}), http2_cluster("app", &[address]));
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
        let port = proxy.listener("main").port().to_string();
        for case in CASES {
            let fixed = ["-server_host", "127.0.0.1", "-server_port", &port, "-test_case", case];
            let soak = ["-soak_iterations", "20", "-soak_per_iteration_max_acceptable_latency_ms", "5000"];
            let output = Command::new(&client).args(fixed).args(soak).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{io:?}, {case}: {told}");
        }
        println!("grpc-go, {io:?}: {} cases passed", CASES.len());
    }
}

#[test]
#[ignore = "needs grpc-go's interop server: make interop"]
fn a_grpc_web_client_reaches_a_grpc_server() {
    let (_server, address) = server();
    for io in BOTH {
        let filters = json!([
            { "name": "envoy.filters.http.grpc_web", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb" } },
            { "name": "envoy.filters.http.router", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
        ]);
        let app = http2_cluster("app", &[address]);
        let proxy =
            Proxy::start(&ProxySetup::new(io, resource::forwarding_with(json!({ "http_filters": filters }), app)));
        let headers = [("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")];
        let mut client = proxy.connect();
        let response = client.request("POST", "/grpc.testing.TestService/EmptyCall", &headers, &[0; 5]).unwrap();
        let trailers = response
            .body
            .strip_prefix(&[0; 5])
            .unwrap_or_else(|| panic!("an empty message first: {:?}", response.body));
        assert_eq!(trailers[0], 0x80, "{io:?}");
        assert!(String::from_utf8_lossy(&trailers[5..]).replace(' ', "").contains("grpc-status:0"), "{io:?}");
        let response =
            client.request("POST", "/grpc.testing.TestService/UnimplementedCall", &headers, &[0; 5]).unwrap();
        let told = response.header("grpc-status").unwrap_or_else(|| response.text().replace(' ', ""));
        assert!(told == "12" || told.contains("grpc-status:12"), "{io:?}: {told}");
    }
}
