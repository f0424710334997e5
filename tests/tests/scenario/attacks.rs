//! Requests and answers that are made to confuse: each must be refused, or reach the other side in one meaning only.
//! The numbers are those of the threat table; rows 25 and up concern HTTP/2, TLS and the control plane.

use std::time::Duration;

use outrigger_tests::world::message::show;
use outrigger_tests::world::resource::{self, any_host, cluster, forward, http, listener, route, table};
use outrigger_tests::world::upstream::Recorded;
use outrigger_tests::world::{Answer, Downstream, Io, Proxy, ProxySetup, Response, Upstream};
use serde_json::{Value, json};

const CLOSED_WITHIN: Duration = Duration::from_secs(3);
/// Sent behind an attack: whoever forwards it was confused.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// A proxy before an upstream that records, under attack.
struct Target {
    proxy: Proxy,
    upstream: Upstream,
}

impl Target {
    fn start(io: Io) -> Self {
        Self::behind(io, Upstream::named("reached"), vec![route("/", forward("app"))])
    }

    fn behind(io: Io, upstream: Upstream, routes: Vec<Value>) -> Self {
        let bootstrap = resource::plain(routes, vec![cluster("app", &[upstream.address()])]);
        Self { proxy: Proxy::start(&ProxySetup::new(io, bootstrap)), upstream }
    }

    /// Sends the bytes and the bait; the first answer must be one of `statuses`, the connection must end, and the
    /// upstream must have seen nothing.
    fn refuses(&self, attack: impl AsRef<[u8]>, statuses: &[u16]) {
        let before = self.upstream.received_bytes();
        let mut client = self.proxy.connect();
        let bytes = [attack.as_ref(), SMUGGLED.as_bytes()].concat();
        // A proxy that refuses while we still send may reset: the answer then counts, or the lack of one.
        let sent = client.send(&bytes);
        let shown = show(attack.as_ref());
        let response = client.read_response("GET").unwrap_or_else(|error| panic!("{shown}: {error} (sent: {sent:?})"));
        assert!(statuses.contains(&response.status), "{shown}: status {}, wanted {statuses:?}", response.status);
        assert!(!response.fault().is_empty(), "{shown}: a refusal without its header: {:?}", response.headers);
        client.expect_closed(CLOSED_WITHIN).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(self.upstream.received_bytes(), before, "{shown}: something reached the upstream");
    }

    /// Sends the bytes of one request; gives its answer and what the upstream saw of it.
    fn passes(&self, request: impl AsRef<[u8]>) -> (Response, Recorded) {
        let before = self.upstream.request_count();
        let mut client = self.proxy.connect();
        client.send(request.as_ref()).unwrap();
        let shown = show(request.as_ref());
        let response = client.read_response("GET").unwrap_or_else(|error| panic!("{shown}: {error}"));
        let seen = self.upstream.requests();
        assert_eq!(seen.len(), before + 1, "{shown}: status {}", response.status);
        (response, seen[before].clone())
    }

    /// Either refused as above or forwarded in the one meaning that `wanted` describes.
    fn refuses_or(&self, request: impl AsRef<[u8]>, statuses: &[u16], wanted: impl Fn(&Recorded)) {
        let before = self.upstream.request_count();
        let mut client = self.proxy.connect();
        client.send(request.as_ref()).unwrap();
        let response = client.read_response("GET").unwrap();
        match self.upstream.requests().get(before) {
            Some(seen) => wanted(seen),
            None => assert!(statuses.contains(&response.status), "{}: {}", show(request.as_ref()), response.status),
        }
    }
}

fn post(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{body}")
}

fn get(headers: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n")
}

/// A GET whose answer the upstream scripts raw; gives the answer, or why there is none.
fn answered(io: Io, raw: &'static str) -> (Proxy, Upstream) {
    let upstream = Upstream::start(move |request| match request.target.as_str() {
        "/bad" => Answer::raw(raw),
        _ => Answer::ok("good"),
    });
    let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
    (proxy, upstream)
}

on_both_drivers! {
    fn attack_r01_length_and_chunked_in_one_request(io) {
        let target = Target::start(io);
        target.refuses(post("Content-Length: 4\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), &[400]);
        target.refuses(post("Transfer-Encoding: chunked\r\nContent-Length: 4", "0\r\n\r\n"), &[400]);
    }

    fn attack_r02_lengths_that_are_none(io) {
        let target = Target::start(io);
        for headers in [
            "Content-Length: 4\r\nContent-Length: 5", "Content-Length: 4\r\nContent-Length: 4", "Content-Length: 4, 4",
            "Content-Length: +4", "Content-Length: ", "Content-Length: 99999999999999999999", "Content-Length: 0x4",
            "Content-Length: 4 4", "Content-Length: -0", "Content-Length: 4;", "Content-Length: 18446744073709551616",
        ] {
            target.refuses(post(headers, "abcd"), &[400]);
        }
    }

    fn attack_r03_codings_that_are_not_chunked(io) {
        let target = Target::start(io);
        for headers in [
            "Transfer-Encoding: xchunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding: ",
            "Transfer-Encoding: chunked, chunked", "Transfer-Encoding: \"chunked\"",
        ] {
            target.refuses(post(headers, "0\r\n\r\n"), &[400, 501]);
        }
    }

    fn attack_r04_header_lines_that_are_none(io) {
        let target = Target::start(io);
        for headers in [
            "Transfer-Encoding:\x0bchunked", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding : chunked", "X Y: z",
            ": empty", "no colon at all", "X\t: y", "X(: y",
        ] {
            target.refuses(get(headers), &[400, 501]);
        }
        target.refuses("GET / HTTP/1.1\r\n Host: a\r\n\r\n", &[400]);
        target.refuses("GET / HTTP/1.1\r\n\tX: y\r\nHost: a\r\n\r\n", &[400]);
    }

    fn attack_r05_http_1_0_with_a_coding_or_keep_alive(io) {
        let target = Target::start(io);
        target.refuses("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400, 426]);
        target.refuses("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400, 426]);
        target.refuses("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", &[400, 426]);
        for line in ["GET / HTTP/2.0", "GET / HTTP/1.2x", "GET / http/1.1", "GET /", "GET  / HTTP/1.1", "GET / HTTP/1.1 "] {
            target.refuses(format!("{line}\r\nHost: a\r\n\r\n"), &[400, 426, 505]);
        }
    }

    fn attack_r06_bare_line_feeds(io) {
        let target = Target::start(io);
        target.refuses("GET / HTTP/1.1\nHost: a\n\n", &[400]);
        target.refuses("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", &[400]);
        target.refuses("GET / HTTP/1.1\r\nHost: a\r\n\n", &[400]);
    }

    fn attack_r07_bare_carriage_returns(io) {
        let target = Target::start(io);
        target.refuses(get("X: a\rb"), &[400]);
        target.refuses(get("X: a\r"), &[400]);
        target.refuses("GET / HTTP/1.1\rX\r\nHost: a\r\n\r\n", &[400]);
    }

    fn attack_r08_nul_and_raw_bytes(io) {
        let target = Target::start(io);
        target.refuses(get("X: a\0b"), &[400]);
        target.refuses(get("X\0: a"), &[400]);
        target.refuses("GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
        target.refuses("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
        target.refuses("GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
        target.refuses("GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
    }

    fn attack_r09_folded_lines(io) {
        let target = Target::start(io);
        for fold in ["X: a\r\n b", "X: a\r\n\tb", "Transfer-Encoding:\r\n chunked"] {
            target.refuses_or(get(fold), &[400, 501], |seen| {
                assert_eq!(seen.headers.all("x"), ["a b"], "{}", show(&seen.head));
                assert!(!seen.head.windows(3).any(|window| window == b"\n b"), "a fold is not forwarded as one");
            });
        }
    }

    fn attack_r10_chunk_sizes_that_are_none(io) {
        let target = Target::start(io);
        for chunk in ["-1\r\n", "fffffffffffffffff\r\n", "0x1\r\na\r\n", "1\na\r\n", "1;a\nb\r\nc\r\n", "g\r\n", "\r\n", "1 \r\r\na", "+1\r\na\r\n"] {
            let mut client = target.proxy.connect();
            client.send(post("Transfer-Encoding: chunked", chunk).as_bytes()).unwrap();
            client.send(SMUGGLED.as_bytes()).ok();
            let response = client.read_response("POST").unwrap_or_else(|error| panic!("{chunk:?}: {error}"));
            assert_eq!(response.status, 400, "{chunk:?}");
            client.expect_closed(CLOSED_WITHIN).unwrap_or_else(|error| panic!("{chunk:?}: {error}"));
        }
        assert!(target.upstream.requests().iter().all(|seen| seen.target != "/smuggled"));
        assert_eq!(target.upstream.request_count(), 0, "no upstream saw a whole request");
    }

    fn attack_r11_chunk_data_longer_than_its_size(io) {
        let target = Target::start(io);
        let mut client = target.proxy.connect();
        client.send(post("Transfer-Encoding: chunked", "1\r\nabc\r\n0\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(client.read_response("POST").unwrap().status, 400);
        client.expect_closed(CLOSED_WITHIN).unwrap();
        assert_eq!(target.upstream.request_count(), 0);
        for wire in target.upstream.wires() {
            assert!(!wire.windows(3).any(|window| window == b"abc"), "{}", show(&wire));
        }
    }

    fn attack_r12_endless_chunk_extensions(io) {
        let target = Target::start(io);
        let mut client = target.proxy.connect();
        let extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(20_000));
        client.send(post("Transfer-Encoding: chunked", &extension).as_bytes()).unwrap();
        assert_eq!(client.read_response("POST").unwrap().status, 400);
        client.expect_closed(CLOSED_WITHIN).unwrap();
        let before = target.proxy.resident_bytes();
        let mut client = target.proxy.connect();
        client.send(post("Transfer-Encoding: chunked", "1;").as_bytes()).unwrap();
        let block = [b'x'; 4_096];
        let sent = (0..4_096).take_while(|_| client.send(&block).is_ok()).count();
        assert!(sent < 4_096, "16 MiB of extension were taken");
        assert!(target.proxy.resident_bytes().saturating_sub(before) < 8 << 20);
        assert_eq!(target.upstream.request_count(), 0);
    }

    fn attack_r13_heads_too_large(io) {
        let target = Target::start(io);
        let many: String = (0..101).map(|number| format!("X-{number}: y\r\n")).collect();
        target.refuses(get(many.trim_end()), &[431]);
        target.refuses(get(&format!("X: {}", "y".repeat(61 * 1024))), &[431]);
        target.refuses(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000)), &[414, 431]);
        let before = target.proxy.resident_bytes();
        let mut client = target.proxy.connect();
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").unwrap();
        let block = [b'y'; 4_096];
        let sent = (0..4_096).take_while(|_| client.send(&block).is_ok()).count();
        assert!(sent < 4_096, "a head of 16 MiB was taken");
        assert!(target.proxy.resident_bytes().saturating_sub(before) < 8 << 20);
        let just_fits: String = (0..90).map(|number| format!("X-{number}: y\r\n")).collect();
        target.passes(get(just_fits.trim_end()));
    }

    fn attack_r14_hosts_that_are_none(io) {
        let target = Target::start(io);
        for head in [
            "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a:port\r\n\r\n",
        ] {
            target.refuses(head, &[400]);
        }
    }

    fn attack_r15_the_targets_authority_beats_the_host_header(io) {
        let target = Target::start(io);
        let (_, seen) = target.passes("GET http://real.test/p?q HTTP/1.1\r\nHost: other.test\r\n\r\n");
        assert_eq!((seen.target.as_str(), seen.headers.all("host")), ("/p?q", vec!["real.test".to_owned()]));
        target.refuses("GET http://user@real.test/ HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
        target.refuses("GET ftp://real.test/ HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
    }

    fn attack_r16_a_fragment_in_the_path(io) {
        let target = Target::start(io);
        target.refuses("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
        target.refuses("GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", &[400]);
    }

    fn attack_r17_paths_that_climb(io) {
        let denied = route("/admin", json!({ "direct_response": { "status": 403 } }));
        let target = Target::behind(io, Upstream::named("reached"), vec![denied, route("/", forward("app"))]);
        for path in [
            "/admin", "/x/../admin", "/x/%2e%2e/admin", "/x/%2E./admin", "/./admin", "/x/y/../../admin/z", "/%61dmin",
            "\\..\\admin", "/x\\..\\admin",
        ] {
            let mut client = target.proxy.connect();
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
            let response = client.read_response("GET").unwrap();
            assert!([400, 403].contains(&response.status), "{path}: {}", response.status);
        }
        assert_eq!(target.upstream.request_count(), 0);
        for (path, seen_as) in [("/a%2fadmin", "/a%2fadmin"), ("//admin", "//admin"), ("/x/%2e%2e/y", "/y"), ("/a//b", "/a//b")] {
            let (_, seen) = target.passes(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(seen.target, seen_as, "{path}");
        }
        for path in ["/..", "/../x", "/x/../../y"] {
            target.refuses(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"), &[400]);
        }
    }

    fn attack_r18_connection_names_what_must_stay(io) {
        let target = Target::start(io);
        for name in ["host", "x-forwarded-for", "content-length", "transfer-encoding", "x-forwarded-proto"] {
            target.refuses_or(get(&format!("X-Forwarded-For: 9.9.9.9\r\nConnection: {name}")), &[400], |seen| {
                assert_eq!(seen.headers.all("host"), ["a"], "Connection: {name}");
                assert!(seen.headers.first("x-forwarded-for").is_some(), "Connection: {name}: {}", show(&seen.head));
            });
        }
        let (_, seen) = target.passes(get("Connection: x-hop\r\nX-Hop: 1\r\nX-End: 2"));
        assert_eq!((seen.headers.all("x-hop"), seen.headers.all("x-end")), (vec![], vec!["2".to_owned()]));
    }

    fn attack_r19_an_upgrade_to_h2c_is_dropped(io) {
        let target = Target::start(io);
        let (response, seen) = target.passes(get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"));
        assert_eq!(response.status, 200);
        for name in ["upgrade", "http2-settings", "connection"] {
            assert_eq!(seen.headers.all(name), Vec::<String>::new(), "{name}");
        }
    }

    fn attack_r20_an_upgrade_nobody_granted(io) {
        let target = Target::start(io);
        for upgrade in ["foo", "websocket"] {
            target.refuses(get(&format!("Connection: Upgrade\r\nUpgrade: {upgrade}")), &[400, 403]);
        }
        target.refuses("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", &[400, 403, 404, 405]);
    }

    fn attack_r21_a_body_nobody_reads_is_not_a_request(io) {
        let denied = route("/denied", json!({ "direct_response": { "status": 403 } }));
        let target = Target::behind(io, Upstream::named("reached"), vec![denied, route("/", forward("app"))]);
        let mut client = target.proxy.connect();
        let inner = SMUGGLED;
        client.send(format!("POST /denied HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()).as_bytes()).unwrap();
        assert_eq!(client.read_response("POST").unwrap().status, 403);
        // Drained or closed: a request of ours that follows is served as itself, or the connection is over.
        if client.send(b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
            && let Ok(response) = client.read_response("GET")
        {
            assert_eq!(response.text(), "reached");
        }
        assert!(target.upstream.requests().iter().all(|seen| seen.target == "/after"));
        let mut client = target.proxy.connect();
        client.send(format!("POST /denied HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{inner}").as_bytes()).unwrap();
        assert_eq!(client.read_response("POST").unwrap().status, 403);
        drop(client);
        assert!(target.upstream.requests().iter().all(|seen| seen.target == "/after"));
    }

    fn attack_r22_forged_hop_headers(io) {
        let upstream = Upstream::named("reached");
        let routes = table("main", vec![any_host(vec![route("/", forward("app"))])]);
        let edge = http(json!({ "route_config": routes, "use_remote_address": true }));
        let bootstrap = resource::bootstrap(vec![listener("main", edge)], vec![cluster("app", &[upstream.address()])]);
        let target = Target { proxy: Proxy::start(&ProxySetup::new(io, bootstrap)), upstream };
        let (_, seen) = target.passes(get(
            "X-Forwarded-Client-Cert: By=spiffe://a\r\nX-Envoy-Internal: true\r\nX-Envoy-Retry-On: 5xx\r\n\
             TE: trailers, gzip\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-For: 1.2.3.4\r\nConnection: keep-alive",
        ));
        for name in ["x-forwarded-client-cert", "x-envoy-internal", "x-envoy-retry-on", "keep-alive", "proxy-connection", "connection"] {
            assert_eq!(seen.headers.all(name), Vec::<String>::new(), "{name}: {}", show(&seen.head));
        }
        assert!(seen.headers.all("te").iter().all(|value| value == "trailers"), "{:?}", seen.headers.all("te"));
        assert_eq!(seen.headers.all("x-forwarded-proto"), ["http"]);
        let forwarded = seen.headers.all("x-forwarded-for").join(", ");
        assert!(forwarded.ends_with("127.0.0.1"), "the address that we saw comes last: {forwarded}");
    }

    fn attack_r23_answers_that_contradict_themselves(io) {
        for raw in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GARBAGE\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nX Y: z\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
            "HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ] {
            let (proxy, upstream) = answered(io, raw);
            let mut client = proxy.connect();
            let response = client.get("/bad").unwrap_or_else(|error| panic!("{raw:?}: {error}"));
            assert_eq!(response.status, 502, "{raw:?}");
            assert_eq!(response.fault_kind(), "upstream/response/malformed", "{raw:?}");
            assert_eq!(proxy.get("/good").unwrap().text(), "good", "{raw:?}");
            let seen = upstream.requests();
            assert_ne!(seen[0].connection, seen[1].connection, "{raw:?}: the connection was used again");
        }
    }

    fn attack_r24_answers_that_break_off(io) {
        for (raw, statuses) in [("", &[503][..]), ("HTTP/1.1 200 OK\r\nX: y", &[502, 503])] {
            let upstream = Upstream::start(move |request| match request.target.as_str() {
                "/bad" => Answer::raw(raw).then_close(),
                _ => Answer::ok("good"),
            });
            let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
            let response = proxy.get("/bad").unwrap();
            assert!(statuses.contains(&response.status), "{raw:?}: {}", response.status);
            assert!(response.fault_kind().starts_with("upstream/response/"), "{raw:?}: {}", response.fault_kind());
            assert_eq!(proxy.get("/good").unwrap().text(), "good");
        }
        for partial in [
            Answer::ok("part").announcing(100).then_close(), Answer::ok("part").announcing(100).then_reset(),
            Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\npa").then_close(),
            Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\npa\r\n").then_close(),
        ] {
            let upstream = Upstream::start(move |_| partial.clone());
            let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
            let mut client = proxy.connect();
            client.send_request("GET", "/", &[], b"").unwrap();
            let whole = client.read_response("GET");
            assert!(whole.is_err(), "a broken answer must not look whole: {whole:?}");
        }
    }

    fn a_flood_of_nonsense_leaves_the_others_alone(io) {
        let target = Target::start(io);
        let mut bystander = target.proxy.connect();
        for number in 0..200_u32 {
            let noise: Vec<u8> = (0..512_u32).map(|at| (number.wrapping_mul(2_654_435_761).wrapping_add(at * 97) >> 7).to_le_bytes()[0]).collect();
            let mut client: Downstream = target.proxy.connect();
            client.send(&noise).ok();
            drop(client);
            if number % 20 == 0 {
                assert_eq!(bystander.get("/").unwrap().text(), "reached");
            }
        }
        assert_eq!(bystander.get("/").unwrap().text(), "reached");
    }
}
