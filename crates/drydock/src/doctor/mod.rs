//! `drydock doctor`: every precondition of a guarded host, one line each, with what to do about it.

mod fabric;
mod machine;
mod tools;

use outcome::{Error, Kind, Result};
use serde::Serialize;
use serde_json::json;

use crate::cli::Service;
use crate::output::Output;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Outcome {
    Pass,
    Fail,
    /// Not needed, or not to be found out here.
    Skip,
}

/// One precondition.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    outcome: Outcome,
    /// What was found.
    found: String,
    /// What to do about it, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Check { name, outcome: Outcome::Pass, found: found.into(), fix: None }
    }

    fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Check { name, outcome: Outcome::Fail, found: found.into(), fix: Some(fix.into()) }
    }

    fn skip(name: &'static str, found: impl Into<String>, fix: Option<&str>) -> Self {
        Check { name, outcome: Outcome::Skip, found: found.into(), fix: fix.map(str::to_owned) }
    }

    fn line(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Skip => "SKIP",
        };
        let fix = self.fix.as_ref().map(|fix| format!("\n{:26}fix: {fix}", "")).unwrap_or_default();
        format!("{outcome}  {:20}{}{fix}", self.name, self.found)
    }
}

pub(crate) fn run(service: &Service, out: &Output) -> Result<()> {
    let mut checks = tools::checks();
    checks.extend(machine::checks(service));
    checks.extend(crate::host::runtime()?.block_on(fabric::checks(service)));
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Fail).count();
    let total = checks.len();
    // A report is a result, also a bad one: the exit code says which it is.
    out.result(&json!({ "checks": checks, "failed": failed }), || {
        checks.iter().map(Check::line).collect::<Vec<_>>().join("\n")
    });
    if failed == 0 {
        return Ok(());
    }
    Err(Error::new(Kind::WrongState, format!("{failed} of {total} preconditions are not met"))
        .remedy("do what the lines with FAIL say, then run drydock doctor again"))
}
