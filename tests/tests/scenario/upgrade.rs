//! Tunnels: WebSocket and other upgrades in every mix of HTTP/1.1 and HTTP/2, and what must not become one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use outrigger_tests::world::h2::frame::setting;
use outrigger_tests::world::h2::{Link, LinkSetup};
use outrigger_tests::world::resource::{self, cluster, forward, http2, merge, route, table};
use outrigger_tests::world::upstream::pattern;
use outrigger_tests::world::{Answer, H2Upstream, Io, OpaqueUpstream, Proxy, ProxySetup, Upstream};
use serde_json::{Value, json};

use super::mixes::{Http, MIXES};
use super::tunnel::Tunnel;

const CLOSED_WITHIN: Duration = Duration::from_secs(5);
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// An application that switches to a protocol in which everything is sent back.
enum App {
    One(OpaqueUpstream),
    Two(H2Upstream),
}

impl App {
    fn start(version: Http) -> Self {
        match version {
            Http::One => Self::One(OpaqueUpstream::start(|mut stream| {
                // An error is the other side's end of the connection.
                let _ = switch_and_echo(&mut stream);
            })),
            Http::Two => {
                let setup = LinkSetup::settings(&[(setting::ENABLE_CONNECT_PROTOCOL, 1)]);
                Self::Two(H2Upstream::puppet(setup, |link| {
                    let _ = echo_connect(link);
                }))
            }
        }
    }

    fn cluster(&self) -> Value {
        match self {
            Self::One(upstream) => cluster("app", &[upstream.address()]),
            Self::Two(upstream) => {
                merge(cluster("app", &[upstream.address()]), http2(json!({ "allow_connect": true })))
            }
        }
    }

    fn behind(&self, io: Io) -> Proxy {
        granting(io, &["websocket", "foo"], self.cluster())
    }
}

/// A proxy whose connection manager grants these upgrades.
fn granting(io: Io, kinds: &[&str], app: Value) -> Proxy {
    let kinds: Vec<Value> = kinds.iter().map(|kind| json!({ "upgrade_type": kind })).collect();
    let http = json!({ "upgrade_configs": kinds, "http2_protocol_options": { "allow_connect": true } });
    Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, app)))
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}

/// Answers 101 with the upgrade that was asked for, then sends back what comes; without one it answers 200.
fn switch_and_echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let head = read_head(stream)?;
    let kind = head.lines().find_map(|line| line.strip_prefix("upgrade: ")).map(str::to_owned);
    let Some(kind) = kind else {
        return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
    };
    stream.write_all(
        format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {kind}\r\n\r\n").as_bytes(),
    )?;
    let mut block = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut block)? {
            0 => return stream.shutdown(Shutdown::Write),
            count => stream.write_all(&block[..count])?,
        }
    }
}

fn echo_connect(link: &Link) -> Result<(), String> {
    let wait = |what: &str, at: usize| {
        link.try_wait(what, OpaqueUpstream::PATIENCE, |state| {
            let seen = state.stream(1);
            (seen.body.len() > at || seen.is_ended || state.end.is_some()).then_some(seen)
        })
    };
    let head = link.try_wait("CONNECT", OpaqueUpstream::PATIENCE, |state| state.stream(1).blocks.first().cloned())?;
    assert_eq!((head.first(":method"), head.first(":scheme")), (Some("CONNECT".to_owned()), Some("http".to_owned())));
    let fields: &[(&str, &str)] = &[(":status", "200"), ("x-protocol", &head.first(":protocol").unwrap_or_default())];
    link.send_fields(1, fields, false).map_err(|error| error.to_string())?;
    let mut at = 0;
    loop {
        let seen = wait("bytes", at)?;
        link.send_body(1, &seen.body[at..], seen.is_ended).map_err(|error| error.to_string())?;
        at = seen.body.len();
        if seen.is_ended || link.look(|state| state.end.is_some()) {
            return link.try_wait("the end", OpaqueUpstream::PATIENCE, |state| state.end.clone()).map(drop);
        }
    }
}

impl Tunnel {
    #[track_caller]
    fn upgraded(version: Http, proxy: &Proxy, kind: &str) -> Self {
        match version {
            Http::One => {
                let mut client = proxy.connect();
                client.send(ask(kind).as_bytes()).unwrap();
                let head = client.read_response_head().unwrap();
                assert_eq!(head.status, 101, "{:?}", head.headers);
                assert_eq!(head.header("upgrade").map(|kind| kind.to_lowercase()).as_deref(), Some(kind));
                assert!(head.headers.lists("connection", "upgrade"), "{:?}", head.headers);
                Self::One(client)
            }
            Http::Two => {
                let client = proxy.connect_h2();
                let granted =
                    client.wait("SETTINGS", |state| state.settings.get(&setting::ENABLE_CONNECT_PROTOCOL).copied());
                assert_eq!(granted, 1, "RFC 8441 section 3");
                let stream = client
                    .open("CONNECT", "/chat", &[(":protocol", kind), ("sec-websocket-version", "13")], false)
                    .unwrap();
                let head = client.head(stream);
                assert_eq!(head.status, 200, "{:?}", head.headers);
                Self::Two(client, stream)
            }
        }
    }
}

fn ask(kind: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {kind}\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

on_both_drivers! {
    fn bytes_pass_both_ways_in_every_mix(io) {
        for (down, up) in MIXES {
            let app = App::start(up);
            let proxy = app.behind(io);
            let mut tunnel = Tunnel::upgraded(down, &proxy, "websocket");
            tunnel.send(b"ping");
            assert_eq!(tunnel.read(0, 4), b"ping", "{down:?} to {up:?}");
            let mut at = 4;
            for size in [1, 1_000, 70_000, 1_000_000] {
                // In pieces that fit every buffer on the way: one thread sends and reads.
                for piece in pattern(at as u64, size).chunks(64 * 1024) {
                    tunnel.send(piece);
                    assert!(tunnel.read(at, piece.len()) == piece, "{down:?} to {up:?}: changed after {at} bytes");
                    at += piece.len();
                }
            }
            // Envoy has no half-closed tunnels over HTTP/1.
            if proxy.is_ours() {
                tunnel.finish();
                tunnel.wait_over(CLOSED_WITHIN);
            }
        }
    }

    fn an_upstream_that_ends_ends_the_tunnel(io) {
        for down in [Http::One, Http::Two] {
            let upstream = OpaqueUpstream::start(|mut stream| {
                if read_head(&mut stream).is_ok() {
                    let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nbye");
                }
            });
            let proxy = granting(io, &["websocket"], cluster("app", &[upstream.address()]));
            let mut tunnel = Tunnel::upgraded(down, &proxy, "websocket");
            assert_eq!(tunnel.read(0, 3), b"bye", "bytes right behind the 101 are the tunnel's");
            tunnel.wait_over(CLOSED_WITHIN);
        }
    }

    fn a_client_that_ends_ends_the_tunnel(io) {
        for (down, up) in MIXES {
            let (ended, wait_ended) = std::sync::mpsc::channel();
            let app = match up {
                Http::One => {
                    let ended = std::sync::Mutex::new(ended);
                    App::One(OpaqueUpstream::start(move |mut stream| {
                        let _ = switch_and_echo(&mut stream);
                        let _ = ended.lock().unwrap().send(());
                    }))
                }
                Http::Two => {
                    let ended = std::sync::Mutex::new(ended);
                    let setup = LinkSetup::settings(&[(setting::ENABLE_CONNECT_PROTOCOL, 1)]);
                    App::Two(H2Upstream::puppet(setup, move |link| {
                        link.try_wait("CONNECT", CLOSED_WITHIN, |state| state.stream(1).blocks.first().cloned()).unwrap();
                        link.send_fields(1, &[(":status", "200")], false).unwrap();
                        link.try_wait("the end", CLOSED_WITHIN, |state| {
                            let seen = state.stream(1);
                            (seen.is_ended || seen.reset.is_some() || state.end.is_some()).then_some(())
                        }).unwrap();
                        let _ = ended.lock().unwrap().send(());
                    }))
                }
            };
            let proxy = app.behind(io);
            let tunnel = Tunnel::upgraded(down, &proxy, "websocket");
            drop(tunnel);
            wait_ended.recv_timeout(CLOSED_WITHIN).unwrap_or_else(|error| panic!("{down:?} to {up:?}: {error}"));
        }
    }

    fn other_upgrades_pass_by_configuration(io) {
        let app = App::start(Http::One);
        let granting_foo = app.behind(io);
        let mut tunnel = Tunnel::upgraded(Http::One, &granting_foo, "foo");
        tunnel.send(b"anything");
        assert_eq!(tunnel.read(0, 8), b"anything");
        let proxy = granting(io, &["websocket"], app.cluster());
        let mut client = proxy.connect();
        client.send(ask("foo").as_bytes()).unwrap();
        assert!([400, 403].contains(&client.read_response("GET").unwrap().status));
    }

    fn a_route_may_refuse_or_grant(io) {
        let app = App::start(Http::One);
        let closed = merge(forward("app"), json!({ "route": { "upgrade_configs": [{ "upgrade_type": "websocket", "enabled": false }] } }));
        let open = merge(forward("app"), json!({ "route": { "upgrade_configs": [{ "upgrade_type": "foo" }] } }));
        let routes = table("main", vec![resource::any_host(vec![route("/closed", closed), route("/", open)])]);
        let http = json!({ "route_config": routes, "upgrade_configs": [{ "upgrade_type": "websocket" }, { "upgrade_type": "foo", "enabled": false }] });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, app.cluster())));
        let status = |target: &str, kind: &str| {
            let mut client = proxy.connect();
            client.send(ask(kind).replace("/chat", target).as_bytes()).unwrap();
            client.read_response("GET").unwrap().status
        };
        assert_eq!(status("/closed", "websocket"), 403);
        assert_eq!((status("/", "websocket"), status("/", "foo")), (101, 101));
    }

    fn attack_r19_an_upgrade_to_h2c_is_never_one(io) {
        let upstream = Upstream::named("plain");
        let proxy = granting(io, &["websocket"], cluster("app", &[upstream.address()]));
        let mut client = proxy.connect();
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n").unwrap();
        assert_eq!(client.read_response("GET").unwrap().text(), "plain");
        assert_eq!(upstream.requests()[0].headers.all("upgrade"), Vec::<String>::new());
    }

    fn attack_r20_nothing_is_tunnelled_before_the_101(io) {
        // The upstream takes no upgrade; what the client sent ahead must not become a request of its own.
        let upstream = Upstream::start(|_| Answer::ok("no upgrade"));
        let proxy = granting(io, &["websocket"], cluster("app", &[upstream.address()]));
        let mut client = proxy.connect();
        client.send([ask("websocket").as_str(), SMUGGLED].concat().as_bytes()).unwrap();
        let response = client.read_response("GET").unwrap();
        assert_eq!(response.status, 200);
        assert!(response.text() == "no upgrade" || !proxy.is_ours(), "{:?}", response.text());
        client.expect_closed(CLOSED_WITHIN).unwrap();
        assert!(upstream.requests().iter().all(|seen| seen.target == "/chat"), "{:?}", upstream.requests());
        for wire in upstream.wires() {
            assert!(!wire.windows(8).any(|window| window == b"smuggled"), "{}", wire.escape_ascii());
        }
    }

    fn attack_r20_what_was_sent_ahead_follows_the_101(io) {
        let app = App::start(Http::One);
        let proxy = app.behind(io);
        let mut client = proxy.connect();
        client.send([ask("websocket").as_str(), "ahead"].concat().as_bytes()).unwrap();
        assert_eq!(client.read_response_head().unwrap().status, 101);
        assert_eq!(client.read_bytes(5).unwrap(), b"ahead");
    }

    fn attack_r20_a_refusal_by_the_upstream_is_passed_on(io) {
        for (status, down) in [(403, Http::One), (403, Http::Two), (503, Http::Two)] {
            let upstream = Upstream::start(move |_| Answer::status(status).body("no"));
            let proxy = granting(io, &["websocket"], cluster("app", &[upstream.address()]));
            let seen = match down {
                Http::One => {
                    let mut client = proxy.connect();
                    client.send(ask("websocket").as_bytes()).unwrap();
                    client.read_response("GET").unwrap().status
                }
                Http::Two => {
                    let client = proxy.connect_h2();
                    let stream = client.open("CONNECT", "/chat", &[(":protocol", "websocket")], false).unwrap();
                    client.head(stream).status
                }
            };
            assert_eq!(seen, status, "{down:?}");
        }
    }

    fn attack_r20_a_200_is_no_tunnel_for_http_2(io) {
        // 101 towards HTTP/1 is 200 on a stream; a real 200 must not look like it.
        let upstream = Upstream::start(|_| Answer::ok("no upgrade"));
        let proxy = granting(io, &["websocket"], cluster("app", &[upstream.address()]));
        let client = proxy.connect_h2();
        let stream = client.open("CONNECT", "/chat", &[(":protocol", "websocket")], false).unwrap();
        client.send_body(stream, SMUGGLED.as_bytes(), false).unwrap();
        client.wait("an end", |state| {
            let seen = state.stream(stream);
            (seen.is_ended || seen.reset.is_some() || seen.blocks.first().is_some_and(|head| head.first(":status").as_deref() != Some("200"))).then_some(())
        });
        for wire in upstream.wires() {
            assert!(!wire.windows(8).any(|window| window == b"smuggled"), "{}", wire.escape_ascii());
        }
    }

    fn attack_r20_an_upgrade_nobody_granted_is_refused_over_http_2(io) {
        let upstream = Upstream::named("reached");
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let client = proxy.connect_h2();
        let stream = client.open("CONNECT", "/chat", &[(":protocol", "websocket")], false).unwrap();
        let refused = client.wait("a refusal", |state| {
            let seen = state.stream(stream);
            let status = seen.blocks.first().and_then(|head| head.first(":status"));
            status.or(seen.reset.map(|code| code.to_string())).or(state.end.as_ref().map(|_| "closed".to_owned()))
        });
        assert_ne!(refused, "200");
        assert_eq!(upstream.request_count(), 0);
        let stream = proxy.connect_h2();
        let plain = [(":method", "CONNECT"), (":authority", "a:443")];
        let number = stream.next_stream();
        stream.send_fields(number, &plain, false).unwrap();
        let refused = stream.wait("a refusal", |state| {
            let seen = state.stream(number);
            let status = seen.blocks.first().and_then(|head| head.first(":status"));
            status.or(seen.reset.map(|code| code.to_string())).or(state.end.as_ref().map(|_| "closed".to_owned()))
        });
        assert_ne!(refused, "200");
        assert_eq!(upstream.request_count(), 0);
    }

    fn an_idle_tunnel_ends_when_it_is_told_to(io) {
        let app = App::start(Http::One);
        let http = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }], "stream_idle_timeout": "0.5s" });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, app.cluster())));
        let mut tunnel = Tunnel::upgraded(Http::One, &proxy, "websocket");
        tunnel.send(b"x");
        assert_eq!(tunnel.read(0, 1), b"x");
        tunnel.wait_over(CLOSED_WITHIN);
    }

    fn a_route_timeout_does_not_end_a_tunnel(io) {
        let app = App::start(Http::One);
        let short = merge(forward("app"), json!({ "route": { "timeout": "0.3s" } }));
        let routes = table("main", vec![resource::any_host(vec![route("/", short)])]);
        let http = json!({ "route_config": routes, "upgrade_configs": [{ "upgrade_type": "websocket" }] });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, app.cluster())));
        let mut tunnel = Tunnel::upgraded(Http::One, &proxy, "websocket");
        let begun = std::time::Instant::now();
        let mut at = 0;
        while begun.elapsed() < Duration::from_millis(900) {
            tunnel.send(b"x");
            assert_eq!(tunnel.read(at, 1), b"x");
            at += 1;
        }
    }
}
