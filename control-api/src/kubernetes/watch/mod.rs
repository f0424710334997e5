//! Purpose: follow all objects of one kind: list, then watch, for ever.
//! Shape: [`follow`] hands [`Event`]s to a sink; a list comes as one event, so whoever applies it never sees half of it. A
//! [`Pulse`] tells whether the watch stands.
//!
//! ```text
//! list ──▶ watch ──bookmark, event──▶ watch
//!   ▲        └─ 410 Gone ─▶ list      └─ end, error, silence ─▶ pause ─▶ watch from the last version seen
//!   └─ error ─▶ pause ─▶ list
//! ```
//! Errors: never ends by one; each is logged once a run of failures, with what to do where that is known.
//! Limits: pages of 500; a watch that is silent for 150 s (bookmarks come each minute) is opened anew; pauses of 0.25 s to
//! 30 s, half of each by chance.
//! Cancel: dropping the future ends it between two events.
//! Source: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "410 Gone".

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;

use super::client::chain;

const PAGE: u32 = 500;
const WATCH_SECONDS: u32 = 290;
const SILENCE_MAX: Duration = Duration::from_secs(150);
const LIST_TIME: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often it is asked whether an absent kind has come.
const ABSENT_PAUSE: Duration = Duration::from_secs(10);

/// What was seen of a kind.
#[derive(Debug, Clone)]
pub(super) enum Event<T> {
    /// All there are; others are gone.
    Listed(Vec<T>),
    /// One that is new or changed.
    Applied(T),
    /// One that is gone.
    Deleted(T),
}

/// Whether a watch stands, and since when it does not.
#[derive(Debug, Clone)]
pub(super) struct Pulse {
    resource: &'static str,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Since when nothing was heard; absent while the watch stands.
    broken_since: Option<Instant>,
    is_listed: bool,
    is_absent: bool,
    last_error: Option<String>,
    failures: u64,
}

/// What a pulse says now.
#[derive(Debug, Clone)]
pub struct PulseView {
    /// Plural of the kind.
    pub resource: &'static str,
    /// How old the view is: zero while the watch stands.
    pub age: Duration,
    /// Whether everything was read once.
    pub is_listed: bool,
    /// Whether the cluster does not have this kind.
    pub is_absent: bool,
    /// What went wrong last, while the watch does not stand.
    pub error: Option<String>,
    /// How often it broke.
    pub failures: u64,
}

impl Pulse {
    /// Of a kind that was not read yet.
    #[must_use]
    pub(super) fn new(resource: &'static str) -> Self {
        let state = State {
            broken_since: Some(Instant::now()),
            is_listed: false,
            is_absent: false,
            last_error: None,
            failures: 0,
        };
        Self { resource, state: Arc::new(Mutex::new(state)) }
    }

    /// How it stands.
    #[must_use]
    pub(super) fn view(&self) -> PulseView {
        let state = self.state();
        PulseView {
            resource: self.resource,
            age: state.broken_since.map(|since| since.elapsed()).unwrap_or_default(),
            is_listed: state.is_listed,
            is_absent: state.is_absent,
            error: state.last_error.clone(),
            failures: state.failures,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_listed(&self, is_absent: bool) {
        let mut state = self.state();
        if is_absent && !state.is_absent {
            let (resource, remedy) = (self.resource, "outriggerctl crds | kubectl apply --server-side -f -");
            tracing::warn!(
                resource,
                remedy,
                "the cluster has no such kind (of the Gateway API: its own CRDs); it is looked for again"
            );
        }
        state.is_listed = true;
        state.is_absent = is_absent;
    }

    fn note_standing(&self) {
        let mut state = self.state();
        if state.broken_since.take().is_some() && state.last_error.take().is_some() {
            tracing::info!(resource = self.resource, "the watch stands again");
        }
    }

    fn note_failure(&self, error: String) {
        let mut state = self.state();
        state.failures += 1;
        state.broken_since.get_or_insert_with(Instant::now);
        if state.last_error.as_ref() != Some(&error) {
            let resource = self.resource;
            tracing::warn!(
                resource,
                reason = error,
                "the watch broke; the last view stays in force until it stands again"
            );
            state.last_error = Some(error);
        }
    }
}

/// Spans that double, half of each by chance.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

impl Pauses {
    fn next(&mut self, chance: u64) -> Duration {
        let whole = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures += 1;
        let half = whole / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(chance % nanos.max(1))
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.next(RandomState::new().hash_one(0_u8))).await;
    }
}

/// What a kind must be to be followed.
pub(super) trait Followed: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static {}
impl<T: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static> Followed for T {}

/// How a watch ended.
enum End {
    /// What it would go on from is no longer kept.
    Gone,
    /// The server ended it, as it does every few minutes.
    Over,
    Failed(String),
}

/// Follows all objects that `api` reaches. `take` waits when its reader is behind.
pub(super) async fn follow<T: Followed, F: Future<Output = ()>>(
    api: Api<T>,
    pulse: Pulse,
    take: impl Fn(Event<T>) -> F,
) {
    let mut pauses = Pauses::default();
    loop {
        let mut version = match list(&api).await {
            Ok((items, version)) => {
                take(Event::Listed(items)).await;
                pulse.note_listed(false);
                version
            }
            // The cluster has no such kind, which may come later: it has none of its objects, then.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                take(Event::Listed(Vec::new())).await;
                pulse.note_listed(true);
                pulse.note_standing();
                tokio::time::sleep(ABSENT_PAUSE).await;
                continue;
            }
            Err(error) => {
                pulse.note_failure(explain(&error));
                pauses.wait().await;
                continue;
            }
        };
        loop {
            let before = Instant::now();
            match watch(&api, &mut version, &pulse, &take).await {
                End::Gone => {
                    tracing::debug!(
                        resource = pulse.resource,
                        "the watch is too far behind; everything is listed again"
                    );
                    break;
                }
                End::Over if before.elapsed() > Duration::from_secs(5) => pauses = Pauses::default(),
                // One that ends at once would be asked for without pause.
                End::Over => pauses.wait().await,
                End::Failed(error) => {
                    if before.elapsed() > PAUSE_MAX {
                        pauses = Pauses::default();
                    }
                    pulse.note_failure(error);
                    pauses.wait().await;
                }
            }
        }
    }
}

async fn list<T: Followed>(api: &Api<T>) -> Result<(Vec<T>, String), kube::Error> {
    let mut items = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let listed = tokio::time::timeout(LIST_TIME, api.list(&page)).await;
        let listed = listed.unwrap_or_else(|_| Err(kube::Error::Service("no answer within 60 s".into())))?;
        items.extend(listed.items);
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok((items, listed.metadata.resource_version.unwrap_or_default())),
        }
    }
}

async fn watch<T: Followed, F: Future<Output = ()>>(
    api: &Api<T>,
    version: &mut String,
    pulse: &Pulse,
    take: &impl Fn(Event<T>) -> F,
) -> End {
    let wanted = WatchParams::default().timeout(WATCH_SECONDS);
    let opened = tokio::time::timeout(LIST_TIME, api.watch(&wanted, version)).await;
    let stream = match opened {
        Err(_) => return End::Failed("no answer within 60 s".to_owned()),
        Ok(Err(kube::Error::Api(status))) if status.code == 410 => return End::Gone,
        Ok(Err(error)) => return End::Failed(explain(&error)),
        Ok(Ok(stream)) => stream,
    };
    let mut stream = std::pin::pin!(stream);
    pulse.note_standing();
    loop {
        let event = match tokio::time::timeout(SILENCE_MAX, stream.next()).await {
            Err(_) => return End::Failed("nothing was heard for 150 s, not even a bookmark".to_owned()),
            Ok(None) => return End::Over,
            Ok(Some(Err(error))) => return End::Failed(explain(&error)),
            Ok(Some(Ok(event))) => event,
        };
        let seen = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Event::Applied(object),
            WatchEvent::Deleted(object) => Event::Deleted(object),
            WatchEvent::Bookmark(mark) => {
                *version = mark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => return End::Gone,
            WatchEvent::Error(status) => return End::Failed(format!("{} ({})", status.message, status.code)),
        };
        if let Event::Applied(object) | Event::Deleted(object) = &seen
            && let Some(newer) = &object.meta().resource_version
        {
            version.clone_from(newer);
        }
        take(seen).await;
    }
}

/// An error, with what to do about it where that is known.
pub(super) fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{}; the control plane's ClusterRole does not allow it: install the chart's", status.message)
        }
        kube::Error::Api(status) if status.code == 401 => {
            format!("{} (401); the token is not one that the API server takes", status.message)
        }
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => chain(other),
    }
}
