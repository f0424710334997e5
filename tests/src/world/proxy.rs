//! Purpose: `outrigger-proxy` as a process: started with a bootstrap, ready, asked over its admin port, stopped.
//!
//! Shape: [`ProxySetup`] says how; [`Proxy`] is the running process. Addresses come from its ready line, so a bootstrap
//! says port 0.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::downstream::{Downstream, Response};
use super::envoy::{self, Envoy};
use super::h2::{H2Downstream, LinkSetup};
use super::process::{Launch, Process};
use super::scratch::Scratch;
use super::wait::wait_for;

/// How long a proxy may take to be ready.
pub const READY_WITHIN: Duration = Duration::from_secs(20);

/// The I/O drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Chosen at start.
    Auto,
    /// epoll.
    Epoll,
    /// io_uring.
    Uring,
}

impl Io {
    /// As the command line has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }
}

/// What a proxy is started with.
#[derive(Clone, Debug)]
pub struct ProxySetup {
    /// Its bootstrap, an Envoy bootstrap.
    pub bootstrap: Value,
    /// Its driver.
    pub io: Io,
    /// Its workers; 0 leaves the number to it.
    pub workers: usize,
    /// Further arguments.
    pub args: Vec<String>,
    /// Whether io_uring is forbidden to it by seccomp.
    pub denies_io_uring: bool,
}

impl ProxySetup {
    /// One worker with that driver.
    pub fn new(io: Io, bootstrap: Value) -> Self {
        Self { bootstrap, io, workers: 1, args: Vec::new(), denies_io_uring: false }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Sets the number of workers.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    listeners: BTreeMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
    io: String,
    _scratch: Scratch,
}

impl Proxy {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready; its log is in the message.
    #[track_caller]
    pub fn start(setup: &ProxySetup) -> Self {
        Self::try_start("proxy", setup).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts one and waits until it is ready.
    pub fn try_start(label: &str, setup: &ProxySetup) -> io::Result<Self> {
        if let Ok(program) = std::env::var(envoy::STAND_IN) {
            return Self::start_envoy(&program, setup);
        }
        let (mut process, scratch) = Self::spawn(label, setup)?;
        let line = process.wait_line("outrigger-proxy ready ", READY_WITHIN)?;
        let mut listeners = BTreeMap::new();
        let (mut admin, mut io) = (None, String::new());
        for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "listeners" => listeners = parse_listeners(value),
                "admin" => admin = value.parse().ok(),
                "io" => value.clone_into(&mut io),
                _ => {}
            }
        }
        Ok(Self { process, listeners, admin, io, _scratch: scratch })
    }

    /// Starts an Envoy in its place.
    fn start_envoy(program: &str, setup: &ProxySetup) -> io::Result<Self> {
        let envoy = Envoy::start(program, &setup.bootstrap)?;
        let listeners = setup.bootstrap["static_resources"]["listeners"].as_array().cloned().unwrap_or_default();
        let names = listeners.iter().filter_map(|one| one["name"].as_str());
        let listeners = names.map(|name| (name.to_owned(), envoy.listener(name))).collect();
        let (process, admin, scratch) = envoy.into_parts();
        Ok(Self { process, listeners, admin: Some(admin), io: "envoy".to_owned(), _scratch: scratch })
    }

    /// Whether it is what it is called, and no stand-in.
    pub fn is_ours(&self) -> bool {
        self.io != "envoy"
    }

    /// Starts one and does not wait.
    pub fn spawn(label: &str, setup: &ProxySetup) -> io::Result<(Process, Scratch)> {
        let scratch = Scratch::new(label)?;
        let bootstrap = scratch.write("bootstrap.json", &format!("{:#}", setup.bootstrap))?;
        let mut launch = Launch::built("outrigger-proxy")?;
        launch.denies_io_uring = setup.denies_io_uring;
        let workers = if setup.workers == 0 { "auto".to_owned() } else { setup.workers.to_string() };
        let launch = launch
            .args(["-c".into(), bootstrap.into_os_string()])
            .args(["--io", setup.io.as_str(), "--workers", &workers])
            .args(&setup.args);
        Ok((Process::start(label, &launch)?, scratch))
    }

    /// The address of a listener.
    ///
    /// # Panics
    /// When it has no such listener.
    #[track_caller]
    pub fn listener(&self, name: &str) -> SocketAddr {
        *self.listeners.get(name).unwrap_or_else(|| panic!("no listener {name:?} in {:?}", self.listeners))
    }

    /// Its listeners by name.
    pub fn listeners(&self) -> &BTreeMap<String, SocketAddr> {
        &self.listeners
    }

    /// The driver it runs.
    pub fn io(&self) -> &str {
        &self.io
    }

    /// Its admin address.
    ///
    /// # Panics
    /// When its bootstrap has none.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("the bootstrap has an admin address")
    }

    /// A new connection to its listener `main`.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn connect(&self) -> Downstream {
        Downstream::connect(self.listener("main")).expect("the listener accepts")
    }

    /// A new HTTP/2 connection to its listener `main`.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn connect_h2(&self) -> H2Downstream {
        self.connect_h2_with(&LinkSetup::default())
    }

    /// As above, with settings of its own.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn connect_h2_with(&self, setup: &LinkSetup) -> H2Downstream {
        H2Downstream::connect_with(self.listener("main"), setup).expect("the listener accepts")
    }

    /// A GET on its listener `main`, on a connection of its own.
    pub fn get(&self, target: &str) -> io::Result<Response> {
        super::downstream::get(self.listener("main"), target)
    }

    /// A GET on its admin port.
    pub fn admin_get(&self, target: &str) -> io::Result<Response> {
        super::downstream::get(self.admin(), target)
    }

    /// JSON from its admin port.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn admin_json(&self, target: &str) -> Value {
        let response = self.admin_get(target).unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(response.status, 200, "{target}: {}", response.text());
        serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{target}: {error}: {}", response.text()))
    }

    /// The sum of all samples of a metric whose labels include `labels`.
    ///
    /// # Panics
    /// When the metrics cannot be read.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let response = self.admin_get("/stats/prometheus").expect("the admin port answers");
        sum_samples(&response.text(), name, labels)
    }

    /// Waits until the metric is at least `least`.
    ///
    /// # Panics
    /// When it does not get there in time.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        wait_for(&format!("{name}{labels:?} >= {least}"), Duration::from_secs(10), || {
            let value = self.metric(name, labels);
            if value >= least { Ok(()) } else { Err(format!("{value}")) }
        });
    }

    /// Asks it to drain now, without waiting for peers to send elsewhere.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn interrupt(&mut self) {
        self.process.signal(Signal::INT).expect("our own child takes a signal");
    }

    /// Asks it to end.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn terminate(&mut self) {
        self.process.signal(Signal::TERM).expect("our own child takes a signal");
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<String> {
        self.process.log()
    }

    /// Memory it holds.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes().expect("it runs")
    }

    /// How often its thread of this name has gone to sleep.
    ///
    /// # Panics
    /// When it has ended, or has no such thread.
    pub fn sleeps(&self, thread: &str) -> u64 {
        self.process.sleeps(thread).expect("it runs")
    }
}

/// `name=ADDR,name=ADDR`.
fn parse_listeners(text: &str) -> BTreeMap<String, SocketAddr> {
    let pairs = text.split(',').filter_map(|pair| pair.rsplit_once('='));
    pairs.filter_map(|(name, address)| Some((name.to_owned(), address.parse().ok()?))).collect()
}

/// Adds up the samples of a metric in the Prometheus text format.
pub fn sum_samples(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_with_several_listeners_is_read() {
        let listeners = parse_listeners("a=127.0.0.1:1,b=[::1]:2");
        assert_eq!(listeners["a"].port(), 1);
        assert_eq!(listeners["b"].port(), 2);
    }

    #[test]
    fn samples_are_added_up_by_label() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\nab{x=\"1\"} 5\na 6\n";
        assert!((sum_samples(text, "a", &[("x", "1")]) - 7.0).abs() < f64::EPSILON);
        assert!((sum_samples(text, "a", &[]) - 13.0).abs() < f64::EPSILON);
    }
}
