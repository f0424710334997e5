//! Where a request goes whose cluster has original destinations for endpoints.
//!
//! **Source.** Envoy, `OriginalDstLbConfig`. Stricter: a header that is no address and port refuses the request; Envoy sends it
//! to the connection's destination then.

use std::net::SocketAddr;
use std::rc::Rc;

use super::downstream::Downstream;
use super::exchange::Matched;
use crate::fault::{Fault, Kind};
use crate::worker::Cluster;

impl Downstream {
    /// The cluster itself, or, where its endpoints are original destinations, what it has for this request's.
    pub(super) fn toward(&self, cluster: Rc<Cluster>, matched: &Matched<'_>) -> Result<Rc<Cluster>, Fault> {
        let Some(original) = cluster.original() else { return Ok(cluster) };
        let named = original.header.as_deref().and_then(|name| matched.request.head.header(name));
        let destination = match named {
            Some(text) => parse(text),
            None if matched.listener.config().knows_destinations() => Some(self.ends().destination),
            None => None,
        };
        let part = destination.ok_or(Kind::NoOriginal).and_then(|mut destination| {
            destination.set_port(original.port.unwrap_or(destination.port()));
            cluster.toward(destination, &self.worker)
        });
        part.map_err(|kind| {
            cluster.cell.faults.add_one(kind);
            Fault::new(kind).with_cluster(cluster.name().clone())
        })
    }
}

/// `192.0.2.1:80`, `[2001:db8::1]:80`.
fn parse(text: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}
