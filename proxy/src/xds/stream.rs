//! The stream to the xDS server: opened, lost and opened again.
//!
//! **Shape.** [`keep_open`] owns the connection and knows nothing of resources; it tells the client by [`Event`]s.
//! ```text
//!   connecting ──► open ──► (server ends it, breaks it, goes silent) ──► pause ──► connecting
//! ```
//! **Limits.** A message has at most the configured bytes (default 64 MiB); at most 4 wait to be applied, then the
//! server is held back by HTTP/2 flow control; at most 1,024 requests wait for the server, then the stream is given up.
//!
//! **Cancel.** The stream ends; nothing else is lost.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::backoff::Backoff;
use crate::bootstrap::AdsConfig;
use crate::chance::Chance;

const MAX_REQUESTS_WAITING: usize = 1024;
pub(super) const MAX_EVENTS_WAITING: usize = 4;
const BACKOFF_BASE: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const WINDOW_BYTES: u32 = 4 << 20;

/// What happened to the stream.
#[derive(Debug)]
pub(super) enum Event {
    /// A stream is open; requests for it go here.
    Opened(mpsc::Sender<DiscoveryRequest>),
    /// The server said something.
    Response(Box<DiscoveryResponse>),
    /// The stream is over, or could not be opened.
    Closed(String),
}

/// Opens the stream again and again; returns when nobody listens to the events.
pub(super) async fn keep_open(ads: &AdsConfig, events: mpsc::Sender<Event>, chance: Chance) {
    let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP, chance);
    for (host, port) in ads.servers.iter().cycle() {
        let mut has_answered = false;
        let error = run_once(ads, host, *port, &events, &mut has_answered).await;
        if events.send(Event::Closed(error)).await.is_err() {
            return;
        }
        if has_answered {
            backoff.reset();
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// One stream from its start to its end; returns why it ended.
async fn run_once(
    ads: &AdsConfig,
    host: &str,
    port: u16,
    events: &mpsc::Sender<Event>,
    has_answered: &mut bool,
) -> String {
    let channel = match connect(ads, host, port).await {
        Ok(channel) => channel,
        Err(error) => return format!("cannot connect to {host}:{port}: {}", innermost(&error)),
    };
    let (requests, receiver) = mpsc::channel(MAX_REQUESTS_WAITING);
    // A server may send its headers with its first response only, so the first requests must be on their way before.
    if events.send(Event::Opened(requests)).await.is_err() {
        return "the client stopped".to_owned();
    }
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    for (name, value) in &ads.metadata {
        if let (Ok(name), Ok(value)) = (name.parse::<AsciiMetadataKey>(), value.parse::<AsciiMetadataValue>()) {
            request.metadata_mut().insert(name, value);
        }
    }
    let mut service = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(ads.max_message_bytes);
    let mut stream = match service.stream_aggregated_resources(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return format!("{host}:{port} refused the stream: {}", described(&status)),
    };
    loop {
        match stream.message().await {
            Ok(Some(response)) => {
                *has_answered = true;
                if events.send(Event::Response(Box::new(response))).await.is_err() {
                    return "the client stopped".to_owned();
                }
            }
            Ok(None) => return format!("{host}:{port} ended the stream"),
            Err(status) => return format!("{host}:{port} broke the stream: {}", described(&status)),
        }
    }
}

async fn connect(ads: &AdsConfig, host: &str, port: u16) -> Result<Channel, tonic::transport::Error> {
    let uri = if host.contains(':') { format!("http://[{host}]:{port}") } else { format!("http://{host}:{port}") };
    let mut endpoint = Endpoint::from_shared(uri)?
        .connect_timeout(ads.connect_timeout)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .tcp_nodelay(true);
    if let Ok(origin) = format!("http://{}", ads.authority).parse() {
        endpoint = endpoint.origin(origin);
    }
    endpoint.connect().await
}

fn described(status: &tonic::Status) -> String {
    let message: String = status.message().chars().take(512).collect();
    format!("{:?}: {message}", status.code())
}

/// The cause that says most.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
