//! What the scenarios share: a runtime per test, loopback sockets, a deadline on everything.

pub(crate) mod basic;
pub(crate) mod cancel;
pub(crate) mod handover;
pub(crate) mod limits;
pub(crate) mod splice;
pub(crate) mod tasks;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use outrigger_reactor::{DriverKind, Options, Runtime, TcpListener, TcpStream, counters, timeout, yield_now};

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
    pair_of(&listener, address).await
}

pub(crate) async fn pair_of(listener: &TcpListener, address: SocketAddr) -> (TcpStream, TcpStream) {
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

/// Waits until `is_so`, letting the driver work meanwhile.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = timeout(DEADLINE / 2, async {
        while !is_so() {
            outrigger_reactor::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "still not so: {what}; {:?}", counters());
}

/// Polls `future` at most `polls` times, letting everything else run between, then drops it.
pub(crate) async fn give_up_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// A small generator whose seed is printed, so that a failure can be run again with OUTRIGGER_SEED.
pub(crate) struct Dice(Cell<u64>);

impl Dice {
    pub(crate) fn new() -> Self {
        let given = std::env::var("OUTRIGGER_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.expect("the clock is past 1970").as_nanos() as u64 | 1
        });
        println!("OUTRIGGER_SEED={seed}");
        Self(Cell::new(seed))
    }

    /// A number below `bound`.
    pub(crate) fn below(&self, bound: usize) -> usize {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % bound
    }
}

/// Byte `at` of a stream that repeats only after 251 × 256 bytes.
pub(crate) fn pattern(at: usize) -> u8 {
    (at % 251) as u8 ^ (at / 251) as u8
}

pub(crate) fn pattern_bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(pattern).collect()
}
