//! **Purpose.** Envoy's messages as sent become values of the model, which cannot be wrong; or they are refused with
//! every path and reason.
//!
//! **Shape.** One function per message, joined by the cursor `At`. [`listener`], [`route_table`], [`cluster`] and
//! [`endpoints`] take one encoded resource each and share nothing, so one bad resource never hurts another.
//! A field that is set is served, refused (ignoring it would weaken security or change where traffic goes) or ignored
//! and reported; none is dropped unseen.
//!
//! **Errors.** A [`Rejection`] names the resource, and for each reason the path, the value and what is allowed.
//!
//! **Source.** Envoy's v3 API and its documented constraints and defaults. Stricter: durations that do not fit the
//! timers, an address twice in one cluster (the first counts), a filter chain that does not end in a terminal filter.
//!
//! **Tests.** Every constraint, and random and mutated messages, in `tests.rs`.

#![allow(deprecated, reason = "older control planes send fields that Envoy has deprecated")]

mod access;
mod at;
mod cluster;
mod endpoint;
mod filter_chain;
mod hash_policy;
mod hashing;
mod hcm;
mod header;
mod http2;
mod listener;
mod listener_filter;
mod matcher;
mod original;
mod policy;
mod read;
mod rejection;
mod route;
mod route_action;
mod route_match;
mod tcp_proxy;
#[cfg(test)]
mod tests;
mod unsupported;

pub use cluster::{cluster, server_addresses};
pub use endpoint::endpoints;
pub use listener::listener;
pub use rejection::{Converted, Reason, Rejection, ResourceKind};
pub use route::route_table;

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::google::protobuf as google;
use outrigger_xds_proto::any;
use prost::{Message, Name};

use at::At;
use rejection::Findings;

/// Decodes one resource, looks for fields that are not served, and converts it.
fn convert<M, T>(
    kind: ResourceKind,
    encoded: &[u8],
    name_of: impl FnOnce(&M) -> &str,
    read: impl FnOnce(At<'_, M>) -> Option<T>,
) -> Converted<T>
where
    M: Message + Default + Name,
{
    let message = match any::decode::<M>(encoded) {
        Ok(message) => message,
        Err(error) => {
            let rejection = Rejection::new(kind, "", "", error);
            return Converted { name: String::new(), result: Err(rejection), ignored: Vec::new() };
        }
    };
    let findings = Findings::default();
    let value = read(At::root(&findings, &message));
    unsupported::find::<M>(encoded, &findings);
    findings.finish(kind, name_of(&message), value)
}

/// An IP address and port, as a part of a bootstrap file.
pub(crate) fn address(address: Option<&Address>) -> Converted<SocketAddr> {
    let address = address.cloned();
    let findings = Findings::default();
    let value = read::ip_address(At::root(&findings, &address));
    findings.finish(ResourceKind::Bootstrap, "", value)
}

/// A span from zero up, as a part of a bootstrap file.
pub(crate) fn span(field: &'static str, span: google::Duration) -> Converted<Duration> {
    let findings = Findings::default();
    let value = At::root(&findings, &()).field(field, &Some(span)).span();
    findings.finish(ResourceKind::Bootstrap, "", value)
}

/// Fields of a bootstrap file that are refused, and those that are ignored; its resources are looked at on their own.
pub(crate) fn unsupported_in_bootstrap(bootstrap: &Bootstrap) -> (Vec<Reason>, Vec<String>) {
    let findings = Findings::default();
    let mut outer = bootstrap.clone();
    outer.static_resources = None;
    unsupported::find::<Bootstrap>(&outer.encode_to_vec(), &findings);
    let found = findings.finish(ResourceKind::Bootstrap, "", Some(()));
    (found.result.err().map(|rejection| rejection.reasons).unwrap_or_default(), found.ignored)
}
