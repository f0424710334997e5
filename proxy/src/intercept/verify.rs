//! Whether the rules are there, as they should be, and do what they should.
//!
//! What can be tried from inside is tried by connections ([`probe`](super::probe)). Inbound connections come from outside,
//! so for them the rules, their hook and who else hooks there are read instead.

use std::time::{Duration, Instant};

use super::backend::Backend;
use super::iptables::Make;
use super::nft::Nft;
use super::report::{Check, Outcome, Report};
use super::{probe, routing};
use crate::rules::listing::{Difference, Foreign, ListedChain, Named, Tables, differences, foreign};
use crate::rules::{CaptureSettings, ChainRole, Family, MARK, Mode, Ruleset, iptables, nft};

/// Reads and tries everything; each finding goes to the report.
pub(super) fn verify(
    backend: &Backend,
    settings: &CaptureSettings,
    ruleset: &Ruleset,
    time: Duration,
    report: &mut Report,
) {
    let deadline = Instant::now() + time;
    match backend {
        Backend::Nft(program) => read_nft(program, ruleset, report),
        Backend::Iptables(make) => {
            for family in ruleset.families() {
                read_iptables(make, *family, ruleset, report);
            }
        }
    }
    others(backend, ruleset, report);
    if settings.mode == Mode::Tproxy {
        for family in ruleset.families() {
            report.check(read_routing(*family));
        }
    }
    probe::probe(settings, ruleset, deadline, report);
}

fn told(name: &str, wanted: &[Named], differences: &[Difference]) -> Check {
    if differences.is_empty() {
        return Check::passed(name, format!("{} rules, as they would be applied now", wanted.len()));
    }
    let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
    Check::failed(name, texts.join("; "))
}

fn read_nft(program: &Nft, ruleset: &Ruleset, report: &mut Report) {
    let chains = match program.list() {
        Ok(chains) => chains,
        Err(error) => return report.check(Check::failed("rules", error.to_string())),
    };
    let table = format!("inet {}", nft::TABLE);
    let find = |name: &str| chains.iter().find(|chain| chain.table == table && chain.name == name);
    for (role, wanted) in nft::wanted(ruleset) {
        let name = format!("rules {}", role.as_str());
        let Some(chain) = find(nft::chain_name(role)) else {
            report.check(Check::failed(name, format!("chain {} is missing", nft::chain_name(role))));
            continue;
        };
        report.check(told(&name, &wanted, &differences(&wanted, chain.rules.iter().map(String::as_str))));
        let name = format!("hook {}", role.as_str());
        report.check(match chain.hook.as_deref() {
            Some(hook) if hook == nft::hook(role) => Check::passed(name, hook),
            Some(hook) => Check::failed(name, format!("it is `{hook}`, not `{}`", nft::hook(role))),
            None => Check::failed(name, "the chain hangs nowhere".to_owned()),
        });
    }
}

fn read_iptables(make: &Make, family: Family, ruleset: &Ruleset, report: &mut Report) {
    let tables = match make.list(family) {
        Ok(tables) => tables,
        Err(error) => return report.check(Check::failed(format!("rules {}", family.as_str()), error)),
    };
    for (role, wanted) in iptables::wanted(ruleset, family) {
        let place = iptables::place(role);
        let name = format!("rules {} {}", role.as_str(), family.as_str());
        let found = tables.rules_of(place.table, place.chain);
        report.check(told(&name, &wanted, &differences(&wanted, found)));
        report.check(read_jump(&tables, role, family));
    }
}

/// The jump from the built-in chain must be there, once, and before all others.
fn read_jump(tables: &Tables, role: ChainRole, family: Family) -> Check {
    let place = iptables::place(role);
    let name = format!("hook {} {}", role.as_str(), family.as_str());
    let jump = place.saved_jump();
    let rules: Vec<&str> = tables.rules_of(place.table, place.from).collect();
    match rules.iter().position(|rule| *rule == jump) {
        None => Check::failed(name, format!("the rule `{jump}` of table {} is missing", place.table)),
        Some(0) => Check::passed(name, format!("table {}: {jump}", place.table)),
        Some(at) => {
            let before = rules.get(at - 1).copied().unwrap_or_default();
            Check::new(name, Outcome::Warned, format!("`{before}` of table {} comes before `{jump}`", place.table))
        }
    }
}

/// What others have that diverts connections: another mesh's is a failure, anything else is told.
fn others(backend: &Backend, ruleset: &Ruleset, report: &mut Report) {
    let mut chains: Vec<ListedChain> = Vec::new();
    // Either sees what the other may not.
    if let Backend::Iptables(make) = backend {
        let tables = ruleset.families().iter().filter_map(|family| make.list(*family).ok());
        chains.extend(tables.flat_map(|tables| tables.listed()));
    }
    let makes = super::iptables::MAKES.iter().filter_map(|name| Make::find(name));
    if let Some(old) = makes.into_iter().find(|make| !make.speaks_nf_tables()) {
        let tables = ruleset.families().iter().filter_map(|family| old.list(*family).ok());
        chains.extend(tables.flat_map(|tables| tables.listed()));
    }
    if let Some(program) = Nft::find() {
        chains.extend(program.list().unwrap_or_default());
    }
    let found = foreign(&chains);
    if found.is_empty() {
        report.check(Check::passed("others", "nobody else diverts connections here"));
    }
    for Foreign { mesh, table, chain } in found {
        report.check(match mesh {
            Some(mesh) => Check::failed(
                "others",
                format!(
                    "chain {chain} of table {table} is of {mesh}: a pod belongs to one mesh; take it out of the other's injection"
                ),
            ),
            None => {
                Check::new("others", Outcome::Warned, format!("chain {chain} of table {table} diverts connections, too"))
            }
        });
    }
}

fn read_routing(family: Family) -> Check {
    let name = format!("routing {}", family.as_str());
    match routing::present(family) {
        Ok((true, true)) => Check::passed(name, format!("packets with mark {MARK} stay in the pod by table {MARK}")),
        Ok((false, _)) => Check::failed(name, format!("the rule `fwmark {MARK} lookup {MARK}` is missing")),
        Ok((_, false)) => Check::failed(name, format!("the route `local default dev lo table {MARK}` is missing")),
        Err(error) => Check::failed(name, format!("the kernel did not tell: {error}")),
    }
}
