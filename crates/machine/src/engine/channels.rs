//! The channels between QEMU and the outside: no VM has one that is not listed here.

use crate::spec::ConsoleProfile;

/// The controller that session ports are plugged into.
pub(crate) const SESSION_CONTROLLER: &str = "sessions";
/// The character device of the open session, if there is one.
pub(crate) const SESSION: &str = "session0";

/// The labels of the character devices that a VM may have: one with or without a serial `console`, of this profile.
pub fn chardevs(console: bool, profile: ConsoleProfile) -> Vec<&'static str> {
    let mut labels = vec!["tpm0", "qmp"];
    if console {
        labels.push("console0");
    }
    if profile == ConsoleProfile::Server2019 {
        labels.push(SESSION);
    }
    labels
}
