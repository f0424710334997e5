//! **Purpose.** `outrigger-proxy intercept`: programs the packet filter of the pod so that its connections come to the proxy,
//! undoes that, and proves it.
//!
//! **Shape.** What is captured is decided in [`rules`](crate::rules); here the programs are run.
//! ```text
//!  apply:  settings ─▶ rules ─▶ backend that takes them ─▶ one transaction ─▶ leftovers of other backends go ─▶ verify
//!  verify: rules as the kernel has them ─▶ hooks ─▶ other meshes ─▶ connections and heartbeats through the rules
//! ```
//! It runs once, in the init container, as root with CAP_NET_ADMIN alone and a read-only root; nothing is kept in a file.
//! Applying again, with the same settings or others, puts the new rules in the old ones' place.
//!
//! **Errors.** [`InterceptError`]: refused input is exit code 2, all else 1; each says what to do next.
//!
//! **Limits.** An `nft` script is one transaction. Of iptables each table of each family is one; all families are tried
//! before the first is committed.
//!
//! **Source.** What init containers of other meshes do: Istio's `istio-iptables`, Linkerd's `proxy-init` and
//! `network-validator`.
//!
//! **Tests.** `tests/tests/intercept.rs`, in network namespaces with the real programs.

mod args;
mod backend;
mod iptables;
mod nft;
mod probe;
mod process;
mod program;
mod report;
mod routing;
mod verify;

pub use args::Intercept;
pub use process::pod_has_ipv6;

use std::time::Duration;

use args::{Action, BackendChoice, Ipv6Choice, Options};
use report::Report;

use crate::rules::listing::Tables;
use crate::rules::{Family, MARK, Mode, Ruleset, iptables as iptables_text, nft as nft_text};

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// It failed while running.
    #[error("{0}")]
    Broke(String),
    /// Its input was refused.
    #[error("{0}")]
    Refused(String),
}

/// Does what the command line asks for.
pub fn run(command: &Intercept) -> Result<(), InterceptError> {
    let (name, options) = match &command.action {
        Action::Apply(apply) => ("apply", &apply.options),
        Action::Remove(options) => ("remove", options),
        Action::Verify(verify) => ("verify", &verify.options),
    };
    let mut report = Report::start(name, options.output);
    let outcome = match &command.action {
        Action::Apply(wanted) => apply(options, wanted.verify.then_some(wanted.timeout), &mut report),
        Action::Remove(_) => remove(options, &mut report),
        Action::Verify(wanted) => verify(options, wanted.timeout, &mut report),
    };
    if !options.dry_run || outcome.is_err() {
        report.finish(outcome.as_ref().err().map(ToString::to_string).as_deref());
    }
    outcome
}

/// The rules that the options ask for, with a word on IPv6.
fn wanted(options: &Options) -> Result<(Ruleset, &'static str), InterceptError> {
    let (has_ipv6, word) = match options.ipv6 {
        Ipv6Choice::On => (true, "IPv4 and IPv6"),
        Ipv6Choice::Off => (false, "IPv4; IPv6 passes, as told"),
        Ipv6Choice::Auto if pod_has_ipv6() => (true, "IPv4 and IPv6"),
        Ipv6Choice::Auto => (false, "IPv4; the pod has no address of IPv6"),
    };
    Ok((Ruleset::build(&options.settings(has_ipv6)?), word))
}

fn need_net_admin() -> Result<(), InterceptError> {
    if process::has_net_admin() {
        return Ok(());
    }
    Err(InterceptError::Broke(
        "CAP_NET_ADMIN is lacking: run it as uid 0 with `NET_ADMIN` in securityContext.capabilities.add of the container \
         (that of an unprivileged user namespace does not do)"
            .to_owned(),
    ))
}

fn apply(options: &Options, verify_for: Option<Duration>, report: &mut Report) -> Result<(), InterceptError> {
    let (ruleset, families) = wanted(options)?;
    if options.dry_run {
        report.would(&dry_run(options.backend, &ruleset));
        return Ok(());
    }
    need_net_admin()?;
    let settings = options.settings(ruleset.has_ipv6)?;
    let chosen = backend::choose(options.backend, &ruleset)?;
    let backend = &chosen.backend;
    report.step(format!(
        "backend {} ({}), mode {}, {families}",
        backend.as_str(),
        chosen.reason,
        settings.mode.as_str()
    ));
    let broke = |error: String| InterceptError::Broke(format!("the rules were not applied: {error}"));
    // The way for marked packets is there before any packet is marked, and goes after.
    if settings.mode == Mode::Tproxy {
        route(&ruleset, routing::add).map_err(broke)?;
        report.step(format!("packets with mark {MARK} are routed to lo by table {MARK}"));
    }
    backend.apply(&ruleset).map_err(broke)?;
    let rules: usize = ruleset.chains.iter().map(|chain| chain.rules.len()).sum();
    report.step(format!("{rules} rules in {} chains are in force", ruleset.chains.len()));
    let broke = |error: String| InterceptError::Broke(format!("the rules are applied, but older ones stay: {error}"));
    for removed in backend.remove_others().map_err(broke)? {
        report.step(format!("removed what was there before: {removed}"));
    }
    if settings.mode == Mode::Redirect {
        route(&ruleset, routing::remove).map_err(broke)?;
    }
    match verify_for {
        None => Ok(()),
        Some(time) => {
            verify::verify(backend, &settings, &ruleset, time, report);
            judged(report)
        }
    }
}

fn route(ruleset: &Ruleset, act: impl Fn(Family) -> std::io::Result<()>) -> Result<(), String> {
    let mut families = ruleset.families().iter();
    families.try_for_each(|family| act(*family).map_err(|error| format!("routing of {}: {error}", family.as_str())))
}

fn remove(options: &Options, report: &mut Report) -> Result<(), InterceptError> {
    if options.dry_run {
        report.would(&format!(
            "# nft -f -\n{}# iptables and ip6tables: chains OUTRIGGER_* and the jumps to them, as far as they are there\n",
            nft_text::remove_script()
        ));
        return Ok(());
    }
    need_net_admin()?;
    let broke = |error: String| InterceptError::Broke(format!("not everything of ours is removed: {error}"));
    let removed = backend::remove_all().map_err(broke)?;
    for family in Family::ALL {
        routing::remove(family).map_err(|error| broke(format!("routing of {}: {error}", family.as_str())))?;
    }
    if removed.is_empty() {
        report.step("there was nothing of ours");
    }
    for what in removed {
        report.step(format!("removed {what}"));
    }
    Ok(())
}

fn verify(options: &Options, time: Duration, report: &mut Report) -> Result<(), InterceptError> {
    let (ruleset, _) = wanted(options)?;
    if options.dry_run {
        report.would(&dry_run(options.backend, &ruleset));
        return Ok(());
    }
    need_net_admin()?;
    let settings = options.settings(ruleset.has_ipv6)?;
    let Some(backend) = backend::holding(options.backend) else {
        return Err(InterceptError::Broke(
            "there are no rules of ours in this network namespace: run `outrigger-proxy intercept apply`".to_owned(),
        ));
    };
    verify::verify(&backend, &settings, &ruleset, time, report);
    judged(report)
}

/// The failed checks as an error.
fn judged(report: &Report) -> Result<(), InterceptError> {
    let failed = report.failed();
    if failed.is_empty() {
        return Ok(());
    }
    let count = failed.len();
    Err(InterceptError::Broke(format!(
        "{count} {} failed: {}; `outrigger-proxy intercept apply` puts the rules right unless another program changes them",
        if count == 1 { "check" } else { "checks" },
        failed.join(", ")
    )))
}

/// What would be given to the programs. Where neither is there, the text is nft's.
fn dry_run(choice: BackendChoice, ruleset: &Ruleset) -> String {
    let has_iptables = || iptables::MAKES.iter().any(|name| iptables::Make::find(name).is_some());
    let is_nft = match choice {
        BackendChoice::Nft => true,
        BackendChoice::Iptables => false,
        BackendChoice::Auto => nft::Nft::find().is_some() || !has_iptables(),
    };
    let mut text = String::new();
    if ruleset.chains.iter().any(|chain| chain.role == crate::rules::ChainRole::InboundTproxy) {
        for family in ruleset.families() {
            let flag = if *family == Family::V6 { " -6" } else { "" };
            text += &format!("# ip{flag} route add local default dev lo table {MARK}\n");
            text += &format!("# ip{flag} rule add fwmark {MARK} lookup {MARK} priority {MARK}\n");
        }
    }
    if is_nft {
        return text + "# nft -f -\n" + &nft_text::script(ruleset);
    }
    for family in ruleset.families() {
        text += match family {
            Family::V4 => "# iptables-restore --noflush\n",
            Family::V6 => "# ip6tables-restore --noflush\n",
        };
        text += &iptables_text::restore(ruleset, *family, &Tables::default());
    }
    text
}
