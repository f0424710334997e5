//! **Purpose.** Configuration from an xDS server: the aggregated, state-of-the-world stream, on the control thread.
//!
//! **Shape.**
//! ```text
//!   stream (connection, back-off) ──events──► client ──► shelves (last good version of each resource)
//!          ◄── requests, ACK, NACK ──          │  └────► lookups (DNS)
//!                                              └─► warm (when is it a closed graph?) ──► publish(Snapshot)
//! ```
//! [`run`] drives all of it; [`XdsStatus`] is what others may see. Without a server it publishes the file's resources.
//!
//! **Errors.** A refused resource is named in the NACK with its path and keeps its last good version; valid siblings are
//! applied. A message that does not decode refuses its whole response. Losing the server changes nothing that runs.
//!
//! **Cancel.** [`run`] may be dropped at any point; what was published stays.
//!
//! **Source.** envoyproxy.io, "xDS REST and gRPC protocol".
//!
//! **Tests.** The rules of each part at the foot of its file; the dance with a server over loopback in `tests.rs`.

mod ack;
mod backoff;
mod cache;
mod client;
mod dns;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod warm;

pub use status::XdsStatus;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::bootstrap::Bootstrap;
use crate::chance::Chance;
use crate::config::Snapshot;
use crate::convert::ResourceKind;
use client::Client;

/// The types of resources, in the order in which they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Clusters,
    Endpoints,
    Listeners,
    RouteTables,
}

impl Type {
    const ALL: [Self; 4] = [Self::Clusters, Self::Endpoints, Self::Listeners, Self::RouteTables];

    fn url(self) -> &'static str {
        match self {
            Self::Clusters => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listeners => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteTables => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Endpoints => "endpoints",
            Self::Listeners => "listeners",
            Self::RouteTables => "route_tables",
        }
    }

    fn resource(self) -> ResourceKind {
        match self {
            Self::Clusters => ResourceKind::Cluster,
            Self::Endpoints => ResourceKind::Endpoints,
            Self::Listeners => ResourceKind::Listener,
            Self::RouteTables => ResourceKind::RouteTable,
        }
    }

    /// Whether a request without names asks for all, and a response is all there is.
    fn is_wildcard(self) -> bool {
        matches!(self, Self::Clusters | Self::Listeners)
    }
}

/// Publishes snapshots for as long as it is polled. Runs on one thread; `publish` is called with epochs 1, 2, 3 …, never
/// with the same configuration twice in a row.
///
/// Cancel: the stream ends; what was published stays.
pub async fn run(bootstrap: Arc<Bootstrap>, status: Arc<XdsStatus>, publish: impl FnMut(Arc<Snapshot>)) {
    let mut client = Client::new(bootstrap.clone(), publish, status);
    match &bootstrap.ads {
        None => client.run(None).await,
        Some(ads) => {
            let (sender, receiver) = mpsc::channel(stream::MAX_EVENTS_WAITING);
            let chance = Chance::from_seed(RandomState::new().hash_one(std::process::id()));
            tokio::join!(stream::keep_open(ads, sender, chance), client.run(Some(receiver)));
        }
    }
}
