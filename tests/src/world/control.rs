//! Purpose: `outrigger-control` and `outriggerctl` as processes.
//!
//! Shape: a [`Control`] keeps its store in a folder of its own and, once started, its ports: it can be killed and
//! started again in the same place.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::binary;
use super::downstream::{Downstream, Response};
use super::process::{Launch, Process};
use super::scratch::Scratch;

const READY_WITHIN: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// A control plane.
#[derive(Debug)]
pub struct Control {
    process: Option<Process>,
    api: SocketAddr,
    xds: SocketAddr,
    scratch: Scratch,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Control {
    /// Starts one with an empty store.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts one with an empty store.
    pub fn try_start() -> io::Result<Self> {
        Self::try_start_with(&[], &[])
    }

    /// Starts one with further arguments and environment; without `--store` among them it has an empty store of its own.
    pub fn try_start_with(args: &[&str], env: &[(&str, &str)]) -> io::Result<Self> {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut control = Self { process: None, api: free, xds: free, scratch: Scratch::new("control")?, args, env };
        control.resume()?;
        Ok(control)
    }

    /// Starts it again, with its store, on its ports.
    pub fn resume(&mut self) -> io::Result<()> {
        let mut launch = Launch::built("outrigger-control")?
            .args(["--api", &self.api.to_string(), "--xds", &self.xds.to_string()])
            .args(&self.args);
        if !self.args.iter().any(|arg| arg == "--store") {
            launch = launch.args(["--store".into(), self.scratch.path().join("policy.redb").into_os_string()]);
        }
        launch.env.clone_from(&self.env);
        let mut process = Process::start("control", &launch)?;
        let line = process.wait_line("outrigger-control ready ", READY_WITHIN)?;
        for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            let address = value.parse().map_err(|_| process.failure(&format!("says {key}={value}, no address")))?;
            match key {
                "api" => self.api = address,
                "xds" => self.xds = address,
                _ => {}
            }
        }
        self.process = Some(process);
        Ok(())
    }

    /// Kills it at once; its store and ports stay.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Where its API listens.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where its xDS server listens.
    pub fn xds(&self) -> SocketAddr {
        self.xds
    }

    /// Its process, while it runs.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// A call of its API.
    pub fn call(&self, method: &str, path: &str, content_type: &str, body: &str) -> io::Result<Response> {
        let mut client = Downstream::connect(self.api)?;
        client.set_patience(ANSWER_WITHIN)?;
        let host = self.api.to_string();
        let headers = [("host", host.as_str()), ("content-type", content_type), ("connection", "close")];
        client.request(method, path, &headers, body.as_bytes())
    }

    /// Applies YAML and gives the revision; anything but 200 is an error that shows the answer.
    pub fn apply(&self, yaml: &str) -> io::Result<u64> {
        let answer = json_of("apply", &self.call("POST", "/v1/apply", "application/yaml", yaml)?)?;
        answer["revision"]
            .as_u64()
            .ok_or_else(|| io::Error::other(format!("apply answered without a revision: {answer}")))
    }

    /// Applies YAML and waits until every connected proxy runs it.
    pub fn apply_and_wait(&self, yaml: &str) -> io::Result<u64> {
        let revision = self.apply(yaml)?;
        self.wait(revision)?;
        Ok(revision)
    }

    /// Waits until every connected proxy runs a revision.
    pub fn wait(&self, revision: u64) -> io::Result<Value> {
        let body = format!("{{\"revision\": {revision}, \"timeout\": \"30s\"}}");
        json_of("wait", &self.call("POST", "/v1/wait", "application/json", &body)?)
    }

    /// Deletes one object.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> io::Result<Value> {
        json_of("delete", &self.call("DELETE", &format!("/v1/{kind}/{namespace}/{name}"), "application/json", "")?)
    }

    /// The connected proxies.
    pub fn proxies(&self) -> io::Result<Value> {
        json_of("proxies", &self.call("GET", "/v1/proxies", "application/json", "")?)
    }

    /// Runs `outriggerctl` against it.
    pub fn ctl(&self, args: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(binary::find("outriggerctl")?);
        command.args(args).env("OUTRIGGER_SERVER", format!("http://{}", self.api)).output()
    }

    /// A file in its folder.
    pub fn write(&self, name: &str, text: &str) -> io::Result<String> {
        Ok(self.scratch.write(name, text)?.to_string_lossy().into_owned())
    }
}

fn json_of(what: &str, response: &Response) -> io::Result<Value> {
    if response.status != 200 {
        return Err(io::Error::other(format!("{what}: status {}: {}", response.status, response.text())));
    }
    serde_json::from_slice(&response.body).map_err(io::Error::other)
}
