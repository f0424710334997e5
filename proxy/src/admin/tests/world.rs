//! A served admin port over made-up state, and a plain HTTP client.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::admin::{AdminControl, AdminSources, Readiness, serve};
use crate::config::*;
use crate::fault::Kind;
use crate::grpc::GrpcCode;
use crate::observe::{CaptureView, EpochLog, IoCheck, IoView, LimitLevel, WorkerIo, XdsStatus, XdsType};
use crate::stats::{Call, MethodTable, Registry, RouteCell, RouteKey};

/// A name that breaks whatever does not escape it.
pub(super) const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"\\\n\u{202e}ü{}";
/// Longest wait of any test.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) calls: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }
}

impl AdminControl for Recorder {
    fn drain(&self) {
        self.note("drain");
    }
    fn quit(&self) {
        self.note("quit");
    }
    fn set_healthy(&self, healthy: bool) {
        self.note(format!("healthy={healthy}"));
    }
    fn set_log_level(&self, level: &str) -> Result<(), String> {
        if level == "loud" {
            return Err("no such level".into());
        }
        self.note(format!("level={level}"));
        Ok(())
    }
    fn log_level(&self) -> String {
        "info".into()
    }
}

/// A served port. Dropping it stops the server.
pub(super) struct World {
    pub(super) address: SocketAddr,
    pub(super) recorder: Arc<Recorder>,
    pub(super) ready: Arc<Mutex<Readiness>>,
    pub(super) route: Arc<RouteCell>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl World {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorder = Arc::<Recorder>::default();
        let ready = Arc::new(Mutex::new(Readiness::default()));
        let registry = Arc::<Registry>::default();
        let route = fill(&registry);
        let publisher = Publisher::new();
        let epochs = Arc::<EpochLog>::default();
        let (first, _) = Snapshot::link(1, &resources());
        epochs.record(&publisher.current(), &first, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        publisher.publish(Arc::new(first));
        let asked = ready.clone();
        let sources = AdminSources {
            registry,
            publisher,
            epochs,
            started: Instant::now(),
            io: io_view(),
            workers: Arc::new(|| vec![WorkerIo { worker: 0, turns: 9, ..WorkerIo::default() }]),
            ready: Arc::new(move || asked.lock().unwrap().clone()),
            capture: Arc::new(|| Some(CaptureView { is_proven: true, answered: 3, lost: 1 })),
            xds: Arc::new(xds_status),
            limits: Arc::new(|| vec![LimitLevel { rule: HOSTILE.into(), tokens: 7, max_tokens: 10 }]),
            control: recorder.clone(),
            node: "gateway-0".into(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, Arc::new(sources), async move {
            let _ = stopped.await;
        }));
        Self { address, recorder, ready, route, stop: Some(stop), serving }
    }

    pub(super) async fn ask(&self, method: &str, target: &str) -> Answer {
        self.ask_with(method, target, &[("host", &self.address.to_string())]).await
    }

    pub(super) async fn ask_with(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        tokio::time::timeout(DEADLINE, exchange(self.address, method, target, headers)).await.unwrap()
    }

    /// Begins the shutdown and waits for the server's end.
    pub(super) async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(DEADLINE, &mut self.serving).await.unwrap().unwrap().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

async fn exchange(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("{method} {target} HTTP/1.1\r\n{lines}connection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.into(), body: body.into() }
}

fn io_view() -> IoView {
    IoView {
        choice: "auto".into(),
        driver: "epoll".into(),
        reason: "io_uring_setup: EPERM (a seccomp profile forbids it)".into(),
        kernel: "6.18.0".into(),
        checks: vec![IoCheck { name: "setup".into(), passed: false, detail: "EPERM".into() }],
        worker_count: 2,
        worker_reason: "the 2 CPUs allowed; no quota, no request known".into(),
    }
}

fn xds_status() -> XdsStatus {
    XdsStatus {
        configured: true,
        server: "127.0.0.1:15010".into(),
        connected: true,
        connects: 2,
        last_heard: Some(Duration::from_millis(1500)),
        types: vec![XdsType {
            name: "Cluster".into(),
            version: "a1".into(),
            resources: 2,
            accepted: 3,
            rejected: 1,
            last_rejection: Some("cluster \"pay\": connect_timeout: 0s".into()),
        }],
        ignored_fields: vec![("cluster.alt_stat_name".into(), 4)],
        ..XdsStatus::default()
    }
}

/// Two workers' counts of one route under a hostile name, a cluster with an ejected endpoint, and a listener.
fn fill(registry: &Registry) -> Arc<RouteCell> {
    let key = RouteKey { listener: "in".into(), virtual_host: "shop".into(), route: HOSTILE.into() };
    let cells = [registry.route(key.clone()), registry.route(key)];
    for cell in &cells {
        for at in 0..50u64 {
            cell.requests.add_one();
            cell.by_class[2].add_one();
            cell.latency.record(100 * (at + 1));
        }
        cell.faults.add_one(Kind::RateLimited);
        cell.retry_suppressed[1].add_one();
    }
    registry.cluster("orders".into()).requests.add(7);
    let call = Call { code: GrpcCode::Ok, is_upstreams: true, request_messages: 1, response_messages: 4 };
    for _ in 0..2 {
        let table = MethodTable::new("orders".into());
        table.count(b"/shop.v1.Orders/Place", &call, registry);
        table.count(b"/shop.v1.Orders/Place", &Call { code: GrpcCode::Unavailable, ..call }, registry);
        table.count(b"/shop.v1.Orders/Place", &Call { code: GrpcCode::NotFound, ..call }, registry);
        table.count(b"/shop.v1.Orders/Place", &call, registry);
    }
    let listener = registry.listener("in".into());
    listener.accepted.add(3);
    listener.faults.add_one(Kind::BadHost);
    let endpoint = registry.endpoint(&"orders".into(), "10.0.0.1:80".parse().unwrap());
    endpoint.requests.store(5, Relaxed);
    endpoint.ejected.store(true, Relaxed);
    endpoint.ejected_until_ms.store(3_600_000, Relaxed);
    endpoint.ejections.store(2, Relaxed);
    let [first, _] = cells;
    first
}

/// One of everything.
pub(super) fn resources() -> Resources {
    let mut resources = Resources::default();
    let limit = Arc::new(LocalRateLimit {
        rule: HOSTILE.into(),
        bucket: TokenBucketConfig { max_tokens: 10, tokens_per_fill: 5, fill_interval: Duration::from_millis(250) },
        enabled_ppm: 1_000_000,
        enforced_ppm: 500_000,
        status: 429,
    });
    for cluster in [static_cluster("orders", Some(limit.clone())), dns_cluster()] {
        resources.clusters.insert(cluster.name.clone(), Arc::new(cluster));
    }
    let table = Arc::new(route_table(limit));
    let listener = |name: &str, routes| {
        ListenerConfig::plain(
            name.into(),
            vec!["127.0.0.1:15001".parse().unwrap()],
            Direction::Outbound,
            Protocol::Http(Arc::new(http(routes))),
        )
    };
    for one in [listener("in", RouteSource::Inline(table.clone())), listener("out", RouteSource::Named("shop".into()))]
    {
        resources.listeners.insert(one.name.clone(), Arc::new(one));
    }
    resources.route_tables.insert(table.name.clone(), table);
    resources
}

fn http(routes: RouteSource) -> HttpConnectionConfig {
    HttpConnectionConfig {
        underscore_headers: UnderscoreHeaders::RejectRequest,
        server_header: ServerHeader::AppendIfAbsent,
        use_remote_address: true,
        xff_trusted_hops: 1,
        ..HttpConnectionConfig::new("in", routes)
    }
}

fn static_cluster(name: &str, rate_limit: Option<Arc<LocalRateLimit>>) -> ClusterConfig {
    let endpoint = |address: &str, health| EndpointConfig {
        address: address.parse().unwrap(),
        weight: 3,
        priority: 0,
        locality: "eu/eu-1/a".into(),
        health,
    };
    let set = EndpointSet {
        endpoints: vec![
            endpoint("10.0.0.1:80", EndpointHealth::Healthy),
            endpoint("[fd00::2]:80", EndpointHealth::Draining),
        ],
        overprovisioning_percent: 140,
    };
    ClusterConfig {
        name: name.into(),
        discovery: Discovery::Static(Arc::new(set)),
        connect_timeout: Duration::from_millis(250),
        balancing: LoadBalancing::LeastRequest { choices: 2 },
        limits: CircuitLimits {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: Some(RetryBudget { budget_bp: 2050, min_concurrency: 3 }),
        },
        outlier: Some(OutlierDetection {
            consecutive_5xx: 5,
            consecutive_gateway_failure: 5,
            consecutive_local_origin_failure: 5,
            split_external_local_origin: false,
            enforcing_consecutive_5xx: 100,
            enforcing_consecutive_gateway_failure: 0,
            enforcing_consecutive_local_origin_failure: 100,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one: true,
        }),
        panic_threshold_percent: 50,
        idle_timeout: None,
        max_requests_per_connection: Some(1000),
        protocol: UpstreamProtocol::Http1,
        http2: Http2Config::default(),
        proxy_header: None,
        rate_limit,
    }
}

fn dns_cluster() -> ClusterConfig {
    let dns =
        Discovery::Dns { targets: vec![("stock.shop".into(), 8080, 1)], strict: true, refresh: Duration::from_secs(5) };
    ClusterConfig {
        discovery: dns,
        balancing: LoadBalancing::RoundRobin,
        outlier: None,
        limits: CircuitLimits {
            max_connections: 1,
            max_pending_requests: 2,
            max_requests: 3,
            max_retries: 4,
            retry_budget: None,
        },
        ..static_cluster("stock", None)
    }
}

fn retry_policy() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn { any_5xx: true, connect_failure: true, ..RetryOn::default() },
        retries: 2,
        per_try_timeout: Some(Duration::from_millis(1500)),
        status_codes: vec![503],
        response_headers: vec!["x-again".into()],
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
        endpoint_attempts: 5,
        retry_non_idempotent: false,
    }
}

fn route_table(limit: Arc<LocalRateLimit>) -> RouteTable {
    let edits =
        HeaderEdits { remove: vec!["x-debug".into()], add: vec![HeaderEdit::Overwrite("x-by".into(), "mesh".into())] };
    let forward = ForwardAction {
        target: ClusterTarget::Weighted {
            choices: [("orders", 90), ("nowhere", 10)]
                .map(|(cluster, weight)| WeightedCluster {
                    cluster: cluster.into(),
                    index: None,
                    weight,
                    request_edits: HeaderEdits::default(),
                    response_edits: HeaderEdits::default(),
                })
                .into(),
            total: 100,
        },
        cluster_not_found_status: 503,
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        retry: Some(Arc::new(retry_policy())),
        path_rewrite: Some(PathRewrite::Regex {
            pattern: regex::bytes::Regex::new("^/v1/").unwrap(),
            with: "/".into(),
        }),
        host_rewrite: Some("orders.shop".into()),
        max_stream_duration: None,
        grpc_timeout_max: None,
        upgrades: Vec::new(),
        hash: Vec::new(),
    };
    let route = |name: &str, path, action| {
        Arc::new(Route {
            access: Vec::new(),
            name: name.into(),
            matches: RouteMatch {
                path,
                case_sensitive: true,
                headers: vec![HeaderMatch {
                    name: ":method".into(),
                    test: HeaderTest::Text(TextMatch::Exact { text: "GET".into(), ignore_case: false }),
                    invert: false,
                    missing_as_empty: false,
                }],
                query: vec![QueryMatch { name: "q".into(), test: None }],
                fraction_ppm: 250_000,
            },
            action,
            rate_limit: None,
            request_edits: edits.clone(),
            response_edits: HeaderEdits::default(),
        })
    };
    let direct = DirectResponse { status: 200, body: Arc::from(&b"ok\xff"[..]) };
    let redirect = Redirect { status: 301, host: Some("shop.example".into()), ..Redirect::default() };
    RouteTable {
        name: "shop".into(),
        virtual_hosts: vec![VirtualHost {
            name: "shop".into(),
            domains: vec!["*.shop".into(), "*".into()],
            routes: vec![
                route(HOSTILE, PathMatch::Prefix("/v1/".into()), RouteAction::Forward(forward)),
                route("health", PathMatch::Exact("/health".into()), RouteAction::Direct(direct)),
                route("old", PathMatch::SeparatedPrefix("/old".into()), RouteAction::Redirect(redirect)),
            ],
            request_edits: HeaderEdits::default(),
            response_edits: HeaderEdits::default(),
            rate_limit: Some(limit),
        }],
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        ignore_port_in_host: true,
    }
}
