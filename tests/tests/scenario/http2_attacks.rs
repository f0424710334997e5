//! HTTP/2 that is made to confuse or to exhaust: rows 25 to 35 of the threat table, by their numbers. Each time the attacker
//! gets an error or loses its connection, memory stays flat, and connections beside it are served all the while.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use outrigger_tests::world::h2::frame::{PREFACE, code, flag, kind, setting};
use outrigger_tests::world::h2::link::LinkState;
use outrigger_tests::world::h2::{Frame, H2Downstream, LinkSetup, Outcome, downstream, hpack};
use outrigger_tests::world::resource::{self, cluster, merge};
use outrigger_tests::world::{Answer, Downstream, Io, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};

use super::mixes::slow_reader;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
/// What an attack on one connection may cost while it lasts.
const FLAT: u64 = 8 * MIB;

/// A proxy under attack, and two connections beside the attacker's.
struct Target {
    proxy: Proxy,
    upstream: Upstream,
    one: Downstream,
    two: H2Downstream,
    resident: u64,
}

impl Target {
    fn start(io: Io) -> Self {
        Self::with(io, json!({}))
    }

    fn with(io: Io, http: Value) -> Self {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/big" => Answer::status(200).pattern(MIB),
            _ => Answer::ok("reached"),
        });
        // A thousand connects at once may overflow the backlog of the scripted application.
        let many = json!({ "connect_timeout": "20s", "circuit_breakers": { "thresholds": [{
            "max_connections": 8_000, "max_requests": 8_000, "max_pending_requests": 8_000,
        }] } });
        let app = merge(cluster("app", &[upstream.address()]), many);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, app)));
        let mut target = Self { one: proxy.connect(), two: proxy.connect_h2(), resident: 0, upstream, proxy };
        target.serves();
        target.resident = target.proxy.resident_bytes();
        target
    }

    /// The connections beside are served.
    #[track_caller]
    fn serves(&mut self) {
        assert_eq!(self.one.get("/beside").expect("HTTP/1 beside").text(), "reached");
        assert_eq!(self.two.get("/beside").expect("HTTP/2 beside").text(), "reached");
    }

    #[track_caller]
    fn is_unharmed(&mut self) {
        self.serves();
        let grown = self.proxy.resident_bytes().saturating_sub(self.resident);
        assert!(grown < FLAT || !self.proxy.is_ours(), "memory grew by {grown} bytes");
    }

    /// Requests that were forwarded for the attacker.
    fn forwarded(&self) -> Vec<String> {
        let seen = self.upstream.requests().into_iter().map(|request| request.target);
        seen.filter(|target| target != "/beside").collect()
    }

    /// Sends frames on a connection of their own, which must be refused.
    #[track_caller]
    fn refuses(&mut self, what: &str, frames: &[Frame]) -> Refusal {
        self.try_refuse(frames).unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// As above; an error when it is not, or when something of it was forwarded.
    fn try_refuse(&mut self, frames: &[Frame]) -> Result<Refusal, String> {
        let before = self.forwarded().len();
        let attacker = self.proxy.connect_h2();
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        // It may be refused before all is sent.
        let _ = attacker.send_bytes(&bytes);
        let stream = frames.iter().map(|frame| frame.stream).max().unwrap_or(0);
        let refusal = attacker.try_wait("a refusal", Duration::from_secs(5), |state| refusal(state, stream))?;
        self.serves();
        match self.forwarded().get(before) {
            Some(target) => Err(format!("forwarded as {target}")),
            None => Ok(refusal),
        }
    }
}

/// How an attack was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Closed,
    GoAway(u32),
    Reset(u32),
    Status(u16),
}

fn refusal(state: &LinkState, stream: u32) -> Option<Refusal> {
    if let Some((_, code)) = state.go_away.filter(|(_, code)| *code != code::NO_ERROR) {
        return Some(Refusal::GoAway(code));
    }
    let seen = state.stream(stream);
    if let Some(code) = seen.reset {
        return Some(Refusal::Reset(code));
    }
    let status = seen.blocks.first().and_then(|block| block.first(":status")).and_then(|text| text.parse().ok());
    if let Some(status) = status {
        return Some(Refusal::Status(status));
    }
    // GOAWAY with its code comes first where there is one.
    state.end.as_ref().map(|_| Refusal::Closed)
}

fn get(stream: u32, target: &str) -> Frame {
    Frame::headers(stream, hpack::block(&downstream::head("GET", target, &[])), true)
}

/// The head of a request that goes on.
fn post(stream: u32, headers: &[(&str, &str)]) -> Frame {
    Frame::headers(stream, hpack::block(&downstream::head("POST", "/attack", headers)), false)
}

/// A client that writes and never reads, with small buffers for what it does not read.
fn deaf(address: SocketAddr, settings: &[(u16, u32)]) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(&[PREFACE, &Frame::settings(settings).bytes()].concat()).unwrap();
    stream
}

/// Sends a frame that often, in pieces; `true` when the other side ended the connection, or takes no more.
fn floods(stream: &mut TcpStream, frame: &Frame, count: usize) -> bool {
    let piece = frame.bytes().repeat(100);
    let sent = (0..count / 100).all(|_| stream.write_all(&piece).is_ok());
    let is_closed = |stream: &TcpStream| {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match socket2::SockRef::from(stream).send(&[]).and_then(|_| (&mut &*stream).write(&frame.bytes())) {
                Err(_) => return true,
                Ok(_) if Instant::now() > end => return false,
                Ok(_) => std::thread::yield_now(),
            }
        }
    };
    !sent || is_closed(stream)
}

on_both_drivers! {
    fn attack_r25_rapid_reset(io) {
        let mut target = Target::start(io);
        let attacker = target.proxy.connect_h2();
        let mut sent = 0;
        for _ in 0..10_000 {
            let stream = attacker.next_stream();
            let pair = [get(stream, "/attack").bytes(), Frame::reset(stream, code::CANCEL).bytes()].concat();
            if attacker.send_bytes(&pair).is_err() {
                break;
            }
            sent += 1;
            if sent % 500 == 0 {
                target.serves();
            }
        }
        attacker.wait_end();
        assert!(target.forwarded().len() < 2_000, "{} of {sent} were forwarded", target.forwarded().len());
        target.is_unharmed();
    }

    fn attack_r25_a_client_that_cancels_a_little_is_served(io) {
        let mut target = Target::start(io);
        let client = target.proxy.connect_h2();
        for number in 0..60 {
            let stream = client.send_request("GET", "/cancelled", &[], b"").unwrap();
            client.send(&Frame::reset(stream, code::CANCEL)).unwrap();
            assert_eq!(client.get(&format!("/{number}")).unwrap().text(), "reached");
        }
        target.is_unharmed();
    }

    fn attack_r26_made_you_reset(io) {
        let mut target = Target::start(io);
        let attacker = target.proxy.connect_h2();
        for _ in 0..3_000 {
            let stream = attacker.next_stream();
            let pair = [post(stream, &[]).bytes(), Frame::window_update(stream, 0).bytes()].concat();
            if attacker.send_bytes(&pair).is_err() {
                break;
            }
        }
        attacker.wait_end();
        target.is_unharmed();
    }

    fn attack_r27_continuation_without_end(io) {
        let mut target = Target::start(io);
        for piece in [&b""[..], &hpack::block(&[("x-filler", "y".repeat(4_000))])] {
            let attacker = target.proxy.connect_h2();
            attacker.send(&Frame { flags: flag::END_STREAM, ..get(1, "/attack") }).unwrap();
            let block = Frame::new(kind::CONTINUATION, 0, 1, piece).bytes();
            let count = if piece.is_empty() { 20_000 } else { 4_000 };
            let sent = (0..count).take_while(|_| attacker.send_bytes(&block).is_ok()).count();
            let refused = attacker.try_wait("a refusal", Duration::from_secs(5), |state| refusal(state, 1));
            assert!(refused.is_ok(), "{sent} frames of {} bytes were taken: {refused:?}", piece.len());
            target.is_unharmed();
        }
        assert_eq!(target.forwarded(), Vec::<String>::new());
    }

    fn attack_r28_a_small_block_with_a_large_list(io) {
        let mut target = Target::start(io);
        // 4,000 bytes in the table once, then a byte for each time that they are meant.
        let head = hpack::block(&downstream::head("GET", "/attack", &[]));
        let bomb = [head, hpack::indexed_literal(b"x-bomb", &[b'y'; 4_000]), hpack::indexed(62).repeat(8_000)].concat();
        let refused = target.refuses("a bomb of 32 MB", &[Frame::headers(1, bomb.clone(), true)]);
        assert!(matches!(refused, Refusal::Status(431) | Refusal::Reset(_) | Refusal::GoAway(_)), "{refused:?}");
        let attacker = target.proxy.connect_h2();
        for _ in 0..50 {
            if attacker.send(&Frame::headers(attacker.next_stream(), bomb.clone(), true)).is_err() {
                break;
            }
        }
        assert_eq!(target.forwarded(), Vec::<String>::new());
        target.is_unharmed();
    }

    fn attack_r29_floods_of_small_frames(io) {
        let mut target = Target::start(io);
        let priority = Frame::new(kind::PRIORITY, 0, 1, [0, 0, 0, 3, 10]);
        for (what, frame) in [
            ("PING", Frame::ping(*b"flooding")),
            ("SETTINGS", Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1_000)])),
            ("PRIORITY", priority),
            ("empty DATA", Frame::data(1, [], false)),
        ] {
            let mut attacker = deaf(target.proxy.listener("main"), &[]);
            attacker.write_all(&post(1, &[]).bytes()).unwrap();
            assert!(floods(&mut attacker, &frame, 200_000), "{what}: 200,000 of them were taken");
            target.is_unharmed();
        }
        // Cheap, and what a reader of small pieces sends: taken or not.
        let mut attacker = deaf(target.proxy.listener("main"), &[]);
        floods(&mut attacker, &Frame::window_update(0, 1), 200_000);
        target.is_unharmed();
    }

    fn attack_r30_heads_that_are_none(io) {
        let mut target = Target::start(io);
        let base = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/attack")];
        let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
        let instead = |name: &str, value: &'static str| -> Vec<(&'static str, &'static str)> {
            base.iter().map(|(own, old)| (*own, if *own == name { value } else { *old })).collect()
        };
        let mut wrong = Vec::new();
        let without = |name: &str| base.iter().copied().filter(|(own, _)| *own != name).collect::<Vec<_>>();
        for (what, fields) in [
            ("an upper-case name", with(&[("X-Upper", "1")])),
            ("no :path", without(":path")),
            ("no :method", without(":method")),
            ("an empty :path", instead(":path", "")),
            ("two :path", with(&[(":path", "/attack")])),
            ("two :method", with(&[(":method", "GET")])),
            ("two :authority", with(&[(":authority", "b")])),
            ("a pseudo-header after a header", [&without(":path")[..], &[("x", "1"), (":path", "/attack")]].concat()),
            ("an unknown pseudo-header", with(&[(":attack", "1")])),
            (":status in a request", with(&[(":status", "200")])),
            ("connection", with(&[("connection", "close")])),
            ("keep-alive", with(&[("keep-alive", "1")])),
            ("proxy-connection", with(&[("proxy-connection", "close")])),
            ("upgrade", with(&[("upgrade", "h2c")])),
            ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
            ("te: gzip", with(&[("te", "gzip")])),
            ("te: trailers, gzip", with(&[("te", "trailers, gzip")])),
            ("CR LF in a value", with(&[("x", "a\r\nx-smuggled: b")])),
            ("LF in a value", with(&[("x", "a\nb")])),
            ("CR in a value", with(&[("x", "a\rb")])),
            ("NUL in a value", with(&[("x", "a\0b")])),
            ("a colon in a name", with(&[("x:y", "1")])),
            ("a space in a name", with(&[("x y", "1")])),
            ("an empty name", with(&[("", "1")])),
            ("a space in the path", instead(":path", "/attack HTTP/1.1")),
            ("CR LF in the path", instead(":path", "/attack\r\nx: y")),
            ("a path without a slash", instead(":path", "attack")),
            ("a space in the method", instead(":method", "GET /x")),
            ("an empty method", instead(":method", "")),
            ("userinfo", instead(":authority", "user@a")),
            ("a slash in the authority", instead(":authority", "a/b")),
            ("a space in the authority", instead(":authority", "a b")),
            ("authority and host that differ", with(&[("host", "other")])),
            ("two hosts", [&without(":authority")[..], &[("host", "a"), ("host", "b")]].concat()),
            ("two lengths", with(&[("content-length", "0"), ("content-length", "1")])),
            ("a length that is none", with(&[("content-length", "+0")])),
        ] {
            let lax = ["authority and host that differ", "two hosts", "userinfo", "a slash in the authority", "a space in the authority"];
            if !target.proxy.is_ours() && lax.contains(&what) {
                continue;
            }
            match target.try_refuse(&[Frame::headers(1, hpack::block(&fields), true)]) {
                Ok(Refusal::Status(400..500) | Refusal::Closed) => {}
                Ok(Refusal::Reset(code::PROTOCOL_ERROR) | Refusal::GoAway(code::PROTOCOL_ERROR)) => {}
                other => wrong.push(format!("{what}: {other:?}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        target.is_unharmed();
    }

    fn attack_r30_a_fragment_is_refused_or_left_out(io) {
        let target = Target::start(io);
        let client = target.proxy.connect_h2();
        let stream = client.send_request("GET", "/attack#x", &[], b"").unwrap();
        client.outcome(stream);
        assert!(target.forwarded().iter().all(|seen| seen == "/attack"), "{:?}", target.forwarded());
    }

    fn attack_r31_a_length_that_is_not_the_bodys(io) {
        let mut target = Target::start(io);
        let short = [post(1, &[("content-length", "5")]), Frame::data(1, *b"abc", true)];
        let long = [post(1, &[("content-length", "5")]), Frame::data(1, *b"abcdefgh", true)];
        let none = [Frame { flags: flag::END_HEADERS | flag::END_STREAM, ..post(1, &[("content-length", "5")]) }];
        for (what, frames) in [("too short", &short[..]), ("too long", &long), ("none at all", &none)] {
            let refused = target.refuses(what, frames);
            let is_protocol_error =
                matches!(refused, Refusal::Reset(code::PROTOCOL_ERROR) | Refusal::GoAway(code::PROTOCOL_ERROR));
            let is_other = matches!(refused, Refusal::Status(400)) || !target.proxy.is_ours();
            assert!(is_protocol_error || is_other, "{what}: {refused:?}");
        }
        target.is_unharmed();
    }

    fn attack_r32_frames_against_the_rules(io) {
        let mut target = Target::start(io);
        let open = || post(1, &[]);
        let protocol = [Refusal::GoAway(code::PROTOCOL_ERROR)];
        let flow = [Refusal::GoAway(code::FLOW_CONTROL_ERROR)];
        let size = [Refusal::GoAway(code::FRAME_SIZE_ERROR)];
        // The h2 crate tells this one by the general code.
        let compression = [Refusal::GoAway(code::COMPRESSION_ERROR), protocol[0]];
        let idle = [Refusal::GoAway(code::PROTOCOL_ERROR), Refusal::GoAway(5), Refusal::Reset(5)];
        let stream_flow = [Refusal::GoAway(code::FLOW_CONTROL_ERROR), Refusal::Reset(code::FLOW_CONTROL_ERROR)];
        let full = (1 << 31) - 1;
        let mut wrong = Vec::new();
        for (what, frames, wanted) in [
            ("a window of the connection that overflows", vec![Frame::window_update(0, full), Frame::window_update(0, full)], &flow[..]),
            ("a window of a stream that overflows", vec![open(), Frame::window_update(1, full), Frame::window_update(1, full)], &stream_flow),
            ("a window of 2^31", vec![Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)])], &flow),
            ("a frame size of 1", vec![Frame::settings(&[(setting::MAX_FRAME_SIZE, 1)])], &protocol),
            ("push of 2", vec![Frame::settings(&[(setting::ENABLE_PUSH, 2)])], &protocol),
            ("PUSH_PROMISE", vec![open(), Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, 1, [0, 0, 0, 2])], &protocol),
            ("DATA on an idle stream", vec![Frame::data(1, *b"x", true)], &idle),
            ("RST_STREAM on an idle stream", vec![Frame::reset(1, code::CANCEL)], &protocol),
            ("WINDOW_UPDATE on an idle stream", vec![Frame::window_update(1, 1)], &protocol),
            ("SETTINGS ACK with a payload", vec![Frame::new(kind::SETTINGS, flag::ACK, 0, [0; 6])], &size),
            ("SETTINGS of 5 bytes", vec![Frame::new(kind::SETTINGS, 0, 0, [0; 5])], &size),
            ("SETTINGS on a stream", vec![Frame::new(kind::SETTINGS, 0, 1, [])], &protocol),
            ("PING of 7 bytes", vec![Frame::new(kind::PING, 0, 0, [0; 7])], &size),
            ("PING on a stream", vec![Frame::new(kind::PING, 0, 1, [0; 8])], &protocol),
            ("a frame larger than allowed", vec![open(), Frame::data(1, vec![0; 16_385], true)], &size),
            ("DATA for the connection", vec![Frame::data(0, *b"x", true)], &protocol),
            ("HEADERS for the connection", vec![Frame { stream: 0, ..open() }], &protocol),
            ("CONTINUATION without HEADERS", vec![Frame::new(kind::CONTINUATION, flag::END_HEADERS, 1, [])], &protocol),
            ("a frame amid a block", vec![Frame { flags: 0, ..open() }, Frame::ping([0; 8])], &protocol),
            ("padding longer than the frame", vec![open(), Frame::new(kind::DATA, flag::PADDED, 1, [9, 0])], &protocol),
            ("a field that is not in the table", vec![Frame::headers(1, hpack::indexed(99), true)], &compression),
        ] {
            match target.try_refuse(&frames) {
                Ok(refused) if wanted.contains(&refused) => {}
                Ok(Refusal::Closed) if !target.proxy.is_ours() => {}
                other => wrong.push(format!("{what}: {other:?}, wanted {wanted:?}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        target.is_unharmed();
    }

    fn attack_r33_stream_numbers_that_are_none(io) {
        let mut target = Target::start(io);
        let even = target.refuses("an even number", &[get(2, "/attack")]);
        assert_eq!(even, Refusal::GoAway(code::PROTOCOL_ERROR));
        let attacker = target.proxy.connect_h2();
        attacker.send(&get(5, "/beside")).unwrap();
        assert_eq!(attacker.outcome(5).answer().text(), "reached");
        attacker.send(&get(3, "/attack")).unwrap();
        let (_, code) = attacker.wait_go_away();
        // RFC 9113 5.1.1 says PROTOCOL_ERROR; 5.1, of a stream that was closed by a later one, STREAM_CLOSED.
        assert!([code::PROTOCOL_ERROR, 5].contains(&code), "{code}");
        assert_eq!(target.forwarded(), Vec::<String>::new());
        target.is_unharmed();
    }

    fn attack_r34_slow_clients_end_by_a_deadline(io) {
        let mut target = Target::with(io, json!({
            "request_headers_timeout": "0.4s", "stream_idle_timeout": "0.4s",
            "common_http_protocol_options": { "idle_timeout": "60s" },
        }));
        // A head that does not end; an acknowledgement of settings amid it would be an error of its own.
        let attacker = target.proxy.connect_h2_with(&LinkSetup { acknowledges: false, ..LinkSetup::default() });
        attacker.send(&Frame { flags: flag::END_STREAM, ..get(1, "/attack") }).unwrap();
        let slow_head = attacker.wait("the slow head's end", |state| refusal(state, 1));
        // A body that does not come.
        let attacker = target.proxy.connect_h2();
        attacker.send(&post(1, &[])).unwrap();
        attacker.send(&Frame::data(1, *b"x", false)).unwrap();
        let slow_body = attacker.wait("the slow body's end", |state| refusal(state, 1));
        assert!(!matches!(slow_body, Refusal::Status(200..400)), "{slow_body:?}");
        // An answer that is not read.
        let attacker = slow_reader(&target.proxy, 1);
        attacker.send(&get(1, "/big")).unwrap();
        let slow_read = attacker.wait("the slow reader's end", |state| match state.stream(1).reset {
            Some(code) => Some(Refusal::Reset(code)),
            None => state.end.as_ref().map(|_| Refusal::Closed),
        });
        println!("{io:?}: head {slow_head:?}, body {slow_body:?}, read {slow_read:?}");
        target.is_unharmed();
    }

    fn attack_r34_a_preface_that_does_not_end(io) {
        let mut target = Target::with(io, json!({ "request_headers_timeout": "0.4s" }));
        for cut in [3, 16, 23] {
            let mut attacker = target.proxy.connect();
            attacker.send(&PREFACE[..cut]).unwrap();
            if target.proxy.is_ours() {
                attacker.read_to_end().unwrap_or_default();
            }
        }
        target.is_unharmed();
    }

    fn attack_r34_many_idle_connections_are_small(io) {
        const COUNT: u64 = 1_000;
        let mut target = Target::start(io);
        let address = target.proxy.listener("main");
        let idle: Vec<TcpStream> = (0..COUNT)
            .map(|_| {
                let mut stream = deaf(address, &[]);
                stream.write_all(&get(1, "/idle").bytes()).unwrap();
                stream
            })
            .collect();
        target.upstream.wait_requests(idle.len());
        target.serves();
        let grown = target.proxy.resident_bytes().saturating_sub(target.resident);
        assert!(grown < COUNT * 48 * KIB || !target.proxy.is_ours(), "{} KiB a connection", grown / KIB / COUNT);
        println!("{io:?}: {} KiB a connection", grown / KIB / COUNT);
    }

    fn attack_r35_a_thousand_clients_that_never_read(io) {
        const COUNT: u64 = 1_000;
        let mut target = Target::start(io);
        // The median: of a machine that does other things meanwhile, the tail says nothing about the proxy.
        let median = |target: &mut Target| {
            let mut times: Vec<Duration> = (0..100)
                .map(|_| {
                    let begun = Instant::now();
                    target.serves();
                    begun.elapsed()
                })
                .collect();
            times.sort();
            (times[50], times[98])
        };
        let alone = median(&mut target);
        let address = target.proxy.listener("main");
        let before = target.upstream.request_count();
        let held: Vec<TcpStream> = (0..COUNT)
            .map(|_| {
                let mut stream = deaf(address, &[(setting::INITIAL_WINDOW_SIZE, 1)]);
                stream.write_all(&get(1, "/big").bytes()).unwrap();
                stream
            })
            .collect();
        wait_for("all to be forwarded", Duration::from_secs(20), || {
            let seen = target.upstream.request_count() - before;
            if seen == held.len() { Ok(()) } else { Err(format!("{seen}")) }
        });
        let beside = median(&mut target);
        let grown = target.proxy.resident_bytes().saturating_sub(target.resident);
        println!("{io:?}: median and p99 {alone:?} alone, {beside:?} beside; {} KiB a client", grown / KIB / COUNT);
        if target.proxy.is_ours() {
            assert!(beside.0 < alone.0 * 5 + Duration::from_millis(20), "{alone:?} alone, {beside:?} beside");
            assert!(grown < COUNT * 160 * KIB, "{} KiB a client", grown / KIB / COUNT);
        }
    }

    fn a_flood_of_nonsense_frames_leaves_the_others_alone(io) {
        let mut target = Target::start(io);
        for seed in 0..100_u32 {
            let attacker = target.proxy.connect_h2();
            let noise: Vec<u8> = (0..2_048_u32).map(|at| (seed.wrapping_mul(2_654_435_761).wrapping_add(at * 97) >> 7).to_le_bytes()[0]).collect();
            for (at, piece) in noise.chunks(64).enumerate() {
                let number = u32::try_from(at).unwrap();
                let frame = Frame::new(piece[0] % 10, piece[1], (u32::from(piece[2]) + number) % 7, &piece[3..]);
                if attacker.send(&frame).is_err() {
                    break;
                }
            }
            if seed % 20 == 0 {
                target.serves();
            }
        }
        target.is_unharmed();
    }

    fn an_upstream_that_breaks_the_rules_harms_only_itself(io) {
        use outrigger_tests::world::H2Upstream;
        let head = |status: &str| hpack::block(&[(":status", status)]);
        let mut wrong = Vec::new();
        let attacks: Vec<(&str, Vec<Frame>)> = vec![
            ("an upper-case name", vec![Frame::headers(1, hpack::block(&[(":status", "200"), ("X-Upper", "1")]), true)]),
            ("no :status", vec![Frame::headers(1, hpack::block(&[("x", "1")]), true)]),
            ("CR LF in a value", vec![Frame::headers(1, hpack::block(&[(":status", "200"), ("x", "a\r\nb: c")]), true)]),
            ("a status that is none", vec![Frame::headers(1, head("20"), true)]),
            ("101", vec![Frame::headers(1, head("101"), false)]),
            ("connection", vec![Frame::headers(1, hpack::block(&[(":status", "200"), ("connection", "close")]), true)]),
            ("DATA before HEADERS", vec![Frame::data(1, *b"x", true)]),
            ("PUSH_PROMISE", vec![Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, 1, [&[0, 0, 0, 2][..], &head("200")].concat())]),
            ("a window of 2^31", vec![Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)])]),
            ("a bomb", vec![Frame::headers(1, [head("200"), hpack::indexed_literal(b"x", &[b'y'; 4_000]), hpack::indexed(62).repeat(8_000)].concat(), true)]),
            ("an answer on a stream that nobody opened", vec![Frame::headers(9, head("200"), true)]),
        ];
        for (what, frames) in attacks {
            let upstream = H2Upstream::puppet(LinkSetup::default(), move |link| {
                // A connection that ends before it asks is no matter.
                let asked = link.try_wait("a request", Duration::from_secs(20), |state| {
                    state.streams.get(&1).map(|_| true).or(state.end.as_ref().map(|_| false))
                });
                if asked == Ok(true) {
                    frames.iter().for_each(|frame| drop(link.send(frame)));
                    link.try_wait("the end", Duration::from_secs(2), |state| state.end.clone()).ok();
                }
            });
            let app = resource::http2_cluster("app", &[upstream.address()]);
            let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(json!({}), app)));
            let client = proxy.connect_h2();
            let stream = client.send_request("POST", "/", &[], b"x").unwrap();
            match client.outcome_within(stream, Duration::from_secs(5)) {
                Some(Outcome::Answer(response)) if [502, 503].contains(&response.status) => {}
                Some(Outcome::Reset(_)) => {}
                other => wrong.push(format!("{what}: {other:?}")),
            }
            drop(upstream);
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    fn a_length_that_is_not_the_answers_is_not_passed_as_whole(io) {
        use outrigger_tests::world::{H2Answer, H2Upstream};
        for (length, body) in [("5", "abc"), ("2", "abc")] {
            let upstream = H2Upstream::start(move |_| H2Answer::status(200).header("content-length", length).then(body));
            let app = resource::http2_cluster("app", &[upstream.address()]);
            let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding_with(json!({}), app)));
            let client = proxy.connect_h2();
            let stream = client.send_request("GET", "/", &[], b"").unwrap();
            match client.outcome(stream) {
                Outcome::Answer(response) => assert!([502, 503].contains(&response.status), "{length}: {response:?}"),
                Outcome::Reset(_) => {}
                Outcome::Over(code) => panic!("the client's connection is over: {code:?}"),
            }
            let mut one = proxy.connect();
            one.send_request("GET", "/", &[], b"").unwrap();
            assert!(one.read_response("GET").map_or(true, |response| response.status >= 500), "{length}");
        }
    }
}
