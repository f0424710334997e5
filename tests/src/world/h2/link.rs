//! Purpose: one HTTP/2 connection, of either role: frames go out as they are given, what comes in is kept and can be waited for.
//!
//! Shape: a [`Link`] has a thread that reads; it acknowledges settings and pings and gives back windows, unless its
//! [`LinkSetup`] says that it does not. A test looks at the [`LinkState`] with [`Link::wait`].
//!
//! Errors: `io::Error` for what cannot be sent. A wait ends after [`Link::PATIENCE`] and says what it waited for.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::frame::{self, Frame, flag, kind, setting};
use super::hpack::{self, Decoder};
use crate::world::message::Headers;

const WINDOW: i64 = 65_535;
const FRAME_BYTES: usize = 16_384;

/// How a link behaves.
#[derive(Clone, Debug)]
pub struct LinkSetup {
    /// What its SETTINGS say.
    pub settings: Vec<(u16, u32)>,
    /// Whether it gives back the windows of what it read.
    pub grants: bool,
    /// Whether it acknowledges SETTINGS and PING.
    pub acknowledges: bool,
    /// Size of the kernel's receive buffer, when set.
    pub receive_buffer_bytes: Option<usize>,
}

impl Default for LinkSetup {
    fn default() -> Self {
        Self { settings: Vec::new(), grants: true, acknowledges: true, receive_buffer_bytes: None }
    }
}

impl LinkSetup {
    /// One that says these settings.
    pub fn settings(pairs: &[(u16, u32)]) -> Self {
        Self { settings: pairs.to_vec(), ..Self::default() }
    }

    /// Gives back no window by itself.
    #[must_use]
    pub fn holding(mut self) -> Self {
        self.grants = false;
        self
    }
}

/// What came on one stream.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Each block of fields: interim answers, the head, then trailers.
    pub blocks: Vec<Headers>,
    /// How many blocks there were when the first byte of the body came.
    pub blocks_before_body: Option<usize>,
    /// The body so far.
    pub body: Vec<u8>,
    /// The other side has said all.
    pub is_ended: bool,
    /// The code of the other side's RST_STREAM.
    pub reset: Option<u32>,
    /// What this side may still send.
    window: i64,
}

/// How the other side ended the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By a close.
    Close,
    /// By a reset, or by what is no HTTP/2.
    Error(String),
}

/// What came so far.
#[derive(Debug)]
pub struct LinkState {
    /// Every frame; a body's bytes are in its stream only.
    pub frames: Vec<Frame>,
    /// The streams by number.
    pub streams: BTreeMap<u32, Stream>,
    /// The last GOAWAY: last stream and code.
    pub go_away: Option<(u32, u32)>,
    /// The end of the connection.
    pub end: Option<End>,
    /// The other side's settings.
    pub settings: BTreeMap<u16, u32>,
    decoder: Decoder,
    open_block: Vec<u8>,
    window: i64,
}

impl LinkState {
    /// A stream; an empty one where nothing came yet.
    pub fn stream(&self, id: u32) -> Stream {
        self.streams.get(&id).cloned().unwrap_or_default()
    }

    /// How many frames of that type came.
    pub fn count(&self, kind: u8) -> usize {
        self.frames.iter().filter(|frame| frame.kind == kind).count()
    }

    fn initial_window(&self) -> i64 {
        self.settings.get(&setting::INITIAL_WINDOW_SIZE).map_or(WINDOW, |size| i64::from(*size))
    }

    fn stream_mut(&mut self, id: u32) -> &mut Stream {
        let window = self.initial_window();
        self.streams.entry(id).or_insert_with(|| Stream { window, ..Stream::default() })
    }

    fn take(&mut self, frame: &Frame) -> Result<(), String> {
        match frame.kind {
            kind::DATA => {
                let content = frame.content().ok_or("padding longer than its frame")?;
                let stream = self.stream_mut(frame.stream);
                stream.blocks_before_body.get_or_insert(stream.blocks.len());
                stream.body.extend_from_slice(content);
            }
            kind::HEADERS => self.open_block = frame.content().ok_or("padding longer than its frame")?.to_vec(),
            kind::CONTINUATION => self.open_block.extend_from_slice(&frame.payload),
            kind::RST_STREAM => self.stream_mut(frame.stream).reset = Some(frame.number(0)),
            kind::GOAWAY => self.go_away = Some((frame.number(0) & 0x7fff_ffff, frame.number(4))),
            kind::WINDOW_UPDATE if frame.stream == 0 => self.window += i64::from(frame.number(0)),
            kind::WINDOW_UPDATE => self.stream_mut(frame.stream).window += i64::from(frame.number(0)),
            kind::SETTINGS => self.take_settings(frame),
            _ => {}
        }
        if matches!(frame.kind, kind::HEADERS | kind::CONTINUATION) && frame.has(flag::END_HEADERS) {
            let fields = self.decoder.decode(&self.open_block)?;
            self.stream_mut(frame.stream).blocks.push(Headers(fields));
        }
        if matches!(frame.kind, kind::DATA | kind::HEADERS) && frame.has(flag::END_STREAM) {
            self.stream_mut(frame.stream).is_ended = true;
        }
        Ok(())
    }

    fn take_settings(&mut self, frame: &Frame) {
        let before = self.initial_window();
        for pair in frame.payload.chunks_exact(6) {
            let value = u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]);
            self.settings.insert(u16::from_be_bytes([pair[0], pair[1]]), value);
        }
        let change = self.initial_window() - before;
        self.streams.values_mut().for_each(|stream| stream.window += change);
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<LinkState>,
    changed: Condvar,
    socket: TcpStream,
    /// Held while a frame, or frames that belong together, go out.
    sending: Mutex<()>,
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    next_stream: AtomicU32,
    reader: Option<JoinHandle<()>>,
}

impl Link {
    /// The longest wait.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// Connects as a client and sends its preface.
    pub fn connect(address: SocketAddr, setup: &LinkSetup) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        if let Some(bytes) = setup.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect_timeout(&address.into(), Self::PATIENCE)?;
        Self::over(socket.into(), setup, frame::PREFACE)
    }

    /// Takes a connection as a server, once its preface is there.
    pub fn accept(mut socket: TcpStream, setup: &LinkSetup) -> io::Result<Self> {
        let mut preface = [0; 24];
        io::Read::read_exact(&mut socket, &mut preface)?;
        if preface != frame::PREFACE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no preface: {}", preface.escape_ascii())));
        }
        Self::over(socket, setup, b"")
    }

    fn over(mut socket: TcpStream, setup: &LinkSetup, preface: &[u8]) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(Self::PATIENCE))?;
        // Before anything is read: the first frame that a peer gets must be SETTINGS, no acknowledgement.
        socket.write_all(&[preface, &Frame::settings(&setup.settings).bytes()].concat())?;
        let state = LinkState {
            frames: Vec::new(),
            streams: BTreeMap::new(),
            go_away: None,
            end: None,
            settings: BTreeMap::new(),
            decoder: Decoder::default(),
            open_block: Vec::new(),
            window: WINDOW,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            socket: socket.try_clone()?,
            sending: Mutex::default(),
        });
        let reader = std::thread::spawn({
            let (shared, setup) = (shared.clone(), setup.clone());
            move || read_all(&shared, socket, &setup)
        });
        Ok(Self { shared, next_stream: AtomicU32::new(1), reader: Some(reader) })
    }

    /// Sends exactly these bytes.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.shared.send(bytes)
    }

    /// Sends a frame.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        self.shared.send(&frame.bytes())
    }

    /// The next stream number of a client.
    pub fn next_stream(&self) -> u32 {
        self.next_stream.fetch_add(2, Ordering::SeqCst)
    }

    /// Sends a block of fields, in as many frames as it takes.
    pub fn send_fields<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        stream: u32,
        fields: &[(N, V)],
        is_end: bool,
    ) -> io::Result<()> {
        self.send_bytes(&field_frames(stream, fields, is_end))
    }

    /// Sends a head and the trailers that end its stream, by one write: a reader finds both or neither.
    pub fn send_head_and_trailers<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        stream: u32,
        head: &[(N, V)],
        trailers: &[(N, V)],
    ) -> io::Result<()> {
        self.send_bytes(&[field_frames(stream, head, false), field_frames(stream, trailers, true)].concat())
    }

    /// Sends a body as far as the windows allow and waits for more; `Interrupted` when the stream was reset or has no end.
    pub fn send_body(&self, stream: u32, body: &[u8], is_end: bool) -> io::Result<()> {
        let mut rest = body;
        loop {
            let room = match self.take_room(stream, rest.len()) {
                Ok(room) => room,
                Err(why) => return Err(io::Error::new(io::ErrorKind::Interrupted, why)),
            };
            let (piece, after) = rest.split_at(room);
            rest = after;
            self.send(&Frame::data(stream, piece, is_end && rest.is_empty()))?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Takes as much of the windows as one frame of `wanted` bytes may have.
    fn take_room(&self, stream: u32, wanted: usize) -> Result<usize, String> {
        self.shared.wait("room in the windows", Self::PATIENCE * 2, |state| {
            let is_over = state.end.is_some();
            let own = state.stream_mut(stream);
            if is_over || own.reset.is_some() {
                return Some(Err("the stream is over".to_owned()));
            }
            let own = own.window;
            let room = usize::try_from(own.min(state.window)).unwrap_or(0).min(wanted).min(FRAME_BYTES);
            if room == 0 && wanted > 0 {
                return None;
            }
            let taken = i64::try_from(room).unwrap_or(0);
            state.window -= taken;
            state.stream_mut(stream).window -= taken;
            Some(Ok(room))
        })?
    }

    /// Gives the other side room to send: on a stream, or with 0 on the connection.
    pub fn grant(&self, stream: u32, bytes: u32) -> io::Result<()> {
        self.send(&Frame::window_update(stream, bytes))
    }

    /// What came so far.
    pub fn look<T>(&self, see: impl FnOnce(&LinkState) -> T) -> T {
        see(&self.shared.lock())
    }

    /// Waits until `see` gives something.
    ///
    /// # Panics
    /// When it does not within [`Link::PATIENCE`]; the last frames are in the message.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, mut see: impl FnMut(&LinkState) -> Option<T>) -> T {
        self.try_wait(what, Self::PATIENCE, &mut see).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Link::wait`], with an error after `limit`.
    pub fn try_wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut see: impl FnMut(&LinkState) -> Option<T>,
    ) -> Result<T, String> {
        self.shared.wait(what, limit, |state| see(state))
    }

    /// Waits for the other side's end of the connection.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_end(&self) -> End {
        self.wait("the end of the connection", |state| state.end.clone())
    }

    /// Waits for GOAWAY and gives its last stream and code.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_go_away(&self) -> (u32, u32) {
        self.wait("GOAWAY", |state| state.go_away)
    }

    /// Ends our sending side.
    pub fn finish_sending(&self) -> io::Result<()> {
        self.shared.socket.shutdown(Shutdown::Write)
    }

    /// Ends the connection.
    pub fn close(&self) {
        // It fails only when the other side has ended it already.
        let _ = self.shared.socket.shutdown(Shutdown::Both);
    }

    /// Ends the connection by a reset.
    pub fn reset(mut self) {
        let _ = SockRef::from(&self.shared.socket).set_linger(Some(Duration::ZERO));
        let _ = self.shared.socket.shutdown(Shutdown::Read);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.close();
            let _ = reader.join();
        }
    }
}

/// A block of fields as HEADERS and, where it is long, CONTINUATION.
fn field_frames<N: AsRef<[u8]>, V: AsRef<[u8]>>(stream: u32, fields: &[(N, V)], is_end: bool) -> Vec<u8> {
    let block = hpack::block(fields);
    let mut pieces: Vec<Frame> =
        block.chunks(FRAME_BYTES).map(|piece| Frame::new(kind::CONTINUATION, 0, stream, piece)).collect();
    pieces[0].kind = kind::HEADERS;
    pieces[0].flags = if is_end { flag::END_STREAM } else { 0 };
    if let Some(last) = pieces.last_mut() {
        last.flags |= flag::END_HEADERS;
    }
    pieces.iter().flat_map(Frame::bytes).collect()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.socket).write_all(bytes)
    }

    fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut see: impl FnMut(&mut LinkState) -> Option<T>,
    ) -> Result<T, String> {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = see(&mut state) {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last: Vec<&Frame> = state.frames.iter().rev().take(8).collect();
                return Err(format!("waited {limit:?} for {what}; end {:?}; last frames {last:?}", state.end));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn read_all(shared: &Shared, socket: TcpStream, setup: &LinkSetup) {
    let mut reader = BufReader::with_capacity(64 * 1024, socket);
    let end = loop {
        let mut frame = match frame::read_frame(&mut reader) {
            Ok(Some(frame)) => frame,
            Ok(None) => break End::Close,
            Err(error) => break End::Error(error.to_string()),
        };
        let taken = shared.lock().take(&frame);
        // What cannot be sent any more is no matter: reading on finds the end.
        let _ = reply(shared, &frame, setup);
        if frame.kind == kind::DATA {
            frame.payload = Vec::new();
        }
        shared.lock().frames.push(frame);
        shared.changed.notify_all();
        if let Err(error) = taken {
            break End::Error(error);
        }
    };
    shared.lock().end = Some(end);
    shared.changed.notify_all();
}

fn reply(shared: &Shared, frame: &Frame, setup: &LinkSetup) -> io::Result<()> {
    let length = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
    match frame.kind {
        kind::SETTINGS | kind::PING if setup.acknowledges && !frame.has(flag::ACK) => {
            let payload = if frame.kind == kind::PING { frame.payload.clone() } else { Vec::new() };
            shared.send(&Frame::new(frame.kind, flag::ACK, 0, payload).bytes())
        }
        kind::DATA if setup.grants && length > 0 => {
            let own = Frame::window_update(frame.stream, length).bytes();
            let is_over = frame.has(flag::END_STREAM);
            let all = Frame::window_update(0, length).bytes();
            shared.send(&if is_over { all } else { [own, all].concat() })
        }
        _ => Ok(()),
    }
}
