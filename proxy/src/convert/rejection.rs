//! What a conversion found: reasons to refuse a resource, and fields that were ignored.

use std::cell::{Cell, RefCell};
use std::fmt;

/// Most reasons kept for one resource; the rest are counted.
const MAX_REASONS: usize = 64;
/// Longest text of one reason, so that a hostile name cannot fill the answer.
const MAX_REASON_BYTES: usize = 512;

/// Which kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// A part of a bootstrap file.
    Bootstrap,
    /// Envoy's Cluster.
    Cluster,
    /// Envoy's ClusterLoadAssignment.
    Endpoints,
    /// Envoy's Listener.
    Listener,
    /// Envoy's RouteConfiguration.
    RouteTable,
}

impl ResourceKind {
    /// Its name in messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::RouteTable => "route table",
        }
    }
}

/// One place in a resource, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// `load_assignment.endpoints[0].priority`; empty when it concerns the whole resource.
    pub path: String,
    /// The value, and what is allowed.
    pub problem: String,
}

/// Why a resource was refused: every reason, not only the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What was refused.
    pub kind: ResourceKind,
    /// Its name; empty when even that could not be read.
    pub name: String,
    /// At least one.
    pub reasons: Vec<Reason>,
    /// How many more there were.
    pub left_out: usize,
}

impl Rejection {
    /// A rejection for one reason.
    pub fn new(kind: ResourceKind, name: &str, path: &str, problem: impl fmt::Display) -> Self {
        let reason = Reason { path: path.to_owned(), problem: bounded(&problem.to_string()) };
        Self { kind, name: name.to_owned(), reasons: vec![reason], left_out: 0 }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, reason) in self.reasons.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{} {:?}: ", self.kind.label(), self.name)?;
            if !reason.path.is_empty() {
                write!(f, "{}: ", reason.path)?;
            }
            f.write_str(&reason.problem)?;
        }
        if self.left_out > 0 {
            write!(f, "; and {} more", self.left_out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejection {}

/// The outcome for one resource.
#[derive(Debug)]
pub struct Converted<T> {
    /// The resource's name; empty when it could not be read.
    pub name: String,
    /// The value, or why there is none.
    pub result: Result<T, Rejection>,
    /// Paths of fields that were set and not used, with indexes and keys cut: `cluster.alt_stat_name`.
    pub ignored: Vec<String>,
}

/// Collects while one resource is read.
#[derive(Debug, Default)]
pub(super) struct Findings {
    reasons: RefCell<Vec<Reason>>,
    left_out: Cell<usize>,
    ignored: RefCell<Vec<String>>,
}

impl Findings {
    pub(super) fn refuse(&self, path: String, problem: &str) {
        let mut reasons = self.reasons.borrow_mut();
        if reasons.len() < MAX_REASONS {
            reasons.push(Reason { path: bounded(&path), problem: bounded(problem) });
        } else {
            self.left_out.set(self.left_out.get() + 1);
        }
    }

    /// As [`Findings::refuse`], unless a reason at that place is there already.
    pub(super) fn refuse_unless_told(&self, path: String, problem: &str) {
        let path = bounded(&path);
        if !self.reasons.borrow().iter().any(|reason| reason.path == path) {
            self.refuse(path, problem);
        }
    }

    pub(super) fn ignore(&self, path: String) {
        let mut ignored = self.ignored.borrow_mut();
        if !ignored.contains(&path) && ignored.len() < MAX_REASONS {
            ignored.push(path);
        }
    }

    /// The outcome: `value` stands only when nothing was refused.
    pub(super) fn finish<T>(self, kind: ResourceKind, name: &str, value: Option<T>) -> Converted<T> {
        let ignored =
            self.ignored.into_inner().into_iter().map(|path| format!("{}.{path}", kind.label().replace(' ', "_")));
        let ignored = ignored.collect();
        let mut reasons = self.reasons.into_inner();
        let result = match value {
            Some(value) if reasons.is_empty() => Ok(value),
            _ => {
                if reasons.is_empty() {
                    reasons.push(Reason { path: String::new(), problem: "it cannot be read".to_owned() });
                }
                Err(Rejection { kind, name: bounded(name), reasons, left_out: self.left_out.get() })
            }
        };
        Converted { name: name.to_owned(), result, ignored }
    }
}

fn bounded(text: &str) -> String {
    if text.len() <= MAX_REASON_BYTES {
        return text.to_owned();
    }
    let end = (0..=MAX_REASON_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_named_with_its_resource() {
        let findings = Findings::default();
        findings.refuse("connect_timeout".into(), "0s is not above 0");
        findings.refuse("lb_policy".into(), "9 is unknown");
        let rejection = findings.finish::<()>(ResourceKind::Cluster, "pay", None).result.unwrap_err();
        assert_eq!(
            rejection.to_string(),
            "cluster \"pay\": connect_timeout: 0s is not above 0; cluster \"pay\": lb_policy: 9 is unknown"
        );
    }

    #[test]
    fn reasons_and_their_text_are_bounded() {
        let findings = Findings::default();
        for _ in 0..MAX_REASONS + 3 {
            findings.refuse("é".repeat(10_000), &"é".repeat(10_000));
        }
        let rejection = findings.finish::<()>(ResourceKind::Listener, "l", None).result.unwrap_err();
        assert_eq!((rejection.reasons.len(), rejection.left_out), (MAX_REASONS, 3));
        assert!(rejection.reasons.iter().all(|r| r.problem.len() <= MAX_REASON_BYTES + 3));
    }
}
