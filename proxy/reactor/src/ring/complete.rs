//! **Purpose.** What each completion means for its socket.
//!
//! **Shape.** One function per operation. A completion without IORING_CQE_F_MORE is the operation's last: its bit is
//! cleared first, so each function sees whether its operation still runs.

use std::mem;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Waker;

use io_uring::cqueue;

use super::{GATHERS_KEPT, OP_BITS, Op, Ring, WAKE};
use crate::socket::{AHEAD_BLOCKS, Arm, End, Socket};

impl Ring {
    pub(super) fn complete(&mut self, woken: &mut Vec<Waker>) {
        // Before the completions are looked at: one that is kept beside a full queue may be a quiet send's failure.
        let queue = self.ring.submission();
        let is_over = queue.is_empty() && !queue.cq_overflow();
        drop(queue);
        let is_over = is_over && self.backlog.is_empty();
        let mut batch = mem::take(&mut self.batch);
        batch.extend(self.ring.completion());
        self.meters.completions.add(batch.len() as u64);
        for completion in batch.drain(..) {
            self.complete_one(&completion, woken);
        }
        self.batch = batch;
        if is_over {
            self.settle_quiet(woken);
        }
    }

    /// The submission is over: quiet sends that did not fail have sent everything.
    fn settle_quiet(&mut self, woken: &mut Vec<Waker>) {
        let submitted = mem::take(&mut self.quiet);
        for &index in &submitted {
            let slot = &mut self.slots[index as usize];
            let Some(socket) = slot.socket.clone() else { continue };
            let send = socket.send.borrow();
            let sent = send.in_flight;
            if !send.is_quiet || slot.in_flight & Op::Send.bit() == 0 {
                continue;
            }
            drop(send);
            slot.in_flight &= !Op::Send.bit();
            let is_closing = slot.is_closing;
            self.sent(index, &socket, sent as i32, woken);
            if is_closing {
                self.retire(index);
            }
        }
        // Sends that these let start belong to the next submission.
        let started = mem::replace(&mut self.quiet, submitted);
        self.quiet.clear();
        self.quiet.extend(started);
    }

    fn complete_one(&mut self, completion: &cqueue::Entry, woken: &mut Vec<Waker>) {
        let user_data = completion.user_data();
        let is_last = !cqueue::more(completion.flags());
        if user_data >= WAKE {
            if is_last {
                self.watch(user_data as u32 as RawFd);
            }
            return;
        }
        let index = (user_data >> 32) as u32;
        let Some(op) = Op::of(user_data) else { return };
        let slot = &mut self.slots[index as usize];
        debug_assert_eq!(u64::from(slot.generation), user_data >> 8 & 0xff_ffff);
        if cqueue::notif(completion.flags()) {
            self.given_back(index, user_data as u8 >> OP_BITS, completion.result());
            return;
        }
        let Some(socket) = slot.socket.clone() else {
            return;
        };
        if op == Op::Cancel {
            slot.cancels -= 1;
        } else if is_last || op == Op::Send {
            // What follows a send's completion is about its bytes, not about the operation.
            slot.in_flight &= !op.bit();
        }
        let is_closing = slot.is_closing;
        let result = completion.result();
        match op {
            Op::Accept => came(&socket, result, woken),
            Op::Cancel => {}
            Op::Connect => connected(&socket, result, woken),
            Op::Readable => {
                let mut recv = socket.recv.borrow_mut();
                recv.is_readable = true;
                woken.extend(recv.waker.take());
            }
            Op::Writable => {
                let mut send = socket.send.borrow_mut();
                send.is_writable = true;
                woken.extend(send.waker.take());
            }
            Op::Recv => self.received(index, &socket, completion, woken),
            Op::Send => {
                let result = self.settle_loan(index, result, !is_last);
                self.sent(index, &socket, result, woken);
            }
        }
        if is_closing {
            self.retire(index);
        }
    }

    fn received(&mut self, index: u32, socket: &Rc<Socket>, completion: &cqueue::Entry, woken: &mut Vec<Waker>) {
        let result = completion.result();
        let bytes =
            cqueue::buffer_select(completion.flags()).and_then(|id| self.buffers.claim(id, result.max(0) as usize));
        let slot = &self.slots[index as usize];
        let is_armed = slot.in_flight & Op::Recv.bit() != 0;
        if slot.is_closing {
            return;
        }
        let mut recv = socket.recv.borrow_mut();
        if !is_armed {
            recv.arm = Arm::Idle;
            if recv.is_direct {
                woken.extend(recv.waker.take());
            }
        }
        match result {
            1.. => {
                self.meters.recv_bytes.add(result as u64);
                recv.is_bulk = result as usize >= recv.wanted(self.pool.block_bytes());
                recv.was_bulk &= is_armed || recv.is_bulk;
                bytes.into_iter().for_each(|bytes| recv.queue.push_back(bytes));
                woken.extend(recv.waker.take());
            }
            0 => woken.extend(recv.finish(End::Fin)),
            _ => match -result {
                libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
                libc::EINVAL if self.is_capped => self.is_capped = false,
                libc::ENOBUFS => {
                    self.meters.buffer_exhausted.add(1);
                    self.buffers.widen();
                    recv.arm = Arm::Parked;
                    self.starved.push_back(index);
                }
                errno => woken.extend(recv.finish(End::Errno(errno))),
            },
        }
        if recv.wants_more() {
            drop(recv);
            self.arm_recv(index, socket);
        } else if recv.arm == Arm::Armed && recv.queue.len() > AHEAD_BLOCKS {
            recv.arm = Arm::Cancelling;
            drop(recv);
            self.cancel(index, Op::Recv);
        }
    }

    fn sent(&mut self, index: u32, socket: &Rc<Socket>, result: i32, woken: &mut Vec<Waker>) {
        let slot = &mut self.slots[index as usize];
        let is_closing = slot.is_closing;
        if let Some(mut gather) = slot.gather.take() {
            gather.bufs.clear();
            if self.gathers.len() < GATHERS_KEPT {
                self.gathers.push(gather);
            }
        }
        let mut send = socket.send.borrow_mut();
        send.in_flight = 0;
        send.is_quiet = false;
        match -result {
            ..=-1 => {
                self.meters.sent_bytes.add(result as u64);
                send.consume(result as usize);
            }
            libc::EAGAIN | libc::EINTR => {}
            0 => send.fail(libc::EPIPE),
            errno => send.fail(errno),
        }
        if is_closing {
            return;
        }
        if send.committed > 0 {
            drop(send);
            self.send(index, socket, false);
            return;
        }
        woken.extend(send.waker.take());
        drop(send);
        socket.settle_fin();
    }
}

/// A connection came, or the watch failed: whoever accepts looks again.
fn came(socket: &Socket, result: i32, woken: &mut Vec<Waker>) {
    let mut side = socket.accept.borrow_mut();
    side.is_watched = false;
    if result < 0 && result != -libc::ECANCELED {
        side.errno = Some(-result);
    }
    woken.append(&mut side.wakers);
}

fn connected(socket: &Socket, result: i32, woken: &mut Vec<Waker>) {
    socket.is_connecting.set(false);
    let mut send = socket.send.borrow_mut();
    if result < 0 {
        send.fail(-result);
    }
    woken.extend(send.waker.take());
}
