//! The command line: one table that gives the parser, `--help` and the error texts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::health::HealthAddress;
use super::workers::{REQUEST_MILLI_MAX, WorkerCount, Workers};

/// The sidecar of the Outrigger mesh: forwards HTTP under policy that it gets over xDS.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "outrigger-proxy",
    version,
    after_help = "Examples:\n  \
        outrigger-proxy -c bootstrap.yaml\n  \
        outrigger-proxy -c bootstrap.yaml --check\n  \
        outrigger-proxy --config-yaml \"$OUTRIGGER_BOOTSTRAP\" --health '*:15020' --capture-heartbeat --ready-deadline 60s\n  \
        outrigger-proxy -c /etc/outrigger/bootstrap.json --workers 2 --io epoll --log-format json\n\n\
        Exit codes: 0 fine, 1 failed while running, 2 refused its input."
)]
pub struct Settings {
    /// Envoy bootstrap file, YAML or JSON.
    #[arg(short = 'c', long = "config", value_name = "FILE", required_unless_present = "config_yaml")]
    pub config: Option<PathBuf>,
    /// The bootstrap as text, YAML or JSON. Beside a file it is laid over it: what it sets wins, its lists are appended.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub config_yaml: Option<String>,
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
    /// Where readiness and metrics are served to whoever can reach it: `0.0.0.0:15020`, or `*:15020` for all addresses.
    #[arg(long, value_name = "ADDR")]
    pub health: Option<HealthAddress>,
    /// Prove, again and again, that the pod's traffic is captured: readiness depends on it.
    #[arg(long)]
    pub capture_heartbeat: bool,
    /// The port on loopback whose connections the capture rules bring here as heartbeats.
    #[arg(long, value_name = "PORT", default_value_t = 15_009, value_parser = clap::value_parser!(u16).range(1..))]
    pub heartbeat_port: u16,
    /// How long the start may take until this proxy is ready; then it ends with code 1. 0 waits for ever.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, default_value = "0s", value_parser = parse_span)]
    pub ready_deadline: Duration,
    /// How long leaving may take when the process is told to stop, live requests and all: `45s`, `500ms`, `2m`.
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
        "" if count == 0 => Some(Duration::ZERO),
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
        assert_eq!((settings.heartbeat_port, settings.ready_deadline), (15_009, Duration::ZERO));
        assert!(settings.health.is_none() && !settings.capture_heartbeat && settings.config_yaml.is_none());
        let only_text = Settings::try_parse_from(["outrigger-proxy", "--config-yaml", "node: { id: a }"]).unwrap();
        assert!(only_text.config.is_none() && only_text.config_yaml.is_some());
        assert_eq!(parse(&["--ready-deadline", "0"]).unwrap().ready_deadline, Duration::ZERO);
        assert_eq!(parse(&["--ready-deadline", "60s"]).unwrap().ready_deadline, Duration::from_secs(60));
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
            &["--heartbeat-port", "0"],
            &["--heartbeat-port", "65536"],
            &["--health", "15020"],
            &["--health", "*:0x1"],
            &["--ready-deadline", "60"],
            &["extra"],
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        let neither = Settings::try_parse_from(["outrigger-proxy"]).unwrap_err();
        assert_eq!(neither.exit_code(), 2);
        assert!(neither.to_string().contains("--config"), "{neither}");
    }
}
