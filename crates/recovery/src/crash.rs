//! Death on demand, at a point of the journal: for the tests of what a crash leaves behind. Not in release builds.

use crate::step::Step;

/// The variable names a step and `before` (its work is done, the journal does not know) or `after`.
#[cfg(debug_assertions)]
pub(crate) const VARIABLE: &str = "DRYDOCK_CRASH_AT";

#[cfg(debug_assertions)]
pub(crate) fn point(step: Step, when: &str) {
    if std::env::var(VARIABLE).is_ok_and(|at| at == format!("{step}:{when}")) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn point(_: Step, _: &str) {}
