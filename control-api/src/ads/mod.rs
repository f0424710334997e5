//! Purpose: the xDS server: aggregated discovery, state of the world, over gRPC.
//! Shape: each stream is a response stream that owns its request stream and a pure [`Dance`]; it
//! is polled by the transport, so a reader that does not read is not written to, and between two
//! polls any number of policy changes become one push. Nothing is spawned per stream.
//!
//! ```text
//!  requests ─▶ Dance ─▶ responses          Roster ◀─ what each proxy runs, lags or refused
//!  snapshots ─┘
//! ```
//! Errors: a first message without a node, or with a role that does not parse, ends the stream with
//! INVALID_ARGUMENT; the incremental method answers UNIMPLEMENTED.
//! Limits: 20,000 streams; requests up to 8 MiB; keep-alive pings each 15 s, 10 s to answer.
//! Source: the xDS protocol document; XDS.md §5.
//! Tests: `dance/tests.rs` (pure), `tests/ads.rs` (real clients).

mod dance;
mod roster;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::{ControlPlane, Node};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::stream::{self, Stream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

pub use dance::Dance;
pub use roster::{ProxyView, Roster, Seat, TypeView};

use crate::compile::{NodeRole, Snapshot};

const STREAMS_MAX: usize = 20_000;
const REQUEST_BYTES_MAX: usize = 8 << 20;
const RESPONSE_BYTES_MAX: usize = 256 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The compiled policy, as it changes.
pub type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct AdsService {
    snapshots: Snapshots,
    roster: Arc<Roster>,
    stop: watch::Receiver<bool>,
}

impl AdsService {
    /// A service over `snapshots` that seats its proxies in `roster` and ends all streams on `stop`.
    #[must_use]
    pub fn new(snapshots: Snapshots, roster: Arc<Roster>, stop: watch::Receiver<bool>) -> Self {
        Self { snapshots, roster, stop }
    }

    /// Serves until the stop signal.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let mut stop = self.stop.clone();
        let service = AggregatedDiscoveryServiceServer::new(self)
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(RESPONSE_BYTES_MAX);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move {
                // An error means that the sender is gone, which is a stop too.
                let _ = stop.wait_for(|is_stopping| *is_stopping).await;
            })
            .await
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsService {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        if self.roster.len() >= STREAMS_MAX {
            return Err(Status::resource_exhausted(format!(
                "this server has {STREAMS_MAX} streams open; start another one"
            )));
        }
        let stream = AdsStream {
            address: request.remote_addr(),
            requests: request.into_inner(),
            snapshots: self.snapshots.clone(),
            stop: self.stop.clone(),
            roster: self.roster.clone(),
            joined: None,
        };
        Ok(Response::new(Box::pin(stream::unfold(stream, AdsStream::step))))
    }

    async fn delta_aggregated_resources(
        &self,
        _request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("incremental xDS is not served yet: set api_type to GRPC (state of the world)"))
    }
}

/// One stream.
///
/// Cancel: dropping it ends the stream and frees its seat.
struct AdsStream {
    address: Option<SocketAddr>,
    requests: Streaming<DiscoveryRequest>,
    snapshots: Snapshots,
    stop: watch::Receiver<bool>,
    roster: Arc<Roster>,
    joined: Option<Joined>,
}

/// What is known once the first message was read.
struct Joined {
    role: NodeRole,
    dance: Dance,
    seat: Seat,
}

enum Event {
    Ended,
    Held,
    Request(Box<DiscoveryRequest>),
    Snapshot,
}

impl AdsStream {
    /// The next response, or the end of the stream.
    async fn step(mut self) -> Option<(Result<DiscoveryResponse, Status>, Self)> {
        loop {
            if let Some(response) = self.next_response() {
                return Some((Ok(response), self));
            }
            match self.next_event().await {
                Ok(Event::Ended) => return None,
                Ok(Event::Held) => {}
                Ok(Event::Snapshot) => self.take_snapshot(),
                Ok(Event::Request(request)) => {
                    if let Err(status) = self.take_request(&request) {
                        return Some((Err(status), self));
                    }
                }
                Err(status) => return Some((Err(status), self)),
            }
        }
    }

    fn next_response(&mut self) -> Option<DiscoveryResponse> {
        let joined = self.joined.as_mut()?;
        let mut response = joined.dance.next_push(Instant::now())?;
        response.control_plane =
            Some(ControlPlane { identifier: concat!("outrigger-control/", env!("CARGO_PKG_VERSION")).to_owned() });
        joined.seat.update(&joined.dance);
        self.roster.count_push(&response.type_url);
        Some(response)
    }

    async fn next_event(&mut self) -> Result<Event, Status> {
        let release = self.joined.as_ref().and_then(|joined| joined.dance.released_at());
        let held = async {
            match release {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Requests first: an ACK that is already here must not be overtaken by a new push.
            biased;
            _ = self.stop.wait_for(|is_stopping| *is_stopping) => Ok(Event::Ended),
            request = self.requests.message() => {
                Ok(request?.map_or(Event::Ended, |request| Event::Request(Box::new(request))))
            }
            changed = self.snapshots.changed() => {
                Ok(changed.map_or(Event::Ended, |()| Event::Snapshot))
            }
            () = held => Ok(Event::Held),
        }
    }

    fn take_snapshot(&mut self) {
        let snapshot = self.snapshots.borrow_and_update().clone();
        if let Some(joined) = &mut self.joined {
            joined.dance.desire(snapshot.for_node(&joined.role));
            joined.seat.update(&joined.dance);
        }
    }

    fn take_request(&mut self, request: &DiscoveryRequest) -> Result<(), Status> {
        if self.joined.is_none() {
            let node = request
                .node
                .as_ref()
                .filter(|node| !node.id.is_empty())
                .ok_or_else(|| Status::invalid_argument("the first message of a stream must carry node.id"))?;
            self.joined = Some(self.join(node)?);
        }
        let Some(joined) = &mut self.joined else { return Ok(()) };
        let refusal = joined.dance.take_request(request)?;
        if let Some(refusal) = refusal {
            tracing::warn!(
                node = joined.seat.node_id(),
                type_url = request.type_url,
                version = refusal.version,
                reason = refusal.message,
                "the proxy refused a push"
            );
            self.roster.count_nack(&request.type_url);
        }
        joined.seat.update(&joined.dance);
        Ok(())
    }

    fn join(&mut self, node: &Node) -> Result<Joined, Status> {
        let role = NodeRole::parse(node).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            tracing::warn!(node = node.id, problems = lines.join("; "), "refused a stream");
            Status::invalid_argument(lines.join("; "))
        })?;
        let resources = self.snapshots.borrow_and_update().for_node(&role);
        let dance = Dance::new(&role, resources);
        let seat = Roster::seat(&self.roster, node, self.address, &role);
        tracing::info!(node = node.id, namespace = role.namespace, "a proxy connected");
        Ok(Joined { role, dance, seat })
    }
}
