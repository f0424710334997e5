//! Python's websockets on both ends of one proxy, and of two with HTTP/2 between them.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::world::process::Process;
use outrigger_tests::world::resource::{self, cluster, http2, merge};
use outrigger_tests::world::{Io, Proxy, ProxySetup};
use serde_json::{Value, json};

use super::{BOTH, python, python_launch};

fn server() -> (Process, SocketAddr) {
    let mut process = Process::start("websockets", &python_launch("websocket.py", &["serve"])).unwrap();
    let line = process.wait_line("port ", Duration::from_secs(20)).unwrap();
    let port: u16 = line.rsplit(' ').next().unwrap().parse().unwrap();
    (process, ([127, 0, 0, 1], port).into())
}

fn granting(io: Io, app: Value) -> Proxy {
    let http = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }], "http2_protocol_options": { "allow_connect": true } });
    Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, app)))
}

#[test]
#[ignore = "needs Python's websockets: make interop"]
fn python_websockets_talk_through_one_proxy_and_two() {
    let (_server, address) = server();
    for io in BOTH {
        let near = granting(io, cluster("app", &[address]));
        let far = merge(cluster("app", &[near.listener("main")]), http2(json!({ "allow_connect": true })));
        let far = granting(io, far);
        for proxy in [&near, &far] {
            let told = python("websocket.py", &["ask", &proxy.listener("main").port().to_string()]);
            assert_eq!(told.trim(), "closed with 1000", "{io:?}");
        }
    }
}
