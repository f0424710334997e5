//! Purpose: the view of a cluster that the rest of the control plane works with, and the tasks that keep it.
//! Shape: a watch a kind feeds one keeper, which owns the view and publishes it whole.
//!
//! ```text
//! services, slices ──┐                                ┌─▶ registered (Upstreams of Services, workloads)
//! pods, namespaces ──┼─▶ keeper: registry, pods,      ├─▶ stored (policy in force)
//! policy ────────────┘   policies; nothing before ────┴─▶ standing ─▶ report ─▶ statuses, while we hold the lease
//!                        all are read
//! ```
//! Errors: [`ClusterError`] when the view is not whole in time; afterwards a dead API server leaves the last view in force,
//! and its age is told.
//! Limits: 60 s to the first view; events wait in a queue of 1,024.
//! Cancel: dropping a [`Cluster`] ends its tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::client::{ClientError, connect, find_namespace};
use super::crd::plural;
use super::lease::{hold, identity, release};
use super::pods::{PodView, Pods};
use super::policy::{Policies, Standing};
use super::registry::Registry;
use super::report::report;
use super::store::{ClusterStore, resource_of};
use super::watch::{Event, Pulse, PulseView, follow};
use crate::ads::Roster;
use crate::model::{Kind, PolicySet, Workloads};
use crate::store::Registered;

const FIRST_VIEW_WITHIN: Duration = Duration::from_secs(60);
const RELEASE_WITHIN: Duration = Duration::from_secs(2);
const QUEUE: usize = 1_024;

/// Why there is no view of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no way to the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The way is there, but not everything could be read in time.
    #[error("the cluster could not be read within {} s: {}", FIRST_VIEW_WITHIN.as_secs(), .0.join("; "))]
    Incomplete(Vec<String>),
}

/// What is read from the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Services, pods and policy.
    Policy,
    /// Services and pods only.
    Services,
}

/// What a watch saw.
enum Seen {
    Policy(Kind, Event<DynamicObject>),
    // By far the largest.
    Service(Box<Event<Service>>),
    Slice(Event<EndpointSlice>),
    Pod(Event<PodView>),
    Namespace(Event<Namespace>),
}

/// The view, as kept.
#[derive(Debug, Clone, Default)]
struct Kept {
    registry: Arc<Mutex<Registry>>,
    pods: Arc<Mutex<Pods>>,
    policies: Arc<Mutex<Policies>>,
}

impl Kept {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policies(&self) -> MutexGuard<'_, Policies> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, seen: Seen) {
        match seen {
            Seen::Policy(kind, event) => self.policies().take(kind, event),
            Seen::Service(event) => self.registry().take_service(*event),
            Seen::Slice(event) => self.registry().take_slice(event),
            Seen::Pod(event) => self.pods().take_pod(event),
            Seen::Namespace(event) => self.pods().take_namespace(event),
        }
    }
}

/// Where the view is published.
struct Outlets {
    registered: watch::Sender<Arc<PolicySet>>,
    stored: watch::Sender<Arc<PolicySet>>,
    standing: watch::Sender<Arc<Standing>>,
    is_whole: watch::Sender<bool>,
}

/// A cluster that is followed.
pub struct Cluster {
    client: Client,
    reads: Reads,
    namespace: Option<String>,
    identity: String,
    kept: Kept,
    store: Arc<ClusterStore>,
    registered: Registered,
    standing: watch::Receiver<Arc<Standing>>,
    leads: watch::Sender<bool>,
    pulses: Vec<Pulse>,
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Cluster")
            .field("reads", &self.reads)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Finds the API server, and returns when everything was read once.
    pub async fn start(
        reads: Reads,
        namespace: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ClusterError> {
        let client = connect(&variable).await?;
        let namespace = match reads {
            Reads::Policy => Some(find_namespace(namespace)?),
            Reads::Services => namespace.map(str::to_owned),
        };
        let kept = Kept::default();
        let (registered, registered_seen) = watch::channel(Arc::default());
        let (stored, stored_seen) = watch::channel(Arc::default());
        let (standing, standing_seen) = watch::channel(Arc::default());
        let (is_whole, whole_seen) = watch::channel(false);
        let outlets = Outlets { registered, stored, standing, is_whole };
        let (sender, seen) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let pulses = spawn_watches(&client, reads, &sender, &mut tasks);
        tasks.spawn(keep(kept.clone(), seen, pulses.len(), outlets));
        let store = ClusterStore::new(
            client.clone(),
            kept.policies.clone(),
            stored_seen,
            standing_seen.clone(),
            registered_seen.clone(),
        );
        let cluster = Self {
            client,
            reads,
            namespace,
            identity: identity(variable("POD_NAME").or_else(|| variable("HOSTNAME"))),
            kept,
            store: Arc::new(store),
            registered: registered_seen,
            standing: standing_seen,
            leads: watch::channel(false).0,
            pulses,
            tasks: Mutex::new(tasks),
        };
        cluster.wait_whole(whole_seen).await?;
        Ok(cluster)
    }

    async fn wait_whole(&self, mut whole: watch::Receiver<bool>) -> Result<(), ClusterError> {
        let waited = tokio::time::timeout(FIRST_VIEW_WITHIN, whole.wait_for(|is_whole| *is_whole)).await;
        if matches!(waited, Ok(Ok(_))) {
            return Ok(());
        }
        let missing = self.pulses.iter().map(Pulse::view).filter(|view| !view.is_listed);
        let reason = |view: PulseView| {
            format!("{}: {}", view.resource, view.error.unwrap_or_else(|| "no answer yet".to_owned()))
        };
        Err(ClusterError::Incomplete(missing.map(reason).collect()))
    }

    /// The control plane's own namespace, where it is known.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Policy kept in the cluster.
    #[must_use]
    pub fn store(&self) -> Arc<ClusterStore> {
        self.store.clone()
    }

    /// The Upstreams of its Services, and its workloads.
    #[must_use]
    pub fn registered(&self) -> Registered {
        self.registered.clone()
    }

    /// A client for the same API server.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Starts to take part in writing statuses.
    pub fn spawn_report(&self, roster: Arc<Roster>) {
        let Some(leases) = self.leases() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(hold(leases, self.identity.clone(), self.leads.clone()));
        tasks.spawn(report(self.client.clone(), self.standing.clone(), roster, self.leads.subscribe()));
    }

    fn leases(&self) -> Option<Api<Lease>> {
        let namespace = self.namespace.as_deref().filter(|_| self.reads == Reads::Policy)?;
        Some(Api::namespaced(self.client.clone(), namespace))
    }

    /// Ends its tasks; another replica may write statuses at once.
    pub async fn stop(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        let Some(leases) = self.leases().filter(|_| *self.leads.borrow()) else { return };
        if !matches!(tokio::time::timeout(RELEASE_WITHIN, release(&leases, &self.identity)).await, Ok(Ok(()))) {
            tracing::warn!("the lease could not be given up; another replica waits until it runs out");
        }
    }

    /// How its watches stand.
    #[must_use]
    pub fn pulses(&self) -> Vec<PulseView> {
        self.pulses.iter().map(Pulse::view).collect()
    }

    /// Whether this replica writes statuses.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        *self.leads.borrow()
    }

    /// All of it for `/v1/status`.
    #[must_use]
    pub fn view(&self) -> Value {
        let watch = |view: PulseView| {
            json!({
                "resource": view.resource,
                "ageSeconds": view.age.as_secs_f64(),
                "isRead": view.is_listed,
                "isAbsent": view.is_absent,
                "failures": view.failures,
                "error": view.error,
            })
        };
        let (pods, namespaces) = self.kept.pods().counts();
        let registry = self.kept.registry();
        let skipped = registry.skipped().map(|(namespace, name, skip)| {
            let reason = skip.to_string();
            json!({ "namespace": namespace, "name": name, "reason": reason })
        });
        let skipped: Vec<Value> = skipped.collect();
        let standing = self.standing.borrow().clone();
        let refused: Vec<Value> = standing
            .objects
            .values()
            .filter(|judged| !judged.is_accepted)
            .map(|judged| json!({ "object": judged.key.to_string(), "problems": judged.problems }))
            .collect();
        json!({
            "watches": self.pulses().into_iter().map(watch).collect::<Vec<_>>(),
            "services": registry.count(),
            "pods": pods,
            "namespaces": namespaces,
            "skippedServices": skipped,
            "refusedObjects": refused,
            "isLeader": self.is_leader(),
        })
    }
}

fn spawn_watches(client: &Client, reads: Reads, seen: &mpsc::Sender<Seen>, tasks: &mut JoinSet<()>) -> Vec<Pulse> {
    let mut pulses = Vec::new();
    let mut pulse = |resource| {
        let pulse = Pulse::new(resource);
        pulses.push(pulse.clone());
        pulse
    };
    let services: Api<Service> = Api::all(client.clone());
    tasks.spawn(follow(services, pulse("services"), pass(seen, |event| Seen::Service(Box::new(event)))));
    let slices: Api<EndpointSlice> = Api::all(client.clone());
    tasks.spawn(follow(slices, pulse("endpointslices"), pass(seen, Seen::Slice)));
    let pods: Api<PodView> = Api::all(client.clone());
    tasks.spawn(follow(pods, pulse("pods"), pass(seen, Seen::Pod)));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    tasks.spawn(follow(namespaces, pulse("namespaces"), pass(seen, Seen::Namespace)));
    if reads == Reads::Policy {
        for kind in Kind::ALL {
            let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource_of(kind));
            tasks.spawn(follow(objects, pulse(plural(kind)), pass(seen, move |event| Seen::Policy(kind, event))));
        }
    }
    pulses
}

/// A sink that puts what it is given into the queue; full, it waits.
fn pass<T, W: Fn(Event<T>) -> Seen>(
    seen: &mpsc::Sender<Seen>,
    wrap: W,
) -> impl Fn(Event<T>) -> BoxFuture<'static, ()> + use<T, W> {
    let seen = seen.clone();
    move |event| {
        let (seen, event) = (seen.clone(), wrap(event));
        Box::pin(async move {
            // Nobody reads only while everything ends.
            let _ = seen.send(event).await;
        })
    }
}

/// Keeps the view and publishes it, from the moment on at which each of `wanted` kinds was read once.
async fn keep(kept: Kept, mut seen: mpsc::Receiver<Seen>, wanted: usize, outlets: Outlets) {
    let mut listed = BTreeSet::new();
    let mut batch = Vec::new();
    while seen.recv_many(&mut batch, QUEUE).await > 0 {
        let has_policy = batch.iter().any(|one| matches!(one, Seen::Policy(..)));
        for one in batch.drain(..) {
            if let Some(name) = one.listed() {
                listed.insert(name);
            }
            kept.take(one);
        }
        let is_first = !*outlets.is_whole.borrow();
        if listed.len() < wanted {
            continue;
        }
        // A cluster without any is followed too.
        let none = || is_first.then(|| Workloads::new([], BTreeMap::new()));
        let workloads = kept.pods().refresh().or_else(none);
        let is_changed = kept.registry().refresh() || workloads.is_some() || is_first;
        // Most of what is heard of pods and slices is their status: nothing here hangs on it.
        if !is_changed && !has_policy {
            continue;
        }
        let mut registered = outlets.registered.borrow().clone();
        if is_changed {
            let workloads = workloads.map_or_else(|| registered.workloads.clone(), Arc::new);
            registered = Arc::new(PolicySet { objects: kept.registry().objects(), workloads, ..PolicySet::default() });
            outlets.registered.send_replace(registered.clone());
        }
        let mut policies = kept.policies();
        if policies.settle(&registered) || is_first {
            outlets.stored.send_replace(Arc::new(policies.set()));
        }
        outlets.standing.send_replace(Arc::new(policies.standing()));
        drop(policies);
        outlets.is_whole.send_replace(true);
    }
}

impl Seen {
    /// The kind of which everything came.
    fn listed(&self) -> Option<&'static str> {
        match self {
            Self::Policy(kind, Event::Listed(_)) => Some(plural(*kind)),
            Self::Service(event) => matches!(**event, Event::Listed(_)).then_some("services"),
            Self::Slice(Event::Listed(_)) => Some("endpointslices"),
            Self::Pod(Event::Listed(_)) => Some("pods"),
            Self::Namespace(Event::Listed(_)) => Some("namespaces"),
            Self::Policy(..) | Self::Slice(_) | Self::Pod(_) | Self::Namespace(_) => None,
        }
    }
}
