//! **Purpose.** The admin port: what this proxy runs and does, for people, scrapers and scripts.
//!
//! **Shape.** The application fills [`AdminSources`] and calls [`serve`] on the control thread; [`serve_health`] tells some of
//! it to whoever may reach another port. [`router`] maps paths to
//! small functions: `probe` (readiness and the POST controls), `dump` (configuration), `live` (routes, clusters and
//! listeners with their numbers), `metrics`, and `feed` (one sampler for all viewers of the page). `guard` stands before
//! all of them.
//!
//! **Errors.** 400 names the parameter and its values, 403 the header that was refused, 404 every path, 405 the method.
//!
//! **Limits.** 256 connections, 64 viewers of the page, 200 routes a frame. Nothing is read of a request body.
//!
//! **Cancel.** [`serve`] ends when its shutdown resolves: open event streams are ended first. Dropping it cuts all.
//!
//! **Source.** Envoy, "Administration interface", for paths and habits; it has no checks of Host and Origin, we do.
//!
//! **Tests.** `tests.rs`, over real sockets.

mod accept;
mod dump;
mod feed;
mod frame;
mod guard;
mod health;
mod live;
mod metrics;
mod page;
mod probe;
mod render;
mod sample;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use serde_json::json;

use crate::config::Publisher;
use crate::observe::{CaptureView, EpochLog, IoView, LimitLevel, WorkerIo, XdsStatus};
use crate::stats::Registry;
use feed::Feed;

pub use health::{HealthSources, Leave, serve_health};

/// What `/ready` answers: 200 when every condition is met, else 503 with what is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What it depends on.
    pub conditions: Vec<Condition>,
}

/// One thing that readiness depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `config`, `listeners`, `capture`, `draining` or `healthcheck`.
    pub name: &'static str,
    /// Why it is not met, one line each; none: it is met.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Every condition is met.
    pub fn is_ready(&self) -> bool {
        self.conditions.iter().all(|condition| condition.reasons.is_empty())
    }

    /// All that is missing, one line each.
    pub fn reasons(&self) -> Vec<String> {
        self.conditions.iter().flat_map(|condition| condition.reasons.clone()).collect()
    }
}

/// What the admin port can change.
pub trait AdminControl: Send + Sync {
    /// Stops taking new work; what runs may finish.
    fn drain(&self);
    /// Ends the process in good order.
    fn quit(&self);
    /// Makes `/ready` answer 503 (`false`), or its own answer again (`true`).
    fn set_healthy(&self, healthy: bool);
    /// Sets the level of the log: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,xds=debug`.
    /// The error says what is wrong with it.
    fn set_log_level(&self, level: &str) -> Result<(), String>;
    /// The level in use.
    fn log_level(&self) -> String;
}

/// A way to ask for something anew with each answer.
pub type Ask<T> = Arc<dyn Fn() -> T + Send + Sync>;

/// Everything the admin port tells from.
pub struct AdminSources {
    /// Counters.
    pub registry: Arc<Registry>,
    /// Configuration in use.
    pub publisher: Publisher,
    /// What each published snapshot changed.
    pub epochs: Arc<EpochLog>,
    /// When the process began: the zero of `EndpointCell::ejected_until_ms`.
    pub started: Instant,
    /// I/O driver.
    pub io: IoView,
    /// Reactor counters of the workers.
    pub workers: Ask<Vec<WorkerIo>>,
    /// Readiness.
    pub ready: Ask<Readiness>,
    /// What heartbeats of the capture have shown; `None`: none are sent.
    pub capture: Ask<Option<CaptureView>>,
    /// xDS client.
    pub xds: Ask<XdsStatus>,
    /// Buckets of local rate limits.
    pub limits: Ask<Vec<LimitLevel>>,
    /// What can be changed.
    pub control: Arc<dyn AdminControl>,
    /// The node's name, for the page's title; may be empty.
    pub node: String,
}

impl fmt::Debug for AdminSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminSources").field("io", &self.io).field("node", &self.node).finish_non_exhaustive()
    }
}

/// What every request function is given.
#[derive(Clone, Debug)]
struct Admin {
    sources: Arc<AdminSources>,
    feed: Arc<Feed>,
}

impl std::ops::Deref for Admin {
    type Target = AdminSources;
    fn deref(&self) -> &AdminSources {
        &self.sources
    }
}

/// Every path: method, path, one line for the index.
const PATHS: [(&str, &str, &str); 23] = [
    ("GET", "/", "live page"),
    ("GET", "/clusters", "clusters and endpoints with their state; ?format=json|text"),
    ("GET", "/config_dump", "the configuration in use; ?format=json|text"),
    ("GET", "/epochs", "what the last published configurations changed; ?format=json|text"),
    ("GET", "/events", "server-sent events for the live page, one a second"),
    ("GET", "/help", "this list"),
    ("GET", "/io", "I/O driver and number of workers, why they were chosen, and counters by worker; ?format=json|text"),
    ("GET", "/limits", "fill of the local rate limits; ?format=json|text"),
    ("GET", "/listeners", "listeners with their numbers; ?format=json|text"),
    ("GET", "/live", "200 while the process answers"),
    ("GET", "/logging", "level of the log"),
    ("GET", "/page.css", "style of the live page"),
    ("GET", "/page.js", "script of the live page"),
    ("GET", "/ready", "200 when ready, else 503 with the reasons"),
    ("GET", "/routes", "routes with policies and numbers; ?format=json|text"),
    ("GET", "/stats", "all metrics; ?format=text|json|prometheus, ?filter=REGEX"),
    ("GET", "/stats/prometheus", "all metrics in the Prometheus text format"),
    ("POST", "/drain", "stop taking new work, finish what runs"),
    ("POST", "/healthcheck/fail", "make /ready answer 503"),
    ("POST", "/healthcheck/ok", "take /healthcheck/fail back"),
    ("POST", "/logging", "set the level of the log; ?level=error|warn|info|debug|trace"),
    ("POST", "/quitquitquit", "end the process in good order"),
    ("GET", "/xds", "state of the stream to the control plane; ?format=json|text"),
];

/// The paths of the admin port without [`serve`]'s sampler: `/events` sends its greeting and no frames.
/// `bound` is the address it is reached by: a `Host` that names it is let in.
pub fn router(sources: Arc<AdminSources>, bound: SocketAddr) -> Router {
    router_with(Admin { sources, feed: Arc::default() }, bound)
}

fn router_with(admin: Admin, bound: SocketAddr) -> Router {
    let routes: [(&str, MethodRouter<Admin>); 22] = [
        ("/", get(page::html)),
        ("/clusters", get(live::clusters)),
        ("/config_dump", get(dump::config)),
        ("/drain", post(probe::drain)),
        ("/epochs", get(dump::epochs)),
        ("/events", get(feed::events)),
        ("/healthcheck/fail", post(probe::fail)),
        ("/healthcheck/ok", post(probe::ok)),
        ("/help", get(help)),
        ("/io", get(dump::io)),
        ("/limits", get(dump::limits)),
        ("/listeners", get(live::listeners)),
        ("/live", get(probe::live)),
        ("/logging", get(probe::log_level).post(probe::set_log_level)),
        ("/page.css", get(page::css)),
        ("/page.js", get(page::js)),
        ("/quitquitquit", post(probe::quit)),
        ("/ready", get(probe::ready)),
        ("/routes", get(live::routes)),
        ("/stats", get(metrics::stats)),
        ("/stats/prometheus", get(metrics::prometheus)),
        ("/xds", get(dump::xds)),
    ];
    routes
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(path, methods))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(guard::Guard::new(bound), guard::stand))
        .with_state(admin)
}

/// Serves the admin port until `shutdown` resolves.
pub async fn serve(
    listener: tokio::net::TcpListener,
    sources: Arc<AdminSources>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let bound = listener.local_addr()?;
    let feed = Arc::<Feed>::default();
    let admin = Admin { sources: sources.clone(), feed: feed.clone() };
    let ending = feed.clone();
    let signal = async move {
        shutdown.await;
        // The server waits for its open answers, and an event stream would never end by itself.
        ending.close();
    };
    let serving = axum::serve(accept::Bounded::new(listener), router_with(admin, bound)).with_graceful_shutdown(signal);
    tokio::select! {
        served = serving.into_future() => served,
        never = feed::sample_while_watched(&feed, &sources) => match never {},
    }
}

async fn help() -> Response {
    render::json(StatusCode::OK, &index("paths of the admin port"))
}

async fn unknown_path(uri: axum::http::Uri) -> Response {
    render::json(StatusCode::NOT_FOUND, &index(&format!("no path {}; see paths", uri.path())))
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> Response {
    let allowed: Vec<_> = PATHS.iter().filter(|(_, path, _)| *path == uri.path()).map(|(method, ..)| *method).collect();
    let message = format!("{} does not take {method}; use {}", uri.path(), allowed.join(" or "));
    render::json(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": message }))
}

fn index(title: &str) -> serde_json::Value {
    let paths: Vec<_> =
        PATHS.iter().map(|(method, path, help)| json!({ "method": method, "path": path, "help": help })).collect();
    json!({ "message": title, "paths": paths })
}
