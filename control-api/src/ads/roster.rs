//! Purpose: who is connected and what each one runs, for `/v1/proxies`, `wait` and the metrics.
//! Shape: a stream holds a [`Seat`]; dropping it takes the proxy off the roster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use envoy_types::pb::envoy::config::core::v3::Node;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::dance::Dance;
use crate::compile::{NodeRole, ResourceType};

/// One connected proxy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyView {
    /// `node.id`.
    pub node: String,
    /// `node.cluster`.
    pub cluster: String,
    /// Where it connected from.
    pub address: String,
    /// Its namespace.
    pub namespace: String,
    /// What it calls itself.
    pub user_agent: String,
    /// The newest policy revision of which it runs everything.
    pub running_revision: Option<u64>,
    /// The newest policy revision there is for it.
    pub desired_revision: u64,
    /// Per type.
    pub types: BTreeMap<String, TypeView>,
}

/// One type of one proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeView {
    /// What it runs.
    pub acked_version: Option<String>,
    /// What it has not answered yet.
    pub pending_version: Option<String>,
    /// The nonce of that.
    pub pending_nonce: Option<String>,
    /// How often it refused a push on this stream.
    pub nacks: u64,
    /// The last refused version, until a later one is accepted.
    pub nacked_version: Option<String>,
    /// Whether that is what it should run, so that it stays behind until the policy changes.
    pub is_refusing: bool,
    /// Why it refused.
    pub nack_message: Option<String>,
}

/// All connected proxies, and counters.
#[derive(Debug)]
pub struct Roster {
    seats: Mutex<Seats>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    proxies: BTreeMap<u64, ProxyView>,
    pushes: BTreeMap<&'static str, u64>,
    nacks: BTreeMap<&'static str, u64>,
    streams: u64,
}

impl Default for Roster {
    fn default() -> Self {
        Self { seats: Mutex::default(), changes: watch::channel(0).0 }
    }
}

impl Roster {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seats().proxies.len()
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All connected proxies, in the order in which they connected.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyView> {
        self.seats().proxies.values().cloned().collect()
    }

    /// Looks at all connected proxies without copying them.
    pub fn inspect<T>(&self, look: impl FnOnce(&mut dyn Iterator<Item = &ProxyView>) -> T) -> T {
        look(&mut self.seats().proxies.values())
    }

    /// Notices every change of the roster; intermediate ones may be skipped.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Counts of pushes and refusals by type, and of streams ever opened.
    #[must_use]
    pub fn counts(&self) -> (BTreeMap<&'static str, u64>, BTreeMap<&'static str, u64>, u64) {
        let seats = self.seats();
        (seats.pushes.clone(), seats.nacks.clone(), seats.streams)
    }

    /// Counts a push.
    pub fn count_push(&self, type_url: &str) {
        if let Some(kind) = ResourceType::from_type_url(type_url) {
            *self.seats().pushes.entry(kind.short_name()).or_default() += 1;
        }
    }

    /// Counts a refusal.
    pub fn count_nack(&self, type_url: &str) {
        if let Some(kind) = ResourceType::from_type_url(type_url) {
            *self.seats().nacks.entry(kind.short_name()).or_default() += 1;
        }
    }

    /// Seats a proxy until the returned value is dropped.
    #[must_use]
    pub fn seat(roster: &Arc<Self>, node: &Node, address: Option<SocketAddr>, role: &NodeRole) -> Seat {
        let view = ProxyView {
            node: node.id.clone(),
            cluster: node.cluster.clone(),
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            namespace: role.namespace.clone(),
            user_agent: node.user_agent_name.clone(),
            ..ProxyView::default()
        };
        let mut seats = roster.seats();
        let number = seats.next;
        seats.next += 1;
        seats.streams += 1;
        seats.proxies.insert(number, view);
        drop(seats);
        roster.note_change();
        Seat { roster: roster.clone(), number, node_id: node.id.clone() }
    }

    fn note_change(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A connected proxy's place on the roster.
#[derive(Debug)]
pub struct Seat {
    roster: Arc<Roster>,
    number: u64,
    node_id: String,
}

impl Seat {
    /// `node.id`.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Shows what the proxy runs now.
    pub fn update(&self, dance: &Dance) {
        let mut seats = self.roster.seats();
        let Some(view) = seats.proxies.get_mut(&self.number) else { return };
        view.running_revision = dance.running_revision();
        view.desired_revision = dance.desired_revision();
        for kind in ResourceType::ALL {
            let Some(subscription) = dance.subscription(kind) else { continue };
            let shown = TypeView {
                acked_version: subscription.held.clone(),
                pending_version: subscription.pending.as_ref().map(|(_, version)| version.clone()),
                pending_nonce: subscription.pending.as_ref().map(|(nonce, _)| nonce.clone()),
                nacks: subscription.refusals,
                nacked_version: subscription.refused.as_ref().map(|one| one.version.clone()),
                is_refusing: dance.is_refusing(kind),
                nack_message: subscription.refused.as_ref().map(|one| one.message.clone()),
            };
            view.types.insert(kind.short_name().to_owned(), shown);
        }
        drop(seats);
        self.roster.note_change();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.roster.seats().proxies.remove(&self.number);
        self.roster.note_change();
        tracing::info!(node = self.node_id, "a proxy disconnected");
    }
}
