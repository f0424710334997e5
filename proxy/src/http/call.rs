//! **Purpose.** What a call of gRPC is beside its exchange: its form, its time, its messages and the code it ends with.
//!
//! **Shape.** A [`CallForm`] is known from the request's head on. A [`Call`] goes with a forwarded request; each of its
//! two [`Meter`]s sees a body pass, counts its messages, and turns gRPC-Web into gRPC or back where the client speaks it.
//!
//! **Errors.** A body of gRPC-Web that is no base64 is malformed.
//!
//! **Source.** gRPC over HTTP/2; `doc/PROTOCOL-WEB.md`; Envoy, `grpc_web` and `grpc_stats`.

use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName};
use outrigger_reactor::{Buf, now};

use super::head::Request;
use crate::fault::Fault;
use crate::grpc::{GrpcCode, MessageCounter, TimeoutValue, WebForm, content, timeout, web};
use crate::http2::Chunk;
use crate::http2::edit::put;
use crate::stats;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How a client speaks gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallForm {
    Grpc,
    Web {
        /// Of the request's body.
        asked: WebForm,
        /// Of the answer's.
        answered: WebForm,
    },
}

impl CallForm {
    /// `None`: it is not a call. gRPC-Web counts where the listener translates it.
    pub(super) fn of(head: Request<'_>, translates_web: bool) -> Option<Self> {
        // Every call is a POST: other requests are not searched for a content type.
        let kind = (head.method() == b"POST").then(|| head.header("content-type")).flatten()?;
        if content::is_grpc(kind) {
            return Some(Self::Grpc);
        }
        let asked = content::web_form(kind).filter(|_| translates_web)?;
        Some(Self::Web { asked, answered: content::accepted_form(head.header("accept"), asked) })
    }

    /// Content type of an answer whose gRPC content type is `grpc`.
    pub(super) fn put_type(self, grpc: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Grpc => out.extend_from_slice(grpc),
            Self::Web { answered, .. } => content::put_web_type(grpc, answered, out),
        }
    }
}

/// One call that is forwarded.
#[derive(Debug)]
pub(super) struct Call {
    form: CallForm,
    pub(super) request: Meter,
    pub(super) answer: Meter,
    /// When its caller gives up.
    pub(super) deadline: Option<Instant>,
    /// The code is the upstream's.
    pub(super) is_upstreams: bool,
}

impl Call {
    /// A call whose head came at `began`.
    pub(super) fn new(form: CallForm, head: Request<'_>, began: Instant, most: Option<Duration>) -> Self {
        let asked = head.header("grpc-timeout").and_then(timeout::parse);
        let (request, answer) = match form {
            CallForm::Grpc => (Coder::Plain, Coder::Plain),
            CallForm::Web { asked, answered } => {
                let decoder = match asked {
                    WebForm::Binary => Coder::Plain,
                    WebForm::Text => Coder::Decode(web::TextDecoder::default()),
                };
                (decoder, Coder::Encode(answered))
            }
        };
        Self {
            form,
            request: Meter::new(request),
            answer: Meter::new(answer),
            deadline: asked.and_then(|asked| began.checked_add(timeout::left(asked, most, Duration::ZERO))),
            is_upstreams: false,
        }
    }

    /// How it is counted.
    pub(super) fn count(&self) -> stats::Call {
        stats::Call {
            code: self.answer.code.unwrap_or(GrpcCode::Unknown),
            is_upstreams: self.is_upstreams,
            request_messages: self.request.messages(),
            response_messages: self.answer.messages(),
        }
    }

    /// How a call is counted that is not forwarded.
    pub(super) fn refused(fault: &Fault) -> stats::Call {
        let code = GrpcCode::of_fault(fault);
        stats::Call { code, is_upstreams: false, request_messages: 0, response_messages: 0 }
    }

    /// How it ended, as far as is known.
    pub(super) fn code(&self) -> Option<GrpcCode> {
        self.answer.code
    }

    /// It ended by this proxy's word.
    pub(super) fn fail(&mut self, code: GrpcCode) {
        (self.answer.code, self.is_upstreams) = (Some(code), false);
    }

    /// It ended by the upstream's word.
    pub(super) fn end(&mut self, code: GrpcCode) {
        (self.answer.code, self.is_upstreams) = (Some(code), true);
    }

    /// Makes headers of the request those that go upstream with this try.
    pub(super) fn edit_request(&self, headers: &mut HeaderMap) {
        if let Some(deadline) = self.deadline {
            let left = TimeoutValue::new(deadline.saturating_duration_since(now()));
            put(headers, GRPC_TIMEOUT, left.as_bytes());
        }
        if let CallForm::Web { .. } = self.form {
            let mut kind = Vec::new();
            content::put_grpc_type(
                headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes()).unwrap_or_default(),
                &mut kind,
            );
            put(headers, CONTENT_TYPE, &kind);
            put(headers, TE, b"trailers");
            headers.remove(CONTENT_LENGTH);
        }
    }

    /// True when bodies change on their way.
    pub(super) fn is_translated(&self) -> bool {
        matches!(self.form, CallForm::Web { .. })
    }

    /// Makes headers of the answer those that the client gets.
    pub(super) fn edit_response(&self, headers: &mut HeaderMap) {
        if let CallForm::Web { .. } = self.form {
            let mut kind = Vec::new();
            let grpc = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes()).unwrap_or_default();
            self.form.put_type(grpc, &mut kind);
            put(headers, CONTENT_TYPE, &kind);
            headers.remove(CONTENT_LENGTH);
        }
    }
}

/// One body of a call, as it passes.
#[derive(Debug)]
pub(super) struct Meter {
    messages: MessageCounter,
    code: Option<GrpcCode>,
    coder: Coder,
}

#[derive(Debug)]
enum Coder {
    Decode(web::TextDecoder),
    Encode(WebForm),
    Plain,
}

impl Meter {
    fn new(coder: Coder) -> Self {
        Self { messages: MessageCounter::default(), code: None, coder }
    }

    /// Messages that passed.
    pub(super) fn messages(&self) -> u64 {
        self.messages.count()
    }

    /// What goes on for a piece that came; `None`: it is no base64.
    pub(super) fn pass(&mut self, piece: Chunk) -> Option<Chunk> {
        match &mut self.coder {
            Coder::Plain | Coder::Encode(WebForm::Binary) => {
                self.messages.see(piece.as_ref());
                Some(piece)
            }
            Coder::Decode(decoder) => {
                let mut decoded = Vec::new();
                decoder.decode(piece.as_ref(), &mut decoded).ok()?;
                self.messages.see(&decoded);
                Some(Chunk::Received(Buf::from(decoded)))
            }
            Coder::Encode(WebForm::Text) => {
                self.messages.see(piece.as_ref());
                Some(Chunk::Received(Buf::build(|out| web::encode_text(piece.as_ref(), out))))
            }
        }
    }

    /// True when only the end tells whether the body was whole.
    pub(super) fn judges_end(&self) -> bool {
        matches!(self.coder, Coder::Decode(_))
    }

    /// What goes on at the end: a last piece, and trailers. `None`: what came before is no base64.
    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) -> Option<(Option<Chunk>, Option<HeaderMap>)> {
        if let Some(trailers) = &trailers {
            self.code = code_in(trailers).or(self.code);
        }
        match (&self.coder, trailers) {
            (Coder::Decode(decoder), trailers) => decoder.finish().ok().map(|()| (None, trailers)),
            (Coder::Encode(form), Some(trailers)) => {
                let mut frame = Vec::new();
                web::put_trailers(
                    trailers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())),
                    &mut frame,
                );
                let frame = match form {
                    WebForm::Binary => Buf::from(frame),
                    WebForm::Text => Buf::build(|out| web::encode_text(&frame, out)),
                };
                Some((Some(Chunk::Received(frame)), None))
            }
            (Coder::Encode(_) | Coder::Plain, trailers) => Some((None, trailers)),
        }
    }
}

/// The code that a trailers-only head or trailers tell.
pub(super) fn code_in(headers: &HeaderMap) -> Option<GrpcCode> {
    headers.get(GRPC_STATUS).map(|status| GrpcCode::parse(status.as_bytes()))
}
