//! Purpose: one proxy's subscriptions and what to push next: the ACK/NACK dance, without I/O.
//! Shape: per type one [`Subscription`]; at most one push of a type is unanswered.
//!
//! ```text
//! idle ──push──▶ pending ──ACK──▶ idle, held = pushed version
//!                   └────NACK──▶ idle, refused = pushed version, not sent again
//! ```
//! Order: CDS, EDS, LDS, RDS. Listeners and routes wait until clusters and their endpoints are
//! answered, but no longer than [`HOLD_MAX`], so a reader that never asks for endpoints is served
//! too. A removed cluster stays in CDS until the new routes are ACKed.
//! A version is the digest of names and contents: what a proxy held before a reconnect or a restart
//! of the server is recognised and not sent again.
//! Limits: 100,000 names a subscription.
//! Source: xDS protocol, "ACK/NACK and resource type instance version", "Eventual consistency".

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tonic::Status;

use crate::compile::{Digest, NodeResources, NodeRole, Resource, ResourceSet, ResourceType};

/// How long listeners and routes wait for clusters and endpoints.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(2);
const NAMES_MAX: usize = 100_000;
const REFUSAL_CHARS_MAX: usize = 2_000;

/// A push that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The refused version.
    pub version: String,
    /// The proxy's words.
    pub message: String,
}

/// What a proxy asked for, of one type.
#[derive(Debug, Clone, Default)]
pub struct Subscription {
    /// Absent: all of them.
    names: Option<BTreeSet<String>>,
    /// What the proxy runs.
    pub held: Option<String>,
    /// What was pushed and not answered: nonce and version.
    pub pending: Option<(String, String)>,
    /// The last refusal; cleared by the next ACK.
    pub refused: Option<Refusal>,
    /// How often it refused.
    pub refusals: u64,
    last_nonce: String,
    is_forced: bool,
    /// What was last pushed, to keep removed clusters and to notice changed ones.
    pushed: ResourceSet,
}

impl Subscription {
    fn wants(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }
}

/// The state of one stream.
#[derive(Debug)]
pub struct Dance {
    desired: NodeResources,
    /// Versions of what is desired, per type; made once, for thousands of streams ask often.
    versions: [OnceLock<String>; 4],
    subscriptions: [Option<Subscription>; 4],
    expects_listeners: bool,
    nonce: u64,
    held_since: Option<Instant>,
    running_revision: Option<u64>,
}

impl Dance {
    /// A stream of a proxy of this role.
    #[must_use]
    pub fn new(role: &NodeRole, desired: NodeResources) -> Self {
        Self {
            desired,
            versions: [const { OnceLock::new() }; 4],
            subscriptions: [const { None }; 4],
            expects_listeners: role.outbound.is_some() || role.inbound.is_some() || role.capture.is_some(),
            nonce: 0,
            held_since: None,
            running_revision: None,
        }
    }

    /// The newest policy; replaces what was not pushed yet.
    pub fn desire(&mut self, desired: NodeResources) {
        self.desired = desired;
        self.versions = [const { OnceLock::new() }; 4];
        self.held_since = None;
        self.note_running();
    }

    /// The subscription of a type, if there is one.
    #[must_use]
    pub fn subscription(&self, kind: ResourceType) -> Option<&Subscription> {
        self.subscriptions[kind as usize].as_ref()
    }

    /// The newest revision of which the proxy runs everything.
    #[must_use]
    pub fn running_revision(&self) -> Option<u64> {
        self.running_revision
    }

    /// The newest revision there is for this proxy.
    #[must_use]
    pub fn desired_revision(&self) -> u64 {
        self.desired.revision
    }

    /// When a held push is let go, if one is held.
    #[must_use]
    pub fn released_at(&self) -> Option<Instant> {
        self.held_since.map(|since| since + HOLD_MAX)
    }

    /// Whether the proxy has refused what is desired of a type, so that nothing will change by waiting.
    #[must_use]
    pub fn is_refusing(&self, kind: ResourceType) -> bool {
        self.subscription(kind).is_some_and(|one| one.refused.is_some() && one.pending.is_none())
            && self.due(kind).is_none()
            && !self.runs_desired(kind)
    }

    /// Takes a request; a NACK comes back as its refusal.
    pub fn take_request(&mut self, request: &DiscoveryRequest) -> Result<Option<Refusal>, Status> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            // Other types are never served; the reader's own fetch timeout ends its wait.
            tracing::debug!(type_url = request.type_url, "a type that is not served was asked for");
            return Ok(None);
        };
        if request.resource_names.len() > NAMES_MAX {
            return Err(Status::invalid_argument(format!(
                "resource_names of {} has {} entries; at most {NAMES_MAX}",
                kind.short_name(),
                request.resource_names.len()
            )));
        }
        let refusal = match &mut self.subscriptions[kind as usize] {
            slot @ None => {
                *slot = Some(Subscription {
                    names: wanted_names(kind, request),
                    held: Some(request.version_info.clone()).filter(|version| !version.is_empty()),
                    ..Subscription::default()
                });
                None
            }
            Some(subscription) => {
                let nonce = &request.response_nonce;
                if !nonce.is_empty() && *nonce != subscription.last_nonce {
                    return Ok(None);
                }
                let refusal = take_answer(subscription, request);
                let desired = self.desired.of(kind);
                take_names(subscription, wanted_names(kind, request), desired);
                self.versions[kind as usize] = OnceLock::new();
                refusal
            }
        };
        self.note_running();
        Ok(refusal)
    }

    /// The next push, if one is due.
    pub fn next_push(&mut self, now: Instant) -> Option<DiscoveryResponse> {
        for kind in ResourceType::ALL {
            let Some((version, set)) = self.due(kind) else { continue };
            let waits = matches!(kind, ResourceType::Listener | ResourceType::Routes);
            if waits && !self.is_upstream_settled() {
                let since = *self.held_since.get_or_insert(now);
                if now < since + HOLD_MAX {
                    return None;
                }
            }
            return self.push(kind, version, set);
        }
        self.held_since = None;
        self.note_running();
        None
    }

    fn push(&mut self, kind: ResourceType, version: String, set: ResourceSet) -> Option<DiscoveryResponse> {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let subscription = self.subscriptions[kind as usize].as_mut()?;
        subscription.pending = Some((nonce.clone(), version.clone()));
        subscription.last_nonce.clone_from(&nonce);
        subscription.is_forced = false;
        let resources = set.iter().map(|resource| resource.any.as_ref().clone()).collect();
        let before = std::mem::replace(&mut subscription.pushed, set);
        if kind == ResourceType::Cluster {
            self.renew_endpoints(&before);
        }
        Some(DiscoveryResponse {
            version_info: version,
            resources,
            type_url: kind.type_url().to_owned(),
            nonce,
            ..DiscoveryResponse::default()
        })
    }

    /// A changed cluster warms anew in Envoy and waits for endpoints it already has, so they are
    /// sent again.
    fn renew_endpoints(&mut self, before: &ResourceSet) {
        let Some(clusters) = &self.subscriptions[ResourceType::Cluster as usize] else { return };
        let is_changed = clusters
            .pushed
            .iter()
            .any(|resource| before.find(&resource.name).is_some_and(|old| old.digest != resource.digest));
        if let Some(endpoints) = &mut self.subscriptions[ResourceType::Endpoints as usize]
            && is_changed
        {
            endpoints.is_forced = true;
        }
    }

    /// The version of what is desired of a type; removed clusters that are kept for a while not
    /// counted.
    fn desired_version(&self, subscription: &Subscription, kind: ResourceType) -> &str {
        self.versions[kind as usize]
            .get_or_init(|| version_of(select(subscription, self.desired.of(kind), &[]).into_iter()))
    }

    /// Version and content of a type, when they are to be pushed now.
    fn due(&self, kind: ResourceType) -> Option<(String, ResourceSet)> {
        let subscription = self.subscription(kind).filter(|one| one.pending.is_none())?;
        let retained = self.retained_clusters(kind);
        let version = if retained.is_empty() {
            self.desired_version(subscription, kind).to_owned()
        } else {
            version_of(select(subscription, self.desired.of(kind), &retained).into_iter())
        };
        let is_held = subscription.held.as_ref() == Some(&version);
        let is_refused = subscription.refused.as_ref().is_some_and(|one| one.version == version);
        if (is_held || is_refused) && !subscription.is_forced {
            return None;
        }
        let set = select(subscription, self.desired.of(kind), &retained);
        Some((version, set.into_iter().cloned().collect()))
    }

    /// Whether the proxy runs, or has refused, what is desired of a type.
    fn is_settled(&self, kind: ResourceType) -> bool {
        self.subscription(kind).is_none_or(|one| one.pending.is_none() && self.due(kind).is_none())
    }

    /// Whether clusters and the endpoints of each are answered.
    fn is_upstream_settled(&self) -> bool {
        let Some(clusters) = self.subscription(ResourceType::Cluster) else { return true };
        let endpoints = self.subscription(ResourceType::Endpoints);
        self.is_settled(ResourceType::Cluster)
            && self.is_settled(ResourceType::Endpoints)
            && self
                .desired
                .of(ResourceType::Endpoints)
                .iter()
                .filter(|resource| clusters.wants(&resource.name))
                .all(|resource| endpoints.is_some_and(|one| one.wants(&resource.name)))
    }

    /// Clusters that are gone from the policy but may still be named by the routes that run.
    fn retained_clusters(&self, kind: ResourceType) -> Vec<&Resource> {
        let routes_run = [ResourceType::Listener, ResourceType::Routes].into_iter().all(|kind| self.runs_desired(kind));
        if kind != ResourceType::Cluster || routes_run {
            return Vec::new();
        }
        let desired = self.desired.of(kind);
        let pushed = self.subscription(kind).map(|one| one.pushed.iter());
        pushed.into_iter().flatten().filter(|one| desired.find(&one.name).is_none()).collect()
    }

    fn runs_desired(&self, kind: ResourceType) -> bool {
        self.subscription(kind).is_none_or(|one| one.held.as_deref() == Some(self.desired_version(one, kind)))
    }

    fn note_running(&mut self) {
        let asks = |kind: ResourceType| self.subscription(kind).is_some();
        let has_endpoints = self.desired.of(ResourceType::Endpoints).iter().next().is_some();
        let is_whole = asks(ResourceType::Cluster)
            && (asks(ResourceType::Endpoints) || !has_endpoints)
            && (!self.expects_listeners || asks(ResourceType::Listener))
            && (asks(ResourceType::Routes) || !self.expects_routes());
        let nothing_pending = self.subscriptions.iter().flatten().all(|one| one.pending.is_none());
        if is_whole && nothing_pending && ResourceType::ALL.into_iter().all(|kind| self.runs_desired(kind)) {
            self.running_revision = Some(self.desired.revision);
        }
    }

    fn expects_routes(&self) -> bool {
        self.desired.of(ResourceType::Listener).find("outbound").is_some()
    }
}

fn wanted_names(kind: ResourceType, request: &DiscoveryRequest) -> Option<BTreeSet<String>> {
    let names = &request.resource_names;
    let is_wildcard = names.is_empty() || names.iter().any(|name| name == "*");
    if kind.has_wildcard() && is_wildcard {
        return None;
    }
    Some(names.iter().cloned().collect())
}

fn take_answer(subscription: &mut Subscription, request: &DiscoveryRequest) -> Option<Refusal> {
    let (_, version) = subscription.pending.take_if(|(nonce, _)| *nonce == request.response_nonce)?;
    let Some(detail) = &request.error_detail else {
        subscription.held = Some(version);
        subscription.refused = None;
        return None;
    };
    let refusal = Refusal { version, message: detail.message.chars().take(REFUSAL_CHARS_MAX).collect() };
    subscription.refused = Some(refusal.clone());
    subscription.refusals += 1;
    Some(refusal)
}

/// A shorter list is no reason to push; the version held is that of what is left.
fn take_names(subscription: &mut Subscription, names: Option<BTreeSet<String>>, desired: &ResourceSet) {
    if names == subscription.names {
        return;
    }
    let before = version_of(select(subscription, desired, &[]).into_iter());
    let is_shorter = match (&names, &subscription.names) {
        (Some(now), Some(before)) => now.is_subset(before),
        _ => false,
    };
    let is_current = subscription.held.as_ref() == Some(&before);
    subscription.names = names;
    if is_shorter && is_current && subscription.pending.is_none() {
        let version = version_of(select(subscription, desired, &[]).into_iter());
        subscription.held = Some(version);
    }
}

fn select<'a>(subscription: &Subscription, desired: &'a ResourceSet, retained: &[&'a Resource]) -> Vec<&'a Resource> {
    match &subscription.names {
        None => desired.iter().chain(retained.iter().copied()).collect(),
        Some(names) => names
            .iter()
            .filter_map(|name| {
                let kept = || retained.iter().copied().find(|one| one.name == *name);
                desired.find(name).or_else(kept)
            })
            .collect(),
    }
}

fn version_of<'a>(resources: impl Iterator<Item = &'a Resource>) -> String {
    let mut sorted: Vec<&Resource> = resources.collect();
    sorted.sort_by(|left, right| left.name.cmp(&right.name));
    let digest = sorted.iter().fold(Digest::new(), |digest, resource| {
        digest.with(resource.name.as_bytes()).with(&resource.digest.to_le_bytes())
    });
    format!("{:016x}", digest.finish())
}
