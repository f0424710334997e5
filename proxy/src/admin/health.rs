//! **Purpose.** The health port: readiness, metrics and the way out, for the kubelet and for scrapers.
//!
//! **Shape.** It tells from the same sources as the admin port, and nothing of it can be changed but that this proxy leaves:
//! `/prestop` begins that and answers once nobody sends here any more.
//!
//! **Limits.** As on the admin port: 256 connections, each cut after a long silence; `/prestop` is waited for by the kubelet, and
//! its answer comes within the time that leaving may take. Who may connect may ask this proxy to leave: the port is for the
//! machine and the scraper, and a network policy keeps others away.
//!
//! **Source.** Kubernetes, container lifecycle hooks and probes. Paths are `pilot-agent`'s and Envoy's where they have one.
//!
//! **Tests.** `tests/tests/scenario/health.rs` and `leave.rs`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;

use super::accept::Bounded;
use super::{AdminSources, metrics, probe, render};

/// Begins to leave; ready with one line when nothing comes here any more.
pub type Leave = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// What the health port tells from.
#[derive(Clone)]
pub struct HealthSources {
    /// Readiness and metrics.
    pub sources: Arc<AdminSources>,
    /// The way out.
    pub leave: Leave,
}

impl fmt::Debug for HealthSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthSources").field("sources", &self.sources).finish_non_exhaustive()
    }
}

const PATHS: [&str; 5] = ["/live", "/metrics", "/prestop", "/ready", "/stats/prometheus"];

/// Serves the health port until `shutdown` resolves.
pub async fn serve_health(
    listener: tokio::net::TcpListener,
    health: HealthSources,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/live", get(probe::live))
        .route("/metrics", get(exposition))
        .route("/prestop", get(prestop))
        .route("/ready", get(ready))
        .route("/stats/prometheus", get(exposition))
        .fallback(unknown_path)
        .with_state(health);
    axum::serve(Bounded::new(listener), router).with_graceful_shutdown(shutdown).await
}

async fn ready(State(health): State<HealthSources>) -> Response {
    let readiness = (health.sources.ready)();
    let conditions = readiness.conditions.iter().map(|condition| {
        json!({ "name": condition.name, "met": condition.reasons.is_empty(), "reasons": condition.reasons })
    });
    let is_ready = readiness.is_ready();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    render::json(status, &json!({ "ready": is_ready, "conditions": conditions.collect::<Vec<_>>() }))
}

async fn exposition(State(health): State<HealthSources>) -> Response {
    metrics::exposition(&metrics::take(&health.sources))
}

async fn prestop(State(health): State<HealthSources>) -> Response {
    let left = (health.leave)().await;
    render::json(StatusCode::OK, &json!({ "message": left }))
}

async fn unknown_path(uri: axum::http::Uri) -> Response {
    let told = json!({ "error": format!("no path {}", uri.path()), "paths": PATHS });
    render::json(StatusCode::NOT_FOUND, &told)
}
