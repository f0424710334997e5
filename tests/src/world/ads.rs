//! Purpose: a state-of-the-world ADS server that pushes exactly what a test says and writes down every request.
//!
//! Shape: resources are JSON values by type and name; [`AdsServer::set`] changes some and pushes the types that
//! changed to every open stream. A push that was NACKed is told with its error detail.
//!
//! Limits: it runs on a thread of its own and ends with its value. Dropping and starting one at the same address
//! is a control plane that dies and comes back.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt;
use outrigger_xds_proto::envoy::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use outrigger_xds_proto::envoy::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use outrigger_xds_proto::envoy::google::protobuf::Any;
use outrigger_xds_proto::json;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::resource::{CLUSTER, ENDPOINTS, LISTENER, ROUTES};
use super::wait::wait_for;

/// The order that never breaks traffic.
const PUSH_ORDER: [&str; 4] = [CLUSTER, ENDPOINTS, LISTENER, ROUTES];

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct AdsRequest {
    /// Which stream, from 0.
    pub stream: usize,
    /// Its type URL.
    pub type_url: String,
    /// The version the proxy holds.
    pub version: String,
    /// What it answers.
    pub nonce: String,
    /// The names it asks for.
    pub names: Vec<String>,
    /// Node id, on the first of a stream.
    pub node: Option<String>,
    /// Set on a NACK: code and text.
    pub error: Option<(i32, String)>,
}

#[derive(Debug, Default)]
struct State {
    resources: BTreeMap<(String, String), Value>,
    versions: BTreeMap<String, u64>,
    requests: Vec<AdsRequest>,
    streams: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// The server.
#[derive(Debug)]
pub struct AdsServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl AdsServer {
    /// Starts one without resources.
    pub fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts one where another was.
    ///
    /// # Panics
    /// When the address stays taken.
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = wait_for("the xDS address to be free", Duration::from_secs(5), || {
            std::net::TcpListener::bind(address).map_err(|error| error.to_string())
        });
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("a fresh socket takes the flag");
        let shared = Arc::new(Shared { state: Mutex::default(), changed: watch::channel(0).0 });
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime can be built").block_on(serve(listener, shared, stopped));
            }
        });
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets resources, given as type URL and JSON, and pushes the types touched. Gives the version of the push.
    pub fn set(&self, resources: impl IntoIterator<Item = (&'static str, Value)>) -> u64 {
        self.change(|state| {
            let mut touched = Vec::new();
            for (type_url, value) in resources {
                let name = value.get("name").or_else(|| value.get("cluster_name")).and_then(Value::as_str);
                let name = name.expect("a resource has a name").to_owned();
                state.resources.insert((type_url.to_owned(), name), value);
                touched.push(type_url);
            }
            touched
        })
    }

    /// Takes a resource away and pushes its type.
    pub fn remove(&self, type_url: &'static str, name: &str) -> u64 {
        self.change(|state| {
            state.resources.remove(&(type_url.to_owned(), name.to_owned()));
            vec![type_url]
        })
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Vec<&'static str>) -> u64 {
        let mut next = 0;
        self.shared.changed.send_modify(|version| {
            *version += 1;
            next = *version;
            let mut state = locked(&self.shared.state);
            for type_url in change(&mut state) {
                state.versions.insert(type_url.to_owned(), next);
            }
        });
        next
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<AdsRequest> {
        locked(&self.shared.state).requests.clone()
    }

    /// Waits for the ACK of a push.
    ///
    /// # Panics
    /// When it is refused or does not come in time.
    #[track_caller]
    pub fn wait_ack(&self, type_url: &str, version: u64) {
        let wanted = version.to_string();
        wait_for(&format!("the ACK of {type_url} {version}"), Duration::from_secs(10), || {
            let requests = self.requests();
            let mut of_type = requests.iter().filter(|request| request.type_url == type_url);
            let newer = |request: &&AdsRequest| request.version.parse::<u64>().is_ok_and(|held| held >= version);
            match of_type.clone().find(newer) {
                Some(_) => Ok(()),
                None => Err(format!("no request holds {wanted}; last: {:?}", of_type.next_back())),
            }
        });
    }

    /// Waits for a NACK of that type and gives it.
    ///
    /// # Panics
    /// When none comes in time.
    #[track_caller]
    pub fn wait_nack(&self, type_url: &str) -> AdsRequest {
        wait_for(&format!("a NACK of {type_url}"), Duration::from_secs(10), || {
            let requests = self.requests();
            let nack = requests.iter().find(|request| request.type_url == type_url && request.error.is_some());
            nack.cloned().ok_or_else(|| format!("{} requests, none a NACK of it", requests.len()))
        })
    }

    /// Waits until that many streams were opened.
    ///
    /// # Panics
    /// When they are not in time.
    #[track_caller]
    pub fn wait_streams(&self, count: usize) {
        wait_for(&format!("{count} ADS streams"), Duration::from_secs(20), || {
            let streams = locked(&self.shared.state).streams;
            if streams >= count { Ok(()) } else { Err(format!("{streams}")) }
        });
    }
}

impl Drop for AdsServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send_replace(true);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a non-blocking socket joins the runtime");
    let service = AggregatedDiscoveryServiceServer::new(Service { shared, stopped: stopped.clone() });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::select! {
        _ = server.serve_with_incoming(TcpListenerStream::new(listener)) => {}
        _ = stopped.wait_for(|is_stopped| *is_stopped) => {}
    }
}

#[derive(Debug)]
struct Service {
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
}

type Answers<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let stream = {
            let mut state = locked(&self.shared.state);
            state.streams += 1;
            state.streams - 1
        };
        let (answers, receiver) = mpsc::channel(64);
        let dance = Dance { shared: self.shared.clone(), stream, answers, asked: BTreeMap::new(), nonce: 0 };
        tokio::spawn(dance.run(request.into_inner(), self.stopped.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

/// One stream: what was asked, and which version of it was sent.
struct Dance {
    shared: Arc<Shared>,
    stream: usize,
    answers: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    asked: BTreeMap<String, (Vec<String>, u64)>,
    nonce: u64,
}

impl Dance {
    async fn run(mut self, mut requests: Streaming<DiscoveryRequest>, mut stopped: watch::Receiver<bool>) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.take(request),
                    _ => return,
                },
                ended = changed.changed() => if ended.is_err() { return },
                _ = stopped.wait_for(|is_stopped| *is_stopped) => return,
            }
            if self.push().await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, request: DiscoveryRequest) {
        let error = request.error_detail.map(|status| (status.code, status.message));
        locked(&self.shared.state).requests.push(AdsRequest {
            stream: self.stream,
            type_url: request.type_url.clone(),
            version: request.version_info,
            nonce: request.response_nonce,
            names: request.resource_names.clone(),
            node: request.node.map(|node| node.id),
            error,
        });
        let known = self.asked.entry(request.type_url).or_insert((Vec::new(), u64::MAX));
        if known.0 != request.resource_names {
            // New names: this type is sent again even when nothing else changed.
            *known = (request.resource_names, u64::MAX);
        }
    }

    async fn push(&mut self) -> Result<(), ()> {
        for type_url in PUSH_ORDER {
            let Some((names, sent)) = self.asked.get_mut(type_url) else { continue };
            let (version, resources) = {
                let state = locked(&self.shared.state);
                let version = state.versions.get(type_url).copied().unwrap_or(0);
                if version == *sent || (version == 0 && matches!(type_url, ENDPOINTS | ROUTES)) {
                    continue;
                }
                let wanted = |name: &String| names.is_empty() || names.contains(name);
                let of_type = state.resources.iter().filter(|((url, name), _)| url == type_url && wanted(name));
                (version, of_type.map(|(_, value)| pack(type_url, value)).collect())
            };
            *sent = version;
            self.nonce += 1;
            let response = DiscoveryResponse {
                version_info: version.to_string(),
                resources,
                type_url: type_url.to_owned(),
                nonce: self.nonce.to_string(),
                ..DiscoveryResponse::default()
            };
            self.answers.send(Ok(response)).await.map_err(|_| ())?;
        }
        Ok(())
    }
}

/// JSON to the message of that type, packed.
///
/// # Panics
/// When the JSON is not that message: a mistake in the test.
pub fn pack(type_url: &str, value: &Value) -> Any {
    let mut typed = value.clone();
    typed["@type"] = Value::String(type_url.to_owned());
    json::from_value::<Any>(&typed).unwrap_or_else(|error| panic!("not a {type_url}: {error}"))
}
