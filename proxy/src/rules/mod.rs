//! **Purpose.** Which connections of a pod the proxy gets, as rules for the kernel's packet filter.
//!
//! **Shape.** [`CaptureSettings`] say what is wanted; [`Ruleset::build`] makes chains of [`Rule`]s of them; [`nft`] and
//! [`iptables`] write these as text for the programs of that name. [`Ruleset::decide_leaving`] and its like answer from the
//! rules themselves what becomes of a connection. [`listing`] compares what is there with what is wanted.
//! ```text
//!  settings ──▶ rules ──▶ nft script │ iptables-restore text ──▶ (intercept runs the programs)
//!                 │                                                     │
//!                 └──▶ names and digests wanted ──▶ differences ◀── listing as text
//! ```
//! Every rule carries its name and a digest of its text as the kernel's comment, so a missing, changed or foreign rule is
//! told by name without comparing how some version of a program happens to print it.
//!
//! **Limits.** TCP only. Nothing here does I/O.
//!
//! **Errors.** A list that cannot be read names its entry and the range allowed.
//!
//! **Source.** nft(8), iptables-extensions(8), the kernel's tproxy.rst. The model of what is captured is Istio's, but that a
//! list of ports to capture and a list of networks to capture bind together, not each alone.
//!
//! **Tests.** Golden texts in `golden/`; on random settings and connections, both texts decide as the rules do.

mod build;
mod decide;
pub mod iptables;
mod list;
pub mod listing;
mod model;
pub mod nft;
mod settings;
#[cfg(test)]
mod tests;

pub use decide::{Arriving, Decision, Leaving};
pub use list::{IdList, ListError, NetworkList, PortList, PortRange, parse_id};
pub use model::{Chain, ChainRole, Family, Rule, Ruleset, Test, Verdict};
pub use settings::{CaptureSettings, Choice, HEALTH_PORT, Mode, Owner, Ports, SettingsError};

/// Marks packets that TPROXY gave to the proxy, and connections whose source the proxy kept; also the number of the
/// routing table and the priority of the rule that take them to the loopback interface.
pub const MARK: u32 = 1337;

/// First word of the comment on every rule of ours.
pub const COMMENT: &str = "outrigger";
