//! Purpose: changes as they happen, as server-sent events that can be resumed.
//! Shape: one event per revision, its id the revision, so a reader that resumes with
//! `Last-Event-ID` never sees half of an apply. Without one (or when that is too old) it first gets
//! a `snapshot` of everything.
//! Cancel: ends when the reader leaves or the process stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;

use super::Api;
use super::error::ApiError;
use crate::model::PolicySet;
use crate::store::Record;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct From {
    revision: Option<u64>,
}

struct Watching {
    api: Arc<Api>,
    sets: Receiver<Arc<PolicySet>>,
    stop: Receiver<bool>,
    /// The last revision sent; absent before the first event.
    seen: Option<u64>,
    ready: Vec<Event>,
}

pub(super) async fn watch(
    State(api): State<Arc<Api>>,
    query: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let Query(from) = query.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let last = match headers.get("last-event-id") {
        None => from.revision,
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            let refusal = || ApiError::bad_request("Last-Event-ID must be a revision such as 12");
            Some(number.ok_or_else(refusal)?)
        }
    };
    let watching = Watching { sets: api.store.subscribe(), stop: api.stop.clone(), api, seen: last, ready: Vec::new() };
    let events = stream::unfold(watching, |mut watching| async {
        let event = watching.next().await?;
        Some((Ok(event), watching))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

impl Watching {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop() {
                return Some(event);
            }
            let set = self.sets.borrow_and_update().clone();
            match self.seen {
                Some(seen) if seen == set.revision => {
                    tokio::select! {
                        _ = self.stop.wait_for(|is_stopping| *is_stopping) => return None,
                        changed = self.sets.changed() => changed.ok()?,
                    }
                }
                Some(seen) if seen < set.revision => self.ready = self.since(seen, &set).await,
                _ => self.ready = vec![snapshot(&set)],
            }
            self.seen = Some(set.revision);
        }
    }

    async fn since(&self, seen: u64, set: &PolicySet) -> Vec<Event> {
        let store = self.api.store.clone();
        let history = tokio::task::spawn_blocking(move || store.history_since(seen)).await;
        let Ok(Ok(Some(records))) = history else { return vec![snapshot(set)] };
        let mut events: Vec<Event> = records
            .chunk_by(|left, right| left.revision == right.revision)
            .filter(|records| records.first().is_some_and(|one| one.revision <= set.revision))
            .map(change)
            .collect();
        events.reverse();
        events
    }
}

fn snapshot(set: &PolicySet) -> Event {
    let objects: Vec<Value> = set.objects.values().map(|object| object.to_json()).collect();
    let body = json!({ "revision": set.revision, "objects": objects });
    Event::default().event("snapshot").id(set.revision.to_string()).data(body.to_string())
}

fn change(records: &[Record]) -> Event {
    let revision = records.first().map_or(0, |record| record.revision);
    let changes: Vec<Value> =
        records.iter().map(|record| json!({ "change": record.change, "object": record.object })).collect();
    let body = json!({ "revision": revision, "changes": changes });
    Event::default().event("change").id(revision.to_string()).data(body.to_string())
}
