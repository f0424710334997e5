//! Purpose: the admission webhook: pods in, pods with a sidecar out, over TLS that looks after itself.
//! Shape: `review` answers, `server` listens, `keeper` makes and shares certificates (or `folder` reads another's);
//! [`Webhook`] owns them.
//! Errors: [`WebhookError`] before it listens; afterwards everything is logged, counted and tried again.
//! Limits: see `server`. Nothing is written for a review, so a dry run is like any other.
//! Cancel: the certificate's loop ends with the server.
//! Tests: `tests/webhook` (real TLS, certificates that live for seconds), `tests/inject` (recorded reviews).

mod args;
pub mod authority;
pub mod figures;
mod folder;
mod keeper;
pub mod review;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use args::WebhookArgs;
pub use authority::Lives;
pub use figures::{Figures, Verdict};
pub use server::REVIEW_BYTES_MAX;

use crate::inject::InjectorConfig;
use folder::Folder;
use keeper::{Configuration, Keeper, SharedSecret, Shown};
use server::{Current, Site, serve};

/// Where the webhook listens and what it shows.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// The address.
    pub address: SocketAddr,
    /// The Service that API servers call.
    pub service: String,
    /// The MutatingWebhookConfiguration whose caBundle is kept.
    pub configuration: Option<String>,
    /// The Secret in which replicas share their authority.
    pub secret: Option<String>,
    /// Somebody else's certificates.
    pub folder: Option<PathBuf>,
    /// How long our own certificates live.
    pub lives: Lives,
}

impl WebhookSettings {
    /// Whether the cluster's API is needed.
    #[must_use]
    pub fn needs_cluster(&self) -> bool {
        self.configuration.is_some() || (self.secret.is_some() && self.folder.is_none())
    }
}

/// Why the webhook did not start.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The address could not be listened on.
    #[error("cannot listen on {address} for --webhook: {reason}; stop what listens there, or choose another address")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// Why.
        reason: std::io::Error,
    },
    /// The folder's certificates cannot be used.
    #[error(
        "--webhook-cert-dir: {0}; it must hold tls.crt and tls.key in PEM form, and ca.crt if --webhook-config is given"
    )]
    Folder(String),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A webhook that listens but does not serve yet.
#[derive(Debug)]
pub struct Webhook {
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    site: Arc<Site>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Folder(Box<Folder>),
    Own(Box<Keeper>),
}

impl Webhook {
    /// Opens the port. `cluster` is the API server and our own namespace, where the settings need them.
    pub async fn start(
        settings: &WebhookSettings,
        config: InjectorConfig,
        cluster: Option<(kube::Client, String)>,
    ) -> Result<Self, WebhookError> {
        let figures = Arc::<Figures>::default();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (show, shown) = watch::channel(Shown::None);
        let namespace = cluster.as_ref().map_or("default", |(_, namespace)| namespace.as_str());
        let service = (settings.service.clone(), namespace.to_owned());
        let names = names_of(&service);
        let configuration = settings.configuration.as_ref().zip(cluster.as_ref()).map(|(name, (client, _))| {
            let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
            Configuration { api, name: name.clone(), service }
        });
        let secret = settings.secret.as_ref().zip(cluster.as_ref()).map(|(name, (client, namespace))| {
            let api = Api::<Secret>::namespaced(client.clone(), namespace);
            SharedSecret { api, name: name.clone() }
        });
        let (lives, shared) = (settings.lives, figures.clone());
        let source = match &settings.folder {
            Some(path) => {
                let path = path.clone();
                let folder = Folder { path, configuration, show, figures: shared, provider: provider.clone() };
                folder.try_show().map_err(WebhookError::Folder)?;
                Source::Folder(Box::new(folder))
            }
            None => Source::Own(Box::new(Keeper {
                secret,
                configuration,
                names,
                lives,
                show,
                figures: shared,
                provider: provider.clone(),
            })),
        };
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Current(shown)));
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let address = settings.address;
        let listener = TcpListener::bind(address).await.map_err(|reason| WebhookError::Bind { address, reason })?;
        Ok(Self { listener, tls: Arc::new(tls), site: Arc::new(Site::new(config, figures)), source })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What it counts.
    #[must_use]
    pub fn figures(&self) -> Arc<Figures> {
        self.site.figures.clone()
    }

    /// Serves until `stop`.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let source = self.source;
        let keep = async {
            match source {
                Source::Folder(folder) => folder.run().await,
                Source::Own(keeper) => keeper.run().await,
            }
        };
        // The loops never end; the server ends both.
        tokio::select! {
            () = serve(self.listener, TlsAcceptor::from(self.tls), self.site, stop) => {}
            () = keep => {}
        }
    }
}

/// The names by which API servers call a Service, and those people use.
fn names_of((service, namespace): &(String, String)) -> Vec<String> {
    let short = format!("{service}.{namespace}");
    vec![format!("{short}.svc"), format!("{short}.svc.cluster.local"), short, service.clone(), "localhost".to_owned()]
}
