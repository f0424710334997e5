//! How much CPU time this process may use, from the texts that the kernel gives.
//!
//! **Shape.** Pure: [`Cpus::from_files`] is given a reader of files and what the environment says. Of the v1 and the v2
//! hierarchy it follows each that has this process in a mounted cgroup, from the process's own cgroup up to the mount.
//!
//! **Units.** Thousandths of a CPU ("milli"), as Kubernetes writes requests.
//!
//! **Errors.** None: a file that is missing or not understood says nothing, and what it would have bound stays unbound.
//!
//! **Limits.** A quota is read once: one that is changed while the process runs is seen by the next start.
//!
//! **Source.** cgroups(7); the kernel's cgroup-v2.rst (`cpu.max`, `cpu.weight`) and sched-bwc.rst; for what Kubernetes
//! writes: `cpu.shares` = milli × 1024 / 1000, at least 2, and 2 without a request; `cpu.weight` from these shares, by a
//! line from (2, 1) to (262144, 10000) up to runc 1.3.1 and crun 1.22, since then by a curve that also goes through
//! (1024, 100). The curve gives the smaller request of the two for every weight (test below): it is the one used.

use std::path::{Path, PathBuf};

const PROC: &str = "/proc/self";
/// Values that a cgroup has when nobody asked for anything, and the least, which Kubernetes writes without a request.
const SHARES_UNSAID: [u64; 2] = [1024, 2];
const WEIGHT_UNSAID: [u64; 2] = [100, 1];
const SHARES_MAX: u64 = 262_144;
const WEIGHT_MAX: u64 = 10_000;

/// What bounds the CPU time of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cpus {
    /// CPUs of the scheduler's mask.
    pub(super) allowed: Option<usize>,
    /// The tightest quota of the process's cgroup and those above it.
    pub(super) quota: Option<Share>,
    /// What was asked for; other processes may take what is beyond it.
    pub(super) request: Option<Share>,
}

/// An amount of CPU time and who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Thousandths of a CPU.
    pub(super) milli: u64,
    /// The file, with what it says.
    pub(super) source: String,
}

/// One of the two hierarchies, as far as this process sees it.
struct Hierarchy {
    is_v2: bool,
    /// The process's cgroup.
    leaf: PathBuf,
    /// Where the hierarchy is mounted: the last cgroup upwards that can be seen.
    top: PathBuf,
    /// The name that the kernel has for the process's cgroup.
    name: String,
}

impl Cpus {
    /// Reads them. `read` gives a file's text; `in_pod` says that the environment is one that Kubernetes made.
    pub(super) fn from_files(read: &dyn Fn(&Path) -> Option<String>, in_pod: bool) -> Self {
        let proc = |name: &str| read(&Path::new(PROC).join(name)).unwrap_or_default();
        let hierarchies = hierarchies(&proc("cgroup"), &proc("mountinfo"));
        let quotas = hierarchies.iter().flat_map(|hierarchy| {
            let up = hierarchy.leaf.ancestors().take_while(|folder| folder.starts_with(&hierarchy.top));
            up.filter_map(|folder| if hierarchy.is_v2 { quota_v2(read, folder) } else { quota_v1(read, folder) })
        });
        let quota = quotas.min_by_key(|quota| quota.milli);
        // A weight only says how CPUs are shared when they are short. Kubernetes makes it from a request; elsewhere it
        // is no amount, and a process that took it for one would leave idle CPUs alone.
        let is_pod = |hierarchy: &Hierarchy| in_pod || hierarchy.name.contains("kubepods");
        let request = hierarchies.iter().filter(|hierarchy| is_pod(hierarchy)).find_map(|h| request(read, h));
        Self { allowed: allowed(&proc("status")), quota, request }
    }
}

/// The line `Cpus_allowed_list`, with `0-3,8`, gives 5.
fn allowed(status: &str) -> Option<usize> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut count = 0_usize;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// The hierarchies with a CPU controller, v2 first. A cgroup outside of what is mounted here is seen as the mount itself.
fn hierarchies(cgroup: &str, mountinfo: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for is_v2 in [true, false] {
        let of_process = cgroup.lines().find_map(|line| {
            // 0::/path, or 4:cpu,cpuacct:/path
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let is_it = if is_v2 {
                number == "0" && controllers.is_empty()
            } else {
                controllers.split(',').any(|c| c == "cpu")
            };
            is_it.then_some(path)
        });
        let Some(name) = of_process else { continue };
        let mounts: Vec<(String, String)> = mountinfo.lines().filter_map(|line| cgroup_mount(line, is_v2)).collect();
        let below = mounts.iter().find_map(|(root, point)| {
            let inside = Path::new(name).strip_prefix(root).ok()?;
            let is_plain = inside.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            is_plain.then(|| (Path::new(point).join(inside), PathBuf::from(point)))
        });
        let Some((leaf, top)) = below.or_else(|| mounts.first().map(|(_, point)| (point.into(), point.into()))) else {
            continue;
        };
        found.push(Hierarchy { is_v2, leaf, top, name: name.to_owned() });
    }
    found
}

/// Root and mount point of a line of mountinfo that mounts cgroups of that version with the CPU controller (proc(5)):
/// `31 23 0:28 /root /point options … - type source superoptions`.
fn cgroup_mount(line: &str, is_v2: bool) -> Option<(String, String)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut system = system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1)?);
    let is_it = if is_v2 { kind == "cgroup2" } else { kind == "cgroup" && options.split(',').any(|o| o == "cpu") };
    is_it.then(|| (unescape(root), unescape(point)))
}

/// mountinfo writes blanks, tabs, line ends and backslashes as three octal digits.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escaped, plain)| path.replace(escaped, plain))
}

/// `cpu.max`: `max 100000`, or quota and period in microseconds.
fn quota_v2(read: &dyn Fn(&Path) -> Option<String>, folder: &Path) -> Option<Share> {
    let file = folder.join("cpu.max");
    let text = read(&file)?;
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota.parse().ok()?, period.trim().parse().ok()?, || format!("{}: {}", file.display(), text.trim()))
}

/// `cpu.cfs_quota_us` (-1: none) over `cpu.cfs_period_us`.
fn quota_v1(read: &dyn Fn(&Path) -> Option<String>, folder: &Path) -> Option<Share> {
    let file = folder.join("cpu.cfs_quota_us");
    let (quota, period) = (read(&file)?, read(&folder.join("cpu.cfs_period_us"))?);
    let (quota, period) = (quota.trim(), period.trim());
    share(quota.parse().ok()?, period.parse().ok()?, || format!("{}: {quota} of {period}", file.display()))
}

fn share(quota_us: u64, period_us: u64, source: impl Fn() -> String) -> Option<Share> {
    let milli = quota_us.checked_mul(1000)?.checked_div(period_us)?;
    Some(Share { milli, source: source() })
}

fn request(read: &dyn Fn(&Path) -> Option<String>, hierarchy: &Hierarchy) -> Option<Share> {
    let name = if hierarchy.is_v2 { "cpu.weight" } else { "cpu.shares" };
    let file = hierarchy.leaf.join(name);
    let value = read(&file)?.trim().parse::<u64>().ok()?;
    let shares = match hierarchy.is_v2 {
        true => (value <= WEIGHT_MAX && !WEIGHT_UNSAID.contains(&value)).then(|| shares_of_weight(value)),
        false => (value <= SHARES_MAX && !SHARES_UNSAID.contains(&value)).then_some(value),
    };
    let milli = shares.filter(|shares| value > 0 && *shares > 0)?.saturating_mul(1000).div_ceil(1024);
    Some(Share { milli, source: format!("{}: {value}", file.display()) })
}

/// The fewest shares that a runtime of today writes as that weight.
fn shares_of_weight(weight: u64) -> u64 {
    let (mut low, mut high) = (2, SHARES_MAX);
    while low < high {
        let middle = low.midpoint(high);
        if weight_of_shares(middle) >= weight {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The curve of runc and crun.
fn weight_of_shares(shares: u64) -> u64 {
    let l = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    // The exponent is at most 4 for shares in range, the result at most 10,000; a cast of it saturates.
    10_f64.powf(exponent).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Kubernetes 1.33 with containerd and cgroup v2, as a container sees itself: 500m asked for, limit 1500m.
    const POD_V2: &[(&str, &str)] = &[
        (
            "/proc/self/status",
            "Name:\tcat\nThreads:\t1\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\nMems_allowed_list:\t0\n",
        ),
        ("/proc/self/cgroup", "0::/\n"),
        (
            "/proc/self/mountinfo",
            "1021 1020 0:216 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n\
             1026 1023 0:29 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot\n",
        ),
        ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
        ("/sys/fs/cgroup/cpu.weight", "59\n"),
    ];

    /// A container under cgroup v1 without a cgroup namespace: the mount shows its own part of the tree.
    const DOCKER_V1: &[(&str, &str)] = &[
        ("/proc/self/status", "Cpus_allowed_list:\t0-3,8,10-11\n"),
        (
            "/proc/self/cgroup",
            "12:pids:/docker/f3a1\n5:cpuset:/docker/f3a1\n4:cpu,cpuacct:/docker/f3a1\n1:name=systemd:/docker/f3a1\n0::/system.slice/containerd.service\n",
        ),
        (
            "/proc/self/mountinfo",
            "640 633 0:29 /docker/f3a1 /sys/fs/cgroup/cpuset ro,nosuid - cgroup cgroup rw,cpuset\n\
             641 633 0:30 /docker/f3a1 /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:11 - cgroup cgroup rw,cpu,cpuacct\n",
        ),
        ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n"),
        ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ("/sys/fs/cgroup/cpu,cpuacct/cpu.shares", "512\n"),
    ];

    /// A service of systemd in two slices, each with a CPUQuota.
    const SLICES: &[(&str, &str)] = &[
        ("/proc/self/status", "Cpus_allowed_list:\t0-15\n"),
        ("/proc/self/cgroup", "0::/mesh.slice/mesh-proxies.slice/proxy@1.service\n"),
        (
            "/proc/self/mountinfo",
            "35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        ),
        ("/sys/fs/cgroup/mesh.slice/cpu.max", "400000 100000\n"),
        ("/sys/fs/cgroup/mesh.slice/mesh-proxies.slice/cpu.max", "20000 10000\n"),
        ("/sys/fs/cgroup/mesh.slice/mesh-proxies.slice/proxy@1.service/cpu.max", "max 100000\n"),
        ("/sys/fs/cgroup/mesh.slice/mesh-proxies.slice/proxy@1.service/cpu.weight", "20\n"),
    ];

    fn read(files: &[(&str, &str)], in_pod: bool) -> Cpus {
        let files: HashMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        Cpus::from_files(&|path| files.get(path).map(|text| (*text).to_owned()), in_pod)
    }

    fn with<'a>(files: &[(&'a str, &'a str)], path: &'a str, text: &'a str) -> Vec<(&'a str, &'a str)> {
        let kept = files.iter().copied().filter(|(name, _)| *name != path);
        kept.chain([(path, text)]).collect()
    }

    fn milli(share: Option<Share>) -> Option<u64> {
        share.map(|share| share.milli)
    }

    #[test]
    fn a_pod_under_v2_has_quota_and_request() {
        let cpus = read(POD_V2, true);
        assert_eq!(cpus.allowed, Some(8));
        let quota = cpus.quota.unwrap();
        assert_eq!((quota.milli, quota.source.as_str()), (1500, "/sys/fs/cgroup/cpu.max: 150000 100000"));
        let request = cpus.request.unwrap();
        assert!((450..=500).contains(&request.milli), "{request:?}");
        assert_eq!(request.source, "/sys/fs/cgroup/cpu.weight: 59");
        assert_eq!(milli(read(&with(POD_V2, "/sys/fs/cgroup/cpu.max", "max 100000\n"), true).quota), None);
    }

    #[test]
    fn a_container_under_v1_has_a_quota_and_shares_that_are_no_request() {
        let cpus = read(DOCKER_V1, false);
        assert_eq!((cpus.allowed, milli(cpus.quota), cpus.request), (Some(7), Some(2500), None));
        assert_eq!(milli(read(DOCKER_V1, true).request), Some(500), "in a pod they are one");
        let none = with(DOCKER_V1, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
        assert_eq!(read(&none, false).quota, None);
    }

    #[test]
    fn the_tightest_quota_of_all_above_binds() {
        let cpus = read(SLICES, false);
        assert_eq!(milli(cpus.quota.clone()), Some(2000));
        assert!(cpus.quota.unwrap().source.contains("mesh-proxies.slice/cpu.max"));
        assert_eq!(cpus.request, None, "systemd's weight is no amount");
    }

    #[test]
    fn the_path_of_a_pod_shows_one_too() {
        let path = "/kubepods.slice/kubepods-burstable.slice/cri-1.scope";
        let cgroup = format!("0::{path}\n");
        let weight = format!("/sys/fs/cgroup{path}/cpu.weight");
        let files = with(SLICES, "/proc/self/cgroup", &cgroup);
        let files = with(&files, &weight, "174\n");
        assert!((1950..=2000).contains(&milli(read(&files, false).request).unwrap()));
    }

    #[test]
    fn a_weight_that_nobody_chose_is_no_request() {
        for weight in ["100", "1", "0", "10001", "-5", "idle", ""] {
            assert_eq!(read(&with(POD_V2, "/sys/fs/cgroup/cpu.weight", weight), true).request, None, "{weight:?}");
        }
        for shares in ["1024", "2", "0", "262145", "x"] {
            let files = with(DOCKER_V1, "/sys/fs/cgroup/cpu,cpuacct/cpu.shares", shares);
            assert_eq!(read(&files, true).request, None, "{shares:?}");
        }
    }

    #[test]
    fn a_cgroup_outside_of_the_mount_is_seen_as_the_mount() {
        for outside in ["0::/../other\n", "0::/elsewhere\n"] {
            let files = with(POD_V2, "/proc/self/cgroup", outside);
            assert_eq!(milli(read(&files, true).quota), Some(1500), "{outside}");
        }
    }

    #[test]
    fn odd_texts_say_nothing() {
        assert_eq!(read(&[], true), Cpus::default());
        for (path, text) in [
            ("/proc/self/status", "Cpus_allowed_list:\t\n"),
            ("/proc/self/status", "Cpus_allowed_list:\t3-0\n"),
            ("/proc/self/status", "Cpus_allowed_list:\t0-18446744073709551615\n"),
        ] {
            assert_eq!(read(&with(POD_V2, path, text), true).allowed, None, "{text:?}");
        }
        for text in ["", "max", "100000", "-1 100000", "100000 0", "99999999999999999999 1", "9223372036854775807 1"] {
            assert_eq!(read(&with(POD_V2, "/sys/fs/cgroup/cpu.max", text), true).quota, None, "{text:?}");
        }
        assert_eq!(unescape("/my\\040cgroups\\134x"), "/my cgroups\\x");
    }

    /// The older line, for comparison.
    fn linear_weight(shares: u64) -> u64 {
        1 + ((shares - 2) * 9999) / 262_142
    }

    #[test]
    fn the_curve_goes_through_its_three_points_and_never_asks_for_more_than_the_line() {
        assert_eq!([1024, 2048, 512, 102].map(weight_of_shares), [100, 174, 59, 17]);
        assert_eq!([2, 1024, 2048, 262_144].map(linear_weight), [1, 39, 79, 10_000]);
        for weight in 2..=WEIGHT_MAX {
            let curve = shares_of_weight(weight);
            let line = (weight - 1).saturating_mul(262_142).div_ceil(9999) + 2;
            assert_eq!(linear_weight(line), weight);
            assert!(curve <= line, "weight {weight}: {curve} shares by the curve, {line} by the line");
        }
    }

    proptest! {
        #[test]
        fn a_request_comes_back_from_its_shares(milli in 3_u64..=255_000) {
            let shares = milli * 1024 / 1000;
            prop_assume!(!SHARES_UNSAID.contains(&shares));
            let text = shares.to_string();
            let files = with(DOCKER_V1, "/sys/fs/cgroup/cpu,cpuacct/cpu.shares", &text);
            let found = read(&files, true).request.unwrap().milli;
            prop_assert!(found == milli || found + 1 == milli, "{milli} came back as {found}");
        }

        #[test]
        fn a_request_read_from_a_weight_is_not_above_what_was_asked(milli in 10_u64..=255_000) {
            let shares = milli * 1024 / 1000;
            for weight in [weight_of_shares(shares), linear_weight(shares)] {
                let text = weight.to_string();
                let files = with(POD_V2, "/sys/fs/cgroup/cpu.weight", &text);
                if let Some(request) = read(&files, true).request {
                    prop_assert!(request.milli <= milli, "weight {weight} of {milli}: {request:?}");
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(texts in proptest::collection::vec("[ -~\n\t]{0,60}", 5)) {
            let names = POD_V2.iter().map(|(path, _)| *path);
            let files: Vec<(&str, &str)> = names.zip(texts.iter().map(String::as_str)).collect();
            for keep in 0..files.len() {
                // One file is as the kernel writes it, so that the walk goes on to the next.
                let mut mixed = files.clone();
                mixed[keep] = POD_V2[keep];
                read(&mixed, true);
            }
        }
    }
}
