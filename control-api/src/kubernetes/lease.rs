//! Purpose: one replica of the control plane writes statuses; a Lease in its namespace says which.
//! Shape: [`hold`] runs for ever and tells by a watch channel whether we hold it; [`release`] gives it up at the end.
//!
//! ```text
//! waiting ──free, or not renewed for 15 s──▶ holding ──not renewed by us for 10 s, or taken──▶ waiting
//! ```
//! Limits: clocks of replicas are not compared: a holder is given up when its record did not change for the lease's time,
//! by our clock. A holder that cannot renew stops 5 s before another may begin.
//! Cancel: dropping [`hold`] leaves the lease to run out.
//! Source: Kubernetes coordination/v1 Lease, as client-go's leader election uses it.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;

use super::watch::explain;

/// Its name, in the control plane's namespace.
pub(super) const LEASE: &str = "outrigger-control";
const LEASE_TIME: Duration = Duration::from_secs(15);
const LEASE_SECONDS: i32 = 15;
const RENEW_TIME: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
const CALL_TIME: Duration = Duration::from_secs(4);

/// A name for this process that no other has.
#[must_use]
pub(super) fn identity(pod: Option<String>) -> String {
    let chance = RandomState::new().hash_one(std::process::id());
    format!("{}_{chance:016x}", pod.unwrap_or_else(|| "outrigger-control".to_owned()))
}

/// What was last seen of the lease, and when it last changed.
#[derive(Debug)]
struct Seen {
    version: Option<String>,
    since: Instant,
}

/// Whether we may take it.
fn is_free(lease: &Lease, identity: &str, seen: &Seen, now: Instant) -> bool {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    holder.is_empty() || holder == identity || now.saturating_duration_since(seen.since) >= LEASE_TIME
}

/// The lease with us as its holder.
fn held(mut lease: Lease, identity: &str, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(identity) {
        spec.holder_identity = Some(identity.to_owned());
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
    }
    spec.lease_duration_seconds = Some(LEASE_SECONDS);
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// Takes the lease whenever it is free and renews it; `leads` says whether it is ours.
pub(super) async fn hold(api: Api<Lease>, identity: String, leads: watch::Sender<bool>) {
    let mut seen = Seen { version: None, since: Instant::now() };
    let mut renewed: Option<Instant> = None;
    let mut last_error = None;
    loop {
        let tried = tokio::time::timeout(CALL_TIME, renew(&api, &identity, &mut seen)).await;
        match &tried {
            Ok(Ok(true)) => renewed = Some(Instant::now()),
            Ok(Ok(false)) => renewed = None,
            Ok(Err(error)) => note(&mut last_error, explain(error)),
            Err(_) => note(&mut last_error, "no answer within 4 s".to_owned()),
        }
        if matches!(tried, Ok(Ok(_))) {
            last_error = None;
        }
        let is_ours = renewed.is_some_and(|at| at.elapsed() < RENEW_TIME);
        if *leads.borrow() != is_ours {
            tracing::info!(lease = LEASE, identity, is_ours, "who writes statuses has changed");
            leads.send_replace(is_ours);
        }
        tokio::time::sleep(RENEW_EVERY).await;
    }
}

fn note(last: &mut Option<String>, error: String) {
    if last.as_ref() != Some(&error) {
        tracing::warn!(lease = LEASE, reason = error, "the lease could not be renewed; statuses wait");
        *last = Some(error);
    }
}

/// One try; whether it is ours.
async fn renew(api: &Api<Lease>, identity: &str, seen: &mut Seen) -> Result<bool, kube::Error> {
    let params = PostParams::default();
    let Some(lease) = api.get_opt(LEASE).await? else {
        let mut lease = held(Lease::default(), identity, Timestamp::now());
        lease.metadata.name = Some(LEASE.to_owned());
        return settle(api.create(&params, &lease).await);
    };
    if seen.version != lease.metadata.resource_version {
        *seen = Seen { version: lease.metadata.resource_version.clone(), since: Instant::now() };
    }
    if !is_free(&lease, identity, seen, Instant::now()) {
        return Ok(false);
    }
    // The version that was read is in it, so of two that try one is refused.
    settle(api.replace(LEASE, &params, &held(lease, identity, Timestamp::now())).await)
}

/// Somebody was faster: it is theirs.
fn settle(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the lease up, so that another need not wait for it to run out.
pub(super) async fn release(api: &Api<Lease>, identity: &str) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(LEASE).await? else { return Ok(()) };
    let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(identity)) else {
        return Ok(());
    };
    spec.holder_identity = Some(String::new());
    settle(api.replace(LEASE, &PostParams::default(), &lease).await).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_run_out() {
        let now = Instant::now();
        let fresh = Seen { version: None, since: now };
        let theirs = held(Lease::default(), "a", Timestamp::UNIX_EPOCH);
        assert!(is_free(&Lease::default(), "b", &fresh, now));
        assert!(is_free(&theirs, "a", &fresh, now));
        assert!(!is_free(&theirs, "b", &fresh, now + LEASE_TIME / 2));
        assert!(is_free(&theirs, "b", &fresh, now + LEASE_TIME));
    }

    #[test]
    fn taking_it_counts_a_transition_and_renewing_does_not() {
        let first = held(Lease::default(), "a", Timestamp::UNIX_EPOCH);
        let again = held(first, "a", Timestamp::UNIX_EPOCH);
        let taken = held(again.clone(), "b", Timestamp::UNIX_EPOCH);
        let count = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        assert_eq!((count(&again), count(&taken)), (Some(0), Some(1)));
    }
}
