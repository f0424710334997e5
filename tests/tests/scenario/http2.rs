//! HTTP/2 on either side or both: what passes, how streams share connections, and what an end of one does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_tests::world::h2::frame::{code, flag, kind, setting};
use outrigger_tests::world::h2::{Frame, H2Script, Link, LinkSetup, Outcome};
use outrigger_tests::world::resource::{self, forward, http2, http2_cluster, merge, plain, route};
use outrigger_tests::world::upstream::{Recorded, pattern};
use outrigger_tests::world::{Answer, Gate, H2Answer, H2Upstream, Io, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};

use super::mixes::{App, Client, Http, MIXES, Reply, authority, slow_reader};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(5);

/// A proxy whose only route has these settings, before HTTP/2 endpoints.
fn routed(io: Io, upstream: &H2Upstream, action: Value) -> Proxy {
    let action = merge(forward("app"), json!({ "route": action }));
    let clusters = vec![http2_cluster("app", &[upstream.address()])];
    Proxy::start(&ProxySetup::new(io, plain(vec![route("/", action)], clusters)))
}

fn behind(io: Io, upstream: &H2Upstream) -> Proxy {
    routed(io, upstream, json!({}))
}

fn field_lines(request: &Recorded, name: &str) -> Vec<String> {
    request.headers.all(name)
}

/// Streams that were open at once on one connection, at most: an END_STREAM of ours ends one.
fn streams_of(upstream: &H2Upstream) -> Vec<usize> {
    upstream.links().iter().map(|link| link.look(|state| state.streams.len())).collect()
}

on_both_drivers! {
    fn every_mix_passes_heads_and_bodies(io) {
        for (down, up) in MIXES {
            let app = App::start(up, |request| {
                Reply::status(203).header("x-answer", "a, b;c=\"d\"").header("x-two", "1").header("x-two", "2").with_body(&request.body)
            });
            let proxy = app.behind(io);
            let mut client = Client::connect(down, &proxy);
            for (number, size) in [0, 1, 4_095, 16_385, 65_536, 1_000_003].into_iter().enumerate() {
                let body = pattern(0, size);
                let headers = [("x-ask", "one"), ("x-ask", "two")];
                let response = client.request("PUT", "/a/b%20c?d=e&f", &headers, &body);
                assert_eq!(response.status, 203, "{down:?} to {up:?}, {size} bytes");
                assert!(response.body == body, "{down:?} to {up:?}: {size} bytes came back changed");
                assert_eq!(response.headers.all("x-two"), ["1", "2"]);
                assert_eq!(response.header("x-answer").as_deref(), Some("a, b;c=\"d\""));
                let seen = &app.requests()[number];
                assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/a/b%20c?d=e&f"));
                assert_eq!(field_lines(seen, "x-ask"), ["one", "two"], "{down:?} to {up:?}");
                assert_eq!(authority(seen), ["test"], "{down:?} to {up:?}");
                assert!(seen.body == body, "{down:?} to {up:?}: {size} bytes arrived changed");
            }
        }
    }

    fn a_body_in_any_pieces_arrives_whole(io) {
        for up in [Http::One, Http::Two] {
            let app = App::echo(up);
            let proxy = app.behind(io);
            let client = proxy.connect_h2();
            let body = pattern(0, 40_000);
            for piece in [1, 7, 1_000, 16_384] {
                let sent = &body[..body.len().min(piece * 2_000)];
                let stream = client.open("POST", "/", &[], false).unwrap();
                for bytes in sent.chunks(piece) {
                    client.send_body(stream, bytes, false).unwrap();
                }
                client.send_body(stream, b"", true).unwrap();
                assert!(client.outcome(stream).answer().body == sent, "{up:?}: pieces of {piece}");
            }
            let padded = Frame::new(kind::DATA, flag::PADDED, 0, [&[3][..], b"padded", &[0; 3]].concat());
            let stream = client.open("POST", "/", &[], false).unwrap();
            client.send(&Frame { stream, ..padded }).unwrap();
            client.send_body(stream, b"", true).unwrap();
            assert_eq!(client.outcome(stream).answer().text(), "padded");
        }
    }

    fn the_preface_may_come_in_any_pieces(io) {
        let app = App::echo(Http::One);
        let proxy = app.behind(io);
        let mut wire = outrigger_tests::world::h2::frame::PREFACE.to_vec();
        wire.extend(Frame::settings(&[]).bytes());
        wire.extend(Frame::ping(*b"preface.").bytes());
        let mut client = proxy.connect();
        for byte in wire {
            client.send(&[byte]).unwrap();
        }
        let head = client.read_bytes(9).unwrap();
        assert_eq!(head[3], kind::SETTINGS, "the first frame of a server is SETTINGS: {head:?}");
    }

    fn trailers_pass(io) {
        for (down, up) in MIXES {
            let app = App::start(up, |_| Reply { trailers: vec![("x-sum", "42"), ("x-end", "yes")], ..Reply::ok("body") });
            let both = json!({ "http_protocol_options": { "enable_trailers": true } });
            let app_cluster = match up {
                Http::One => merge(app.cluster(), one_with_trailers()),
                Http::Two => app.cluster(),
            };
            let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(both, app_cluster)));
            let mut client = Client::connect(down, &proxy);
            let response = client.request("GET", "/", &[("te", "trailers")], b"");
            assert_eq!(response.text(), "body");
            assert_eq!(response.trailers.all("x-sum"), ["42"], "answer, {down:?} to {up:?}");
            assert_eq!(response.trailers.all("x-end"), ["yes"], "answer, {down:?} to {up:?}");
            if let Client::Two(client) = &client {
                let stream = client.open("POST", "/", &[], false).unwrap();
                client.send_body(stream, b"up", false).unwrap();
                client.send_fields(stream, &[("x-up", "1")], true).unwrap();
                assert_eq!(client.outcome(stream).answer().status, 200);
                let seen = app.requests().pop().unwrap();
                assert_eq!((seen.body.as_slice(), seen.trailers.all("x-up")), (&b"up"[..], vec!["1".to_owned()]), "to {up:?}");
            }
        }
    }

    fn trailers_that_http_1_is_not_to_have_are_dropped(io) {
        let app = App::start(Http::Two, |_| Reply { trailers: vec![("x-sum", "42")], ..Reply::ok("body") });
        let proxy = app.behind(io);
        let response = proxy.get("/").unwrap();
        assert_eq!((response.text().as_str(), response.trailers.0.len()), ("body", 0));
    }

    fn answers_without_a_body_leave_the_connection_usable(io) {
        for (down, up) in MIXES {
            let app = App::start(up, |request| match request.target.as_str() {
                "/204" => Reply::status(204),
                "/304" => Reply::status(304).header("etag", "\"a\""),
                _ if request.method == "HEAD" => Reply::status(200).header("content-length", "1000"),
                _ => Reply::ok("ok"),
            });
            let app = match (up, app) {
                // An HTTP/1 server's HEAD has a length and no body; the scripted one would send it.
                (Http::One, _) => App::One(Upstream::start(|request| match request.target.as_str() {
                    "/204" => Answer::status(204),
                    "/304" => Answer::status(304).header("etag", "\"a\""),
                    "/head" => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
                    _ => Answer::ok("ok"),
                })),
                (Http::Two, app) => app,
            };
            let proxy = app.behind(io);
            let mut client = Client::connect(down, &proxy);
            for _ in 0..2 {
                let head = client.request("HEAD", "/head", &[], b"");
                assert_eq!((head.status, head.header("content-length").as_deref()), (200, Some("1000")), "{down:?} to {up:?}");
                assert_eq!(client.get("/204").status, 204, "{down:?} to {up:?}");
                assert_eq!(client.get("/304").status, 304, "{down:?} to {up:?}");
                assert_eq!(client.get("/").text(), "ok", "{down:?} to {up:?}");
            }
        }
    }

    fn an_expectation_is_answered_before_the_body(io) {
        for (down, up) in MIXES {
            let app = App::echo(up);
            let proxy = app.behind(io);
            let expect = [("expect", "100-continue"), ("content-length", "4")];
            match down {
                Http::One => {
                    let mut client = proxy.connect();
                    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").unwrap();
                    if up == Http::One || !proxy.is_ours() {
                        assert_eq!(client.read_response_head().unwrap().status, 100);
                    }
                    client.send(b"body").unwrap();
                    assert_eq!(client.read_response("POST").unwrap().text(), "body", "{down:?} to {up:?}");
                }
                Http::Two => {
                    let client = proxy.connect_h2();
                    let stream = client.open("POST", "/", &expect, false).unwrap();
                    if up == Http::One {
                        client.wait("100", |state| state.stream(stream).blocks.first().cloned());
                    }
                    client.send_body(stream, b"body", true).unwrap();
                    assert_eq!(client.outcome(stream).answer().text(), "body", "{down:?} to {up:?}");
                }
            }
        }
    }

    fn interim_answers_pass_between_two_ends_of_http_2(io) {
        let upstream = H2Upstream::start(|_| H2Answer::ok("done").after_interim(103));
        let proxy = behind(io, &upstream);
        let response = proxy.connect_h2().get("/").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "done"));
        if proxy.is_ours() {
            assert_eq!(response.interim, [103]);
        }
    }

    fn a_head_larger_than_a_frame_passes(io) {
        let value = "v".repeat(700);
        for (down, up) in MIXES {
            let answered = value.clone();
            let app = App::start(up, move |_| (0..50).fold(Reply::ok("big"), |reply, _| reply.header("x-big", &answered)));
            let proxy = app.behind_with(io, json!({ "max_request_headers_kb": 60 }));
            let mut client = Client::connect(down, &proxy);
            let names: Vec<String> = (0..50).map(|number| format!("x-big-{number}")).collect();
            let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
            let response = client.request("GET", "/", &headers, b"");
            assert_eq!((response.status, response.headers.all("x-big").len()), (200, 50), "{down:?} to {up:?}");
            let seen = &app.requests()[0];
            assert!(names.iter().all(|name| seen.headers.all(name) == [value.as_str()]), "{down:?} to {up:?}");
        }
    }

    fn cookie_crumbs_are_joined_for_http_1(io) {
        let app = App::echo(Http::One);
        let proxy = app.behind(io);
        let crumbs = [("cookie", "a=1"), ("x-between", "x"), ("cookie", "b=2"), ("cookie", "c=3")];
        assert_eq!(proxy.connect_h2().request("GET", "/", &crumbs, b"").unwrap().status, 200);
        assert_eq!(app.requests()[0].headers.all("cookie"), ["a=1; b=2; c=3"]);
    }

    fn hop_by_hop_fields_end_at_the_proxy(io) {
        for up in [Http::One, Http::Two] {
            let app = App::start(up, move |_| {
                let reply = Reply::ok("x").header("x-end", "1");
                if up == Http::One { reply.header("keep-alive", "timeout=5").header("connection", "x-hop").header("x-hop", "1") } else { reply }
            });
            let proxy = app.behind(io);
            let hops = [("connection", "keep-alive, x-hop"), ("keep-alive", "timeout=5"), ("x-hop", "1"), ("te", "trailers"), ("proxy-connection", "keep-alive")];
            proxy.connect().request("GET", "/", &hops, b"").unwrap();
            let seen = &app.requests()[0];
            for name in ["keep-alive", "x-hop", "proxy-connection", "transfer-encoding", "upgrade"] {
                assert_eq!(seen.headers.all(name), Vec::<String>::new(), "{name} to {up:?}");
            }
            if up == Http::Two {
                assert_eq!(seen.headers.all("connection"), Vec::<String>::new());
                assert_eq!(seen.headers.all("host"), Vec::<String>::new(), ":authority takes its place");
            }
            let response = proxy.connect_h2().request("GET", "/", &[("te", "trailers")], b"").unwrap();
            for name in ["keep-alive", "connection", "x-hop", "transfer-encoding"] {
                assert_eq!(response.headers.all(name), Vec::<String>::new(), "{name} from {up:?}");
            }
            assert_eq!(response.header("x-end").as_deref(), Some("1"));
            if up == Http::Two {
                assert_eq!(app.requests()[1].headers.all("te"), ["trailers"], "gRPC needs it");
            }
        }
    }

    fn authority_and_host_say_the_same(io) {
        for up in [Http::One, Http::Two] {
            let app = App::echo(up);
            let proxy = app.behind(io);
            let client = proxy.connect_h2();
            client.request("GET", "/", &[(":authority", "shop.test:8080")], b"").unwrap();
            let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "host.test")];
            let stream = client.next_stream();
            client.send_fields(stream, &fields, true).unwrap();
            client.outcome(stream).answer();
            proxy.connect().request("GET", "/", &[("host", "one.test")], b"").unwrap();
            let seen: Vec<Vec<String>> = app.requests().iter().map(authority).collect();
            assert_eq!(seen, [["shop.test:8080"], ["host.test"], ["one.test"]], "to {up:?}");
        }
    }

    fn a_stream_does_not_wait_for_another(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = H2Upstream::start(move |request| match request.target.as_str() {
            "/held" => H2Answer::ok("held").after(&held),
            _ => H2Answer::ok("quick"),
        });
        let proxy = behind(io, &upstream);
        let client = proxy.connect_h2();
        let slow = client.send_request("GET", "/held", &[], b"").unwrap();
        upstream.wait_requests(1);
        for _ in 0..20 {
            assert_eq!(client.get("/").unwrap().text(), "quick");
        }
        assert_eq!(upstream.links().len(), 1, "they share one connection");
        gate.open();
        assert_eq!(client.outcome(slow).answer().text(), "held");
    }

    fn many_requests_share_one_connection(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = H2Upstream::start(move |request| match request.target.as_str() {
            "/first" => H2Answer::ok("first"),
            target => H2Answer::ok(target.to_owned()).after(&held),
        });
        let proxy = behind(io, &upstream);
        let clients = [proxy.connect_h2(), proxy.connect_h2()];
        assert_eq!(clients[0].get("/first").unwrap().text(), "first");
        let asked: Vec<(usize, u32)> = (0..100)
            .map(|number| (number % 2, clients[number % 2].send_request("GET", &format!("/{number}"), &[], b"").unwrap()))
            .collect();
        upstream.wait_requests(101);
        assert_eq!(streams_of(&upstream), [101], "one connection carries all");
        gate.open();
        for (number, (client, stream)) in asked.into_iter().enumerate() {
            assert_eq!(clients[client].outcome(stream).answer().text(), format!("/{number}"));
        }
    }

    fn an_early_answer_arrives_before_the_body_ends(io) {
        for up in [Http::One, Http::Two] {
            let app = App::early(up, |request| (request.target == "/early").then(|| Reply::status(401).with_body(b"no")));
            let proxy = app.behind(io);
            let client = proxy.connect_h2();
            let stream = client.open("POST", "/early", &[("content-length", "100000")], false).unwrap();
            client.send_body(stream, b"part", false).unwrap();
            let response = client.outcome(stream).answer();
            assert_eq!((response.status, response.text().as_str()), (401, "no"), "{up:?}");
            assert_eq!(client.get("/").unwrap().text(), "late", "{up:?}: the connection goes on");
        }
        let app = App::early(Http::Two, |request| (request.target == "/early").then(|| Reply::status(401).with_body(b"no")));
        let proxy = app.behind(io);
        let mut client = proxy.connect();
        client.send(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\npart").unwrap();
        let response = client.read_response("POST").unwrap();
        assert_eq!((response.status, response.text().as_str()), (401, "no"));
    }

    fn a_client_that_resets_is_told_upstream(io) {
        let upstream = H2Upstream::start(|request| match request.target.as_str() {
            "/never" => H2Answer::never(),
            _ => H2Answer::ok("on"),
        });
        let proxy = behind(io, &upstream);
        let client = proxy.connect_h2();
        let stream = client.send_request("GET", "/never", &[], b"").unwrap();
        upstream.wait_requests(1);
        client.send(&Frame::reset(stream, code::CANCEL)).unwrap();
        let link = upstream.wait_link(1);
        let told = link.wait("RST_STREAM at the upstream", |state| state.streams.values().find_map(|stream| stream.reset));
        if proxy.is_ours() {
            assert_eq!(told, code::CANCEL);
        }
        assert_eq!(client.get("/").unwrap().text(), "on");
        assert_eq!(upstream.links().len(), 1, "the connection goes on");
        // One that closes its connection is told too.
        let mut other = proxy.connect();
        other.send_request("GET", "/never", &[], b"").unwrap();
        upstream.wait_requests(3);
        drop(other);
        link.wait("a second RST_STREAM", |state| (state.count(kind::RST_STREAM) >= 2).then_some(()));
    }

    fn a_client_that_resets_closes_an_http_1_upstream(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |request| match request.target.as_str() {
            "/held" => Answer::ok("late").after(&held),
            _ => Answer::ok("on"),
        });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let client = proxy.connect_h2();
        let stream = client.send_request("GET", "/held", &[], b"").unwrap();
        upstream.wait_requests(1);
        client.send(&Frame::reset(stream, code::CANCEL)).unwrap();
        gate.open();
        assert_eq!(client.get("/").unwrap().text(), "on");
        let seen = upstream.requests();
        assert_ne!(seen[0].connection, seen[1].connection, "a connection with an answer under way is not used again");
    }

    fn an_upstream_that_breaks_off_resets_the_stream(io) {
        let partial = |target: &str| match target {
            "/reset" => Some(H2Answer::status(200).then("part").then_reset(code::INTERNAL_ERROR)),
            "/closed" => Some(H2Answer::status(200).then("part").then_close()),
            _ => None,
        };
        let upstream = H2Upstream::start(move |request| partial(&request.target).unwrap_or_else(|| H2Answer::ok("whole")));
        let proxy = behind(io, &upstream);
        let client = proxy.connect_h2();
        for target in ["/reset", "/closed"] {
            let stream = client.send_request("GET", target, &[], b"").unwrap();
            assert!(matches!(client.outcome(stream), Outcome::Reset(_)), "{target}");
            assert_eq!(client.get("/").unwrap().text(), "whole", "{target}: the connection goes on");
            let mut one = proxy.connect();
            one.send_request("GET", target, &[], b"").unwrap();
            assert!(one.read_response("GET").is_err(), "{target}: must not look whole");
        }
        let broken = Upstream::start(|_| Answer::ok("part").announcing(100).then_close());
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[broken.address()])));
        let client = proxy.connect_h2();
        let stream = client.send_request("GET", "/", &[], b"").unwrap();
        assert!(matches!(client.outcome(stream), Outcome::Reset(_)));
    }

    fn an_upstream_that_fails_before_its_head_is_answered_for(io) {
        let upstream = H2Upstream::start(|request| match request.target.as_str() {
            "/reset" => H2Answer::reset(code::INTERNAL_ERROR),
            "/close" => H2Answer::close(),
            _ => H2Answer::ok("fine"),
        });
        let proxy = behind(io, &upstream);
        for target in ["/reset", "/close"] {
            for version in [Http::One, Http::Two] {
                let response = Client::connect(version, &proxy).request("POST", target, &[], b"x");
                assert!([502, 503].contains(&response.status), "{target}: {}", response.status);
                if proxy.is_ours() {
                    assert!(response.fault_kind().starts_with("upstream/"), "{target}: {:?}", response.headers);
                }
            }
        }
        assert_eq!(proxy.connect_h2().get("/").unwrap().text(), "fine");
    }

    fn a_refused_stream_is_sent_again(io) {
        let upstream = H2Upstream::start(|request| match request.number {
            0 => H2Answer::reset(code::REFUSED_STREAM),
            _ => H2Answer::ok(request.body.clone()),
        });
        let retry = json!({ "retry_policy": { "retry_on": "refused-stream", "num_retries": 2 } });
        let proxy = routed(io, &upstream, retry);
        let response = proxy.connect_h2().request("POST", "/order", &[], b"one order").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "one order"), "POST: nothing was processed");
        assert_eq!(upstream.request_count(), 2);
    }

    fn a_stream_that_failed_otherwise_is_not_sent_again(io) {
        let upstream = H2Upstream::start(|_| H2Answer::reset(code::INTERNAL_ERROR));
        let retry = json!({ "retry_policy": { "retry_on": "refused-stream,connect-failure", "num_retries": 2 } });
        let proxy = routed(io, &upstream, retry);
        let response = proxy.connect_h2().request("POST", "/order", &[], b"one order").unwrap();
        assert!([502, 503].contains(&response.status), "{}", response.status);
        assert_eq!(upstream.request_count(), 1, "it may have been processed");
    }

    fn a_go_away_loses_no_request(io) {
        // Each third request meets a GOAWAY that says that it was not processed.
        let count = AtomicUsize::new(0);
        let leaving = H2Upstream::start(move |request| match count.fetch_add(1, Ordering::SeqCst) % 3 {
            2 => H2Answer::unprocessed(),
            _ => H2Answer::ok(request.body.clone()),
        });
        let retry = json!({ "retry_policy": { "retry_on": "refused-stream,reset,connect-failure", "num_retries": 3 } });
        let proxy = routed(io, &leaving, retry);
        let client = proxy.connect_h2();
        for number in 0..20 {
            let body = format!("order {number}");
            let response = client.request("POST", "/", &[], body.as_bytes()).unwrap();
            assert_eq!((response.status, response.text()), (200, body), "request {number}");
        }
    }

    fn a_go_away_lets_its_streams_finish(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = H2Upstream::start(move |request| match request.target.as_str() {
            "/held" => H2Answer::ok("finished").after(&held).going_away(code::NO_ERROR),
            _ => H2Answer::ok("new"),
        });
        let proxy = behind(io, &upstream);
        let client = proxy.connect_h2();
        let stream = client.send_request("GET", "/held", &[], b"").unwrap();
        upstream.wait_requests(1);
        wait_for("a request on another connection", SOON, || {
            let text = client.get("/").map_err(|error| error.to_string())?.text();
            if text == "new" && upstream.links().len() == 2 { Ok(()) } else { Err(text) }
        });
        gate.open();
        assert_eq!(client.outcome(stream).answer().text(), "finished");
    }

    fn an_announced_limit_of_streams_opens_more_connections(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let script = H2Script::answer(move |request| match request.target.as_str() {
            "/first" => H2Answer::ok("first"),
            target => H2Answer::ok(target.to_owned()).after(&held),
        });
        let upstream = H2Upstream::start_script(script.settings(&[(setting::MAX_CONCURRENT_STREAMS, 1)]));
        let proxy = behind(io, &upstream);
        let client = proxy.connect_h2();
        // The settings are known once something was answered.
        assert_eq!(client.get("/first").unwrap().text(), "first");
        let streams: Vec<u32> = (0..3).map(|number| client.send_request("GET", &format!("/{number}"), &[], b"").unwrap()).collect();
        upstream.wait_requests(4);
        assert!(upstream.links().len() >= 2, "{:?}", streams_of(&upstream));
        gate.open();
        for (number, stream) in streams.into_iter().enumerate() {
            assert_eq!(client.outcome(stream).answer().text(), format!("/{number}"));
        }
    }

    fn our_own_limit_of_streams_binds_upstream(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = H2Upstream::start(move |request| H2Answer::ok(request.target.clone()).after(&held));
        let app = merge(resource::cluster("app", &[upstream.address()]), http2(json!({ "max_concurrent_streams": 2 })));
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(json!({}), app)));
        let client = proxy.connect_h2();
        let streams: Vec<u32> = (0..6).map(|number| client.send_request("GET", &format!("/{number}"), &[], b"").unwrap()).collect();
        upstream.wait_requests(6);
        assert_eq!(streams_of(&upstream), [2, 2, 2]);
        gate.open();
        for (number, stream) in streams.into_iter().enumerate() {
            assert_eq!(client.outcome(stream).answer().text(), format!("/{number}"));
        }
    }

    fn our_own_limit_of_streams_is_told_downstream(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = H2Upstream::start(move |_| H2Answer::ok("held").after(&held));
        let limit = json!({ "http2_protocol_options": { "max_concurrent_streams": 2 } });
        let app = http2_cluster("app", &[upstream.address()]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(limit, app)));
        let client = proxy.connect_h2();
        let told = client.wait("SETTINGS", |state| state.settings.get(&setting::MAX_CONCURRENT_STREAMS).copied());
        assert_eq!(told, 2);
        let streams: Vec<u32> = (0..2).map(|_| client.send_request("GET", "/", &[], b"").unwrap()).collect();
        upstream.wait_requests(2);
        let third = client.send_request("GET", "/", &[], b"").unwrap();
        let refused = client.outcome(third).reset();
        assert!([code::REFUSED_STREAM, code::PROTOCOL_ERROR].contains(&refused), "RFC 9113 5.1.2: code {refused}");
        gate.open();
        for stream in streams {
            assert_eq!(client.outcome(stream).answer().text(), "held");
        }
        assert_eq!(client.get("/").unwrap().text(), "held");
    }

    fn a_slow_reader_holds_its_own_stream_only(io) {
        const SIZE: u64 = 32 * MIB;
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/big" => Answer::status(200).pattern(SIZE),
            _ => Answer::ok("quick"),
        });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let before = proxy.resident_bytes();
        let client = slow_reader(&proxy, 65_535);
        client.grant(0, 1 << 30).unwrap();
        let slow = client.send_request("GET", "/big", &[], b"").unwrap();
        client.wait("a full window", |state| (state.stream(slow).body.len() == 65_535).then_some(()));
        for _ in 0..50 {
            assert_eq!(client.get("/").unwrap().text(), "quick");
        }
        let sent = upstream.sent_bytes();
        let grown = proxy.resident_bytes().saturating_sub(before);
        if proxy.is_ours() {
            assert!(sent < SIZE / 2, "{sent} bytes were taken for a reader that reads nothing");
            assert!(grown < 16 * MIB, "memory grew by {grown} bytes for one slow stream");
        }
        client.grant(slow, 1 << 30).unwrap();
        assert!(client.outcome(slow).answer().body == pattern(0, SIZE as usize), "the rest arrives whole");
    }

    fn a_slow_upstream_holds_its_own_stream_only(io) {
        let (script, gate) = holding_script();
        let upstream = H2Upstream::start_script(script);
        let proxy = behind(io, &upstream);
        let before = proxy.resident_bytes();
        let client = proxy.connect_h2();
        let slow = client.open("POST", "/slow", &[], false).unwrap();
        let body = pattern(0, 24 << 20);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| client.send_body(slow, &body, true));
            let link = upstream.wait_link(1);
            link.wait("the first bytes", |state| state.streams.values().any(|stream| !stream.body.is_empty()).then_some(()));
            for _ in 0..20 {
                assert_eq!(client.get("/quick").unwrap().text(), "quick");
            }
            let grown = proxy.resident_bytes().saturating_sub(before);
            if proxy.is_ours() {
                assert!(grown < 16 * MIB, "memory grew by {grown} bytes for one slow upstream");
            }
            gate.open();
            let granted = link.look(|state| *state.streams.keys().next().unwrap());
            link.grant(granted, 1 << 30).unwrap();
            link.grant(0, 1 << 30).unwrap();
            sending.join().unwrap().unwrap();
        });
        assert_eq!(client.outcome(slow).answer().text(), format!("{}", body.len()));
    }

    fn a_thousand_stalled_streams_leave_the_others_alone(io) {
        const STALLED: usize = 1_000;
        let upstream = H2Upstream::puppet(LinkSetup::default(), fill_windows);
        // The limits of a cluster's requests are 1024 without this.
        let many = json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 4_000, "max_pending_requests": 4_000 }] } });
        let app = merge(http2_cluster("app", &[upstream.address()]), many);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(json!({}), app)));
        let other = proxy.connect_h2();
        // The median: of a machine that does other things meanwhile, the tail says nothing about the proxy.
        let ask = |count: usize| {
            let mut times: Vec<Duration> = (0..count)
                .map(|_| {
                    let begun = Instant::now();
                    assert_eq!(other.get("/quick").unwrap().text(), "quick");
                    begun.elapsed()
                })
                .collect();
            times.sort();
            (times[count / 2], times[count * 99 / 100])
        };
        let before = (ask(200), proxy.resident_bytes());
        let stalled = slow_reader(&proxy, 1);
        for _ in 0..STALLED {
            stalled.send_request("GET", "/big", &[], b"").unwrap();
        }
        let one_byte_each = |state: &outrigger_tests::world::h2::link::LinkState| {
            (state.streams.values().filter(|stream| stream.body.len() == 1).count() == STALLED).then_some(())
        };
        stalled.wait("a byte on each stream", one_byte_each);
        let during = ask(200);
        let grown = proxy.resident_bytes().saturating_sub(before.1);
        if proxy.is_ours() {
            let (alone, beside) = (before.0.0, during.0);
            assert!(beside < alone * 5 + Duration::from_millis(20), "median {alone:?} alone, {beside:?} beside them");
            assert!(grown < STALLED as u64 * 128 * 1024, "{} KiB a stalled stream", grown / 1024 / STALLED as u64);
        }
        println!("{io:?}: median and p99 {:?} alone, {during:?} beside; {} KiB a stalled stream", before.0, grown / 1024 / STALLED as u64);
    }

    fn sigterm_lets_streams_finish(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = H2Upstream::start(move |request| match request.target.as_str() {
            "/held" => H2Answer::ok("finished").after(&held),
            _ => H2Answer::ok("quick"),
        });
        let mut proxy = behind(io, &upstream);
        let (idle, busy) = (proxy.connect_h2(), proxy.connect_h2());
        assert_eq!(idle.get("/").unwrap().text(), "quick");
        let stream = busy.send_request("GET", "/held", &[], b"").unwrap();
        upstream.wait_requests(2);
        proxy.terminate();
        assert_eq!(busy.wait_go_away().1, code::NO_ERROR);
        assert_eq!(idle.wait_go_away().1, code::NO_ERROR);
        idle.wait_end();
        gate.open();
        assert_eq!(busy.outcome(stream).answer().text(), "finished");
        let status = proxy.process().wait_exit(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(0), "{:?}", proxy.log());
    }

    fn an_idle_connection_ends_with_a_go_away(io) {
        let app = App::echo(Http::One);
        let proxy = app.behind_with(io, json!({ "common_http_protocol_options": { "idle_timeout": "0.3s" } }));
        let client = proxy.connect_h2();
        assert_eq!(client.get("/").unwrap().status, 200);
        assert_eq!(client.wait_go_away().1, code::NO_ERROR);
        client.wait_end();
    }

    fn a_codec_that_is_said_is_kept_to(io) {
        let app = App::echo(Http::One);
        let proxy = app.behind_with(io, json!({ "codec_type": "HTTP2" }));
        assert_eq!(proxy.connect_h2().get("/").unwrap().status, 200);
        let mut one = proxy.connect();
        one.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let answered = one.read_to_end().unwrap_or_default();
        assert!(!answered.starts_with(b"HTTP/1.1 200"), "{}", answered.escape_ascii());
        let proxy = app.behind_with(io, json!({ "codec_type": "HTTP1" }));
        assert_eq!(proxy.get("/").unwrap().status, 200);
        let two = proxy.connect_h2();
        assert!(two.send_request("GET", "/", &[], b"").map_or(true, |stream| matches!(two.outcome(stream), Outcome::Over(_))));
    }

    fn a_silent_upstream_is_found_by_pings(io) {
        let upstream = H2Upstream::puppet(LinkSetup { acknowledges: false, ..LinkSetup::default() }, |link| {
            link.send(&Frame::new(kind::SETTINGS, flag::ACK, 0, [])).ok();
            link.try_wait("the end", Duration::from_secs(30), |state| state.end.clone()).ok();
        });
        let keepalive = json!({ "connection_keepalive": { "interval": "0.2s", "timeout": "0.2s" } });
        let app = merge(resource::cluster("app", &[upstream.address()]), http2(keepalive));
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(json!({}), app)));
        let response = proxy.connect_h2().request("POST", "/", &[], b"x").unwrap();
        assert!([502, 503].contains(&response.status), "{}", response.status);
        let link = upstream.wait_link(1);
        assert!(link.look(|state| state.count(kind::PING)) > 0);
        link.wait_end();
    }
}

fn one_with_trailers() -> Value {
    json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http_protocol_options": { "enable_trailers": true } },
        },
    }})
}

/// `/slow` gives back no window before the gate, `/quick` is answered at once.
fn holding_script() -> (H2Script, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    let mut script = H2Script::answer(|request| H2Answer::ok(request.body.len().to_string()));
    script.on_head = Box::new(move |request| {
        if request.target == "/quick" {
            return Some(H2Answer::ok("quick"));
        }
        held.pass();
        None
    });
    script.setup = LinkSetup::default().holding();
    (script, gate)
}

/// Answers every stream until its window is used up. One thread does it for all: one each, woken by every frame, would be what is
/// measured.
fn fill_windows(link: &Link) {
    let mut last = 0;
    loop {
        let next = link.try_wait("a stream", Link::PATIENCE * 6, |state| {
            let new = state.streams.range(last + 1..).find(|(_, stream)| !stream.blocks.is_empty());
            new.map(|(id, stream)| Some((*id, stream.blocks[0].first(":path")))).or(state.end.as_ref().map(|_| None))
        });
        let Ok(Some((stream, path))) = next else { return };
        last = stream;
        let is_big = path.as_deref() == Some("/big");
        let body = if is_big { pattern(0, 64 << 10) } else { b"quick".to_vec() };
        // An error is the end of the connection, seen above.
        let _ = link.send_fields(stream, &[(":status", "200")], false);
        let _ = link.send_body(stream, &body, !is_big);
    }
}
