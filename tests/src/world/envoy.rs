//! Purpose: a real Envoy on a bootstrap of ours: a peer of `make interop`, and by [`STAND_IN`] in place of the proxy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::downstream;
use super::process::{Launch, Process};
use super::scratch::Scratch;
use super::wait::wait_for;

/// The environment variable that names an Envoy to run every scenario's bootstrap instead of the proxy. It shows whether
/// an expectation is this project's own; metrics, refusal headers and drains are, so scenarios with those fail.
pub const STAND_IN: &str = "OUTRIGGER_STAND_IN";

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    admin: SocketAddr,
    scratch: Scratch,
}

impl Envoy {
    /// Starts the binary `program` on a bootstrap and waits for its admin address.
    ///
    /// # Panics
    /// When it ends, or does not come up; its log is in the message.
    #[track_caller]
    pub fn start(program: &str, bootstrap: &Value) -> io::Result<Self> {
        let scratch = Scratch::new("envoy")?;
        let file = scratch.write("bootstrap.json", &bootstrap.to_string())?;
        let admin_file = scratch.path().join("admin");
        let launch = Launch { program: program.into(), ..Launch::default() }.args([
            "--config-path".into(),
            file.into_os_string(),
            "--admin-address-path".into(),
            admin_file.clone().into_os_string(),
        ]);
        let launch = launch.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        let mut process = Process::start("envoy", &launch)?;
        let admin = wait_for("Envoy's admin address", READY_WITHIN, || {
            if let Ok(Some(status)) = process.try_exit() {
                panic!("{}", process.failure(&format!("ended with {status}")));
            }
            let text = std::fs::read_to_string(&admin_file).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
        });
        Ok(Self { process, admin, scratch })
    }

    /// Its admin address.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Text from its admin port.
    ///
    /// # Panics
    /// When there is none.
    pub fn admin_text(&self, target: &str) -> String {
        downstream::get(self.admin, target).expect("Envoy's admin port answers").text()
    }

    /// Waits for a listener and gives its address.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn listener(&self, name: &str) -> SocketAddr {
        wait_for(&format!("Envoy's listener {name}"), READY_WITHIN, || {
            let text = self.admin_text("/listeners?format=json");
            let told: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let all = told["listener_statuses"].as_array().cloned().unwrap_or_default();
            let one = all.iter().find(|one| one["name"] == name).ok_or_else(|| told.to_string())?;
            let socket = &one["local_address"]["socket_address"];
            format!("{}:{}", socket["address"].as_str().unwrap_or_default(), socket["port_value"])
                .parse()
                .map_err(|error| format!("{socket}: {error}"))
        })
    }

    /// Its parts: process, admin address, and the folder that it needs while it runs.
    pub fn into_parts(self) -> (Process, SocketAddr, Scratch) {
        (self.process, self.admin, self.scratch)
    }
}
