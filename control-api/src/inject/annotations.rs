//! Purpose: every annotation that the injector knows, once.
//! Shape: [`TABLE`] drives reading, refusals, `outriggerctl inject --list-annotations`, the defaults in the injector's
//! configuration, and `docs/annotations.md`.
//! Errors: an unknown name under `outrigger.dev/` and a value out of its range are refused, all of them at once.
//! Tests: foot of this file; `tests/inject` gives each row a good and a bad value.

use std::collections::BTreeMap;

use super::config::InjectorConfig;
use super::form::{Form, Refusal};
use crate::model::Problem;
use crate::model::problem::nearest;

/// What all names begin with.
pub const PREFIX: &str = "outrigger.dev/";
/// Where the injector says what it did, as an annotation.
pub const STATUS: &str = "outrigger.dev/status";
/// Where the bootstrap lies that a projected file shows, as an annotation.
pub const BOOTSTRAP: &str = "outrigger.dev/bootstrap";
/// The label and annotation that turn injection on and off.
pub const INJECT: &str = "outrigger.dev/inject";

/// One annotation.
#[derive(Debug, Clone, Copy)]
pub struct Annotation {
    /// Its name without [`PREFIX`].
    pub name: &'static str,
    /// What its value must look like.
    pub form: Form,
    /// What holds without it, unless the injector's configuration says otherwise.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn row(name: &'static str, form: Form, default: &'static str, meaning: &'static str) -> Annotation {
    Annotation { name, form, default, meaning }
}

const SWITCH: Form = Form::Choice(&["enabled", "disabled"]);

/// All of them, by purpose.
pub const TABLE: &[Annotation] = &[
    row(
        "inject",
        SWITCH,
        "enabled",
        "Whether this pod gets a sidecar. The label of the same name says the same; `disabled` in either wins.",
    ),
    row(
        "upgrade",
        Form::Choice(&["keep", "image", "all"]),
        "keep",
        "What becomes of a sidecar that is there already, in a manifest that was injected before: it stays as it is, gets \
         the present image, or is made anew.",
    ),
    row(
        "image",
        Form::Image,
        "",
        "The proxy's image, for both containers. Default: `image` of the injector's configuration.",
    ),
    row(
        "image-pull-policy",
        Form::Choice(&["Always", "IfNotPresent", "Never"]),
        "IfNotPresent",
        "When the image is pulled.",
    ),
    row("log-level", Form::LogFilter, "info", "What the proxy logs."),
    row("log-format", Form::Choice(&["json", "text"]), "json", "How the proxy logs."),
    row(
        "workers",
        Form::Workers,
        "auto",
        "Worker threads of the proxy. `auto`: as many as the CPU limit has whole CPUs, else the CPU request rounded up.",
    ),
    row(
        "io",
        Form::Choice(&["auto", "uring", "epoll"]),
        "auto",
        "How the proxy drives sockets. `uring` does not start where the seccomp profile forbids io_uring.",
    ),
    row("cpu-request", Form::Cpu, "100m", "CPU that the proxy is promised."),
    row("cpu-limit", Form::Cpu, "none", "CPU that the proxy may use at most."),
    row("memory-request", Form::Memory, "64Mi", "Memory that the proxy is promised."),
    row("memory-limit", Form::Memory, "256Mi", "Memory that the proxy may use at most."),
    row(
        "capture-mode",
        Form::Choice(&["redirect", "tproxy"]),
        "redirect",
        "How inbound connections come to the proxy. `tproxy` lets the application see the caller's address; it wants a \
         privilege, so the proxy then runs as uid 0 with NET_ADMIN.",
    ),
    row("include-inbound-ports", Form::Ports(true), "*", "Inbound ports that are captured."),
    row("exclude-inbound-ports", Form::Ports(false), "", "Inbound ports that are not captured; 15020 never is."),
    row("include-outbound-cidrs", Form::Cidrs(true), "*", "Networks to which outbound connections are captured."),
    row("exclude-outbound-cidrs", Form::Cidrs(false), "", "Networks to which outbound connections are not captured."),
    row("include-outbound-ports", Form::Ports(true), "*", "Ports to which outbound connections are captured."),
    row("exclude-outbound-ports", Form::Ports(false), "", "Ports to which outbound connections are not captured."),
    row("exclude-uids", Form::Ids, "", "Users whose outbound connections are not captured."),
    row("exclude-gids", Form::Ids, "", "Groups whose outbound connections are not captured."),
    row("capture-backend", Form::Choice(&["auto", "nft", "iptables"]), "auto", "What writes the rules of the capture."),
    row(
        "capture-ipv6",
        Form::Choice(&["auto", "on", "off"]),
        "auto",
        "Whether IPv6 is captured; `auto`: where the pod has it.",
    ),
    row(
        "outbound-policy",
        Form::Choice(&["mesh", "allow-any", "registry-only"]),
        "mesh",
        "What becomes of connections to places that no policy and no registry knows: passed on, or closed. `mesh`: as \
         MeshConfig says, at any time.",
    ),
    row(
        "drain-time",
        Form::Span(0, 86_400, Some("auto")),
        "auto",
        "How long the proxy may take to end. `auto`: the pod's terminationGracePeriodSeconds less 5 s (half of it when it is \
         10 s or shorter); it must be below that period.",
    ),
    row(
        "hold-app-stop",
        SWITCH,
        "enabled",
        "Whether containers without a preStop hook of their own are told to stop only when no new traffic arrives. Pods that \
         run to completion never get the hook.",
    ),
    row(
        "ready-deadline",
        Form::Span(0, 3_600, None),
        "60s",
        "How long the proxy may take until its capture is proven and its first configuration is there; then it ends with an \
         error that says what is missing. 0s: it waits for ever.",
    ),
    row(
        "probes",
        Form::Choice(&["all", "startup", "none"]),
        "all",
        "Which probes the proxy has. Without the startup probe the application starts before the proxy is ready.",
    ),
    row(
        "bootstrap-from",
        Form::Choice(&["environment", "projected-file"]),
        "environment",
        "Where the proxy's bootstrap lies: in a variable, or in an annotation that a file shows.",
    ),
    row(
        "seccomp",
        Form::Choice(&["auto", "localhost", "runtime-default"]),
        "auto",
        "The proxy's seccomp profile. `auto`: `localhost` (`outrigger/proxy.json`, which allows io_uring) where the injector's \
         configuration says that it is installed, else `runtime-default`.",
    ),
    row(
        "xds-address",
        Form::Address,
        "",
        "Where the control plane serves xDS. Default: `xdsAddress` of the injector's configuration.",
    ),
    row("status", Form::Written, "", "What the injector did with this pod, or why it left it alone."),
    row("bootstrap", Form::Written, "", "The proxy's bootstrap, with `bootstrap-from: projected-file`."),
];

/// The annotation of that name (without [`PREFIX`]).
#[must_use]
pub fn find(name: &str) -> Option<&'static Annotation> {
    TABLE.iter().find(|row| row.name == name)
}

/// A value for every row: of the pod, else of the injector's configuration, else of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// Reads a pod's annotations; every problem is returned at once.
    pub fn read(given: &BTreeMap<String, Option<String>>, config: &InjectorConfig) -> Result<Self, Vec<Problem>> {
        let mut values: BTreeMap<&'static str, String> = TABLE
            .iter()
            .filter(|row| row.form != Form::Written)
            .map(|row| (row.name, config.default_of(row).to_owned()))
            .collect();
        let mut problems = Vec::new();
        for (key, value) in given {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let value = value.as_deref().unwrap_or_default();
            match find(name).ok_or_else(|| unknown(name)).and_then(|row| Ok((row, row.form.read(value)?))) {
                Ok((row, _)) if row.form == Form::Written => {}
                Ok((row, value)) => drop(values.insert(row.name, value)),
                Err(refusal) => problems.push(problem(key, value, refusal)),
            }
        }
        if problems.is_empty() { Ok(Self(values)) } else { Err(problems) }
    }

    /// The value of a row of the table.
    #[must_use]
    pub fn text(&self, name: &'static str) -> &str {
        debug_assert!(find(name).is_some(), "{name} is not in the table");
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether a switch is on.
    #[must_use]
    pub fn is_enabled(&self, name: &'static str) -> bool {
        self.text(name) == "enabled"
    }
}

/// The refusal of a name that is not in the table.
#[must_use]
pub fn unknown(name: &str) -> Refusal {
    let names: Vec<&'static str> = TABLE.iter().filter(|row| row.form != Form::Written).map(|row| row.name).collect();
    Refusal {
        message: format!("there is no such annotation; there are {}", names.join(", ")),
        near: nearest(name, &names),
    }
}

/// A refusal at its place in the pod.
#[must_use]
pub fn problem(key: &str, value: &str, refusal: Refusal) -> Problem {
    let mut shown: String = value.chars().take(80).collect();
    if shown.len() < value.len() {
        shown.push_str("...");
    }
    Problem {
        path: format!("metadata.annotations[{key:?}]"),
        value: Some(format!("{shown:?}")),
        message: refusal.message,
        remedy: refusal.near.map(|near| format!("did you mean {near}?")),
        ..Problem::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_defaults_are_values() {
        let names: BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for row in TABLE {
            assert!(
                row.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
                "{}",
                row.name
            );
            assert!(row.meaning.ends_with('.') && !row.form.range().is_empty(), "{}", row.name);
            // The two that the configuration must say.
            if !matches!(row.form, Form::Image | Form::Address) {
                assert_eq!(row.form.read(row.default).as_deref(), Ok(row.default), "{}", row.name);
            }
        }
    }

    #[test]
    fn every_problem_is_told_with_the_nearest_word() {
        let given = [("outrigger.dev/log-levl", "info"), ("outrigger.dev/io", "urin"), ("other.dev/x", "y")];
        let given = given.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).into_iter().collect();
        let problems = Values::read(&given, &InjectorConfig::default()).expect_err("two of them are wrong");
        let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].starts_with(r#"metadata.annotations["outrigger.dev/io"]: "urin": must be one of auto, uring"#)
        );
        assert!(lines[0].ends_with("did you mean uring?"), "{}", lines[0]);
        assert!(lines[1].ends_with("did you mean log-level?"), "{}", lines[1]);
    }
}
