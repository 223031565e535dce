//! The report, and the statements in it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::machine::{BlockNode, Chardev, Device};
use super::process::ProcessExposure;
use crate::error::{Error, Result};
use crate::spec::{ConsoleProfile, Policy};

/// What a running VM exposes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposureReport {
    /// The sealed policy, with which the VM was started.
    pub policy: Policy,
    /// Sealed like the policy.
    #[serde(default)]
    pub console_profile: ConsoleProfile,
    /// `kvm` or `tcg`, as QEMU says.
    pub accelerator: String,
    /// Major, minor and micro version, as QEMU says.
    pub qemu_version: String,
    /// The QEMU process.
    pub qemu: ProcessExposure,
    /// The swtpm process.
    pub swtpm: ProcessExposure,
    /// Channels between QEMU and the outside.
    pub chardevs: Vec<Chardev>,
    /// Devices that were added to the machine.
    pub devices: Vec<Device>,
    /// Images, and what lies between them and the devices.
    pub block_nodes: Vec<BlockNode>,
    /// Disks that QEMU serves to others, by name.
    pub exports: Vec<String>,
    /// What is stated of every VM, and whether it holds for this one.
    pub holds: Vec<Statement>,
}

impl ExposureReport {
    /// # Errors
    /// [`Error::Exposed`] naming the statements that must hold for a VM to run and do not.
    pub(crate) fn require(&self) -> Result<()> {
        let broken: Vec<String> =
            self.holds.iter().filter(|s| s.required && !s.holds).map(ToString::to_string).collect();
        if broken.is_empty() { Ok(()) } else { Err(Error::Exposed { what: broken.join("; ") }) }
    }
}

/// One sentence, and whether it is true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// `QEMU`, `swtpm` or `the machine`.
    pub subject: String,
    /// The sentence.
    pub statement: String,
    /// Whether it is true.
    pub holds: bool,
    /// A start that finds it false ends the VM again.
    pub required: bool,
    /// What contradicts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub but: Vec<String>,
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.statement)?;
        if self.but.is_empty() { Ok(()) } else { write!(f, ", but {}", self.but.join(", ")) }
    }
}
