//! Purpose: many downstreams at once, every answer looked at.
//!
//! Shape: [`Load::start`] spawns one thread per connection; [`RunningLoad::stop`] ends them and gives the [`Tally`].
//! Without a rate each thread sends as soon as it is answered (closed loop); with one, request n leaves at its time,
//! late or not, so a slow answer does not lower the rate that is asked for (open loop, as far as threads are free).
//!
//! Limits: it stops by itself at its deadline.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::downstream::{Downstream, Response};

/// One request of a load.
#[derive(Clone, Debug, Default)]
pub struct LoadRequest {
    /// Method.
    pub method: &'static str,
    /// Target.
    pub target: String,
    /// Headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl LoadRequest {
    /// A GET.
    pub fn get(target: &str) -> Self {
        Self { method: "GET", target: target.to_owned(), ..Self::default() }
    }
}

type Request = dyn Fn(u64) -> LoadRequest + Send + Sync;
type Verdict = dyn Fn(u64, &Response) -> Result<&'static str, String> + Send + Sync;

/// A load to be run.
pub struct Load {
    /// Where to.
    pub address: SocketAddr,
    /// How many connections, one thread each.
    pub connections: usize,
    /// Requests a second over all connections; `None`: as fast as answers come.
    pub rate: Option<f64>,
    /// It stops by itself after this long.
    pub limit: Duration,
    /// Request n.
    pub request: Box<Request>,
    /// What the answer to request n counts as, or what is wrong with it.
    pub verdict: Box<Verdict>,
}

impl std::fmt::Debug for Load {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Load").field("address", &self.address).field("rate", &self.rate).finish_non_exhaustive()
    }
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests sent.
    pub sent: u64,
    /// Answers by what the verdict called them.
    pub answers: BTreeMap<&'static str, u64>,
    /// Requests without a good answer.
    pub failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// Time to the end of each answer, in the order of arrival, by thread.
    pub latencies: Vec<Duration>,
}

impl Tally {
    /// Answers of that name.
    pub fn count(&self, name: &str) -> u64 {
        self.answers.get(name).copied().unwrap_or(0)
    }

    /// The latency below which that share of the answers lies.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index below the length, from a share of it"
        )]
        let at = (share * sorted.len() as f64) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn add(&mut self, other: Self) {
        const FAILURES_KEPT: usize = 20;
        self.sent += other.sent;
        self.failed += other.failed;
        for (name, count) in other.answers {
            *self.answers.entry(name).or_default() += count;
        }
        let room = FAILURES_KEPT.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.into_iter().take(room));
        self.latencies.extend(other.latencies);
    }

    /// Panics unless something was sent and all of it was answered well.
    ///
    /// # Panics
    /// When a request failed.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.sent > 0, "the load sent nothing");
        assert!(self.failed == 0, "{} of {} requests failed: {:#?}", self.failed, self.sent, self.failures);
    }
}

#[derive(Debug)]
struct Shared {
    load: Load,
    is_stopped: AtomicBool,
    next: AtomicU64,
    start: Instant,
    tally: Mutex<Tally>,
}

/// A load under way.
#[derive(Debug)]
pub struct RunningLoad {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it.
    pub fn start(self) -> RunningLoad {
        let connections = self.connections;
        let shared = Arc::new(Shared {
            load: self,
            is_stopped: AtomicBool::new(false),
            next: AtomicU64::new(0),
            start: Instant::now(),
            tally: Mutex::default(),
        });
        let run = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || run_connection(&shared))
        };
        let threads = (0..connections).map(run).collect();
        RunningLoad { shared, threads }
    }
}

impl RunningLoad {
    /// What came so far.
    pub fn tally(&self) -> Tally {
        self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it after the answers under way.
    pub fn stop(mut self) -> Tally {
        self.end();
        self.tally()
    }

    fn end(&mut self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        self.end();
    }
}

fn run_connection(shared: &Shared) {
    let mut connection = None;
    loop {
        let number = shared.next.fetch_add(1, Ordering::SeqCst);
        if !wait_turn(shared, number) {
            return;
        }
        let mut tally = Tally { sent: 1, ..Tally::default() };
        let begun = Instant::now();
        match exchange(&mut connection, shared, number) {
            Ok(name) => {
                tally.answers.insert(name, 1);
                tally.latencies.push(begun.elapsed());
            }
            Err(failure) => {
                connection = None;
                tally.failed = 1;
                tally.failures.push(format!("request {number}: {failure}"));
            }
        }
        shared.tally.lock().unwrap_or_else(PoisonError::into_inner).add(tally);
    }
}

/// Waits for the time of request `number`; false when the load is over.
fn wait_turn(shared: &Shared, number: u64) -> bool {
    const NAP: Duration = Duration::from_millis(20);
    #[allow(clippy::cast_precision_loss, reason = "request numbers stay far below 2^52")]
    let due = shared.load.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(number as f64 / rate));
    loop {
        let now = shared.start.elapsed();
        if shared.is_stopped.load(Ordering::SeqCst) || now >= shared.load.limit || due >= shared.load.limit {
            return false;
        }
        match due.checked_sub(now) {
            None | Some(Duration::ZERO) => return true,
            Some(left) => std::thread::sleep(left.min(NAP)),
        }
    }
}

fn exchange(connection: &mut Option<Downstream>, shared: &Shared, number: u64) -> Result<&'static str, String> {
    let load = &shared.load;
    let request = (load.request)(number);
    let mut open = match connection.take() {
        Some(open) => open,
        None => Downstream::connect(load.address).map_err(|error| format!("connect: {error}"))?,
    };
    let headers: Vec<(&str, &str)> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let shown = |error: io::Error| format!("{} {}: {error}", request.method, request.target);
    let response = open.request(request.method, &request.target, &headers, &request.body).map_err(shown)?;
    let name = (load.verdict)(number, &response)?;
    if !response.says_close() {
        *connection = Some(open);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::super::upstream::{Answer, Upstream};
    use super::*;

    #[test]
    fn a_paced_load_keeps_its_rate_and_counts_every_answer() {
        let upstream = Upstream::start(|request| match request.number % 4 {
            0 => Answer::status(429),
            _ => Answer::ok("ok"),
        });
        let load = Load {
            address: upstream.address(),
            connections: 4,
            rate: Some(400.0),
            limit: Duration::from_millis(500),
            request: Box::new(|number| LoadRequest::get(&format!("/{number}"))),
            verdict: Box::new(|_, response| match response.status {
                200 => Ok("served"),
                429 => Ok("limited"),
                status => Err(format!("status {status}")),
            }),
        };
        let running = load.start();
        super::super::wait_for("the end of the load", Duration::from_secs(5), || {
            let sent = running.tally().sent;
            if sent >= 200 { Ok(()) } else { Err(format!("{sent} sent")) }
        });
        let tally = running.stop();
        tally.assert_clean();
        assert_eq!(tally.sent, 200);
        assert_eq!((tally.count("served"), tally.count("limited")), (150, 50));
    }

    #[test]
    fn a_failure_is_counted_and_said() {
        let upstream = Upstream::start(|_| Answer::nothing());
        let load = Load {
            address: upstream.address(),
            connections: 1,
            rate: Some(100.0),
            limit: Duration::from_millis(50),
            request: Box::new(|_| LoadRequest::get("/")),
            verdict: Box::new(|_, _| Ok("served")),
        };
        let running = load.start();
        super::super::wait_for("five requests", Duration::from_secs(5), || {
            if running.tally().sent >= 5 { Ok(()) } else { Err(String::new()) }
        });
        let tally = running.stop();
        assert_eq!((tally.sent, tally.failed), (5, 5));
        assert!(tally.failures[0].contains("closed before an answer"), "{:?}", tally.failures);
    }
}
