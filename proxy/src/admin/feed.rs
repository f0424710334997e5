//! **Purpose.** One second's frame to every viewer of the live page.
//!
//! **Shape.** [`sample_while_watched`] runs beside the server: it sleeps until somebody opens `/events`, then samples once
//! a second and broadcasts the finished text, until the last viewer has left.
//!
//! ```text
//! idle ──first viewer──▶ sampling ──a second without viewers──▶ idle (history is dropped)
//! ```
//!
//! **Limits.** [`MAX_VIEWERS`]; a viewer that falls [`BEHIND`] frames back skips to the present.
//!
//! **Cancel.** Dropping the sampler loses at most one frame. [`Feed::close`] ends every stream.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::time::MissedTickBehavior;

use super::frame::{Frame, History};
use super::sample::Sampler;
use super::{Admin, AdminSources, render};

/// Streams open at once.
pub(super) const MAX_VIEWERS: usize = 64;
/// Frames kept for a slow viewer.
const BEHIND: usize = 4;
const PERIOD: Duration = Duration::from_secs(1);

/// Between the sampler and the viewers.
#[derive(Debug)]
pub(super) struct Feed {
    frames: broadcast::Sender<Arc<str>>,
    latest: Mutex<Option<(Frame, History)>>,
    first_viewer: Notify,
    closed: watch::Sender<bool>,
    places: Arc<Semaphore>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            frames: broadcast::Sender::new(BEHIND),
            latest: Mutex::new(None),
            first_viewer: Notify::new(),
            closed: watch::Sender::new(false),
            places: Arc::new(Semaphore::new(MAX_VIEWERS)),
        }
    }
}

impl Feed {
    /// Ends every stream, and those to come.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    fn latest(&self) -> MutexGuard<'_, Option<(Frame, History)>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, frame: Frame, history: History) {
        // Plain values have no way to fail.
        let text = serde_json::to_string(&frame).unwrap_or_default();
        *self.latest() = Some((frame, history));
        // Fails when the last viewer has just left.
        let _ = self.frames.send(text.into());
    }
}

/// The sampler. Never ends by itself.
pub(super) async fn sample_while_watched(feed: &Feed, sources: &Arc<AdminSources>) -> Infallible {
    loop {
        feed.first_viewer.notified().await;
        let mut sampler = Sampler::new(sources.clone(), std::time::Instant::now());
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        while feed.frames.receiver_count() > 0 {
            ticks.tick().await;
            let (frame, history) = sampler.take(std::time::Instant::now());
            feed.publish(frame, history);
        }
        *feed.latest() = None;
    }
}

/// What a viewer gets first: what does not change while the process lives, and the minute before if there is one.
#[derive(Serialize)]
struct Greeting<'a> {
    version: &'static str,
    node: &'a str,
    io: &'a crate::observe::IoView,
    frame: Option<&'a Frame>,
    history: Option<&'a History>,
}

pub(super) async fn events(State(admin): State<Admin>) -> Response {
    let feed = &admin.feed;
    let Ok(place) = feed.places.clone().try_acquire_owned() else {
        let error = format!("{MAX_VIEWERS} viewers are connected; try again later");
        return render::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }));
    };
    // Subscribed first: a frame between the two is told twice, not lost, and the page knows it by its time.
    let frames = feed.frames.subscribe();
    feed.first_viewer.notify_one();
    let hello = {
        let latest = feed.latest();
        let greeting = Greeting {
            version: env!("CARGO_PKG_VERSION"),
            node: &admin.node,
            io: &admin.io,
            frame: latest.as_ref().map(|(frame, _)| frame),
            history: latest.as_ref().map(|(_, history)| history),
        };
        serde_json::to_string(&greeting).unwrap_or_default()
    };
    let viewer = Viewer { hello: Some(hello), frames, closed: feed.closed.subscribe(), _place: place };
    Sse::new(stream(viewer)).keep_alive(KeepAlive::default()).into_response()
}

struct Viewer {
    hello: Option<String>,
    frames: broadcast::Receiver<Arc<str>>,
    closed: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

fn stream(viewer: Viewer) -> impl Stream<Item = Result<Event, Infallible>> {
    futures_util::stream::unfold(viewer, |mut viewer| async {
        let event = viewer.next().await?;
        Some((Ok(event), viewer))
    })
}

impl Viewer {
    async fn next(&mut self) -> Option<Event> {
        if let Some(hello) = self.hello.take() {
            // A page that lost its stream comes back after this time.
            return Some(Event::default().event("hello").retry(PERIOD).data(hello));
        }
        loop {
            let frame = tokio::select! {
                biased; // a closed feed ends the stream even when frames wait
                _ = self.closed.wait_for(|closed| *closed) => return None,
                frame = self.frames.recv() => frame,
            };
            match frame {
                Ok(frame) => return Some(Event::default().event("frame").data(frame)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
