//! Purpose: policy kept in the cluster itself: reads come from the view, writes go there by server-side apply.
//! Shape: [`ClusterStore`] plans a change as the file store does, asks the API server about all of it (`dryRun=All`), then
//! writes one object after the other, and returns when the view shows what was written.
//!
//! ```text
//! changes ─▶ preconditions, link ─▶ dry run of each ─▶ write of each ─▶ seen in the view
//!               │ 409/412/422           │ nothing written   │ Partial: the first ones are written
//! ```
//! Errors: as [`StoreError`]; what the API server refuses is said in its words.
//! Limits: the API server has no transaction over objects. What fails after the dry run (a write of somebody else in between,
//! a webhook, the network) leaves those before it written, which the error counts. Fields that another field manager
//! owns stay when a body leaves them out: server-side apply takes away only what it set itself.
//! Cancel: a commit that has begun goes on to its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::crd::plural;
use super::policy::{Judged, Policies, Standing, canonical_body, number_of};
use super::watch::explain;
use crate::model::{Kind, Manifest, ObjectKey, PolicySet, Problem};
use crate::store::{Change, Changes, Outcome, Record, Registered, Store, StoreError, Write, plan};

/// The name under which our writes own their fields.
pub(super) const FIELD_MANAGER: &str = "outrigger-control";
/// How long a write may take to come back by the watch.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// The policy of a cluster.
pub struct ClusterStore {
    client: Client,
    runtime: Handle,
    policies: Arc<Mutex<Policies>>,
    current: watch::Receiver<Arc<PolicySet>>,
    standing: watch::Receiver<Arc<Standing>>,
    registered: Registered,
    /// Writers go one at a time, so that each plans on what the one before it left.
    turn: Mutex<()>,
}

impl std::fmt::Debug for ClusterStore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ClusterStore").finish_non_exhaustive()
    }
}

/// How the API server knows a kind.
#[must_use]
pub(super) fn resource_of(kind: Kind) -> ApiResource {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), plural(kind))
}

/// One write, done or tried.
struct Written {
    key: ObjectKey,
    /// Its version; absent after a delete.
    version: Option<String>,
    change: Change,
}

impl ClusterStore {
    /// A store over a view that a watch keeps. Must be made on the runtime.
    pub(super) fn new(
        client: Client,
        policies: Arc<Mutex<Policies>>,
        current: watch::Receiver<Arc<PolicySet>>,
        standing: watch::Receiver<Arc<Standing>>,
        registered: Registered,
    ) -> Self {
        Self { client, runtime: Handle::current(), policies, current, standing, registered, turn: Mutex::new(()) }
    }

    fn api(&self, key: &ObjectKey) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &key.namespace, &resource_of(key.kind))
    }

    fn judged(&self, key: &ObjectKey) -> Option<Judged> {
        self.standing.borrow().objects.get(key).cloned()
    }

    /// The version that a writer must have seen, in the cluster's numbers: its status may have been written since.
    fn expected_now(&self, key: &ObjectKey, expected: Option<u64>) -> Option<u64> {
        let (expected, changed) = (expected?, self.current.borrow().objects.get(key)?.changed);
        let newest = number_of(&self.judged(key)?.written.resource_version);
        Some(if (changed..=newest).contains(&expected) { changed } else { expected })
    }

    /// `changes` with preconditions in the numbers of the view.
    fn normalise(&self, changes: &Changes) -> Changes {
        let mut changes = changes.clone();
        for write in &mut changes.writes {
            match write {
                Write::Delete { key, expected } => *expected = self.expected_now(key, *expected).or(*expected),
                Write::Put(one) => one.expected = self.expected_now(&one.key, one.expected).or(one.expected),
            }
        }
        changes
    }

    /// The version that the API server is to insist on.
    fn precondition(&self, key: &ObjectKey, expected: Option<u64>) -> Option<String> {
        expected.filter(|expected| *expected > 0)?;
        self.judged(key).map(|judged| judged.written.resource_version)
    }

    async fn put(&self, manifest: &Manifest, is_dry_run: bool) -> Result<Written, StoreError> {
        let key = &manifest.key;
        let api = self.api(key);
        let refused = |error| refusal(error, key, manifest.expected);
        // As it was before: the watch may show what is written before the answer is here.
        let stored = self.current.borrow().objects.get(key).cloned();
        let mut body = manifest.body.clone();
        let answer = if manifest.expected == Some(0) {
            let object: DynamicObject =
                serde_json::from_value(body).map_err(|error| StoreError::Failed(error.to_string()))?;
            let params = PostParams { dry_run: is_dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) };
            api.create(&params, &object).await.map_err(refused)?
        } else {
            if let Some(version) = self.precondition(key, manifest.expected) {
                body["metadata"]["resourceVersion"] = version.into();
            }
            let params = PatchParams { dry_run: is_dry_run, ..PatchParams::apply(FIELD_MANAGER).force() };
            api.patch(&key.name, &params, &Patch::Apply(&body)).await.map_err(refused)?
        };
        let change = match stored {
            None => Change::Created,
            Some(stored) if canonical_body(key.kind, &answer).as_ref() == Some(&stored.body) => Change::Unchanged,
            Some(_) => Change::Configured,
        };
        Ok(Written { key: key.clone(), version: answer.metadata.resource_version, change })
    }

    async fn delete(&self, key: &ObjectKey, expected: Option<u64>, is_dry_run: bool) -> Result<Written, StoreError> {
        let resource_version = self.precondition(key, expected);
        let preconditions =
            resource_version.map(|version| Preconditions { resource_version: Some(version), uid: None });
        let params = DeleteParams { dry_run: is_dry_run, preconditions, ..DeleteParams::default() };
        let deleted = self.api(key).delete(&key.name, &params).await;
        deleted.map_err(|error| refusal(error, key, expected))?;
        Ok(Written { key: key.clone(), version: None, change: Change::Deleted })
    }

    async fn write(&self, write: &Write, is_dry_run: bool) -> Result<Written, StoreError> {
        match write {
            Write::Put(manifest) => self.put(manifest, is_dry_run).await,
            Write::Delete { key, expected } => self.delete(key, *expected, is_dry_run).await,
        }
    }

    async fn write_all(&self, changes: &Changes) -> Result<Vec<Written>, StoreError> {
        let mut tried = Vec::new();
        for write in &changes.writes {
            tried.push(self.write(write, true).await?);
        }
        if changes.is_dry_run {
            return Ok(tried);
        }
        let mut written = Vec::new();
        for write in &changes.writes {
            match self.write(write, false).await {
                Ok(one) => written.push(one),
                Err(error) if written.is_empty() => return Err(error),
                Err(error) => {
                    let key = match write {
                        Write::Put(manifest) => manifest.key.clone(),
                        Write::Delete { key, .. } => key.clone(),
                    };
                    let (done, all) = (written.len(), changes.writes.len());
                    return Err(StoreError::Partial { done, all, key, reason: describe(&error) });
                }
            }
        }
        self.wait_for(&written).await;
        Ok(written)
    }

    /// Waits until the view shows what was written.
    async fn wait_for(&self, written: &[Written]) {
        let mut standing = self.standing.clone();
        let is_seen = |standing: &Arc<Standing>| {
            written.iter().all(|one| {
                let seen = standing.objects.get(&one.key).map(|judged| number_of(&judged.written.resource_version));
                match &one.version {
                    Some(version) => seen.is_some_and(|seen| seen >= number_of(version)),
                    None => seen.is_none(),
                }
            })
        };
        if tokio::time::timeout(SEEN_WITHIN, standing.wait_for(is_seen)).await.is_err() {
            tracing::warn!("what was written has not come back from the cluster yet; the answer does not wait for it");
        }
    }
}

impl Store for ClusterStore {
    fn current(&self) -> Arc<PolicySet> {
        self.current.borrow().clone()
    }

    fn subscribe(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.current.clone()
    }

    fn commit(&self, changes: &Changes) -> Result<Outcome, StoreError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.normalise(changes);
        let (before, registered) = (self.current(), self.registered.borrow().clone());
        plan(&before, &registered, &changes)?;
        let written = self.runtime.block_on(self.write_all(&changes))?;
        let changes = written.into_iter().map(|one| (one.key, one.change)).collect();
        Ok(Outcome { revision: self.current().revision, changes })
    }

    fn history_since(&self, revision: u64) -> Result<Option<Vec<Record>>, StoreError> {
        Ok(self.policies.lock().unwrap_or_else(PoisonError::into_inner).history_since(revision))
    }
}

/// What the API server's answer means to whoever wrote.
fn refusal(error: kube::Error, key: &ObjectKey, expected: Option<u64>) -> StoreError {
    let kube::Error::Api(status) = &error else { return StoreError::Unreachable(explain(&error)) };
    match status.code {
        401 | 403 => StoreError::Forbidden(status.message.clone()),
        404 if status.details.as_ref().is_some_and(|details| !details.name.is_empty()) => {
            StoreError::Missing(key.clone())
        }
        404 => StoreError::Failed(format!(
            "the cluster has no kind {}; install the definitions: outriggerctl crds | kubectl apply --server-side -f -",
            key.kind
        )),
        409 => StoreError::Outdated { key: key.clone(), expected: expected.unwrap_or(0), found: 0 },
        400 | 422 => {
            let problem =
                Problem { object: Some(key.to_string()), message: status.message.clone(), ..Problem::default() };
            StoreError::Contradiction(vec![problem])
        }
        _ => StoreError::Unreachable(explain(&error)),
    }
}

fn describe(error: &StoreError) -> String {
    match error {
        StoreError::Contradiction(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    }
}
