//! The protocol state of one type on a state-of-the-world stream: what is asked for, which version is held.
//!
//! **Source.** "xDS REST and gRPC protocol": a NACK repeats the version accepted before; a nonce belongs to its stream.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::google::rpc::Status;

use super::Type;

const INVALID_ARGUMENT: i32 = 3;
/// Longest text of an `error_detail`.
const MAX_DETAIL_BYTES: usize = 4096;

/// What a stream has been told about one type, and what it told us.
#[derive(Debug)]
pub(super) struct Subscription {
    kind: Type,
    names: BTreeSet<String>,
    version: String,
    nonce: String,
    is_asked: bool,
    owes_ack: bool,
}

impl Subscription {
    pub(super) fn new(kind: Type) -> Self {
        Self {
            kind,
            names: BTreeSet::new(),
            version: String::new(),
            nonce: String::new(),
            is_asked: false,
            owes_ack: false,
        }
    }

    /// The version accepted last.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// A new stream: it knows no nonce and was asked nothing; the accepted version outlives the old one.
    pub(super) fn reopen(&mut self) {
        self.nonce.clear();
        self.is_asked = false;
        self.owes_ack = false;
    }

    /// Asks for `names`, unless that is what was asked already. No name asks for everything where the type allows
    /// that; elsewhere a first request without names would too, and is not sent.
    pub(super) fn ask(&mut self, names: BTreeSet<String>) -> Option<DiscoveryRequest> {
        let is_news = if self.is_asked { names != self.names } else { self.kind.is_wildcard() || !names.is_empty() };
        self.names = names;
        if !is_news {
            return None;
        }
        self.is_asked = true;
        // Any request that carries the nonce at hand is an ACK.
        self.owes_ack = false;
        Some(self.request(None))
    }

    /// Refuses a response for a reason: the NACK is for sending now.
    pub(super) fn refuse(&mut self, nonce: &str, reason: &str) -> DiscoveryRequest {
        nonce.clone_into(&mut self.nonce);
        self.owes_ack = false;
        self.request(Some(reason))
    }

    /// Accepts a response. Its ACK is owed until [`Subscription::take_ack`].
    pub(super) fn accept(&mut self, version: &str, nonce: &str) {
        nonce.clone_into(&mut self.nonce);
        version.clone_into(&mut self.version);
        self.owes_ack = true;
    }

    /// The ACK that is owed, with the names asked for now: an older list would end the subscription of newer names.
    pub(super) fn take_ack(&mut self) -> Option<DiscoveryRequest> {
        std::mem::take(&mut self.owes_ack).then(|| self.request(None))
    }

    fn request(&self, refusal: Option<&str>) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.version.clone(),
            resource_names: self.names.iter().cloned().collect(),
            type_url: self.kind.url().to_owned(),
            response_nonce: self.nonce.clone(),
            error_detail: refusal.map(|text| Status {
                code: INVALID_ARGUMENT,
                message: bounded(text),
                details: Vec::new(),
            }),
            ..Default::default()
        }
    }
}

fn bounded(text: &str) -> String {
    if text.len() <= MAX_DETAIL_BYTES {
        return text.to_owned();
    }
    let room = MAX_DETAIL_BYTES - "…".len();
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn wildcard_types_ask_at_once_and_others_when_there_is_a_name() {
        let mut clusters = Subscription::new(Type::Clusters);
        assert!(clusters.ask(names(&[])).is_some());
        assert!(clusters.ask(names(&[])).is_none());
        let mut routes = Subscription::new(Type::RouteTables);
        assert!(routes.ask(names(&[])).is_none());
        assert_eq!(routes.ask(names(&["b", "a"])).unwrap().resource_names, ["a", "b"]);
        assert!(routes.ask(names(&["a", "b"])).is_none());
        assert_eq!(routes.ask(names(&[])).unwrap().resource_names, [""; 0]);
    }

    #[test]
    fn a_refusal_repeats_the_version_before_and_the_nonce_at_hand() {
        let mut clusters = Subscription::new(Type::Clusters);
        clusters.ask(names(&[]));
        clusters.accept("1", "a");
        let ack = clusters.take_ack().unwrap();
        assert!(clusters.take_ack().is_none());
        assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str(), ack.error_detail), ("1", "a", None));
        let nack = clusters.refuse("b", "no");
        assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "b"));
        assert_eq!(nack.error_detail.map(|detail| (detail.code, detail.message)), Some((3, "no".to_owned())));
        clusters.reopen();
        let again = clusters.ask(names(&[])).unwrap();
        assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("1", ""));
    }

    #[test]
    fn the_detail_is_bounded() {
        let mut clusters = Subscription::new(Type::Clusters);
        for length in [4095, 4096, 4097, 100_000] {
            let nack = clusters.refuse("a", &"é".repeat(length));
            let detail = nack.error_detail.unwrap().message;
            assert!(detail.len() <= MAX_DETAIL_BYTES && detail.ends_with('…'), "{length}");
        }
        let nack = clusters.refuse("a", &"e".repeat(4096));
        assert_eq!(nack.error_detail.unwrap().message.len(), 4096);
    }
}
