//! **Purpose.** Who may call, as configured: Envoy's RBAC, ready to be asked.
//!
//! **Shape.** A filter has an enforced [`RuleSet`], a shadow, or both; a set has policies in the order of their names; a
//! policy is two [`Condition`]s. Addresses are an [`AddressSet`]: sorted spans, looked up by halving.
//!
//! **Source.** Envoy, `config.rbac.v3`.
//!
//! **Tests.** Below: sets against a walk over their prefixes.

use std::net::IpAddr;
use std::sync::Arc;

use super::{HeaderMatch, IpPrefix, TextMatch};

/// A filter that decides who may call.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessFilter {
    /// Its name in the chain, by which a route finds it.
    pub name: Arc<str>,
    /// What it asks.
    pub rules: AccessRules,
}

/// What a filter asks; without sets, nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessRules {
    /// What it refuses by.
    pub enforced: Option<RuleSet>,
    /// What it only counts by.
    pub shadow: Option<RuleSet>,
}

/// What a route says to the filter of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessOverride {
    /// The filter.
    pub filter: Arc<str>,
    /// What it asks on this route instead; `None`: it is off.
    pub rules: Option<AccessRules>,
}

/// Policies, and what follows when one matches.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleSet {
    /// What follows.
    pub action: AccessAction,
    /// In the order of their names.
    pub policies: Vec<AccessPolicy>,
}

/// What follows when a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessAction {
    /// The call is allowed; without a match it is refused.
    Allow,
    /// The call is refused; without a match it is allowed.
    Deny,
    /// The call is allowed, whatever matches.
    Log,
}

/// Matches when both conditions hold.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessPolicy {
    /// Its name.
    pub name: Arc<str>,
    /// Of what is done.
    pub permission: Condition,
    /// Of who does it.
    pub principal: Condition,
}

/// What may be asked of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// All hold.
    All(Vec<Condition>),
    /// One holds.
    Any(Vec<Condition>),
    /// Where the connection was made to.
    Destination(AddressSet),
    /// The port that it was made to is in `first..=last`.
    DestinationPort {
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
    /// The other end of the socket.
    DirectRemote(AddressSet),
    /// Holds always.
    Every,
    /// A header.
    Header(HeaderMatch),
    /// Holds never.
    Never,
    /// It does not hold.
    Not(Box<Condition>),
    /// The path without its query.
    Path(TextMatch),
    /// The client that the request tells of, as far as that is trusted.
    Remote(AddressSet),
    /// Where the connection comes from, a PROXY header believed.
    Source(AddressSet),
}

/// Addresses: spans in order that do not touch, of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddressSet {
    /// The addresses of all prefixes.
    pub fn new(prefixes: impl IntoIterator<Item = IpPrefix>) -> Self {
        let mut set = Self::default();
        for prefix in prefixes {
            let bits = u32::from(prefix.bits());
            match prefix.address() {
                IpAddr::V4(first) => {
                    let first = first.to_bits();
                    set.v4.push((first, first | u32::MAX.checked_shr(bits).unwrap_or(0)));
                }
                IpAddr::V6(first) => {
                    let first = first.to_bits();
                    set.v6.push((first, first | u128::MAX.checked_shr(bits).unwrap_or(0)));
                }
            }
        }
        set.v4 = joined(set.v4);
        set.v6 = joined(set.v6);
        set
    }

    /// Whether `address` is one of them; an IPv4 address written as IPv6 is taken for what it is.
    pub fn has(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => is_within(&self.v4, address.to_bits()),
            IpAddr::V6(address) => is_within(&self.v6, address.to_bits()),
        }
    }

    /// The addresses of all sets.
    pub fn of_all(sets: impl IntoIterator<Item = Self>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for set in sets {
            v4.extend(set.v4);
            v6.extend(set.v6);
        }
        Self { v4: joined(v4), v6: joined(v6) }
    }
}

/// In order, and those that overlap made one.
fn joined<N: Copy + Ord>(mut spans: Vec<(N, N)>) -> Vec<(N, N)> {
    spans.sort_unstable();
    let mut kept: Vec<(N, N)> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match kept.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => kept.push((first, last)),
        }
    }
    kept
}

fn is_within<N: Copy + Ord>(spans: &[(N, N)], address: N) -> bool {
    let after = spans.partition_point(|(first, _)| *first <= address);
    after.checked_sub(1).is_some_and(|at| address <= spans[at].1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(address: &str, bits: u8) -> IpPrefix {
        IpPrefix::new(address.parse().unwrap(), bits).unwrap()
    }

    #[test]
    fn a_set_has_the_first_and_the_last_address_of_each_prefix() {
        let set = AddressSet::new([prefix("10.1.0.0", 16), prefix("10.1.2.3", 32), prefix("2001:db8::", 32)]);
        for (address, has) in [
            ("10.0.255.255", false),
            ("10.1.0.0", true),
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("::ffff:10.1.0.1", true),
            ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("2001:db9::", false),
        ] {
            assert_eq!(set.has(address.parse().unwrap()), has, "{address}");
        }
        assert!(AddressSet::new([prefix("0.0.0.0", 0)]).has("255.255.255.255".parse().unwrap()));
        assert!(!AddressSet::new([prefix("::", 0)]).has("10.0.0.1".parse().unwrap()));
        assert!(!AddressSet::default().has("10.0.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn a_set_answers_as_its_prefixes_do(
            parts in prop::collection::vec((any::<IpAddr>(), 0_u8..=32), 0..12),
            others in prop::collection::vec(any::<IpAddr>(), 8),
        ) {
            let prefixes: Vec<_> = parts.iter().map(|(at, bits)| IpPrefix::new(*at, *bits).unwrap()).collect();
            let (front, back) = prefixes.split_at(prefixes.len() / 2);
            let set = AddressSet::of_all([front, back].map(|part| AddressSet::new(part.iter().copied())));
            for address in others.into_iter().chain(parts.iter().map(|(at, _)| *at)) {
                let address = address.to_canonical();
                prop_assert_eq!(set.has(address), prefixes.iter().any(|prefix| prefix.contains(address)));
            }
        }
    }
}
