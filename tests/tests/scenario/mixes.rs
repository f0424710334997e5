//! Both ends of the proxy in either version of HTTP, for scenarios that hold in every mix.

use outrigger_tests::world::h2::{H2Script, LinkSetup};
use outrigger_tests::world::resource::{self, cluster, http2_cluster};
use outrigger_tests::world::upstream::{Recorded, Script};
use outrigger_tests::world::{
    Answer, Downstream, H2Answer, H2Downstream, H2Upstream, Io, Proxy, ProxySetup, Response, Upstream,
};
use serde_json::{Value, json};

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http {
    One,
    Two,
}

/// Downstream and upstream.
pub(super) const MIXES: [(Http, Http); 4] =
    [(Http::One, Http::One), (Http::One, Http::Two), (Http::Two, Http::One), (Http::Two, Http::Two)];

/// An answer that can be given in both.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(&'static str, &'static str)>,
}

impl Reply {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub(super) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn with_body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    fn in_one(&self) -> Answer {
        if !self.trailers.is_empty() {
            return Answer::raw(self.chunked_with_trailers());
        }
        let answer = Answer::status(self.status);
        let answer = self.headers.iter().fold(answer, |answer, (name, value)| answer.header(name, value));
        if self.headers.iter().any(|(name, _)| *name == "content-length") {
            answer
        } else {
            answer.body(self.body.clone())
        }
    }

    fn chunked_with_trailers(&self) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 {} Scripted\r\ntransfer-encoding: chunked\r\n", self.status).into_bytes();
        self.headers.iter().for_each(|(name, value)| bytes.extend(format!("{name}: {value}\r\n").bytes()));
        bytes.extend(format!("\r\n{:x}\r\n", self.body.len()).bytes());
        bytes.extend_from_slice(&self.body);
        bytes.extend(b"\r\n0\r\n");
        self.trailers.iter().for_each(|(name, value)| bytes.extend(format!("{name}: {value}\r\n").bytes()));
        bytes.extend(b"\r\n");
        bytes
    }

    fn in_two(&self) -> H2Answer {
        let answer = H2Answer::status(self.status);
        let mut answer = self.headers.iter().fold(answer, |answer, (name, value)| answer.header(name, value));
        if !self.body.is_empty() {
            answer = answer.then(self.body.clone());
        }
        if self.trailers.is_empty() { answer } else { answer.trailers(&self.trailers) }
    }
}

/// An application in one version.
#[derive(Debug)]
pub(super) enum App {
    One(Upstream),
    Two(H2Upstream),
}

impl App {
    pub(super) fn start(version: Http, reply: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        match version {
            Http::One => Self::One(Upstream::start(move |request| reply(request).in_one())),
            Http::Two => Self::Two(H2Upstream::start(move |request| reply(request).in_two())),
        }
    }

    /// Answers as soon as the head is there.
    pub(super) fn early(version: Http, reply: impl Fn(&Recorded) -> Option<Reply> + Send + Sync + 'static) -> Self {
        match version {
            Http::One => {
                let mut script = Script::answer(|_| Answer::ok("late"));
                script.on_head = Box::new(move |request| {
                    reply(request).map(|reply| reply.in_one().header("connection", "close").then_close())
                });
                Self::One(Upstream::start_script(script))
            }
            Http::Two => {
                let mut script = H2Script::answer(|_| H2Answer::ok("late"));
                script.on_head = Box::new(move |request| reply(request).map(|reply| reply.in_two()));
                Self::Two(H2Upstream::start_script(script))
            }
        }
    }

    /// Sends back what comes.
    pub(super) fn echo(version: Http) -> Self {
        Self::start(version, |request| Reply::ok(request.body.clone()))
    }

    pub(super) fn requests(&self) -> Vec<Recorded> {
        match self {
            Self::One(upstream) => upstream.requests(),
            Self::Two(upstream) => upstream.requests(),
        }
    }

    /// The cluster `app` of it alone.
    pub(super) fn cluster(&self) -> Value {
        match self {
            Self::One(upstream) => cluster("app", &[upstream.address()]),
            Self::Two(upstream) => http2_cluster("app", &[upstream.address()]),
        }
    }

    /// A proxy that forwards everything to it.
    pub(super) fn behind(&self, io: Io) -> Proxy {
        self.behind_with(io, json!({}))
    }

    /// As above, with settings of the connection manager.
    pub(super) fn behind_with(&self, io: Io, http: Value) -> Proxy {
        Proxy::start(&ProxySetup::new(io, resource::forwarding_with(http, self.cluster())))
    }
}

/// The authority that a request arrived with, whichever version it came in.
pub(super) fn authority(request: &Recorded) -> Vec<String> {
    [request.headers.all(":authority"), request.headers.all("host")].concat()
}

/// A client in one version.
#[derive(Debug)]
pub(super) enum Client {
    One(Downstream),
    Two(H2Downstream),
}

impl Client {
    pub(super) fn connect(version: Http, proxy: &Proxy) -> Self {
        match version {
            Http::One => Self::One(proxy.connect()),
            Http::Two => Self::Two(proxy.connect_h2()),
        }
    }

    #[track_caller]
    pub(super) fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let answer = match self {
            Self::One(client) => client.request(method, target, headers, body),
            Self::Two(client) => client.request(method, target, headers, body),
        };
        answer.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    #[track_caller]
    pub(super) fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }
}

/// A client that gives back no window by itself, with small windows of its streams.
pub(super) fn slow_reader(proxy: &Proxy, stream_window: u32) -> H2Downstream {
    let initial = outrigger_tests::world::h2::frame::setting::INITIAL_WINDOW_SIZE;
    proxy.connect_h2_with(&LinkSetup::settings(&[(initial, stream_window)]).holding())
}
