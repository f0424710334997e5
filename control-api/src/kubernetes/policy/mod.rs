//! Purpose: the policy objects of the cluster as written, and those of them that are in force.
//! Shape: pure; [`Policies`] takes watch events and is then settled against the registry: an object comes into force when
//! it parses and does not contradict the others; until then its last good version stays.
//!
//! ```text
//! written ─parse─▶ pending ─link over all─▶ in force          refused: its problems; what it was before stays in force
//!    ▲                └── refused by link: tried again whenever anything changes
//! ```
//! Units: a revision is the greatest `resourceVersion` of what changed, or one more than the last revision where that is
//! less, so that replicas of the control plane speak of the same numbers.
//! Limits: the last good version of an object that was changed for the worse is kept in memory only: a control plane that
//! starts afterwards does not know it. The last 1,000 changes are kept for readers to resume from.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

use super::watch::Event;
use crate::model::link::{Touched, find_contradictions};
use crate::model::object::parse_manifest;
use crate::model::{Kind, Manifest, Object, ObjectKey, PolicySet, Problem};
use crate::store::{Change, Record};

/// kubectl's own copy of what was applied, which is no policy.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const HISTORY_MAX: usize = 1_000;

/// An object as the cluster holds it.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// Its version; grows with each write, those of its status too.
    pub resource_version: String,
    /// Grows with each change of its spec.
    pub generation: i64,
    /// Its status.
    pub status: Value,
    /// The parents of a route that are Services, as written.
    pub parents: Vec<Value>,
    parsed: Result<Manifest, Vec<Problem>>,
}

/// What is in force of an object.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    /// The object.
    pub object: Arc<Object>,
    /// Since which revision.
    pub epoch: u64,
}

/// One object and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Judged {
    /// Which.
    pub key: ObjectKey,
    /// As written.
    pub written: Written,
    /// The generation in force, and since which revision; an older one when this one is refused.
    pub in_force: Option<(u64, u64)>,
    /// Whether what is written is in force.
    pub is_accepted: bool,
    /// Why it is not; or, where it is, what it refers to in vain.
    pub problems: Vec<Problem>,
}

/// All objects and what became of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// By key.
    pub objects: BTreeMap<ObjectKey, Judged>,
}

/// The cluster's policy.
#[derive(Debug, Default)]
pub(super) struct Policies {
    written: BTreeMap<ObjectKey, Written>,
    in_force: BTreeMap<ObjectKey, InForce>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    revision: u64,
    /// The greatest version of what changed since the last settling.
    version: u64,
    history: VecDeque<Record>,
}

/// A version as a number; 0 where it is none.
#[must_use]
pub(super) fn number_of(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

impl Policies {
    /// Takes what was seen of a kind.
    pub(super) fn take(&mut self, kind: Kind, event: Event<DynamicObject>) {
        match event {
            Event::Applied(object) => self.put(kind, &object),
            Event::Deleted(object) => {
                self.version =
                    self.version.max(number_of(object.metadata.resource_version.as_deref().unwrap_or_default()));
                self.written.remove(&key_of(kind, &object));
            }
            Event::Listed(objects) => {
                let named: BTreeSet<ObjectKey> = objects.iter().map(|object| key_of(kind, object)).collect();
                self.written.retain(|key, _| key.kind != kind || named.contains(key));
                objects.iter().for_each(|object| self.put(kind, object));
            }
        }
    }

    fn put(&mut self, kind: Kind, object: &DynamicObject) {
        let key = key_of(kind, object);
        let Some((document, parents)) = to_document(kind, object) else {
            // A route of a Gateway is somebody else's; one that was ours is so no longer.
            self.written.remove(&key);
            return;
        };
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let parsed = parse_manifest(&document, None);
        let is_changed = match (self.written.get(&key).map(|written| &written.parsed), &parsed) {
            (Some(Ok(before)), Ok(now)) => before.body != now.body,
            (Some(Err(before)), Err(now)) => before != now,
            _ => true,
        };
        if is_changed {
            self.version = self.version.max(number_of(&version));
        }
        let written = Written {
            resource_version: version,
            generation: object.metadata.generation.unwrap_or(1),
            status: object.data.get("status").cloned().unwrap_or_default(),
            parents,
            parsed,
        };
        self.written.insert(key, written);
    }

    /// Decides what is in force beside `registered`; whether that differs from before.
    pub(super) fn settle(&mut self, registered: &PolicySet) -> bool {
        // Taken out, so that what is pending can borrow from it while the rest changes.
        let all_written = std::mem::take(&mut self.written);
        let mut force = self.in_force.clone();
        force.retain(|key, _| all_written.contains_key(key));
        let mut problems: BTreeMap<ObjectKey, Vec<Problem>> = BTreeMap::new();
        let mut pending: BTreeMap<&ObjectKey, &Manifest> = BTreeMap::new();
        for (key, written) in &all_written {
            match &written.parsed {
                Err(found) => {
                    problems.insert(key.clone(), found.clone());
                }
                Ok(manifest) if force.get(key).is_none_or(|one| one.object.body != manifest.body) => {
                    pending.insert(key, manifest);
                }
                Ok(_) => {}
            }
        }
        let mut set = self.link(registered, &force, &mut pending, &mut problems);
        let changed = self.enter(&all_written, force, &pending);
        self.written = all_written;
        let is_changed = !changed.is_empty();
        self.record(changed);
        // What is in force may refer to something that has gone since.
        set.revision = self.revision;
        let all: Touched = self.in_force.keys().map(|key| (key.clone(), None)).collect();
        for problem in find_contradictions(&set, &all) {
            if let Some(key) = owner_of(&problem, self.in_force.keys()) {
                let found = problems.entry(key).or_default();
                if !found.contains(&problem) {
                    found.push(problem);
                }
            }
        }
        self.problems = problems;
        is_changed
    }

    /// Leaves in `pending` what does not contradict the rest; gives the set with it.
    fn link(
        &self,
        registered: &PolicySet,
        force: &BTreeMap<ObjectKey, InForce>,
        pending: &mut BTreeMap<&ObjectKey, &Manifest>,
        problems: &mut BTreeMap<ObjectKey, Vec<Problem>>,
    ) -> PolicySet {
        loop {
            let mut set = PolicySet { revision: self.revision, ..registered.clone() };
            set.objects.extend(force.iter().map(|(key, one)| (key.clone(), one.object.clone())));
            for (key, manifest) in pending.iter() {
                set.objects.insert((*key).clone(), Arc::new(to_object(manifest, None, 0, 0)));
            }
            let touched: Touched = pending.keys().map(|key| ((*key).clone(), None)).collect();
            let found = find_contradictions(&set, &touched);
            let mut is_stable = true;
            for problem in found {
                if let Some(key) = owner_of(&problem, touched.keys()) {
                    is_stable &= pending.remove(&key).is_none();
                    problems.entry(key).or_default().push(problem);
                }
            }
            if is_stable {
                return set;
            }
        }
    }

    /// Puts `pending` into force; the changes this makes.
    fn enter(
        &mut self,
        written: &BTreeMap<ObjectKey, Written>,
        mut force: BTreeMap<ObjectKey, InForce>,
        pending: &BTreeMap<&ObjectKey, &Manifest>,
    ) -> Vec<(Change, Arc<Object>)> {
        let gone = self.in_force.iter().filter(|(key, _)| !force.contains_key(*key));
        let mut changed: Vec<_> = gone.map(|(_, one)| (Change::Deleted, one.object.clone())).collect();
        if changed.is_empty() && pending.is_empty() {
            self.version = 0;
            self.in_force = force;
            return changed;
        }
        self.revision = self.version.max(self.revision + 1);
        self.version = 0;
        for (key, manifest) in pending {
            let Some(written) = written.get(*key) else { continue };
            let before = force.get(*key);
            let version = number_of(&written.resource_version);
            let generation = u64::try_from(written.generation).unwrap_or(1);
            let object = Arc::new(to_object(manifest, before.map(|one| one.object.as_ref()), version, generation));
            changed.push((if before.is_some() { Change::Configured } else { Change::Created }, object.clone()));
            force.insert((*key).clone(), InForce { object, epoch: epoch_of(written, self.revision) });
        }
        self.in_force = force;
        changed
    }

    fn record(&mut self, changed: Vec<(Change, Arc<Object>)>) {
        for (change, object) in changed {
            self.history.push_back(Record { revision: self.revision, change, object: object.to_json() });
        }
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
    }

    /// What is in force.
    #[must_use]
    pub(super) fn set(&self) -> PolicySet {
        let objects = self.in_force.iter().map(|(key, one)| (key.clone(), one.object.clone())).collect();
        PolicySet { revision: self.revision, objects, ..PolicySet::default() }
    }

    /// What became of each object.
    #[must_use]
    pub(super) fn standing(&self) -> Standing {
        let judge = |(key, written): (&ObjectKey, &Written)| {
            let force = self.in_force.get(key);
            let is_accepted = match (&written.parsed, force) {
                (Ok(manifest), Some(one)) => manifest.body == one.object.body,
                _ => false,
            };
            let judged = Judged {
                key: key.clone(),
                written: written.clone(),
                in_force: force.map(|one| (one.object.generation, one.epoch)),
                is_accepted,
                problems: self.problems.get(key).cloned().unwrap_or_default(),
            };
            (key.clone(), judged)
        };
        Standing { objects: self.written.iter().map(judge).collect() }
    }

    /// The changes after `revision`, oldest first; `None` when some are no longer kept.
    #[must_use]
    pub(super) fn history_since(&self, revision: u64) -> Option<Vec<Record>> {
        if revision >= self.revision {
            return Some(Vec::new());
        }
        // The first record kept is whole only when what came before it was not cut off.
        let first = self.history.front().map_or(u64::MAX, |record| record.revision);
        let is_whole = first <= revision;
        is_whole.then(|| self.history.iter().filter(|record| record.revision > revision).cloned().collect())
    }
}

fn key_of(kind: Kind, object: &DynamicObject) -> ObjectKey {
    let meta = &object.metadata;
    ObjectKey::new(kind, meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// The object as `model` reads it, with the parents of a route; `None` where it is bound to no Service.
fn to_document(kind: Kind, object: &DynamicObject) -> Option<(Value, Vec<Value>)> {
    let meta = &object.metadata;
    let mut spec = object.data.get("spec").cloned().unwrap_or_else(|| json!({}));
    let mut parents = Vec::new();
    if matches!(kind, Kind::GrpcRoute | Kind::HttpRoute) {
        let written = spec.get("parentRefs").and_then(Value::as_array).cloned().unwrap_or_default();
        parents = written.into_iter().filter(is_service).collect();
        if parents.is_empty() {
            return None;
        }
        // Parents of other kinds are other controllers' business.
        spec["parentRefs"] = Value::Array(parents.clone());
    }
    let pairs = |map: Option<&BTreeMap<String, String>>| -> Map<String, Value> {
        let kept = map.into_iter().flatten().filter(|(key, _)| *key != LAST_APPLIED);
        kept.map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect()
    };
    let document = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.as_str(),
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": pairs(meta.labels.as_ref()),
            "annotations": pairs(meta.annotations.as_ref()),
        },
        "spec": spec,
    });
    Some((document, parents))
}

fn is_service(parent: &Value) -> bool {
    let group = parent.get("group").and_then(Value::as_str);
    parent.get("kind").and_then(Value::as_str) == Some("Service") && matches!(group, None | Some("" | "core"))
}

/// The canonical form of what the cluster holds of an object, for comparing.
pub(super) fn canonical_body(kind: Kind, object: &DynamicObject) -> Option<Value> {
    let (document, _) = to_document(kind, object)?;
    parse_manifest(&document, None).ok().map(|manifest| manifest.body)
}

fn to_object(manifest: &Manifest, before: Option<&Object>, version: u64, generation: u64) -> Object {
    Object {
        key: manifest.key.clone(),
        spec: manifest.spec.clone(),
        body: manifest.body.clone(),
        created: before.map_or(version, |object| object.created),
        changed: version,
        generation,
    }
}

/// Since when a generation is in force: as its status says, unless that speaks of another generation or of a revision that
/// nobody knows any more.
fn epoch_of(written: &Written, revision: u64) -> u64 {
    let conditions = written.status.get("conditions").and_then(Value::as_array);
    let is_told = conditions.into_iter().flatten().any(|one| {
        one["type"] == "Accepted" && one["status"] == "True" && one["observedGeneration"] == written.generation
    });
    let told = written.status.get("epoch").and_then(Value::as_u64);
    told.filter(|epoch| is_told && *epoch <= revision).unwrap_or(revision)
}

fn owner_of<'a>(problem: &Problem, mut keys: impl Iterator<Item = &'a ObjectKey>) -> Option<ObjectKey> {
    let name = problem.object.as_deref()?;
    keys.find(|key| key.to_string() == name).cloned()
}

#[cfg(test)]
mod tests;
