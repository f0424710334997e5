//! Purpose: the HTTPS port: `POST /inject`, `GET /healthz`.
//! Shape: one task a connection, all owned by [`serve`]; a handshake shows whatever certificate is current, so a rotation
//! breaks no connection.
//! Errors: 404, 405, 408, 413, 415, 503 with a sentence as JSON.
//! Limits: 256 connections, further ones wait in the listener's queue; 5 s for a handshake, 30 s for a head, 10 s for a body;
//! a review of at most 3.25 MiB (an API server takes 3 MiB), all reviews at once 64 MiB.
//! Cancel: a connection that is closed ends its task; nothing outlives the server.
//! Tests: `tests/webhook` over real TLS.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use futures_util::StreamExt as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::figures::Figures;
use super::keeper::Shown;
use super::review::{Answer, answer};
use crate::inject::InjectorConfig;

/// Largest review.
pub const REVIEW_BYTES_MAX: usize = (3 << 20) + (256 << 10);
const BODY_BYTES_ALL: usize = 64 << 20;
const CONNECTIONS_MAX: usize = 256;
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
const HEAD_TIME: Duration = Duration::from_secs(30);
const BODY_TIME: Duration = Duration::from_secs(10);
/// What is read of a body that is too large, so that its sender sees the answer and no reset.
const DISCARD_BYTES_MAX: usize = 16 << 20;
/// A small review is answered in less time than another thread takes to wake.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Shows the current certificate.
#[derive(Debug)]
pub(super) struct Current(pub(super) watch::Receiver<Shown>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}

/// What every request sees.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) config: InjectorConfig,
    pub(super) figures: Arc<Figures>,
    pub(super) body_bytes: Semaphore,
}

impl Site {
    pub(super) fn new(config: InjectorConfig, figures: Arc<Figures>) -> Self {
        Self { config, figures, body_bytes: Semaphore::new(BODY_BYTES_ALL) }
    }
}

/// Serves until `stop`, then lets requests under way finish.
pub(super) async fn serve(listener: TcpListener, tls: TlsAcceptor, site: Arc<Site>, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // A closed semaphore cannot be: nobody closes it.
        let slot = slots.clone().acquire_owned().await.ok();
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|is_stopping| *is_stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                let (tls, site, stop) = (tls.clone(), site.clone(), stop.clone());
                connections.spawn(async move {
                    connection(socket, tls, site, stop).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those in use come back.
                tracing::warn!(reason = %error, "the webhook could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(socket: TcpStream, tls: TlsAcceptor, site: Arc<Site>, mut stop: watch::Receiver<bool>) {
    // An answer is one write; without this its tail could wait for an acknowledgement.
    let _ = socket.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIME, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(reason = %error, "a handshake with the webhook failed"),
        Err(_) => return tracing::debug!("a handshake with the webhook took too long"),
    };
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(respond(&site, request.map(Body::new)).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(64 << 10);
    let mut served = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let stopping = async {
        // What it gives back is a lock: it must not live on.
        drop(stop.wait_for(|is_stopping| *is_stopping).await);
    };
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopping => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(reason = %error, "a connection of the webhook ended early");
    }
}

async fn respond(site: &Arc<Site>, request: Request<Body>) -> Response<Body> {
    let answer = match (request.uri().path(), request.method()) {
        ("/healthz", &Method::GET | &Method::HEAD) => {
            return write(200, "text/plain; charset=utf-8", "ok\n".to_owned());
        }
        ("/inject", &Method::POST) => review(site, request).await,
        ("/healthz" | "/inject", method) => {
            Answer::malformed(405, &format!("{method:.20} is not possible here: POST /inject, GET /healthz"))
        }
        _ => Answer::malformed(404, "no such path: POST /inject, GET /healthz"),
    };
    site.figures.count(answer.verdict);
    write(answer.status, "application/json", answer.body)
}

fn write(status: u16, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

async fn review(site: &Arc<Site>, request: Request<Body>) -> Answer {
    if !is_json(request.headers()) {
        let found = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("none");
        return Answer::malformed(415, &format!("the content type is {found:.80}; send application/json"));
    }
    let read = tokio::time::timeout(BODY_TIME, read_body(site, request.into_body())).await;
    let (body, room) = match read {
        Ok(Ok(read)) => read,
        Ok(Err(refusal)) => return refusal,
        Err(_) => return Answer::malformed(408, &format!("the body did not arrive within {} s", BODY_TIME.as_secs())),
    };
    if body.len() <= INLINE_BYTES_MAX {
        return answer(&body, &site.config);
    }
    drop(room);
    let site = site.clone();
    let answered = tokio::task::spawn_blocking(move || answer(&body, &site.config)).await;
    answered.unwrap_or_else(|stopped| Answer::malformed(500, &format!("the review could not be answered: {stopped}")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// The body and the room that it takes of all bodies' room.
async fn read_body(site: &Site, body: Body) -> Result<(Vec<u8>, Option<SemaphorePermit<'_>>), Answer> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut room: Option<SemaphorePermit<'_>> = None;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Answer::malformed(400, &format!("the body broke off: {error}")))?;
        if bytes.len() + chunk.len() > REVIEW_BYTES_MAX {
            let mut discarded = bytes.len();
            drop((bytes, room));
            while let Some(Ok(chunk)) = chunks.next().await {
                discarded += chunk.len();
                if discarded > DISCARD_BYTES_MAX {
                    break;
                }
            }
            return Err(Answer::malformed(413, &format!("the body is longer than {REVIEW_BYTES_MAX} bytes")));
        }
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        match site.body_bytes.try_acquire_many(length) {
            Ok(more) => match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            },
            Err(_) => return Err(Answer::malformed(503, "too many reviews at once; try again")),
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, room))
}
