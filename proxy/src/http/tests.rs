//! Forwarding over real sockets on both drivers; the scenarios in `tests/` go deeper.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_reactor::{DriverKind, Options, Runtime, spawn};

use super::downstream::Downstream;
use crate::config::{
    ChainId, CircuitLimits, ClusterConfig, ClusterTarget, Direction, Discovery, EndpointConfig, EndpointSet,
    ForwardAction, HeaderEdits, Http2Config, HttpConnectionConfig, ListenerConfig, LoadBalancing, PathMatch, Protocol,
    Publisher, Resources, Route, RouteAction, RouteMatch, RouteSource, RouteTable, Snapshot, UpstreamProtocol,
    VirtualHost,
};
use crate::stats::Registry;
use crate::worker::{Shared, Worker};

const DEADLINE: Duration = Duration::from_secs(10);

/// Reads one message head, and the body that its Content-Length or chunks announce.
fn read_message(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut one = [0];
    let ends = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).to_lowercase();
        let Some(head) = text.find("\r\n\r\n") else { return false };
        if text.contains("transfer-encoding: chunked") {
            return text.ends_with("\r\n0\r\n\r\n");
        }
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        text.len() >= head + 4 + length.unwrap_or(0)
    };
    while !ends(&bytes) {
        match socket.read(&mut one) {
            Ok(1) => bytes.push(one[0]),
            Ok(_) => break,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn route(prefix: &str, cluster: &str) -> Arc<Route> {
    Arc::new(Route {
        access: Vec::new(),
        name: cluster.into(),
        matches: RouteMatch {
            path: PathMatch::Prefix(prefix.into()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            fraction_ppm: 1_000_000,
        },
        action: RouteAction::Forward(ForwardAction {
            target: ClusterTarget::One(cluster.into(), None),
            cluster_not_found_status: 503,
            timeout: Some(DEADLINE),
            idle_timeout: None,
            retry: None,
            path_rewrite: None,
            host_rewrite: None,
            max_stream_duration: None,
            grpc_timeout_max: None,
            upgrades: Vec::new(),
            hash: Vec::new(),
        }),
        rate_limit: None,
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
    })
}

fn snapshot(upstream: SocketAddr) -> Snapshot {
    let table = RouteTable {
        name: "table".into(),
        virtual_hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: vec![route("/up", "up"), route("/gone", "gone")],
            request_edits: HeaderEdits::default(),
            response_edits: HeaderEdits::default(),
            rate_limit: None,
        }],
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        ignore_port_in_host: false,
    };
    let endpoint =
        EndpointConfig { address: upstream, weight: 1, priority: 0, locality: "".into(), health: Default::default() };
    let cluster = ClusterConfig {
        name: "up".into(),
        discovery: Discovery::Static(Arc::new(EndpointSet {
            endpoints: vec![endpoint],
            overprovisioning_percent: 140,
        })),
        connect_timeout: DEADLINE,
        balancing: LoadBalancing::RoundRobin,
        limits: CircuitLimits {
            max_connections: 4,
            max_pending_requests: 4,
            max_requests: 4,
            max_retries: 3,
            retry_budget: None,
        },
        outlier: None,
        panic_threshold_percent: 50,
        idle_timeout: None,
        max_requests_per_connection: None,
        protocol: UpstreamProtocol::Http1,
        http2: Http2Config::default(),
        proxy_header: None,
        rate_limit: None,
    };
    let listener = ListenerConfig::plain(
        "in".into(),
        vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        Direction::Unspecified,
        Protocol::Http(Arc::new(HttpConnectionConfig::new("in", RouteSource::Inline(Arc::new(table))))),
    );
    let mut resources = Resources::default();
    resources.clusters.insert("up".into(), Arc::new(cluster));
    resources.listeners.insert("in".into(), Arc::new(listener));
    Snapshot::link(1, &resources).0
}

/// Runs `client` against a proxy in front of `upstream` on `driver`.
/// The one chain of the listener.
fn chain() -> Rc<ChainId> {
    Rc::new(ChainId { listener: "in".into(), chain: "any".into() })
}

fn with_proxy(driver: DriverKind, upstream: SocketAddr, client: impl FnOnce(SocketAddr) + Send + 'static) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let publisher = Publisher::new();
    publisher.publish(Arc::new(snapshot(upstream)));
    let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
    runtime.block_on(async {
        let shared = Shared::new(Arc::<Registry>::default(), Instant::now());
        let worker = Worker::new(shared, publisher.reader(), 7, Arc::default());
        let listening = outrigger_reactor::TcpListener::from_std(socket).unwrap();
        let accepting = Rc::clone(&worker);
        let _accepting = spawn(async move {
            while let Ok((stream, peer)) = listening.accept().await {
                spawn(super::serve(accepting.clone(), chain(), stream, (peer, None))).detach();
            }
        });
        let (done, mut finished) = outrigger_reactor::mailbox();
        let thread = std::thread::spawn(move || {
            client(address);
            assert!(done.send(()).is_ok());
        });
        assert_eq!(outrigger_reactor::timeout(DEADLINE * 2, finished.recv()).await, Ok(Some(())), "the client failed");
        thread.join().unwrap();
    });
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn forwards_over_kept_connections(driver: DriverKind) {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = upstream.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = upstream.accept().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut seen = Vec::new();
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        ] {
            seen.push(read_message(&mut socket));
            socket.write_all(answer.as_bytes()).unwrap();
        }
        seen
    });
    with_proxy(driver, address, |proxy| {
        let mut socket = connect(proxy);
        socket.write_all(b"GET /up?q=1 HTTP/1.1\r\nHost: shop\r\nConnection: x\r\nX: drop me\r\n\r\n").unwrap();
        let answer = read_message(&mut socket);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
        socket
            .write_all(b"POST /up HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
            .unwrap();
        let answer = read_message(&mut socket);
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        assert!(body.contains("abc") && body.contains("defg") && answer.ends_with("0\r\n\r\n"), "{answer}");
        socket.write_all(b"GET /gone HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
        let answer = read_message(&mut socket);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.contains(
                "outrigger-fault: side=local; stage=route; kind=no-cluster; cluster=gone; retry=safe; epoch=1"
            ),
            "{answer}"
        );
        socket.write_all(b"GET /nowhere HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
        assert!(read_message(&mut socket).starts_with("HTTP/1.1 404 "));
        socket.write_all(b"BAD\r\n\r\n").unwrap();
        assert!(read_message(&mut socket).starts_with("HTTP/1.1 400 "));
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    });
    let seen = server.join().unwrap();
    assert!(seen[0].starts_with("GET /up?q=1 HTTP/1.1\r\n") && !seen[0].contains("drop me"), "{}", seen[0]);
    assert!(seen[1].ends_with("2\r\nhi\r\n0\r\n\r\n"), "{}", seen[1]);
}

#[test]
fn forwards_over_kept_connections_on_epoll() {
    forwards_over_kept_connections(DriverKind::Epoll);
}

#[test]
fn forwards_over_kept_connections_on_uring() {
    forwards_over_kept_connections(DriverKind::Uring);
}

/// Of what an idle connection holds, its task is the most: see `docs/decisions`, "An idle connection in 1.3 KiB".
#[test]
fn the_task_of_a_connection_is_small() {
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
        runtime.block_on(async {
            let listening = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = std::net::TcpStream::connect(listening.local_addr().unwrap()).unwrap();
            let stream = outrigger_reactor::TcpStream::from_std(stream).unwrap();
            let peer = stream.peer_addr();
            let shared = Shared::new(Arc::<Registry>::default(), Instant::now());
            let worker = Worker::new(shared, Publisher::new().reader(), 7, Arc::default());
            let task = super::serve(worker, chain(), stream, (peer, None));
            assert!(size_of_val(&task) <= 832, "{} bytes: nest what is large and rare", size_of_val(&task));
        });
    }
}

/// What an exchange holds while it goes on, and what each of many streams at once touches: what is rare is nested.
#[test]
fn an_exchange_is_no_larger_than_what_it_mostly_does() {
    fn of_stream<'a, A, B, F: Future + 'a>(_: impl Fn(&'a mut Downstream, A, B) -> F) -> usize {
        size_of::<F>()
    }
    fn of_message<'a, A, F: Future + 'a>(_: impl Fn(&'a mut Downstream, A) -> F) -> usize {
        size_of::<F>()
    }
    let sizes = (of_message(Downstream::exchange_received), of_stream(Downstream::exchange_stream));
    assert!(sizes.0 <= 3_400 && sizes.1 <= 3_500, "{sizes:?} bytes: nest what is large and rare");
}
