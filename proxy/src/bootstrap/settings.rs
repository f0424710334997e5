//! The command line: one table that gives the parser, `--help` and the error texts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::workers::{REQUEST_MILLI_MAX, WorkerCount, Workers};

/// The sidecar of the Outrigger mesh: forwards HTTP under policy that it gets over xDS.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "outrigger-proxy",
    version,
    after_help = "Examples:\n  \
        outrigger-proxy -c bootstrap.yaml\n  \
        outrigger-proxy -c bootstrap.yaml --check\n  \
        outrigger-proxy -c /etc/outrigger/bootstrap.json --workers 2 --io epoll --log-format json\n\n\
        Exit codes: 0 fine, 1 failed while running, 2 refused its input."
)]
pub struct Settings {
    /// Envoy bootstrap file, YAML or JSON.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub config: PathBuf,
    /// Worker threads, 1 to 1024; auto takes the cgroup's CPU quota rounded down, without one the CPU request rounded up,
    /// without that the CPUs that the scheduler allows, and never more than these.
    #[arg(long, value_name = "N|auto", allow_hyphen_values = true, default_value = "auto")]
    pub workers: Workers,
    /// The CPU request in thousandths of a CPU, 0 for none: Kubernetes' downward API gives it as `requests.cpu` with the
    /// divisor `1m`. It comes before what is read from the cgroup's weight.
    #[arg(long, value_name = "MILLI", env = "OUTRIGGER_CPU_REQUEST_MILLI", allow_hyphen_values = true,
        value_parser = clap::value_parser!(u32).range(0..=REQUEST_MILLI_MAX))]
    pub cpu_request_milli: Option<u32>,
    /// How sockets are driven; auto takes io_uring when the kernel allows it.
    #[arg(long, value_enum, default_value_t = IoChoice::Auto)]
    pub io: IoChoice,
    /// How long live requests may take to end when the process is told to stop: `45s`, `500ms`, `2m`.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, default_value = "45s", value_parser = parse_span)]
    pub drain_time: Duration,
    /// error, warn, info, debug or trace, also per module: `info,outrigger_proxy::xds=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// How log lines are written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Read the bootstrap file, print every error with its path, and exit with 0 or 2.
    #[arg(long)]
    pub check: bool,
}

/// How sockets are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IoChoice {
    /// io_uring when it works here, else epoll.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// epoll.
    Epoll,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// How many worker threads there are to be on this machine, and why.
    pub fn worker_count(&self) -> WorkerCount {
        self.workers.count(self.cpu_request_milli)
    }
}

/// `45s`, `500ms`, `2m`; a day at most.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(86_400);
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let span = digits.parse::<u64>().ok().and_then(|count| match unit {
        "ms" => Some(Duration::from_millis(count)),
        "s" => Some(Duration::from_secs(count)),
        "m" => count.checked_mul(60).map(Duration::from_secs),
        _ => None,
    });
    span.filter(|span| *span <= MAX).ok_or_else(|| "write a number and ms, s or m, up to 1440m: 45s, 500ms".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Settings, clap::Error> {
        Settings::try_parse_from(["outrigger-proxy", "-c", "b.yaml"].iter().chain(args))
    }

    #[test]
    fn the_table_is_sound() {
        Settings::command().debug_assert();
    }

    #[test]
    fn defaults_and_values() {
        let settings = parse(&[]).unwrap();
        assert_eq!((settings.io, settings.log_format), (IoChoice::Auto, LogFormat::Text));
        assert_eq!(settings.drain_time, Duration::from_secs(45));
        assert!(settings.workers == Workers::Auto && settings.worker_count().count >= 1 && !settings.check);
        assert_eq!(parse(&["--workers", "1024"]).unwrap().worker_count().count, 1024);
        assert_eq!(parse(&["--workers", "auto", "--cpu-request-milli", "0"]).unwrap().cpu_request_milli, Some(0));
        assert_eq!(parse(&["--drain-time", "0s"]).unwrap().drain_time, Duration::ZERO);
        assert_eq!(parse(&["--drain-time", "1440m"]).unwrap().drain_time, Duration::from_secs(86_400));
    }

    #[test]
    fn what_is_wrong_is_refused_with_exit_code_2() {
        for bad in [
            &["--worker", "2"][..],
            &["--workers", "0"],
            &["--workers", "1025"],
            &["--workers", "-1"],
            &["--workers", "NaN"],
            &["--workers", ""],
            &["--cpu-request-milli", "500m"],
            &["--cpu-request-milli", "-1"],
            &["--cpu-request-milli", "1024001"],
            &["--io", "iocp"],
            &["--drain-time", "45"],
            &["--drain-time", "-1s"],
            &["--drain-time", "NaNs"],
            &["--drain-time", "1441m"],
            &["--drain-time", "99999999999999999999s"],
            &["--log-format", "xml"],
            &["extra"],
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }
}
