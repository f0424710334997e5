//! Purpose: who is connected, and waiting until all of them run a revision.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Api;
use super::apply::read_body;
use super::error::ApiError;
use crate::ads::ProxyView;
use crate::model::duration::parse_duration;

const TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_PAUSE: Duration = Duration::from_millis(5);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// What to wait for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wait {
    /// The revision; the newest when absent.
    pub revision: Option<u64>,
    /// How long; 30 s when absent.
    pub timeout: Option<String>,
    /// Only these nodes, connected or not; all connected ones when absent.
    pub proxies: Option<Vec<String>>,
}

/// What was reached.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitAnswer {
    /// The revision.
    pub revision: u64,
    /// The nodes that run it.
    pub running: Vec<String>,
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<Value> {
    let revision = api.store.current().revision;
    Json(json!({ "revision": revision, "proxies": api.roster.proxies() }))
}

pub(super) async fn wait(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WaitAnswer>, ApiError> {
    let (text, _) = read_body(&headers, body).await?;
    let text = if text.trim().is_empty() { "{}" } else { text.as_str() };
    let wait: Wait = serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("{error}; send {{\"revision\": 3, \"timeout\": \"30s\"}}")))?;
    let timeout = match &wait.timeout {
        Some(text) => {
            parse_duration(text).map_err(|reason| ApiError::bad_request(format!("timeout: {text:?}: {reason}")))?
        }
        None => TIMEOUT,
    };
    if timeout > TIMEOUT_MAX {
        return Err(ApiError::bad_request("timeout: must be in 0s..=10m"));
    }
    let newest = api.store.current().revision;
    let revision = wait.revision.unwrap_or(newest);
    if revision > newest {
        return Err(ApiError::not_found(format!("revision {revision} does not exist; the newest is {newest}")));
    }
    let wanted = wait.proxies.map(|names| names.into_iter().collect::<BTreeSet<_>>());
    wait_for(&api, revision, timeout, wanted.as_ref()).await.map(Json)
}

async fn wait_for(
    api: &Arc<Api>,
    revision: u64,
    timeout: Duration,
    wanted: Option<&BTreeSet<String>>,
) -> Result<WaitAnswer, ApiError> {
    let deadline = Instant::now() + timeout;
    let mut roster = api.roster.subscribe();
    let mut stop = api.stop.clone();
    loop {
        roster.mark_unchanged();
        let standing = api.roster.inspect(|proxies| Standing::of(proxies, revision, wanted));
        if standing.lagging.is_empty() && standing.refused.is_empty() {
            return Ok(WaitAnswer { revision, running: standing.running });
        }
        // A refusal is final until somebody changes something; the others are given their time.
        if standing.lagging.is_empty() {
            return Err(standing.into_error(revision));
        }
        tokio::select! {
            changed = roster.changed() => {
                if changed.is_err() {
                    return Err(standing.into_error(revision));
                }
            }
            () = tokio::time::sleep_until(deadline) => return Err(standing.into_error(revision)),
            _ = stop.wait_for(|is_stopping| *is_stopping) => {
                return Err(ApiError::timed_out("the server is stopping; ask again"));
            }
        }
        // Thousands of proxies answer within moments; one look serves many answers.
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// How far the proxies are.
#[derive(Debug, Default)]
struct Standing {
    running: Vec<String>,
    lagging: Vec<Value>,
    refused: Vec<Value>,
}

impl Standing {
    fn of(proxies: &mut dyn Iterator<Item = &ProxyView>, revision: u64, wanted: Option<&BTreeSet<String>>) -> Self {
        let mut standing = Self::default();
        let mut absent: BTreeSet<&String> = wanted.into_iter().flatten().collect();
        for proxy in proxies.filter(|proxy| wanted.is_none_or(|wanted| wanted.contains(&proxy.node))) {
            standing.add(proxy, revision);
            absent.remove(&proxy.node);
        }
        for node in absent {
            standing.lagging.push(json!({ "node": node, "reason": "is not connected" }));
        }
        standing
    }

    fn add(&mut self, proxy: &ProxyView, revision: u64) {
        if proxy.running_revision.is_some_and(|running| running >= revision) {
            self.running.push(proxy.node.clone());
            return;
        }
        // A refusal of an older revision says nothing about this one.
        let knows = proxy.desired_revision >= revision;
        let refusal = proxy.types.iter().filter(|(_, view)| knows && view.is_refusing).find_map(|(kind, view)| {
            let message = view.nack_message.as_ref()?;
            Some(format!("refused {kind}: {message}"))
        });
        if let Some(reason) = refusal {
            self.refused.push(json!({ "node": proxy.node, "reason": reason }));
            return;
        }
        let waiting: Vec<&str> = proxy
            .types
            .iter()
            .filter(|(_, view)| view.pending_version.is_some())
            .map(|(kind, _)| kind.as_str())
            .collect();
        let reason = match waiting.as_slice() {
            [] => "has not asked for everything yet".to_owned(),
            kinds => format!("has not answered {}", kinds.join(", ")),
        };
        self.lagging.push(json!({ "node": proxy.node, "reason": reason }));
    }

    fn into_error(self, revision: u64) -> ApiError {
        let line = |one: &Value| {
            let text = |name: &str| one.get(name).and_then(Value::as_str).unwrap_or_default();
            format!("{} {}", text("node"), text("reason"))
        };
        let lines: Vec<String> = self.refused.iter().chain(&self.lagging).map(line).collect();
        let message = format!("revision {revision} does not run everywhere: {}", lines.join("; "));
        let error = if self.refused.is_empty() { ApiError::timed_out(message) } else { ApiError::conflict(message) };
        error.with(json!({
            "revision": revision,
            "running": self.running,
            "lagging": self.lagging,
            "refused": self.refused,
        }))
    }
}
