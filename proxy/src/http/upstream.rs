//! **Purpose.** The upstream's side of one try, in either version.
//!
//! **Shape.** A [`Link`] is what a try goes out on; once the request's head is sent it is an [`Upstream`]: where the body
//! goes, where the answer comes from.
//!
//! **Errors.** A [`Kind`] of the upstream side, with what is known of whether the request was processed.
//!
//! **Cancel.** Dropped, it closes the connection, or resets the stream.
//!
//! **Source.** RFC 9113 §5.4, §6.8, §8.7: what is refused, or above the last stream of a GOAWAY, was not processed.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, StatusCode, response};
use outrigger_reactor::{Buf, TcpStream};

use super::answer::FinalHead;
use super::body::{Body, Source};
use super::head::Response;
use super::pump::Sink;
use crate::config::UpstreamProtocol;
use crate::fault::Kind;
use crate::http1::{BodyLength, ResponseTable};
use crate::http2::Chunk;
use crate::http2::edit::response_map;
use crate::upstream::{Connection, Lease};

/// What a try goes out on.
#[derive(Debug)]
pub(super) enum Link {
    Http1(Connection),
    Http2(Lease),
}

impl Link {
    /// It served a request before this one.
    pub(super) fn is_reused(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_reused(),
            Self::Http2(lease) => lease.is_reused(),
        }
    }
}

/// A try whose head is sent.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the large one is that of the fast path, which allocates nothing")]
pub(super) enum Upstream {
    Http1 { connection: Connection, answer: FinalHead },
    Http2(Box<Streaming>),
}

/// One stream towards an endpoint.
#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) send: SendStream<Chunk>,
    response: ResponseFuture,
    recv: Option<RecvStream>,
    /// Dropped last: its place is free once the stream is gone.
    _lease: Lease,
}

/// The head of an answer.
#[derive(Debug)]
pub(super) enum AnswerHead {
    Http1(Buf),
    Http2(Box<response::Parts>, bool),
    /// None was sent: a connection was opened for a tunnel that ends here.
    Opened(Box<response::Parts>),
}

impl AnswerHead {
    /// What a tunnel that ends here is answered with.
    pub(super) fn opened() -> Self {
        Self::Opened(Box::new(http::Response::new(()).into_parts().0))
    }

    /// As everything else sees it; `table` is that of the answer.
    pub(super) fn view<'a>(&'a self, table: &'a ResponseTable) -> Response<'a> {
        match self {
            Self::Http1(bytes) => Response::Http1(table.view(bytes)),
            Self::Http2(parts, is_whole) => Response::Http2 { parts, is_whole: *is_whole },
            Self::Opened(parts) => Response::Http2 { parts, is_whole: false },
        }
    }

    /// Its headers; nobody needs them after this.
    pub(super) fn take_headers(&mut self, table: &ResponseTable, body: BodyLength) -> HeaderMap {
        match self {
            Self::Http1(bytes) => response_map(&table.view(bytes), body),
            Self::Http2(parts, _) | Self::Opened(parts) => std::mem::take(&mut parts.headers),
        }
    }

    /// Lets received bytes go, once the head has been passed on: where they lie, its new form may go.
    pub(super) fn let_go(&mut self) {
        if let Self::Http1(bytes) = self {
            *bytes = Buf::new();
        }
    }

    /// The body that follows it.
    pub(super) fn body(&self, length: BodyLength, wants_trailers: bool) -> Body {
        match self {
            Self::Http1(_) if wants_trailers => Body::with_trailers(length),
            Self::Http1(_) | Self::Opened(_) => Body::new(length),
            Self::Http2(_, is_whole) => Body::framed(*is_whole),
        }
    }
}

/// Where the head of an answer comes from.
pub(super) enum Awaited<'a> {
    Http1(&'a mut FinalHead, &'a TcpStream),
    Http2(&'a mut ResponseFuture, &'a mut Option<RecvStream>),
}

impl Awaited<'_> {
    /// An interim head of HTTP/2, but for `100 Continue`, which the client had from here.
    pub(super) fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<http::Response<()>> {
        let Self::Http2(response, _) = self else { return Poll::Pending };
        loop {
            match response.poll_informational(cx) {
                Poll::Ready(Some(Ok(interim))) if interim.status() != StatusCode::CONTINUE => {
                    return Poll::Ready(interim);
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The final head.
    pub(super) fn poll(&mut self, table: &mut ResponseTable, cx: &mut Context<'_>) -> Poll<Result<AnswerHead, Kind>> {
        match self {
            Self::Http1(answer, stream) => answer.poll(stream, table, cx).map_ok(AnswerHead::Http1),
            Self::Http2(response, recv) => Pin::new(&mut **response).poll(cx).map(|answer| {
                let (parts, body) = answer.map_err(|error| fault_of(&error))?.into_parts();
                let is_whole = body.is_end_stream();
                **recv = Some(body);
                Ok(AnswerHead::Http2(Box::new(parts), is_whole))
            }),
        }
    }
}

impl Upstream {
    /// A stream whose head is sent.
    pub(super) fn streaming(lease: Lease, response: ResponseFuture, send: SendStream<Chunk>) -> Self {
        Self::Http2(Box::new(Streaming { send, response, recv: None, _lease: lease }))
    }

    /// Where the request's body goes, and where the answer comes from.
    pub(super) fn halves(&mut self) -> (Sink<'_>, Awaited<'_>) {
        match self {
            Self::Http1 { connection, answer } => {
                let stream = connection.stream();
                (Sink::Http1(stream), Awaited::Http1(answer, stream))
            }
            Self::Http2(streaming) => {
                let Streaming { send, response, recv, .. } = &mut **streaming;
                (Sink::Http2(send), Awaited::Http2(response, recv))
            }
        }
    }

    /// Where the two bodies go and come from; `None` before the answer's head.
    pub(super) fn bodies(&mut self) -> Option<(Sink<'_>, Source<'_>)> {
        Some(match self {
            Self::Http1 { connection, answer } => {
                let stream = connection.stream();
                (Sink::Http1(stream), Source::Http1 { input: &mut answer.inlet.input, stream })
            }
            Self::Http2(streaming) => {
                let Streaming { send, recv, .. } = &mut **streaming;
                (Sink::Http2(send), Source::Http2(recv.as_mut()?))
            }
        })
    }

    /// No byte of the request can have left.
    pub(super) fn is_unsent(&self) -> bool {
        matches!(self, Self::Http1 { connection, .. } if connection.sent_bytes() == 0)
    }
}

/// True when the endpoint is spoken to in HTTP/2.
pub(super) fn is_framed(protocol: UpstreamProtocol, came_framed: bool) -> bool {
    match protocol {
        UpstreamProtocol::Downstream => came_framed,
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
    }
}

/// What an error of a stream or its connection means for the request.
pub(super) fn fault_of(error: &h2::Error) -> Kind {
    let is_unprocessed = error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote());
    if is_unprocessed {
        Kind::StreamRefused
    } else if error.is_io() {
        Kind::ResponseClosed
    } else if error.is_library() {
        Kind::ResponseMalformed
    } else {
        Kind::ResponseReset
    }
}
