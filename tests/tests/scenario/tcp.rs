//! Opaque connections: bytes, ends and resets pass both ways; limits, timeouts and updates do what they say.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use outrigger_tests::world::resource::{self, CLUSTER, LISTENER, cluster, merge, opaque_listener};
use outrigger_tests::world::upstream::{pattern, pattern_byte};
use outrigger_tests::world::{AdsServer, Downstream, Io, OpaqueUpstream, Proxy, ProxySetup, wait_for};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(10);

/// The bootstrap of a listener `main` that passes everything to cluster `app`, with these settings of both.
fn opaque(addresses: &[SocketAddr], tcp: Value, app: Value) -> Value {
    let listener = opaque_listener("main", merge(json!({ "cluster": "app" }), tcp));
    resource::bootstrap(vec![listener], vec![merge(cluster("app", addresses), app)])
}

fn start(io: Io, addresses: &[SocketAddr], tcp: Value) -> Proxy {
    Proxy::start(&ProxySetup::new(io, opaque(addresses, tcp, json!({}))))
}

fn to(io: Io, upstream: &OpaqueUpstream) -> Proxy {
    start(io, &[upstream.address()], json!({}))
}

/// An address where nobody listens, nor will while this lives: it is bound.
pub(super) struct Nobody(socket2::Socket);

impl Nobody {
    pub(super) fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self(socket)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }
}

fn wait_fault(proxy: &Proxy, side: &str, stage: &str, kind: &str, count: f64) {
    let labels = [("listener", "main"), ("side", side), ("stage", stage), ("kind", kind)];
    proxy.wait_metric("outrigger_listener_faults_total", &labels, count);
}

/// Waits until nothing is open on either side.
fn wait_closed(proxy: &Proxy) {
    wait_for("all connections to be over", SOON, || {
        let count = |metric| proxy.metric(metric, &[]) as u64;
        let open = count("outrigger_listener_connections") + count("outrigger_cluster_connections");
        if open == 0 { Ok(()) } else { Err(format!("{open} open")) }
    });
}

fn assert_echo(client: &mut Downstream, text: &[u8]) {
    client.send(text).unwrap();
    assert_eq!(client.read_bytes(text.len()).unwrap(), text);
}

/// Lengths from 1 to `most`, the same for the same seed.
fn lengths(mut seed: u64, most: u64) -> impl FnMut() -> usize {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(1 + (seed >> 33) % most).unwrap()
    }
}

/// Sends the pattern in random pieces, then FIN.
fn send_pattern(mut stream: &TcpStream, bytes: u64, seed: u64) -> std::io::Result<()> {
    let mut length = lengths(seed, if bytes < 10_000 { 7 } else { 150_000 });
    let mut at = 0;
    while at < bytes {
        let count = usize::try_from(bytes - at).unwrap().min(length());
        stream.write_all(&pattern(at, count))?;
        at += count as u64;
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads the pattern in random pieces and counts it; an error when a byte is not the next one.
fn read_pattern(mut stream: &TcpStream, seed: u64, count: &AtomicU64) -> Result<u64, String> {
    let mut length = lengths(seed, 100_000);
    let mut block = vec![0; 100_000];
    let mut at = 0;
    loop {
        let read = stream.read(&mut block[..length()]).map_err(|error| format!("after {at} bytes: {error}"))?;
        if let Some(wrong) = block[..read].iter().zip(at..).position(|(byte, offset)| *byte != pattern_byte(offset)) {
            return Err(format!("differs from byte {}", at + wrong as u64));
        }
        at += read as u64;
        count.store(at, Ordering::SeqCst);
        if read == 0 {
            return Ok(at);
        }
    }
}

fn raw(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(OpaqueUpstream::PATIENCE)).unwrap();
    stream.set_write_timeout(Some(OpaqueUpstream::PATIENCE)).unwrap();
    stream
}

/// Sends and reads the pattern at once.
fn exchange(stream: &TcpStream, sends: u64, seed: u64, count: &AtomicU64) -> Result<u64, String> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_pattern(stream, sends, seed));
        let read = read_pattern(stream, seed + 1, count);
        sending.join().unwrap().map_err(|error| format!("sending: {error}"))?;
        read
    })
}

on_both_drivers! {
    fn bytes_pass_unchanged_both_ways_at_once(io) {
        for (number, bytes) in [0, 1, 4_095, 4_097, MIB + 3, 8 * MIB].into_iter().enumerate() {
            let (told, tells) = mpsc::channel();
            let told = Mutex::new(told);
            let seed = number as u64 * 100;
            let upstream = OpaqueUpstream::start(move |stream| {
                let outcome = exchange(&stream, bytes, seed, &AtomicU64::new(0));
                told.lock().unwrap().send(outcome).unwrap();
            });
            let proxy = to(io, &upstream);
            let stream = raw(proxy.listener("main"));
            assert_eq!(exchange(&stream, bytes, seed + 50, &AtomicU64::new(0)), Ok(bytes), "down, seed {seed}");
            assert_eq!(tells.recv_timeout(SOON).unwrap(), Ok(bytes), "up, seed {seed}");
            wait_closed(&proxy);
            for metric in ["received", "sent"] {
                let name = format!("outrigger_listener_{metric}_bytes_total");
                assert_eq!(proxy.metric(&name, &[("listener", "main")]) as u64, bytes, "{name}");
            }
            assert_eq!(proxy.metric("outrigger_listener_faults_total", &[]) as u64, 0);
        }
    }

    fn an_address_keeps_its_endpoint_under_a_hash(io) {
        let upstreams: Vec<_> = ["A", "B", "C", "D"].map(OpaqueUpstream::greeting).into();
        let addresses: Vec<_> = upstreams.iter().map(OpaqueUpstream::address).collect();
        for policy in ["RING_HASH", "MAGLEV"] {
            let tcp = json!({ "hash_policy": [{ "source_ip": {} }] });
            let proxy = Proxy::start(&ProxySetup::new(io, opaque(&addresses, tcp, json!({ "lb_policy": policy }))));
            let greeted = |last: u8| {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
                socket.connect(&proxy.listener("main").into()).unwrap();
                let mut stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(OpaqueUpstream::PATIENCE)).unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                byte[0]
            };
            let first: Vec<u8> = (1..=40).map(greeted).collect();
            let again: Vec<u8> = (1..=40).map(greeted).collect();
            assert_eq!(first, again, "{policy}");
            assert!(first.iter().any(|tag| *tag != first[0]), "{policy}: all to {}", first[0]);
        }
    }

    fn the_upstream_may_speak_first(io) {
        let upstream = OpaqueUpstream::greeting("220 ready\r\n");
        let proxy = to(io, &upstream);
        let mut client = proxy.connect();
        assert_eq!(client.read_bytes(11).unwrap(), b"220 ready\r\n");
        assert_echo(&mut client, b"HELO");
        assert_eq!(proxy.metric("outrigger_cluster_connects_total", &[("cluster", "app")]) as u64, 1);
        assert_eq!(proxy.metric("outrigger_endpoint_active_requests", &[]) as u64, 1);
        let told = proxy.admin_json("/listeners");
        assert_eq!(told["listeners"][0]["protocol"], "tcp");
        assert_eq!(told["listeners"][0]["clusters"], json!([{ "cluster": "app", "weight": 1 }]));
        assert_eq!(proxy.admin_json("/config_dump")["listeners"][0]["tcp"]["idle_timeout"], "3600s");
    }

    fn one_end_may_finish_while_the_other_goes_on(io) {
        let (told, tells) = mpsc::channel();
        let told = Mutex::new(told);
        let upstream = OpaqueUpstream::start(move |mut stream| {
            let mut ask = Vec::new();
            stream.read_to_end(&mut ask).unwrap();
            stream.write_all(&[b"after ", &ask[..]].concat()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            told.lock().unwrap().send(ask).unwrap();
        });
        let proxy = to(io, &upstream);
        let mut client = proxy.connect();
        client.send(b"all of it").unwrap();
        client.finish_sending().unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"after all of it");
        assert_eq!(tells.recv_timeout(SOON).unwrap(), b"all of it");

        let (told, tells) = mpsc::channel();
        let told = Mutex::new(told);
        let upstream = OpaqueUpstream::start(move |mut stream| {
            stream.write_all(b"done").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            told.lock().unwrap().send(rest).unwrap();
        });
        let proxy = to(io, &upstream);
        let mut client = proxy.connect();
        assert_eq!(client.read_to_end().unwrap(), b"done");
        client.send(&pattern(0, 300_000)).unwrap();
        client.finish_sending().unwrap();
        assert!(tells.recv_timeout(SOON).unwrap() == pattern(0, 300_000));
        assert_eq!(proxy.metric("outrigger_listener_faults_total", &[]) as u64, 0);
    }

    fn a_reset_of_one_end_is_a_reset_of_the_other(io) {
        let upstream = OpaqueUpstream::start(|mut stream| {
            stream.write_all(b"part").unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        });
        let proxy = to(io, &upstream);
        let mut client = proxy.connect();
        assert_eq!(client.read_bytes(4).unwrap(), b"part");
        client.send(b"go").unwrap();
        assert_eq!(client.read_to_end().unwrap_err().kind(), ErrorKind::ConnectionReset);
        wait_fault(&proxy, "upstream", "relay", "reset", 1.0);

        let (told, tells) = mpsc::channel();
        let told = Mutex::new(told);
        let upstream = OpaqueUpstream::start(move |mut stream| {
            stream.read_exact(&mut [0; 4]).unwrap();
            stream.write_all(b"got").unwrap();
            let outcome = stream.read(&mut [0; 16]).map_err(|error| error.kind());
            told.lock().unwrap().send(outcome).unwrap();
        });
        let proxy = to(io, &upstream);
        let mut client = proxy.connect();
        client.send(b"part").unwrap();
        assert_eq!(client.read_bytes(3).unwrap(), b"got");
        client.reset().unwrap();
        assert_eq!(tells.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));
        wait_fault(&proxy, "downstream", "relay", "reset", 1.0);
    }

    fn an_exchange_that_was_cut_short_never_looks_whole(io) {
        const ANSWER: usize = 200_000;
        let upstream = OpaqueUpstream::start(|mut stream| {
            stream.read_exact(&mut [0; 1]).unwrap();
            stream.write_all(&pattern(0, ANSWER)).unwrap();
            // What the client goes on sending lies unread: the kernel makes this close a reset. The proxy may meet it
            // while it sends, and then sees an end, not a reset, where it receives.
        });
        let proxy = to(io, &upstream);
        let stream = raw(proxy.listener("main"));
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| send_pattern(&stream, 64 * MIB, 1));
            let count = AtomicU64::new(0);
            let read = read_pattern(&stream, 2, &count);
            // The kernel tells of a reset once: to whichever call comes first.
            let sent = sending.join().unwrap();
            assert!(read.is_err() || sent.is_err(), "{read:?} {sent:?}");
            assert!(count.load(Ordering::SeqCst) <= ANSWER as u64);
        });
    }

    fn another_endpoint_is_tried_as_often_as_configured(io) {
        let upstream = OpaqueUpstream::echo();
        let nobody = [Nobody::new(), Nobody::new()];
        let addresses = [nobody[0].address(), nobody[1].address()];
        let proxy = start(io, &[addresses[0], upstream.address()], json!({ "max_connect_attempts": 2 }));
        for _ in 0..10 {
            assert_echo(&mut proxy.connect(), b"served");
        }
        let failures = proxy.metric("outrigger_cluster_connect_failures_total", &[]) as u64;
        assert!(failures >= 4, "{failures}");
        assert_eq!(proxy.metric("outrigger_cluster_retries_total", &[]) as u64, failures);
        assert_eq!(proxy.metric("outrigger_listener_faults_total", &[]) as u64, 0);

        let proxy = start(io, &addresses, json!({ "max_connect_attempts": 3 }));
        proxy.connect().expect_closed(SOON).unwrap();
        wait_fault(&proxy, "upstream", "connect", "refused", 1.0);
        assert_eq!(proxy.metric("outrigger_cluster_connect_failures_total", &[]) as u64, 3);
        assert_eq!(proxy.metric("outrigger_endpoint_connect_failures_total", &[]) as u64, 3);
    }

    fn a_connection_that_has_nowhere_to_go_is_closed_and_counted(io) {
        let proxy = start(io, &[], json!({}));
        proxy.connect().expect_closed(SOON).unwrap();
        wait_fault(&proxy, "local", "balance", "no-endpoint", 1.0);
        let elsewhere = start(io, &[Nobody::new().address()], json!({ "cluster": "gone" }));
        elsewhere.connect().expect_closed(SOON).unwrap();
        wait_fault(&elsewhere, "local", "route", "no-cluster", 1.0);
        wait_closed(&elsewhere);
    }

    fn weights_divide_the_connections(io) {
        const CONNECTIONS: usize = 400;
        let (often, seldom) = (OpaqueUpstream::echo(), OpaqueUpstream::echo());
        let clusters = json!([{ "name": "often", "weight": 3 }, { "name": "seldom", "weight": 1 }]);
        let listener = opaque_listener("main", json!({ "weighted_clusters": { "clusters": clusters } }));
        let clusters = vec![cluster("often", &[often.address()]), cluster("seldom", &[seldom.address()])];
        let proxy = Proxy::start(&ProxySetup::new(io, resource::bootstrap(vec![listener], clusters)));
        for _ in 0..CONNECTIONS {
            assert_echo(&mut proxy.connect(), b"x");
        }
        let counts = (often.connection_count(), seldom.connection_count());
        assert_eq!(counts.0 + counts.1, CONNECTIONS);
        // Six standard deviations around three quarters.
        assert!((248..=352).contains(&counts.0), "{counts:?}");
    }

    fn an_idle_connection_is_closed_and_a_busy_one_is_not(io) {
        let (told, tells) = mpsc::channel();
        let told = Mutex::new(told);
        let upstream = OpaqueUpstream::start(move |mut stream| {
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|count| count == 1) && stream.write_all(&byte).is_ok() {}
            told.lock().unwrap().send(()).unwrap();
        });
        const IDLE: Duration = Duration::from_secs(1);
        let proxy = start(io, &[upstream.address()], json!({ "idle_timeout": "1s" }));
        let mut client = proxy.connect();
        let begun = Instant::now();
        let mut last = begun;
        while begun.elapsed() < 2 * IDLE {
            last = Instant::now();
            assert_echo(&mut client, b"x");
        }
        client.expect_closed(SOON).unwrap();
        let idle = last.elapsed();
        assert!(idle >= IDLE, "closed after {idle:?}");
        tells.recv_timeout(SOON).unwrap();
        wait_fault(&proxy, "local", "relay", "idle", 1.0);
    }

    fn a_connection_over_age_is_reset(io) {
        let upstream = OpaqueUpstream::echo();
        let proxy = start(io, &[upstream.address()], json!({ "max_downstream_connection_duration": "0.3s" }));
        let begun = Instant::now();
        let mut client = proxy.connect();
        while client.send(b"x").is_ok() && client.read_bytes(1).is_ok() {}
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        wait_fault(&proxy, "local", "relay", "over-age", 1.0);
    }

    fn a_reader_that_stops_stops_its_sender_and_nobody_else(io) {
        const SIZE: u64 = 96 * MIB;
        const UP: u64 = 4 * MIB;
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (sent.clone(), received.clone());
        let upstream = OpaqueUpstream::start(move |mut stream| {
            let reader = stream.try_clone().unwrap();
            let received = counts.1.clone();
            let reading = std::thread::spawn(move || read_pattern(&reader, 1, &received));
            let mut at = 0;
            while at < SIZE && stream.write_all(&pattern(at, 65_536)).is_ok() {
                at += 65_536;
                counts.0.store(at, Ordering::SeqCst);
            }
            let _ = stream.shutdown(Shutdown::Write);
            let _ = reading.join();
        });
        let proxy = to(io, &upstream);
        let before = proxy.resident_bytes();
        let stream = raw(proxy.listener("main"));
        let mut last = (0, Instant::now());
        wait_for("the upstream to stand still", Duration::from_secs(15), || {
            let now = sent.load(Ordering::SeqCst);
            if now != last.0 {
                last = (now, Instant::now());
            }
            if now > 0 && last.1.elapsed() >= Duration::from_millis(400) { Ok(()) } else { Err(format!("{now}")) }
        });
        assert!(last.0 < SIZE / 2, "{} bytes were taken for a reader that reads nothing", last.0);
        send_pattern(&stream, UP, 7).unwrap();
        wait_for("the other direction", SOON, || {
            let count = received.load(Ordering::SeqCst);
            if count == UP { Ok(()) } else { Err(format!("{count} bytes")) }
        });
        let grown = proxy.resident_bytes().saturating_sub(before);
        assert!(grown < 24 * MIB, "memory grew by {grown} bytes for one slow reader");
        wait_for("few blocks to be held", SOON, || {
            let blocks = proxy.metric("outrigger_reactor_buffers_in_use", &[]) as u64;
            if blocks <= 40 { Ok(()) } else { Err(format!("{blocks} blocks")) }
        });
        assert_eq!(read_pattern(&stream, 9, &AtomicU64::new(0)), Ok(SIZE));
    }

    fn connections_beyond_the_limit_are_closed(io) {
        let upstream = OpaqueUpstream::echo();
        let limit = json!({ "circuit_breakers": { "thresholds": [{ "max_connections": 2 }] } });
        let proxy = Proxy::start(&ProxySetup::new(io, opaque(&[upstream.address()], json!({}), limit)));
        let mut held: Vec<Downstream> = (0..2).map(|_| proxy.connect()).collect();
        held.iter_mut().for_each(|client| assert_echo(client, b"held"));
        proxy.connect().expect_closed(SOON).unwrap();
        wait_fault(&proxy, "local", "policy", "max-connections", 1.0);
        held.pop();
        wait_for("a place to be free", SOON, || {
            let mut client = proxy.connect();
            client.send(b"x").and_then(|()| client.read_bytes(1)).map(|_| ()).map_err(|error| error.to_string())
        });
        assert_echo(&mut held[0], b"still held");
    }

    fn a_rate_limit_of_the_cluster_counts_connections(io) {
        let upstream = OpaqueUpstream::echo();
        let limit = json!({ "metadata": { "typed_filter_metadata": { "outrigger.policy.v1.ClusterPolicy": {
            "@type": "type.googleapis.com/outrigger.policy.v1.ClusterPolicy", "rule": "RateLimit a/b",
            "local_rate_limit": { "max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "3600s" } } } } });
        let proxy = Proxy::start(&ProxySetup::new(io, opaque(&[upstream.address()], json!({}), limit)));
        let mut served: Vec<Downstream> = (0..2).map(|_| proxy.connect()).collect();
        served.iter_mut().for_each(|client| assert_echo(client, b"served"));
        proxy.connect().expect_closed(SOON).unwrap();
        wait_fault(&proxy, "local", "policy", "cluster-rate-limited", 1.0);
        assert_eq!(upstream.connection_count(), 2);
    }

    fn refused_connects_eject(io) {
        let upstream = OpaqueUpstream::echo();
        let outlier = json!({ "outlier_detection": {
            "consecutive_5xx": 3, "interval": "0.1s", "base_ejection_time": "30s", "max_ejection_percent": 100,
        }});
        let nobody = Nobody::new();
        let bootstrap = opaque(&[nobody.address(), upstream.address()], json!({}), outlier);
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
        let refused = (0..30).filter(|_| {
            let mut client = proxy.connect();
            client.send(b"x").and_then(|()| client.read_bytes(1)).is_err()
        });
        assert_eq!(refused.count(), 3, "out after three refusals");
        assert_eq!(proxy.metric("outrigger_endpoint_ejected", &[]) as u64, 1);
    }

    fn an_update_leaves_connections_alone_and_a_bad_one_is_refused(io) {
        let upstream = OpaqueUpstream::echo();
        let ads = AdsServer::start();
        let listener = opaque_listener("main", json!({ "cluster": "app" }));
        ads.set([(LISTENER, listener.clone()), (CLUSTER, cluster("app", &[upstream.address()]))]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        let mut client = proxy.connect();
        assert_echo(&mut client, b"before");
        let mut bad = listener.clone();
        bad["filter_chains"][0]["filters"][0]["typed_config"]["max_connect_attempts"] = json!(0);
        ads.set([(LISTENER, bad)]);
        let (_, text) = ads.wait_nack(LISTENER).error.unwrap();
        let told = "filter_chains[0].filters[0].typed_config.max_connect_attempts: 0 is not in 1..=4294967295";
        assert!(text.contains("listener \"main\"") && text.contains(told), "{text}");
        assert_echo(&mut proxy.connect(), b"the last good one serves");
        ads.remove(LISTENER, "main");
        ads.remove(CLUSTER, "app");
        let address = proxy.listener("main");
        wait_for("the listener to close", SOON, || match Downstream::connect(address) {
            Ok(_) => Err("it still accepts".to_owned()),
            Err(_) => Ok(()),
        });
        assert_echo(&mut client, b"after");
        client.finish_sending().unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"");
    }

    fn a_listener_waits_for_the_clusters_that_it_names(io) {
        let upstream = OpaqueUpstream::echo();
        let ads = AdsServer::start();
        let named = |cluster: &str| opaque_listener("main", json!({ "cluster": cluster }));
        ads.set([(LISTENER, named("one")), (CLUSTER, cluster("one", &[upstream.address()]))]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        assert_echo(&mut proxy.connect(), b"one");
        let address = proxy.listener("main");
        for round in 0..20 {
            // The listener names the next cluster before the server has sent it, and lets the old one go at once.
            let next = if round % 2 == 0 { "two" } else { "one" };
            let before = if round % 2 == 0 { "one" } else { "two" };
            ads.set([(LISTENER, named(next))]);
            let version = ads.set([(CLUSTER, cluster(next, &[upstream.address()]))]);
            ads.remove(CLUSTER, before);
            ads.wait_ack(CLUSTER, version);
            let mut client = Downstream::connect(address).unwrap();
            assert_echo(&mut client, b"served");
        }
        assert_eq!(proxy.metric("outrigger_listener_faults_total", &[]) as u64, 0);
    }

    fn a_drain_leaves_connections_until_its_deadline(io) {
        let upstream = OpaqueUpstream::echo();
        let setup = ProxySetup::new(io, opaque(&[upstream.address()], json!({}), json!({})));
        let mut proxy = Proxy::start(&setup.clone().args(&["--drain-time", "30s"]));
        let address = proxy.listener("main");
        let mut client = proxy.connect();
        assert_echo(&mut client, b"before");
        proxy.interrupt();
        wait_for("the listener to close", SOON, || match Downstream::connect(address) {
            Ok(_) => Err("it still accepts".to_owned()),
            Err(_) => Ok(()),
        });
        assert_echo(&mut client, b"during");
        drop(client);
        let status = proxy.process().wait_exit(SOON).unwrap();
        assert_eq!(status.code(), Some(0), "it ends with its last connection: {:?}", proxy.log());

        let mut proxy = Proxy::start(&setup.args(&["--drain-time", "300ms"]));
        let mut client = proxy.connect();
        assert_echo(&mut client, b"before");
        proxy.terminate();
        let end = client.read_to_end();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "a stream cut short must not look whole");
        assert_eq!(proxy.process().wait_exit(SOON).unwrap().code(), Some(1), "it was cut off: {:?}", proxy.log());
    }

    fn attack_a_thousand_connections_that_send_nothing(io) {
        const COUNT: usize = 1_000;
        let held = Arc::new(Mutex::new(Vec::new()));
        let holding = held.clone();
        // The bystander speaks; the others are only held, so that no thread waits for them.
        let upstream = OpaqueUpstream::start(move |stream| holding.lock().unwrap().push(stream));
        let echo = OpaqueUpstream::echo();
        let listeners = vec![
            opaque_listener("main", json!({ "cluster": "held", "idle_timeout": "3s" })),
            opaque_listener("echo", json!({ "cluster": "echo" })),
        ];
        let clusters = vec![cluster("held", &[upstream.address()]), cluster("echo", &[echo.address()])];
        let proxy = Proxy::start(&ProxySetup::new(io, resource::bootstrap(listeners, clusters)));
        let mut bystander = Downstream::connect(proxy.listener("echo")).unwrap();
        assert_echo(&mut bystander, b"before");
        let before = proxy.resident_bytes();
        let mut clients = Vec::new();
        // No more at once than the upstream's backlog holds.
        for so_far in (0..COUNT).step_by(100) {
            clients.extend((0..100).map(|_| proxy.connect()));
            wait_for("all to be relayed", SOON, || {
                let count = upstream.connection_count();
                if count == so_far + 100 { Ok(()) } else { Err(format!("{count}")) }
            });
        }
        let grown = proxy.resident_bytes().saturating_sub(before);
        assert!(grown < 16 * MIB, "{grown} bytes for {COUNT} idle connections");
        assert_echo(&mut bystander, b"beside them");
        wait_fault(&proxy, "local", "relay", "idle", COUNT as f64);
        assert_echo(&mut bystander, b"after");
        drop(bystander);
        wait_closed(&proxy);
        drop(clients);
    }
}
