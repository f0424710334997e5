//! Purpose: keeps the webhook's certificate fresh and trusted: the shared authority, this replica's leaf, the caBundle.
//! Shape: one loop brings everything to where it should be, then sleeps until something is due, the Secret or the
//! configuration changed, or a minute passed.
//!
//! ```text
//! Secret ◀─ resourceVersion ─▶ Authorities ─▶ caBundle of the MutatingWebhookConfiguration
//!                                  └────────▶ Leaf ─▶ handshakes
//! ```
//! Errors: logged with what to do, counted, tried again with back-off; meanwhile what is in memory serves on.
//! Limits: replicas agree by the Secret's resourceVersion: who writes second reads what the first wrote.
//! Cancel: nothing is half done; the loop can be dropped at any await.
//! Tests: `tests/webhook` (an API server's Secret and configuration over HTTP).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::watcher::watch_object;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::authority::{Authorities, AuthorityError, Leaf, Lives, milliseconds};
use super::figures::Figures;

/// Keys of the Secret.
const AUTHORITIES: &str = "authorities.json";
const BUNDLE: &str = "ca.crt";
const ROUND: Duration = Duration::from_secs(60);
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Two changes at once are one round.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the certificate is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    /// The Secret could not be read or written.
    #[error("Secret {0}: {1}")]
    Secret(String, String),
    /// The Secret holds something else, or a certificate could not be made.
    #[error("Secret {0}: {1}")]
    Authority(String, AuthorityError),
    /// The configuration could not be read or written.
    #[error("MutatingWebhookConfiguration {0}: {1}")]
    Configuration(String, String),
    /// The key does not fit the library.
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// The certificate that handshakes show, as long as there is one.
pub(super) type Shown = Option<Arc<CertifiedKey>>;

/// A Secret that replicas share.
#[derive(Debug, Clone)]
pub(super) struct SharedSecret {
    /// Access to the Secrets of its namespace.
    pub(super) api: Api<Secret>,
    /// Its name.
    pub(super) name: String,
}

/// The configuration whose caBundle is kept.
#[derive(Debug, Clone)]
pub(super) struct Configuration {
    /// Access to configurations.
    pub(super) api: Api<MutatingWebhookConfiguration>,
    /// Its name.
    pub(super) name: String,
    /// The Service that its webhooks must name to be ours, and its namespace.
    pub(super) service: (String, String),
}

impl Configuration {
    /// Sets the bundle on those of its webhooks that call our service.
    pub(super) async fn keep(&self, bundle: &str) -> Result<bool, KeepError> {
        let failed = |error: kube::Error| KeepError::Configuration(self.name.clone(), cause(&error));
        let found = self.api.get_opt(&self.name).await.map_err(failed)?;
        let Some(found) = found else {
            let reason = "is not there; install the chart's, or leave out --webhook-config".to_owned();
            return Err(KeepError::Configuration(self.name.clone(), reason));
        };
        let mut wrong = Vec::new();
        for webhook in found.webhooks.iter().flatten() {
            let service = webhook.client_config.service.as_ref();
            let is_ours = service.is_some_and(|one| (&one.name, &one.namespace) == (&self.service.0, &self.service.1));
            let is_right = webhook.client_config.ca_bundle.as_ref().is_some_and(|old| old.0 == bundle.as_bytes());
            if is_ours && !is_right {
                let value = ByteString(bundle.as_bytes().to_vec());
                wrong.push(serde_json::json!({ "name": webhook.name, "clientConfig": { "caBundle": value } }));
            }
        }
        if wrong.is_empty() {
            return Ok(false);
        }
        // Webhooks are merged by name, so that one which another adds or moves meanwhile stays as it is.
        let patch = Patch::Strategic(serde_json::json!({ "webhooks": wrong }));
        self.api.patch(&self.name, &PatchParams::default(), &patch).await.map_err(failed)?;
        tracing::info!(configuration = %self.name, "the webhook's caBundle was brought up to date");
        Ok(true)
    }
}

/// An error with its causes, and what to do about the usual ones.
fn cause(error: &kube::Error) -> String {
    let text = crate::kubernetes::client::chain(error);
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{text}; grant get, list, watch and update (patch on the configuration) by name, as the chart does")
        }
        _ => text,
    }
}

/// Makes, shares and shows our own certificates.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Where authorities are shared; without one they live in memory.
    pub(super) secret: Option<SharedSecret>,
    /// Whose caBundle is kept.
    pub(super) configuration: Option<Configuration>,
    /// Names of the server certificate.
    pub(super) names: Vec<String>,
    /// How long things live.
    pub(super) lives: Lives,
    /// What handshakes show.
    pub(super) show: watch::Sender<Shown>,
    /// What is counted.
    pub(super) figures: Arc<Figures>,
    /// The library's primitives.
    pub(super) provider: Arc<CryptoProvider>,
}

/// How long it is until then.
fn time_to(then_ms: u64) -> Duration {
    Duration::from_millis(then_ms.saturating_sub(milliseconds(SystemTime::now())))
}

#[derive(Default)]
struct State {
    authorities: Authorities,
    /// When this replica's leaf is due, and who signed it.
    leaf: Option<(u64, String)>,
}

impl Keeper {
    /// Runs for ever.
    pub(super) async fn run(self) {
        let mut secrets = self.secret.as_ref().map(|one| changes(watch_object(one.api.clone(), &one.name)));
        let mut configurations =
            self.configuration.as_ref().map(|one| changes(watch_object(one.api.clone(), &one.name)));
        let mut state = State::default();
        let mut back_off = BACK_OFF.0;
        loop {
            let wait = match self.round(&mut state).await {
                Ok(next_ms) => {
                    back_off = BACK_OFF.0;
                    time_to(next_ms).clamp(PAUSE, ROUND)
                }
                Err(error) => {
                    self.figures.failed();
                    tracing::error!(reason = %error, again_in = ?back_off, "the webhook's certificate is not kept");
                    // A leaf that is due needs nobody's help.
                    let wait = state.leaf.as_ref().map_or(back_off, |(renew_ms, _)| back_off.min(time_to(*renew_ms)));
                    back_off = (back_off * 2).min(BACK_OFF.1);
                    wait.max(PAUSE)
                }
            };
            // Any order serves: each only ends the wait.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = next(&mut secrets) => tokio::time::sleep(PAUSE).await,
                () = next(&mut configurations) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Brings everything to where it should be; when it is due again. A failure of one thing does not keep the others.
    async fn round(&self, state: &mut State) -> Result<u64, KeepError> {
        // Before anybody is asked: an API server that does not answer must not hold up a leaf.
        self.keep_leaf(state)?;
        let shared = self.share(state).await;
        self.keep_leaf(state)?;
        shared?;
        if let Some(configuration) = &self.configuration {
            configuration.keep(&state.authorities.bundle()).await?;
        }
        let due_ms = state.authorities.next_ms(milliseconds(SystemTime::now()), &self.lives);
        Ok(state.leaf.as_ref().map_or(due_ms, |(renew_ms, _)| due_ms.min(*renew_ms)))
    }

    /// Makes and shows a leaf where there is none, it is due, or somebody else signs now.
    fn keep_leaf(&self, state: &mut State) -> Result<(), KeepError> {
        let now_ms = milliseconds(SystemTime::now());
        let Some(signer) = state.authorities.signer(now_ms, &self.lives) else { return Ok(()) };
        let is_fresh = |(renew_ms, by): &(u64, String)| *renew_ms > now_ms && by == signer.certificate();
        if state.leaf.as_ref().is_some_and(is_fresh) {
            return Ok(());
        }
        let named = |error| KeepError::Authority(self.place(), error);
        let leaf = signer.issue(&self.names, now_ms, &self.lives).map_err(named)?;
        state.leaf = Some((leaf.renew_ms, leaf.signer.clone()));
        self.show_leaf(leaf)
    }

    fn place(&self) -> String {
        self.secret.as_ref().map_or_else(|| "(in memory)".to_owned(), |secret| secret.name.clone())
    }

    /// Reads the shared authorities, adding one when it is time.
    async fn share(&self, state: &mut State) -> Result<(), KeepError> {
        let now_ms = milliseconds(SystemTime::now());
        let named = |error| KeepError::Authority(self.place(), error);
        let Some(secret) = &self.secret else {
            if let Some(renewed) = state.authorities.try_renew(now_ms, &self.lives).map_err(named)? {
                state.authorities = renewed;
            }
            return Ok(());
        };
        let failed = |error: kube::Error| KeepError::Secret(secret.name.clone(), cause(&error));
        let found = secret.api.get_opt(&secret.name).await.map_err(failed)?;
        let bytes = found.as_ref().and_then(|found| found.data.as_ref()?.get(AUTHORITIES));
        let read = bytes.map(|bytes| Authorities::parse(&bytes.0)).transpose().map_err(named)?.unwrap_or_default();
        let Some(renewed) = read.try_renew(now_ms, &self.lives).map_err(named)? else {
            state.authorities = read;
            return Ok(());
        };
        let is_new = found.is_none();
        let mut object = found.unwrap_or_default();
        object.metadata.name = Some(secret.name.clone());
        object.metadata.managed_fields = None;
        let entries = [(AUTHORITIES, renewed.to_json()), (BUNDLE, renewed.bundle())];
        let data = object.data.get_or_insert_with(BTreeMap::new);
        data.extend(entries.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))));
        let written = match is_new {
            true => secret.api.create(&PostParams::default(), &object).await,
            // With the resourceVersion that was read: of two replicas one wins.
            false => secret.api.replace(&secret.name, &PostParams::default(), &object).await,
        };
        match written {
            Ok(_) => tracing::info!(secret = %secret.name, "a certificate authority was made and shared"),
            // Another replica was first: its set is read in the next round, at once.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                return Err(KeepError::Secret(
                    secret.name.clone(),
                    "another replica wrote it first; reading it again".into(),
                ));
            }
            Err(error) => return Err(failed(error)),
        }
        state.authorities = renewed;
        Ok(())
    }

    fn show_leaf(&self, leaf: Leaf) -> Result<(), KeepError> {
        let key = self.provider.key_provider.load_private_key(leaf.key)?;
        self.show.send_replace(Some(Arc::new(CertifiedKey::new(leaf.chain, key))));
        self.figures.rotated(leaf.ends_ms / 1_000);
        tracing::info!(ends_in = ?Duration::from_millis(leaf.ends_ms.saturating_sub(milliseconds(SystemTime::now()))),
            "the webhook has a new certificate");
        Ok(())
    }
}

/// A watch as mere news; its errors end nothing, since a round looks anyway.
fn changes<T: Send + 'static>(
    watch: impl Stream<Item = Result<T, kube::runtime::watcher::Error>> + Send + 'static,
) -> futures_util::stream::BoxStream<'static, ()> {
    watch
        .filter_map(|news| async move {
            match news {
                Ok(_) => Some(()),
                Err(error) => {
                    tracing::debug!(reason = %error, "a watch of the webhook's objects was interrupted");
                    tokio::time::sleep(BACK_OFF.0).await;
                    None
                }
            }
        })
        .boxed()
}

async fn next(news: &mut Option<futures_util::stream::BoxStream<'static, ()>>) {
    if let Some(stream) = news
        && stream.next().await.is_some()
    {
        return;
    }
    std::future::pending().await
}
