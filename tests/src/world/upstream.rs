//! Purpose: an HTTP/1.1 server that does as it is told and writes down, byte for byte, what reached it.
//!
//! Shape: an [`Upstream`] accepts on a thread and serves each connection on another; a script turns each request
//! ([`Recorded`]) into an [`Answer`]: bytes, pauses, [`Gate`]s, a close or a reset.
//!
//! Limits: it keeps the first MiB of each connection and all request bodies, so it is for tests.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

use super::message::{self, BodyLength, Headers};
use super::wait::wait_for;

const KEPT_BYTES_MAX: usize = 1 << 20;
const PATTERN_BLOCK: usize = 64 * 1024;

/// A door that a test opens: whoever waits goes on then.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// How long anyone waits before going on anyway; a test that forgot to open it fails on what follows.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens it for good.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_timeout_while(guard, Self::PATIENCE, |is_open| !*is_open));
    }
}

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Its method.
    pub method: String,
    /// Its target.
    pub target: String,
    /// Its headers.
    pub headers: Headers,
    /// Its head on the wire.
    pub head: Vec<u8>,
    /// Its body, without framing.
    pub body: Vec<u8>,
    /// Its body on the wire.
    pub body_raw: Vec<u8>,
    /// Its trailers.
    pub trailers: Headers,
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// Which request of this upstream it is, from 0.
    pub number: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Bytes(Vec<u8>),
    Close,
    Pass(Gate),
    Pattern(u64),
    Pause(Duration),
    Reset,
}

/// What an upstream does with a request.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    before: Vec<Step>,
    body: Vec<Step>,
    known: Option<u64>,
    is_raw: bool,
}

impl Answer {
    /// An answer with that status and no body.
    pub fn status(status: u16) -> Self {
        Self { status, known: Some(0), ..Self::default() }
    }

    /// 200 with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    /// These bytes and nothing else.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { is_raw: true, body: vec![Step::Bytes(bytes.into())], ..Self::default() }
    }

    /// Closes without a word.
    pub fn nothing() -> Self {
        Self::raw("").then_close()
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body, with a Content-Length.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        self.known = Some(body.len() as u64);
        self.body = vec![Step::Bytes(body)];
        self
    }

    /// Sets the body, in chunks.
    #[must_use]
    pub fn chunks<'a>(mut self, chunks: impl IntoIterator<Item = &'a [u8]>) -> Self {
        self.known = None;
        self.headers.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
        for chunk in chunks {
            let mut bytes = format!("{:x}\r\n", chunk.len()).into_bytes();
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
            self.body.push(Step::Bytes(bytes));
        }
        self.body.push(Step::Bytes(b"0\r\n\r\n".to_vec()));
        self
    }

    /// Sets a body of that many bytes of [`pattern_byte`], with a Content-Length.
    #[must_use]
    pub fn pattern(mut self, bytes: u64) -> Self {
        self.known = Some(bytes);
        self.body = vec![Step::Pattern(bytes)];
        self
    }

    /// Sends no Content-Length: the body ends with the connection.
    #[must_use]
    pub fn until_close(mut self) -> Self {
        self.known = None;
        self.then_close()
    }

    /// Announces a length of its own choice.
    #[must_use]
    pub fn announcing(mut self, length: u64) -> Self {
        self.known = Some(length);
        self
    }

    /// Waits before the first byte.
    #[must_use]
    pub fn delay(mut self, span: Duration) -> Self {
        self.before.push(Step::Pause(span));
        self
    }

    /// Waits for a gate before the first byte.
    #[must_use]
    pub fn after(mut self, gate: &Gate) -> Self {
        self.before.push(Step::Pass(gate.clone()));
        self
    }

    /// Goes on with more bytes of the body.
    #[must_use]
    pub fn then(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body.push(Step::Bytes(bytes.into()));
        self
    }

    /// Waits for a gate at this point of the body.
    #[must_use]
    pub fn then_pass(mut self, gate: &Gate) -> Self {
        self.body.push(Step::Pass(gate.clone()));
        self
    }

    /// Closes after the bytes so far.
    #[must_use]
    pub fn then_close(mut self) -> Self {
        self.body.push(Step::Close);
        self
    }

    /// Resets after the bytes so far.
    #[must_use]
    pub fn then_reset(mut self) -> Self {
        self.body.push(Step::Reset);
        self
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = self.before.clone();
        if !self.is_raw {
            let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
            for (name, value) in &self.headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            let is_bare = (100..200).contains(&self.status) || matches!(self.status, 204 | 304);
            if let Some(length) = self.known.filter(|_| !is_bare) {
                head.push_str(&format!("content-length: {length}\r\n"));
            }
            head.push_str("\r\n");
            steps.push(Step::Bytes(head.into_bytes()));
        }
        steps.extend(self.body.iter().cloned());
        steps
    }
}

/// Byte `offset` of the pattern that [`Answer::pattern`] sends: any shift, loss or repeat shows.
#[allow(clippy::cast_possible_truncation, reason = "a pattern wants the low byte")]
pub fn pattern_byte(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)).wrapping_mul(31) as u8
}

/// The bytes `from..from + count` of the pattern.
pub fn pattern(from: u64, count: usize) -> Vec<u8> {
    (from..).take(count).map(pattern_byte).collect()
}

type OnHead = Box<dyn Fn(&Recorded) -> Option<Answer> + Send + Sync>;
type OnRequest = Box<dyn Fn(&Recorded) -> Answer + Send + Sync>;

/// How an upstream behaves.
pub struct Script {
    /// Asked when the head is there: an answer here is sent without reading the body.
    pub on_head: OnHead,
    /// Asked when the whole request is there.
    pub on_request: OnRequest,
    /// Passed before each body is read.
    pub before_body: Option<Gate>,
    /// Whether `Expect: 100-continue` gets its 100.
    pub continues: bool,
    /// Size of the kernel's receive buffer, when set.
    pub receive_buffer_bytes: Option<usize>,
}

impl fmt::Debug for Script {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Script").field("continues", &self.continues).finish_non_exhaustive()
    }
}

impl Script {
    /// Answers each request as `answer` says.
    pub fn answer(answer: impl Fn(&Recorded) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            on_head: Box::new(|_| None),
            on_request: Box::new(answer),
            before_body: None,
            continues: true,
            receive_buffer_bytes: None,
        }
    }
}

#[derive(Debug)]
struct Served {
    script: Script,
    is_stopped: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
    wires: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    requests: Mutex<Vec<Recorded>>,
    numbers: AtomicUsize,
    open: AtomicUsize,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

/// The scripted server.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    served: Arc<Served>,
    acceptor: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts one that answers each request as `answer` says, on a free port.
    pub fn start(answer: impl Fn(&Recorded) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_script(Script::answer(answer))
    }

    /// Starts one that answers 200 with `name` as its body.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |_| Answer::ok(name))
    }

    /// Starts one on a free port.
    ///
    /// # Panics
    /// When loopback gives no port.
    pub fn start_script(script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        Self::serve(listener, script)
    }

    /// Starts one on that address, where another was before.
    ///
    /// # Panics
    /// When the address stays taken.
    pub fn start_at(address: SocketAddr, answer: impl Fn(&Recorded) -> Answer + Send + Sync + 'static) -> Self {
        let listener = wait_for("the address to be free again", Duration::from_secs(5), || {
            TcpListener::bind(address).map_err(|error| error.to_string())
        });
        Self::serve(listener, Script::answer(answer))
    }

    fn serve(listener: TcpListener, script: Script) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let served = Arc::new(Served {
            script,
            is_stopped: AtomicBool::new(false),
            sockets: Mutex::default(),
            wires: Mutex::default(),
            requests: Mutex::default(),
            numbers: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
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

    /// The requests so far, in the order in which they were complete.
    pub fn requests(&self) -> Vec<Recorded> {
        locked(&self.served.requests).clone()
    }

    /// How many requests were complete so far.
    pub fn request_count(&self) -> usize {
        locked(&self.served.requests).len()
    }

    /// How many connections were accepted so far.
    pub fn connection_count(&self) -> usize {
        locked(&self.served.wires).len()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.served.open.load(Ordering::SeqCst)
    }

    /// Every byte that came, by connection (the first MiB of each).
    pub fn wires(&self) -> Vec<Vec<u8>> {
        locked(&self.served.wires).iter().map(|wire| locked(wire).clone()).collect()
    }

    /// Bytes received.
    pub fn received_bytes(&self) -> u64 {
        self.served.received_bytes.load(Ordering::SeqCst)
    }

    /// Bytes handed to the kernel.
    pub fn sent_bytes(&self) -> u64 {
        self.served.sent_bytes.load(Ordering::SeqCst)
    }

    /// Waits until it had that many requests.
    ///
    /// # Panics
    /// When they do not come in time.
    #[track_caller]
    pub fn wait_requests(&self, count: usize) {
        wait_for(&format!("{count} requests at the upstream"), Duration::from_secs(10), || {
            let seen = self.request_count();
            if seen >= count { Ok(()) } else { Err(format!("{seen} requests")) }
        });
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.served.is_stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor; a refused connect means that it has ended.
        let _ = TcpStream::connect(self.address);
        for socket in locked(&self.served.sockets).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept_all(listener: &TcpListener, served: &Arc<Served>) {
    while let Ok((stream, _)) = listener.accept() {
        if served.is_stopped.load(Ordering::SeqCst) {
            return;
        }
        let served = served.clone();
        if let Ok(clone) = stream.try_clone() {
            locked(&served.sockets).push(clone);
        }
        let wire = Arc::new(Mutex::new(Vec::new()));
        let connection = {
            let mut wires = locked(&served.wires);
            wires.push(wire.clone());
            wires.len() - 1
        };
        served.open.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            // An error here is the other side's end of the connection; what came before it is written down.
            if serve_connection(&stream, connection, &wire, &served).is_ok_and(|next| next == Next::Reset) {
                forget_socket(&stream, &served);
            } else {
                let _ = stream.shutdown(Shutdown::Both);
            }
            served.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Close,
    Request,
    Reset,
}

/// Drops the handle kept for the end of the test: a reset goes out when the last handle closes.
fn forget_socket(stream: &TcpStream, served: &Served) {
    // It fails only when the other side has ended the connection already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    let address = stream.peer_addr().ok();
    locked(&served.sockets).retain(|other| other.peer_addr().ok() != address);
}

/// Writes down what is read through it.
struct Tee<'a> {
    stream: &'a TcpStream,
    wire: &'a Mutex<Vec<u8>>,
    received_bytes: &'a AtomicU64,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.received_bytes.fetch_add(read as u64, Ordering::SeqCst);
        let mut wire = locked(self.wire);
        let room = KEPT_BYTES_MAX.saturating_sub(wire.len()).min(read);
        wire.extend_from_slice(&buffer[..room]);
        Ok(read)
    }
}

fn serve_connection(stream: &TcpStream, connection: usize, wire: &Mutex<Vec<u8>>, served: &Served) -> io::Result<Next> {
    stream.set_nodelay(true)?;
    let script = &served.script;
    if let Some(bytes) = script.receive_buffer_bytes {
        SockRef::from(stream).set_recv_buffer_size(bytes)?;
    }
    let mut reader = BufReader::new(Tee { stream, wire, received_bytes: &served.received_bytes });
    while let Some(head) = message::read_head(&mut reader)? {
        let (method, target, headers) = message::parse_request(&head)?;
        let number = served.numbers.fetch_add(1, Ordering::SeqCst);
        let mut request = Recorded { method, target, headers, head, connection, number, ..Recorded::default() };
        if let Some(answer) = (script.on_head)(&request) {
            locked(&served.requests).push(request);
            match run_steps(stream, &answer.steps(), served)? {
                Next::Request => continue,
                end => return Ok(end),
            }
        }
        if script.continues && request.headers.lists("expect", "100-continue") {
            send(stream, b"HTTP/1.1 100 Continue\r\n\r\n", served)?;
        }
        if let Some(gate) = &script.before_body {
            gate.pass();
        }
        let length = message::body_length(&request.headers)?.unwrap_or(BodyLength::Known(0));
        (request.body, request.trailers) = message::read_body(&mut reader, length, &mut request.body_raw)?;
        let answer = (script.on_request)(&request);
        locked(&served.requests).push(request);
        match run_steps(stream, &answer.steps(), served)? {
            Next::Request => {}
            end => return Ok(end),
        }
    }
    Ok(Next::Close)
}

fn run_steps(stream: &TcpStream, steps: &[Step], served: &Served) -> io::Result<Next> {
    for step in steps {
        match step {
            Step::Bytes(bytes) => send(stream, bytes, served)?,
            Step::Close => return Ok(Next::Close),
            Step::Pass(gate) => gate.pass(),
            Step::Pause(span) => std::thread::sleep(*span),
            Step::Pattern(bytes) => {
                let mut at = 0;
                while at < *bytes {
                    let count = usize::try_from(*bytes - at).map_or(PATTERN_BLOCK, |left| left.min(PATTERN_BLOCK));
                    send(stream, &pattern(at, count), served)?;
                    at += count as u64;
                }
            }
            Step::Reset => return Ok(Next::Reset),
        }
    }
    Ok(Next::Request)
}

fn send(mut stream: &TcpStream, bytes: &[u8], served: &Served) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let wrote = stream.write(&bytes[at..])?;
        served.sent_bytes.fetch_add(wrote as u64, Ordering::SeqCst);
        at += wrote;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::downstream::Downstream;
    use super::*;

    #[test]
    fn it_answers_as_scripted_and_writes_down_every_byte() {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/chunks" => Answer::status(200).chunks([&b"ab"[..], b"c"]),
            _ => Answer::ok("hello").header("x-a", "1"),
        });
        let mut client = Downstream::connect(upstream.address()).unwrap();
        let response = client.request("POST", "/", &[("X-B", "2")], b"body").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        assert_eq!(response.header("X-A").as_deref(), Some("1"));
        assert_eq!(client.get("/chunks").unwrap().text(), "abc");
        assert_eq!(upstream.connection_count(), 1);
        let wire = String::from_utf8(upstream.wires().remove(0)).unwrap();
        assert!(
            wire.starts_with("POST / HTTP/1.1\r\nHost: test\r\nX-B: 2\r\nContent-Length: 4\r\n\r\nbodyGET /chunks")
        );
        assert_eq!(upstream.requests()[0].body, b"body");
    }

    #[test]
    fn it_resets_and_closes() {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/reset" => Answer::ok("x").announcing(10).then_reset(),
            _ => Answer::nothing(),
        });
        let mut client = Downstream::connect(upstream.address()).unwrap();
        let error = client.get("/reset").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        let mut client = Downstream::connect(upstream.address()).unwrap();
        client.send_request("GET", "/", &[], b"").unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"");
    }

    #[test]
    fn the_pattern_shows_a_shift() {
        let one = pattern(0, 70_000);
        assert_eq!(one[65_000..], pattern(65_000, 5_000));
        assert_ne!(one[1..], pattern(0, 69_999));
    }
}
