//! Which packet filter is programmed.

use super::InterceptError;
use super::args::BackendChoice;
use super::iptables::{MAKES, Make};
use super::nft::Nft;
use super::process::{has_net_raw, has_old_tables};
use crate::rules::Ruleset;

/// A packet filter that takes our rules.
#[derive(Clone, Debug)]
pub(super) enum Backend {
    /// Our own table.
    Nft(Nft),
    /// Our own chains.
    Iptables(Make),
}

/// It, and why it.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) backend: Backend,
    pub(super) reason: String,
}

impl Backend {
    /// As on the command line.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Nft(_) => "nft",
            Self::Iptables(_) => "iptables",
        }
    }

    /// Puts the rules in place of ours.
    pub(super) fn apply(&self, ruleset: &Ruleset) -> Result<(), String> {
        match self {
            Self::Nft(nft) => nft.apply(ruleset).map_err(|error| error.to_string()),
            Self::Iptables(make) => make.apply(ruleset),
        }
    }

    /// Deletes what other packet filters than this one have of ours; what it was.
    pub(super) fn remove_others(&self) -> Result<Vec<String>, String> {
        remove_but(Some(self))
    }
}

/// Deletes everything of ours; what it was.
pub(super) fn remove_all() -> Result<Vec<String>, String> {
    remove_but(None)
}

/// Two makes of iptables that speak to the same tables are one and the same, whatever their names.
fn remove_but(kept: Option<&Backend>) -> Result<Vec<String>, String> {
    let mut removed = Vec::new();
    if !matches!(kept, Some(Backend::Nft(_)))
        && let Some(nft) = Nft::find()
        && nft.has_table()
    {
        nft.remove().map_err(|error| error.to_string())?;
        removed.push("table inet outrigger of nft".to_owned());
    }
    let kept_tables = match kept {
        Some(Backend::Iptables(make)) => Some(make.speaks_nf_tables()),
        _ => None,
    };
    if has_old_tables() && !has_net_raw() {
        removed.push("nothing of iptables-legacy, whose tables are in use: looking there takes CAP_NET_RAW".to_owned());
    }
    for make in MAKES.iter().filter_map(|name| Make::find(name)) {
        if Some(make.speaks_nf_tables()) != kept_tables && make.remove().map_err(|error| error.to_string())? {
            removed.push(format!("chains OUTRIGGER_* of {}", make.name()));
        }
    }
    Ok(removed)
}

/// The first packet filter of those allowed that would take the rules.
pub(super) fn choose(choice: BackendChoice, ruleset: &Ruleset) -> Result<Chosen, InterceptError> {
    let mut tried = Vec::new();
    if choice != BackendChoice::Iptables {
        match Nft::find() {
            None => tried.push("nft: no such program in PATH".to_owned()),
            Some(nft) => match nft.probe(ruleset) {
                Ok(()) => {
                    let reason = nft.version();
                    return Ok(Chosen { backend: Backend::Nft(nft), reason });
                }
                Err(error) => tried.push(format!("nft: {error}")),
            },
        }
    }
    if choice != BackendChoice::Nft {
        for name in MAKES {
            match Make::find(name) {
                None => tried.push(format!("{name}: no {name}-save and {name}-restore in PATH")),
                Some(make) => match make.probe(ruleset) {
                    Ok(()) => {
                        let mut reason = make.version();
                        if let Some(first) = tried.first().filter(|_| choice == BackendChoice::Auto) {
                            reason = format!("{reason}, since {first}");
                        }
                        return Ok(Chosen { backend: Backend::Iptables(make), reason });
                    }
                    Err(error) => tried.push(format!("{name}: {error}")),
                },
            }
        }
    }
    Err(InterceptError::Broke(format!(
        "no packet filter takes the rules. Tried:\n  {}\nInstall nftables (or iptables) in this image, or load the \
         kernel modules named on the node",
        tried.join("\n  ")
    )))
}

/// The packet filter that holds rules of ours; `None` when none does.
pub(super) fn holding(choice: BackendChoice) -> Option<Backend> {
    let nft = (choice != BackendChoice::Iptables).then(Nft::find).flatten().filter(Nft::has_table);
    if let Some(nft) = nft {
        return Some(Backend::Nft(nft));
    }
    if choice == BackendChoice::Nft {
        return None;
    }
    MAKES.iter().filter_map(|name| Make::find(name)).find(Make::has_ours).map(Backend::Iptables)
}
