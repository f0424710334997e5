//! What a connection is, told from its first bytes, and which filter chain takes it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use outrigger_tests::world::resource::{
    self, CLUSTER, LISTENER, any_host, any_port, cluster, forward, http, merge, route, table,
};
use outrigger_tests::world::{
    AdsServer, Answer, Downstream, Io, OpaqueUpstream, Proxy, ProxySetup, Upstream, wait_for,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const HELLO_MAX: usize = 16 * 1024;

fn prefixed16(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
}

/// A ClientHello for `name` that offers `protocol`, padded to `size` bytes at least, in records of `record` bytes.
fn client_hello(name: &str, protocol: &str, size: usize, record: usize) -> Vec<u8> {
    let extension = |kind: u16, content: &[u8]| [kind.to_be_bytes().as_slice(), &prefixed16(content)].concat();
    let server_name = prefixed16(&[&[0], prefixed16(name.as_bytes()).as_slice()].concat());
    let alpn = prefixed16(&[&[u8::try_from(protocol.len()).unwrap()], protocol.as_bytes()].concat());
    let mut extensions = [extension(0, &server_name), extension(16, &alpn)].concat();
    let fixed = [&[3, 3][..], &[7; 32], &[0], &prefixed16(&[0x13, 1]), &[1, 0]].concat();
    let so_far = 5 + 4 + fixed.len() + 2 + extensions.len();
    extensions.extend(extension(21, &vec![0; size.saturating_sub(so_far + 4)]));
    let body = [fixed, prefixed16(&extensions)].concat();
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1, len[1], len[2], len[3]], body.as_slice()].concat();
    message.chunks(record).flat_map(|part| [&[22, 3, 1][..], &prefixed16(part)].concat()).collect()
}

/// A server that waits for the client, then sends its tag and whatever comes.
fn tagged(tag: &'static str) -> OpaqueUpstream {
    OpaqueUpstream::start(move |mut stream| {
        let mut block = vec![0; 64 * 1024];
        let mut is_first = true;
        while let Ok(count @ 1..) = stream.read(&mut block) {
            if std::mem::take(&mut is_first) && stream.write_all(tag.as_bytes()).is_err() {
                return;
            }
            if stream.write_all(&block[..count]).is_err() {
                return;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
    })
}

fn listener_filter(kind: &str, over: Value) -> Value {
    let url = format!("type.googleapis.com/envoy.extensions.filters.listener.{kind}");
    json!({ "name": "f", "typed_config": merge(json!({ "@type": url }), over) })
}

fn tls_inspector() -> Value {
    listener_filter("tls_inspector.v3.TlsInspector", json!({}))
}

fn http_inspector() -> Value {
    listener_filter("http_inspector.v3.HttpInspector", json!({}))
}

fn proxy_protocol(over: Value) -> Value {
    listener_filter("proxy_protocol.v3.ProxyProtocol", over)
}

fn to_cluster(cluster: &str, asked: Value) -> Value {
    json!({ "filter_chain_match": asked, "filters": [{ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster, "cluster": cluster,
    }}]})
}

fn to_http(cluster: &str, asked: Value) -> Value {
    let http = http(json!({ "route_config": table(cluster, vec![any_host(vec![route("/", forward(cluster))])]) }));
    json!({ "filter_chain_match": asked, "filters": [{ "name": "http", "typed_config": http }] })
}

/// A proxy with a listener `main` of these chains.
fn start(io: Io, chains: &[Value], over: Value, clusters: &[(&str, SocketAddr)]) -> Proxy {
    let listener = merge(json!({ "name": "main", "address": any_port(), "filter_chains": chains }), over);
    let clusters = clusters.iter().map(|(name, address)| cluster(name, &[*address])).collect();
    Proxy::start(&ProxySetup::new(io, resource::bootstrap(vec![listener], clusters)))
}

fn wait_fault(proxy: &Proxy, side: &str, kind: &str, count: f64) {
    let labels = [("listener", "main"), ("side", side), ("stage", "detect"), ("kind", kind)];
    proxy.wait_metric("outrigger_listener_faults_total", &labels, count);
}

fn detected(proxy: &Proxy, verdict: &str) -> u64 {
    proxy.metric("outrigger_listener_detections_total", &[("listener", "main"), ("verdict", verdict)]) as u64
}

/// Sends `bytes` in pieces of `size` and reads them back behind `tag`, with a word more.
fn assert_reaches(proxy: &Proxy, bytes: &[u8], size: usize, tag: &str) {
    let mut client = proxy.connect();
    for piece in bytes.chunks(size) {
        client.send(piece).unwrap();
    }
    client.send(b"more").unwrap();
    client.finish_sending().unwrap();
    let expected = [tag.as_bytes(), bytes, b"more"].concat();
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
    let got = client.read_to_end().unwrap();
    assert_eq!((&got[..got.len().min(1)], got == expected), (tag.as_bytes(), true), "{size}: {shown:?}");
}

on_both_drivers! {
    fn attack_40_a_hello_in_any_pieces_goes_by_its_name_untouched(io) {
        let (exact, suffix, rest) = (tagged("E"), tagged("S"), tagged("R"));
        let chains = [
            to_cluster("suffix", json!({ "server_names": ["*.example"] })),
            to_cluster("exact", json!({ "server_names": ["shop.example", "other.example"] })),
        ];
        let over = json!({ "listener_filters": [tls_inspector()], "default_filter_chain": to_cluster("rest", json!(null)) });
        let clusters = [("exact", exact.address()), ("suffix", suffix.address()), ("rest", rest.address())];
        let proxy = start(io, &chains, over, &clusters);
        let hello = |name: &str| client_hello(name, "h2", 0, HELLO_MAX);
        for size in [1, 6, 50, HELLO_MAX] {
            assert_reaches(&proxy, &hello("SHOP.example"), size, "E");
            assert_reaches(&proxy, &hello("a.b.example"), size, "S");
            assert_reaches(&proxy, &hello("shop.test"), size, "R");
            assert_reaches(&proxy, b"no TLS at all", size, "R");
            assert_reaches(&proxy, &client_hello("shop.example", "h2", 0, 7), size, "E");
        }
        for size in [1_000, HELLO_MAX] {
            assert_reaches(&proxy, &client_hello("shop.example", "h2", HELLO_MAX - 1, HELLO_MAX), size, "E");
            assert_reaches(&proxy, &client_hello("shop.example", "h2", HELLO_MAX, HELLO_MAX), size, "E");
            assert_reaches(&proxy, &client_hello("shop.example", "h2", HELLO_MAX + 1, HELLO_MAX), size, "R");
        }
        assert_eq!([detected(&proxy, "tls"), detected(&proxy, "opaque"), detected(&proxy, "bad-hello")], [20, 4, 2]);
        let told = proxy.admin_json("/listeners?format=json");
        let chains = told["listeners"][0]["chains"].as_array().unwrap();
        assert_eq!(chains[0]["takes"], "server_names=*.example", "{told}");
        assert_eq!(chains[2]["name"], "default", "{told}");
    }

    fn attack_40_silence_and_what_is_no_tls_follow_the_flags(io) {
        let rest = OpaqueUpstream::greeting("hello");
        let chains = [to_cluster("rest", json!({ "server_names": ["a"] }))];
        let strict = listener_filter("tls_inspector.v3.TlsInspector",
            json!({ "close_connection_on_client_hello_parsing_errors": true }));
        let over = json!({ "listener_filters": [strict], "listener_filters_timeout": "0.2s",
            "default_filter_chain": to_cluster("rest", json!(null)) });
        let proxy = start(io, &chains, over.clone(), &[("rest", rest.address())]);
        proxy.connect().expect_closed(SOON).unwrap();
        wait_fault(&proxy, "downstream", "timeout", 1.0);
        let mut begun = proxy.connect();
        begun.send(&client_hello("a", "h2", 0, HELLO_MAX)[..9]).unwrap();
        begun.expect_closed(SOON).unwrap();
        wait_fault(&proxy, "downstream", "timeout", 2.0);
        let mut plain = proxy.connect();
        plain.send(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        plain.expect_closed(SOON).unwrap();
        wait_fault(&proxy, "downstream", "bad-client-hello", 1.0);
        drop(proxy);
        let goes_on = merge(over, json!({ "continue_on_listener_filters_timeout": true }));
        let proxy = start(io, &chains, goes_on, &[("rest", rest.address())]);
        assert_eq!(proxy.connect().read_bytes(5).unwrap(), b"hello", "its server speaks first");
    }

    fn a_connection_that_no_chain_takes_is_closed_and_counted(io) {
        let upstream = tagged("A");
        let chains = [to_cluster("a", json!({ "server_names": ["a.example"] }))];
        let proxy = start(io, &chains, json!({}), &[("a", upstream.address())]);
        assert_reaches(&proxy, &client_hello("a.example", "h2", 0, HELLO_MAX), HELLO_MAX, "A");
        let mut other = proxy.connect();
        other.send(&client_hello("b.example", "h2", 0, HELLO_MAX)).unwrap();
        other.expect_closed(SOON).unwrap();
        wait_fault(&proxy, "local", "no-filter-chain", 1.0);
        assert_eq!(upstream.connection_count(), 1);
        proxy.wait_metric("outrigger_faults_total", &[("kind", "no-filter-chain"), ("flag", "NR")], 1.0);
    }

    fn http_tls_and_all_else_are_told_apart_in_any_pieces(io) {
        let (web, secure, rest) = (Upstream::named("web"), tagged("T"), tagged("R"));
        let chains = [
            to_http("web", json!({ "application_protocols": ["http/1.0", "http/1.1", "h2c"] })),
            to_cluster("secure", json!({ "transport_protocol": "tls" })),
            to_cluster("rest", json!({})),
        ];
        let over = json!({ "listener_filters": [tls_inspector(), http_inspector()] });
        let clusters = [("web", web.address()), ("secure", secure.address()), ("rest", rest.address())];
        let proxy = start(io, &chains, over, &clusters);
        for size in [1, 3, 4_096] {
            let mut client = proxy.connect();
            for _ in 0..2 {
                for piece in b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n".chunks(size) {
                    client.send(piece).unwrap();
                }
                assert_eq!(client.read_response("GET").unwrap().text(), "web", "kept, in pieces of {size}");
            }
            assert_reaches(&proxy, &client_hello("a", "h2", 0, HELLO_MAX), size, "T");
            assert_reaches(&proxy, b"SSH-2.0-x\r\n", size, "R");
            assert_reaches(&proxy, b"get key\r\n", size, "R");
            assert_reaches(&proxy, &[0, 0, 0, 1], size, "R");
        }
        assert_eq!([detected(&proxy, "http1"), detected(&proxy, "tls"), detected(&proxy, "opaque")], [3, 3, 9]);
        // An end decides too: no more bytes will come.
        let mut short = proxy.connect();
        short.send(b"GE").unwrap();
        short.finish_sending().unwrap();
        assert_eq!(short.read_to_end().unwrap(), b"RGE");
    }

    fn where_the_address_alone_chooses_nothing_is_waited_for(io) {
        let (database, web) = (OpaqueUpstream::greeting("5.7-db"), tagged("W"));
        let chains = [
            to_cluster("database", json!({ "prefix_ranges": [{ "address_prefix": "127.0.0.0", "prefix_len": 8 }] })),
            to_cluster("web", json!({ "application_protocols": ["http/1.1"] })),
        ];
        let never = json!({ "listener_filters": [tls_inspector(), http_inspector()], "listener_filters_timeout": "0s" });
        let clusters = [("database", database.address()), ("web", web.address())];
        let proxy = start(io, &chains, never.clone(), &clusters);
        assert_eq!(proxy.connect().read_bytes(6).unwrap(), b"5.7-db");
        drop(proxy);
        let off = json!({ "filter_disabled": { "destination_port_range": { "start": 1, "end": 65536 } } });
        let hinted = json!({ "listener_filters": [merge(tls_inspector(), off.clone()), merge(http_inspector(), off)] });
        let chains = [to_cluster("web", json!({ "application_protocols": ["http/1.1"] })), to_cluster("database", json!({}))];
        let proxy = start(io, &chains, merge(never, hinted), &clusters);
        assert_eq!(proxy.connect().read_bytes(6).unwrap(), b"5.7-db", "the inspectors are off at its port");
        assert_eq!(detected(&proxy, "silent") + detected(&proxy, "skipped"), 0);
    }

    fn the_wait_for_a_server_that_speaks_first_is_paid_once(io) {
        let (database, web) = (OpaqueUpstream::greeting("5.7-db"), tagged("W"));
        let chains = [to_cluster("web", json!({ "transport_protocol": "tls" })), to_cluster("database", json!({}))];
        let over = json!({ "listener_filters": [tls_inspector()], "listener_filters_timeout": "1s",
            "continue_on_listener_filters_timeout": true });
        let proxy = start(io, &chains, over, &[("database", database.address()), ("web", web.address())]);
        for _ in 0..5 {
            let mut client = proxy.connect();
            assert_eq!(client.read_bytes(6).unwrap(), b"5.7-db");
            client.send(b"login").unwrap();
            assert_eq!(client.read_bytes(5).unwrap(), b"login");
        }
        assert_eq!((detected(&proxy, "silent"), detected(&proxy, "skipped")), (1, 4));
        assert_eq!(proxy.metric("outrigger_listener_server_first_total", &[("listener", "main")]) as u64, 1);
    }

    fn who_is_silent_teaches_nothing(io) {
        let upstream = tagged("A");
        let chains = [to_cluster("a", json!({ "transport_protocol": "tls" })), to_cluster("a", json!({}))];
        let over = json!({ "listener_filters": [tls_inspector()], "listener_filters_timeout": "0.1s",
            "continue_on_listener_filters_timeout": true });
        let proxy = start(io, &chains, over, &[("a", upstream.address())]);
        for count in 1..=2 {
            let mut scan = proxy.connect();
            wait_for("the wait to be over", SOON, || {
                let silent = detected(&proxy, "silent");
                if silent == count { Ok(()) } else { Err(format!("{silent} silent")) }
            });
            scan.send(b"late").unwrap();
            assert_eq!(scan.read_bytes(5).unwrap(), b"Alate");
        }
        assert_eq!(detected(&proxy, "skipped"), 0);
    }

    fn a_proxy_header_tells_the_address_of_the_client(io) {
        let upstream = Upstream::start(|request| {
            Answer::ok(request.headers.first("x-forwarded-for").unwrap_or_default())
        });
        let chains = [to_http("web", json!({ "source_prefix_ranges": [{ "address_prefix": "192.0.2.0", "prefix_len": 24 }] }))];
        let edge = json!({ "listener_filters": [proxy_protocol(json!({}))], "listener_filters_timeout": "0.3s" });
        let proxy = start(io, &chains, edge, &[("web", upstream.address())]);
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\x0a\0\0\x01\x03\xe8\0\x50";
        for (header, client) in [(&b"PROXY TCP4 192.0.2.7 10.0.0.1 1000 80\r\n"[..], "192.0.2.7"), (v2, "192.0.2.9")] {
            for size in [1, 1_000] {
                let mut connection = proxy.connect();
                let bytes = [header, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
                for piece in bytes.chunks(size) {
                    connection.send(piece).unwrap();
                }
                assert_eq!(connection.read_response("GET").unwrap().text(), client);
            }
        }
        assert_eq!(proxy.metric("outrigger_listener_proxy_headers_total", &[("listener", "main")]) as u64, 4);
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 1.2.3.4\r\n", b"PROXY TCP5 "] {
            let mut connection = proxy.connect();
            connection.send(bytes).unwrap();
            connection.expect_closed(SOON).unwrap();
        }
        wait_fault(&proxy, "downstream", "bad-proxy-header", 2.0);
        wait_fault(&proxy, "downstream", "timeout", 1.0);
        let mut elsewhere = proxy.connect();
        elsewhere.send(b"PROXY TCP4 198.51.100.1 10.0.0.1 1 2\r\n").unwrap();
        elsewhere.expect_closed(SOON).unwrap();
        wait_fault(&proxy, "local", "no-filter-chain", 1.0);
    }

    fn a_proxy_header_may_be_optional(io) {
        let upstream = tagged("A");
        let over = json!({ "listener_filters": [proxy_protocol(json!({ "allow_requests_without_proxy_protocol": true }))] });
        let proxy = start(io, &[to_cluster("a", json!({}))], over, &[("a", upstream.address())]);
        assert_reaches(&proxy, b"PRO is no header", 1, "A");
        let mut client = proxy.connect();
        client.send(b"PROXY UNKNOWN\r\nhello").unwrap();
        assert_eq!(client.read_bytes(6).unwrap(), b"Ahello");
    }

    fn a_silent_connection_does_not_hold_up_a_drain(io) {
        let upstream = tagged("A");
        let chains = [to_cluster("a", json!({ "transport_protocol": "tls" }))];
        let mut proxy = start(io, &chains, json!({ "listener_filters_timeout": "0s" }), &[("a", upstream.address())]);
        let silent = proxy.connect();
        proxy.wait_metric("outrigger_listener_connections", &[("listener", "main")], 1.0);
        proxy.terminate();
        let status = proxy.process().wait_exit(SOON).unwrap();
        assert_eq!(status.code(), Some(0), "{:?}", proxy.log());
        drop(silent);
    }

    fn an_endpoint_is_told_who_connected_before_any_byte(io) {
        for (version, len) in [("V1", 0), ("V2", 28)] {
            // Its greeting comes once the header is there, though the client says nothing.
            let upstream = OpaqueUpstream::start(move |mut stream| {
                let mut header = vec![0; len];
                let mut byte = [0];
                let is_whole = |header: &[u8]| if len > 0 { header.len() == len } else { header.ends_with(b"\n") };
                let mut read = stream.read_exact(&mut header);
                while read.is_ok() && !is_whole(&header) {
                    read = stream.read_exact(&mut byte);
                    header.push(byte[0]);
                }
                let mut rest = [0; 4];
                let _ = stream
                    .write_all(&header)
                    .and_then(|()| stream.read_exact(&mut rest))
                    .and_then(|()| stream.write_all(&rest));
            });
            let socket = json!({ "name": "proxy", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
                "config": { "version": version },
                "transport_socket": { "name": "envoy.transport_sockets.raw_buffer" },
            }});
            let app = merge(cluster("app", &[upstream.address()]), json!({ "transport_socket": socket }));
            let opaque = json!({ "name": "main", "address": any_port(), "filter_chains": [to_cluster("app", json!({}))] });
            let chains = [to_cluster("app", json!({}))];
            let told = json!({ "name": "told", "address": any_port(), "filter_chains": chains,
                "listener_filters": [proxy_protocol(json!({}))] });
            let web = json!({ "name": "web", "address": any_port(), "filter_chains": [to_http("app", json!({}))] });
            let proxy = Proxy::start(&ProxySetup::new(io, resource::bootstrap(vec![opaque, told, web], vec![app])));

            let address = proxy.listener("main");
            let mut client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(SOON)).unwrap();
            let port = client.local_addr().unwrap().port();
            let expected = match version {
                "V1" => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}\r\n", address.port()).into_bytes(),
                _ => [
                    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".as_slice(),
                    &port.to_be_bytes(),
                    &address.port().to_be_bytes(),
                ]
                .concat(),
            };
            let mut header = vec![0; expected.len()];
            client.read_exact(&mut header).unwrap();
            assert_eq!(header, expected);
            client.write_all(b"rest").unwrap();
            let mut rest = [0; 4];
            client.read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"rest");

            let mut client = Downstream::connect(proxy.listener("told")).unwrap();
            client.send(b"PROXY TCP4 192.0.2.7 198.51.100.1 1000 80\r\n").unwrap();
            let header = client.read_bytes(if len > 0 { len } else { 43 }).unwrap();
            match version {
                "V1" => assert_eq!(header, b"PROXY TCP4 192.0.2.7 198.51.100.1 1000 80\r\n"),
                _ => assert_eq!(header[16..], [192, 0, 2, 7, 198, 51, 100, 1, 0x03, 0xe8, 0, 80]),
            }

            let refused = Downstream::connect(proxy.listener("web")).unwrap().get("/").unwrap();
            assert_eq!((refused.status, refused.fault_kind().as_str()), (503, "local/connect/proxy-header"));
        }
    }

    fn an_update_moves_no_connection_to_another_chain(io) {
        let (web, shop, rest) = (Upstream::named("web"), Upstream::named("shop"), tagged("R"));
        let local = json!({ "prefix_ranges": [{ "address_prefix": "127.0.0.1", "prefix_len": 32 }] });
        let http = json!({ "application_protocols": ["http/1.1"] });
        let listener = |chains: &[Value]| {
            json!({ "name": "main", "address": any_port(), "filter_chains": chains, "listener_filters": [http_inspector()] })
        };
        let ads = AdsServer::start();
        for (name, address) in [("web", web.address()), ("shop", shop.address()), ("rest", rest.address())] {
            ads.set([(CLUSTER, cluster(name, &[address]))]);
        }
        ads.set([(LISTENER, listener(&[to_http("web", http.clone()), to_cluster("rest", json!({}))]))]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        let mut kept = proxy.connect();
        assert_eq!(kept.get("/").unwrap().text(), "web");
        let mut opaque = proxy.connect();
        opaque.send(b"\0").unwrap();
        assert_eq!(opaque.read_bytes(2).unwrap(), b"R\0");

        let twice = [to_http("web", http.clone()), to_http("shop", http.clone())];
        ads.set([(LISTENER, listener(&twice))]);
        let (_, text) = ads.wait_nack(LISTENER).error.unwrap();
        let told = "filter_chains[1].filter_chain_match: matches connections (protocols=http/1.1)";
        assert!(text.contains("listener \"main\"") && text.contains(told), "{text}");
        assert_eq!(kept.get("/").unwrap().text(), "web", "the last good one serves");

        // Another chain before it, which takes all new connections: the old one keeps its own.
        let version = ads.set([(LISTENER, listener(&[to_http("shop", local.clone()), to_http("web", http)]))]);
        ads.wait_ack(LISTENER, version);
        wait_for("the new chains", SOON, || match proxy.connect().get("/").unwrap().text().as_str() {
            "shop" => Ok(()),
            other => Err(other.to_owned()),
        });
        assert_eq!(kept.get("/").unwrap().text(), "web");
        opaque.send(b"\x01").unwrap();
        assert_eq!(opaque.read_bytes(1).unwrap(), b"\x01", "its chain is gone, it is not");

        let version = ads.set([(LISTENER, listener(&[to_http("shop", local)]))]);
        ads.wait_ack(LISTENER, version);
        wait_for("the first chain to be gone", SOON, || {
            let told = proxy.admin_json("/listeners?format=json");
            if told["listeners"][0]["chains"].as_array().is_some_and(|chains| chains.len() == 1) {
                Ok(())
            } else {
                Err(told.to_string())
            }
        });
        kept.send_request("GET", "/", &[], b"").unwrap();
        kept.expect_closed(SOON).unwrap();
        assert_eq!(proxy.connect().get("/").unwrap().text(), "shop");
    }
}
