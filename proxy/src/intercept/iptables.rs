//! The rules by `iptables-restore` and `ip6tables-restore`, of whichever make works here.
//!
//! **Shape.** A [`Make`] is one of the sets of programs that distributions ship side by side: the one they take by default,
//! the one that speaks to nf_tables, the one that speaks to the old tables. What each makes, the other does not see.

use super::process::has_net_raw;
use super::program::{Program, RunError};
use crate::rules::iptables::{TABLES, remove, restore};
use crate::rules::listing::Tables;
use crate::rules::{Family, Ruleset};

/// Seconds that a program waits for another one's lock.
const LOCK_S: &str = "5";

/// Names of the makes, the default one first.
pub(super) const MAKES: [&str; 3] = ["iptables", "iptables-nft", "iptables-legacy"];

/// What a matching, target or table needs of the kernel.
const NEEDS: [(&str, &str, bool); 9] = [
    ("the nat table (iptable_nat, ip6table_nat)", "*nat\nCOMMIT\n", false),
    (
        "xt_REDIRECT",
        "*nat\n:OUTRIGGER_PROBE - [0:0]\n-A OUTRIGGER_PROBE -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n",
        false,
    ),
    ("xt_owner", "*nat\n:OUTRIGGER_PROBE - [0:0]\n-A OUTRIGGER_PROBE -m owner --uid-owner 1\nCOMMIT\n", false),
    ("xt_comment", "*nat\n:OUTRIGGER_PROBE - [0:0]\n-A OUTRIGGER_PROBE -m comment --comment x\nCOMMIT\n", false),
    (
        "xt_multiport",
        "*nat\n:OUTRIGGER_PROBE - [0:0]\n-A OUTRIGGER_PROBE -p tcp -m multiport --dports 1,2\nCOMMIT\n",
        false,
    ),
    ("the mangle table (iptable_mangle, ip6table_mangle)", "*mangle\nCOMMIT\n", true),
    (
        "xt_TPROXY",
        "*mangle\n:OUTRIGGER_PROBE - [0:0]\n-A OUTRIGGER_PROBE -p tcp -j TPROXY --on-port 1 --tproxy-mark 1\nCOMMIT\n",
        true,
    ),
    (
        "xt_addrtype",
        "*mangle\n:OUTRIGGER_PROBE - [0:0]\n-A OUTRIGGER_PROBE -m addrtype --src-type LOCAL\nCOMMIT\n",
        true,
    ),
    (
        "xt_conntrack and xt_connmark",
        "*mangle\n:OUTRIGGER_PROBE - [0:0]\n-A OUTRIGGER_PROBE -m conntrack --ctdir REPLY -m connmark --mark 1\nCOMMIT\n",
        true,
    ),
];

/// One set of programs.
#[derive(Clone, Debug)]
pub(super) struct Make {
    name: &'static str,
    v4: Pair,
    v6: Option<Pair>,
}

#[derive(Clone, Debug)]
struct Pair {
    save: Program,
    restore: Program,
}

impl Pair {
    fn find(make: &str, family: Family) -> Option<Self> {
        let make = match family {
            Family::V4 => make.to_owned(),
            Family::V6 => make.replacen("iptables", "ip6tables", 1),
        };
        let save = Program::find(&format!("{make}-save"))?;
        let restore = Program::find(&format!("{make}-restore"))?;
        Some(Self { save, restore })
    }

    /// What there is in the tables that can hold something of ours.
    fn read(&self) -> Result<Tables, RunError> {
        let texts: Result<Vec<String>, RunError> =
            TABLES.iter().map(|table| self.save.run(&["-t", table], "")).collect();
        texts.map(|texts| Tables::parse(&texts.concat()))
    }

    /// Only tables that exist already, so that looking makes none.
    fn peek(&self) -> Result<Tables, RunError> {
        self.save.run(&[], "").map(|text| Tables::parse(&text))
    }

    fn commit(&self, text: &str) -> Result<(), RunError> {
        if text.is_empty() { Ok(()) } else { self.restore.run(&["--noflush", "-w", LOCK_S], text).map(drop) }
    }

    fn try_out(&self, text: &str) -> Result<(), RunError> {
        self.restore.run(&["--test", "--noflush", "-w", LOCK_S], text).map(drop)
    }
}

impl Make {
    /// The programs of that name; IPv6's may be lacking.
    pub(super) fn find(name: &'static str) -> Option<Self> {
        let v4 = Pair::find(name, Family::V4)?;
        Some(Self { name, v4, v6: Pair::find(name, Family::V6) })
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Its version, as it tells it.
    pub(super) fn version(&self) -> String {
        self.v4.restore.run(&["--version"], "").map(|text| text.trim().to_owned()).unwrap_or_default()
    }

    /// Whether its tables are those of nf_tables, or the old ones.
    pub(super) fn speaks_nf_tables(&self) -> bool {
        self.version().contains("nf_tables")
    }

    fn pair(&self, family: Family) -> Result<&Pair, String> {
        match family {
            Family::V4 => Ok(&self.v4),
            Family::V6 => self.v6.as_ref().ok_or_else(|| {
                format!(
                    "{} has no ip6tables-save and ip6tables-restore beside it: install them, or let IPv6 pass with --ipv6 off",
                    self.name
                )
            }),
        }
    }

    /// Asks programs and kernel whether they would take the rules; changes nothing of ours.
    pub(super) fn probe(&self, ruleset: &Ruleset) -> Result<(), String> {
        if !self.speaks_nf_tables() && !has_net_raw() {
            return Err("it speaks through raw sockets, and CAP_NET_RAW is lacking: add NET_RAW to \
                securityContext.capabilities.add of the container"
                .to_owned());
        }
        for family in ruleset.families() {
            let pair = self.pair(*family)?;
            let outcome = pair.read().and_then(|present| pair.try_out(&restore(ruleset, *family, &present)));
            let Err(error) = outcome else { continue };
            let is_tproxy = restore(ruleset, *family, &Tables::default()).contains("TPROXY");
            let needs = NEEDS.iter().filter(|(_, _, only_tproxy)| is_tproxy || !only_tproxy);
            let lacking = needs.filter(|(_, text, _)| pair.try_out(text).is_err());
            let modules: Vec<&str> = lacking.map(|(modules, _, _)| *modules).collect();
            let told = if modules.is_empty() { String::new() } else { format!("; lacking: {}", modules.join(", ")) };
            return Err(format!("{}: {error}{told}", family.as_str()));
        }
        Ok(())
    }

    /// Puts the rules in place of ours: every family is tried before the first is committed, and what was
    /// committed goes again when a later one fails after all.
    pub(super) fn apply(&self, ruleset: &Ruleset) -> Result<(), String> {
        let mut texts = Vec::new();
        for family in ruleset.families() {
            let pair = self.pair(*family)?;
            let told = |error: RunError| format!("{}: {error}", family.as_str());
            let text = restore(ruleset, *family, &pair.read().map_err(told)?);
            pair.try_out(&text).map_err(told)?;
            texts.push((pair, *family, text));
        }
        for (at, (pair, family, text)) in texts.iter().enumerate() {
            if let Err(error) = pair.commit(text) {
                let undone = texts.iter().take(at).map(|(pair, _, _)| Self::clear(pair));
                let undone: Result<Vec<bool>, RunError> = undone.collect();
                let state = undone.err().map_or(String::new(), |error| format!("; not undone: {error}"));
                return Err(format!("{}: {error}{state}", family.as_str()));
            }
        }
        if !ruleset.has_ipv6
            && let Some(pair) = &self.v6
        {
            Self::clear(pair).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Deletes our chains; whether there were any.
    pub(super) fn remove(&self) -> Result<bool, RunError> {
        let v6 = self.v6.as_ref().map(Self::clear).transpose()?;
        Ok(Self::clear(&self.v4)? | v6.unwrap_or(false))
    }

    fn clear(pair: &Pair) -> Result<bool, RunError> {
        // Tables that cannot be read hold nothing of ours: it takes reading them to write there.
        let Ok(present) = pair.peek() else { return Ok(false) };
        if present.is_free_of_ours() {
            return Ok(false);
        }
        pair.commit(&remove(&present))?;
        Ok(true)
    }

    /// What there is of one family.
    pub(super) fn list(&self, family: Family) -> Result<Tables, String> {
        self.pair(family)?.peek().map_err(|error| error.to_string())
    }

    /// True when chains of ours are there.
    pub(super) fn has_ours(&self) -> bool {
        let pairs = [Some(&self.v4), self.v6.as_ref()];
        pairs.into_iter().flatten().any(|pair| pair.peek().is_ok_and(|tables| !tables.is_free_of_ours()))
    }
}
