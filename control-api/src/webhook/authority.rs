//! Purpose: the webhook's own certificate authority: made, shared, renewed, trusted before it is used.
//! Shape: [`Authorities`] is what the Secret holds, newest first. A new one is only trusted at first (its certificate is in
//! the bundle) and signs once it has settled; the one before signs until then and stays trusted until it ends. So a
//! certificate is never shown before those who look at it could know its issuer.
//!
//! ```text
//! made ── trusted, settling ──▶ signs ───── 2/3 of its life: the next is made ────▶ trusted only ──▶ ends
//! ```
//! Units: milliseconds since 1970.
//! Errors: [`AuthorityError`].
//! Limits: keys are ECDSA P-256; at most two authorities are alive at a time but for clocks that disagree.
//! Tests: foot of this file, with times of the test's choice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// Clocks of API servers may be behind ours by so much.
const SKEW: Duration = Duration::from_secs(3_600);

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// Of an authority.
    pub authority: Duration,
    /// Of a server certificate.
    pub leaf: Duration,
    /// Until a new authority signs.
    pub settle: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        let day = Duration::from_secs(86_400);
        Self { authority: day * 365, leaf: day, settle: Duration::from_secs(600) }
    }
}

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The Secret holds something else.
    #[error("it holds something else than our authorities ({0}); delete the Secret to have it made anew")]
    Foreign(String),
    /// A key or certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Making(#[from] rcgen::Error),
    /// A key or certificate could not be read.
    #[error("a certificate could not be read: {0}")]
    Reading(String),
}

/// One authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Authority {
    certificate: String,
    key: String,
    made_ms: u64,
    ends_ms: u64,
}

/// Those that are alive, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Authorities(Vec<Authority>);

/// A server certificate with its key.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate and those above it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When it must be replaced.
    pub renew_ms: u64,
    /// When it ends.
    pub ends_ms: u64,
    /// Which authority signed it, by its certificate.
    pub signer: String,
}

/// Milliseconds since 1970.
#[must_use]
pub fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn span_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn at(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

impl Authorities {
    /// Reads what [`Self::to_json`] wrote.
    pub fn parse(text: &[u8]) -> Result<Self, AuthorityError> {
        let read: Self = serde_json::from_slice(text).map_err(|error| AuthorityError::Foreign(error.to_string()))?;
        for authority in &read.0 {
            KeyPair::from_pem(&authority.key).map_err(|error| AuthorityError::Foreign(error.to_string()))?;
            authority.der()?;
        }
        Ok(read)
    }

    /// As the Secret holds them.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and numbers only: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The certificates of all, for those who trust.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.0.iter().map(|authority| authority.certificate.as_str()).collect()
    }

    /// The set that should be instead of this one, when it is time for another.
    pub fn try_renew(&self, now_ms: u64, lives: &Lives) -> Result<Option<Self>, AuthorityError> {
        let alive: Vec<Authority> = self.0.iter().filter(|one| one.ends_ms > now_ms).cloned().collect();
        if alive.first().is_some_and(|newest| newest.renew_ms() > now_ms) {
            return Ok((alive.len() < self.0.len()).then_some(Self(alive)));
        }
        let made = Authority::make(now_ms, lives)?;
        Ok(Some(Self(std::iter::once(made).chain(alive).collect())))
    }

    /// The one that signs now.
    #[must_use]
    pub fn signer(&self, now_ms: u64, lives: &Lives) -> Option<&Authority> {
        let alive = || self.0.iter().filter(|one| one.ends_ms > now_ms);
        let settled = |one: &&Authority| one.made_ms.saturating_add(span_ms(lives.settle)) <= now_ms;
        alive().find(settled).or_else(|| alive().next_back())
    }

    /// When something is to be done next.
    #[must_use]
    pub fn next_ms(&self, now_ms: u64, lives: &Lives) -> u64 {
        let times = self
            .0
            .iter()
            .flat_map(|one| [one.renew_ms(), one.ends_ms, one.made_ms.saturating_add(span_ms(lives.settle))]);
        times.filter(|time| *time > now_ms).min().unwrap_or(now_ms)
    }
}

impl Authority {
    fn make(now_ms: u64, lives: &Lives) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let ends_ms = now_ms.saturating_add(span_ms(lives.authority));
        let mut params = Self::params();
        params.not_before = (at(now_ms) - SKEW).into();
        params.not_after = at(ends_ms).into();
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem(), made_ms: now_ms, ends_ms })
    }

    /// The same name for all: which one signed is told by the key's identifier.
    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "outrigger webhook authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn renew_ms(&self) -> u64 {
        self.made_ms + self.ends_ms.saturating_sub(self.made_ms) / 3 * 2
    }

    fn der(&self) -> Result<CertificateDer<'static>, AuthorityError> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|error| AuthorityError::Reading(error.to_string()))
    }

    /// The authority's certificate, as PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Signs a certificate for a server of these names.
    pub fn issue(&self, names: &[String], now_ms: u64, lives: &Lives) -> Result<Leaf, AuthorityError> {
        let ends_ms = now_ms.saturating_add(span_ms(lives.leaf)).min(self.ends_ms);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "outrigger webhook");
        params.not_before = (at(now_ms) - SKEW).into();
        params.not_after = at(ends_ms).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(Self::params(), KeyPair::from_pem(&self.key)?);
        let certificate = params.signed_by(&key, &issuer)?;
        let private = PrivateKeyDer::try_from(key.serialize_der());
        Ok(Leaf {
            chain: vec![certificate.der().clone(), self.der()?],
            key: private.map_err(|error| AuthorityError::Reading(error.to_owned()))?,
            renew_ms: now_ms + ends_ms.saturating_sub(now_ms) / 3 * 2,
            ends_ms,
            signer: self.certificate.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVES: Lives =
        Lives { authority: Duration::from_secs(900), leaf: Duration::from_secs(60), settle: Duration::from_secs(10) };

    fn renewed(old: &Authorities, now_ms: u64) -> Authorities {
        old.try_renew(now_ms, &LIVES).expect("keys can be made").expect("it is time")
    }

    #[test]
    fn a_new_authority_is_trusted_before_it_signs() {
        let start = milliseconds(SystemTime::now());
        let first = renewed(&Authorities::default(), start);
        assert_eq!(first.signer(start, &LIVES), first.0.first(), "the only one signs at once");
        assert_eq!(first.try_renew(start + 599_999, &LIVES).expect("fine"), None);
        assert_eq!(first.next_ms(start + 20_000, &LIVES), start + 600_000);
        let later = start + 600_000;
        let second = renewed(&first, later);
        assert!(second.bundle().contains(first.bundle().as_str()) && second.0.len() == 2);
        assert_eq!(second.signer(later, &LIVES), first.0.first(), "the old one signs while the new one settles");
        assert_eq!(second.next_ms(later, &LIVES), later + 10_000);
        assert_eq!(second.signer(later + 10_000, &LIVES), second.0.first());
        let third = renewed(&second, start + 900_000);
        assert_eq!(third.0.len(), 1, "what ended is dropped");
        assert_eq!(Authorities::parse(third.to_json().as_bytes()).expect("its own form"), third);
    }

    #[test]
    fn a_leaf_does_not_outlive_its_authority() {
        let start = milliseconds(SystemTime::now());
        let set = renewed(&Authorities::default(), start);
        let signer = set.signer(start, &LIVES).expect("one is alive");
        let names = ["control.mesh.svc".to_owned()];
        let leaf = signer.issue(&names, start, &LIVES).expect("a certificate");
        assert_eq!((leaf.renew_ms, leaf.ends_ms), (start + 40_000, start + 60_000));
        let late = signer.issue(&names, start + 880_000, &LIVES).expect("a certificate");
        assert_eq!(late.ends_ms, start + 900_000);
    }

    #[test]
    fn a_foreign_secret_is_told_apart() {
        for text in ["", "{}", "[{}]", r#"[{"certificate":"x","key":"y","madeMs":1,"endsMs":2}]"#] {
            let error = Authorities::parse(text.as_bytes()).expect_err("not ours");
            assert!(error.to_string().contains("delete the Secret"), "{error}");
        }
    }
}
