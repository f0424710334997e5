//! What the kernel tells of this process, read from `/proc/self`.
//!
//! **Errors.** None: a value that cannot be read is `None` and its metric is left out.

use std::fs;

/// Clock ticks a second in `/proc`: `USER_HZ`, 100 on every architecture this program is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// One look at the process.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Process {
    /// User and system time.
    pub cpu_seconds: Option<f64>,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Virtual memory.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit of file descriptors.
    pub max_fds: Option<u64>,
    /// Seconds since the Unix epoch.
    pub start_seconds: Option<f64>,
}

impl Process {
    /// Reads `/proc/self` and the boot time.
    pub fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let mut process = Self::parse(
            &text("/proc/self/stat"),
            &text("/proc/self/status"),
            &text("/proc/self/limits"),
            &text("/proc/stat"),
        );
        // The descriptor that lists the folder is one of those counted.
        process.open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1));
        process
    }

    fn parse(stat: &str, status: &str, limits: &str, machine: &str) -> Self {
        // The command name may hold spaces and brackets: fields are counted from the last bracket on.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
        let kib = |key: &str| Some(line_number(status, key)? * 1024);
        let boot = line_number(machine, "btime");
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double")]
        let start_seconds = boot.zip(ticks(19)).map(|(boot, ticks)| boot as f64 + ticks / TICKS_PER_SECOND);
        Self {
            cpu_seconds: ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / TICKS_PER_SECOND),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            threads: line_number(status, "Threads:"),
            open_fds: None,
            max_fds: line_number(limits, "Max open files"),
            start_seconds,
        }
    }
}

/// The first number in the line that starts with `key`.
fn line_number(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_hostile_command_name() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 150 7 8 20 0 4 0 5000 1024 10";
        let status = "Name:\ta\nVmSize:\t  2048 kB\nVmRSS:\t 1024 kB\nThreads:\t4\n";
        let limits = "Limit  Soft Limit Hard Limit Units\nMax open files            1024    4096    files\n";
        let process = Process::parse(stat, status, limits, "cpu 1 2\nbtime 1700000000\n");
        assert_eq!(process.cpu_seconds, Some(4.0));
        assert_eq!(process.resident_bytes, Some(1 << 20));
        assert_eq!(process.virtual_bytes, Some(2 << 20));
        assert_eq!(process.threads, Some(4));
        assert_eq!(process.max_fds, Some(1024));
        assert_eq!(process.start_seconds, Some(1_700_000_050.0));
    }

    #[test]
    fn nothing_readable_is_nothing_told() {
        assert_eq!(Process::parse("", "", "", ""), Process::default());
        assert_eq!(Process::parse(")", "VmRSS:", "Max open files unlimited", "btime x"), Process::default());
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{process:?}");
        assert!(process.open_fds.is_some_and(|fds| fds >= 3) && process.max_fds.is_some(), "{process:?}");
        assert!(process.start_seconds.is_some_and(|start| start > 1.0e9), "{process:?}");
    }
}
