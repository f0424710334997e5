//! Purpose: the profile that the chart puts on nodes: a container runtime's default for a process without capabilities,
//! on x86-64 and arm64, and the three calls of io_uring.
//!
//! Source: github.com/moby/profiles, seccomp/default.json, which containerd's own default follows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::{binary, downstream, resource};
use serde_json::Value;

use super::{read, root, tool};

const URING: [&str; 3] = ["io_uring_enter", "io_uring_register", "io_uring_setup"];

/// What is allowed outright, and under which rules the rest.
#[derive(Debug, PartialEq)]
struct Profile {
    allowed: BTreeSet<String>,
    ruled: BTreeMap<String, BTreeSet<String>>,
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap())
}

/// Whether a rule holds for a process without capabilities on one of our two architectures.
fn holds(rule: &Value) -> bool {
    let ours = ["amd64", "arm", "arm64", "x32", "x86"];
    let arches = &rule["includes"]["arches"];
    texts(&rule["includes"]["caps"]).next().is_none()
        && (arches.is_null() || texts(arches).any(|arch| ours.contains(&arch)))
}

fn read_profile(text: &str) -> Profile {
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!((&value["defaultAction"], &value["defaultErrnoRet"]), (&"SCMP_ACT_ERRNO".into(), &1.into()));
    let mut profile = Profile { allowed: BTreeSet::new(), ruled: BTreeMap::new() };
    for rule in value["syscalls"].as_array().unwrap().iter().filter(|rule| holds(rule)) {
        for name in texts(&rule["names"]) {
            let arguments = rule["args"].as_array().map_or(&[][..], Vec::as_slice);
            if rule["action"] == "SCMP_ACT_ALLOW" && arguments.is_empty() {
                profile.allowed.insert(name.to_owned());
                continue;
            }
            let told: Vec<String> = arguments
                .iter()
                .map(|a| format!("{} {} {} {}", a["index"], a["op"], a["value"], a["valueTwo"].as_u64().unwrap_or(0)))
                .collect();
            let rule = format!("{} {} {}", rule["action"], rule["errnoRet"], told.join(", "));
            profile.ruled.entry(name.to_owned()).or_default().insert(rule);
        }
    }
    profile
}

fn ours() -> Profile {
    read_profile(&read("charts/outrigger/files/seccomp.json"))
}

/// What a kubelet's runtime reads is OCI's own form: no rule may depend on what OCI does not know.
#[test]
fn the_profile_is_what_a_runtime_reads() {
    let value: Value = serde_json::from_str(&read("charts/outrigger/files/seccomp.json")).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    let known = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(keys(&value), known(&["architectures", "defaultAction", "defaultErrnoRet", "syscalls"]));
    for rule in value["syscalls"].as_array().unwrap() {
        assert!(keys(rule).is_subset(&known(&["action", "args", "errnoRet", "names"])), "{rule}");
        let names: Vec<&str> = texts(&rule["names"]).collect();
        assert!(names.is_sorted_by(|left, right| left < right), "{names:?}");
    }
    let profile = ours();
    assert!(profile.allowed.is_disjoint(&profile.ruled.keys().cloned().collect()), "{:?}", profile.ruled.keys());
    assert!(URING.iter().all(|name| profile.allowed.contains(*name)));
    for call in
        ["bpf", "mount", "setns", "unshare", "keyctl", "init_module", "perf_event_open", "userfaultfd", "reboot"]
    {
        assert!(!profile.allowed.contains(call) && !profile.ruled.contains_key(call), "{call}");
    }
}

#[test]
#[ignore = "needs the default profile: make chart"]
fn the_profile_is_the_default_and_io_uring() {
    let default = Path::new(&tool("OUTRIGGER_CHART_SCHEMAS")).join("default.json");
    let mut default = read_profile(&std::fs::read_to_string(default).unwrap());
    assert!(URING.iter().all(|name| default.allowed.insert((*name).to_owned())), "the default has io_uring");
    // Of an architecture that is not ours, though the default has it for all.
    assert!(default.allowed.remove("riscv_hwprobe"));
    let ours = ours();
    let more: Vec<_> = ours.allowed.difference(&default.allowed).collect();
    let less: Vec<_> = default.allowed.difference(&ours.allowed).collect();
    assert!(more.is_empty() && less.is_empty(), "more {more:?}, less {less:?}");
    assert_eq!(ours.ruled, default.ruled);
}

/// What a proxy under a profile says on `/io`.
fn io_under(profile: &Path, scratch: &Scratch) -> Value {
    let text = resource::forwarding(&["127.0.0.1:9".parse().unwrap()]).to_string();
    let bootstrap = scratch.write("bootstrap.json", &text).unwrap();
    let launch = Launch { program: "/usr/bin/env".into(), ..Launch::default() }
        .args(["python3".into(), root().join("tests/tools/under_profile.py"), profile.to_owned()])
        .args([binary::find("outrigger-proxy").unwrap(), "-c".into(), bootstrap]);
    let mut process = Process::start("proxy", &launch).unwrap();
    let line = process.wait_line("outrigger-proxy ready ", Duration::from_secs(20)).unwrap();
    let admin = line.split(' ').find_map(|word| word.strip_prefix("admin=")).unwrap().parse().unwrap();
    serde_json::from_slice(&downstream::get(admin, "/io").unwrap().body).unwrap()
}

/// The proxy runs under the profile with io_uring, and under the default, which is ours without the three, with epoll.
#[test]
#[ignore = "needs libseccomp and a kernel with io_uring: make chart"]
fn a_proxy_has_io_uring_under_the_profile_and_not_without_it() {
    let scratch = Scratch::new("seccomp").unwrap();
    let with = io_under(&root().join("charts/outrigger/files/seccomp.json"), &scratch);
    assert_eq!(with["driver"], "uring", "{with}");
    let mut profile: Value = serde_json::from_str(&read("charts/outrigger/files/seccomp.json")).unwrap();
    let rules = profile["syscalls"].as_array_mut().unwrap();
    rules.retain(|rule| !texts(&rule["names"]).any(|name| URING.contains(&name)));
    let default = scratch.write("default.json", &profile.to_string()).unwrap();
    let without = io_under(&default, &scratch);
    assert_eq!(without["driver"], "epoll", "{without}");
}
