//! How body bytes get through: which of them enter the proxy at all, and that none is copied there without need.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use outrigger_tests::world::resource::{self, cluster, opaque_listener, plain, route};
use outrigger_tests::world::upstream::pattern;
use outrigger_tests::world::{Answer, Gate, Io, OpaqueUpstream, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::json;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Bytes that may be received before a splice begins, and heads.
const BEFORE_SPLICE: u64 = 64 * KIB;
/// A body of which so much is still to come is spliced (`http1/body.rs`).
const SPLICE_FROM: usize = 32 << 10;

/// Counters of the only worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    copied: u64,
    received: u64,
    sent: u64,
    spliced: u64,
}

/// What a proxy has counted once at least `passed` bytes left it; its counters are up to a second old.
fn counted(proxy: &Proxy, passed: u64) -> Counted {
    wait_for(&format!("{passed} bytes to be counted"), Duration::from_secs(10), || {
        let worker = &proxy.admin_json("/io")["workers"][0];
        let count = |name: &str| worker[name].as_u64().unwrap_or_else(|| panic!("no {name} in {worker}"));
        let counted = Counted {
            copied: count("copied_bytes"),
            received: count("recv_bytes"),
            sent: count("sent_bytes"),
            spliced: count("spliced_bytes"),
        };
        if counted.sent + counted.spliced >= passed { Ok(counted) } else { Err(format!("{counted:?}")) }
    })
}

fn forwarding(io: Io, upstream: &Upstream) -> Proxy {
    Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])))
}

fn retrying(io: Io, upstream: &Upstream) -> Proxy {
    let action = json!({ "route": { "cluster": "app", "retry_policy": { "retry_on": "5xx", "num_retries": 2 } } });
    let bootstrap = plain(vec![route("/", action)], vec![cluster("app", &[upstream.address()])]);
    Proxy::start(&ProxySetup::new(io, bootstrap))
}

/// The whole body through a proxy, and what that proxy counted.
fn download(io: Io, answer: &Answer) -> (Vec<u8>, Counted) {
    let answer = answer.clone();
    let upstream = Upstream::start(move |_| answer.clone());
    let proxy = forwarding(io, &upstream);
    let body = proxy.get("/").unwrap().body;
    let counted = counted(&proxy, body.len() as u64);
    (body, counted)
}

fn upload(proxy: &Proxy, upstream: &Upstream, bytes: usize) -> Counted {
    let body = pattern(0, bytes);
    assert_eq!(proxy.connect().request("POST", "/", &[], &body).unwrap().status, 200);
    assert!(upstream.requests()[0].body == body, "it came changed");
    counted(proxy, bytes as u64)
}

/// Bytes spliced of a body of which `early` bytes come with its head and `late` bytes once the head was passed on.
fn spliced_of(io: Io, early: usize, late: usize) -> u64 {
    let total = early + late;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n").into_bytes();
    let gate = Gate::new();
    let answer = Answer::raw([head, pattern(0, early)].concat()).then_pass(&gate).then(pattern(early as u64, late));
    let upstream = Upstream::start(move |_| answer.clone());
    let proxy = forwarding(io, &upstream);
    let mut client = proxy.connect();
    client.send_request("GET", "/", &[], b"").unwrap();
    client.read_response_head().unwrap();
    let mut body = client.read_bytes(early).unwrap();
    gate.open();
    body.extend(client.read_bytes(late).unwrap());
    assert!(body == pattern(0, total), "{early} + {late} bytes came changed");
    let counted = counted(&proxy, total as u64);
    assert_eq!(counted.copied, 0, "{counted:?}");
    counted.spliced
}

on_both_drivers! {
    fn a_long_download_stays_in_the_kernel(io) {
        let (body, counted) = download(io, &Answer::status(200).pattern(10 * MIB));
        assert!(body == pattern(0, 10 << 20));
        assert_eq!(counted.copied, 0, "{counted:?}");
        assert!(counted.spliced >= 10 * MIB - BEFORE_SPLICE, "{counted:?}");
        assert!(counted.received < BEFORE_SPLICE, "{counted:?}");
    }

    fn a_short_download_is_passed_on_as_it_was_received(io) {
        let (body, counted) = download(io, &Answer::status(200).pattern(16 * KIB));
        assert!(body == pattern(0, 16 << 10));
        assert_eq!((counted.copied, counted.spliced), (0, 0), "{counted:?}");
        assert!(counted.received >= 16 * KIB, "{counted:?}");
    }

    fn a_body_is_spliced_exactly_from_the_threshold(io) {
        for early in [0, 1, 100] {
            assert_eq!(spliced_of(io, early, SPLICE_FROM - 1), 0, "{early} bytes with the head");
            assert_eq!(spliced_of(io, early, SPLICE_FROM), SPLICE_FROM as u64, "{early} bytes with the head");
            assert_eq!(spliced_of(io, early, SPLICE_FROM + 1), SPLICE_FROM as u64 + 1, "{early} bytes with the head");
        }
    }

    fn a_chunked_download_is_received_but_not_copied(io) {
        let sent = pattern(0, 4 << 20);
        let (body, counted) = download(io, &Answer::status(200).chunks(sent.chunks(32 << 10)));
        assert!(body == sent);
        assert_eq!((counted.copied, counted.spliced), (0, 0), "{counted:?}");
        assert!((4 * MIB..4 * MIB + BEFORE_SPLICE).contains(&counted.received), "{counted:?}");
    }

    fn an_upload_is_copied_only_to_be_sent_again(io) {
        let upstream = Upstream::start(|_| Answer::ok("thanks"));
        let counted = upload(&retrying(io, &upstream), &upstream, 100 << 10);
        assert_eq!(counted.copied, 100 * KIB, "{counted:?}");

        let upstream = Upstream::start(|_| Answer::ok("thanks"));
        let counted = upload(&forwarding(io, &upstream), &upstream, 100 << 10);
        assert_eq!(counted.copied, 0, "{counted:?}");

        // Longer than what is kept for another try.
        let upstream = Upstream::start(|_| Answer::ok("thanks"));
        let counted = upload(&retrying(io, &upstream), &upstream, 4 << 20);
        assert_eq!(counted.copied, 0, "{counted:?}");
        assert!(counted.spliced >= 4 * MIB - BEFORE_SPLICE, "{counted:?}");
    }

    fn what_comes_with_the_end_of_a_split_head_is_copied(io) {
        let upstream = Upstream::start(|_| Answer::ok("thanks"));
        let proxy = forwarding(io, &upstream);
        let mut client = proxy.connect();
        client.send(b"POST / HTTP/1.1\r\nHost: te").unwrap();
        let received = || proxy.admin_json("/io")["workers"][0]["recv_bytes"].as_u64().unwrap();
        wait_for("half a head to be received", Duration::from_secs(10), || match received() {
            0 => Err("nothing".to_owned()),
            _ => Ok(()),
        });
        client.send(b"st\r\nContent-Length: 5\r\n\r\norder").unwrap();
        assert_eq!(client.read_response("POST").unwrap().status, 200);
        assert_eq!(counted(&proxy, 100).copied, 5);
    }

    fn opaque_bulk_stays_in_the_kernel(io) {
        let upstream = OpaqueUpstream::start(|mut stream| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert!(bytes == pattern(0, 16 << 20), "it came changed");
            stream.write_all(b"all of it").unwrap();
        });
        let listener = opaque_listener("main", json!({ "cluster": "app" }));
        let bootstrap = resource::bootstrap(vec![listener], vec![cluster("app", &[upstream.address()])]);
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
        let mut client = proxy.connect();
        client.send(&pattern(0, 16 << 20)).unwrap();
        client.finish_sending().unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"all of it");
        let counted = counted(&proxy, 16 * MIB);
        assert_eq!(counted.copied, 0, "{counted:?}");
        assert!(counted.spliced >= 8 * MIB, "{counted:?}");
    }
}
