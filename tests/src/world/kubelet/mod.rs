//! Purpose: runs a pod's spec as a kubelet would, without a node of Kubernetes: `crun` for each container, in a network
//! namespace of the pod; init containers in order, native sidecars, probes, hooks, signals and the grace period.
//!
//! Shape: [`Node`] is the network, [`Installed`] what the node has installed, [`Pod`] a pod that runs: one thread each.
//!
//! ```text
//! init and sidecars in order ▶ applications ─┬ all ended ▶ sidecars SIGTERM ▶ Succeeded, Failed
//!   │ failed ▶ Failed                        └ deleted ▶ preStop ▶ SIGTERM ▶ sidecars SIGTERM ▶ grace over: SIGKILL
//! ```
//! Errors: what a kubelet would report as an event is in the pod's [`State`]; a container's log is shown when a test fails.
//!
//! Limits: nothing is restarted; resources are not enforced.
//!
//! Source: Kubernetes, pod life cycle and sidecar containers (KEP-753).

pub mod bundle;
pub mod node;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::{Launch, Process};
use super::scratch::Scratch;
use super::wait::wait_for;
pub use bundle::Site;
pub use node::{Node, Place};

const POLL_EVERY: Duration = Duration::from_millis(10);

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not all of its containers have started.
    Pending,
    /// Its applications run.
    Running,
    /// They ended with 0.
    Succeeded,
    /// One of them did not, or something before them failed.
    Failed,
}

/// What is known of a pod.
#[derive(Debug, Clone)]
pub struct State {
    /// How far it is.
    pub phase: Phase,
    /// Every readiness probe passes, and it is not being deleted.
    pub is_ready: bool,
    /// It is being deleted.
    pub is_terminating: bool,
    /// Nothing of it runs any more.
    pub is_over: bool,
    /// What happened, in order: `container: what`.
    pub events: Vec<String>,
    /// Exit codes by container; 137 was killed.
    pub exits: BTreeMap<String, i32>,
    /// Logs of what has ended, and of what runs, as of the last look.
    pub logs: BTreeMap<String, Vec<String>>,
}

/// What a node has installed.
#[derive(Debug, Clone, Default)]
pub struct Installed {
    /// Folder of programs by image, without its tag.
    pub images: BTreeMap<String, PathBuf>,
    /// A seccomp profile from which the runtime's own default follows: without io_uring.
    pub runtime_profile: Value,
    /// The kubelet's folder of seccomp profiles.
    pub profiles: PathBuf,
    /// Where the API is.
    pub api: Option<(Ipv4Addr, u16)>,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its network.
    pub place: Place,
    shared: Arc<Shared>,
    life: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// When its deletion was asked for, and its grace.
    deletion: Mutex<Option<(Instant, Duration)>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deletion(&self) -> Option<(Instant, Duration)> {
        *self.deletion.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, container: &str, what: impl std::fmt::Display) {
        self.state().events.push(format!("{container}: {what}"));
    }
}

impl Pod {
    /// Runs a pod. `volumes` are folders for its volumes by name; those of its `emptyDir`s and of the downward API are made.
    ///
    /// # Panics
    /// When the node cannot give it a network.
    #[must_use]
    pub fn run(
        node: &Node,
        installed: &Installed,
        pod: &Value,
        volumes: BTreeMap<String, PathBuf>,
        account: Option<PathBuf>,
    ) -> Self {
        let place = node.add_pod();
        let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("pod").to_owned();
        let scratch = Scratch::new("pod").unwrap_or_else(|error| panic!("{error}"));
        let mut volumes = volumes;
        for volume in pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten() {
            if volume.get("emptyDir").or(volume.get("downwardAPI")).is_some() {
                let own = volume["name"].as_str().unwrap_or_default().to_owned();
                let folder = scratch.path().join("volumes").join(&own);
                let made = std::fs::create_dir_all(&folder).and_then(|()| set_mode(&folder, 0o777));
                made.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
                bundle::project(pod, volume, place.address, &folder).unwrap_or_else(|error| panic!("{own}: {error}"));
                volumes.insert(own, folder);
            }
        }
        let site = Site {
            address: place.address,
            network: place.path(),
            hosts: node.hosts_file(),
            volumes,
            account,
            api: installed.api,
            images: installed.images.clone(),
            runtime_profile: installed.runtime_profile.clone(),
            profiles: installed.profiles.clone(),
            roots: scratch.path().join("roots"),
        };
        let state = State {
            phase: Phase::Pending,
            is_ready: false,
            is_terminating: false,
            is_over: false,
            events: Vec::new(),
            exits: BTreeMap::new(),
            logs: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), deletion: Mutex::default() });
        let mut life = Life {
            pod: pod.clone(),
            shared: shared.clone(),
            node: node.place.clone(),
            site,
            scratch,
            sidecars: Vec::new(),
            applications: Vec::new(),
        };
        let life = std::thread::spawn(move || life.live());
        Self { name, place, shared, life: Some(life) }
    }

    /// What is known of it now.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state().clone()
    }

    /// Waits until a condition holds.
    ///
    /// # Panics
    /// When it does not hold in time; the pod's events and logs are shown.
    #[track_caller]
    pub fn wait(&self, what: &str, limit: Duration, holds: impl Fn(&State) -> bool) -> State {
        wait_for(&format!("pod {} {what}", self.name), limit, || {
            let state = self.state();
            assert!(!state.is_over || holds(&state), "pod {} is over and never came {what}: {state:#?}", self.name);
            if holds(&state) { Ok(state) } else { Err(format!("{state:#?}")) }
        })
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// As [`Pod::wait`].
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait("to be ready", Duration::from_secs(60), |state| state.is_ready);
    }

    /// Asks for its deletion; it goes on until it has ended by itself, or its grace period is over.
    pub fn delete(&self, grace: Duration) {
        let mut deletion = self.shared.deletion.lock().unwrap_or_else(PoisonError::into_inner);
        deletion.get_or_insert((Instant::now(), grace));
        let mut state = self.shared.state();
        (state.is_terminating, state.is_ready) = (true, false);
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.delete(Duration::ZERO);
        // A second deletion shortens the grace of the first.
        *self.shared.deletion.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Duration::ZERO));
        if let Some(life) = self.life.take() {
            let _ = life.join();
        }
        if std::thread::panicking() {
            eprintln!("--- pod {}: {:#?}", self.name, self.state());
        }
    }
}

/// One container that was started.
#[derive(Debug)]
struct Container {
    name: String,
    spec: Value,
    process: Process,
    id: String,
    readiness: Gauge,
}

/// A probe over time.
#[derive(Debug, Default)]
struct Gauge {
    next: Option<Instant>,
    failures: u64,
    passes: bool,
}

struct Life {
    pod: Value,
    shared: Arc<Shared>,
    node: Place,
    site: Site,
    scratch: Scratch,
    sidecars: Vec<Container>,
    applications: Vec<Container>,
}

impl Life {
    /// From the first container to the end of the last; everything that it started ends with it.
    fn live(&mut self) {
        self.node.enter();
        let phase = match self.start() {
            Ok(()) => self.run(),
            Err(why) => {
                self.shared.note("pod", why);
                Phase::Failed
            }
        };
        self.stop();
        let mut state = self.shared.state();
        (state.phase, state.is_ready, state.is_over) = (phase, false, true);
    }

    fn start(&mut self) -> Result<(), String> {
        let specs = |pointer: &str| self.pod.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
        let (inits, applications) = (specs("/spec/initContainers"), specs("/spec/containers"));
        for spec in inits {
            let is_sidecar = spec["restartPolicy"] == "Always";
            let mut container = self.launch(&spec).map_err(|error| error.to_string())?;
            if is_sidecar {
                let started = self.await_start(&mut container);
                self.sidecars.push(container);
                started?;
            } else {
                self.await_end(&mut container)?;
            }
        }
        for spec in applications {
            let container = self.launch(&spec).map_err(|error| error.to_string())?;
            self.applications.push(container);
        }
        self.shared.state().phase = Phase::Running;
        Ok(())
    }

    fn launch(&self, spec: &Value) -> io::Result<Container> {
        let name = spec["name"].as_str().unwrap_or_default().to_owned();
        let config = bundle::config(&self.pod, spec, &self.site).map_err(io::Error::other)?;
        let folder = self.scratch.path().join(&name);
        std::fs::create_dir_all(&folder)?;
        std::fs::create_dir_all(self.site.root(&name))?;
        std::fs::write(folder.join("config.json"), config.to_string())?;
        let id = format!("{}-{name}", self.scratch.path().file_name().unwrap_or_default().to_string_lossy());
        let launch = crun(&["run", "-b", &folder.display().to_string(), &id]);
        let process = Process::start(&name, &launch)?;
        self.shared.note(&name, "started");
        Ok(Container { name, spec: spec.clone(), process, id, readiness: Gauge::default() })
    }

    /// Waits until a sidecar's start-up probe passes.
    fn await_start(&self, container: &mut Container) -> Result<(), String> {
        let Some(probe) = container.spec.get("startupProbe").cloned() else { return Ok(()) };
        let mut gauge = Gauge::default();
        loop {
            self.give_up_when_deleted()?;
            if let Some(code) = exit_code(container)? {
                self.note_end(container, code);
                return Err(format!("{} ended with {code} before it had started", container.name));
            }
            match gauge.look(&probe, &container.spec, self.site.address) {
                Some(Ok(())) => {
                    self.shared.note(&container.name, "start-up probe passed");
                    return Ok(());
                }
                Some(Err(why)) if gauge.failures >= probe["failureThreshold"].as_u64().unwrap_or(3) => {
                    return Err(format!("{}: start-up probe failed: {why}", container.name));
                }
                _ => std::thread::sleep(POLL_EVERY),
            }
            self.keep_log(container);
        }
    }

    fn await_end(&self, container: &mut Container) -> Result<(), String> {
        loop {
            self.give_up_when_deleted()?;
            if let Some(code) = exit_code(container)? {
                self.note_end(container, code);
                return if code == 0 { Ok(()) } else { Err(format!("{} ended with {code}", container.name)) };
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    fn give_up_when_deleted(&self) -> Result<(), String> {
        match self.shared.deletion() {
            Some((since, grace)) if since.elapsed() >= grace => Err("deleted before it had started".to_owned()),
            _ => Ok(()),
        }
    }

    /// Until the applications have ended, or the pod is deleted and they have been told.
    fn run(&mut self) -> Phase {
        let mut hooks: Option<Vec<JoinHandle<()>>> = None;
        let mut is_told = false;
        let mut worst = 0;
        while !self.applications.is_empty() {
            if let Some((since, grace)) = self.shared.deletion() {
                let hooks = hooks
                    .get_or_insert_with(|| self.applications.iter().filter_map(|one| self.pre_stop(one)).collect());
                let is_late = since.elapsed() >= grace;
                if !is_told && (is_late || hooks.iter().all(JoinHandle::is_finished)) {
                    self.applications.iter().for_each(|one| self.signal(one, "TERM"));
                    is_told = true;
                }
                if is_late {
                    self.applications.iter().for_each(|one| self.signal(one, "KILL"));
                }
            } else {
                self.look_at_readiness();
            }
            let mut rest = Vec::new();
            for mut one in self.applications.drain(..) {
                match exit_code(&mut one) {
                    Ok(None) => rest.push(one),
                    Ok(Some(code)) => {
                        note_end(&self.shared, &mut one, code);
                        worst = worst.max(code);
                    }
                    Err(why) => {
                        self.shared.note(&one.name, why);
                        worst = worst.max(1);
                    }
                }
            }
            self.applications = rest;
            for one in self.sidecars.iter().chain(&self.applications) {
                self.keep_log(one);
            }
            std::thread::sleep(POLL_EVERY);
        }
        if worst == 0 { Phase::Succeeded } else { Phase::Failed }
    }

    fn look_at_readiness(&mut self) {
        let address = self.site.address;
        let mut all = true;
        for container in self.sidecars.iter_mut().chain(&mut self.applications) {
            let Some(probe) = container.spec.get("readinessProbe").cloned() else { continue };
            let gauge = &mut container.readiness;
            match gauge.look(&probe, &container.spec, address) {
                Some(Ok(())) => gauge.passes = true,
                Some(Err(_)) if gauge.failures >= probe["failureThreshold"].as_u64().unwrap_or(3) => {
                    gauge.passes = false
                }
                _ => {}
            }
            all &= gauge.passes;
        }
        let mut state = self.shared.state();
        state.is_ready = all && !state.is_terminating;
    }

    /// Starts the hook of a container that is to stop.
    fn pre_stop(&self, container: &Container) -> Option<JoinHandle<()>> {
        let hook = container.spec.pointer("/lifecycle/preStop")?.clone();
        let spec = container.spec.clone();
        let (name, address, shared) = (container.name.clone(), self.site.address, self.shared.clone());
        let node = self.node.clone();
        let left =
            self.shared.deletion().map_or(Duration::ZERO, |(since, grace)| grace.saturating_sub(since.elapsed()));
        Some(std::thread::spawn(move || {
            node.enter();
            shared.note(&name, "preStop begins");
            let said = match (hook.get("httpGet"), hook.pointer("/sleep/seconds").and_then(Value::as_u64)) {
                (Some(get), _) => http_get(get, &spec, address, left.max(POLL_EVERY)),
                (None, Some(seconds)) => {
                    std::thread::sleep(Duration::from_secs(seconds).min(left));
                    Ok(())
                }
                (None, None) => Err(format!("a hook of no kind that is read here: {hook}")),
            };
            shared.note(&name, format!("preStop ended: {said:?}"));
        }))
    }

    /// Sidecars go last, the later ones first, with what is left of the grace period.
    fn stop(&mut self) {
        let (since, grace) = self.shared.deletion().unwrap_or_else(|| (Instant::now(), Duration::from_secs(30)));
        for one in self.applications.drain(..) {
            kill(one);
        }
        while let Some(mut sidecar) = self.sidecars.pop() {
            self.signal(&sidecar, "TERM");
            loop {
                match exit_code(&mut sidecar) {
                    Ok(Some(code)) => {
                        note_end(&self.shared, &mut sidecar, code);
                        break;
                    }
                    // A kubelet gives sidecars two seconds in any case.
                    Ok(None) if since.elapsed() < grace.max(Duration::from_secs(2)) => std::thread::sleep(POLL_EVERY),
                    _ => {
                        self.keep_log(&sidecar);
                        self.shared.state().exits.insert(sidecar.name.clone(), 137);
                        self.shared.note(&sidecar.name, "killed");
                        kill(sidecar);
                        break;
                    }
                }
            }
        }
    }

    fn signal(&self, container: &Container, signal: &str) {
        self.shared.note(&container.name, format!("SIG{signal}"));
        // One that has just ended cannot be signalled; its end is seen next.
        let _ = run_crun(&["kill", &container.id, signal]);
    }

    fn note_end(&self, container: &mut Container, code: i32) {
        note_end(&self.shared, container, code);
    }

    fn keep_log(&self, container: &Container) {
        self.shared.state().logs.insert(container.name.clone(), container.process.log());
    }
}

fn note_end(shared: &Shared, container: &mut Container, code: i32) {
    shared.note(&container.name, format!("ended with {code}"));
    let mut state = shared.state();
    state.exits.insert(container.name.clone(), code);
    state.logs.insert(container.name.clone(), container.process.log());
}

fn kill(mut container: Container) {
    let _ = run_crun(&["kill", &container.id, "KILL"]);
    if container.process.wait_exit(Duration::from_secs(5)).is_err() {
        container.process.kill();
    }
    let _ = run_crun(&["delete", "--force", &container.id]);
}

fn exit_code(container: &mut Container) -> Result<Option<i32>, String> {
    let status = container.process.try_exit().map_err(|error| error.to_string())?;
    Ok(status.map(|status| status.code().unwrap_or(137)))
}

/// `crun`, which refuses a machine with both versions of cgroups: it sees the old one alone, in a mount namespace of its own.
fn crun(words: &[&str]) -> Launch {
    let script = "umount -l /sys/fs/cgroup/unified 2>/dev/null; exec crun --cgroup-manager=disabled \"$@\"";
    let launch = Launch { program: "unshare".into(), ..Launch::default() };
    launch.args(["-m", "sh", "-c", script, "crun"]).args(words.iter().map(ToString::to_string))
}

fn run_crun(words: &[&str]) -> io::Result<()> {
    let launch = crun(words);
    let output = std::process::Command::new(&launch.program).args(&launch.args).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

impl Gauge {
    /// Looks again when it is time.
    fn look(&mut self, probe: &Value, container: &Value, address: Ipv4Addr) -> Option<Result<(), String>> {
        let seconds = |field: &str, default: u64| Duration::from_secs(probe[field].as_u64().unwrap_or(default));
        let now = Instant::now();
        let next = *self.next.get_or_insert_with(|| now + seconds("initialDelaySeconds", 0));
        if now < next {
            return None;
        }
        self.next = Some(now + seconds("periodSeconds", 10));
        let limit = seconds("timeoutSeconds", 1);
        let found = match probe.get("httpGet") {
            Some(get) => http_get(get, container, address, limit),
            None => match probe.pointer("/tcpSocket/port") {
                Some(port) => port_of(port, container).and_then(|port| connect(address, port, limit)),
                None => Err(format!("a probe of no kind that is read here: {probe}")),
            },
        };
        self.failures = if found.is_ok() { 0 } else { self.failures + 1 };
        Some(found)
    }
}

fn connect(address: Ipv4Addr, port: u64, limit: Duration) -> Result<(), String> {
    let port = u16::try_from(port).map_err(|_| format!("no port {port}"))?;
    TcpStream::connect_timeout(&SocketAddr::from((address, port)), limit).map(drop).map_err(|error| error.to_string())
}

/// A GET as the kubelet makes it: 200 to 399 is well, whatever certificate the server has.
fn http_get(get: &Value, container: &Value, address: Ipv4Addr, limit: Duration) -> Result<(), String> {
    let port = port_of(&get["port"], container)?;
    let scheme = if get["scheme"] == "HTTPS" { "https" } else { "http" };
    let url = format!("{scheme}://{address}:{port}{}", get["path"].as_str().unwrap_or("/"));
    let limit = format!("{:.3}", limit.as_secs_f64());
    let arguments = ["-sSk", "--noproxy", "*", "--max-time", &limit, "-w", "\n%{http_code}", &url];
    let output = std::process::Command::new("curl").args(arguments).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.rsplit_once('\n').and_then(|(_, status)| status.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        _ => Err(format!("{url}: {said} {}", String::from_utf8_lossy(&output.stderr)).chars().take(2_000).collect()),
    }
}

/// A port by number, or by its name in the container.
fn port_of(port: &Value, container: &Value) -> Result<u64, String> {
    let named = || {
        let ports = container["ports"].as_array()?;
        ports.iter().find(|one| one["name"] == *port)?["containerPort"].as_u64()
    };
    port.as_u64().or_else(named).ok_or_else(|| format!("no port {port}"))
}

fn set_mode(path: &std::path::Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
