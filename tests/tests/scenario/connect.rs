//! CONNECT: tunnels that end at the proxy, whose endpoint gets the bytes alone, and those that are passed on.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use outrigger_tests::world::h2::{Link, LinkSetup};
use outrigger_tests::world::resource::{self, cluster, http2_cluster, merge};
use outrigger_tests::world::upstream::pattern;
use outrigger_tests::world::{H2Upstream, Io, OpaqueUpstream, Proxy, ProxySetup, wait_for};
use serde_json::{Value, json};

use super::mixes::{Http, MIXES};
use super::tcp::Nobody;
use super::tunnel::Tunnel;

const SOON: Duration = Duration::from_secs(10);
const BOTH: [Http; 2] = [Http::One, Http::Two];
const TARGET: &str = "db.test:3306";

/// Sends each CONNECT to cluster `app`; `connect` says how its upgrade is granted, `route` is laid over the action.
fn start(io: Io, connect: &Value, route: Value, app: Value) -> Proxy {
    let grant = merge(json!({ "upgrade_type": "CONNECT" }), connect.clone());
    let action = merge(json!({ "cluster": "app", "upgrade_configs": [grant] }), route);
    let routes = [json!({ "match": { "connect_matcher": {} }, "route": action })];
    let http = json!({
        "route_config": resource::table("main", vec![resource::any_host(routes.to_vec())]),
        "http2_protocol_options": { "allow_connect": true },
    });
    Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, app)))
}

fn ending_here(io: Io, route: Value, addresses: &[SocketAddr]) -> Proxy {
    start(io, &json!({ "connect_config": {} }), route, cluster("app", addresses))
}

impl Tunnel {
    fn ask(version: Http, proxy: &Proxy) -> Self {
        match version {
            Http::One => {
                let mut client = proxy.connect();
                client.send(format!("CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\n\r\n").as_bytes()).unwrap();
                Self::One(client)
            }
            Http::Two => {
                let client = proxy.connect_h2();
                let stream = client.next_stream();
                client.send_fields(stream, &[(":method", "CONNECT"), (":authority", TARGET)], false).unwrap();
                Self::Two(client, stream)
            }
        }
    }

    #[track_caller]
    fn open(version: Http, proxy: &Proxy) -> Self {
        let mut tunnel = Self::ask(version, proxy);
        let head = match &mut tunnel {
            Self::One(client) => client.read_response_head().unwrap(),
            Self::Two(client, stream) => client.head(*stream),
        };
        assert_eq!(head.status, 200, "{:?}", head.headers);
        for name in ["content-length", "transfer-encoding"] {
            assert_eq!(head.header(name), None, "RFC 9110 section 9.3.6");
        }
        tunnel
    }

    /// Status and fault of a refusal.
    #[track_caller]
    fn refused(self) -> (u16, String) {
        let response = match self {
            Self::One(mut client) => client.read_response("GET").unwrap(),
            Self::Two(client, stream) => client.head(stream),
        };
        (response.status, response.fault_kind())
    }

    /// Waits for the orderly end of what the endpoint sends.
    #[track_caller]
    fn wait_end(&mut self) {
        match self {
            Self::One(client) => assert_eq!(client.read_to_end().unwrap(), b""),
            Self::Two(client, stream) => {
                client.wait("the end of the stream", |state| state.stream(*stream).is_ended.then_some(()));
            }
        }
    }
}

/// An endpoint whose every connection is given to `serve`, with a sender for what it saw.
fn telling<T: Send + 'static>(
    serve: impl Fn(TcpStream) -> T + Send + Sync + 'static,
) -> (OpaqueUpstream, mpsc::Receiver<T>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let upstream = OpaqueUpstream::start(move |stream| {
        let seen = serve(stream);
        // The test may have ended already.
        let _ = tell.lock().unwrap().send(seen);
    });
    (upstream, told)
}

/// Answers CONNECT on stream 1, then sends back what comes; what the head was is told.
fn echo_stream(link: &Link) -> Result<[Option<String>; 4], String> {
    let head = link.try_wait("CONNECT", SOON, |state| state.stream(1).blocks.first().cloned())?;
    link.send_fields(1, &[(":status", "200")], false).map_err(|error| error.to_string())?;
    let mut at = 0;
    loop {
        let seen = link.try_wait("bytes", SOON, |state| {
            let seen = state.stream(1);
            (seen.body.len() > at || seen.is_ended || state.end.is_some()).then_some(seen)
        })?;
        link.send_body(1, &seen.body[at..], seen.is_ended).map_err(|error| error.to_string())?;
        at = seen.body.len();
        if seen.is_ended {
            return Ok([":method", ":authority", ":scheme", ":path"].map(|name| head.first(name)));
        }
    }
}

/// The same over HTTP/1; the first line of the head is told.
fn echo_connect(mut stream: TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 Fine\r\n\r\n")?;
    let mut block = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut block)? {
            0 => break,
            count => stream.write_all(&block[..count])?,
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned())
}

#[track_caller]
fn assert_echo(tunnel: &mut Tunnel) {
    let mut at = 0;
    for size in [1, 1_000, 70_000, 1_000_000] {
        // In pieces that fit every buffer on the way: one thread sends and reads.
        for piece in pattern(at as u64, size).chunks(64 * 1024) {
            tunnel.send(piece);
            assert!(tunnel.read(at, piece.len()) == piece, "changed after {at} bytes");
            at += piece.len();
        }
    }
    tunnel.finish();
    tunnel.wait_end();
}

on_both_drivers! {
    fn a_tunnel_that_ends_here_brings_the_bytes_alone(io) {
        for down in BOTH {
            let upstream = OpaqueUpstream::echo();
            let proxy = ending_here(io, json!({}), &[upstream.address()]);
            assert_echo(&mut Tunnel::open(down, &proxy));
            assert_eq!(upstream.connection_count(), 1);
        }
    }

    fn a_server_that_speaks_first_is_heard(io) {
        let upstream = OpaqueUpstream::greeting("220 ready\r\n");
        let proxy = ending_here(io, json!({}), &[upstream.address()]);
        for down in BOTH {
            let mut tunnel = Tunnel::open(down, &proxy);
            assert_eq!(tunnel.read(0, 11), b"220 ready\r\n");
        }
    }

    fn what_was_sent_ahead_follows(io) {
        let upstream = OpaqueUpstream::echo();
        let proxy = ending_here(io, json!({}), &[upstream.address()]);
        for down in BOTH {
            let mut tunnel = Tunnel::ask(down, &proxy);
            tunnel.send(b"ahead");
            if let Tunnel::One(client) = &mut tunnel {
                assert_eq!(client.read_response_head().unwrap().status, 200);
            }
            assert_eq!(tunnel.read(0, 5), b"ahead");
        }
    }

    fn either_side_may_end_first(io) {
        for down in BOTH {
            let (upstream, _) = telling(|mut stream| {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
            });
            let proxy = ending_here(io, json!({}), &[upstream.address()]);
            let mut tunnel = Tunnel::open(down, &proxy);
            tunnel.send(b"four");
            tunnel.finish();
            assert_eq!(tunnel.read(0, 7), b"4 bytes", "{down:?}: its end went on");
            tunnel.wait_end();

            let (upstream, told) = telling(|mut stream| {
                stream.write_all(b"bye").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                all
            });
            let proxy = ending_here(io, json!({}), &[upstream.address()]);
            let mut tunnel = Tunnel::open(down, &proxy);
            assert_eq!(tunnel.read(0, 3), b"bye");
            tunnel.wait_end();
            tunnel.send(b"still here");
            tunnel.finish();
            assert_eq!(told.recv_timeout(SOON).unwrap(), b"still here", "{down:?}");
        }
    }

    fn a_reset_is_passed_on(io) {
        for down in BOTH {
            let (upstream, told) = telling(|mut stream| {
                stream.write_all(b"x").unwrap();
                stream.read(&mut [0]).map_err(|error| error.kind())
            });
            let proxy = ending_here(io, json!({}), &[upstream.address()]);
            let mut tunnel = Tunnel::open(down, &proxy);
            assert_eq!(tunnel.read(0, 1), b"x");
            tunnel.reset();
            assert_eq!(told.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset), "{down:?}");
            wait_for("the connection to be gone", SOON, || match proxy.metric("outrigger_cluster_connections", &[]) {
                0.0 => Ok(()),
                open => Err(format!("{open} open")),
            });
        }
    }

    fn a_connect_that_fails_is_a_fault_like_others(io) {
        for down in BOTH {
            let (no, nor) = (Nobody::new(), Nobody::new());
            let proxy = ending_here(io, json!({}), &[no.address()]);
            let refused = (503, "upstream/connect/refused".to_owned());
            assert_eq!(Tunnel::ask(down, &proxy).refused(), refused, "{down:?}");
            let upstream = OpaqueUpstream::echo();
            let retry = json!({ "retry_policy": { "retry_on": "connect-failure", "num_retries": 2 } });
            let proxy = ending_here(io, retry, &[no.address(), upstream.address(), nor.address()]);
            for _ in 0..4 {
                let mut tunnel = Tunnel::open(down, &proxy);
                tunnel.send(b"x");
                assert_eq!(tunnel.read(0, 1), b"x");
            }
        }
    }

    fn an_idle_one_ends(io) {
        let upstream = OpaqueUpstream::echo();
        let proxy = ending_here(io, json!({ "idle_timeout": "0.4s", "timeout": "0.2s" }), &[upstream.address()]);
        for down in BOTH {
            let mut tunnel = Tunnel::open(down, &proxy);
            let begun = std::time::Instant::now();
            let mut at = 0;
            while begun.elapsed() < Duration::from_millis(800) {
                tunnel.send(b"x");
                assert_eq!(tunnel.read(at, 1), b"x", "no timeout ends one that is used");
                at += 1;
            }
            tunnel.wait_over(SOON);
        }
    }

    fn the_endpoint_is_told_whose_tunnel_it_is(io) {
        let upstream = OpaqueUpstream::echo();
        let socket = json!({ "transport_socket": { "name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            "config": { "version": "V1" },
            "transport_socket": { "name": "envoy.transport_sockets.raw_buffer" },
        }}});
        let app = merge(cluster("app", &[upstream.address()]), socket);
        let proxy = start(io, &json!({ "connect_config": {} }), json!({}), app);
        for down in BOTH {
            let mut tunnel = Tunnel::open(down, &proxy);
            let start = tunnel.read(0, 27);
            assert_eq!(start, b"PROXY TCP4 127.0.0.1 127.0.", "{down:?}");
            let mut rest = tunnel.read(27, 10);
            while !rest.ends_with(b"\r\n") {
                rest.extend(tunnel.read(27 + rest.len(), 1));
            }
            let port = proxy.listener("main").port();
            assert!(rest.ends_with(format!(" {port}\r\n").as_bytes()), "{:?}", String::from_utf8_lossy(&rest));
        }
    }

    fn nobody_grants_it_by_default(io) {
        let upstream = OpaqueUpstream::echo();
        let proxy = start(io, &json!({ "enabled": false }), json!({}), cluster("app", &[upstream.address()]));
        for down in BOTH {
            assert_eq!(Tunnel::ask(down, &proxy).refused(), (403, "downstream/route/upgrade-refused".to_owned()));
        }
        assert_eq!(upstream.connection_count(), 0);
    }

    fn one_that_is_passed_on_works_in_every_mix(io) {
        for (down, up) in MIXES {
            match up {
                Http::One => {
                    let (upstream, told) = telling(|stream| echo_connect(stream).map_err(|error| error.to_string()));
                    let proxy = start(io, &json!({}), json!({}), cluster("app", &[upstream.address()]));
                    assert_echo(&mut Tunnel::open(down, &proxy));
                    assert_eq!(told.recv_timeout(SOON).unwrap().unwrap(), format!("CONNECT {TARGET} HTTP/1.1"), "{down:?}");
                }
                Http::Two => {
                    let (tell, told) = mpsc::channel();
                    let tell = Mutex::new(tell);
                    let upstream = H2Upstream::puppet(LinkSetup::default(), move |link| {
                        let _ = tell.lock().unwrap().send(echo_stream(link));
                    });
                    let proxy = start(io, &json!({}), json!({}), http2_cluster("app", &[upstream.address()]));
                    assert_echo(&mut Tunnel::open(down, &proxy));
                    let expected = [Some("CONNECT".to_owned()), Some(TARGET.to_owned()), None, None];
                    assert_eq!(told.recv_timeout(SOON).unwrap().unwrap(), expected, "{down:?}");
                }
            }
        }
    }
}
