//! gRPC as its callers see it: messages and trailers pass, its status drives retries and ejection, its timeout is kept,
//! the proxy's own answers are in its form, and gRPC-Web becomes it.

use std::time::{Duration, Instant};

use outrigger_tests::world::h2::frame::code;
use outrigger_tests::world::resource::{self, forward, http2_cluster, local_rate_limit, merge, plain, route};
use outrigger_tests::world::upstream::{Recorded, pattern};
use outrigger_tests::world::{Gate, H2Answer, H2Downstream, H2Upstream, Io, Proxy, ProxySetup, Response};
use serde_json::{Value, json};

const METHOD: &str = "/shop.Orders/Place";
const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];

/// A message with its length before it.
fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0][..], &length, bytes].concat()
}

fn answer(body: &[u8], status: &str) -> H2Answer {
    H2Answer::status(200)
        .header("content-type", "application/grpc")
        .then(message(body))
        .trailers(&[("grpc-status", status)])
}

/// A trailers-only answer.
fn refusal(status: &str) -> H2Answer {
    H2Answer::status(200)
        .header("content-type", "application/grpc")
        .header("grpc-status", status)
        .header("grpc-message", "no")
}

fn routed(io: Io, upstreams: &[&H2Upstream], action: Value) -> Proxy {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address()).collect();
    let clusters = vec![http2_cluster("app", &addresses)];
    Proxy::start(&ProxySetup::new(io, plain(vec![route("/", merge(forward("app"), action))], clusters)))
}

fn call(client: &H2Downstream, more: &[(&str, &str)], body: &[u8]) -> Response {
    client.request("POST", METHOD, &[GRPC, more].concat(), &message(body)).unwrap()
}

/// grpc-status, of a trailers-only answer too.
pub(crate) fn status(response: &Response) -> String {
    response.trailers.first("grpc-status").or_else(|| response.header("grpc-status")).unwrap_or_default()
}

fn attempts(upstream: &H2Upstream) -> usize {
    upstream.request_count()
}

on_both_drivers! {
    fn a_call_passes_with_its_messages_and_trailers(io) {
        let upstream = H2Upstream::start(|request: &Recorded| {
            let metadata = request.headers.first("x-meta").unwrap_or_default();
            H2Answer::status(200)
                .header("content-type", "application/grpc")
                .header("x-meta", &metadata)
                .then(request.body.clone())
                .trailers(&[("grpc-status", "0"), ("x-end-bin", "AAEC")])
        });
        let proxy = routed(io, &[&upstream], json!({}));
        let client = proxy.connect_h2();
        for size in [0, 1, 70_000, 1_000_000] {
            let response = call(&client, &[("x-meta", "of the caller")], &pattern(0, size));
            assert!(response.body == message(&pattern(0, size)), "{size} bytes");
            assert_eq!((status(&response).as_str(), response.header("x-meta").as_deref()), ("0", Some("of the caller")));
            assert_eq!(response.trailers.all("x-end-bin"), ["AAEC"]);
        }
        assert_eq!(upstream.requests()[0].headers.all("te"), ["trailers"]);
    }

    fn messages_of_both_sides_interleave(io) {
        let upstream = H2Upstream::puppet(Default::default(), |link| {
            let ask = |at: usize| link.try_wait("a message", Duration::from_secs(20), |state| {
                let seen = state.stream(1);
                (seen.body.len() >= at || state.end.is_some()).then_some(())
            });
            if ask(1).is_err() {
                return;
            }
            link.send_fields(1, &[(":status", "200"), ("content-type", "application/grpc")], false).ok();
            for number in 1..=10 {
                ask(number * message(b"ping").len()).ok();
                link.send_body(1, &message(b"pong"), false).ok();
            }
            link.try_wait("the caller's end", Duration::from_secs(20), |state| {
                (state.stream(1).is_ended || state.end.is_some()).then_some(())
            }).ok();
            link.send_fields(1, &[("grpc-status", "0")], true).ok();
            link.try_wait("the end", Duration::from_secs(20), |state| state.end.clone()).ok();
        });
        let proxy = routed(io, &[&upstream], json!({}));
        let client = proxy.connect_h2();
        let stream = client.open("POST", METHOD, GRPC, false).unwrap();
        for number in 1..=10 {
            client.send_body(stream, &message(b"ping"), false).unwrap();
            client.wait("the answer to this message", |state| {
                (state.stream(stream).body.len() == number * message(b"pong").len()).then_some(())
            });
        }
        client.send_body(stream, b"", true).unwrap();
        assert_eq!(status(&client.outcome(stream).answer()), "0");
    }

    fn a_status_asks_for_another_try(io) {
        for (word, code) in [("unavailable", "14"), ("resource-exhausted", "8"), ("internal", "13"), ("cancelled", "1"), ("deadline-exceeded", "4")] {
            let upstream = H2Upstream::start(move |request| if request.number == 0 { refusal(code) } else { answer(b"placed", "0") });
            let proxy = routed(io, &[&upstream], json!({ "route": { "retry_policy": { "retry_on": word, "num_retries": 1 } } }));
            let response = call(&proxy.connect_h2(), &[], b"order");
            assert_eq!((status(&response).as_str(), attempts(&upstream)), ("0", 2), "{word}");
            assert_eq!(upstream.requests()[1].body, message(b"order"), "{word}: sent whole again");
        }
    }

    fn a_status_in_trailers_asks_for_another_try_too(io) {
        let upstream = H2Upstream::start(|request| match request.number {
            0 => H2Answer::status(200).header("content-type", "application/grpc").trailers(&[("grpc-status", "14")]),
            _ => answer(b"placed", "0"),
        });
        let proxy = routed(io, &[&upstream], json!({ "route": { "retry_policy": { "retry_on": "unavailable", "num_retries": 1 } } }));
        let response = call(&proxy.connect_h2(), &[], b"order");
        if proxy.is_ours() {
            assert_eq!((status(&response).as_str(), attempts(&upstream)), ("0", 2));
        }
    }

    fn a_status_behind_a_message_is_passed_on(io) {
        let upstream = H2Upstream::start(|_| answer(b"half", "14"));
        let proxy = routed(io, &[&upstream], json!({ "route": { "retry_policy": { "retry_on": "unavailable", "num_retries": 3 } } }));
        let response = call(&proxy.connect_h2(), &[], b"order");
        assert_eq!((status(&response).as_str(), attempts(&upstream)), ("14", 1));
        assert_eq!(response.body, message(b"half"));
    }

    fn a_status_that_is_not_asked_for_is_passed_on(io) {
        let upstream = H2Upstream::start(|_| refusal("3"));
        let proxy = routed(io, &[&upstream], json!({ "route": { "retry_policy": { "retry_on": "unavailable", "num_retries": 3 } } }));
        let response = call(&proxy.connect_h2(), &[], b"order");
        assert_eq!((status(&response).as_str(), response.header("grpc-message").as_deref(), attempts(&upstream)), ("3", Some("no"), 1));
    }

    fn unavailable_ejects(io) {
        let (bad, good) = (H2Upstream::start(|_| refusal("14")), H2Upstream::start(|_| answer(b"good", "0")));
        let ejecting = json!({ "outlier_detection": {
            "consecutive_5xx": 3, "base_ejection_time": "60s", "max_ejection_percent": 50, "interval": "0.1s",
        } });
        let app = merge(http2_cluster("app", &[bad.address(), good.address()]), ejecting);
        let proxy = Proxy::start(&ProxySetup::new(io, plain(vec![route("/", forward("app"))], vec![app])));
        let client = proxy.connect_h2();
        for _ in 0..20 {
            call(&client, &[], b"x");
        }
        let before = attempts(&bad);
        for _ in 0..20 {
            assert_eq!(status(&call(&client, &[], b"x")), "0");
        }
        assert!((3..=4).contains(&before) && attempts(&bad) == before, "{before}, then {}", attempts(&bad));
    }

    fn the_callers_timeout_is_kept(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = H2Upstream::start(move |_| answer(b"late", "0").after(&held));
        let action = json!({ "route": { "timeout": "30s", "max_stream_duration": { "grpc_timeout_header_max": "10s" } } });
        let proxy = routed(io, &[&upstream], action);
        let client = proxy.connect_h2();
        let begun = Instant::now();
        let response = call(&client, &[("grpc-timeout", "300m")], b"x");
        // DEADLINE_EXCEEDED; Envoy says UNAVAILABLE for its 504.
        assert!(["4", "14"].contains(&status(&response).as_str()), "{:?}", response.headers);
        assert!((Duration::from_millis(250)..Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        let link = upstream.wait_link(1);
        link.wait("the call's end at the upstream", |state| state.streams.values().find_map(|stream| stream.reset));
        gate.open();
    }

    fn the_callers_timeout_reaches_the_upstream_shortened(io) {
        let upstream = H2Upstream::start(|_| answer(b"x", "0"));
        let action = json!({ "route": { "max_stream_duration": { "grpc_timeout_header_max": "2s" } } });
        let proxy = routed(io, &[&upstream], action);
        let client = proxy.connect_h2();
        call(&client, &[("grpc-timeout", "5000m")], b"x");
        call(&client, &[("grpc-timeout", "700m")], b"x");
        let told: Vec<Duration> = upstream.requests().iter().map(|request| timeout_of(&request.headers.first("grpc-timeout").unwrap())).collect();
        if proxy.is_ours() {
            assert!((Duration::from_millis(1_500)..=Duration::from_secs(2)).contains(&told[0]), "no more than the route gives: {told:?}");
            assert!((Duration::from_millis(400)..=Duration::from_millis(700)).contains(&told[1]), "{told:?}");
        }
    }

    fn our_own_answers_are_in_grpcs_form(io) {
        let upstream = H2Upstream::start(|_| H2Answer::reset(code::INTERNAL_ERROR));
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let routes = vec![
            merge(route("/limited.A/B", forward("app")), local_rate_limit(1, 1, "3600s")),
            route("/closed.A/B", forward("nobody")),
            route("/reset.A/B", forward("app")),
        ];
        let clusters = vec![http2_cluster("app", &[upstream.address()]), http2_cluster("nobody", &[nobody])];
        let proxy = Proxy::start(&ProxySetup::new(io, plain(routes, clusters)));
        let client = proxy.connect_h2();
        let ask = |target: &str| client.request("POST", target, GRPC, &message(b"x")).unwrap();
        ask("/limited.A/B");
        for (target, wanted) in [
            // No route is UNIMPLEMENTED, what cannot be reached UNAVAILABLE, a limit that was reached either of two.
            ("/none.A/B", &["12"][..]), ("/closed.A/B", &["14"]), ("/reset.A/B", &["14"]), ("/limited.A/B", &["14", "8"]),
        ] {
            let response = ask(target);
            assert_eq!(response.status, 200, "{target}: gRPC's refusals are its own");
            assert_eq!(response.header("content-type").as_deref(), Some("application/grpc"), "{target}");
            let code = response.header("grpc-status").unwrap_or_default();
            assert!(wanted.contains(&code.as_str()), "{target}: grpc-status {code:?}, wanted {wanted:?}");
            assert!(response.body.is_empty(), "{target}: {}", response.text());
            if proxy.is_ours() {
                assert!(!response.fault().is_empty(), "{target}: {:?}", response.headers);
            }
        }
    }

    fn grpc_web_becomes_grpc(io) {
        let upstream = H2Upstream::start(|request| {
            assert!(request.headers.first("content-type").is_some_and(|kind| kind.starts_with("application/grpc") && !kind.contains("web")));
            H2Answer::status(200)
                .header("content-type", "application/grpc+proto")
                .then(request.body.clone())
                .trailers(&[("grpc-status", "0"), ("grpc-message", "fine")])
        });
        let filters = json!([
            { "name": "envoy.filters.http.grpc_web", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb" } },
            { "name": "envoy.filters.http.router", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
        ]);
        let app = http2_cluster("app", &[upstream.address()]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(json!({ "http_filters": filters }), app)));
        let sent = message(b"hello, web");
        let mut client = proxy.connect();
        let headers = [("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")];
        let response = client.request("POST", METHOD, &headers, &sent).unwrap();
        assert_eq!(response.header("content-type").as_deref(), Some("application/grpc-web+proto"));
        assert_trailers(&sent, &response.body);
        let text = "application/grpc-web-text";
        let headers = [("content-type", text), ("accept", text), ("x-grpc-web", "1")];
        let response = client.request("POST", METHOD, &headers, base64(&sent).as_bytes()).unwrap();
        assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("application/grpc-web-text")), "{:?}", response.headers);
        assert_trailers(&sent, &unbase64(&response.text()));
        let before = upstream.request_count();
        let whole = base64(&sent);
        let cut = &whole.as_bytes()[..whole.len() - 1];
        let response = proxy.connect().request("POST", METHOD, &headers, cut).unwrap();
        assert_eq!(response.fault_kind(), "downstream/parse/bad-chunk", "base64 that ends amid four letters");
        assert_eq!(upstream.request_count(), before, "half of a message is no request");
    }
}

/// The message, then a frame of trailers.
#[track_caller]
fn assert_trailers(sent: &[u8], body: &[u8]) {
    let rest = body.strip_prefix(sent).unwrap_or_else(|| panic!("the message comes first: {}", body.escape_ascii()));
    assert_eq!(rest.first(), Some(&0x80), "then trailers: {}", rest.escape_ascii());
    let length = usize::try_from(u32::from_be_bytes(rest[1..5].try_into().unwrap())).unwrap();
    let text = String::from_utf8(rest[5..5 + length].to_vec()).unwrap();
    let mut lines: Vec<String> = text.lines().map(|line| line.replace(": ", ":")).collect();
    lines.sort();
    assert_eq!(lines, ["grpc-message:fine", "grpc-status:0"]);
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let sextet = (bits >> (18 - 6 * at) & 63) as usize;
            text.push(if at <= three.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    text
}

/// Several pieces one after the other, each with its own padding.
fn unbase64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| ALPHABET.iter().position(|one| *one == byte);
    let four = |four: &[u8]| -> Vec<u8> {
        let bits = four.iter().fold(0_u32, |bits, byte| bits << 6 | digit(*byte).unwrap_or(0) as u32);
        let padding = four.iter().filter(|byte| **byte == b'=').count();
        bits.to_be_bytes()[1..4 - padding].to_vec()
    };
    text.as_bytes().chunks(4).flat_map(four).collect()
}

fn timeout_of(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let nanoseconds: u64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => panic!("grpc-timeout {text:?}"),
    };
    Duration::from_nanos(number.parse::<u64>().unwrap() * nanoseconds)
}
