//! A control plane as a real process on free loopback ports, ended with the value.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::panic, reason = "a test ends with what went wrong")]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// No step of a test takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A folder of its own, removed with the value.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outrigger-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running control plane.
#[derive(Debug)]
pub(crate) struct Control {
    child: Child,
    pub(crate) api: SocketAddr,
    pub(crate) xds: SocketAddr,
}

impl Control {
    pub(crate) fn start(store: &Path) -> Self {
        Self::start_at(store, "127.0.0.1:0", "127.0.0.1:0", &[])
    }

    pub(crate) fn start_at(store: &Path, api: &str, xds: &str, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger-control"))
            .args(["--api", api, "--xds", xds, "--log-level", "warn", "--store"])
            .arg(store)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped above");
        BufReader::new(stdout).read_line(&mut line).expect("a ready line");
        let address = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line:?}"))
        };
        let (api, xds) = (address("api="), address("xds="));
        Self { child, api, xds }
    }

    /// Sends a request; status and JSON body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_send(method, path, body, &[]).expect("the API answers")
    }

    pub(crate) fn send_with(&self, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        self.try_send(method, path, body, headers).expect("the API answers")
    }

    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Result<(u16, Value), ureq::Error> {
        send_to(self.api, (method, path), body, headers)
    }

    pub(crate) fn apply(&self, text: &str) -> u64 {
        let (status, answer) = self.send("POST", "/v1/apply", text);
        assert_eq!(status, 200, "{answer:#}");
        answer["revision"].as_u64().expect("a revision")
    }

    /// Runs outriggerctl against it: exit code, stdout, stderr.
    pub(crate) fn ctl(&self, args: &[&str], input: &str) -> (i32, String, String) {
        run_ctl(&format!("http://{}", self.api), args, input)
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with a signal and waits for it.
    pub(crate) fn stop(mut self, signal: &str) -> ExitStatus {
        send_signal(self.child.id(), signal);
        wait_for(&mut self.child)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request to an API; status and JSON body.
pub(crate) fn send_to(
    api: SocketAddr,
    (method, path): (&str, &str),
    body: &str,
    headers: &[(&str, &str)],
) -> Result<(u16, Value), ureq::Error> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(DEADLINE))
        .proxy(None)
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{api}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = agent.run(request.body(body.to_owned()).expect("a request"))?;
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string()?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

pub(crate) fn send_signal(process: u32, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &process.to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

fn wait_for(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            panic!("the process did not end");
        }
        std::thread::yield_now();
    }
}

pub(crate) fn run_ctl(server: &str, args: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outriggerctl"))
        .args(args)
        .env("OUTRIGGER_SERVER", server)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that does not read its input closes it early.
    let _ = std::io::Write::write_all(&mut child.stdin.take().expect("piped above"), input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Runs outrigger-control expecting it not to start: exit code and stderr.
pub(crate) fn refuse_start(args: &[&str]) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger-control"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let status = wait_for(&mut child);
    let mut text = String::new();
    child.stderr.take().expect("piped above").read_to_string(&mut text).expect("UTF-8");
    (status.code().unwrap_or(-1), text)
}

/// Asks until `found` gives something.
pub(crate) fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

pub(crate) fn upstream(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{name: {name}}}\n\
         spec: {{endpoints: [{{address: '127.0.0.1:{port}'}}]}}\n"
    )
}

pub(crate) fn route(service: &str, backends: &[(&str, u32)]) -> String {
    let backends: Vec<String> =
        backends.iter().map(|(name, weight)| format!("{{name: {name}, weight: {weight}}}")).collect();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}}}\n\
         spec: {{parentRefs: [{{kind: Service, name: {service}}}], rules: [{{name: all, backendRefs: [{}]}}]}}\n",
        backends.join(", ")
    )
}
