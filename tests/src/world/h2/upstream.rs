//! Purpose: a server over HTTP/2 that does as it is told and writes down what reached it.
//!
//! Shape: an [`H2Upstream`] accepts on a thread. By a script ([`H2Script`]) each request, on a thread of its own, gets an
//! [`H2Answer`]: fields, pieces of a body, gates, resets, GOAWAY. As a puppet it gives each [`Link`] to the test's closure.
//!
//! Limits: it keeps everything it receives, so it is for tests.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::frame::Frame;
use super::link::{Link, LinkSetup, Stream};
use crate::world::message::Headers;
use crate::world::upstream::{Gate, Recorded, pattern};
use crate::world::wait::wait_for;

/// How long an idle connection is listened to.
const IDLE: Duration = Duration::from_secs(60);
const PATTERN_BLOCK: usize = 64 * 1024;

#[derive(Clone, Debug)]
enum Step {
    Body(Vec<u8>),
    Close,
    End,
    Fields(Vec<(String, String)>),
    GoAway { above: bool, code: u32 },
    Pass(Gate),
    Pattern(u64),
    Reset(u32),
    Trailers(Vec<(String, String)>),
}

/// What an upstream does with a request.
#[derive(Clone, Debug, Default)]
pub struct H2Answer {
    steps: Vec<Step>,
}

impl H2Answer {
    /// A head with that status; what follows is added, its end too unless [`H2Answer::unfinished`].
    pub fn status(status: u16) -> Self {
        Self { steps: vec![Step::Fields(vec![(":status".to_owned(), status.to_string())]), Step::End] }
    }

    /// 200 with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self::status(200).header("content-length", &body.len().to_string()).then(body)
    }

    /// RST_STREAM with that code, and nothing else.
    pub fn reset(code: u32) -> Self {
        Self { steps: vec![Step::Reset(code)] }
    }

    /// No answer, ever.
    pub fn never() -> Self {
        Self::default()
    }

    /// Closes the connection.
    pub fn close() -> Self {
        Self { steps: vec![Step::Close] }
    }

    /// Adds a header to the last head.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let last = self.steps.iter_mut().rev().find_map(|step| match step {
            Step::Fields(fields) => Some(fields),
            _ => None,
        });
        last.expect("an answer with a head").push((name.to_owned(), value.to_owned()));
        self
    }

    fn add(mut self, step: Step) -> Self {
        let is_ended = matches!(self.steps.last(), Some(Step::End));
        let at = self.steps.len() - usize::from(is_ended);
        self.steps.insert(at, step);
        self
    }

    /// An interim answer before the rest.
    #[must_use]
    pub fn after_interim(mut self, status: u16) -> Self {
        self.steps.insert(0, Step::Fields(vec![(":status".to_owned(), status.to_string())]));
        self
    }

    /// Waits for a gate before the first frame.
    #[must_use]
    pub fn after(mut self, gate: &Gate) -> Self {
        self.steps.insert(0, Step::Pass(gate.clone()));
        self
    }

    /// Goes on with these bytes of the body.
    #[must_use]
    pub fn then(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.add(Step::Body(bytes.into()))
    }

    /// Goes on with that many bytes of [`pattern`].
    #[must_use]
    pub fn then_pattern(self, bytes: u64) -> Self {
        self.add(Step::Pattern(bytes))
    }

    /// Waits for a gate at this point.
    #[must_use]
    pub fn then_pass(self, gate: &Gate) -> Self {
        self.add(Step::Pass(gate.clone()))
    }

    /// Ends with these trailers; directly behind a head they go out with it.
    #[must_use]
    pub fn trailers(mut self, fields: &[(&str, &str)]) -> Self {
        self.steps.pop();
        let own = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.steps.push(Step::Trailers(own));
        self
    }

    /// Ends with RST_STREAM.
    #[must_use]
    pub fn then_reset(mut self, code: u32) -> Self {
        self.steps.pop();
        self.steps.push(Step::Reset(code));
        self
    }

    /// Has no end.
    #[must_use]
    pub fn unfinished(mut self) -> Self {
        self.steps.pop();
        self
    }

    /// Closes the connection at this point, in place of an end.
    #[must_use]
    pub fn then_close(mut self) -> Self {
        self.steps.pop();
        self.steps.push(Step::Close);
        self
    }

    /// Sends GOAWAY first, whose last stream is this one.
    #[must_use]
    pub fn going_away(mut self, code: u32) -> Self {
        self.steps.insert(0, Step::GoAway { above: true, code });
        self
    }

    /// GOAWAY that says that this stream was not processed, and a close.
    pub fn unprocessed() -> Self {
        Self { steps: vec![Step::GoAway { above: false, code: 0 }, Step::Close] }
    }
}

type OnHead = Box<dyn Fn(&Recorded) -> Option<H2Answer> + Send + Sync>;
type OnRequest = Box<dyn Fn(&Recorded) -> H2Answer + Send + Sync>;
type OnLink = Box<dyn Fn(&Link) + Send + Sync>;

/// How an upstream behaves.
pub struct H2Script {
    /// Its connections.
    pub setup: LinkSetup,
    /// Asked when the head is there: an answer here is sent without waiting for the body.
    pub on_head: OnHead,
    /// Asked when the whole request is there.
    pub on_request: OnRequest,
}

impl fmt::Debug for H2Script {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("H2Script").field("setup", &self.setup).finish_non_exhaustive()
    }
}

impl H2Script {
    /// Answers each request as `answer` says.
    pub fn answer(answer: impl Fn(&Recorded) -> H2Answer + Send + Sync + 'static) -> Self {
        Self { setup: LinkSetup::default(), on_head: Box::new(|_| None), on_request: Box::new(answer) }
    }

    /// With these settings.
    #[must_use]
    pub fn settings(mut self, pairs: &[(u16, u32)]) -> Self {
        self.setup.settings = pairs.to_vec();
        self
    }
}

enum Part {
    Puppet(LinkSetup, OnLink),
    Script(H2Script),
}

struct Served {
    part: Part,
    is_stopped: AtomicBool,
    links: Mutex<Vec<Arc<Link>>>,
    requests: Mutex<Vec<Recorded>>,
    numbers: AtomicUsize,
}

/// The server.
pub struct H2Upstream {
    address: SocketAddr,
    served: Arc<Served>,
    acceptor: Option<JoinHandle<()>>,
}

impl fmt::Debug for H2Upstream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("H2Upstream").field("address", &self.address).finish_non_exhaustive()
    }
}

impl H2Upstream {
    /// Starts one that answers each request as `answer` says.
    pub fn start(answer: impl Fn(&Recorded) -> H2Answer + Send + Sync + 'static) -> Self {
        Self::start_script(H2Script::answer(answer))
    }

    /// Starts one that answers 200 with `name` as its body.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |_| H2Answer::ok(name))
    }

    /// Starts one with a script.
    pub fn start_script(script: H2Script) -> Self {
        Self::serve(Part::Script(script))
    }

    /// Starts one that gives each connection to `move_it`, on a thread of its own.
    pub fn puppet(setup: LinkSetup, move_it: impl Fn(&Link) + Send + Sync + 'static) -> Self {
        Self::serve(Part::Puppet(setup, Box::new(move_it)))
    }

    fn serve(part: Part) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let served = Arc::new(Served {
            part,
            is_stopped: AtomicBool::new(false),
            links: Mutex::default(),
            requests: Mutex::default(),
            numbers: AtomicUsize::new(0),
        });
        let acceptor = std::thread::spawn({
            let served = served.clone();
            move || accept_all(&listener, &served)
        });
        Self { address, served, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests so far, in the order in which they were complete; pseudo-headers are among their headers.
    pub fn requests(&self) -> Vec<Recorded> {
        locked(&self.served.requests).clone()
    }

    /// How many requests were complete so far.
    pub fn request_count(&self) -> usize {
        locked(&self.served.requests).len()
    }

    /// Its connections so far, in the order of their prefaces.
    pub fn links(&self) -> Vec<Arc<Link>> {
        locked(&self.served.links).clone()
    }

    /// Waits until it had that many requests.
    ///
    /// # Panics
    /// When they do not come in time.
    #[track_caller]
    pub fn wait_requests(&self, count: usize) {
        wait_for(&format!("{count} requests at the upstream"), Link::PATIENCE, || {
            let seen = self.request_count();
            if seen >= count { Ok(()) } else { Err(format!("{seen} requests")) }
        });
    }

    /// Waits until it has that many connections, and gives the last.
    ///
    /// # Panics
    /// When they do not come in time.
    #[track_caller]
    pub fn wait_link(&self, count: usize) -> Arc<Link> {
        wait_for(&format!("{count} connections at the upstream"), Link::PATIENCE, || {
            let links = self.links();
            links.get(count - 1).cloned().ok_or_else(|| format!("{} connections", links.len()))
        })
    }
}

impl Drop for H2Upstream {
    fn drop(&mut self) {
        self.served.is_stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor; a refused connect means that it has ended.
        let _ = TcpStream::connect(self.address);
        locked(&self.served.links).iter().for_each(|link| link.close());
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept_all(listener: &TcpListener, served: &Arc<Served>) {
    while let Ok((socket, _)) = listener.accept() {
        if served.is_stopped.load(Ordering::SeqCst) {
            return;
        }
        let served = served.clone();
        std::thread::spawn(move || {
            let setup = match &served.part {
                Part::Puppet(setup, _) => setup,
                Part::Script(script) => &script.setup,
            };
            // A connection without a preface is none of ours; the proxy sees it closed.
            let Ok(link) = Link::accept(socket, setup).map(Arc::new) else { return };
            let connection = {
                let mut links = locked(&served.links);
                links.push(link.clone());
                links.len() - 1
            };
            match &served.part {
                Part::Puppet(_, move_it) => move_it(&link),
                Part::Script(_) => serve_streams(&link, connection, &served),
            }
            link.close();
        });
    }
}

/// Starts a thread for each stream that is opened.
fn serve_streams(link: &Arc<Link>, connection: usize, served: &Arc<Served>) {
    let mut last = 0;
    loop {
        let next = link.try_wait("a stream", IDLE, |state| {
            let new = state.streams.range(last + 1..).find(|(_, stream)| !stream.blocks.is_empty()).map(|(id, _)| *id);
            new.map(Some).or_else(|| state.end.as_ref().map(|_| None))
        });
        let Ok(Some(stream)) = next else { return };
        last = stream;
        let (link, served) = (link.clone(), served.clone());
        std::thread::spawn(move || {
            // An error is the other side's end of the stream.
            let _ = serve_stream(&link, stream, connection, &served);
        });
    }
}

fn serve_stream(link: &Link, stream: u32, connection: usize, served: &Served) -> Result<(), String> {
    let Part::Script(script) = &served.part else { return Ok(()) };
    let number = served.numbers.fetch_add(1, Ordering::SeqCst);
    let mut request = recorded(&link.look(|state| state.stream(stream)), connection, number);
    let answer = match (script.on_head)(&request) {
        Some(answer) => answer,
        None => {
            let seen = link.try_wait("the whole request", IDLE, |state| {
                let seen = state.stream(stream);
                let is_over = seen.is_ended || seen.reset.is_some() || state.end.is_some();
                is_over.then_some(seen)
            })?;
            if !seen.is_ended {
                return Ok(());
            }
            request = recorded(&seen, connection, number);
            (script.on_request)(&request)
        }
    };
    locked(&served.requests).push(request);
    run_steps(link, stream, &answer.steps).map_err(|error| error.to_string())
}

fn recorded(seen: &Stream, connection: usize, number: usize) -> Recorded {
    let headers = seen.blocks.first().cloned().unwrap_or_default();
    let pseudo = |name: &str| headers.first(name).unwrap_or_default();
    let (method, target) = (pseudo(":method"), pseudo(":path"));
    let trailers = seen.blocks.get(1).cloned().unwrap_or_default();
    Recorded { method, target, headers, body: seen.body.clone(), trailers, connection, number, ..Recorded::default() }
}

fn run_steps(link: &Link, stream: u32, steps: &[Step]) -> io::Result<()> {
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Body(bytes) => link.send_body(stream, bytes, false)?,
            Step::Close => link.close(),
            Step::End if matches!(steps[at - 1], Step::Fields(_)) => {}
            Step::End => link.send_body(stream, b"", true)?,
            Step::Fields(head) => match steps.get(at + 1) {
                Some(Step::Trailers(trailers)) => link.send_head_and_trailers(stream, head, trailers)?,
                next => link.send_fields(stream, head, matches!(next, Some(Step::End)))?,
            },
            Step::GoAway { above, code } => {
                let last = if *above { stream } else { stream.saturating_sub(2) };
                link.send(&Frame::go_away(last, *code))?;
            }
            Step::Pass(gate) => gate.pass(),
            Step::Pattern(bytes) => {
                let mut at = 0;
                while at < *bytes {
                    let count = usize::try_from(*bytes - at).map_or(PATTERN_BLOCK, |left| left.min(PATTERN_BLOCK));
                    link.send_body(stream, &pattern(at, count), false)?;
                    at += count as u64;
                }
            }
            Step::Reset(code) => link.send(&Frame::reset(stream, *code))?,
            Step::Trailers(_) if matches!(steps[at - 1], Step::Fields(_)) => {}
            Step::Trailers(fields) => link.send_fields(stream, fields, true)?,
        }
    }
    Ok(())
}

/// The headers of a request that are no pseudo-headers.
pub fn plain_headers(headers: &Headers) -> Headers {
    Headers(headers.0.iter().filter(|(name, _)| !name.starts_with(':')).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::super::downstream::H2Downstream;
    use super::super::frame::code;
    use super::*;

    #[test]
    fn client_and_server_understand_each_other() {
        let upstream = H2Upstream::start(|request| match request.target.as_str() {
            "/pattern" => H2Answer::status(200).then_pattern(300_000),
            "/trailers" => H2Answer::ok("body").trailers(&[("grpc-status", "0")]),
            "/refused" => H2Answer::reset(code::REFUSED_STREAM),
            _ => H2Answer::ok(request.body.clone()).after_interim(103),
        });
        let client = H2Downstream::connect(upstream.address()).unwrap();
        let long = pattern(0, 200_000);
        let response = client.request("POST", "/echo", &[("x-a", "1")], &long).unwrap();
        assert_eq!((response.status, response.interim.as_slice(), response.body == long), (200, &[103][..], true));
        assert_eq!(client.get("/pattern").unwrap().body, pattern(0, 300_000));
        assert_eq!(client.get("/trailers").unwrap().trailers.all("grpc-status"), ["0"]);
        let refused = client.send_request("GET", "/refused", &[], b"").unwrap();
        assert_eq!(client.outcome(refused).reset(), code::REFUSED_STREAM);
        assert_eq!(plain_headers(&upstream.requests()[0].headers).0, [("x-a".to_owned(), b"1".to_vec())]);
    }

    #[test]
    fn a_puppet_is_moved_by_hand() {
        let upstream = H2Upstream::puppet(LinkSetup::default().holding(), |link| {
            link.wait("a request", |state| state.streams.get(&1).map(|_| ()));
            link.send(&Frame::go_away(0, code::NO_ERROR)).unwrap();
            link.wait("the client's end", |state| state.end.clone());
        });
        let client = H2Downstream::connect(upstream.address()).unwrap();
        client.send_request("GET", "/", &[], b"").unwrap();
        assert_eq!(client.wait_go_away(), (0, code::NO_ERROR));
    }
}
