//! The rules themselves, before any program's language.

use std::net::IpAddr;

use super::list::PortRange;
use crate::config::IpPrefix;

/// All chains that are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruleset {
    /// In the order in which they are written.
    pub chains: Vec<Chain>,
    /// Rules for IPv6 are among them.
    pub has_ipv6: bool,
}

/// Rules that the kernel walks through at one hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// Which hook, and what for.
    pub role: ChainRole,
    /// The first that passes or captures a connection ends the walk; at the end it passes.
    pub rules: Vec<Rule>,
}

/// Where a chain hangs, and what it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainRole {
    /// NAT of what leaves a socket of the pod.
    Outbound,
    /// NAT of what arrives.
    Inbound,
    /// TPROXY of what arrives: every packet, not only a connection's first.
    InboundTproxy,
    /// Answers on connections whose source the proxy kept: their packets have to turn back inside the pod.
    KeptSource,
}

impl ChainRole {
    /// As in comments and findings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound | Self::InboundTproxy => "inbound",
            Self::KeptSource => "kept-source",
        }
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// If a connection meets every test, the verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Unique in its chain.
    pub name: &'static str,
    /// All of them must hold; none at all holds always.
    pub tests: Vec<Test>,
    /// What follows.
    pub verdict: Verdict,
}

impl Rule {
    /// The family it is about; `None` both.
    pub fn family(&self) -> Option<Family> {
        self.tests.iter().find_map(|test| match test {
            Test::Destination(networks) => networks.first().map(|network| Family::of(network.address())),
            Test::Ipv6 => Some(Family::V6),
            _ => None,
        })
    }

    /// True when it has a place among the rules of one family.
    pub fn is_for(&self, family: Family) -> bool {
        self.family().is_none_or(|own| own == family)
    }
}

/// Something a connection or packet can be.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// It came in by the loopback interface.
    ByLoopback,
    /// Its destination is in one of these networks, all of one family.
    Destination(Vec<IpPrefix>),
    /// Its source is no address of the pod.
    ForeignSource,
    /// Its socket's owner is in one of these groups.
    Group(Vec<u32>),
    /// It is of IPv6.
    Ipv6,
    /// It goes the way of the connection's first packet.
    Original,
    /// Its destination port is in one of these ranges.
    Port(Vec<PortRange>),
    /// It answers on a connection whose source the proxy kept.
    ReplyOfKept,
    /// Its socket's owner is one of these users.
    User(Vec<u32>),
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Remembers that the connection's source was kept; the walk goes on.
    Keep,
    /// The connection goes where it wants.
    Pass,
    /// It goes to this port of the pod.
    Redirect(u16),
    /// The packet is routed back into the pod; the walk goes on.
    RouteBack,
    /// It goes to the transparent socket on this port.
    Tproxy(u16),
}
