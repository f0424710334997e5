//! Where the health port listens, as the command line says it.

use std::net::SocketAddr;
use std::str::FromStr;

/// Addresses of the health port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthAddress {
    /// All addresses of the machine, of IPv6 too where it has that, at this port.
    All(u16),
    /// This one.
    One(SocketAddr),
}

impl FromStr for HealthAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is no address and port; write 0.0.0.0:15020, [::]:15020 or *:15020");
        match text.strip_prefix("*:") {
            Some(port) => port.parse().map(Self::All).map_err(|_| refused()),
            None => text.parse().map(Self::One).map_err(|_| refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_others_told() {
        assert_eq!("*:15020".parse(), Ok(HealthAddress::All(15_020)));
        assert_eq!("[::1]:0".parse(), Ok(HealthAddress::One("[::1]:0".parse().unwrap())));
        for bad in ["", "*", "*:", "*:65536", "15020", "localhost:15020", "::1:15020x"] {
            let told = bad.parse::<HealthAddress>().unwrap_err();
            assert!(told.contains("*:15020"), "{told}");
        }
    }
}
