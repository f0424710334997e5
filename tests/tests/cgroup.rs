//! Purpose: the number of workers in real cgroups, v2 or v1, whichever has the CPU controller here. Run by `make interop`,
//! as root, for it makes cgroups.
//!
//! Errors: without a writable cgroup or a second CPU it fails and says so; it is not skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource;
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::{binary, downstream, wait_for};
use serde_json::Value;

/// Where the hierarchy with the CPU controller is mounted.
struct Hierarchy {
    mount: PathBuf,
    is_v2: bool,
}

impl Hierarchy {
    fn find() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let find = |kind: &str, has_cpu: &dyn Fn(&str, &str) -> bool| {
            mounts.lines().find_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let (point, options) = (left.split(' ').nth(4)?, right.rsplit(' ').next()?);
                (right.starts_with(&format!("{kind} ")) && has_cpu(point, options)).then(|| PathBuf::from(point))
            })
        };
        let v1 = find("cgroup", &|_, options| options.split(',').any(|option| option == "cpu"));
        let v2 = || {
            find("cgroup2", &|point, _| {
                let controllers = std::fs::read_to_string(Path::new(point).join("cgroup.controllers"));
                controllers.is_ok_and(|list| list.split_whitespace().any(|controller| controller == "cpu"))
            })
        };
        let found = match v1 {
            Some(mount) => Some(Self { mount, is_v2: false }),
            None => v2().map(|mount| Self { mount, is_v2: true }),
        };
        found.unwrap_or_else(|| panic!("no cgroup hierarchy with the CPU controller is mounted:\n{mounts}"))
    }

    fn name() -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        format!("outrigger-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst))
    }

    /// A cgroup right below the mount.
    fn cgroup(&self) -> Cgroup<'_> {
        self.cgroup_in(&self.mount, &Self::name())
    }

    fn cgroup_in(&self, parent: &Path, name: &str) -> Cgroup<'_> {
        if self.is_v2 {
            write(&parent.join("cgroup.subtree_control"), "+cpu");
        }
        let folder = parent.join(name);
        let made = std::fs::create_dir(&folder);
        made.unwrap_or_else(|error| {
            panic!("{}: {error}; make interop needs root and a writable cgroup", folder.display())
        });
        Cgroup { hierarchy: self, folder }
    }
}

/// A cgroup that is removed when it is dropped.
struct Cgroup<'a> {
    hierarchy: &'a Hierarchy,
    folder: PathBuf,
}

impl Cgroup<'_> {
    /// Thousandths of a CPU.
    fn limit(self, milli: u64) -> Self {
        let quota = milli * 100;
        if self.hierarchy.is_v2 {
            write(&self.folder.join("cpu.max"), &format!("{quota} 100000"));
        } else {
            write(&self.folder.join("cpu.cfs_quota_us"), &quota.to_string());
        }
        self
    }

    /// What a container runtime writes for a request of half a CPU.
    fn ask_half(self) -> Self {
        let (file, value) = if self.hierarchy.is_v2 { ("cpu.weight", "59") } else { ("cpu.shares", "512") };
        write(&self.folder.join(file), value);
        self
    }

    /// What a proxy in it says on `/io`, and its log.
    fn ask(&self, args: &[&str], env: &[(&str, &str)]) -> (Value, String) {
        let scratch = Scratch::new("cgroup").unwrap();
        let text = resource::forwarding(&["127.0.0.1:9".parse().unwrap()]).to_string();
        let bootstrap = scratch.write("bootstrap.json", &text).unwrap();
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.folder.display());
        let launch = Launch { program: "/bin/sh".into(), ..Launch::default() }
            .args(["-c".into(), enter.into(), binary::find("outrigger-proxy").unwrap().into_os_string()])
            .args(["-c".into(), bootstrap.into_os_string()])
            .args(args);
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut process = Process::start("proxy", &Launch { env, ..launch }).unwrap();
        let line = process.wait_line("outrigger-proxy ready ", Duration::from_secs(20)).unwrap();
        let admin = line.split(' ').find_map(|word| word.strip_prefix("admin=")).unwrap().parse().unwrap();
        let told = downstream::get(admin, "/io").unwrap();
        (serde_json::from_slice(&told.body).unwrap(), process.log().join("\n"))
    }

    /// Number of workers and the reason for it.
    fn workers(&self, args: &[&str]) -> (u64, String) {
        let (told, log) = self.ask(args, &[]);
        let reason = told["worker_reason"].as_str().unwrap().to_owned();
        assert!(log.contains(&reason), "the log says it too: {log}");
        assert_eq!(told["workers"].as_array().unwrap().len() as u64, told["worker_count"], "{told}");
        (told["worker_count"].as_u64().unwrap(), reason)
    }
}

impl Drop for Cgroup<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test's own message is the better one.
            let _ = std::fs::remove_dir(&self.folder);
            return;
        }
        wait_for("the cgroup to be empty", Duration::from_secs(5), || {
            std::fs::remove_dir(&self.folder).map_err(|error| format!("{}: {error}", self.folder.display()))
        });
    }
}

#[track_caller]
fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap_or_else(|error| {
        panic!("{}: {text:?}: {error}; make interop needs root and a writable cgroup", file.display())
    });
}

fn allowed() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap();
    let count = mask.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| u64::from(digit.count_ones())).sum();
    assert!(count >= 2, "one CPU alone shows nothing: run this on two");
    count
}

#[test]
#[ignore = "makes cgroups, as root: make interop"]
fn workers_follow_the_quota() {
    let hierarchy = Hierarchy::find();
    let (free, reason) = hierarchy.cgroup().workers(&[]);
    assert_eq!(free, allowed(), "{reason}");
    for (milli, count) in [(500, 1), (1000, 1), (1999, 1), (2000, 2)] {
        let (workers, reason) = hierarchy.cgroup().limit(milli).workers(&[]);
        assert_eq!(workers, count, "{milli} thousandths of a CPU: {reason}");
        assert!(reason.contains("quota of"), "{reason}");
    }
    let (workers, _) = hierarchy.cgroup().limit(1000 * allowed() + 1000).workers(&[]);
    assert_eq!(workers, allowed(), "a quota above the machine");
}

#[test]
#[ignore = "makes cgroups, as root: make interop"]
fn a_quota_further_up_binds() {
    let hierarchy = Hierarchy::find();
    let parent = hierarchy.cgroup().limit(1000);
    let child = hierarchy.cgroup_in(&parent.folder, "proxy");
    let (workers, reason) = child.workers(&[]);
    assert_eq!(workers, 1, "{reason}");
    assert!(reason.contains(&parent.folder.display().to_string()), "it names the cgroup: {reason}");
}

#[test]
#[ignore = "makes cgroups, as root: make interop"]
fn a_request_counts_where_kubernetes_wrote_it() {
    let hierarchy = Hierarchy::find();
    let (plain, reason) = hierarchy.cgroup().ask_half().workers(&[]);
    assert_eq!(plain, allowed(), "a weight alone is no amount: {reason}");
    let pods = hierarchy.cgroup_in(&hierarchy.mount, &format!("kubepods-{}", Hierarchy::name())).ask_half();
    let (workers, reason) = pods.workers(&[]);
    assert_eq!(workers, 1, "{reason}");
    assert!(reason.contains("request of"), "{reason}");
    let (told, _) = hierarchy.cgroup().ask(&[], &[("OUTRIGGER_CPU_REQUEST_MILLI", "700")]);
    assert_eq!(told["worker_count"], 1, "{told}");
    let (told, _) = pods.ask(&[], &[("OUTRIGGER_CPU_REQUEST_MILLI", "0")]);
    assert_eq!(told["worker_count"], allowed(), "said to have none: {told}");
}

#[test]
#[ignore = "makes cgroups, as root: make interop"]
fn a_number_above_the_quota_is_kept_with_a_warning() {
    let hierarchy = Hierarchy::find();
    let limited = hierarchy.cgroup().limit(1000);
    let (told, log) = limited.ask(&["--workers", "2"], &[]);
    assert_eq!(told["worker_count"], 2, "{told}");
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("above the quota of 1 CPUs")), "{log}");
}
