//! Who we are and what the pod has, as the kernel's files tell it.

use std::fs;
use std::net::Ipv6Addr;

use crate::rules::Owner;

/// Numbers of CAP_NET_ADMIN and CAP_NET_RAW.
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;

/// The value of a line of /proc/self/status.
fn status(field: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    values.next().map(|value| value.trim().to_owned())
}

fn has_capability(number: u32) -> bool {
    let effective = status("CapEff").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    effective.is_some_and(|bits| bits & (1 << number) != 0)
}

/// True when the process may program the packet filter.
pub(super) fn has_net_admin() -> bool {
    has_capability(NET_ADMIN)
}

/// True when the process may open raw sockets, through which iptables-legacy speaks to the kernel.
pub(super) fn has_net_raw() -> bool {
    has_capability(NET_RAW)
}

/// True when the tables that iptables-legacy speaks to are in use here, whoever uses them.
pub(super) fn has_old_tables() -> bool {
    let names = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    names.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| !text.trim().is_empty()))
}

/// Whom a socket of this process belongs to.
pub(super) fn owner() -> Option<Owner> {
    // Real, effective, saved, file system: the filter looks at the last.
    let id = |field| status(field)?.split_whitespace().nth(3)?.parse().ok();
    Some(Owner { uid: id("Uid")?, gid: id("Gid")? })
}

/// Addresses of IPv6 and their interfaces.
fn ipv6_addresses() -> Vec<(Ipv6Addr, String)> {
    parse_if_inet6(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default())
}

fn parse_if_inet6(text: &str) -> Vec<(Ipv6Addr, String)> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let bits = u128::from_str_radix(words.next()?, 16).ok()?;
        Some((Ipv6Addr::from_bits(bits), words.nth(4)?.to_owned()))
    });
    lines.collect()
}

/// True when an interface other than loopback has an address of IPv6; one of its link counts, for it reaches neighbours.
pub fn pod_has_ipv6() -> bool {
    ipv6_addresses().iter().any(|(_, interface)| interface != "lo")
}

/// An address of IPv6 that a connection can be made to without naming an interface.
pub(super) fn own_ipv6() -> Option<Ipv6Addr> {
    let is_whole = |address: &Ipv6Addr| !address.is_loopback() && !address.is_unicast_link_local();
    ipv6_addresses().into_iter().map(|(address, _)| address).find(is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let text = "fe80000000000000f8e1e6fffe5f1a2b 02 40 20 80     eth0\n\
            00000000000000000000000000000001 01 80 10 80       lo\nnonsense\n";
        let found = parse_if_inet6(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], ("fe80::f8e1:e6ff:fe5f:1a2b".parse().unwrap(), "eth0".to_owned()));
        assert_eq!(found[1], (Ipv6Addr::LOCALHOST, "lo".to_owned()));
    }

    #[test]
    fn this_process_has_an_owner() {
        assert!(owner().is_some());
    }
}
