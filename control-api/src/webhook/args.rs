//! Purpose: the webhook's flags, and its part of `control.yaml`.
//! Shape: [`WebhookArgs`] as typed; [`WebhookArgs::resolve`] makes the settings, if there is a webhook at all.
//! Errors: a flag without the one it needs is refused with both names.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Lives, WebhookSettings};
use crate::model::cursor::Cursor;

const SERVICE: &str = "outrigger-control";

/// The webhook's flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct WebhookArgs {
    /// Where the injector's webhook listens (HTTPS), such as 0.0.0.0:15017 [default: there is none].
    #[arg(id = "webhook", long = "webhook", value_name = "ADDR")]
    pub address: Option<SocketAddr>,
    /// The Service by which API servers call it; its certificate has its name [default: outrigger-control].
    #[arg(id = "webhook_service", long = "webhook-service", value_name = "NAME")]
    pub service: Option<String>,
    /// The MutatingWebhookConfiguration whose caBundle is kept right.
    #[arg(id = "webhook_config", long = "webhook-config", value_name = "NAME")]
    pub configuration: Option<String>,
    /// The Secret in which replicas share the webhook's certificate authority [default: each has its own, in memory].
    #[arg(id = "webhook_secret", long = "webhook-secret", value_name = "NAME", conflicts_with = "webhook_cert_dir")]
    pub secret: Option<String>,
    /// Certificates that somebody else makes (cert-manager): tls.crt, tls.key, ca.crt, read again when they change.
    #[arg(id = "webhook_cert_dir", long = "webhook-cert-dir", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// What the injector puts into pods that say nothing of their own (YAML) [default: the table's defaults].
    #[arg(id = "injector_config", long = "injector-config", value_name = "FILE")]
    pub injector: Option<PathBuf>,
}

impl WebhookArgs {
    /// Reads `webhook` and `injector` of the settings file.
    #[must_use]
    pub fn walk(webhook: Option<Cursor<'_>>, injector: Option<Cursor<'_>>) -> Self {
        let text = |at: Cursor<'_>| at.string().map(str::to_owned);
        let mut args = Self { injector: injector.and_then(text).map(PathBuf::from), ..Self::default() };
        let keys = ["address", "service", "configuration", "secret", "certificateFolder"];
        let Some(fields) = webhook.and_then(|at| at.fields(&keys)) else { return args };
        args.address = fields.optional("address").and_then(|at| {
            let address = at.string()?.parse().ok();
            if address.is_none() {
                at.refuse_with("must be an IP address and a port", "write it like \"0.0.0.0:15017\"");
            }
            address
        });
        args.service = fields.optional("service").and_then(text);
        args.configuration = fields.optional("configuration").and_then(text);
        args.secret = fields.optional("secret").and_then(text);
        args.folder = fields.optional("certificateFolder").and_then(text).map(PathBuf::from);
        args
    }

    /// Flags before the file.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        // One of the two places of certificates: a flag for one is none for the other.
        let is_said = self.secret.is_some() || self.folder.is_some();
        let (secret, folder) = if is_said { (self.secret, self.folder) } else { (file.secret, file.folder) };
        Self {
            address: self.address.or(file.address),
            service: self.service.or(file.service),
            configuration: self.configuration.or(file.configuration),
            secret,
            folder,
            injector: self.injector.or(file.injector),
        }
    }

    /// The settings of the webhook, if it is wanted.
    pub fn resolve(&self) -> Result<Option<WebhookSettings>, String> {
        let Some(address) = self.address else {
            let given = [
                ("--webhook-service", self.service.is_some()),
                ("--webhook-config", self.configuration.is_some()),
                ("--webhook-secret", self.secret.is_some()),
                ("--webhook-cert-dir", self.folder.is_some()),
            ];
            return match given.iter().find(|(_, is_given)| *is_given) {
                Some((flag, _)) => {
                    Err(format!("{flag} says how the webhook is served, but not where; add --webhook ADDR"))
                }
                None => Ok(None),
            };
        };
        if self.secret.is_some() && self.folder.is_some() {
            return Err(
                "the webhook's certificates come from a Secret or from a folder; give one of the two".to_owned()
            );
        }
        Ok(Some(WebhookSettings {
            address,
            service: self.service.clone().unwrap_or_else(|| SERVICE.to_owned()),
            configuration: self.configuration.clone(),
            secret: self.secret.clone(),
            folder: self.folder.clone(),
            lives: Lives::default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_needs_an_address() {
        let lost = WebhookArgs { secret: Some("s".into()), ..WebhookArgs::default() };
        assert!(lost.resolve().expect_err("nowhere").contains("add --webhook ADDR"));
        assert!(WebhookArgs::default().resolve().expect("none is wanted").is_none());
        let address = Some(([127, 0, 0, 1], 0).into());
        let both = WebhookArgs { address, folder: Some("d".into()), ..lost.clone() };
        assert!(both.resolve().expect_err("two places").contains("one of the two"));
        let settings = WebhookArgs { address, ..lost }.resolve().expect("fine").expect("wanted");
        assert!(settings.service == SERVICE && settings.needs_cluster());
    }

    #[test]
    fn a_flag_for_one_place_of_certificates_unsays_the_other() {
        let file = WebhookArgs { secret: Some("s".into()), service: Some("c".into()), ..WebhookArgs::default() };
        let flags = WebhookArgs { folder: Some("d".into()), ..WebhookArgs::default() };
        let merged = flags.or(file);
        assert!(merged.secret.is_none() && merged.folder.is_some() && merged.service.as_deref() == Some("c"));
    }
}
