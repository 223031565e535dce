//! `drydock doctor`: every precondition of a guarded host, one line each, with what to do about it.

mod check;
mod fabric;
mod machine;
mod tools;

use outcome::{Error, Kind, Result};
use serde_json::json;

use self::check::{Check, Outcome};
use crate::daemon;
use crate::host::HgsArgs;
use crate::output::Output;

pub(crate) fn run(args: &HgsArgs, out: &Output) -> Result<()> {
    let mut checks = tools::checks();
    checks.extend(machine::checks(args));
    checks.extend(daemon::runtime()?.block_on(fabric::checks(args)));
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Fail).count();
    let total = checks.len();
    // A report is a result, also when checks fail: the exit code tells the difference.
    out.result(&json!({ "checks": checks, "failed": failed }), || {
        checks.iter().map(Check::line).collect::<Vec<_>>().join("\n")
    });
    if failed == 0 {
        return Ok(());
    }
    Err(Error::new(Kind::WrongState, format!("{failed} of {total} preconditions are not met"))
        .remedy("follow the fixes of the lines with FAIL, then run drydock doctor again"))
}
