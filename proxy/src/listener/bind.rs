//! Binding, and following snapshots.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{ListenerName, Snapshot};

/// Connections that the kernel queues before they are accepted.
const BACKLOG: i32 = 4096;

/// The bound sockets of this process.
#[derive(Debug, Default)]
pub struct Sockets {
    bound: BTreeMap<(ListenerName, SocketAddr), Bound>,
}

/// A bound socket. Duplicates share what is set on it.
#[derive(Debug)]
struct Bound {
    socket: TcpListener,
    is_transparent: bool,
}

/// One step from one snapshot's sockets to the next's.
#[derive(Debug)]
pub enum Change {
    /// A worker is to accept from this duplicate of the socket.
    Listen {
        /// Whose it is.
        listener: ListenerName,
        /// The configured address: the key to end it by.
        configured: SocketAddr,
    },
    /// Workers are to stop accepting from it.
    Unlisten {
        /// Whose it was.
        listener: ListenerName,
        /// The configured address.
        configured: SocketAddr,
    },
}

/// An address that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listener \"{listener}\": cannot bind {address}: {cause}; {remedy}")]
pub struct BindError {
    /// Whose address it is.
    pub listener: ListenerName,
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub cause: io::Error,
    /// What to do.
    pub remedy: &'static str,
}

impl Sockets {
    /// Binds what `snapshot` has and this has not, forgets what it no longer has. Addresses that cannot be bound are
    /// returned; calling again tries them again.
    pub fn follow(&mut self, snapshot: &Snapshot) -> (Vec<Change>, Vec<BindError>) {
        let mut changes = Vec::new();
        let mut errors = Vec::new();
        self.bound.retain(|(listener, configured), _| {
            let stays = snapshot.listener(listener.as_str()).is_some_and(|l| l.bound_addresses().contains(configured));
            if !stays {
                changes.push(Change::Unlisten { listener: listener.clone(), configured: *configured });
            }
            stays
        });
        for listener in snapshot.listeners() {
            let is_transparent = listener.capture.is_transparent;
            for &configured in listener.bound_addresses() {
                let key = (listener.name.clone(), configured);
                let failed = match self.bound.get_mut(&key) {
                    Some(bound) => bound.set_transparent(is_transparent).err(),
                    None => match Bound::new(configured, is_transparent, listener.is_local(configured)) {
                        Ok(bound) => {
                            self.bound.insert(key, bound);
                            changes.push(Change::Listen { listener: listener.name.clone(), configured });
                            None
                        }
                        Err(cause) => Some(cause),
                    },
                };
                errors.extend(failed.map(|cause| BindError {
                    listener: listener.name.clone(),
                    address: configured,
                    remedy: remedy(&cause, is_transparent),
                    cause,
                }));
            }
        }
        (changes, errors)
    }

    /// A duplicate of a bound socket, for one worker.
    pub fn duplicate(&self, listener: &ListenerName, configured: SocketAddr) -> Option<io::Result<TcpListener>> {
        self.bound.get(&(listener.clone(), configured)).map(|bound| bound.socket.try_clone())
    }

    /// Name and actual address of everything bound (a configured port 0 shows the port it got).
    pub fn addresses(&self) -> Vec<(ListenerName, SocketAddr)> {
        self.bound
            .iter()
            .filter_map(|((name, _), bound)| Some((name.clone(), bound.socket.local_addr().ok()?)))
            .collect()
    }

    /// Closes everything.
    pub fn close(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.bound)
            .into_keys()
            .map(|(listener, configured)| Change::Unlisten { listener, configured })
            .collect()
    }
}

impl Bound {
    /// Binds without SO_REUSEPORT: a second proxy on the same address must fail, not share the traffic in silence.
    fn new(address: SocketAddr, is_transparent: bool, is_local: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if is_transparent {
            take_any_address(&SockRef::from(&socket), true)?;
        }
        if is_local {
            outrigger_reactor::unpace(SockRef::from(&socket));
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: socket.into(), is_transparent })
    }

    fn set_transparent(&mut self, is_transparent: bool) -> io::Result<()> {
        if self.is_transparent != is_transparent {
            take_any_address(&SockRef::from(&self.socket), is_transparent)?;
            self.is_transparent = is_transparent;
        }
        Ok(())
    }
}

/// Lets a socket take connections to addresses that are not this machine's. One flag of the kernel for both families.
fn take_any_address(socket: &SockRef<'_>, may: bool) -> io::Result<()> {
    socket.set_ip_transparent_v4(may)
}

fn remedy(cause: &io::Error, is_transparent: bool) -> &'static str {
    match cause.kind() {
        ErrorKind::PermissionDenied if is_transparent => {
            "transparent takes CAP_NET_ADMIN: grant it, or redirect in place of TPROXY and set transparent to false"
        }
        ErrorKind::AddrInUse => "another process holds the port: stop it or choose another port_value",
        ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher port_value",
        ErrorKind::AddrNotAvailable => {
            "no interface of this machine has the address: choose 0.0.0.0, [::] or one it has"
        }
        _ => "check the address",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Direction, HttpConnectionConfig, ListenerConfig, OriginalDestination, Protocol, Resources, RouteSource,
    };
    use std::sync::Arc;

    fn listener(name: &str, address: SocketAddr, direction: Direction) -> ListenerConfig {
        let http = HttpConnectionConfig::new("test", RouteSource::Named("r".into()));
        ListenerConfig::plain(name.into(), vec![address], direction, Protocol::Http(Arc::new(http)))
    }

    fn snapshot(listeners: &[(&str, SocketAddr)]) -> Snapshot {
        let mut resources = Resources::default();
        for (name, address) in listeners {
            let config = listener(name, *address, Direction::Unspecified);
            resources.listeners.insert((*name).into(), Arc::new(config));
        }
        Snapshot::link(1, &resources).0
    }

    #[test]
    fn what_stays_is_not_bound_anew_and_what_leaves_is_closed() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sockets = Sockets::default();
        let (changes, errors) = sockets.follow(&snapshot(&[("a", any)]));
        assert!(errors.is_empty() && matches!(changes[..], [Change::Listen { .. }]));
        let bound = sockets.addresses();
        assert!(sockets.follow(&snapshot(&[("a", any)])).0.is_empty());
        assert_eq!(sockets.addresses(), bound);
        let (changes, _) = sockets.follow(&snapshot(&[]));
        assert!(matches!(changes[..], [Change::Unlisten { .. }]));
    }

    #[test]
    fn connections_that_stay_on_the_machine_are_not_paced() {
        let named = |socket: SockRef<'_>| {
            let name = String::from_utf8(socket.tcp_congestion().unwrap()).unwrap();
            name.trim_end_matches('\0').to_owned()
        };
        let machine = named(SockRef::from(&Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()));
        let control = |address: &str, direction, original| {
            let mut config = listener("a", address.parse().unwrap(), direction);
            config.capture.original = original;
            let mut resources = Resources::default();
            resources.listeners.insert("a".into(), Arc::new(config));
            let mut sockets = Sockets::default();
            sockets.follow(&Snapshot::link(1, &resources).0);
            let bound = sockets.bound.into_values().next().unwrap();
            named(SockRef::from(&bound.socket))
        };
        let not_paced = if machine.starts_with("bbr") { "reno".to_owned() } else { machine.clone() };
        let (asked, unasked) = (OriginalDestination::Asked, OriginalDestination::Unasked);
        for (address, direction, original, is_local) in [
            ("127.0.0.1:0", Direction::Unspecified, unasked, true),
            ("127.0.0.2:0", Direction::Inbound, asked, true),
            ("0.0.0.0:0", Direction::Outbound, asked, true),
            ("0.0.0.0:0", Direction::Outbound, unasked, false),
            ("0.0.0.0:0", Direction::Inbound, asked, false),
        ] {
            let expected = if is_local { &not_paced } else { &machine };
            assert_eq!(&control(address, direction, original), expected, "{address} {direction:?}");
        }
        // Not bound: a machine may be without IPv6.
        let sixth = "[::1]:0".parse().unwrap();
        assert!(listener("a", sixth, Direction::Inbound).is_local(sixth));
    }

    #[test]
    fn a_port_in_use_is_named_with_its_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let (_, errors) = Sockets::default().follow(&snapshot(&[("front", address)]));
        let text = errors[0].to_string();
        assert!(
            text.contains("\"front\"") && text.contains(&address.to_string()) && text.contains("another process"),
            "{text}"
        );
    }
}
