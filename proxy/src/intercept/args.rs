//! The command line of `outrigger-proxy intercept`.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::InterceptError;
use crate::bootstrap::parse_span;
use crate::rules::{CaptureSettings, Choice, IdList, Mode, NetworkList, Owner, PortList, Ports, parse_id};

/// Captures the connections of a pod: programs the packet filter of the network namespace it runs in.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "intercept",
    after_help = "Examples:\n  \
        outrigger-proxy intercept apply --verify\n  \
        outrigger-proxy intercept apply --dry-run --exclude-outbound-cidrs 169.254.169.254 --exclude-outbound-ports 3306\n  \
        outrigger-proxy intercept apply --mode tproxy --include-inbound-ports 80,8000-8100 --ipv6 on\n  \
        outrigger-proxy intercept verify -o json\n  \
        outrigger-proxy intercept remove\n\n\
        It takes CAP_NET_ADMIN in the pod's network namespace and nothing else: no other capability, no writable file.\n\
        Exit codes: 0 fine, 1 failed while running or a check failed, 2 refused its input."
)]
pub struct Intercept {
    /// What is to be done.
    #[command(subcommand)]
    pub action: Action,
}

/// What is to be done.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Put the rules in place of whatever rules of ours there are.
    Apply(ApplyOptions),
    /// Take all rules of ours away.
    Remove(Options),
    /// Prove that the rules are there and capture.
    Verify(VerifyOptions),
}

/// `apply`.
#[derive(Clone, Debug, Args)]
pub struct ApplyOptions {
    /// What is captured, and how.
    #[command(flatten)]
    pub options: Options,
    /// Verify what was applied.
    #[arg(long)]
    pub verify: bool,
    /// How long verifying may take: `10s`, `500ms`.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, default_value = "10s", value_parser = parse_span)]
    pub timeout: Duration,
}

/// `verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyOptions {
    /// What is captured, and how.
    #[command(flatten)]
    pub options: Options,
    /// How long it may take: `10s`, `500ms`.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, default_value = "10s", value_parser = parse_span)]
    pub timeout: Duration,
}

/// What is captured, and how.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How inbound connections reach the proxy; outbound ones are redirected in either mode.
    #[arg(long, value_enum, default_value_t = ModeChoice::Redirect)]
    pub mode: ModeChoice,
    /// The proxy's port for outbound connections.
    #[arg(long, value_name = "PORT", default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// The proxy's port for inbound connections.
    #[arg(long, value_name = "PORT", default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// Loopback connections to it come to the outbound port, of any user: they prove the rules. Nobody listens on it.
    #[arg(long, value_name = "PORT", default_value_t = 15009, value_parser = clap::value_parser!(u16).range(1..))]
    pub heartbeat_port: u16,
    /// Whom the proxy runs as: its own connections pass. A number, or a name of this image's /etc/passwd.
    #[arg(long, value_name = "UID", default_value = "1337", allow_hyphen_values = true, value_parser = parse_user)]
    pub proxy_uid: u32,
    /// The proxy's group. A number, or a name of this image's /etc/group.
    #[arg(long, value_name = "GID", default_value = "1337", allow_hyphen_values = true, value_parser = parse_group)]
    pub proxy_gid: u32,
    /// Ports of the pod that are captured: `*`, or a list as in `80,443,8000-8100`; an empty one captures none.
    #[arg(long, value_name = "*|PORTS", default_value = "*", allow_hyphen_values = true)]
    pub include_inbound_ports: Choice<PortList>,
    /// Ports of the pod that are left alone; the health port 15020 always is.
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub exclude_inbound_ports: PortList,
    /// Destinations that are captured: `*`, or a list as in `10.0.0.0/8,fd00::/8`; an empty one captures none.
    #[arg(long, value_name = "*|CIDRS", default_value = "*", allow_hyphen_values = true)]
    pub include_outbound_cidrs: Choice<NetworkList>,
    /// Destinations that are left alone.
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub exclude_outbound_cidrs: NetworkList,
    /// Destination ports that are captured, of those destinations.
    #[arg(long, value_name = "*|PORTS", default_value = "*", allow_hyphen_values = true)]
    pub include_outbound_ports: Choice<PortList>,
    /// Destination ports that are left alone.
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub exclude_outbound_ports: PortList,
    /// Users whose connections pass. Numbers, or names of this image's /etc/passwd.
    #[arg(long, value_name = "UIDS", default_value = "", hide_default_value = true, allow_hyphen_values = true,
        value_parser = parse_users)]
    pub exclude_uids: IdList,
    /// Groups whose connections pass. Numbers, or names of this image's /etc/group.
    #[arg(long, value_name = "GIDS", default_value = "", hide_default_value = true, allow_hyphen_values = true,
        value_parser = parse_groups)]
    pub exclude_gids: IdList,
    /// Which packet filter is programmed; auto takes nft where program and kernel have it, else iptables.
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Whether IPv6 is captured; auto captures it where an interface other than loopback has an address of it.
    #[arg(long, value_enum, default_value_t = Ipv6Choice::Auto)]
    pub ipv6: Ipv6Choice,
    /// Only print what would be given to the packet filter.
    #[arg(long)]
    pub dry_run: bool,
    /// How the outcome is printed.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

impl Options {
    /// The settings they make, with IPv6 as it was found.
    pub fn settings(&self, has_ipv6: bool) -> Result<CaptureSettings, InterceptError> {
        let settings = CaptureSettings {
            mode: match self.mode {
                ModeChoice::Redirect => Mode::Redirect,
                ModeChoice::Tproxy => Mode::Tproxy,
            },
            ports: Ports { outbound: self.outbound_port, inbound: self.inbound_port, heartbeat: self.heartbeat_port },
            proxy: Owner { uid: self.proxy_uid, gid: self.proxy_gid },
            inbound_ports: self.include_inbound_ports.clone(),
            inbound_ports_excluded: self.exclude_inbound_ports.clone(),
            outbound_networks: self.include_outbound_cidrs.clone(),
            outbound_networks_excluded: self.exclude_outbound_cidrs.clone(),
            outbound_ports: self.include_outbound_ports.clone(),
            outbound_ports_excluded: self.exclude_outbound_ports.clone(),
            uids_excluded: self.exclude_uids.clone(),
            gids_excluded: self.exclude_gids.clone(),
            has_ipv6,
        };
        settings.contradiction().map_or(Ok(settings), |error| Err(InterceptError::Refused(error.to_string())))
    }
}

/// How inbound connections reach the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeChoice {
    /// NAT to the proxy's port.
    Redirect,
    /// No NAT, so that the client's address can be kept; the proxy's inbound listener must be transparent.
    Tproxy,
}

/// Which packet filter is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// nft where program and kernel have it, else iptables.
    Auto,
    /// A table of our own, `inet outrigger`.
    Nft,
    /// Chains of our own, OUTRIGGER_*, of iptables and ip6tables.
    Iptables,
}

/// Whether IPv6 is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ipv6Choice {
    /// Where an interface other than loopback has an address of it.
    Auto,
    /// Yes.
    On,
    /// No: it passes.
    Off,
}

/// How the outcome is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines for people.
    Text,
    /// One JSON object.
    Json,
}

fn parse_user(text: &str) -> Result<u32, String> {
    parse_id(text, |name| id_of("/etc/passwd", name))
}

fn parse_group(text: &str) -> Result<u32, String> {
    parse_id(text, |name| id_of("/etc/group", name))
}

fn parse_users(text: &str) -> Result<IdList, String> {
    IdList::parse(text, |name| id_of("/etc/passwd", name)).map_err(|error| error.to_string())
}

fn parse_groups(text: &str) -> Result<IdList, String> {
    IdList::parse(text, |name| id_of("/etc/group", name)).map_err(|error| error.to_string())
}

/// The third field of the line that begins with the name, in files of the form of passwd(5) and group(5).
fn id_of(file: &str, name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| if fields.next() == Some(name) { fields.nth(1)?.parse().ok() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        match Intercept::try_parse_from(["intercept", "apply"].iter().chain(args))?.action {
            Action::Apply(apply) => Ok(apply.options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_table_is_sound() {
        Intercept::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_settings() {
        assert_eq!(parse(&[]).unwrap().settings(true).unwrap(), CaptureSettings::default());
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let options = parse(&[
            "--mode=tproxy",
            "--outbound-port=1",
            "--inbound-port=2",
            "--heartbeat-port=3",
            "--proxy-uid=4",
            "--proxy-gid=5",
            "--include-inbound-ports=6",
            "--exclude-inbound-ports=7",
            "--include-outbound-cidrs=8.0.0.0/8",
            "--exclude-outbound-cidrs=9.0.0.0/8",
            "--include-outbound-ports=10",
            "--exclude-outbound-ports=11",
            "--exclude-uids=12",
            "--exclude-gids=root,13",
        ]);
        let settings = options.unwrap().settings(false).unwrap();
        let wanted = CaptureSettings {
            mode: Mode::Tproxy,
            ports: Ports { outbound: 1, inbound: 2, heartbeat: 3 },
            proxy: Owner { uid: 4, gid: 5 },
            inbound_ports: "6".parse().unwrap(),
            inbound_ports_excluded: "7".parse().unwrap(),
            outbound_networks: "8.0.0.0/8".parse().unwrap(),
            outbound_networks_excluded: "9.0.0.0/8".parse().unwrap(),
            outbound_ports: "10".parse().unwrap(),
            outbound_ports_excluded: "11".parse().unwrap(),
            uids_excluded: IdList::parse("12", |_| None).unwrap(),
            gids_excluded: IdList::parse("0,13", |_| None).unwrap(),
            has_ipv6: false,
        };
        assert_eq!(settings, wanted);
    }

    #[test]
    fn what_is_wrong_is_refused_with_exit_code_2_and_the_place() {
        for (bad, told) in [
            ("--mode=nat", "redirect"),
            ("--outbound-port=0", "1..=65535"),
            ("--outbound-port=65536", "1..=65535"),
            ("--proxy-uid=4294967295", "0..=4294967294"),
            ("--proxy-uid=no-such-user", "no such name"),
            ("--proxy-gid=-1", "no such name"),
            ("--include-inbound-ports=80,0", "entry 2, `0`"),
            ("--exclude-inbound-ports=*", "entry 1, `*`"),
            ("--include-outbound-cidrs=10.0.0.1/8", "write 10.0.0.0/8"),
            ("--exclude-outbound-cidrs=::/129", "0..=128"),
            ("--include-outbound-ports=9-8", "8-9"),
            ("--exclude-outbound-ports=http", "1..=65535"),
            ("--exclude-uids=1,nobody-here", "entry 2"),
            ("--exclude-gids=x", "entry 1"),
            ("--backend=pf", "iptables"),
            ("--ipv6=maybe", "auto"),
            ("--timeout=10", "45s"),
            ("--output=xml", "json"),
        ] {
            let error = parse(&[bad]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}");
            let text = error.to_string();
            let flag = bad.split('=').next().unwrap();
            assert!(text.contains(flag) && text.contains(told), "{bad}: {text}");
        }
        let error = parse(&["--inbound-port=15001"]).unwrap().settings(true).unwrap_err().to_string();
        assert!(error.starts_with("--outbound-port and --inbound-port are both 15001"), "{error}");
    }
}
