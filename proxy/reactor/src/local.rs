//! **Purpose.** Addresses of this machine, and connections that do not leave it, which are not to be paced.
//!
//! **Shape.** Where the machine's congestion control is BBR, the kernel spreads what a connection sends over time, by a timer
//! for each. A sidecar and its application have no link between them to be spared: their bytes only wait, and each timer costs.
//! So sockets whose other end is on this machine are given a control that does not pace. Where the machine's does not, nothing
//! is set.
//!
//! **Limits.** Whether an address is this machine's is asked of the kernel by binding a UDP socket to it, which sends nothing;
//! with the sysctl `ip_nonlocal_bind` every address is. The machine's control is looked at once a process.
//!
//! **Source.** tcp(7), TCP_CONGESTION; `tcp_bbr.c` of Linux, which asks for pacing as a connection begins. Measured:
//! `docs/decisions/0016-local-connections-unpaced.md`.
//!
//! **Tests.** At the foot; from end to end `tests/tests/veth.rs`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::OnceLock;

use socket2::{SockAddr, SockRef};

/// In every kernel, and whoever may make a socket may choose it.
const UNPACED: &[u8] = b"reno";

/// True when the address is this machine's. Costs up to three system calls, which do not wait.
pub fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

/// True when both ends of a connection are on this machine. Of its own addresses only: less than [`is_local`] knows, and
/// cheaper. True of one that has no other end any more.
pub(crate) fn stays_here(socket: &SockRef<'_>) -> bool {
    let ip = |address: SockAddr| address.as_socket().map(|address| address.ip().to_canonical());
    match (socket.peer_addr().map(ip), socket.local_addr().map(ip)) {
        (Ok(Some(peer)), Ok(Some(here))) => peer == here || peer.is_loopback(),
        _ => true,
    }
}

/// Keeps what a socket sends from being spread over time, and what a listener's connections send. For sockets that are not
/// connected yet and whose other end is on this machine. Best effort: it costs speed where it cannot be had.
pub fn unpace(socket: SockRef<'_>) {
    if does_machine_pace(&socket) {
        let _ = socket.set_tcp_congestion(UNPACED);
    }
}

/// As [`unpace`], of a socket that is about to connect to `peer`, if that is on this machine.
pub(crate) fn unpace_toward(socket: SockRef<'_>, peer: IpAddr) {
    if does_machine_pace(&socket) && is_local(peer) {
        unpace(socket);
    }
}

/// Whether new sockets of this process pace; a new one is given to be asked the first time.
fn does_machine_pace(socket: &SockRef<'_>) -> bool {
    static PACES: OnceLock<bool> = OnceLock::new();
    *PACES.get_or_init(|| socket.tcp_congestion().is_ok_and(|name| paces(&name)))
}

/// True for the congestion controls that pace: BBR in all its versions. The name may end in NULs.
fn paces(name: &[u8]) -> bool {
    name.starts_with(b"bbr")
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    fn control(socket: &Socket) -> Vec<u8> {
        socket.tcp_congestion().unwrap()
    }

    #[test]
    fn bbr_paces_and_what_we_set_does_not() {
        assert!(paces(b"bbr\0\0\0\0") && paces(b"bbr3"));
        assert!(!paces(b"cubic\0") && !paces(UNPACED));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_tcp_congestion(UNPACED).unwrap();
        assert!(control(&socket).starts_with(UNPACED));
    }

    #[test]
    fn only_what_stays_here_is_taken_from_the_machines_control() {
        let fresh = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let machine = control(&fresh());
        let (here, elsewhere) = (fresh(), fresh());
        unpace_toward(SockRef::from(&here), [127, 0, 0, 7].into());
        unpace_toward(SockRef::from(&elsewhere), [192, 0, 2, 1].into());
        assert_eq!(control(&elsewhere), machine);
        assert!(!paces(&control(&here)));
        assert!(paces(&machine) || control(&here) == machine, "no need, no change");
    }

    #[test]
    fn an_address_is_local_or_not() {
        assert!(is_local([127, 0, 0, 1].into()) && is_local("::1".parse().unwrap()) && is_local([0, 0, 0, 0].into()));
        assert!(!is_local([192, 0, 2, 1].into()));
    }
}
