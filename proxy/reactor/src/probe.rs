//! **Purpose.** Which driver this machine allows, and why: found by trying, not by version numbers.
//!
//! **Shape.** Three checks in order, the first failure ends them: a ring as the driver builds it, every operation the
//! driver submits, and a loopback self-test through the driver itself. Container runtimes' default seccomp profiles
//! fail the first with EPERM.
//!
//! **Errors.** [`ProbeError`] only when `uring` was asked for; `auto` falls back to epoll with the same reason.
//!
//! **Tests.** `tests/probe.rs`, which also forbids io_uring by seccomp.

use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::task::Poll;
use std::time::Duration;

use io_uring::{IoUring, opcode};

use crate::ring::setup;
use crate::{Buf, DriverKind, Options, Runtime, TcpListener, TcpStream};

/// What `--io` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where it works, else epoll.
    #[default]
    Auto,
    /// epoll.
    Epoll,
    /// io_uring or an error.
    Uring,
}

/// One thing looked at by [`probe`].
#[derive(Clone, Debug)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as the driver needs it.
    pub passed: bool,
    /// What was found.
    pub detail: String,
}

/// What [`probe`] found. `reason` is one line for people: why this driver.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What was asked for.
    pub choice: IoChoice,
    /// What to use.
    pub driver: DriverKind,
    /// Why.
    pub reason: String,
    /// The kernel's release.
    pub kernel: String,
    /// What was looked at, in order.
    pub checks: Vec<Check>,
}

/// `--io uring` was asked for and cannot be had; Display says why and what to do.
#[derive(Debug)]
pub struct ProbeError {
    /// What was found; its driver is the one that would work.
    pub probe: Probe,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--io uring: not available on this machine (kernel {}): {}; use --io auto or --io epoll, or allow io_uring: \
             sysctl kernel.io_uring_disabled=0 and a seccomp profile with io_uring_setup, io_uring_enter and \
             io_uring_register",
            self.probe.kernel, self.probe.reason
        )
    }
}

impl std::error::Error for ProbeError {}

/// Setup errno, opcode probe, loopback self-test. `Err` only for `IoChoice::Uring` on a machine that lacks it.
pub fn probe(choice: IoChoice) -> Result<Probe, ProbeError> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut found = Probe {
        choice,
        driver: DriverKind::Epoll,
        reason: "--io epoll was asked for".to_owned(),
        kernel: kernel.trim().to_owned(),
        checks: Vec::new(),
    };
    if choice == IoChoice::Epoll {
        return Ok(found);
    }
    let checks: [(&'static str, Look); 3] =
        [("io_uring_setup", set_up), ("opcodes", ask_opcodes), ("self-test", self_test)];
    for (name, check) in checks {
        let outcome = check();
        let passed = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|reason| reason);
        if !passed {
            found.reason = format!("{name}: {detail}");
        }
        found.checks.push(Check { name, passed, detail });
        if !passed {
            return match choice {
                IoChoice::Uring => Err(ProbeError { probe: found }),
                IoChoice::Auto | IoChoice::Epoll => Ok(found),
            };
        }
    }
    found.driver = DriverKind::Uring;
    found.reason = "io_uring passed setup, opcodes and the loopback self-test".to_owned();
    Ok(found)
}

/// Gives what was found, or why the driver cannot be used.
type Look = fn() -> Result<String, String>;

fn set_up() -> Result<String, String> {
    let ring = setup::build(8).map_err(|error| explain(&error))?;
    let restricted = match setup::restrict(&ring) {
        Ok(count) => format!("restricted to {count} operations"),
        Err(error) => format!("not restricted: {error}"),
    };
    enter_once(ring).map_err(|error| format!("io_uring_enter: {}", explain(&error)))?;
    Ok(format!("single issuer, deferred task runs, {restricted}"))
}

/// Sends one operation through: a filter may allow the setup and forbid the rest.
fn enter_once(mut ring: IoUring) -> io::Result<()> {
    ring.submitter().register_enable_rings()?;
    let cancel = opcode::AsyncCancel::new(0).build();
    // SAFETY: a cancel points to nothing.
    unsafe { ring.submission().push(&cancel) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    // Nothing was there to cancel: that is the right answer.
    match ring.completion().next().map(|completion| completion.result()) {
        Some(result) if result == -libc::ENOENT => Ok(()),
        Some(result) => Err(io::Error::from_raw_os_error(result.abs())),
        None => Err(io::Error::other("no completion")),
    }
}

fn ask_opcodes() -> Result<String, String> {
    let ring = setup::build(8).map_err(|error| explain(&error))?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| explain(&error))?;
    let missing: Vec<_> =
        setup::OPCODES.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        // Those that it can do without are named where they are there.
        let more = if setup::knows_zero_copy(&ring) { &setup::ZERO_COPY[..] } else { &[] };
        let names: Vec<_> = setup::OPCODES.iter().chain(more).map(|(name, _)| *name).collect();
        Ok(names.join(" "))
    } else {
        Err(format!("the kernel lacks {}", missing.join(" ")))
    }
}

/// Accepts, connects, sends, receives and cancels over loopback, through the driver.
fn self_test() -> Result<String, String> {
    const DEADLINE: Duration = Duration::from_secs(5);
    let options = Options { buffers: 8, buffers_max: 8, buffer_bytes: 512, entries: 16 };
    let mut runtime = Runtime::new(DriverKind::Uring, &options).map_err(|error| explain(&error))?;
    let outcome = runtime.block_on(crate::timeout(DEADLINE, exchange()));
    match outcome {
        Ok(Ok(())) => Ok("accepted, connected, sent, received and cancelled over loopback".to_owned()),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(format!("no answer over loopback within {} s", DEADLINE.as_secs())),
    }
}

async fn exchange() -> io::Result<()> {
    let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let listener = TcpListener::from_std(bound)?;
    let connecting = crate::spawn(TcpStream::connect(listener.local_addr()?));
    let (server, _) = listener.accept().await?;
    let client = connecting.await?;
    client.queue(Buf::from_static(b"out"));
    client.queue(Buf::from_static(b"rigger"));
    client.flush().await?;
    let mut received = Vec::new();
    while received.len() < 9 {
        let bytes = server.recv().await?;
        if bytes.is_empty() {
            break;
        }
        received.extend_from_slice(&bytes);
    }
    if received != b"outrigger" {
        let text = format!("received {} bytes that are not those sent", received.len());
        return Err(io::Error::other(text));
    }
    let is_early = std::future::poll_fn(|cx| Poll::Ready(client.poll_recv(cx).is_ready())).await;
    if is_early {
        return Err(io::Error::other("received bytes that nobody sent"));
    }
    // The receive just armed is cancelled, and the server learns of the close only after its last completion.
    drop(client);
    if !server.recv().await?.is_empty() {
        return Err(io::Error::other("received bytes after the close"));
    }
    Ok(())
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM: blocked by seccomp or the kernel.io_uring_disabled sysctl".to_owned(),
        Some(libc::ENOSYS) => "ENOSYS: this kernel has no io_uring, or seccomp hides it".to_owned(),
        Some(libc::EINVAL) => "EINVAL: this kernel lacks a ring feature (6.1 or later is needed)".to_owned(),
        Some(libc::ENOMEM) => "ENOMEM: not enough memory, or the locked-memory limit (ulimit -l) is too low".to_owned(),
        _ => error.to_string(),
    }
}
