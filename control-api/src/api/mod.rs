//! Purpose: the policy over HTTP.
//! Shape: [`Api`] is what every request sees; [`build_router`] is the table of paths; one file per
//! group of paths; `guard` stands before all of them.
//! Errors: [`ApiError`] → `{"error": {"status", "code", "message", "details": [...]}}`.
//! Limits: bodies 4 MiB; a wait at most 10 minutes.
//! Cancel: a caller that leaves ends its watch or wait; a commit that has begun ends regardless.
//! Tests: `tests/api.rs` (real sockets).

mod apply;
mod error;
mod guard;
mod metrics;
mod objects;
mod proxies;
mod status;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::sync::watch::Receiver;

pub use error::ApiError;
pub use guard::Guard;
pub use metrics::Requests;
pub use proxies::{Wait, WaitAnswer};

use crate::ads::{Roster, Snapshots};
use crate::kubernetes::Cluster;
use crate::model::Kind;
use crate::store::{Changes, Outcome, Store, StoreError};
use crate::webhook::Figures;

/// How long an answer waits for what it stored to be compiled.
const COMPILE_TIME: Duration = Duration::from_secs(5);

/// Largest accepted body.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// What every request sees.
#[derive(Debug)]
pub struct Api {
    /// The policy.
    pub store: Arc<dyn Store>,
    /// The cluster that policy or Services come from.
    pub cluster: Option<Arc<Cluster>>,
    /// The compiled policy.
    pub snapshots: Snapshots,
    /// Who is connected.
    pub roster: Arc<Roster>,
    /// Who may ask.
    pub guard: Guard,
    /// Turns true when the process stops.
    pub stop: Receiver<bool>,
    /// Counts of answers.
    pub requests: Requests,
    /// Counts of the webhook, where there is one.
    pub webhook: Option<Arc<Figures>>,
}

impl Api {
    /// Commits on a blocking thread. When it returns, a proxy that connects gets the new policy.
    async fn commit(self: &Arc<Self>, changes: Changes) -> Result<Outcome, ApiError> {
        let store = self.store.clone();
        let committed = tokio::task::spawn_blocking(move || store.commit(&changes)).await;
        let outcome = match committed {
            Ok(result) => result.map_err(ApiError::from)?,
            Err(stopped) => return Err(StoreError::Failed(stopped.to_string()).into()),
        };
        let mut snapshots = self.snapshots.clone();
        let compiled = snapshots.wait_for(|snapshot| snapshot.revision() >= outcome.revision);
        if tokio::time::timeout(COMPILE_TIME, compiled).await.is_err() {
            tracing::warn!(revision = outcome.revision, "compiling takes long; the answer does not wait for it");
        }
        Ok(outcome)
    }
}

/// The table of paths.
pub fn build_router(api: Arc<Api>) -> Router {
    let object = get(objects::read).put(objects::put).delete(objects::delete);
    Router::new()
        .route("/v1/apply", post(apply::apply))
        .route("/v1/delete", post(apply::delete_all))
        .route("/v1/watch", get(watch::watch))
        .route("/v1/proxies", get(proxies::list))
        .route("/v1/status", get(status::status))
        .route("/v1/wait", post(proxies::wait))
        .route("/v1/{kind}", get(objects::list_all))
        .route("/v1/{kind}/{namespace}", get(objects::list_namespace))
        .route("/v1/{kind}/{namespace}/{name}", object)
        .route("/metrics", get(metrics::render))
        .route("/openapi.json", get(openapi))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(api.clone(), guard::admit))
        .with_state(api)
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json"))
}

async fn unknown_path(uri: Uri) -> ApiError {
    let kinds = Kind::ALL.map(Kind::as_str).join(", ");
    ApiError::not_found(format!("no such path {}: see /openapi.json; kinds are {kinds}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(format!("{method} is not possible on {}: see /openapi.json", uri.path()))
}
