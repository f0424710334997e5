//! The admin port over a made-up flash sale, to look at the live page without a mesh:
//! `cargo run -p outrigger-proxy --example admin_page -- 127.0.0.1:15000`.
//!
//! Nothing is proxied: a clock feeds the same counters that workers feed. One endpoint is ejected now and then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use outrigger_proxy::admin::{AdminControl, AdminSources, Readiness, serve};
use outrigger_proxy::chance::Chance;
use outrigger_proxy::config::{
    CircuitLimits, ClusterConfig, ClusterTarget, Direction, Discovery, EndpointConfig, EndpointHealth, EndpointSet,
    ForwardAction, HeaderEdits, Http2Config, HttpConnectionConfig, ListenerConfig, LoadBalancing, PathMatch, Protocol,
    Publisher, Resources, Route, RouteAction, RouteMatch, RouteSource, RouteTable, Snapshot, UpstreamProtocol,
    VirtualHost,
};
use outrigger_proxy::fault::Kind;
use outrigger_proxy::observe::{EpochLog, IoCheck, IoView, WorkerIo, XdsStatus, XdsType};
use outrigger_proxy::stats::{ClusterCell, EndpointCell, ListenerCell, Registry, RouteCell, RouteKey};

const TICK: Duration = Duration::from_millis(20);
const LISTENER: &str = "outbound-15001";

/// Name, host, path, cluster, requests a second, middle latency in microseconds.
const ROUTES: [(&str, &str, &str, &str, u64, u64); 7] = [
    ("place-order", "orders.shop", "/v1/orders", "orders", 2400, 2300),
    ("order-status", "orders.shop", "/v1/orders/status", "orders", 900, 900),
    ("stock-level", "stock.shop", "/v1/stock", "stock", 5200, 420),
    ("reserve", "stock.shop", "/v1/reserve", "stock", 1200, 1800),
    ("charge", "payment.shop", "/v1/charge", "payment", 310, 14_000),
    ("refund", "payment.shop", "/v1/refund", "payment", 2, 21_000),
    ("legacy-<script>\"&", "orders.shop", "/old", "orders", 0, 1000),
];

struct Nothing;

impl AdminControl for Nothing {
    fn drain(&self) {}
    fn quit(&self) {
        std::process::exit(0);
    }
    fn set_healthy(&self, _: bool) {}
    fn set_log_level(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
    fn log_level(&self) -> String {
        "info".into()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:15000".into());
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("http://{}/", listener.local_addr()?);
    let started = Instant::now();
    let registry = Arc::<Registry>::default();
    let publisher = Publisher::new();
    let epochs = Arc::<EpochLog>::default();
    for epoch in 1..=12 {
        let (snapshot, _) = Snapshot::link(epoch, &resources());
        epochs.record(&publisher.current(), &snapshot, SystemTime::now());
        publisher.publish(Arc::new(snapshot));
    }
    let sources = AdminSources {
        registry: registry.clone(),
        publisher,
        epochs,
        started,
        io: IoView {
            choice: "auto".into(),
            driver: "uring".into(),
            reason: "kernel 6.18 allows io_uring: multishot, buffer rings and the self-test passed".into(),
            kernel: "6.18.0".into(),
            checks: vec![IoCheck { name: "self-test".into(), passed: true, detail: "loopback echo in 90 µs".into() }],
            worker_count: 2,
            worker_reason: "the 2 CPUs allowed; no quota, no request known".into(),
        },
        workers: Arc::new(|| vec![WorkerIo::default(), WorkerIo { worker: 1, ..WorkerIo::default() }]),
        ready: Arc::new(Readiness::default),
        capture: Arc::new(|| None),
        xds: Arc::new(move || xds_status(started)),
        limits: Arc::new(Vec::new),
        control: Arc::new(Nothing),
        node: "gateway-0".into(),
    };
    let traffic = traffic(&registry, started);
    tokio::select! {
        served = serve(listener, Arc::new(sources), std::future::pending()) => served,
        () = traffic => Ok(()),
    }
}

fn xds_status(started: Instant) -> XdsStatus {
    let names = ["Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"];
    XdsStatus {
        configured: true,
        server: "127.0.0.1:15010".into(),
        connected: true,
        connects: 1,
        last_heard: Some(started.elapsed()),
        types: names.map(|name| XdsType { name: name.into(), accepted: 12, ..XdsType::default() }).into(),
        ..XdsStatus::default()
    }
}

struct Lane {
    route: Arc<RouteCell>,
    cluster: Arc<ClusterCell>,
    endpoints: Vec<Arc<EndpointCell>>,
    per_second: u64,
    middle_us: u64,
}

async fn traffic(registry: &Registry, started: Instant) {
    let chance = Chance::from_seed(7);
    let listener = registry.listener(LISTENER.into());
    let lanes: Vec<Lane> = ROUTES
        .iter()
        .map(|&(name, host, _, cluster, per_second, middle_us)| Lane {
            route: registry.route(RouteKey {
                listener: LISTENER.into(),
                virtual_host: host.into(),
                route: name.into(),
            }),
            cluster: registry.cluster(cluster.into()),
            endpoints: addresses(cluster).map(|address| registry.endpoint(&cluster.into(), address)).collect(),
            per_second,
            middle_us,
        })
        .collect();
    lanes.iter().for_each(|lane| lane.cluster.connections.add(12));
    listener.connections.add(64);
    let victim = registry.endpoint(&"orders".into(), "10.4.1.12:8080".parse().expect("an address"));
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let second = started.elapsed().as_secs();
        eject_now_and_then(&victim, started, second);
        // A wave a minute long, with a surge in its second half.
        let swing = 60 + (second % 60).min(60 - second % 60) * 2 + if second % 60 > 35 { 40 } else { 0 };
        for lane in &lanes {
            let expected = lane.per_second * swing * 20;
            let requests = expected / 100_000 + u64::from(chance.below(100_000) < expected % 100_000);
            (0..requests).for_each(|_| one_request(lane, &listener, &chance, swing));
        }
    }
}

fn eject_now_and_then(victim: &EndpointCell, started: Instant, second: u64) {
    let is_out = second % 45 >= 3 && second % 45 < 33;
    if is_out && !victim.ejected.swap(true, Relaxed) {
        victim.ejections.fetch_add(1, Relaxed);
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(0);
        victim.ejected_at_ms.store(now_ms, Relaxed);
        victim.ejected_until_ms.store(now_ms + 30_000, Relaxed);
    } else if !is_out {
        victim.ejected.store(false, Relaxed);
        victim.ejected_until_ms.store(0, Relaxed);
    }
}

fn one_request(lane: &Lane, listener: &ListenerCell, chance: &Chance, swing: u64) {
    listener.requests.add_one();
    lane.route.requests.add_one();
    if chance.below(400) == 0 {
        listener.accepted.add_one();
    }
    if chance.below(9000) == 0 {
        listener.faults.add_one(Kind::BadHeader);
    }
    if swing > 140 && lane.per_second > 2000 && chance.below(20) == 0 {
        lane.route.limited.add_one();
        lane.route.by_class[4].add_one();
        lane.route.faults.add_one(Kind::RateLimited);
        lane.route.latency.record(60);
        return;
    }
    // The middle, times 0.5 to 8, most of it low.
    let stretch = (50 + chance.below(60)) * (1 + chance.below(8) * chance.below(8) * chance.below(8) / 80);
    let latency = lane.middle_us * stretch / 100;
    lane.cluster.requests.add_one();
    let usable: Vec<_> = lane.endpoints.iter().filter(|endpoint| !endpoint.ejected.load(Relaxed)).collect();
    let at = usize::try_from(chance.below(usable.len() as u64)).unwrap_or(0);
    let endpoint = usable[at];
    endpoint.requests.fetch_add(1, Relaxed);
    endpoint.connections.store(4, Relaxed);
    endpoint.active.store(u32::try_from(chance.below(6)).unwrap_or(0), Relaxed);
    lane.route.active.add(i64::try_from(chance.below(9)).unwrap_or(0) - lane.route.active.value());
    let failed = chance.below(if lane.middle_us > 10_000 { 160 } else { 2500 }) == 0;
    lane.cluster.by_class[if failed { 5 } else { 2 }].add_one();
    lane.cluster.latency.record(latency);
    lane.route.latency.record(latency + 80);
    if failed {
        endpoint.failures.fetch_add(1, Relaxed);
        lane.route.retries.add_one();
        lane.route.retry_success.add_one();
    }
    let lost = failed && chance.below(3) == 0;
    lane.route.by_class[if lost { 5 } else { 2 }].add_one();
    if lost {
        let kinds = [Kind::RouteTimeout, Kind::ResponseReset, Kind::ConnectRefused];
        lane.route.faults.add_one(kinds[usize::try_from(chance.below(3)).unwrap_or(0)]);
    }
}

fn addresses(cluster: &str) -> impl Iterator<Item = SocketAddr> {
    let (net, count) = match cluster {
        "orders" => (1, 3),
        "stock" => (2, 2),
        _ => (3, 1),
    };
    (0..count).map(move |at| SocketAddr::from(([10, 4, net, 11 + at], 8080)))
}

fn resources() -> Resources {
    let mut resources = Resources::default();
    for name in ["orders", "stock", "payment"] {
        let cluster = cluster(name);
        resources.clusters.insert(cluster.name.clone(), Arc::new(cluster));
    }
    let hosts = ["orders.shop", "stock.shop", "payment.shop"];
    let table = RouteTable {
        name: "shop".into(),
        virtual_hosts: hosts.map(virtual_host).into(),
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        ignore_port_in_host: false,
    };
    let listener = ListenerConfig::plain(
        LISTENER.into(),
        vec![SocketAddr::from(([127, 0, 0, 1], 15001))],
        Direction::Outbound,
        Protocol::Http(Arc::new(HttpConnectionConfig::new("outbound", RouteSource::Inline(Arc::new(table))))),
    );
    resources.listeners.insert(listener.name.clone(), Arc::new(listener));
    resources
}

fn virtual_host(host: &str) -> VirtualHost {
    let routes = ROUTES.iter().filter(|route| route.1 == host).map(|&(name, _, path, cluster, ..)| {
        Arc::new(Route {
            access: Vec::new(),
            name: name.into(),
            matches: RouteMatch {
                path: PathMatch::Prefix(path.into()),
                case_sensitive: true,
                headers: Vec::new(),
                query: Vec::new(),
                fraction_ppm: 1_000_000,
            },
            action: RouteAction::Forward(ForwardAction {
                target: ClusterTarget::One(cluster.into(), None),
                cluster_not_found_status: 503,
                timeout: Some(Duration::from_secs(15)),
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
    });
    VirtualHost {
        name: host.into(),
        domains: vec![host.into()],
        routes: routes.collect(),
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        rate_limit: None,
    }
}

fn cluster(name: &str) -> ClusterConfig {
    let endpoints = addresses(name).map(|address| EndpointConfig {
        address,
        weight: 1,
        priority: 0,
        locality: "eu-west/eu-west-1/a".into(),
        health: if address.port() == 8080 { EndpointHealth::Healthy } else { EndpointHealth::Unknown },
    });
    let set = EndpointSet { endpoints: endpoints.collect(), overprovisioning_percent: 140 };
    ClusterConfig {
        name: name.into(),
        discovery: Discovery::Static(Arc::new(set)),
        connect_timeout: Duration::from_secs(5),
        balancing: LoadBalancing::LeastRequest { choices: 2 },
        limits: CircuitLimits {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
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
    }
}
