//! One precondition and what was found.

use serde::Serialize;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Outcome {
    Pass,
    Fail,
    /// Not needed, or impossible to find out on this machine.
    Skip,
}

/// One precondition.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    name: &'static str,
    pub(super) outcome: Outcome,
    /// What was found.
    found: String,
    /// What to do about it, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    pub(super) fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Check { name, outcome: Outcome::Pass, found: found.into(), fix: None }
    }

    pub(super) fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Check { name, outcome: Outcome::Fail, found: found.into(), fix: Some(fix.into()) }
    }

    pub(super) fn skip(name: &'static str, found: impl Into<String>, fix: Option<&str>) -> Self {
        Check { name, outcome: Outcome::Skip, found: found.into(), fix: fix.map(str::to_owned) }
    }

    /// One line for people, and a second one with the fix.
    pub(super) fn line(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Skip => "SKIP",
        };
        let fix = self.fix.as_ref().map(|fix| format!("\n{:26}fix: {fix}", "")).unwrap_or_default();
        format!("{outcome}  {:20}{}{fix}", self.name, self.found)
    }
}
