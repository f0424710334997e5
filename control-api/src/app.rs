//! Purpose: the one place where the parts are put together, and the order in which they end.
//! Shape: four tasks, all owned here: the compiler, the xDS server, the API, the signal watch.
//!
//! ```text
//! store ─▶ compiler ─▶ snapshots ─▶ ads      stop ─▶ everybody; the API gets 5 s to finish
//!   ▲────────────────── api
//! ```
//! Errors: [`StartError`] before the ready line (exit 2), [`RunError`] after it (exit 1).
//! Limits: one runtime thread; disk and compiling run on blocking threads.

use std::future::Future;
use std::io::IsTerminal as _;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ads::{AdsService, Roster};
use crate::api::{Api, Guard, build_router};
use crate::compile::Snapshot;
use crate::kubernetes::{ClientError, Cluster, ClusterError, Reads, connect, find_namespace};
use crate::model::PolicySet;
use crate::settings::{LogFormat, Settings, SettingsError, StoreChoice};
use crate::store::{FileStore, Registered, Store, StoreError, unite};
use crate::webhook::{Webhook, WebhookError};

const STOP_TIME: Duration = Duration::from_secs(5);

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings were refused.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The store could not be opened.
    #[error("{}; {}", .0, store_remedy(.0))]
    Store(#[from] StoreError),
    /// The cluster could not be read.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// There is no way to the cluster that the webhook needs.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The webhook could not be set up.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// An address could not be listened on.
    #[error("cannot listen on {address} for {what}: {reason}; {remedy}")]
    Bind {
        /// Which flag.
        what: &'static str,
        /// Which address.
        address: SocketAddr,
        /// Why.
        reason: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The xDS server failed.
    #[error("the xDS server failed: {0}")]
    Xds(#[from] tonic::transport::Error),
    /// Input or output failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl StartError {
    /// Whether what it was told is wrong; else what it needs is not there now, and a later start may go well.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Cluster(ClusterError::Incomplete(_)))
    }
}

fn store_remedy(error: &StoreError) -> &'static str {
    match error {
        StoreError::Locked(_) => "stop that one first, or choose another file with --store PATH",
        StoreError::Full(_) => "free some space, or choose another disk with --store PATH",
        _ => "check the file and its folder, or choose another with --store PATH",
    }
}

/// A control plane that listens but does not serve yet.
#[derive(Debug)]
pub struct App {
    api_listener: TcpListener,
    xds_listener: TcpListener,
    api: Arc<Api>,
    publish: watch::Sender<Arc<Snapshot>>,
    sources: Sources,
    webhook: Option<Webhook>,
    stop: watch::Sender<bool>,
}

impl App {
    /// Opens the store and the ports.
    pub async fn start(settings: &Settings) -> Result<Self, StartError> {
        let cluster = open_cluster(settings).await?.map(Arc::new);
        let registered = cluster.as_ref().map(|cluster| cluster.registered());
        let store: Arc<dyn Store> = match (&settings.store, &cluster) {
            (StoreChoice::Kubernetes, Some(cluster)) => cluster.store(),
            (StoreChoice::Kubernetes, None) => return Err(ClusterError::Incomplete(Vec::new()).into()),
            (StoreChoice::File(path), _) => Arc::new(FileStore::open(path)?.beside(registered.clone())),
        };
        let api_listener = bind("--api", settings.api).await?;
        let xds_listener = bind("--xds", settings.xds).await?;
        if !settings.xds.ip().is_loopback() {
            tracing::warn!(xds = %settings.xds, "xDS is plaintext and open beyond loopback");
        }
        let webhook = start_webhook(settings).await?;
        let bound = api_listener.local_addr().unwrap_or(settings.api);
        let (stop, stopping) = watch::channel(false);
        // What changes from here on is compiled when it runs.
        let told = cluster.as_ref().and_then(|cluster| cluster.namespace()).or(settings.kube_namespace.as_deref());
        let mesh_namespace = told.unwrap_or("default").into();
        let mut sources = Sources { stored: store.subscribe(), registered, mesh_namespace };
        let first = Snapshot::compile(sources.united());
        let (publish, snapshots) = watch::channel(Arc::new(first));
        let roster = Arc::new(Roster::default());
        if let Some(cluster) = &cluster {
            cluster.spawn_report(roster.clone());
        }
        let api = Arc::new(Api {
            store,
            cluster,
            snapshots,
            roster,
            guard: Guard::new(bound, settings.token.clone()),
            stop: stopping,
            requests: crate::api::Requests::default(),
            webhook: webhook.as_ref().map(Webhook::figures),
        });
        Ok(Self { api_listener, xds_listener, api, publish, sources, webhook, stop })
    }

    /// Where the API and the xDS server listen.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.api_listener.local_addr()?, self.xds_listener.local_addr()?))
    }

    /// Prints the ready line and serves until `signal`.
    pub async fn run(self, signal: impl Future<Output = ()>) -> Result<(), RunError> {
        let (api, xds) = self.addresses()?;
        let webhook = self.webhook.as_ref().map(Webhook::address).transpose()?;
        {
            let third = webhook.map(|address| format!(" webhook={address}")).unwrap_or_default();
            // Whoever starts it without an output does not want the line.
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "outrigger-control ready api={api} xds={xds}{third}").and_then(|()| out.flush());
        }
        tracing::info!(%api, %xds, revision = self.api.store.current().revision, "ready");
        let ads = AdsService::new(self.api.snapshots.clone(), self.api.roster.clone(), self.stop.subscribe());
        let mut stopping = self.stop.subscribe();
        let rest = axum::serve(self.api_listener, build_router(self.api.clone())).with_graceful_shutdown(async move {
            let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
        });
        let (webhook, webhook_stop) = (self.webhook, self.stop.subscribe());
        let webhook = async move {
            if let Some(webhook) = webhook {
                webhook.run(webhook_stop).await;
            }
        };
        let stop = self.stop;
        let deadline = async {
            signal.await;
            tracing::info!("stopping");
            stop.send_replace(true);
            tokio::time::sleep(STOP_TIME).await;
            tracing::warn!("some callers did not finish in time and were cut off");
        };
        let serve = async {
            let (ads, rest, ()) = tokio::join!(ads.serve(self.xds_listener), rest, webhook);
            ads?;
            rest?;
            Ok(())
        };
        let cluster = self.api.cluster.clone();
        let served = tokio::select! {
            served = serve => served,
            () = deadline => Ok(()),
            () = compile_changes(self.sources, self.publish) => Ok(()),
        };
        if let Some(cluster) = cluster {
            cluster.stop().await;
        }
        served
    }
}

/// What is read from a cluster, if anything is.
async fn open_cluster(settings: &Settings) -> Result<Option<Cluster>, ClusterError> {
    let reads = match (&settings.store, settings.has_registry) {
        (StoreChoice::Kubernetes, _) => Reads::Policy,
        (StoreChoice::File(_), true) => Reads::Services,
        (StoreChoice::File(_), false) => return Ok(None),
    };
    let variable = |name: &str| std::env::var(name).ok();
    Cluster::start(reads, settings.kube_namespace.as_deref(), variable).await.map(Some)
}

/// What policy is made of.
#[derive(Debug)]
struct Sources {
    stored: watch::Receiver<Arc<PolicySet>>,
    registered: Option<Registered>,
    /// The namespace whose MeshConfig speaks for all.
    mesh_namespace: Arc<str>,
}

impl Sources {
    /// Stored policy, and what a registry has beside it.
    fn united(&mut self) -> Arc<PolicySet> {
        let stored = self.stored.borrow_and_update().clone();
        let united = match &mut self.registered {
            Some(registered) => unite(&stored, &registered.borrow_and_update()),
            None => PolicySet::clone(&stored),
        };
        Arc::new(PolicySet { mesh_namespace: Some(self.mesh_namespace.clone()), ..united })
    }
}

/// Compiles every new set; while one is compiled, later ones become one.
async fn compile_changes(mut sources: Sources, publish: watch::Sender<Arc<Snapshot>>) {
    let mut compiled_from = publish.borrow().policy().clone();
    loop {
        let registry_changes = async {
            match &mut sources.registered {
                Some(registered) => registered.changed().await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = sources.stored.changed() => changed,
            changed = registry_changes => changed,
        };
        if changed.is_err() {
            return;
        }
        let set = sources.united();
        if set.says_the_same(&compiled_from) {
            continue;
        }
        compiled_from = set.clone();
        let compiled = tokio::task::spawn_blocking(move || Snapshot::compile(set)).await;
        match compiled {
            Ok(snapshot) => {
                tracing::debug!(revision = snapshot.revision(), "compiled");
                publish.send_replace(Arc::new(snapshot));
            }
            Err(stopped) => tracing::error!(reason = %stopped, "a revision was not compiled"),
        }
    }
}

async fn start_webhook(settings: &Settings) -> Result<Option<Webhook>, StartError> {
    let Some((webhook, injector)) = &settings.webhook else { return Ok(None) };
    let cluster = match webhook.needs_cluster() {
        true => {
            let client = connect(|name| std::env::var(name).ok()).await?;
            Some((client, find_namespace(settings.kube_namespace.as_deref())?))
        }
        false => None,
    };
    Ok(Some(Webhook::start(webhook, injector.clone(), cluster).await?))
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|reason| {
        let remedy = match reason.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process listens there: stop it, or choose another port (0 picks a free one)"
            }
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            std::io::ErrorKind::PermissionDenied => "choose a port above 1023",
            _ => "choose another address",
        };
        StartError::Bind { what, address, reason, remedy }
    })
}

/// Sends log lines to stderr in the chosen form.
pub fn start_logging(settings: &Settings) {
    // Its client tells each failed try as an error; we tell a run of them once. A filter that names it has the last word.
    let filter = format!("kube_client=off,{}", settings.log_level);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ = match settings.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.try_init(),
    };
}

/// Waits for SIGTERM or SIGINT.
pub async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be watched; stop it with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
