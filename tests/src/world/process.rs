//! Purpose: one child process: its log is kept, its lines can be waited for, and it never outlives us.
//!
//! Shape: started through `outrigger-launch`, which ties it to the starting thread; two threads collect what it
//! prints. Dropping it kills it by its id and reaps it; a panic on the way shows its log.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::binary;

const POLL_EVERY: Duration = Duration::from_millis(2);
const LOG_WITHIN: Duration = Duration::from_secs(1);

/// What a process is started with.
#[derive(Debug, Default)]
pub struct Launch {
    /// Name of a binary of this workspace, or a path.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Environment added to ours.
    pub env: Vec<(String, String)>,
    /// Whether io_uring is forbidden to it.
    pub denies_io_uring: bool,
}

impl Launch {
    /// A binary of this workspace.
    pub fn built(name: &str) -> io::Result<Self> {
        Ok(Self { program: binary::find(name)?.into_os_string(), ..Self::default() })
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }
}

/// A running child process.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    exit: Option<ExitStatus>,
    /// The log is shown when a panic drops it.
    pub is_loud: bool,
}

impl Process {
    /// Starts it.
    pub fn start(label: &str, launch: &Launch) -> io::Result<Self> {
        let mut command = Command::new(binary::find("outrigger-launch")?);
        if launch.denies_io_uring {
            command.arg("--deny-io-uring");
        }
        command.arg(&launch.program).args(&launch.args);
        command.envs(launch.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(collect_lines(stdout, log.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(collect_lines(stderr, log.clone()));
        }
        Ok(Self { label: label.to_owned(), child, log, readers, exit: None, is_loud: true })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far, both streams.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the first line that holds `text`; an error when it ends before, or in vain.
    pub fn wait_line(&mut self, text: &str, limit: Duration) -> io::Result<String> {
        let end = Instant::now() + limit;
        loop {
            let ended = self.try_exit()?;
            if let Some(line) = self.log().into_iter().find(|line| line.contains(text)) {
                return Ok(line);
            }
            if let Some(status) = ended {
                return Err(self.failure(&format!("ended with {status} before it printed {text:?}")));
            }
            if Instant::now() >= end {
                return Err(self.failure(&format!("did not print {text:?} within {limit:?}")));
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// Its end, when it has ended; its log is complete then.
    pub fn try_exit(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait()?;
            if self.exit.is_some() {
                self.join_readers();
            }
        }
        Ok(self.exit)
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_exit()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                return Err(self.failure(&format!("still runs after {limit:?}")));
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// Sends a signal to it, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.try_exit()?.is_some() {
            return Ok(());
        }
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a positive id");
        Ok(kill_process(id, signal)?)
    }

    /// Kills it at once and reaps it.
    pub fn kill(&mut self) {
        if self.exit.is_none() {
            // An error here means that it has ended already.
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
            self.join_readers();
        }
    }

    /// Memory it holds.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib =
            text.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.split_whitespace().next());
        let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| self.failure("has no VmRSS line"))
    }

    /// How often its thread of this name has gone to sleep: what has nothing to do does so as often as it woke.
    pub fn sleeps(&self, thread: &str) -> io::Result<u64> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id()))?;
        for entry in threads {
            let text = std::fs::read_to_string(entry?.path().join("status"))?;
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if field("Name:") == Some(thread) {
                let count = field("voluntary_ctxt_switches:").and_then(|count| count.parse().ok());
                return count.ok_or_else(|| self.failure("does not count how often it sleeps"));
            }
        }
        Err(self.failure(&format!("has no thread {thread:?}")))
    }

    /// An error that shows the log.
    pub fn failure(&self, what: &str) -> io::Error {
        io::Error::other(format!("{} (pid {}) {what}; its log:\n{}", self.label, self.id(), self.log_tail()))
    }

    fn log_tail(&self) -> String {
        const SHOWN: usize = 60;
        let log = self.log();
        log.iter().skip(log.len().saturating_sub(SHOWN)).map(|line| format!("    {line}\n")).collect()
    }

    /// Waits for the rest of the log; a grandchild that holds the pipes open is not waited for.
    fn join_readers(&mut self) {
        let end = Instant::now() + LOG_WITHIN;
        for reader in self.readers.drain(..) {
            while !reader.is_finished() && Instant::now() < end {
                std::thread::sleep(POLL_EVERY);
            }
            if reader.is_finished() {
                let _ = reader.join();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if self.is_loud && std::thread::panicking() {
            eprintln!("--- log of {} (pid {}), last lines\n{}", self.label, self.id(), self.log_tail());
        }
    }
}

fn collect_lines(stream: impl Read + Send + 'static, log: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    const LINES_MAX: usize = 100_000;
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { break };
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() < LINES_MAX {
                log.push(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        }
    })
}
