//! What was done and found, as lines while it happens or as one JSON object at the end.

use serde::Serialize;

use super::args::Output;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// It is as it should be.
    Passed,
    /// It is not.
    Failed,
    /// It could not be tried here, or needs not be.
    Skipped,
    /// Something to know, that need not be wrong.
    Warned,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
            Self::Warned => "warning",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) outcome: Outcome,
    pub(super) detail: String,
}

impl Check {
    pub(super) fn new(name: impl Into<String>, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self { name: name.into(), outcome, detail: detail.into() }
    }

    pub(super) fn passed(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Passed, detail)
    }

    pub(super) fn failed(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Failed, detail)
    }

    pub(super) fn skipped(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Skipped, detail)
    }
}

/// What was done and found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    action: &'static str,
    steps: Vec<String>,
    checks: Vec<Check>,
    #[serde(skip)]
    is_text: bool,
}

impl Report {
    /// Of an action.
    pub(super) fn start(action: &'static str, output: Output) -> Self {
        Self { action, steps: Vec::new(), checks: Vec::new(), is_text: output == Output::Text }
    }

    /// Something that was done.
    pub(super) fn step(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.is_text {
            println!("{}: {text}", self.action);
        }
        self.steps.push(text);
    }

    /// Something that was looked at.
    pub(super) fn check(&mut self, check: Check) {
        if self.is_text {
            println!("verify: {:<8} {}: {}", check.outcome.as_str(), check.name, check.detail);
        }
        self.checks.push(check);
    }

    /// What would be given to the programs.
    pub(super) fn would(&self, text: &str) {
        if self.is_text {
            print!("{text}");
        } else {
            println!("{}", serde_json::json!({ "action": self.action, "ok": true, "dryRun": text }));
        }
    }

    /// Names of the checks that failed.
    pub(super) fn failed(&self) -> Vec<&str> {
        let failed = self.checks.iter().filter(|check| check.outcome == Outcome::Failed);
        failed.map(|check| check.name.as_str()).collect()
    }

    /// The JSON object, where one is wanted. `error` is what ended the run.
    pub(super) fn finish(&self, error: Option<&str>) {
        if !self.is_text {
            let mut whole = serde_json::json!(self);
            whole["ok"] = error.is_none().into();
            whole["error"] = error.into();
            println!("{whole}");
        }
    }
}
