//! Purpose: a byte relay with splice(2): what bodies and opaque bytes cost when nothing is copied to user space.
//!
//! Shape: a table by descriptor, on plain level-triggered epoll. Each message is one wait, one splice from the socket
//! into a pipe, and one from the pipe into the other socket. Pipes are lent from a pool: one that the socket emptied
//! goes back at once, one that it did not stays with that end, and nothing more is read for it meanwhile. An end that
//! closes takes the other with it.
//!
//! Limits: connects to its upstream in the loop, which on loopback does not wait.

use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use outrigger_bench_relay::Route;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Bytes asked of a socket at once, and the size asked for a pipe.
const PIPE_BYTES: usize = 1 << 20;

/// Bytes on their way from one end to the other, and how many.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Only root may have many large ones; the default size serves as well, in smaller pieces.
        let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
        Ok(Self { reader, writer, held: 0 })
    }

    /// Takes what the socket has; false when it has nothing now.
    fn fill(&mut self, from: &TcpStream) -> io::Result<bool> {
        match move_bytes(from, &self.writer, PIPE_BYTES)? {
            Some(0) => Err(ErrorKind::UnexpectedEof.into()),
            Some(moved) => {
                self.held += moved;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Gives what the socket takes now; true when nothing is left.
    fn drain(&mut self, to: &TcpStream) -> io::Result<bool> {
        self.held -= move_bytes(&self.reader, to, self.held)?.unwrap_or(0);
        Ok(self.held == 0)
    }
}

/// None when one of the two would have to wait.
fn move_bytes(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<Option<usize>> {
    match splice(from, None, to, None, length, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
        Ok(moved) => Ok(Some(moved)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// One end of a pair.
struct End {
    stream: TcpStream,
    /// Descriptor of the other end.
    other: RawFd,
    /// Bytes for this end that it did not take yet.
    unsent: Option<Pipe>,
}

struct Relay {
    epoll: OwnedFd,
    listener: TcpListener,
    route: Route,
    /// By descriptor.
    ends: Vec<Option<End>>,
    /// Empty ones.
    pipes: Vec<Pipe>,
}

impl Relay {
    fn bind(route: Route) -> io::Result<Self> {
        let listener = TcpListener::bind(route.listen)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, key(listener.as_raw_fd()), EventFlags::IN)?;
        Ok(Self { epoll, listener, route, ends: Vec::new(), pipes: Vec::new() })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let fd = event.data.u64() as RawFd;
                if fd == self.listener.as_raw_fd() {
                    self.accept()?;
                } else if self.serve(fd, event.flags).is_err() {
                    self.close(fd);
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let downstream = match self.listener.accept() {
                Ok((downstream, _)) => downstream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let upstream = TcpStream::connect(self.route.upstream)?;
            let (down, up) = (downstream.as_raw_fd(), upstream.as_raw_fd());
            self.admit(downstream, up)?;
            self.admit(upstream, down)?;
        }
    }

    fn admit(&mut self, stream: TcpStream, other: RawFd) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let fd = stream.as_raw_fd();
        epoll::add(&self.epoll, &stream, key(fd), EventFlags::IN)?;
        let slot = fd as usize;
        if self.ends.len() <= slot {
            self.ends.resize_with(slot + 1, || None);
        }
        self.ends[slot] = Some(End { stream, other, unsent: None });
        Ok(())
    }

    /// An error closes the pair.
    fn serve(&mut self, fd: RawFd, flags: EventFlags) -> io::Result<()> {
        if flags.contains(EventFlags::OUT) {
            self.flush(fd)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) { self.forward(fd) } else { Ok(()) }
    }

    /// One splice out of `fd`, one into its other end.
    fn forward(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(from) = end(&self.ends, fd) else { return Ok(()) };
        let other = from.other;
        let Some(to) = end(&self.ends, other) else { return Ok(()) };
        if to.unsent.is_some() {
            // Not asked for, so it is no bytes that came but the connection that broke.
            return Err(ErrorKind::ConnectionReset.into());
        }
        let mut pipe = self.pipes.pop().map_or_else(Pipe::open, Ok)?;
        if !pipe.fill(&from.stream)? || pipe.drain(&to.stream)? {
            self.pipes.push(pipe);
            return Ok(());
        }
        self.keep(other, Some(pipe))
    }

    fn flush(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(to) = self.ends.get_mut(fd as usize).and_then(Option::as_mut) else { return Ok(()) };
        let Some(mut pipe) = to.unsent.take() else { return Ok(()) };
        if !pipe.drain(&to.stream)? {
            to.unsent = Some(pipe);
            return Ok(());
        }
        self.pipes.push(pipe);
        self.keep(fd, None)
    }

    /// Sets what `fd` did not take, and what both ends wait for from now on.
    fn keep(&mut self, fd: RawFd, unsent: Option<Pipe>) -> io::Result<()> {
        let Some(to) = self.ends.get_mut(fd as usize).and_then(Option::as_mut) else { return Ok(()) };
        to.unsent = unsent;
        let other = to.other;
        self.set_interest(fd)?;
        self.set_interest(other)
    }

    fn set_interest(&self, fd: RawFd) -> io::Result<()> {
        let Some(own) = end(&self.ends, fd) else { return Ok(()) };
        let is_read = end(&self.ends, own.other).is_some_and(|other| other.unsent.is_none());
        let mut flags = if is_read { EventFlags::IN } else { EventFlags::empty() };
        flags.set(EventFlags::OUT, own.unsent.is_some());
        Ok(epoll::modify(&self.epoll, &own.stream, key(fd), flags)?)
    }

    fn close(&mut self, fd: RawFd) {
        if let Some(end) = self.ends.get_mut(fd as usize).and_then(Option::take)
            && let Some(other) = self.ends.get_mut(end.other as usize)
        {
            *other = None;
        }
    }
}

fn end(ends: &[Option<End>], fd: RawFd) -> Option<&End> {
    ends.get(fd as usize).and_then(Option::as_ref)
}

fn key(fd: RawFd) -> EventData {
    EventData::new_u64(fd as u64)
}

fn main() -> ExitCode {
    let run = Route::from_command_line()
        .and_then(|route| Relay::bind(route).and_then(|mut relay| relay.run()).map_err(|error| error.to_string()));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
