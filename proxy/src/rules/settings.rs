//! What is to be captured: the values of the command line, read and found sound together.

use std::str::FromStr;

use super::list::{IdList, ListError, NetworkList, PortList};

/// The proxy's health and metrics port: never captured, for the kubelet and the scraper must reach it whatever
/// the policy says.
pub const HEALTH_PORT: u16 = 15020;

/// How inbound connections reach the proxy. Outbound ones are redirected in either mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// NAT to the proxy's port; the application sees the proxy's address.
    Redirect,
    /// No NAT: the proxy can keep the client's address towards the application.
    Tproxy,
}

impl Mode {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
        }
    }
}

/// `*` or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<T> {
    /// Whatever there is.
    All,
    /// These; an empty list is none.
    Only(T),
}

impl<T: FromStr<Err = ListError>> FromStr for Choice<T> {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        if text.trim() == "*" { Ok(Self::All) } else { text.parse().map(Self::Only) }
    }
}

/// The proxy's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Outbound connections are sent to it.
    pub outbound: u16,
    /// Inbound connections are sent to it.
    pub inbound: u16,
    /// Nobody listens on it: a loopback connection to it that comes to the outbound port proves the rules.
    pub heartbeat: u16,
}

/// Whom a process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What is to be captured.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureSettings {
    /// How inbound connections reach the proxy.
    pub mode: Mode,
    /// The proxy's ports.
    pub ports: Ports,
    /// Whom the proxy runs as: its own connections pass.
    pub proxy: Owner,
    /// Ports of the pod whose connections are captured.
    pub inbound_ports: Choice<PortList>,
    /// Ports of the pod left alone, before the ones captured.
    pub inbound_ports_excluded: PortList,
    /// Destinations captured.
    pub outbound_networks: Choice<NetworkList>,
    /// Destinations left alone, before the ones captured.
    pub outbound_networks_excluded: NetworkList,
    /// Destination ports captured; a connection is captured when its network is, too.
    pub outbound_ports: Choice<PortList>,
    /// Destination ports left alone, before the ones captured.
    pub outbound_ports_excluded: PortList,
    /// Users whose connections pass.
    pub uids_excluded: IdList,
    /// Groups whose connections pass.
    pub gids_excluded: IdList,
    /// IPv6 is captured too.
    pub has_ipv6: bool,
}

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Two ports are one.
    #[error("{0} and {1} are both {2}: give each a port of its own")]
    SamePort(&'static str, &'static str, u16),
    /// The ports of the proxy include the one that is never captured.
    #[error("{0} is {HEALTH_PORT}, the health port, which is never captured: choose another")]
    HealthPort(&'static str),
    /// Root is not to be the proxy.
    #[error("{0} is 0: whatever runs as root would pass uncaptured; run the proxy as another and name that")]
    Root(&'static str),
}

impl CaptureSettings {
    /// The first contradiction, if there is one.
    pub fn contradiction(&self) -> Option<SettingsError> {
        let Ports { outbound, inbound, heartbeat } = self.ports;
        let ports = [("--outbound-port", outbound), ("--inbound-port", inbound), ("--heartbeat-port", heartbeat)];
        for (at, (name, port)) in ports.iter().enumerate() {
            if *port == HEALTH_PORT {
                return Some(SettingsError::HealthPort(name));
            }
            if let Some((other, _)) = ports.iter().skip(at + 1).find(|(_, other)| other == port) {
                return Some(SettingsError::SamePort(name, other, *port));
            }
        }
        let owner = [("--proxy-uid", self.proxy.uid), ("--proxy-gid", self.proxy.gid)];
        owner.iter().find(|(_, id)| *id == 0).map(|(name, _)| SettingsError::Root(name))
    }
}

impl Default for CaptureSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Redirect,
            ports: Ports { outbound: 15001, inbound: 15006, heartbeat: 15009 },
            proxy: Owner { uid: 1337, gid: 1337 },
            inbound_ports: Choice::All,
            inbound_ports_excluded: PortList::default(),
            outbound_networks: Choice::All,
            outbound_networks_excluded: NetworkList::default(),
            outbound_ports: Choice::All,
            outbound_ports_excluded: PortList::default(),
            uids_excluded: IdList::default(),
            gids_excluded: IdList::default(),
            has_ipv6: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_all_and_nothing_is_none() {
        assert_eq!("*".parse::<Choice<PortList>>().unwrap(), Choice::All);
        assert_eq!("".parse::<Choice<PortList>>().unwrap(), Choice::Only(PortList::default()));
        assert_eq!("80".parse::<Choice<PortList>>().unwrap(), Choice::Only("80".parse().unwrap()));
        assert!("*,80".parse::<Choice<PortList>>().is_err());
    }

    #[test]
    fn contradictions_are_named() {
        let with = |ports: (u16, u16, u16), owner: (u32, u32)| {
            let (outbound, inbound, heartbeat) = ports;
            let settings = CaptureSettings {
                ports: Ports { outbound, inbound, heartbeat },
                proxy: Owner { uid: owner.0, gid: owner.1 },
                ..CaptureSettings::default()
            };
            settings.contradiction().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(with((1, 2, 3), (1, 1)), "");
        assert!(with((7, 7, 3), (1, 1)).starts_with("--outbound-port and --inbound-port are both 7"));
        assert!(with((7, 8, 7), (1, 1)).starts_with("--outbound-port and --heartbeat-port are both 7"));
        assert!(with((7, 8, 8), (1, 1)).starts_with("--inbound-port and --heartbeat-port are both 8"));
        assert!(with((15020, 8, 9), (1, 1)).starts_with("--outbound-port is 15020"));
        assert!(with((7, 8, 9), (0, 1)).starts_with("--proxy-uid is 0"));
        assert!(with((7, 8, 9), (1, 0)).starts_with("--proxy-gid is 0"));
    }
}
