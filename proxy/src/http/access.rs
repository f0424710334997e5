//! Who may make a request: the filters of the chain, each as the route has it.
//!
//! **Source.** Envoy, `extensions.filters.http.rbac.v3`; which address of `x-forwarded-for` is the client's: Envoy,
//! `use_remote_address` and `xff_num_trusted_hops`.

use std::net::IpAddr;

use super::downstream::Downstream;
use super::head::HeadView;
use crate::config::{AccessOverride, HttpConnectionConfig};
use crate::fault::Fault;
use crate::route::{self, Caller, RequestView};

impl Downstream {
    /// Asks every filter in order; the first that refuses decides.
    pub(super) fn authorize(
        &self,
        http: &HttpConnectionConfig,
        request: &HeadView<'_>,
        overrides: &[AccessOverride],
    ) -> Result<(), Fault> {
        if http.access.is_empty() {
            return Ok(());
        }
        let (peer, reached) = (self.peer.ip().to_canonical(), self.reached_ends());
        let remote = client(http, request, peer);
        let caller = Caller { direct: reached.direct, source: peer, remote, destination: reached.destination };
        let filters =
            http.access.iter().filter_map(|filter| match overrides.iter().find(|one| one.filter == filter.name) {
                None => Some(&filter.rules),
                Some(one) => one.rules.as_ref(),
            });
        route::authorize(filters, &caller, Some(request), &self.cell.access)
    }
}

/// The client's address: the peer's, or the one that the proxies which are trusted tell of.
fn client(http: &HttpConnectionConfig, request: &HeadView<'_>, peer: IpAddr) -> IpAddr {
    let hops = usize::try_from(http.xff_trusted_hops).unwrap_or(usize::MAX);
    let skipped = match (http.use_remote_address, hops.checked_sub(1)) {
        (true, None) => return peer,
        (true, Some(skipped)) => skipped,
        (false, _) => hops,
    };
    let mut count = 0_usize;
    request.each_value(b"x-forwarded-for", &mut |line| count += line.split(|byte| *byte == b',').count());
    let Some(place) = count.checked_sub(skipped).and_then(|left| left.checked_sub(1)) else { return peer };
    let (mut at, mut told) = (0, None);
    request.each_value(b"x-forwarded-for", &mut |line| {
        for part in line.split(|byte| *byte == b',') {
            if at == place {
                told = std::str::from_utf8(part).ok().and_then(|text| text.trim().parse::<IpAddr>().ok());
            }
            at += 1;
        }
    });
    told.map_or(peer, |address| address.to_canonical())
}
