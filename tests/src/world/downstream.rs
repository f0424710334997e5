//! Purpose: a client that sends exactly the bytes it is given and reads answers strictly.
//!
//! Shape: one [`Downstream`] is one connection; [`Response`] keeps the head as it was on the wire.
//!
//! Errors: `io::Error`; a read that takes longer than [`Downstream::PATIENCE`] fails with `WouldBlock` or `TimedOut`.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::message::{self, BodyLength, Headers, show};

/// One answer.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Headers,
    /// Its body, without framing.
    pub body: Vec<u8>,
    /// Its head on the wire.
    pub head: Vec<u8>,
    /// Its body on the wire.
    pub body_raw: Vec<u8>,
    /// Its trailers.
    pub trailers: Headers,
    /// Statuses of the interim answers before it.
    pub interim: Vec<u16>,
}

impl Response {
    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.first(name)
    }

    /// The parts of its `outrigger-fault` header, empty when it has none.
    pub fn fault(&self) -> BTreeMap<String, String> {
        let value = self.header("outrigger-fault").unwrap_or_default();
        let parts = value.split("; ").filter_map(|part| part.split_once('='));
        parts.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// `side/stage/kind` of its fault; empty when it has none.
    pub fn fault_kind(&self) -> String {
        let fault = self.fault();
        let part = |name: &str| fault.get(name).map_or("", String::as_str);
        if fault.is_empty() { String::new() } else { [part("side"), part("stage"), part("kind")].join("/") }
    }

    /// Whether the connection is to be closed after it.
    pub fn says_close(&self) -> bool {
        self.headers.lists("connection", "close")
    }
}

/// One connection to a proxy.
#[derive(Debug)]
pub struct Downstream {
    stream: BufReader<TcpStream>,
}

impl Downstream {
    /// The longest wait for a byte.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// Connects.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Self::PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Self::PATIENCE))?;
        stream.set_write_timeout(Some(Self::PATIENCE))?;
        Ok(Self { stream: BufReader::with_capacity(16 * 1024, stream) })
    }

    /// Sets the wait for a byte.
    pub fn set_patience(&mut self, limit: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        self.stream.get_ref().set_write_timeout(Some(limit))
    }

    /// Sends exactly these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Another handle of the same connection, for a thread that reads while this one sends. What was read ahead stays here.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: BufReader::with_capacity(16 * 1024, self.stream.get_ref().try_clone()?) })
    }

    /// Sends a request with a Host header; a body gets a Content-Length.
    pub fn send_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            bytes.extend_from_slice(b"Host: test\r\n");
        }
        for (name, value) in headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if !body.is_empty() || method == "POST" {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        self.send(&bytes)
    }

    /// Sends a request and reads its answer.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        self.send_request(method, target, headers, body)?;
        self.read_response(method)
    }

    /// A GET without anything else.
    pub fn get(&mut self, target: &str) -> io::Result<Response> {
        self.request("GET", target, &[], b"")
    }

    /// Reads the answer to a request of that method; interim answers are collected on the way.
    pub fn read_response(&mut self, method: &str) -> io::Result<Response> {
        let mut interim = Vec::new();
        loop {
            let mut response = self.read_response_head()?;
            if (100..200).contains(&response.status) && response.status != 101 {
                interim.push(response.status);
                continue;
            }
            response.interim = interim;
            let is_bare = method == "HEAD" || matches!(response.status, 101 | 204 | 304);
            if !is_bare {
                let length = message::body_length(&response.headers)?.unwrap_or(BodyLength::UntilClose);
                (response.body, response.trailers) =
                    message::read_body(&mut self.stream, length, &mut response.body_raw)?;
            }
            return Ok(response);
        }
    }

    /// Reads a head and leaves the body.
    pub fn read_response_head(&mut self) -> io::Result<Response> {
        let head = message::read_head(&mut self.stream)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "closed before an answer"))?;
        let (status, _, headers) = message::parse_response(&head)?;
        Ok(Response { status, headers, head, ..Response::default() })
    }

    /// Reads exactly that many bytes.
    pub fn read_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads what comes until the other side closes; a reset is an error.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// Waits for the end of the connection, by close or by reset, with nothing more sent.
    pub fn expect_closed(&mut self, limit: Duration) -> io::Result<()> {
        self.set_patience(limit)?;
        let mut byte = [0; 64];
        match self.stream.read(&mut byte) {
            Ok(0) => Ok(()),
            Ok(read) => Err(io::Error::other(format!("got {} where the connection should end", show(&byte[..read])))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), format!("still open after {limit:?}: {error}"))),
        }
    }

    /// Ends our sending side.
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)
    }

    /// Ends the connection by a reset.
    pub fn reset(self) -> io::Result<()> {
        SockRef::from(self.stream.get_ref()).set_linger(Some(Duration::ZERO))
    }

    /// Makes the kernel's buffers small, so that back-pressure shows soon.
    pub fn shrink_buffers(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(self.stream.get_ref()).set_recv_buffer_size(bytes)
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, target: &str) -> io::Result<Response> {
    let host = address.to_string();
    Downstream::connect(address)?.request("GET", target, &[("host", &host), ("connection", "close")], b"")
}
