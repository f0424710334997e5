//! Purpose: what the injector is told once, for all pods.
//! Shape: a YAML document walked with the path cursor. `defaults` takes any annotation of the table that users can write.
//! Errors: [`Problem`]s with their paths; all of them at once.
//! Limits: one document.

use std::collections::BTreeMap;

use super::annotations::{Annotation, PREFIX, find, unknown};
use super::form::Form;
use crate::model::Problem;
use crate::model::cursor::{Cursor, Report};
use crate::model::document::{Syntax, split_documents};

/// Namespaces of Kubernetes itself: a sidecar there could take the cluster down.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

const KEYS: [&str; 8] = [
    "image",
    "imagePullPolicy",
    "xdsAddress",
    "controlNamespace",
    "excludedNamespaces",
    "seccompProfile",
    "resources",
    "defaults",
];

const RESOURCES: [(&str, &str, &str); 2] =
    [("requests", "cpu-request", "memory-request"), ("limits", "cpu-limit", "memory-limit")];

/// What is the same for all pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectorConfig {
    /// The proxy's image.
    pub image: String,
    /// Where the control plane serves xDS.
    pub xds_address: String,
    /// Namespaces whose pods are left alone: the cluster's, the control plane's own, and any the file adds.
    pub system_namespaces: Vec<String>,
    /// The seccomp profile that allows io_uring, below the kubelet's folder, where every node has it.
    pub seccomp_profile: Option<String>,
    defaults: BTreeMap<&'static str, String>,
}

impl Default for InjectorConfig {
    fn default() -> Self {
        Self {
            image: format!("outrigger-proxy:{}", env!("CARGO_PKG_VERSION")),
            xds_address: "outrigger-control.outrigger-system.svc:15010".to_owned(),
            system_namespaces: SYSTEM_NAMESPACES.map(str::to_owned).to_vec(),
            seccomp_profile: None,
            defaults: BTreeMap::new(),
        }
    }
}

impl InjectorConfig {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let (documents, problems) = split_documents(text, Syntax::Yaml);
        let [document] = documents.as_slice() else {
            let several = Problem { message: "must hold one document".into(), ..Problem::default() };
            return Err(if problems.is_empty() { vec![several] } else { problems });
        };
        let report = Report::new(None);
        let config = Self::walk(&Cursor::root(&document.value, &report));
        let problems: Vec<Problem> = problems.into_iter().chain(report.into_problems()).collect();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }

    fn walk(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&KEYS)?;
        let mut config = Self::default();
        let text = |name: &str, form: Form| fields.optional(name).and_then(|at| read(&at, form));
        config.image = text("image", Form::Image).unwrap_or(config.image);
        config.xds_address = text("xdsAddress", Form::Address).unwrap_or(config.xds_address);
        if let Some(at) = fields.optional("imagePullPolicy") {
            config.set(&at, "image-pull-policy");
        }
        let namespace = |at: Cursor<'_>| at.text(is_label, "must be the name of a namespace");
        config.system_namespaces.extend(fields.optional("controlNamespace").and_then(namespace));
        let more = fields.list("excludedNamespaces", 0..=100);
        config.system_namespaces.extend(more.into_iter().filter_map(namespace));
        if let Some(at) = fields.optional("seccompProfile") {
            let rule = "must be a path below the kubelet's seccomp folder, or empty for the runtime's default";
            config.seccomp_profile = at.text(is_profile, rule).filter(|path| !path.is_empty());
        }
        if let Some(at) = fields.optional("resources") {
            config.read_resources(&at);
        }
        if let Some(at) = fields.optional("defaults") {
            config.read_defaults(&at);
        }
        Some(config)
    }

    /// As a container has them; what is left out there is `none`, as it would be in a container.
    fn read_resources(&mut self, at: &Cursor<'_>) {
        let Some(groups) = at.fields(&["requests", "limits"]) else { return };
        for (group, cpu, memory) in RESOURCES {
            self.defaults.insert(cpu, "none".to_owned());
            self.defaults.insert(memory, "none".to_owned());
            let Some(amounts) = groups.optional(group).and_then(|at| at.fields(&["cpu", "memory"])) else { continue };
            for (kind, name) in [("cpu", cpu), ("memory", memory)] {
                if let Some(at) = amounts.optional(kind) {
                    self.set(&at, name);
                }
            }
        }
    }

    fn set(&mut self, at: &Cursor<'_>, name: &'static str) {
        let form = find(name).map(|row| row.form);
        if let Some(value) = form.and_then(|form| read(at, form)) {
            self.defaults.insert(name, value);
        }
    }

    fn read_defaults(&mut self, at: &Cursor<'_>) {
        let serde_json::Value::Object(map) = at.raw() else {
            at.refuse("must be an object with names of annotations");
            return;
        };
        for (key, value) in map {
            let path = format!("defaults.{key}");
            let name = key.strip_prefix(PREFIX).unwrap_or(key);
            let at = Cursor::at(value, &path, at.report());
            match find(name).filter(|row| row.form != Form::Written) {
                Some(row) if row.name == "image" => {
                    at.refuse_with("is not said here", "write `image` beside `defaults`")
                }
                Some(row) if row.name == "xds-address" => {
                    at.refuse_with("is not said here", "write `xdsAddress` beside `defaults`");
                }
                Some(row) => self.set(&at, row.name),
                None => refuse(&at, unknown(name)),
            }
        }
    }

    /// Whether only pods that ask for it get a sidecar.
    #[must_use]
    pub fn is_disabled_by_default(&self) -> bool {
        self.defaults.get("inject").is_some_and(|word| word == "disabled")
    }

    /// What holds where the pod does not say.
    #[must_use]
    pub fn default_of(&self, row: &Annotation) -> &str {
        match row.name {
            "image" => &self.image,
            "xds-address" => &self.xds_address,
            name => self.defaults.get(name).map_or(row.default, String::as_str),
        }
    }
}

/// A quantity or count may be written as a number.
fn read(at: &Cursor<'_>, form: Form) -> Option<String> {
    let is_count = matches!(form, Form::Cpu | Form::Memory | Form::Workers);
    let text = match at.raw() {
        serde_json::Value::Number(number) if is_count => number.to_string(),
        _ => at.string()?.to_owned(),
    };
    match form.read(&text) {
        Ok(value) => Some(value),
        Err(refusal) => {
            refuse(at, refusal);
            None
        }
    }
}

fn refuse(at: &Cursor<'_>, refusal: super::form::Refusal) {
    match refusal.near {
        Some(near) => at.refuse_with(refusal.message, format!("did you mean {near}?")),
        None => at.refuse(refusal.message),
    }
}

fn is_profile(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part != ".." && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    text.is_empty() || (text.len() <= 255 && text.split('/').all(part))
}

fn is_label(text: &str) -> bool {
    let inside = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    inside && (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_overrides_the_table() {
        let text = "image: registry.example/outrigger-proxy:1\nimagePullPolicy: Always\nxdsAddress: control.mesh.svc:15010\n\
                    controlNamespace: mesh\nexcludedNamespaces: [kube-system, batch]\nseccompProfile: outrigger/proxy.json\n\
                    resources: {requests: {cpu: 200m, memory: 32Mi}}\n\
                    defaults: {log-level: debug, outrigger.dev/io: epoll}\n";
        let config = InjectorConfig::parse(text).expect("a good file");
        let value = |name| config.default_of(find(name).expect("in the table"));
        assert_eq!((value("log-level"), value("io"), value("workers")), ("debug", "epoll", "auto"));
        assert_eq!(
            (value("image-pull-policy"), value("cpu-request"), value("memory-limit")),
            ("Always", "200m", "none")
        );
        assert_eq!(value("image"), "registry.example/outrigger-proxy:1");
        assert_eq!(config.seccomp_profile.as_deref(), Some("outrigger/proxy.json"));
        assert!(
            ["mesh", "batch", "kube-public"].iter().all(|name| config.system_namespaces.iter().any(|own| own == name))
        );
        assert_eq!(InjectorConfig::parse("# nothing\n"), Ok(InjectorConfig::default()));
    }

    #[test]
    fn every_problem_of_the_file_is_told() {
        let text = "imag: x\nxdsAddress: nowhere\ncontrolNamespace: Mesh_1\nseccompProfile: ../x\nimagePullPolicy: always\n\
                    resources: {limits: {cpu: 0, disk: 1}}\n\
                    defaults: {log-levl: info, cpu-request: 0, image: a, memory-limit: 1Xi, status: '{}'}\n";
        let problems = InjectorConfig::parse(text).expect_err("a bad file");
        let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        let wanted =
            ["imag", "xdsAddress", "controlNamespace", "seccompProfile", "imagePullPolicy", "resources.limits.cpu"];
        let more =
            ["log-levl", "image", "cpu-request", "memory-limit", "status"].map(|name| format!("defaults.{name}"));
        for path in wanted.into_iter().chain(["resources.limits.disk"]).chain(more.iter().map(String::as_str)) {
            assert!(paths.contains(&path), "{path} is missing in {paths:?}");
        }
        assert!(InjectorConfig::parse("a: 1\n---\nb: 2\n").expect_err("two")[0].message.contains("one document"));
    }
}
