//! **Purpose.** What the worker thread allocates per request at steady state: nothing.
//!
//! **Shape.** A worker as `app/thread.rs` starts it, in this process, over loopback, on either driver. Its configuration
//! is the one of `make bench`: retries, ejection, circuit limits, a rate limit, counts by route. Client and upstream are
//! plain blocking sockets on threads of their own; only the worker's thread is counted. The client warms it up, asks
//! for its count, sends [`REQUESTS`] more on the kept connections and asks again.
//!
//! **Limits.** A body that is larger than a block of the receive pool may find the pool short of one: how many blocks
//! are in flight at once is the kernel's to choose. Each block is allocated once, so that is bounded by what a pool
//! keeps at rest, and not by the number of requests: [`POOL_BLOCKS`].

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../reactor/tests/counting/mod.rs"]
mod counting;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use outrigger_proxy::bootstrap;
use outrigger_proxy::config::{ListenerName, Publisher, Reader, Snapshot};
use outrigger_proxy::drain::Drain;
use outrigger_proxy::grpc::GrpcCode;
use outrigger_proxy::listener::{self, Crew};
use outrigger_proxy::stats::{Call, MethodTable, Registry};
use outrigger_proxy::worker::{Shared, Worker};
use outrigger_reactor::{DriverKind, Mailbox, Options, Runtime, Sender, mailbox, spawn};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Requests counted, after [`WARM_UP`].
const REQUESTS: usize = 1000;
/// Requests before: connections, counters, tables and recycled memory come to be.
const WARM_UP: usize = 400;
/// Connections that the client keeps.
const CONNECTIONS: usize = 4;
/// Blocks that a pool keeps at rest (`Options::buffers`).
const POOL_BLOCKS: u64 = 128;
/// No read of this test takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

const GET: &str = "GET /small HTTP/1.1\r\nhost: shop\r\nuser-agent: curl/8.5.0\r\naccept: */*\r\n\r\n";

/// What the worker's thread is asked.
struct Ask {
    /// Print where the next allocations come from.
    trace: u32,
    count: mpsc::SyncSender<u64>,
}

#[test]
fn a_get_allocates_nothing() {
    on_both(GET, 0);
}

#[test]
fn a_post_with_a_length_allocates_nothing() {
    let body = "item=17&count=1";
    on_both(&format!("POST /small HTTP/1.1\r\nhost: shop\r\ncontent-length: {}\r\n\r\n{body}", body.len()), 0);
}

#[test]
fn a_put_that_could_be_sent_again_allocates_nothing() {
    let body = "x".repeat(600);
    on_both(&format!("PUT /small HTTP/1.1\r\nhost: shop\r\ncontent-length: {}\r\n\r\n{body}", body.len()), 0);
}

#[test]
fn chunks_both_ways_allocate_nothing() {
    on_both("POST /chunked HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 0);
}

#[test]
fn a_path_in_another_spelling_allocates_nothing() {
    on_both("GET /x/../small?q=1 HTTP/1.1\r\nhost: shop\r\n\r\n", 0);
}

#[test]
fn a_large_answer_allocates_no_more_than_the_pools_blocks() {
    on_both("GET /large HTTP/1.1\r\nhost: shop\r\n\r\n", POOL_BLOCKS);
}

#[test]
fn a_call_of_a_known_method_is_counted_without_allocating() {
    let registry = Registry::default();
    let table = MethodTable::new("orders".into());
    let served = Call { code: GrpcCode::Ok, is_upstreams: true, request_messages: 1, response_messages: 1 };
    let made_up = Call { code: GrpcCode::Unimplemented, ..served };
    let count = || {
        table.count(b"/shop.v1.Orders/Place", &served, &registry);
        table.count(b"/shop.v1.Orders/NoSuch", &made_up, &registry);
    };
    count();
    let before = counting::allocations();
    (0..REQUESTS).for_each(|_| count());
    assert_eq!(counting::allocations() - before, 0);
}

/// Sends `request` again and again through a worker on each driver; the counted ones may allocate `most` times in all.
fn on_both(request: &str, most: u64) {
    let upstream = spawn_upstream();
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        let (address, asks) = spawn_worker(driver, upstream);
        let ask = |trace| {
            let (count, counted) = mpsc::sync_channel(1);
            assert!(asks.send(Ask { trace, count }).is_ok(), "{driver:?}: the worker ended");
            counted.recv_timeout(PATIENCE).unwrap()
        };
        let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(address)).collect();
        let mut send = |count: usize| {
            for at in 0..count {
                clients[at % CONNECTIONS].exchange(request);
            }
        };
        send(WARM_UP);
        let before = ask(0);
        send(REQUESTS);
        let allocated = ask(0) - before;
        if allocated > most {
            ask(3);
            send(CONNECTIONS);
        }
        assert!(allocated <= most, "{driver:?}: {allocated} allocations in {REQUESTS} requests, at most {most}");
        println!("{driver:?}: {allocated} allocations in {REQUESTS} requests");
    }
}

/// A listening socket whose connections send under plain congestion control: BBR, where a machine has it as default,
/// holds the tail of what is larger than a loopback segment back until a delayed acknowledgement, 40 ms a request.
fn bind() -> TcpListener {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    outrigger_reactor::unpace((&socket).into());
    socket
}

/// A worker on a thread of its own: where it listens, and how its thread is asked.
fn spawn_worker(driver: DriverKind, upstream: SocketAddr) -> (SocketAddr, Sender<Ask>) {
    let socket = bind();
    let address = socket.local_addr().unwrap();
    let snapshot = Arc::new(configuration(upstream));
    let name = snapshot.listeners()[0].name.clone();
    let shared = Shared::new(Arc::<Registry>::default(), Instant::now());
    shared.follow(&snapshot);
    let publisher = Publisher::new();
    publisher.publish(snapshot);
    let reader = publisher.reader();
    let (started, starting) = mpsc::channel();
    // Ends with the process: its sockets and the mailbox are all that others see of it.
    thread::spawn(move || {
        let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
        runtime.block_on(async move {
            let (sender, asks) = mailbox();
            started.send(sender).unwrap();
            serve((shared, reader), name, socket, asks).await;
        });
    });
    (address, starting.recv_timeout(PATIENCE).unwrap())
}

async fn serve(seed: (Arc<Shared>, Reader), name: ListenerName, socket: TcpListener, mut asks: Mailbox<Ask>) {
    let (crew, _inbox) = Crew::muster(1).remove(0);
    let worker = Worker::new(seed.0, seed.1, 7, crew.load().clone());
    let socket = outrigger_reactor::TcpListener::from_std(socket).unwrap();
    let stop = Drain::default();
    let _accepting = spawn(listener::accept(worker.clone(), crew, name, socket, stop.watch()));
    while let Some(ask) = asks.recv().await {
        let count = counting::allocations();
        ask.count.send(count).unwrap();
        counting::trace(ask.trace);
    }
}

/// What `make bench` measures, to `upstream`.
fn configuration(upstream: SocketAddr) -> Snapshot {
    let template = include_str!("../../tests/bench/ours.yaml");
    let port = upstream.port().to_string();
    let places = [
        ("@ADMIN@", "1"),
        ("@PORT@", "2"),
        ("@TCP@", "3"),
        ("@FRAMED@", "4"),
        ("@BACKEND@", &port),
        ("@FRAMED_BACKEND@", &port),
        ("@GRPC_BACKEND@", &port),
    ];
    let text = places.iter().fold(template.to_owned(), |text, (place, value)| text.replace(place, value));
    let bootstrap = bootstrap::parse(Path::new("ours.yaml"), &text).unwrap();
    let (snapshot, dangling) = Snapshot::link(1, &bootstrap.resources);
    assert!(dangling.is_empty(), "{dangling:?}");
    snapshot
}

/// A connection of the client.
struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, received: Vec::new() }
    }

    /// Sends a request and reads its answer to the last byte.
    fn exchange(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).unwrap();
        let head = read_message(&mut self.stream, &mut self.received).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}

/// An application on threads of its own: answers by path.
fn spawn_upstream() -> SocketAddr {
    let socket = bind();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = socket.accept() {
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut received = Vec::new();
                while let Some(head) = read_message(&mut stream, &mut received) {
                    // The proxy may be gone with its test: then nobody waits for an answer.
                    let _ = stream.write_all(&answer(&head));
                }
            });
        }
    });
    address
}

fn answer(head: &str) -> Vec<u8> {
    let path = head.split([' ', '?']).nth(1).unwrap();
    let with_length = |bytes: usize| {
        format!("HTTP/1.1 200 OK\r\nserver: app\r\ncontent-length: {bytes}\r\n\r\n{}", "o".repeat(bytes))
    };
    match path {
        "/small" => with_length(128),
        "/large" => with_length(64 * 1024),
        "/chunked" => {
            let chunk = format!("40\r\n{}\r\n", "o".repeat(64));
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3))
        }
        other => panic!("no answer for {other}"),
    }
    .into_bytes()
}

/// Reads one message and drops its body; what follows stays in `received`. `None`: the connection ended.
fn read_message(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<String> {
    let head_bytes = read_until(stream, received, b"\r\n\r\n")?;
    let head = String::from_utf8(received.drain(..head_bytes).collect()).unwrap().to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        let body_bytes = read_until(stream, received, b"0\r\n\r\n")?;
        received.drain(..body_bytes);
    } else if let Some((_, after)) = head.split_once("content-length: ") {
        let body_bytes: usize = after.lines().next().unwrap().parse().unwrap();
        while received.len() < body_bytes {
            read_more(stream, received)?;
        }
        received.drain(..body_bytes);
    }
    Some(head.replacen("http", "HTTP", 1))
}

/// How many bytes there are up to the end of `mark`.
fn read_until(stream: &mut TcpStream, received: &mut Vec<u8>, mark: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = received.windows(mark.len()).position(|window| window == mark) {
            return Some(at + mark.len());
        }
        read_more(stream, received)?;
    }
}

fn read_more(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<()> {
    let mut block = [0; 16 * 1024];
    let count = stream.read(&mut block).ok()?;
    received.extend_from_slice(&block[..count]);
    (count > 0).then_some(())
}
