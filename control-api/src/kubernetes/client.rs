//! Purpose: the way to the cluster's API server: from inside a pod, or by a kubeconfig.
//! Shape: inside a pod (`KUBERNETES_SERVICE_HOST` is set) the service account's files; else `KUBECONFIG`, else
//! `~/.kube/config`. A token file that is renewed is read again by the client.
//! Errors: [`ClientError`] says what was tried and what to do.

use std::path::Path;
use std::time::Duration;

use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// Where a pod finds its service account.
pub(super) const ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The pod's own files do not serve.
    #[error(
        "in a pod (KUBERNETES_SERVICE_HOST is set), but its service account does not serve: {0}; \
         leave automountServiceAccountToken on, and mount {ACCOUNT_FOLDER}"
    )]
    InCluster(String),
    /// The kubeconfig does not serve.
    #[error(
        "cannot use the kubeconfig {file}: {reason}; set KUBECONFIG to a file that kubectl can use, or run in a pod"
    )]
    Kubeconfig {
        /// Which file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The client cannot be made of them.
    #[error("cannot make a client for the API server at {server}: {reason}")]
    Unusable {
        /// Which server.
        server: String,
        /// Why.
        reason: String,
    },
    /// Nobody says in which namespace we are.
    #[error(
        "cannot tell the control plane's own namespace ({ACCOUNT_FOLDER}/namespace: {0}); say it with --kube-namespace NAME"
    )]
    NoNamespace(std::io::Error),
}

/// A client, and the server it speaks to.
pub async fn connect(variable: impl Fn(&str) -> Option<String>) -> Result<kube::Client, ClientError> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut config = if set("KUBECONFIG").is_none() && set("KUBERNETES_SERVICE_HOST").is_some() {
        Config::incluster().map_err(|error| ClientError::InCluster(chain(&error)))?
    } else {
        let file = set("KUBECONFIG")
            .or_else(|| set("HOME").map(|home| format!("{home}/.kube/config")))
            .unwrap_or_else(|| "~/.kube/config".to_owned());
        let refused = |reason: String| ClientError::Kubeconfig { file: file.clone(), reason };
        let read = Kubeconfig::read_from(Path::new(&file)).map_err(|error| refused(chain(&error)))?;
        Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
            .await
            .map_err(|error| refused(chain(&error)))?
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // A watch is silent between bookmarks; what reads it has a limit of its own.
    config.read_timeout = None;
    config.write_timeout = Some(WRITE_TIMEOUT);
    // Who calls knows whether to try again, and how long to wait.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    kube::Client::try_from(config).map_err(|error| ClientError::Unusable { server, reason: chain(&error) })
}

/// The control plane's own namespace: as told, else the service account's.
pub fn find_namespace(told: Option<&str>) -> Result<String, ClientError> {
    match told {
        Some(name) => Ok(name.to_owned()),
        None => std::fs::read_to_string(Path::new(ACCOUNT_FOLDER).join("namespace"))
            .map(|text| text.trim().to_owned())
            .map_err(ClientError::NoNamespace),
    }
}

/// An error with all its causes, for causes are what tells a refused connection from a refused certificate.
#[must_use]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}
