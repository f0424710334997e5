//! What the scenarios share: a runtime per test, loopback sockets, a deadline on everything.

pub(crate) mod basic;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use outrigger_reactor::{DriverKind, Options, Runtime, TcpListener, TcpStream, timeout};

/// No scenario takes a tenth of this; one that hangs fails with its name.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn run<F: Future>(driver: DriverKind, scenario: F) -> F::Output {
    run_with(driver, &Options::default(), scenario)
}

pub(crate) fn run_with<F: Future>(driver: DriverKind, options: &Options, scenario: F) -> F::Output {
    let mut runtime = Runtime::new(driver, options).expect("the driver starts on this machine");
    runtime.block_on(timeout(DEADLINE, scenario)).expect("the scenario ends before its deadline")
}

pub(crate) fn listen() -> (TcpListener, SocketAddr) {
    let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listener = TcpListener::from_std(bound).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A connected pair: who connected, who accepted.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listen();
    let connecting = outrigger_reactor::spawn(TcpStream::connect(address));
    let (server, _) = listener.accept().await.unwrap();
    (connecting.await.unwrap(), server)
}

/// Receives exactly `count` bytes.
pub(crate) async fn recv_exact(stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let mut bytes = stream.recv().await.unwrap();
        assert!(!bytes.is_empty(), "FIN after {} of {count} bytes", all.len());
        if bytes.len() > count - all.len() {
            let front = bytes.split_to(count - all.len());
            stream.unread(bytes);
            bytes = front;
        }
        all.extend_from_slice(&bytes);
    }
    all
}
