//! Connections through the rules.
//!
//! **Shape.** Before the proxy runs, this listens on its ports in its place: a connection made as an application would make
//! it, to an address outside the pod and to the pod's own, must come to the outbound port with its original destination; so
//! must a heartbeat. Where the proxy runs already, it answers the heartbeat itself.
//!
//! The pod's own address comes first: where that is not captured, the connection is refused at once and nothing has left
//! the pod. Addresses outside are those kept for documentation, unless the settings capture only others.
//!
//! **Limits.** One deadline for all of it.

use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::process;
use super::report::{Check, Report};
use crate::rules::{CaptureSettings, Choice, Decision, Family, Leaving, Ruleset};

/// What a running proxy answers a heartbeat with, before its process id.
const HEARTBEAT: &str = "outrigger-heartbeat ";

/// From a connection being made to its coming out of the listener beside it.
const ACCEPT_MAX: Duration = Duration::from_secs(2);

/// Between looks at an address that the kernel is still finding out to be unique.
const PAUSE: Duration = Duration::from_millis(50);

/// Addresses kept for documentation (RFC 5737, RFC 3849): nobody answers there.
const OUTSIDE: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Tries everything of every family.
pub(super) fn probe(settings: &CaptureSettings, ruleset: &Ruleset, deadline: Instant, report: &mut Report) {
    for family in ruleset.families() {
        let port = settings.ports.outbound;
        let listener = match listen(SocketAddr::new(loopback(*family), port)) {
            Ok(listener) => listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                report.check(running(settings, *family, deadline));
                continue;
            }
            Err(error) => {
                report.check(Check::failed(
                    format!("port {port} {}", family.as_str()),
                    format!("cannot listen: {error}"),
                ));
                continue;
            }
        };
        report.check(inbound_port(settings, *family));
        let heartbeat = SocketAddr::new(loopback(*family), settings.ports.heartbeat);
        let came = captured(&listener, heartbeat, deadline);
        report.check(told(&format!("heartbeat {}", family.as_str()), heartbeat, port, came));
        outbound(&listener, settings, ruleset, (*family, deadline), report);
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket)
}

/// The proxy will want the port, and nobody else may have it.
fn inbound_port(settings: &CaptureSettings, family: Family) -> Check {
    let port = settings.ports.inbound;
    let name = format!("port {port} {}", family.as_str());
    match listen(SocketAddr::new(unspecified(family), port)) {
        Ok(_) => Check::passed(name, "free for the proxy"),
        Err(error) => Check::failed(name, format!("the proxy cannot have it: {error}")),
    }
}

/// A proxy that runs already answers.
fn running(settings: &CaptureSettings, family: Family, deadline: Instant) -> Check {
    let name = format!("heartbeat {}", family.as_str());
    let to = SocketAddr::new(loopback(family), settings.ports.heartbeat);
    match ask(to, deadline) {
        Ok(line) => match line.strip_prefix(HEARTBEAT) {
            Some(pid) => Check::passed(name, format!("{to} is answered by the proxy, process {}", pid.trim())),
            None => Check::failed(
                name,
                format!("port {} is taken by something that is not the proxy", settings.ports.outbound),
            ),
        },
        Err(error) => {
            Check::failed(name, format!("{to} is not answered by what listens on {}: {error}", settings.ports.outbound))
        }
    }
}

fn ask(to: SocketAddr, deadline: Instant) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&to, left(deadline))?;
    stream.set_read_timeout(Some(left(deadline)))?;
    let mut line = String::new();
    BufReader::new(io::Read::take(stream, 256)).read_line(&mut line)?;
    Ok(line)
}

/// Never zero, which would be no timeout at all.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// What became of a connection.
enum Came {
    /// It came to the listener, and the kernel knows where it wanted to go.
    Here,
    /// It came to the listener, with another destination, or none that the kernel tells.
    Unknown(String),
    /// It went elsewhere, or nowhere.
    Elsewhere(String),
}

/// Makes a connection and looks whether it comes out of the listener.
fn captured(listener: &Socket, to: SocketAddr, deadline: Instant) -> Came {
    let stream = match connect(to, deadline) {
        Ok(stream) => stream,
        Err(error) => return Came::Elsewhere(error.to_string()),
    };
    let Ok(own) = stream.local_addr() else { return Came::Elsewhere("it was lost".to_owned()) };
    let until = deadline.min(Instant::now() + ACCEPT_MAX);
    while Instant::now() < until {
        if listener.set_read_timeout(Some(left(until))).is_err() {
            break;
        }
        let Ok((accepted, from)) = listener.accept() else { continue };
        let came = original(&accepted, to);
        // Others may have been waiting there: ours is the one from our own port. Connections from one port to two
        // destinations are alike once both are brought here, so the kernel gives the second another port.
        let is_ours =
            from.as_socket().is_some_and(|from| from == own || (from.ip() == own.ip() && matches!(came, Came::Here)));
        if is_ours {
            // Who ends first keeps the connection's port for a minute: that must not be the proxy's.
            drop(stream);
            return came;
        }
    }
    Came::Elsewhere("somebody else answered it".to_owned())
}

fn original(accepted: &Socket, to: SocketAddr) -> Came {
    let socket = SockRef::from(accepted);
    let told = if to.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match told.map(|address| address.as_socket()) {
        Ok(Some(original)) if original == to => Came::Here,
        Ok(other) => Came::Unknown(format!("the kernel says that it went to {other:?}")),
        Err(error) => Came::Unknown(format!("the kernel does not tell where it went: {error}")),
    }
}

/// An address of IPv6 that is new takes a second to be usable.
fn connect(to: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect_timeout(&to, left(deadline)) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

fn told(name: &str, to: SocketAddr, port: u16, came: Came) -> Check {
    match came {
        Came::Here => Check::passed(name, format!("a connection to {to} came to port {port}")),
        Came::Unknown(how) => Check::failed(name, format!("a connection to {to} came to port {port}, but {how}")),
        Came::Elsewhere(how) => Check::failed(name, format!("a connection to {to} did not come to port {port}: {how}")),
    }
}

/// To the pod's own address, then to one outside.
fn outbound(
    listener: &Socket,
    settings: &CaptureSettings,
    ruleset: &Ruleset,
    (family, deadline): (Family, Instant),
    report: &mut Report,
) {
    let name = format!("outbound {}", family.as_str());
    let Some(owner) = process::owner() else {
        return report.check(Check::failed(name, "/proc/self/status does not tell whose process this is"));
    };
    let port = settings.ports.outbound;
    let mut tried = false;
    let own = own_address(family).into_iter().collect::<Vec<_>>();
    for addresses in [own, outside(settings, family)] {
        let mut all = addresses.iter().flat_map(|address| ports(settings).into_iter().map(|port| (*address, port)));
        let is_captured = |to: &SocketAddr| {
            let leaving = Leaving { destination: *to, owner };
            matches!(ruleset.decide_leaving(&leaving), Decision::Captured(_))
        };
        let Some(to) = all.find_map(|to| Some(SocketAddr::from(to)).filter(is_captured)) else { continue };
        tried = true;
        let came = captured(listener, to, deadline);
        let is_here = matches!(came, Came::Here);
        report.check(told(&name, to, port, came));
        if !is_here {
            // What is not captured here would leave the pod there.
            return;
        }
    }
    if !tried {
        let why = format!(
            "no address is routed that the settings capture for user {} and group {}: the heartbeat is all there is to try",
            owner.uid, owner.gid
        );
        report.check(Check::skipped(name, why));
    }
}

/// Of the pod: the one that it would speak from, else one that an interface has.
fn own_address(family: Family) -> Option<IpAddr> {
    let spoken = OUTSIDE.iter().filter(|address| Family::of(**address) == family).find_map(|to| source_towards(*to));
    spoken.or_else(|| if family == Family::V6 { process::own_ipv6().map(IpAddr::V6) } else { None })
}

/// No packet is sent: a datagram socket that is connected has only been routed.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(unspecified(Family::of(to)), 0)).ok()?;
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    socket.local_addr().ok().map(|own| own.ip()).filter(|own| !own.is_loopback())
}

/// Routed addresses outside the pod, in networks that may be captured.
fn outside(settings: &CaptureSettings, family: Family) -> Vec<IpAddr> {
    let mut addresses = OUTSIDE.to_vec();
    if let Choice::Only(networks) = &settings.outbound_networks {
        addresses.extend(networks.prefixes().iter().map(|network| network.address()));
    }
    addresses.retain(|address| Family::of(*address) == family && source_towards(*address).is_some());
    addresses
}

/// Ports that may be captured.
fn ports(settings: &CaptureSettings) -> Vec<u16> {
    let mut ports = vec![443, 80, 8080];
    if let Choice::Only(list) = &settings.outbound_ports {
        ports.extend(list.ranges().iter().map(|range| range.first));
    }
    ports
}
