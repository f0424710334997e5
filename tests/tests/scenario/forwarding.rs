//! Bytes in, bytes out: bodies, framing, kept connections, interim answers, back-pressure.

use std::time::{Duration, Instant};

use outrigger_tests::world::downstream::{Downstream, Response};
use outrigger_tests::world::upstream::{Script, pattern, pattern_byte};
use outrigger_tests::world::{Answer, Gate, Io, Proxy, ProxySetup, Upstream, resource, wait_for};

const MIB: u64 = 1 << 20;

fn forwarding(io: Io, upstream: &Upstream) -> Proxy {
    Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])))
}

/// Reads a body of the pattern in pieces, so that a test holds no more than one of them.
fn assert_pattern(client: &mut Downstream, bytes: u64) {
    let mut at = 0;
    while at < bytes {
        let count = (bytes - at).min(64 * 1024);
        let read = client.read_bytes(usize::try_from(count).unwrap()).unwrap();
        let wrong = read.iter().zip(at..).position(|(byte, offset)| *byte != pattern_byte(offset));
        assert_eq!(wrong, None, "the body differs from byte {}", at + wrong.unwrap_or(0) as u64);
        at += count;
    }
}

/// Waits until a counter has not moved for a while, and gives it.
fn settled(what: &str, mut counter: impl FnMut() -> u64) -> u64 {
    const STILL: Duration = Duration::from_millis(400);
    let mut last = (counter(), Instant::now());
    wait_for(&format!("{what} to stand still"), Duration::from_secs(15), || {
        let now = counter();
        if now != last.0 {
            last = (now, Instant::now());
        }
        if now > 0 && last.1.elapsed() >= STILL { Ok(now) } else { Err(format!("{now}")) }
    })
}

on_both_drivers! {
    fn a_request_and_its_answer_pass_unchanged(io) {
        let upstream = Upstream::start(|_| Answer::status(203).header("x-answer", "a, b;c=\"d\"").body("an answer"));
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        let response = client
            .request("PUT", "/a/b%20c?d=e&f", &[("host", "shop.test"), ("x-ask", "one"), ("x-ask", "two")], b"a body")
            .unwrap();
        assert_eq!((response.status, response.text().as_str()), (203, "an answer"));
        assert_eq!(response.header("x-answer").as_deref(), Some("a, b;c=\"d\""));
        let seen = &upstream.requests()[0];
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/a/b%20c?d=e&f"));
        assert_eq!(seen.headers.all("host"), ["shop.test"]);
        assert_eq!(seen.headers.all("x-ask"), ["one", "two"]);
        assert_eq!(seen.body, b"a body");
        assert_eq!(seen.headers.all("content-length"), ["6"]);
        assert_eq!(seen.headers.all("transfer-encoding"), Vec::<String>::new());
    }

    fn connections_are_kept_on_both_sides(io) {
        let upstream = Upstream::named("kept");
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        for number in 0..50 {
            assert_eq!(client.get(&format!("/{number}")).unwrap().text(), "kept");
        }
        assert_eq!((upstream.connection_count(), upstream.request_count()), (1, 50));
    }

    fn a_connection_that_asks_to_be_closed_is_closed(io) {
        let upstream = Upstream::named("bye");
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        let response = client.request("GET", "/", &[("connection", "close")], b"").unwrap();
        assert!(response.says_close(), "{:?}", response.headers);
        client.expect_closed(Duration::from_secs(5)).unwrap();
        assert_eq!(upstream.requests()[0].headers.all("connection"), Vec::<String>::new());
        assert_eq!(proxy.get("/").unwrap().text(), "bye");
    }

    fn pipelined_requests_are_answered_in_order(io) {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/slow" => Answer::ok("slow").delay(Duration::from_millis(100)),
            other => Answer::ok(other.as_bytes()),
        });
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        let one = |target: &str, body: &str| {
            format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        client.send([one("/slow", "x"), one("/2", "yy"), one("/3", "")].concat().as_bytes()).unwrap();
        let texts: Vec<String> = (0..3).map(|_| client.read_response("POST").unwrap().text()).collect();
        assert_eq!(texts, ["slow", "/2", "/3"]);
        let bodies: Vec<Vec<u8>> = upstream.requests().into_iter().map(|request| request.body).collect();
        assert_eq!(bodies, [&b"x"[..], b"yy", b""]);
    }

    fn every_framing_passes_both_ways(io) {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/chunks" => Answer::status(200).chunks([&request.body[..], b"+"].into_iter().filter(|one| !one.is_empty())),
            "/close" => Answer::ok(request.body.clone()).until_close(),
            _ => Answer::ok(request.body.clone()),
        });
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        for (body, chunks) in [
            (&b"hello, world"[..], "5\r\nhello\r\n7;a=b\r\n, world\r\n0\r\n\r\n"),
            (b"", "0\r\n\r\n"),
            (b"0123456789abcdef", "10\r\n0123456789abcdef\r\n0\r\nX-Trailer: 1\r\n\r\n"),
        ] {
            let text = String::from_utf8_lossy(body).into_owned();
            for (target, wanted) in [("/", text.clone()), ("/chunks", format!("{text}+"))] {
                assert_eq!(client.request("POST", target, &[], body).unwrap().text(), wanted, "length to {target}");
                let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                // Byte by byte: a chunk may break anywhere.
                for byte in [head.as_bytes(), chunks.as_bytes()].concat() {
                    client.send(&[byte]).unwrap();
                }
                assert_eq!(client.read_response("POST").unwrap().text(), wanted, "chunks to {target}");
            }
            assert_eq!(proxy.connect().request("POST", "/close", &[], body).unwrap().text(), text);
        }
    }

    fn large_bodies_arrive_whole(io) {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/down" => Answer::status(200).pattern(8 * MIB + 17),
            "/down-chunks" => {
                let body = pattern(0, 3_000_000);
                Answer::status(200).chunks(body.chunks(70_001))
            }
            _ => Answer::ok(format!("{}", request.body == pattern(0, request.body.len()))),
        });
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        client.send_request("GET", "/down", &[], b"").unwrap();
        assert_eq!(client.read_response_head().unwrap().status, 200);
        assert_pattern(&mut client, 8 * MIB + 17);
        assert_eq!(client.get("/down-chunks").unwrap().body, pattern(0, 3_000_000));
        assert_eq!(client.request("POST", "/up", &[], &pattern(0, 5_000_001)).unwrap().text(), "true");
        client.send(b"POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for chunk in pattern(0, 2_000_000).chunks(99_991) {
            client.send(&[format!("{:X}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).unwrap();
        }
        client.send(b"0\r\n\r\n").unwrap();
        assert_eq!(client.read_response("POST").unwrap().text(), "true");
        assert_eq!(upstream.requests().last().unwrap().body.len(), 2_000_000);
    }

    fn answers_without_a_body_do_not_stall_the_connection(io) {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/204" => Answer::status(204),
            "/304" => Answer::raw("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 1000\r\n\r\n"),
            _ => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        });
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        for _ in 0..2 {
            let head = client.request("HEAD", "/head", &[], b"").unwrap();
            assert_eq!((head.status, head.header("content-length").as_deref()), (200, Some("1000")));
            let empty = client.get("/204").unwrap();
            assert_eq!((empty.status, empty.header("content-length")), (204, None));
            assert_eq!(client.get("/304").unwrap().status, 304);
        }
        assert_eq!(upstream.connection_count(), 1);
    }

    fn expect_100_continue_reaches_the_upstream_and_back(io) {
        let upstream = Upstream::start(|request| Answer::ok(request.body.clone()));
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").unwrap();
        assert_eq!(client.read_response_head().unwrap().status, 100);
        client.send(b"body").unwrap();
        let response = client.read_response("POST").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "body"));
        assert_eq!(client.get("/next").unwrap().status, 200);
    }

    fn a_refused_expectation_is_answered_without_the_body(io) {
        let mut script = Script::answer(|_| Answer::ok("late"));
        script.on_head = Box::new(|request| {
            (request.target == "/refuse").then(|| Answer::status(413).header("connection", "close").then_close())
        });
        script.continues = false;
        let upstream = Upstream::start_script(script);
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        client.send(b"POST /refuse HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 400000\r\n\r\n").unwrap();
        let response = client.read_response("POST").unwrap();
        assert_eq!(response.status, 413, "interim {:?}", response.interim);
        assert_eq!(proxy.get("/").unwrap().text(), "late");
    }

    fn an_early_answer_is_passed_on_while_the_body_is_still_coming(io) {
        let mut script = Script::answer(|_| Answer::ok("late"));
        script.on_head = Box::new(|request| {
            (request.target == "/early").then(|| Answer::status(401).header("connection", "close").body("no").then_close())
        });
        let upstream = Upstream::start_script(script);
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        client.send(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\npart").unwrap();
        let response = client.read_response("POST").unwrap();
        assert_eq!((response.status, response.text().as_str()), (401, "no"));
        assert_eq!(proxy.get("/").unwrap().text(), "late");
    }

    fn a_reader_that_stops_stops_the_upstream(io) {
        const SIZE: u64 = 96 * MIB;
        let upstream = Upstream::start(|_| Answer::status(200).pattern(SIZE));
        let proxy = forwarding(io, &upstream);
        let before = proxy.resident_bytes();
        let mut client = proxy.connect();
        client.send_request("GET", "/", &[], b"").unwrap();
        assert_eq!(client.read_response_head().unwrap().status, 200);
        let sent = settled("the upstream", || upstream.sent_bytes());
        let grown = proxy.resident_bytes().saturating_sub(before);
        assert!(sent < SIZE / 2, "{sent} bytes were taken from the upstream for a reader that reads nothing");
        assert!(grown < 24 * MIB, "memory grew by {grown} bytes for one slow reader");
        assert_pattern(&mut client, SIZE);
    }

    fn an_upstream_that_stops_stops_the_sender(io) {
        const SIZE: usize = 48 << 20;
        let gate = Gate::new();
        let mut script = Script::answer(|request| Answer::ok((request.body == pattern(0, SIZE)).to_string()));
        script.before_body = Some(gate.clone());
        let upstream = Upstream::start_script(script);
        let proxy = forwarding(io, &upstream);
        let before = proxy.resident_bytes();
        let address = proxy.listener("main");
        let sender = std::thread::spawn(move || -> std::io::Result<Response> {
            let mut client = Downstream::connect(address)?;
            client.set_patience(Duration::from_secs(30))?;
            client.request("POST", "/", &[], &pattern(0, SIZE))
        });
        upstream_has_a_connection(&upstream);
        let received = settled("the upstream's socket", || upstream.received_bytes());
        let grown = proxy.resident_bytes().saturating_sub(before);
        assert!(received < SIZE as u64 / 2, "{received} bytes");
        assert!(grown < 24 * MIB, "memory grew by {grown} bytes for one slow upstream");
        gate.open();
        assert_eq!(sender.join().unwrap().unwrap().text(), "true");
    }

    fn many_connections_at_once_get_their_own_answers(io) {
        let upstream = Upstream::start(|request| Answer::ok(request.target.as_bytes()));
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])).workers(2));
        let mut clients: Vec<Downstream> = (0..100).map(|_| proxy.connect()).collect();
        for round in 0..5 {
            for (number, client) in clients.iter_mut().enumerate() {
                client.send_request("GET", &format!("/{round}/{number}"), &[], b"").unwrap();
            }
            for (number, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.read_response("GET").unwrap().text(), format!("/{round}/{number}"));
            }
        }
    }

    fn an_http_1_0_request_is_refused(io) {
        let upstream = Upstream::named("never");
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
        let response = client.read_response("GET").unwrap();
        assert_eq!((response.status, response.fault_kind().as_str()), (426, "downstream/parse/bad-version"));
        assert_eq!(upstream.request_count(), 0);
    }
}

fn upstream_has_a_connection(upstream: &Upstream) {
    wait_for("a connection at the upstream", Duration::from_secs(5), || {
        if upstream.connection_count() > 0 { Ok(()) } else { Err("none".to_owned()) }
    });
}
