//! The rules by `nft`.

use super::program::{Program, RunError};
use crate::rules::Ruleset;
use crate::rules::listing::{ListedChain, parse_nft};
use crate::rules::nft::{TABLE, remove_script, script};

/// The program.
#[derive(Clone, Debug)]
pub(super) struct Nft(Program);

/// What the rules need of the kernel, each as the least script that needs it, with the modules that bring it.
const NEEDS: [(&str, &str); 7] = [
    ("nf_tables", "table inet outrigger_probe\n"),
    ("nft_chain_nat and nf_nat", "table inet outrigger_probe { chain c { type nat hook output priority -101; } }\n"),
    (
        "nft_redir",
        "table inet outrigger_probe { chain c { type nat hook output priority -101; tcp dport 1 redirect to :1; } }\n",
    ),
    ("nft_ct and nf_conntrack", "table inet outrigger_probe { chain c { ct direction original return; } }\n"),
    ("nft_fib_inet", "table inet outrigger_probe { chain c { fib saddr type local return; } }\n"),
    (
        "the route hook of nf_tables",
        "table inet outrigger_probe { chain c { type route hook output priority -150; } }\n",
    ),
    (
        "nft_tproxy",
        "table inet outrigger_probe { chain c { type filter hook prerouting priority -150; \
         tcp dport 1 tproxy to :1; } }\n",
    ),
];

impl Nft {
    /// Where the program is.
    pub(super) fn find() -> Option<Self> {
        Program::find("nft").map(Self)
    }

    /// Its version, as it tells it.
    pub(super) fn version(&self) -> String {
        self.0.run(&["--version"], "").map(|text| text.trim().to_owned()).unwrap_or_default()
    }

    /// Asks program and kernel whether they would take the rules; changes nothing.
    pub(super) fn probe(&self, ruleset: &Ruleset) -> Result<(), String> {
        let Err(error) = self.0.run(&["-c", "-f", "-"], &script(ruleset)) else { return Ok(()) };
        let is_tproxy = script(ruleset).contains(" tproxy ");
        let needs = NEEDS.iter().take(if is_tproxy { NEEDS.len() } else { 3 });
        let lacking = needs.filter(|(_, script)| self.0.run(&["-c", "-f", "-"], script).is_err());
        let modules: Vec<&str> = lacking.map(|(modules, _)| *modules).collect();
        if modules.is_empty() {
            return Err(error.to_string());
        }
        Err(format!("{error}; the kernel or its modules lack {}: load them on the node", modules.join(", ")))
    }

    /// Puts the rules in place of ours, in one transaction.
    pub(super) fn apply(&self, ruleset: &Ruleset) -> Result<(), RunError> {
        self.0.run(&["-f", "-"], &script(ruleset)).map(drop)
    }

    /// Deletes our table.
    pub(super) fn remove(&self) -> Result<(), RunError> {
        self.0.run(&["-f", "-"], &remove_script()).map(drop)
    }

    /// Every chain the kernel has, those that iptables made through nf_tables with them.
    pub(super) fn list(&self) -> Result<Vec<ListedChain>, RunError> {
        self.0.run(&["-y", "list", "ruleset"], "").map(|text| parse_nft(&text))
    }

    /// True when our table is there.
    pub(super) fn has_table(&self) -> bool {
        self.0.run(&["list", "table", "inet", TABLE], "").is_ok()
    }
}
