//! Purpose: a port that is known before anybody listens on it, for what cannot choose one by itself.
//!
//! Shape: a [`HeldPort`] is bound and never listens: the kernel gives its port to nobody who asks for any, and connects to
//! it are refused. Who binds it with SO_REUSEADDR, as servers do, may listen on it.
//!
//! Limits: a proxy that was killed while it listened there lets go of it some milliseconds after its end; the next one waits.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// A port kept free for a test.
#[derive(Debug)]
pub struct HeldPort {
    port: u16,
    _socket: Socket,
}

impl HeldPort {
    /// A free port at all addresses of IPv4.
    ///
    /// # Panics
    /// When there is none.
    pub fn take() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket can be had");
        socket.set_reuse_address(true).expect("a fresh socket takes the flag");
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).expect("a port is free");
        let address = socket.local_addr().expect("a bound socket has an address").as_socket();
        Self { port: address.expect("it is of IPv4").port(), _socket: socket }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.port
    }

    /// It at an address.
    pub fn at(&self, ip: impl Into<IpAddr>) -> SocketAddr {
        SocketAddr::new(ip.into(), self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn it_refuses_until_somebody_listens() {
        let held = HeldPort::take();
        let address = held.at([127, 0, 0, 1]);
        assert!(TcpStream::connect(address).is_err());
        // The standard library sets SO_REUSEADDR.
        let _listening = TcpListener::bind(address).unwrap();
        assert!(TcpStream::connect(address).is_ok());
    }
}
