//! What becomes of a connection, by the rules alone.

use std::net::{IpAddr, SocketAddr};

use super::model::{ChainRole, Rule, Ruleset, Test, Verdict};
use super::settings::Owner;

/// A connection that a process of the pod opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Where to.
    pub destination: SocketAddr,
    /// Whose socket it is.
    pub owner: Owner,
}

/// A connection that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arriving {
    /// Where to.
    pub destination: SocketAddr,
    /// It came in by the loopback interface.
    pub by_loopback: bool,
    /// Its source is no address of the pod.
    pub has_foreign_source: bool,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this port of the proxy.
    Captured(u16),
    /// It goes where it wants.
    Passed,
}

impl Ruleset {
    /// What becomes of a connection that leaves a socket.
    pub fn decide_leaving(&self, leaving: &Leaving) -> Decision {
        self.walk(&[ChainRole::Outbound], |test| match test {
            Test::User(ids) => ids.contains(&leaving.owner.uid),
            Test::Group(ids) => ids.contains(&leaving.owner.gid),
            other => is_destination(other, leaving.destination).unwrap_or(false),
        })
    }

    /// What becomes of a connection's first packet that arrives.
    pub fn decide_arriving(&self, arriving: &Arriving) -> Decision {
        self.walk(&[ChainRole::Inbound, ChainRole::InboundTproxy], |test| match test {
            Test::ByLoopback => arriving.by_loopback,
            Test::ForeignSource => arriving.has_foreign_source,
            Test::Original => true,
            other => is_destination(other, arriving.destination).unwrap_or(false),
        })
    }

    fn walk(&self, roles: &[ChainRole], holds: impl Fn(&Test) -> bool) -> Decision {
        let chains = self.chains.iter().filter(|chain| roles.contains(&chain.role));
        let mut met = chains.flat_map(|chain| &chain.rules).filter(|rule| rule.tests.iter().all(&holds));
        met.find_map(ending).unwrap_or(Decision::Passed)
    }
}

fn ending(rule: &Rule) -> Option<Decision> {
    match rule.verdict {
        Verdict::Pass => Some(Decision::Passed),
        Verdict::Redirect(port) | Verdict::Tproxy(port) => Some(Decision::Captured(port)),
        Verdict::Keep | Verdict::RouteBack => None,
    }
}

/// `None` when the test is about something else.
fn is_destination(test: &Test, destination: SocketAddr) -> Option<bool> {
    match test {
        Test::Destination(networks) => {
            let address: IpAddr = destination.ip();
            Some(networks.iter().any(|network| network.contains(address)))
        }
        Test::Ipv6 => Some(destination.is_ipv6()),
        Test::Port(ranges) => Some(ranges.iter().any(|range| range.contains(destination.port()))),
        _ => None,
    }
}
