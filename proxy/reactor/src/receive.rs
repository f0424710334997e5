//! **Purpose.** One receive by a system call of its own, into blocks of the pool.
//!
//! **Shape.** The way of the epoll driver; the ring's too for what follows a full block, where one call fills what would
//! else be a receive and a completion for each block.

use std::rc::Rc;

use crate::buffers::{Block, Buf, Pool};
use crate::calls;
use crate::meters::Meters;
use crate::socket::{AHEAD_BLOCKS, End, RecvSide, Socket};

/// What a receive found.
pub(crate) enum Received {
    /// Bytes are in the queue.
    Bytes,
    /// The end is set.
    End,
    /// The pool has no block.
    NoBlock,
    /// The kernel has nothing yet.
    Nothing,
}

/// Receives what is there: a block (a head, after bulk), or after a full receive as much as [`AHEAD_BLOCKS`] hold.
pub(crate) fn receive_now(socket: &Socket, recv: &mut RecvSide, pool: &Pool, meters: &Meters) -> Received {
    // A full read foretells another: the next one takes several blocks in one call.
    let is_bulk = recv.is_bulk;
    let block_bytes = pool.block_bytes();
    let (wanted, most) = if is_bulk { (AHEAD_BLOCKS, block_bytes) } else { (1, recv.wanted(block_bytes)) };
    let mut blocks: [Option<Rc<Block>>; AHEAD_BLOCKS] = [const { None }; AHEAD_BLOCKS];
    for place in &mut blocks[..wanted] {
        *place = pool.take();
    }
    if blocks[0].is_none() {
        meters.buffer_exhausted.add(1);
        return Received::NoBlock;
    }
    meters.syscalls.add(1);
    let received = recv_into(socket, &blocks, most);
    let mut left = *received.as_ref().unwrap_or(&0);
    for block in blocks.into_iter().flatten() {
        if left == 0 {
            pool.give(block);
            continue;
        }
        let filled = left.min(most);
        left -= filled;
        recv.is_bulk = filled == most;
        recv.queue.push_back(Buf::pooled(block, filled));
    }
    match received {
        Ok(0) => recv.end = Some(End::Fin),
        Ok(count) => {
            recv.was_bulk = if is_bulk { count >= block_bytes } else { recv.was_bulk && recv.is_bulk };
            meters.recv_bytes.add(count as u64);
            return Received::Bytes;
        }
        Err(libc::EAGAIN) => return Received::Nothing,
        Err(errno) => recv.end = Some(End::Errno(errno)),
    }
    Received::End
}

/// Fills blocks in order, each with `most` bytes, which it has room for: bytes, 0 for FIN, or the error.
fn recv_into(socket: &Socket, blocks: &[Option<Rc<Block>>], most: usize) -> Result<usize, i32> {
    let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; AHEAD_BLOCKS];
    let mut count = 0;
    for (slice, block) in slices.iter_mut().zip(blocks.iter().flatten()) {
        *slice = libc::iovec { iov_base: block.start().cast(), iov_len: most };
        count += 1;
    }
    loop {
        // SAFETY: the slices are blocks, just taken from the pool: allocated through the call and seen by nobody else.
        match unsafe { calls::recv(socket.raw(), &slices[..count]) } {
            Err(libc::EINTR) => {}
            received => return received,
        }
    }
}
