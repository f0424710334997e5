//! Purpose: write statuses back to the cluster, at a bounded rate, while this replica leads.
//! Shape: [`report`] wakes when policy or the roster changes, compares each object's status with what it should be, and
//! writes those that differ.
//! Errors: a write that comes too late (409) is made again after the next look; others are logged once a run.
//! Limits: a look each second at most, 100 writes a look; an object whose verdict is the same is written each 10 s at most,
//! whatever its numbers do. Only proxies connected to this replica are counted.
//! Cancel: dropping it ends it between two writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use super::policy::{Judged, Standing};
use super::status::{Fleet, timestamp, wanted};
use super::store::{FIELD_MANAGER, resource_of};
use super::watch::explain;
use crate::ads::Roster;
use crate::model::ObjectKey;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const WRITES_MAX: usize = 100;
const NUMBERS_EVERY: Duration = Duration::from_secs(10);
const WRITE_TIME: Duration = Duration::from_secs(10);

/// Writes statuses for ever.
pub(super) async fn report(
    client: Client,
    mut standing: watch::Receiver<Arc<Standing>>,
    roster: Arc<Roster>,
    mut leads: watch::Receiver<bool>,
) {
    let mut roster_changes = roster.subscribe();
    let mut written: BTreeMap<ObjectKey, Instant> = BTreeMap::new();
    let mut last_error = None;
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        roster_changes.mark_unchanged();
        let now = standing.borrow_and_update().clone();
        let fleet = roster.inspect(|proxies| Fleet::new(proxies.map(|proxy| proxy.running_revision)));
        written.retain(|key, _| now.objects.contains_key(key));
        let is_left = look(&client, &now, &fleet, &mut written, &mut last_error).await;
        tokio::time::sleep(LOOK_EVERY).await;
        if is_left {
            continue;
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            changed = roster_changes.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
        }
    }
}

/// Writes what differs; whether something is left to be written later.
async fn look(
    client: &Client,
    standing: &Standing,
    fleet: &Fleet,
    written: &mut BTreeMap<ObjectKey, Instant>,
    last_error: &mut Option<String>,
) -> bool {
    let (mut is_left, mut writes) = (false, 0);
    let now = timestamp();
    for (key, judged) in &standing.objects {
        let Some(wanted) = wanted(judged, fleet, &now) else { continue };
        let is_due = wanted.is_urgent || written.get(key).is_none_or(|at| at.elapsed() >= NUMBERS_EVERY);
        if !is_due || writes >= WRITES_MAX {
            is_left = true;
            continue;
        }
        writes += 1;
        let sent = tokio::time::timeout(WRITE_TIME, write(client, judged, &wanted.status)).await;
        match sent.unwrap_or_else(|_| Err(kube::Error::Service("no answer within 10 s".into()))) {
            Ok(()) => {
                written.insert(key.clone(), Instant::now());
                *last_error = None;
            }
            // Somebody wrote it meanwhile, or it is gone: the next look sees what it is now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                is_left = true;
                let error = explain(&error);
                if last_error.as_ref() != Some(&error) {
                    tracing::warn!(object = %key, reason = error, "a status could not be written");
                    *last_error = Some(error);
                }
            }
        }
    }
    is_left
}

async fn write(client: &Client, judged: &Judged, status: &serde_json::Value) -> Result<(), kube::Error> {
    let key = &judged.key;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource_of(key.kind));
    // A status of what was there before must not be put on what is there now.
    let patch = json!({ "metadata": { "resourceVersion": judged.written.resource_version }, "status": status });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch_status(&key.name, &params, &Patch::Merge(&patch)).await.map(drop)
}
