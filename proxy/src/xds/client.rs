//! The client between the stream and the publisher: applies responses, answers them, publishes.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ack::Subscription;
use super::cache::{Reading, Shelf};
use super::dns::Lookups;
use super::stream::Event;
use super::warm::{Answered, Step, Warm};
use super::{Type, XdsStatus};
use crate::bootstrap::Bootstrap;
use crate::config::{ClusterConfig, Discovery, EndpointSet, ListenerConfig, Resources, RouteTable, Snapshot};
use crate::convert::{self, Rejection, ResourceKind};

/// A response is published when none has followed for this long…
const SETTLE: Duration = Duration::from_millis(5);
/// …or this long after the first of a burst.
const SETTLE_CAP: Duration = Duration::from_millis(50);
/// Routes that cannot be published yet are acknowledged after this long all the same: what they wait for may be what
/// the server sends next.
const ROUTES_ACK_WAIT: Duration = Duration::from_secs(1);

pub(super) struct Client<P> {
    bootstrap: Arc<Bootstrap>,
    status: Arc<XdsStatus>,
    publish: P,
    clusters: Shelf<ClusterConfig>,
    endpoints: Shelf<EndpointSet>,
    listeners: Shelf<ListenerConfig>,
    route_tables: Shelf<RouteTable>,
    subscriptions: [Subscription; 4],
    has_answered: [bool; 4],
    requests: Option<mpsc::Sender<DiscoveryRequest>>,
    is_node_sent: bool,
    lookups: Lookups,
    warm: Warm,
    /// First and last change since the last look at what to publish.
    changed: Option<(Instant, Instant)>,
    wake: Option<Instant>,
    /// When routes that wait to be published are acknowledged at the latest.
    routes_ack_at: Option<Instant>,
}

impl<P: FnMut(Arc<Snapshot>)> Client<P> {
    pub(super) fn new(bootstrap: Arc<Bootstrap>, publish: P, status: Arc<XdsStatus>) -> Self {
        let now = Instant::now();
        let fetch = bootstrap.ads.as_ref().map_or(Duration::from_secs(15), |ads| ads.initial_fetch_timeout);
        status.edit(|record| record.server = bootstrap.ads.as_ref().map(|ads| ads.cluster.to_string()));
        status.count_ignored(bootstrap.ignored.clone());
        let mut client = Self {
            bootstrap,
            status,
            publish,
            clusters: Shelf::default(),
            endpoints: Shelf::default(),
            listeners: Shelf::default(),
            route_tables: Shelf::default(),
            subscriptions: Type::ALL.map(Subscription::new),
            has_answered: [false; 4],
            requests: None,
            is_node_sent: false,
            lookups: Lookups::default(),
            warm: Warm::new(fetch, now),
            changed: None,
            wake: Some(now),
            routes_ack_at: None,
        };
        client.follow_names(now);
        client
    }

    /// Until nobody sends events; `None` for those: there is no server.
    pub(super) async fn run(&mut self, mut events: Option<mpsc::Receiver<Event>>) {
        loop {
            let now = Instant::now();
            let settled = self.changed.map(|(first, last)| (last + SETTLE).min(first + SETTLE_CAP));
            if [settled, self.wake].into_iter().flatten().any(|at| at <= now) {
                self.look(now);
                continue;
            }
            let lookup = self.lookups.start_due(now);
            let wake = [settled, self.wake, lookup].into_iter().flatten().min();
            // Biased: what the server says comes before the time to publish, so that a burst becomes one epoch.
            tokio::select! {
                biased;
                event = receive(&mut events) => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
                is_news = self.lookups.finished() => if is_news {
                    self.mark_changed();
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Opened(requests) => self.on_opened(requests),
            Event::Response(response) => self.on_response(*response).await,
            Event::Closed(error) => self.on_closed(&error),
        }
    }

    fn on_opened(&mut self, requests: mpsc::Sender<DiscoveryRequest>) {
        tracing::info!("xDS stream opened");
        self.requests = Some(requests);
        self.is_node_sent = false;
        self.status.edit(|record| {
            record.is_connected = true;
            record.connects += 1;
        });
        self.subscriptions.iter_mut().for_each(Subscription::reopen);
        Type::ALL.into_iter().for_each(|kind| self.ask(kind));
    }

    fn on_closed(&mut self, error: &str) {
        self.requests = None;
        let mut is_news = false;
        self.status.edit(|record| {
            record.is_connected = false;
            is_news = record.last_error.as_deref() != Some(error);
            record.last_error = Some(error.to_owned());
        });
        if is_news {
            tracing::warn!(error, "xDS stream closed; what was accepted goes on serving");
        } else {
            tracing::debug!(error, "xDS stream closed again");
        }
    }

    async fn on_response(&mut self, response: DiscoveryResponse) {
        let DiscoveryResponse { version_info, resources, type_url, nonce, .. } = response;
        let Some(kind) = Type::ALL.into_iter().find(|kind| kind.url() == type_url) else {
            self.status.count_ignored(vec![format!("response.{}", type_url.chars().take(200).collect::<String>())]);
            return;
        };
        if kind.is_wildcard() && !self.is_subscribed(kind) {
            return;
        }
        let rejections = match kind {
            Type::Clusters => {
                let fixed = &self.bootstrap.resources.clusters;
                let admit = |name: &str, _: &ClusterConfig| not_static(ResourceKind::Cluster, name, fixed);
                let reading = self.clusters.read(kind, resources, convert::cluster, admit).await;
                self.note(reading, |client, reading| client.clusters.replace(reading))
            }
            Type::Endpoints => {
                let reading = self.endpoints.read(kind, resources, convert::endpoints, |_, _| Ok(())).await;
                let wanted = self.endpoint_names();
                self.note(reading, |client, reading| client.endpoints.update(reading, &wanted))
            }
            Type::Listeners => {
                let fixed = &self.bootstrap.resources.listeners;
                let mut taken: HashMap<SocketAddr, String> = HashMap::new();
                for listener in fixed.values() {
                    taken.extend(listener.addresses.iter().map(|address| (*address, listener.name.to_string())));
                }
                let admit = |name: &str, listener: &ListenerConfig| {
                    not_static(ResourceKind::Listener, name, fixed)?;
                    take_addresses(&mut taken, listener)
                };
                let reading = self.listeners.read(kind, resources, convert::listener, admit).await;
                self.note(reading, |client, reading| client.listeners.replace(reading))
            }
            Type::RouteTables => {
                let reading = self.route_tables.read(kind, resources, convert::route_table, |_, _| Ok(())).await;
                let wanted = self.route_table_names();
                self.note(reading, |client, reading| client.route_tables.update(reading, &wanted))
            }
        };
        self.has_answered[kind as usize] = true;
        self.follow_names(Instant::now());
        self.mark_changed();
        // What the response newly names is asked for before it is answered, as Envoy does.
        match kind {
            Type::Clusters => self.ask(Type::Endpoints),
            Type::Listeners => self.ask(Type::RouteTables),
            Type::Endpoints | Type::RouteTables => {}
        }
        self.answer(kind, &version_info, &nonce, &rejections);
    }

    /// Takes out of a reading what is told, and places the rest.
    fn note<T>(&mut self, mut reading: Reading<T>, place: impl FnOnce(&mut Self, Reading<T>)) -> Vec<Rejection> {
        self.status.count_ignored(std::mem::take(&mut reading.ignored));
        let rejections = std::mem::take(&mut reading.rejections);
        place(self, reading);
        rejections
    }

    fn answer(&mut self, kind: Type, version: &str, nonce: &str, rejections: &[Rejection]) {
        let refusal = (!rejections.is_empty()).then(|| {
            let text = rejections.iter().map(ToString::to_string).collect::<Vec<_>>();
            text.join("; ")
        });
        if let Some(refusal) = &refusal {
            let text: String = refusal.chars().take(1024).collect();
            tracing::warn!(kind = kind.label(), version, rejection = text, "xDS response refused");
        }
        let subscription = &mut self.subscriptions[kind as usize];
        let nack = match &refusal {
            Some(refusal) => Some(subscription.refuse(nonce, refusal)),
            None => {
                subscription.accept(version, nonce);
                if kind == Type::RouteTables {
                    self.routes_ack_at = Some(Instant::now() + ROUTES_ACK_WAIT);
                }
                None
            }
        };
        let held = match kind {
            Type::Clusters => self.clusters.len(),
            Type::Endpoints => self.endpoints.len(),
            Type::Listeners => self.listeners.len(),
            Type::RouteTables => self.route_tables.len(),
        };
        let version = self.subscriptions[kind as usize].version();
        self.status.edit(|record| {
            record.last_heard = Some(std::time::Instant::now());
            let record = &mut record.types[kind as usize];
            version.clone_into(&mut record.version);
            record.held = held as u64;
            if refusal.is_none() {
                record.accepted += 1;
                record.last_rejection = None;
            } else {
                record.rejected += 1;
                let detail = nack.as_ref().and_then(|nack| nack.error_detail.as_ref());
                record.last_rejection = detail.map(|detail| detail.message.clone());
            }
        });
        if let Some(nack) = nack {
            self.send(nack);
        }
    }

    /// Sends the ACKs that are owed. Who waits for an ACK wants to know that the change runs: routes are acknowledged
    /// once they are published. The other types may be what a publish waits for, and a server may send nothing more
    /// of a type until it is acknowledged: they are not held up.
    fn acknowledge(&mut self, is_published: bool, now: Instant) {
        let takes_routes = is_published || self.routes_ack_at.is_none_or(|at| at <= now);
        if takes_routes {
            self.routes_ack_at = None;
        } else {
            self.wake = [self.wake, self.routes_ack_at].into_iter().flatten().min();
        }
        for kind in Type::ALL.into_iter().filter(|kind| takes_routes || *kind != Type::RouteTables) {
            if let Some(ack) = self.subscriptions[kind as usize].take_ack() {
                self.send(ack);
            }
        }
    }

    fn ask(&mut self, kind: Type) {
        if !self.is_subscribed(kind) {
            return;
        }
        let names = match kind {
            Type::Clusters | Type::Listeners => BTreeSet::new(),
            Type::Endpoints => self.endpoint_names(),
            Type::RouteTables => self.route_table_names(),
        };
        if self.requests.is_some()
            && let Some(request) = self.subscriptions[kind as usize].ask(names)
        {
            self.send(request);
        }
    }

    fn send(&mut self, mut request: DiscoveryRequest) {
        let Some(requests) = &self.requests else { return };
        if !self.is_node_sent {
            request.node = Some(self.bootstrap.node.message.clone());
            self.is_node_sent = true;
        }
        // Full means that the server has read none of a thousand: ending the requests ends the stream.
        if requests.try_send(request).is_err() {
            self.requests = None;
        }
    }

    fn is_subscribed(&self, kind: Type) -> bool {
        self.bootstrap.ads.as_ref().is_some_and(|ads| match kind {
            Type::Clusters => ads.clusters,
            Type::Listeners => ads.listeners,
            Type::Endpoints | Type::RouteTables => true,
        })
    }

    fn all_clusters(&self) -> impl Iterator<Item = &Arc<ClusterConfig>> {
        self.bootstrap.resources.clusters.values().chain(self.clusters.iter().map(|(_, cluster)| cluster))
    }

    fn endpoint_names(&self) -> BTreeSet<String> {
        self.all_clusters()
            .filter_map(|cluster| match &cluster.discovery {
                Discovery::Eds(service) => Some(service.to_string()),
                Discovery::Dns { .. } | Discovery::Original(_) | Discovery::Static(_) => None,
            })
            .collect()
    }

    fn route_table_names(&self) -> BTreeSet<String> {
        let own = self.bootstrap.resources.listeners.values();
        own.chain(self.listeners.iter().map(|(_, listener)| listener))
            .flat_map(|listener| listener.named_routes().map(ToString::to_string))
            .collect()
    }

    /// Forgets what is no longer named, and looks up what newly is.
    fn follow_names(&mut self, now: Instant) {
        let (endpoints, tables) = (self.endpoint_names(), self.route_table_names());
        self.endpoints.retain(&endpoints);
        self.route_tables.retain(&tables);
        let mut lookups = std::mem::take(&mut self.lookups);
        lookups.follow(self.all_clusters(), now);
        self.lookups = lookups;
    }

    fn mark_changed(&mut self) {
        let now = Instant::now();
        self.changed = Some((self.changed.map_or(now, |(first, _)| first), now));
    }

    /// Everything accepted, from the file and the server.
    fn accepted(&self) -> Resources {
        let mut all = self.bootstrap.resources.clone();
        all.clusters.extend(self.clusters.iter().map(|(_, cluster)| (cluster.name.clone(), cluster.clone())));
        all.listeners.extend(self.listeners.iter().map(|(_, listener)| (listener.name.clone(), listener.clone())));
        all.route_tables.extend(self.route_tables.iter().map(|(_, table)| (table.name.clone(), table.clone())));
        for cluster in self.all_clusters() {
            if let Discovery::Eds(service) = &cluster.discovery
                && let Some(endpoints) = self.endpoints.value(service)
            {
                all.endpoints.insert(cluster.name.clone(), endpoints.clone());
            }
        }
        self.lookups.add_to(&mut all);
        all
    }

    /// Publishes what can be.
    fn look(&mut self, now: Instant) {
        self.changed = None;
        let answered = Answered {
            clusters: !self.is_subscribed(Type::Clusters) || self.has_answered[Type::Clusters as usize],
            listeners: !self.is_subscribed(Type::Listeners) || self.has_answered[Type::Listeners as usize],
        };
        let Step { publish, is_warm, wake, waiting, gave_up, missing } =
            self.warm.step(&self.accepted(), answered, now);
        self.wake = wake;
        if !gave_up.is_empty() {
            let names = gave_up.iter().take(16).cloned().collect::<Vec<_>>().join(", ");
            tracing::warn!(count = gave_up.len(), missing = names, "configuration goes on without what did not come");
        }
        if let Some(snapshot) = publish {
            let epoch = snapshot.epoch;
            tracing::info!(epoch, clusters = snapshot.clusters().len(), "published");
            (self.publish)(snapshot);
        }
        self.acknowledge(waiting.is_empty(), now);
        if is_warm {
            self.status.set_ready();
        }
        self.status.edit(|record| {
            record.waiting = waiting;
            record.missing = missing;
        });
    }
}

fn not_static<K: std::borrow::Borrow<str> + Eq + std::hash::Hash, V>(
    kind: ResourceKind,
    name: &str,
    fixed: &HashMap<K, V>,
) -> Result<(), Rejection> {
    if fixed.contains_key(name) {
        return Err(Rejection::new(kind, name, "name", "is configured in the bootstrap file, which stands"));
    }
    Ok(())
}

/// Two listeners on one address would share its connections at random.
fn take_addresses(taken: &mut HashMap<SocketAddr, String>, listener: &ListenerConfig) -> Result<(), Rejection> {
    let name = listener.name.as_str();
    let fixed_port = || listener.addresses.iter().filter(|address| address.port() != 0);
    for address in fixed_port() {
        if let Some(owner) = taken.get(address) {
            let problem = format!("{address} is taken by listener {owner:?}");
            return Err(Rejection::new(ResourceKind::Listener, name, "address", problem));
        }
    }
    taken.extend(fixed_port().map(|address| (*address, name.to_owned())));
    Ok(())
}

async fn receive(events: &mut Option<mpsc::Receiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
