//! Purpose: whether a pod gets a sidecar, and by which steps.
//! Shape: in this order: opted out or out of reach → skipped with a reason; ours already → kept or upgraded; what would
//! break or go around the mesh → refused; else injected. What was done is written into `outrigger.dev/status`.
//! Errors: a pod that was to be in the mesh and cannot be is refused rather than let in without its sidecar: its owner
//! sees why, and can opt out by a label.
//! Limits: at most 50 problems are listed.
//! Tests: `tests/inject`.

use serde_json::{Value, json};

use super::annotations::{BOOTSTRAP, INJECT, STATUS, Values, problem};
use super::config::InjectorConfig;
use super::form::{Form, cpu_milli, memory_bytes};
use super::patch::{Step, escape};
use super::pod::{Container, Pod, PodSpec};
use super::{BOOTSTRAP_VOLUME, INTERCEPT_CONTAINER, PORTS, PROXY_CONTAINER, PROXY_ID, bootstrap, sidecar};
use crate::model::Problem;

const PROBLEMS_MAX: usize = 50;
const OPT_OUT: &str = "or leave this pod out of the mesh with the label outrigger.dev/inject: disabled";

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its label or annotation says so.
    Disabled,
    /// It has no network namespace of its own.
    HostNetwork,
    /// Its namespace is the cluster's or the control plane's.
    SystemNamespace,
    /// There is no capture on Windows.
    Windows,
}

impl Reason {
    /// As the status names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::HostNetwork => "host-network",
            Self::SystemNamespace => "system-namespace",
            Self::Windows => "windows",
        }
    }

    /// In a sentence.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Disabled => "outrigger.dev/inject says disabled",
            Self::HostNetwork => {
                "the pod uses the node's network (hostNetwork), where a capture would take the node's traffic"
            }
            Self::SystemNamespace => "pods of the cluster's own namespaces and of the control plane get no sidecar",
            Self::Windows => "the pod is for Windows, where there is no capture",
        }
    }
}

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It gets a sidecar.
    Injected,
    /// It had one before.
    Present,
    /// It is left alone.
    Skipped(Reason),
}

/// What becomes of a pod, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What.
    pub outcome: Outcome,
    /// How; none when everything is as it should be.
    pub steps: Vec<Step>,
    /// For whoever made the pod.
    pub warnings: Vec<String>,
}

/// Decides about a pod of `namespace`.
pub fn decide(pod: &Pod<'_>, namespace: &str, config: &InjectorConfig) -> Result<Decision, Vec<Problem>> {
    let nothing = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&nothing);
    if let Some(reason) = skip_reason(pod, spec, namespace, config)? {
        return Ok(skip(pod, reason));
    }
    let none = std::collections::BTreeMap::new();
    let given = pod.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref()).unwrap_or(&none);
    let mut problems = Vec::new();
    let values = Values::read(given, config).map_err(|found| problems.extend(found)).ok();
    let status = pod.annotation(STATUS).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let place = |name: &str| spec.init_containers().iter().position(|container| container.name() == name);
    let present = match (place(INTERCEPT_CONTAINER), place(PROXY_CONTAINER)) {
        (Some(intercept), Some(proxy)) if status.is_some_and(|status| status["state"] == "injected") => {
            Some((intercept, proxy))
        }
        _ => None,
    };
    if present.is_none() {
        problems.extend(conflicts(spec));
    }
    problems.extend(missing(spec));
    problems.extend(values.as_ref().map(|values| contradictions(values, spec)).unwrap_or_default());
    let Some(values) = values.filter(|_| problems.is_empty()) else {
        problems.truncate(PROBLEMS_MAX);
        return Err(problems);
    };
    let plan = Plan { pod, spec, values: &values, config };
    Ok(match present {
        None => plan.inject(),
        Some(places) => plan.keep(places),
    })
}

fn skip_reason(
    pod: &Pod<'_>,
    spec: &PodSpec<'_>,
    namespace: &str,
    config: &InjectorConfig,
) -> Result<Option<Reason>, Vec<Problem>> {
    let switch = Form::Choice(&["enabled", "disabled"]);
    let mut is_disabled = false;
    let mut is_asked = false;
    let mut problems = Vec::new();
    for (place, value) in [("labels", pod.label(INJECT)), ("annotations", pod.annotation(INJECT))] {
        let Some(value) = value else { continue };
        match switch.read(value) {
            Ok(word) if word == "disabled" => is_disabled = true,
            Ok(_) => is_asked = true,
            Err(refusal) => {
                let problem = problem(INJECT, value, refusal);
                problems.push(Problem { path: format!("metadata.{place}[{INJECT:?}]"), ..problem });
            }
        }
    }
    let is_disabled_by_default = !is_asked && config.is_disabled_by_default();
    match () {
        () if config.system_namespaces.iter().any(|name| name == namespace) => Ok(Some(Reason::SystemNamespace)),
        () if is_disabled => Ok(Some(Reason::Disabled)),
        () if !problems.is_empty() => Err(problems),
        () if is_disabled_by_default => Ok(Some(Reason::Disabled)),
        () if spec.host_network == Some(true) => Ok(Some(Reason::HostNetwork)),
        () if spec.is_windows() => Ok(Some(Reason::Windows)),
        () => Ok(None),
    }
}

fn skip(pod: &Pod<'_>, reason: Reason) -> Decision {
    let status = json!({ "message": reason.message(), "reason": reason.as_str(), "state": "skipped" }).to_string();
    let warnings = match reason {
        Reason::Disabled | Reason::SystemNamespace => Vec::new(),
        Reason::HostNetwork | Reason::Windows => vec![format!("outrigger: no sidecar: {}", reason.message())],
    };
    let mut steps = Vec::new();
    if pod.annotation(STATUS) != Some(&status) {
        annotate(pod, vec![(STATUS, status)], &mut steps);
    }
    Decision { outcome: Outcome::Skipped(reason), steps, warnings }
}

/// Sets annotations, making what holds them where it is absent.
fn annotate(pod: &Pod<'_>, entries: Vec<(&str, String)>, steps: &mut Vec<Step>) {
    let map = || Value::Object(entries.iter().map(|(key, text)| ((*key).to_owned(), json!(text))).collect());
    match &pod.metadata {
        None => steps.push(Step::add("/metadata", json!({ "annotations": map() }))),
        Some(metadata) if metadata.annotations.is_none() => steps.push(Step::add("/metadata/annotations", map())),
        Some(_) => {
            let step =
                |(key, text): &(&str, String)| Step::add(format!("/metadata/annotations/{}", escape(key)), json!(text));
            steps.extend(entries.iter().map(step));
        }
    }
}

/// What every pod has.
fn missing(spec: &PodSpec<'_>) -> Vec<Problem> {
    let problem = |path: String, message: &str| Problem { path, message: message.to_owned(), ..Problem::default() };
    if spec.containers().is_empty() {
        let message = "is required and missing: a pod has one container or more";
        return vec![problem("spec.containers".to_owned(), message)];
    }
    let nameless = spec.containers().iter().enumerate().filter(|(_, container)| container.name().is_empty());
    nameless.map(|(index, _)| problem(format!("spec.containers[{index}].name"), "is required and missing")).collect()
}

/// What of the pod is in the sidecar's way.
fn conflicts(spec: &PodSpec<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |path: String, value: String, message: String, remedy: &str| {
        let remedy = Some(format!("{remedy}, {OPT_OUT}"));
        problems.push(Problem { path, value: Some(value), message, remedy, ..Problem::default() });
    };
    let ours = |name: &str| [INTERCEPT_CONTAINER, PROXY_CONTAINER].contains(&name);
    for (list, containers) in [("initContainers", spec.init_containers()), ("containers", spec.containers())] {
        for (index, container) in containers.iter().enumerate() {
            let name = container.name();
            if ours(name) {
                let path = format!("spec.{list}[{index}].name");
                let message = "is the sidecar's own name, and this pod was not injected by outrigger".to_owned();
                refuse(path, format!("{name:?}"), message, "rename the container");
            }
            for (number, port) in container.ports.iter().flat_map(|taken| &taken.0) {
                let path = format!("spec.{list}[{index}].ports[{number}].containerPort");
                let message = format!("is one of the sidecar's ports ({PORTS:?})");
                refuse(path, port.to_string(), message, "let the application listen on another port");
            }
        }
    }
    for (index, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let name = container.name.as_deref().unwrap_or_default();
        if ours(name) {
            let path = format!("spec.ephemeralContainers[{index}].name");
            refuse(path, format!("{name:?}"), "is the sidecar's own name".to_owned(), "rename the container");
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if volume.name.as_deref() == Some(BOOTSTRAP_VOLUME) {
            let path = format!("spec.volumes[{index}].name");
            refuse(path, format!("{BOOTSTRAP_VOLUME:?}"), "is the sidecar's own name".to_owned(), "rename the volume");
        }
    }
    problems.extend(shared_ids(spec));
    problems
}

/// Containers that would run as the proxy's user or group, whose traffic is not captured.
fn shared_ids(spec: &PodSpec<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let pod = spec.security_context.as_ref();
    let ids = [
        ("runAsUser", pod.and_then(|context| context.run_as_user)),
        ("runAsGroup", pod.and_then(|context| context.run_as_group)),
    ];
    for (list, containers) in [("initContainers", spec.init_containers()), ("containers", spec.containers())] {
        for (index, container) in containers.iter().enumerate() {
            for (field, of_pod) in ids {
                let own = container.security_context.as_ref().and_then(|context| match field {
                    "runAsUser" => context.run_as_user,
                    _ => context.run_as_group,
                });
                if own.or(of_pod) != Some(PROXY_ID) {
                    continue;
                }
                let path = match own {
                    Some(_) => format!("spec.{list}[{index}].securityContext.{field}"),
                    None => format!("spec.securityContext.{field}"),
                };
                problems.push(Problem {
                    path,
                    value: Some(PROXY_ID.to_string()),
                    message: format!(
                        "is the proxy's own: traffic of the container {:?} would go around the mesh",
                        container.name()
                    ),
                    remedy: Some(format!("choose another id, {OPT_OUT}")),
                    ..Problem::default()
                });
            }
        }
    }
    problems
}

/// Values that are fine alone and wrong together, or for this pod.
fn contradictions(values: &Values, spec: &PodSpec<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |name: &'static str, message: String| {
        let key = format!("{}{name}", super::annotations::PREFIX);
        problems.push(problem(&key, values.text(name), message.into()));
    };
    let (request, limit) = (cpu_milli(values.text("cpu-request")), cpu_milli(values.text("cpu-limit")));
    if let (Some(request), Some(limit)) = (request, limit)
        && request > limit
    {
        refuse("cpu-request", format!("is more than cpu-limit ({})", values.text("cpu-limit")));
    }
    let (request, limit) = (memory_bytes(values.text("memory-request")), memory_bytes(values.text("memory-limit")));
    if let (Some(request), Some(limit)) = (request, limit)
        && request > limit
    {
        refuse("memory-request", format!("is more than memory-limit ({})", values.text("memory-limit")));
    }
    let grace = spec.grace_seconds();
    if drain_seconds(values, spec) >= grace.max(1) {
        refuse("drain-time", format!("must be below the pod's terminationGracePeriodSeconds ({grace})"));
    }
    problems
}

/// How long the proxy may take to end: what remains is for the kubelet to notice.
fn drain_seconds(values: &Values, spec: &PodSpec<'_>) -> u64 {
    let given = values.text("drain-time").trim_end_matches('s').parse();
    given.unwrap_or_else(|_| match spec.grace_seconds() {
        grace @ 0..=10 => grace / 2,
        grace => grace - 5,
    })
}

/// A pod that is to be in the mesh, with all that decides how.
struct Plan<'a> {
    pod: &'a Pod<'a>,
    spec: &'a PodSpec<'a>,
    values: &'a Values,
    config: &'a InjectorConfig,
}

impl Plan<'_> {
    fn inject(&self) -> Decision {
        let mut steps = Vec::new();
        annotate(self.pod, self.annotations(), &mut steps);
        let containers = [sidecar::intercept(self.values), self.proxy()];
        if self.spec.init_containers().is_empty() {
            steps.push(Step::add("/spec/initContainers", json!(containers)));
        } else {
            let places = containers.into_iter().enumerate();
            steps
                .extend(places.map(|(index, container)| Step::add(format!("/spec/initContainers/{index}"), container)));
        }
        self.add_volume(&mut steps);
        self.add_hooks(&mut steps);
        Decision { outcome: Outcome::Injected, steps, warnings: self.warnings() }
    }

    /// A pod that was injected before: another webhook may have added a container since, or the manifest asks for more.
    fn keep(&self, (intercept, proxy): (usize, usize)) -> Decision {
        let mut steps = Vec::new();
        let containers = self.spec.init_containers();
        match self.values.text("upgrade") {
            "all" => {
                annotate(self.pod, self.annotations(), &mut steps);
                steps.push(Step::replace(format!("/spec/initContainers/{intercept}"), sidecar::intercept(self.values)));
                steps.push(Step::replace(format!("/spec/initContainers/{proxy}"), self.proxy()));
                self.add_volume(&mut steps);
            }
            "image" => {
                let image = self.values.text("image");
                let is_old =
                    |index: &usize| containers.get(*index).is_none_or(|one| one.image.as_deref() != Some(image));
                let old = [intercept, proxy].into_iter().filter(is_old);
                let replace = |index| Step::replace(format!("/spec/initContainers/{index}/image"), json!(image));
                steps.extend(old.map(replace));
                if !steps.is_empty() {
                    annotate(self.pod, vec![(STATUS, self.status())], &mut steps);
                }
            }
            _ => {}
        }
        self.add_hooks(&mut steps);
        Decision { outcome: Outcome::Present, steps, warnings: Vec::new() }
    }

    fn proxy(&self) -> Value {
        sidecar::proxy(self.values, self.config, drain_seconds(self.values, self.spec))
    }

    fn status(&self) -> String {
        let image = self.values.text("image");
        json!({ "image": image, "state": "injected", "version": env!("CARGO_PKG_VERSION") }).to_string()
    }

    fn annotations(&self) -> Vec<(&'static str, String)> {
        let mut entries = vec![(STATUS, self.status())];
        if sidecar::is_projected(self.values) {
            entries.push((BOOTSTRAP, bootstrap::rest(self.values)));
        }
        entries
    }

    fn add_volume(&self, steps: &mut Vec<Step>) {
        let volumes = self.spec.volumes.as_deref();
        let is_there = volumes.unwrap_or_default().iter().any(|one| one.name.as_deref() == Some(BOOTSTRAP_VOLUME));
        match volumes {
            _ if is_there || !sidecar::is_projected(self.values) => {}
            None => steps.push(Step::add("/spec/volumes", json!([sidecar::bootstrap_volume()]))),
            Some(_) => steps.push(Step::add("/spec/volumes/-", sidecar::bootstrap_volume())),
        }
    }

    /// A pod that runs to completion ends when its work is done: there is nothing to wait for.
    fn add_hooks(&self, steps: &mut Vec<Step>) {
        if !self.values.is_enabled("hold-app-stop") || self.spec.runs_to_completion() {
            return;
        }
        let containers = self.spec.containers();
        steps.reserve(containers.len());
        steps.extend(containers.iter().enumerate().filter_map(|(index, container)| hook(index, container)));
    }

    fn warnings(&self) -> Vec<String> {
        let is_forbidden = sidecar::seccomp_profile(self.values, self.config).is_none();
        if self.values.text("io") == "uring" && is_forbidden {
            return vec![
                "outrigger: outrigger.dev/io: uring under the runtime's default seccomp profile: most runtimes forbid \
                 io_uring there and the proxy would not start; use auto, or outrigger.dev/seccomp: localhost"
                    .to_owned(),
            ];
        }
        Vec::new()
    }
}

fn hook(index: usize, container: &Container<'_>) -> Option<Step> {
    let path = format!("/spec/containers/{index}/lifecycle");
    match &container.lifecycle {
        None => Some(Step::add_shared(path, &sidecar::LIFECYCLE)),
        Some(_) if container.has_pre_stop() => None,
        Some(_) => Some(Step::add_shared(format!("{path}/preStop"), &sidecar::PRE_STOP)),
    }
}
