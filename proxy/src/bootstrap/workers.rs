//! How many workers there are, and why.
//!
//! **Shape.** [`Workers`] is what the command line says, [`WorkerCount`] what comes of it on this machine.
//! ```text
//!  --workers N ──────────────────────────────────────────────────────────▶ N
//!  auto ──▶ a quota?   yes ─▶ the quota, rounded down ─┐
//!            │ no                                      ├─▶ at most the CPUs allowed, at least 1
//!            └▶ a request? yes ─▶ it, rounded up ──────┘
//!                │ no ──────────▶ the CPUs allowed
//! ```
//! Beside a quota the request decides nothing: who sets a limit above the request wants bursts up to it.
//!
//! **Limits.** 1 to [`WORKERS_MAX`].

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

use super::cpus::{Cpus, Share};

/// Most workers.
pub const WORKERS_MAX: u16 = 1024;
/// Most that a request can say, in thousandths of a CPU.
pub(super) const REQUEST_MILLI_MAX: i64 = 1_024_000;

/// How many workers the command line asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// What the CPU time of this process allows.
    #[default]
    Auto,
    /// That many.
    Count(u16),
}

/// How many workers there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCount {
    /// That many, 1 to [`WORKERS_MAX`].
    pub count: usize,
    /// Why, in one line.
    pub reason: String,
    /// More were asked for than the quota has CPUs: they will wait for each other.
    pub is_above_quota: bool,
}

impl Workers {
    /// The number for this machine. `request_milli` is what the command line or the environment says of the CPU request.
    pub fn count(self, request_milli: Option<u32>) -> WorkerCount {
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let mut cpus = Cpus::from_files(&|path: &Path| std::fs::read_to_string(path).ok(), in_pod);
        if cpus.allowed.is_none() {
            cpus.allowed = std::thread::available_parallelism().ok().map(NonZeroUsize::get);
        }
        if let Some(milli) = request_milli {
            let said = Share { milli: milli.into(), source: "told by --cpu-request-milli".to_owned() };
            // 0 is what the downward API says of a pod without a request.
            cpus.request = (milli > 0).then_some(said);
        }
        self.choose(&cpus)
    }

    fn choose(self, cpus: &Cpus) -> WorkerCount {
        let bound = cpus.quota.as_ref().map(|quota| whole(quota.milli));
        if let Self::Count(count) = self {
            let count = usize::from(count);
            let is_above_quota = bound.is_some_and(|bound| count > bound);
            let above = cpus.quota.as_ref().filter(|_| is_above_quota);
            let above = above.map_or_else(String::new, |quota| format!(", above the quota of {quota}"));
            return WorkerCount { count, reason: format!("--workers {count}{above}"), is_above_quota };
        }
        let most = cpus.allowed.unwrap_or(1).clamp(1, usize::from(WORKERS_MAX));
        let (count, reason) = match (&cpus.quota, &cpus.request) {
            (Some(quota), _) if whole(quota.milli) < most => {
                (whole(quota.milli), format!("the quota of {quota}, rounded down"))
            }
            (Some(quota), _) => (most, format!("the {most} CPUs allowed, within the quota of {quota}")),
            (None, Some(request)) if rounded_up(request.milli) < most => {
                (rounded_up(request.milli), format!("the request of {request}, rounded up; no quota"))
            }
            (None, Some(request)) => {
                (most, format!("the {most} CPUs allowed, within the request of {request}; no quota"))
            }
            (None, None) => (most, format!("the {most} CPUs allowed; no quota, no request known")),
        };
        WorkerCount { count, reason, is_above_quota: false }
    }
}

impl std::str::FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let count = text.parse::<u16>().ok().filter(|count| (1..=WORKERS_MAX).contains(count));
        count.map(Self::Count).ok_or_else(|| format!("not in 1..={WORKERS_MAX}, nor auto"))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.milli / 1000, self.milli % 1000);
        let part = format!("{part:03}");
        let part = part.trim_end_matches('0');
        let dot = if part.is_empty() { "" } else { "." };
        write!(f, "{whole}{dot}{part} CPUs ({})", self.source)
    }
}

/// Whole CPUs in a quota; one that is smaller still has a worker.
fn whole(milli: u64) -> usize {
    usize::try_from(milli / 1000).unwrap_or(usize::MAX).max(1)
}

fn rounded_up(milli: u64) -> usize {
    usize::try_from(milli.div_ceil(1000)).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpus(allowed: usize, quota: Option<u64>, request: Option<u64>) -> Cpus {
        let share = |milli, source: &str| Share { milli, source: source.to_owned() };
        Cpus {
            allowed: Some(allowed),
            quota: quota.map(|milli| share(milli, "cpu.max")),
            request: request.map(|milli| share(milli, "cpu.weight")),
        }
    }

    #[test]
    fn what_binds_is_named() {
        for (cpus, count, reason) in [
            (cpus(2, None, None), 2, "the 2 CPUs allowed; no quota, no request known"),
            (cpus(8, Some(1500), None), 1, "the quota of 1.5 CPUs (cpu.max), rounded down"),
            (cpus(8, Some(50), None), 1, "the quota of 0.05 CPUs (cpu.max), rounded down"),
            (cpus(8, Some(4000), Some(500)), 4, "the quota of 4 CPUs (cpu.max), rounded down"),
            (cpus(2, Some(4000), Some(500)), 2, "the 2 CPUs allowed, within the quota of 4 CPUs (cpu.max)"),
            (cpus(2, Some(2000), None), 2, "the 2 CPUs allowed, within the quota of 2 CPUs (cpu.max)"),
            (cpus(64, None, Some(1250)), 2, "the request of 1.25 CPUs (cpu.weight), rounded up; no quota"),
            (cpus(2, None, Some(6000)), 2, "the 2 CPUs allowed, within the request of 6 CPUs (cpu.weight); no quota"),
            (Cpus::default(), 1, "the 1 CPUs allowed; no quota, no request known"),
        ] {
            let chosen = Workers::Auto.choose(&cpus);
            assert_eq!((chosen.count, chosen.reason.as_str(), chosen.is_above_quota), (count, reason, false));
        }
    }

    #[test]
    fn a_number_stays_as_told_and_says_when_it_is_above_the_quota() {
        let told = |count, quota| Workers::Count(count).choose(&cpus(2, quota, None));
        assert_eq!((told(8, None).count, told(8, None).is_above_quota), (8, false));
        assert_eq!(told(2, Some(2000)).reason, "--workers 2");
        let above = told(2, Some(1900));
        assert_eq!((above.count, above.is_above_quota), (2, true));
        assert_eq!(above.reason, "--workers 2, above the quota of 1.9 CPUs (cpu.max)");
    }

    #[test]
    fn words_are_read_within_bounds() {
        assert_eq!(
            ["auto", "1", "1024"].map(str::parse),
            [Ok(Workers::Auto), Ok(Workers::Count(1)), Ok(Workers::Count(1024))]
        );
        for bad in ["0", "1025", "65536", "-1", "1.5", "x", "", "Auto"] {
            assert!(bad.parse::<Workers>().unwrap_err().contains("1..=1024"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_above_quota_or_mask_and_never_none(
            allowed in 1_usize..4096,
            quota in proptest::option::of(0_u64..5_000_000),
            request in proptest::option::of(0_u64..5_000_000),
        ) {
            let chosen = Workers::Auto.choose(&cpus(allowed, quota, request));
            prop_assert!(chosen.count >= 1 && chosen.count <= allowed && chosen.count <= usize::from(WORKERS_MAX));
            if let Some(quota) = quota {
                prop_assert!(chosen.count == 1 || chosen.count as u64 * 1000 <= quota);
            }
            // No worker fewer than these bounds leave.
            let more = chosen.count as u64 + 1;
            let fits = quota.is_none_or(|quota| more * 1000 <= quota)
                && (quota.is_some() || request.is_none_or(|request| chosen.count as u64 * 1000 < request));
            prop_assert!(!fits || chosen.count == allowed.min(usize::from(WORKERS_MAX)), "{chosen:?}");
        }
    }
}
