//! Purpose: real peers before, behind and beside the proxy. Run by `make interop`, which gets the peers first.
//!
//! Shape: one module a kind of peer.
//!
//! Errors: a peer that is missing fails its test and is named; none is skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod envoy;
mod grpc;
mod http1;
mod http2;
mod opaque;
mod upgrade;
mod webhook;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::{Io, wait_for};

const BOTH: [Io; 2] = [Io::Epoll, Io::Uring];

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `make interop` installs it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A port that was free a moment ago, for peers that cannot say which one they took.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_accepts(address: SocketAddr, process: &mut Process) {
    wait_for(&format!("{address} to accept"), Duration::from_secs(20), || {
        if let Ok(Some(status)) = process.try_exit() {
            return Err(process.failure(&format!("ended with {status}")).to_string());
        }
        std::net::TcpStream::connect(address).map(drop).map_err(|error| error.to_string())
    });
}

/// The path of a tool of `tests/tools/fetch.py`.
fn fetched(name: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/fetch.py").display().to_string();
    String::from_utf8(run("python3", &[&script, name]).stdout).unwrap().trim().to_owned()
}

/// How a Python peer of this folder is started.
fn python_launch(script: &str, args: &[&str]) -> Launch {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(script);
    let mut launch =
        Launch { program: "python3".into(), ..Launch::default() }.args([script.into_os_string()]).args(args);
    launch.env.push(("PYTHONPATH".to_owned(), fetched("python")));
    launch
}

/// Runs a Python peer to its end and gives what it printed.
fn python(script: &str, args: &[&str]) -> String {
    let launch = python_launch(script, args);
    let output = Command::new(&launch.program).args(&launch.args).envs(launch.env).output().unwrap();
    assert!(output.status.success(), "{script} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
