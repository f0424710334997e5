//! Purpose: certificates that somebody else makes and a volume shows: cert-manager's `tls.crt`, `tls.key`, `ca.crt`.
//! Shape: the files are read again every two seconds; a volume's update is a swapped link, which no watch of a file sees.
//! Errors: a set that cannot be used is logged once and the last good one serves on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::figures::Figures;
use super::keeper::{Configuration, Shown};

const PERIOD: Duration = Duration::from_secs(2);
/// How often the configuration is looked at when nothing changed.
const ROUNDS: u32 = 30;

/// A folder that is watched.
#[derive(Debug)]
pub(super) struct Folder {
    /// Which.
    pub(super) path: PathBuf,
    /// Whose caBundle is kept, from `ca.crt`.
    pub(super) configuration: Option<Configuration>,
    /// What handshakes show.
    pub(super) show: watch::Sender<Shown>,
    /// What is counted.
    pub(super) figures: Arc<Figures>,
    /// The library's primitives.
    pub(super) provider: Arc<CryptoProvider>,
}

#[derive(Debug, PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Option<String>,
}

impl Folder {
    /// Reads the folder once; for the start, when a mistake should be told at once.
    pub(super) fn try_show(&self) -> Result<(), String> {
        let files = read(&self.path)?;
        self.show_files(&files)
    }

    /// Runs for ever.
    pub(super) async fn run(self) {
        let mut shown = None;
        let mut is_told = true;
        let mut round = 0;
        loop {
            let path = self.path.clone();
            let files = tokio::task::spawn_blocking(move || read(&path)).await;
            let is_changed = !matches!(&files, Ok(Ok(files)) if shown.as_ref() == Some(files));
            match files.unwrap_or_else(|stopped| Err(stopped.to_string())) {
                Ok(files) if is_changed => {
                    let used = self.show_files(&files);
                    self.tell(used, &mut is_told);
                    shown = Some(files);
                }
                Ok(_) => {}
                Err(reason) => self.tell(Err(reason), &mut is_told),
            }
            if is_changed || round % ROUNDS == 0 {
                let authority = shown.as_ref().and_then(|files| files.authority.as_deref());
                if let (Some(configuration), Some(bundle)) = (&self.configuration, authority)
                    && let Err(error) = configuration.keep(bundle).await
                {
                    self.figures.failed();
                    tracing::error!(reason = %error, "the webhook's caBundle is not kept");
                }
            }
            round += 1;
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// The same trouble is told once.
    fn tell(&self, used: Result<(), String>, is_told: &mut bool) {
        match used {
            Ok(()) => *is_told = false,
            Err(reason) if !*is_told => {
                *is_told = true;
                self.figures.failed();
                tracing::error!(%reason, "the webhook's certificate could not be read again; the last good one is used");
            }
            Err(_) => {}
        }
    }

    fn show_files(&self, files: &Files) -> Result<(), String> {
        let named = |name: &str, error: &dyn std::fmt::Display| format!("{}: {error}", self.path.join(name).display());
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(&files.certificate).collect();
        let chain = chain.map_err(|error| named("tls.crt", &error))?;
        if chain.is_empty() {
            return Err(named("tls.crt", &"it holds no certificate in PEM form"));
        }
        let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|error| named("tls.key", &error))?;
        let key = self.provider.key_provider.load_private_key(key).map_err(|error| named("tls.key", &error))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(named("tls.key", &"it is not the key of the certificate in tls.crt")),
        }
        self.show.send_replace(Some(Arc::new(certified)));
        self.figures.rotated(0);
        tracing::info!(folder = %self.path.display(), "the webhook's certificate was read");
        Ok(())
    }
}

fn read(folder: &Path) -> Result<Files, String> {
    let one = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let authority = one("ca.crt").ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(Files { certificate: one("tls.crt")?, key: one("tls.key")?, authority })
}
