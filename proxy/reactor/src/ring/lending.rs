//! **Purpose.** Sends that the kernel reads in place (SEND_ZC) instead of copying them first, where that pays.
//!
//! **Shape.** A completion tells how much was sent; the bytes stay lent until a notification gives them back. Both carry
//! the number of the loan. The first loan of a connection is a trial: until the kernel has told what became of it, it is
//! lent nothing more.
//! ```text
//!   peer elsewhere: untried ──large send──▶ trying ──read in place──▶ on
//!   peer on this machine ─▶ off ◀────────────┴──copied or refused─────┘
//! ```
//!
//! **Limits.** [`LEND_FROM`], [`LOANS`]. Nothing is lent while blocks are scarce: a peer that stops reading keeps what
//! it was lent.
//!
//! **Errors.** What the kernel refuses to read in place (locked-memory limit, sockets without support) is sent again, as
//! a copy.
//!
//! **Source.** io_uring_enter(2) on IORING_OP_SEND_ZC; the kernel's Documentation/networking/msg_zerocopy.rst.

use std::io;
use std::mem;
use std::time::{Duration, Instant};

use super::{Gather, Ring};
use crate::local::stays_here;
use crate::meters::Meters;
use crate::socket::Socket;

/// Bytes of one send from which on copying them costs more than lending and taking back.
pub(super) const LEND_FROM: usize = 16 * 1024;
/// Most loans of one connection at once.
const LOANS: usize = 8;
/// How long the end of a ring waits for loans. Peers that take longer have their bytes left to the kernel for good.
const LINGER: Duration = Duration::from_millis(500);
/// Asks the kernel to tell in the notification whether it copied.
pub(super) const REPORT_USAGE: u16 = 1 << 3;
/// The notification's result when it did.
const COPIED: i32 = i32::MIN;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Off,
    On,
    Trying,
    Untried,
}

/// What one connection has lent to the kernel, and whether it may lend more.
pub(super) struct Lending {
    standing: Standing,
    /// Numbers of loans, from 1, a bit each: those of a send under way too.
    numbers: u16,
    /// What is lent beyond its send's completion.
    lent: Vec<(u8, Box<Gather>)>,
}

impl Lending {
    /// For a peer that is known to be elsewhere.
    pub(super) fn untried() -> Self {
        Self { standing: Standing::Untried, numbers: 0, lent: Vec::new() }
    }

    /// For the peer of `socket`: bytes that stay on this machine are copied in any case.
    pub(super) fn of(socket: &Socket, meters: &Meters) -> Self {
        meters.syscalls.add(2);
        // A socket that is closed sends nothing that would matter.
        let is_here = socket.with_fd(|fd| Ok(stays_here(&fd))).unwrap_or(true);
        let standing = if is_here { Standing::Off } else { Standing::Untried };
        Self { standing, ..Self::untried() }
    }

    /// The number of a new loan, unless the bytes had better be copied.
    pub(super) fn begin(&mut self) -> Option<u8> {
        match self.standing {
            Standing::Off | Standing::Trying => return None,
            Standing::On => {}
            Standing::Untried => self.standing = Standing::Trying,
        }
        let number = (1..=LOANS as u8).find(|number| self.numbers & 1 << number == 0)?;
        self.numbers |= 1 << number;
        Some(number)
    }

    /// The send is over, and the kernel goes on reading its bytes.
    pub(super) fn keep(&mut self, number: u8, gather: Box<Gather>) {
        self.lent.push((number, gather));
    }

    /// The kernel reads the loan's bytes no more.
    pub(super) fn end(&mut self, number: u8) {
        self.numbers &= !(1 << number);
        if let Some(at) = self.lent.iter().position(|(kept, _)| *kept == number) {
            self.lent.swap_remove(at);
        }
        if self.lent.is_empty() {
            self.lent = Vec::new();
        }
    }

    /// Lends nothing any more.
    pub(super) fn stop(&mut self) {
        self.standing = Standing::Off;
    }

    /// The kernel told what it did with a loan; true when it copied.
    fn judge(&mut self, result: i32) -> bool {
        let is_copied = result == COPIED;
        match self.standing {
            Standing::On | Standing::Trying if is_copied => self.stop(),
            Standing::Trying => self.standing = Standing::On,
            Standing::Off | Standing::On | Standing::Untried => {}
        }
        is_copied
    }

    pub(super) fn is_lent(&self) -> bool {
        self.numbers != 0
    }

    /// Leaves what is lent to the kernel for good.
    fn forget(&mut self) {
        mem::forget(mem::take(&mut self.lent));
    }
}

impl Ring {
    /// A send is over. If it was a loan, its bytes are kept while the kernel reads them; gives its result, or EAGAIN when
    /// it is to be tried as a copy.
    pub(super) fn settle_loan(&mut self, index: u32, result: i32, is_read_on: bool) -> i32 {
        let slot = &mut self.slots[index as usize];
        let number = mem::take(&mut slot.loan);
        let Some(lending) = slot.lending.as_mut().filter(|_| number != 0) else { return result };
        match slot.gather.take_if(|_| is_read_on) {
            Some(gather) => lending.keep(number, gather),
            None => lending.end(number),
        }
        if result >= 0 {
            return result;
        }
        lending.stop();
        // Kernels before 6.2 cannot tell whether they copied.
        self.may_lend &= result != -libc::EINVAL;
        if is_refusal(-result) { -libc::EAGAIN } else { result }
    }

    /// A notification came.
    pub(super) fn given_back(&mut self, index: u32, number: u8, result: i32) {
        let slot = &mut self.slots[index as usize];
        let Some(lending) = &mut slot.lending else { return };
        if lending.judge(result) {
            self.meters.zc_copied.add(1);
        }
        lending.end(number);
        self.retire(index);
    }

    /// The end of the ring: no operation is left, and bytes lent may still be on their way to their peers.
    pub(super) fn call_in_loans(&mut self) -> io::Result<()> {
        let end = Instant::now() + LINGER;
        let mut woken = Vec::new();
        while self.slots.iter().any(|slot| slot.lending.as_ref().is_some_and(|lending| lending.is_lent())) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.enter(Some(left))?;
            self.complete(&mut woken);
        }
        // The kernel holds the pages themselves; it is their bytes that must not change.
        for lending in self.slots.iter_mut().filter_map(|slot| slot.lending.as_mut()) {
            lending.forget();
        }
        Ok(())
    }
}

/// True for errors of a lending send that the same send as a copy need not have.
fn is_refusal(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::ENOBUFS | libc::ENOMEM | libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{self, Ipv4Addr};
    use std::rc::Rc;

    use super::*;
    use crate::driver::Driver;
    use crate::{Buf, DriverKind, Options, Runtime, TcpStream, counters, executor, sleep, spawn, yield_now};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn byte(at: usize) -> u8 {
        (at ^ (at >> 8) ^ (at >> 16)) as u8
    }

    fn bytes(from: usize, count: usize) -> Vec<u8> {
        (from..from + count).map(byte).collect()
    }

    fn runtime() -> Runtime {
        Runtime::new(DriverKind::Uring, &Options::default()).unwrap()
    }

    fn with_ring<T>(act: impl FnOnce(&mut Ring) -> T) -> T {
        let act = |driver: &mut Driver| match driver {
            Driver::Uring(ring) => act(ring),
            Driver::Epoll(_) => unreachable!("the ring was asked for"),
        };
        executor::inside().with_driver(act).unwrap()
    }

    /// A stream whose peer passes for one elsewhere.
    fn sender(stream: net::TcpStream) -> TcpStream {
        let stream = TcpStream::from_std(stream).unwrap();
        let index = stream.socket().token.get() as usize;
        with_ring(|ring| ring.slots[index].lending = Some(Box::new(Lending::untried())));
        stream
    }

    /// Both ends of a connection. The first takes twice what the other's window does, whatever the machine's limits.
    fn pair() -> (net::TcpStream, net::TcpStream) {
        let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
        let connecting = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket2::SockRef::from(&connecting).set_send_buffer_size(208 << 10).unwrap();
        let accepted = listener.accept().unwrap().0;
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        (connecting, accepted)
    }

    fn stand(stream: &TcpStream, standing: Standing) {
        let index = stream.socket().token.get() as usize;
        with_ring(|ring| ring.slots[index].lending.as_mut().unwrap().standing = standing);
    }

    fn lent_slots() -> usize {
        with_ring(|ring| ring.slots.iter().filter(|slot| slot.lending.as_ref().is_some_and(|it| it.is_lent())).count())
    }

    async fn settled(is_so: impl Fn() -> bool) {
        let waiting = async {
            while !is_so() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        crate::timeout(PATIENCE, waiting).await.expect("it comes to be so in time");
    }

    fn assert_received(peer: &mut net::TcpStream, count: usize) {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        assert!(received == bytes(0, count), "{} bytes of {count}, or others", received.len());
    }

    #[test]
    fn a_kernel_that_copies_is_lent_nothing_more() {
        const COUNT: usize = 8 << 20;
        runtime().block_on(async {
            let (connected, mut peer) = pair();
            let reading = std::thread::spawn(move || assert_received(&mut peer, COUNT));
            let stream = sender(connected);
            let (mut at, mut seed) = (0, 7_usize);
            while at < COUNT {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let count = (1 + (seed >> 33) % 100_000).min(COUNT - at);
                stream.queue(Buf::from(bytes(at, count)));
                at += count;
                if seed >> 40 & 1 == 0 {
                    stream.flush().await.unwrap();
                }
            }
            stream.flush().await.unwrap();
            drop(stream);
            settled(|| counters().sockets_open == 0 && lent_slots() == 0).await;
            reading.join().unwrap();
            assert_eq!((counters().zc_sends, counters().zc_copied), (1, 1), "loopback copies");
        });
    }

    #[test]
    fn nothing_is_lent_to_a_peer_on_this_machine_nor_in_small_sends() {
        runtime().block_on(async {
            let (connected, _peer) = pair();
            let stream = TcpStream::from_std(connected).unwrap();
            stream.queue(Buf::from(bytes(0, LEND_FROM)));
            stream.flush().await.unwrap();
            let (connected, _peer) = pair();
            let stream = sender(connected);
            stream.queue(Buf::from(bytes(0, LEND_FROM - 1)));
            stream.flush().await.unwrap();
            assert_eq!(counters().zc_sends, 0);
            stream.queue(Buf::from(bytes(0, LEND_FROM)));
            stream.flush().await.unwrap();
            assert_eq!(counters().zc_sends, 1);
        });
    }

    /// The peer's window is closed, so what was lent lies in the socket's queue until the peer reads.
    #[test]
    fn what_is_lent_outlives_its_stream_until_the_peer_has_it() {
        const COUNT: usize = 256 << 10;
        runtime().block_on(async {
            let (connected, mut peer) = pair();
            let stream = sender(connected);
            let kept = Rc::new(bytes(0, COUNT));
            let held = Rc::downgrade(&kept);
            stream.queue(Buf::built(kept));
            stream.flush().await.unwrap();
            drop(stream);
            settled(|| counters().sockets_open == 0).await;
            assert_eq!((lent_slots(), held.strong_count()), (1, 1), "the kernel still reads it");
            // The slot is not given to another connection meanwhile.
            let (other, _peer) = pair();
            assert_ne!(TcpStream::from_std(other).unwrap().socket().token.get(), 0);
            let reading = std::thread::spawn(move || assert_received(&mut peer, COUNT));
            settled(|| lent_slots() == 0).await;
            assert_eq!(held.strong_count(), 0, "given back");
            reading.join().unwrap();
        });
    }

    /// As above, for a kernel that does not copy.
    #[test]
    fn many_loans_are_out_at_once_and_no_more_than_that() {
        const BEFORE: usize = 160 << 10;
        const SENDS: usize = LOANS + 2;
        runtime().block_on(async {
            let (connected, mut peer) = pair();
            let stream = sender(connected);
            stand(&stream, Standing::Off);
            stream.queue(Buf::from(bytes(0, BEFORE)));
            stream.flush().await.unwrap();
            stand(&stream, Standing::On);
            let mut held = Vec::new();
            for send in 0..SENDS {
                let kept = Rc::new(bytes(BEFORE + send * LEND_FROM, LEND_FROM));
                held.push(Rc::downgrade(&kept));
                stream.queue(Buf::built(kept));
                stream.flush().await.unwrap();
            }
            let still = || held.iter().map(std::rc::Weak::strong_count).sum::<usize>();
            assert_eq!((counters().zc_sends, still()), (LOANS as u64, LOANS));
            let reading = std::thread::spawn(move || assert_received(&mut peer, BEFORE + SENDS * LEND_FROM));
            stream.shutdown_write().unwrap();
            settled(|| lent_slots() == 0).await;
            assert_eq!((counters().zc_copied, still()), (LOANS as u64, 0));
            reading.join().unwrap();
        });
    }

    #[test]
    fn what_is_lent_outlives_its_runtime() {
        const COUNT: usize = 256 << 10;
        let mut runtime = runtime();
        let (connected, mut peer) = pair();
        let kept = Rc::new(bytes(0, COUNT));
        let held = Rc::downgrade(&kept);
        runtime.block_on(async {
            let stream = sender(connected);
            stream.queue(Buf::built(kept));
            stream.flush().await.unwrap();
        });
        drop(runtime);
        assert_eq!(held.strong_count(), 1, "left to the kernel");
        assert_received(&mut peer, COUNT);
    }

    #[test]
    fn streams_dropped_while_they_lend_cross_no_bytes() {
        const COUNT: usize = 512 << 10;
        runtime().block_on(async {
            let mut readers = Vec::new();
            for turns in 0..40 {
                let (connected, mut peer) = pair();
                readers.push(std::thread::spawn(move || {
                    let mut received = Vec::new();
                    // Dropped in the middle of a send it may be cut short; no byte of another's may come.
                    let _ = peer.read_to_end(&mut received);
                    assert!(received == bytes(0, received.len()), "{turns} turns: bytes of another");
                }));
                let stream = sender(connected);
                for at in (0..COUNT).step_by(64 << 10) {
                    stream.queue(Buf::from(bytes(at, 64 << 10)));
                }
                let sending = spawn(async move { stream.flush().await });
                for _ in 0..turns {
                    yield_now().await;
                }
                drop(sending);
            }
            settled(|| counters().sockets_open == 0 && lent_slots() == 0).await;
            for reader in readers {
                reader.join().unwrap();
            }
        });
    }

    #[test]
    fn loans_are_few_and_their_numbers_are_used_again() {
        let mut lending = Lending::untried();
        assert_eq!((lending.begin(), lending.begin()), (Some(1), None), "one on trial");
        assert!(!lending.judge(0));
        lending.end(1);
        let numbers: Vec<_> = (0..=LOANS).map(|_| lending.begin()).collect();
        assert_eq!(numbers[..LOANS], (1..=LOANS as u8).map(Some).collect::<Vec<_>>());
        assert_eq!(numbers[LOANS], None);
        lending.end(3);
        assert_eq!(lending.begin(), Some(3));
        assert!(lending.judge(COPIED) && lending.is_lent());
        lending.end(5);
        assert_eq!(lending.begin(), None, "off for good");
    }
}
