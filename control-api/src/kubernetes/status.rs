//! Purpose: what an object's status is to say.
//! Shape: pure: a judged object and the proxies' standing → the status it should have, or `None` where it has it already.
//! Our kinds get `conditions`, `epoch` and `proxies`; a route gets an entry of `parents` for each Service it is bound to,
//! beside those of other controllers.
//! Source: Kubernetes API conventions, "Typical status properties"; Gateway API `RouteParentStatus`.

use serde_json::{Value, json};

use super::policy::Judged;
use crate::model::Kind;

/// Who we are in the status of a route.
pub(super) const CONTROLLER: &str = "outrigger.dev/controller";
/// Greatest length of a condition's message that the API server takes.
const MESSAGE_CHARS_MAX: usize = 30_000;

/// How many proxies there are, and the newest revision that each runs, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fleet {
    running: Vec<u64>,
    connected: usize,
}

impl Fleet {
    /// From the newest revision that each connected proxy runs.
    #[must_use]
    pub(super) fn new(revisions: impl Iterator<Item = Option<u64>>) -> Self {
        let (mut running, mut connected) = (Vec::new(), 0);
        for revision in revisions {
            connected += 1;
            running.extend(revision);
        }
        running.sort_unstable();
        Self { running, connected }
    }

    /// How many run a revision or a later one.
    #[must_use]
    pub(super) fn running(&self, revision: u64) -> usize {
        self.running.len() - self.running.partition_point(|running| *running < revision)
    }
}

/// A status to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// The whole of `status`.
    pub status: Value,
    /// Whether more differs than numbers and words.
    pub is_urgent: bool,
}

struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// The status that `judged` should have at `now` and has not.
#[must_use]
pub(super) fn wanted(judged: &Judged, fleet: &Fleet, now: &str) -> Option<Wanted> {
    let conditions = conditions_of(judged, fleet);
    let before = &judged.written.status;
    let status = match judged.key.kind {
        Kind::GrpcRoute | Kind::HttpRoute => {
            let own = |parent: &Value| parent["controllerName"] == CONTROLLER;
            let all = before.get("parents").and_then(Value::as_array).cloned().unwrap_or_default();
            let (ours, mut parents): (Vec<Value>, Vec<Value>) = all.into_iter().partition(own);
            for parent in &judged.written.parents {
                let old = ours.iter().find(|one| one["parentRef"] == *parent).map(|one| &one["conditions"]);
                let conditions = render(&conditions, old, judged.written.generation, now);
                parents.push(json!({ "parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions }));
            }
            json!({ "parents": parents })
        }
        Kind::AccessPolicy | Kind::MeshConfig | Kind::RateLimit | Kind::TrafficPolicy | Kind::Upstream => {
            let conditions = render(&conditions, before.get("conditions"), judged.written.generation, now);
            let mut status = json!({ "conditions": conditions });
            if let Some((_, epoch)) = judged.in_force {
                status["epoch"] = json!(epoch);
                status["proxies"] = json!({ "running": fleet.running(epoch), "connected": fleet.connected });
            }
            status
        }
    };
    (status != *before).then(|| Wanted { is_urgent: verdicts(&status) != verdicts(before), status })
}

fn conditions_of(judged: &Judged, fleet: &Fleet) -> Vec<Condition> {
    let is_route = matches!(judged.key.kind, Kind::GrpcRoute | Kind::HttpRoute);
    let said = || {
        let lines: Vec<String> = judged
            .problems
            .iter()
            .map(|problem| crate::model::Problem { object: None, document: None, ..problem.clone() }.to_string())
            .collect();
        lines.join("; ").chars().take(MESSAGE_CHARS_MAX).collect::<String>()
    };
    let mut conditions = Vec::new();
    match (judged.is_accepted, judged.in_force) {
        (true, Some((_, epoch))) => {
            let message = format!("in force since epoch {epoch}");
            conditions.push(Condition { kind: "Accepted", status: "True", reason: "Accepted", message });
            conditions.push(match judged.problems.is_empty() {
                true => Condition {
                    kind: "ResolvedRefs",
                    status: "True",
                    reason: "ResolvedRefs",
                    message: "everything it refers to is there".to_owned(),
                },
                false => Condition {
                    kind: "ResolvedRefs",
                    status: "False",
                    reason: if is_route { "BackendNotFound" } else { "TargetNotFound" },
                    message: said(),
                },
            });
            conditions.push(programmed(epoch, fleet));
        }
        (_, force) => {
            let rest = match force {
                Some((generation, epoch)) => format!("generation {generation} stays in force (epoch {epoch})"),
                None => "nothing of it is in force".to_owned(),
            };
            let message = format!("{}; {rest}", said());
            let reason = if is_route { "UnsupportedValue" } else { "Invalid" };
            conditions.push(Condition { kind: "Accepted", status: "False", reason, message });
            conditions.push(Condition { kind: "Programmed", status: "False", reason: "NotAccepted", message: rest });
        }
    }
    conditions
}

fn programmed(epoch: u64, fleet: &Fleet) -> Condition {
    let (running, connected) = (fleet.running(epoch), fleet.connected);
    let (status, reason, message) = match connected {
        0 => ("Unknown", "NoProxies", "no proxy is connected".to_owned()),
        _ if running == connected => {
            ("True", "Programmed", format!("all {connected} connected proxies run epoch {epoch}"))
        }
        _ => ("False", "Pending", format!("{running} of {connected} connected proxies run epoch {epoch}")),
    };
    Condition { kind: "Programmed", status, reason, message }
}

fn render(conditions: &[Condition], before: Option<&Value>, generation: i64, now: &str) -> Vec<Value> {
    let old = before.and_then(Value::as_array);
    let one = |condition: &Condition| {
        let same =
            old.into_iter().flatten().find(|old| old["type"] == condition.kind && old["status"] == condition.status);
        let since = same.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": condition.kind,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    };
    conditions.iter().map(one).collect()
}

/// What must be told at once: the conditions without their words, and the generation they speak of.
fn verdicts(status: &Value) -> Vec<Value> {
    let short = |one: &Value| json!([one["type"], one["status"], one["reason"], one["observedGeneration"]]);
    let of = |conditions: &Value| conditions.as_array().into_iter().flatten().map(short).collect::<Vec<_>>();
    let parents = status.get("parents").and_then(Value::as_array);
    let parents = parents.into_iter().flatten().filter(|parent| parent["controllerName"] == CONTROLLER);
    let conditions = parents.map(|parent| &parent["conditions"]).chain(status.get("conditions"));
    conditions.flat_map(of).collect()
}

/// Now, as Kubernetes writes it.
#[must_use]
pub(super) fn timestamp() -> String {
    use k8s_openapi::jiff::Timestamp;
    let now = Timestamp::now();
    // The present has whole seconds that a timestamp can carry.
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
