//! Purpose: a client over HTTP/2: whole requests, or the parts of one.
//!
//! Shape: [`H2Downstream`] is a [`Link`] and the authority that it asks for; an [`Outcome`] is how a request ended.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use super::link::{End, Link, LinkSetup, LinkState};
use crate::world::downstream::Response;
use crate::world::message::Headers;

/// How a request ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was answered to the end.
    Answer(Response),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code, or without one, and the end of the connection.
    Over(Option<u32>),
}

impl Outcome {
    /// The answer.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn answer(self) -> Response {
        match self {
            Self::Answer(response) => response,
            other => panic!("no answer but {other:?}"),
        }
    }

    /// The code of a reset.
    ///
    /// # Panics
    /// When it ended in another way.
    #[track_caller]
    pub fn reset(self) -> u32 {
        match self {
            Self::Reset(code) => code,
            other => panic!("no reset but {other:?}"),
        }
    }
}

/// A client.
#[derive(Debug)]
pub struct H2Downstream {
    link: Link,
}

impl Deref for H2Downstream {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

impl H2Downstream {
    /// The authority of its requests.
    pub const AUTHORITY: &str = "test";

    /// Connects.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_with(address, &LinkSetup::default())
    }

    /// Connects with settings of its own.
    pub fn connect_with(address: SocketAddr, setup: &LinkSetup) -> io::Result<Self> {
        Ok(Self { link: Link::connect(address, setup)? })
    }

    /// Sends a head and gives its stream. A `headers` entry with the name of a pseudo-header takes its place.
    pub fn open(&self, method: &str, target: &str, headers: &[(&str, &str)], is_end: bool) -> io::Result<u32> {
        let stream = self.next_stream();
        self.send_fields(stream, &head(method, target, headers), is_end)?;
        Ok(stream)
    }

    /// Sends a whole request and gives its stream.
    pub fn send_request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<u32> {
        let stream = self.open(method, target, headers, body.is_empty())?;
        if !body.is_empty() {
            match self.send_body(stream, body, true) {
                // It was answered or reset before all was sent: that is its outcome.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
        }
        Ok(stream)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// When it is reset, or the connection ends; the code is in the text.
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Response> {
        let stream = self.send_request(method, target, headers, body)?;
        match self.outcome(stream) {
            Outcome::Answer(response) => Ok(response),
            other => Err(io::Error::new(io::ErrorKind::ConnectionReset, format!("{other:?}"))),
        }
    }

    /// A GET without anything else.
    pub fn get(&self, target: &str) -> io::Result<Response> {
        self.request("GET", target, &[], b"")
    }

    /// Waits for the end of a request, whatever it is.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn outcome(&self, stream: u32) -> Outcome {
        self.wait(&format!("the end of stream {stream}"), |state| outcome_of(state, stream))
    }

    /// As [`H2Downstream::outcome`]; `None` after `limit`.
    pub fn outcome_within(&self, stream: u32, limit: Duration) -> Option<Outcome> {
        self.try_wait("an end", limit, |state| outcome_of(state, stream)).ok()
    }

    /// Waits for the head of an answer; its body is still to come.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn head(&self, stream: u32) -> Response {
        self.wait(&format!("the head of stream {stream}"), |state| {
            let response = response_of(state, stream)?;
            (response.status >= 200).then_some(response)
        })
    }
}

fn outcome_of(state: &LinkState, stream: u32) -> Option<Outcome> {
    let seen = state.stream(stream);
    if let Some(code) = seen.reset.filter(|_| !seen.is_ended) {
        return Some(Outcome::Reset(code));
    }
    if seen.is_ended {
        return response_of(state, stream).map(Outcome::Answer);
    }
    match &state.end {
        Some(End::Close | End::Error(_)) => Some(Outcome::Over(state.go_away.map(|(_, code)| code))),
        None => None,
    }
}

fn response_of(state: &LinkState, stream: u32) -> Option<Response> {
    let seen = state.stream(stream);
    let status = |block: &Headers| block.first(":status").and_then(|text| text.parse::<u16>().ok());
    let mut interim = Vec::new();
    for (at, block) in seen.blocks.iter().enumerate() {
        match status(block)? {
            code @ 100..200 => interim.push(code),
            code => {
                let trailers = seen.blocks.get(at + 1).cloned().unwrap_or_default();
                let headers = block.clone();
                return Some(Response {
                    status: code,
                    headers,
                    body: seen.body,
                    interim,
                    trailers,
                    ..Response::default()
                });
            }
        }
    }
    None
}

/// The fields of a request's head, pseudo-headers first.
pub fn head<'a>(method: &'a str, target: &'a str, headers: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let given = |name: &str| headers.iter().any(|(other, _)| *other == name);
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", H2Downstream::AUTHORITY), (":path", target)];
    let mut fields: Vec<_> = pseudo.into_iter().filter(|(name, _)| !given(name)).collect();
    let (over, rest): (Vec<_>, Vec<_>) = headers.iter().copied().partition(|(name, _)| name.starts_with(':'));
    fields.extend(over);
    fields.extend(rest);
    fields
}
