//! Lists as they are written on the command line and in annotations: ports, networks, ids.
//!
//! A list is what stands between commas; spaces around an entry do not count, and an empty text is an empty list. Entries
//! are kept sorted and merged, since the kernel's interval sets refuse overlaps.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::config::IpPrefix;

/// Greatest user or group id: the one above it means "none" to the kernel.
const ID_MAX: u32 = u32::MAX - 1;

/// An entry that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {number}, `{entry}`: {reason}")]
pub struct ListError {
    /// Counted from 1.
    number: usize,
    entry: String,
    reason: String,
}

/// Reads what stands between commas.
fn entries<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, ListError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parts = text.split(',').map(str::trim).enumerate();
    parts
        .map(|(at, entry)| parse(entry).map_err(|reason| ListError { number: at + 1, entry: entry.to_owned(), reason }))
        .collect()
}

fn joined<T: fmt::Display>(f: &mut fmt::Formatter<'_>, values: &[T]) -> fmt::Result {
    for (at, value) in values.iter().enumerate() {
        write!(f, "{}{value}", if at == 0 { "" } else { "," })?;
    }
    Ok(())
}

/// Ports from the first to the last, both in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// Not 0.
    pub first: u16,
    /// Not below the first.
    pub last: u16,
}

impl PortRange {
    /// One port.
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// True when the port is in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Ports and ranges of ports: `80,443,8000-8100`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortList(Vec<PortRange>);

impl PortList {
    /// Sorted, apart from each other.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// With one more port.
    #[must_use]
    pub fn with(mut self, port: u16) -> Self {
        self.0.push(PortRange::one(port));
        Self(merged(self.0))
    }

    /// True when some range holds the port.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }
}

fn merged(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut apart: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match apart.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => before.last = before.last.max(range.last),
            _ => apart.push(range),
        }
    }
    apart
}

impl FromStr for PortList {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let port = |text: &str| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            let port = text.parse::<u16>().ok().filter(|port| is_number && *port > 0);
            port.ok_or_else(|| "not a port in 1..=65535, nor a range of them as in 8000-8100".to_owned())
        };
        let ranges = entries(text, |entry| {
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            let range = PortRange { first: port(first)?, last: port(last)? };
            if range.first > range.last {
                return Err(format!("a range goes upwards: {last}-{first}"));
            }
            Ok(range)
        })?;
        Ok(Self(merged(ranges)))
    }
}

impl fmt::Display for PortList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        joined(f, &self.0)
    }
}

/// Networks of either family: `10.0.0.0/8,fd00::/8,192.0.2.7`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkList(Vec<IpPrefix>);

impl NetworkList {
    /// Those of IPv4 first; none lies in another.
    pub fn prefixes(&self) -> &[IpPrefix] {
        &self.0
    }
}

/// `10.0.0.0/8`, or one address.
fn parse_network(entry: &str) -> Result<IpPrefix, String> {
    const FORM: &str = "not a network in CIDR form, as in 10.0.0.0/8 or fd00::/8, nor an address";
    let (address, bits) = entry.split_once('/').map_or((entry, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| FORM.to_owned())?;
    let most: u8 = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        None => most,
        Some(bits) if !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let bits = bits.parse().ok().filter(|bits| *bits <= most);
            bits.ok_or_else(|| format!("the length of its prefix is not in 0..={most}"))?
        }
        Some(_) => return Err(FORM.to_owned()),
    };
    let network = IpPrefix::new(address, bits).ok_or_else(|| FORM.to_owned())?;
    if network.address() != address {
        return Err(format!("bits are set beyond its prefix: write {network}"));
    }
    Ok(network)
}

impl FromStr for NetworkList {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let mut networks = entries(text, parse_network)?;
        // The wider one comes first and swallows what lies in it: prefixes either nest or are apart.
        networks.sort_unstable_by_key(|network| (network.address(), network.bits()));
        let mut apart: Vec<IpPrefix> = Vec::with_capacity(networks.len());
        for network in networks {
            if !apart.last().is_some_and(|before| before.contains(network.address())) {
                apart.push(network);
            }
        }
        Ok(Self(apart))
    }
}

impl fmt::Display for NetworkList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        joined(f, &self.0)
    }
}

/// Ids of users or groups: `101,1000`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdList(Vec<u32>);

impl IdList {
    /// Sorted, each once.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    /// Reads numbers, and names where `resolve` knows their number.
    pub fn parse(text: &str, resolve: impl Fn(&str) -> Option<u32>) -> Result<Self, ListError> {
        let mut ids = entries(text, |entry| parse_id(entry, &resolve))?;
        ids.sort_unstable();
        ids.dedup();
        Ok(Self(ids))
    }
}

/// The number of one user or group.
pub fn parse_id(entry: &str, resolve: impl Fn(&str) -> Option<u32>) -> Result<u32, String> {
    if !entry.is_empty() && entry.bytes().all(|byte| byte.is_ascii_digit()) {
        let id = entry.parse().ok().filter(|id| *id <= ID_MAX);
        return id.ok_or_else(|| format!("not an id in 0..={ID_MAX}"));
    }
    resolve(entry)
        .ok_or_else(|| "no such name here: write its number, since names of other images are unknown".to_owned())
}

impl fmt::Display for IdList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        joined(f, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_sorted_and_merged() {
        for (text, shown) in [
            ("", ""),
            (" ", ""),
            ("80", "80"),
            ("443, 80", "80,443"),
            ("8000-8100,8050-8200,8201", "8000-8201"),
            ("1,65535,65534", "1,65534-65535"),
            ("1-65535,7", "1-65535"),
        ] {
            assert_eq!(text.parse::<PortList>().unwrap().to_string(), shown, "{text}");
        }
        assert_eq!("80,90".parse::<PortList>().unwrap().with(81).to_string(), "80-81,90");
    }

    #[test]
    fn a_bad_port_is_named_with_the_range() {
        for bad in ["0", "65536", "-1", "http", "80,", ",80", "80-", "90-80", "1-2-3", "+80", "NaN"] {
            let error = bad.parse::<PortList>().unwrap_err().to_string();
            assert!(error.starts_with("entry ") && error.contains('`'), "{bad}: {error}");
        }
        assert_eq!(
            "80,70000".parse::<PortList>().unwrap_err().to_string(),
            "entry 2, `70000`: not a port in 1..=65535, nor a range of them as in 8000-8100"
        );
        assert_eq!("9-8".parse::<PortList>().unwrap_err().to_string(), "entry 1, `9-8`: a range goes upwards: 8-9");
    }

    #[test]
    fn networks_are_sorted_and_merged() {
        for (text, shown) in [
            ("", ""),
            ("192.0.2.7", "192.0.2.7/32"),
            ("10.1.0.0/16,10.0.0.0/8,10.0.0.1", "10.0.0.0/8"),
            ("fd00::/8, 10.0.0.0/8", "10.0.0.0/8,fd00::/8"),
            ("0.0.0.0/0,::/0,10.0.0.0/8", "0.0.0.0/0,::/0"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(text.parse::<NetworkList>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn a_bad_network_is_named_with_what_to_write() {
        for (bad, told) in [
            ("10.0.0.0/33", "entry 1, `10.0.0.0/33`: the length of its prefix is not in 0..=32"),
            ("::/129", "entry 1, `::/129`: the length of its prefix is not in 0..=128"),
            ("10.0.0.1/8", "entry 1, `10.0.0.1/8`: bits are set beyond its prefix: write 10.0.0.0/8"),
            ("::1,fd00::1/8", "entry 2, `fd00::1/8`: bits are set beyond its prefix: write fd00::/8"),
        ] {
            assert_eq!(bad.parse::<NetworkList>().unwrap_err().to_string(), told);
        }
        for bad in ["10.0.0/8", "10.0.0.0/", "10.0.0.0/x", "10.0.0.0/-1", "example", "10.0.0.0/8,", "*"] {
            assert!(bad.parse::<NetworkList>().unwrap_err().to_string().contains("CIDR"), "{bad}");
        }
    }

    #[test]
    fn ids_are_numbers_or_names_that_are_known() {
        let resolve = |name: &str| (name == "postgres").then_some(999);
        assert_eq!(IdList::parse("1000,postgres,5,5", resolve).unwrap().ids(), [5, 999, 1000]);
        assert_eq!(IdList::parse("4294967294", resolve).unwrap().ids(), [4_294_967_294]);
        for bad in ["4294967295", "-1", "nobody", "1,,2", "99999999999999999999"] {
            assert!(IdList::parse(bad, resolve).is_err(), "{bad}");
        }
        let error = IdList::parse("1,nobody", resolve).unwrap_err().to_string();
        assert!(error.starts_with("entry 2, `nobody`: no such name here"), "{error}");
    }
}
