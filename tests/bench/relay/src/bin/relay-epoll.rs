//! Purpose: a byte relay on plain level-triggered epoll: one wait, one read and one write for each message.
//!
//! Shape: a table by descriptor. What cannot be written at once is kept with the end it is for; the other end is not
//! read meanwhile. An end that closes takes the other with it.
//!
//! Limits: connects to its upstream in the loop, which on loopback does not wait.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use outrigger_bench_relay::{READ_BYTES, Route};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Events taken from the kernel at once.
const EVENTS: usize = 256;

/// One end of a pair.
struct End {
    stream: TcpStream,
    /// Descriptor of the other end.
    other: RawFd,
    /// Bytes for this end that it did not take yet.
    unsent: Vec<u8>,
}

struct Relay {
    epoll: OwnedFd,
    listener: TcpListener,
    route: Route,
    /// By descriptor.
    ends: Vec<Option<End>>,
    buffer: Vec<u8>,
}

impl Relay {
    fn bind(route: Route) -> io::Result<Self> {
        let listener = TcpListener::bind(route.listen)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, key(listener.as_raw_fd()), EventFlags::IN)?;
        Ok(Self { epoll, listener, route, ends: Vec::new(), buffer: vec![0; READ_BYTES] })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
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
        self.ends[slot] = Some(End { stream, other, unsent: Vec::new() });
        Ok(())
    }

    /// An error closes the pair.
    fn serve(&mut self, fd: RawFd, flags: EventFlags) -> io::Result<()> {
        if flags.contains(EventFlags::OUT) {
            self.flush(fd)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) { self.forward(fd) } else { Ok(()) }
    }

    /// One read of `fd`, one write to its other end.
    fn forward(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(end) = self.ends.get_mut(fd as usize).and_then(Option::as_mut) else { return Ok(()) };
        let other = end.other;
        let length = match end.stream.read(&mut self.buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(to) = self.ends.get_mut(other as usize).and_then(Option::as_mut) else { return Ok(()) };
        if !to.unsent.is_empty() {
            to.unsent.extend_from_slice(&self.buffer[..length]);
            return Ok(());
        }
        let sent = write(&mut to.stream, &self.buffer[..length])?;
        if sent < length {
            to.unsent.extend_from_slice(&self.buffer[sent..length]);
            self.set_interest(other, EventFlags::OUT)?;
            self.set_interest(fd, EventFlags::empty())?;
        }
        Ok(())
    }

    fn flush(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(end) = self.ends.get_mut(fd as usize).and_then(Option::as_mut) else { return Ok(()) };
        let sent = write(&mut end.stream, &end.unsent)?;
        end.unsent.drain(..sent);
        let (other, is_done) = (end.other, end.unsent.is_empty());
        if is_done {
            self.set_interest(fd, EventFlags::IN)?;
            self.set_interest(other, EventFlags::IN)?;
        }
        Ok(())
    }

    fn set_interest(&self, fd: RawFd, flags: EventFlags) -> io::Result<()> {
        match self.ends.get(fd as usize).and_then(Option::as_ref) {
            Some(end) => Ok(epoll::modify(&self.epoll, &end.stream, key(fd), flags)?),
            None => Ok(()),
        }
    }

    fn close(&mut self, fd: RawFd) {
        if let Some(end) = self.ends.get_mut(fd as usize).and_then(Option::take)
            && let Some(other) = self.ends.get_mut(end.other as usize)
        {
            *other = None;
        }
    }
}

fn key(fd: RawFd) -> EventData {
    EventData::new_u64(fd as u64)
}

/// What the socket takes now.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
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
