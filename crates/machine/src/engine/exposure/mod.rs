//! What a running VM exposes, found out when it is asked for: the kernel is asked about its two processes and QEMU
//! about its devices. Nothing here comes from what was intended.
//!
//! What the kernel says holds even where a guest has taken over its QEMU; what QEMU says of itself then does not.

mod process;
mod statements;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use process::{Capabilities, Descriptor, Kind, ProcessProof};
pub(crate) use process::{FileId, file_id};
pub use statements::Statement;

use crate::qmp::{Command, Qmp};
use crate::spec::{ConsoleProfile, Policy};
use crate::{Error, Result};

/// A longer list than any VM has is not believed.
const MAX_ENTRIES: usize = 4096;

/// The statement.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The sealed one, which the VM was started with.
    pub policy: Policy,
    /// Sealed like the policy.
    #[serde(default)]
    pub console_profile: ConsoleProfile,
    /// `kvm` or `tcg`, as QEMU says.
    pub accelerator: String,
    pub qemu_version: String,
    pub qemu: ProcessProof,
    pub swtpm: ProcessProof,
    pub chardevs: Vec<Chardev>,
    pub devices: Vec<Device>,
    pub block_nodes: Vec<BlockNode>,
    /// Disks that QEMU serves to others, by name.
    pub exports: Vec<String>,
    pub holds: Vec<Statement>,
}

/// A channel between QEMU and something outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chardev {
    pub label: String,
    pub backend: String,
}

/// A device that was added to the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub id: String,
    pub driver: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockNode {
    pub node: String,
    pub driver: String,
    pub read_only: bool,
}

/// What is looked at, and what it is measured by.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) qemu: u32,
    pub(crate) swtpm: u32,
    pub(crate) policy: Policy,
    pub(crate) console: bool,
    pub(crate) console_profile: ConsoleProfile,
    /// Files that QEMU may write to.
    pub(crate) written: Vec<FileId>,
    /// Folders that the two must not see into.
    pub(crate) hidden: Vec<PathBuf>,
}

/// Looks at a VM. `digests` of the programs take a moment.
pub(crate) async fn take(qmp: &Qmp, subject: &Subject, digests: bool) -> Result<Proof> {
    let kvm = qmp.execute(Command::QueryKvm, json!({})).await?;
    let version = qmp.execute(Command::QueryVersion, json!({})).await?;
    let number = |part: &str| version["qemu"][part].as_u64().unwrap_or_default();
    let chardevs = list(qmp, Command::QueryChardev, json!({})).await?;
    let nodes = list(qmp, Command::QueryNamedBlockNodes, json!({"flat": true})).await?;
    let exports = list(qmp, Command::QueryBlockExports, json!({})).await?;
    let mut devices = Vec::new();
    for path in ["/machine/peripheral", "/machine/peripheral-anon"] {
        devices.extend(list(qmp, Command::QomList, json!({"path": path})).await?.iter().filter_map(device));
    }
    let mut proof = Proof {
        policy: subject.policy,
        console_profile: subject.console_profile,
        accelerator: if kvm["enabled"] == true { "kvm" } else { "tcg" }.to_owned(),
        qemu_version: format!("{}.{}.{}", number("major"), number("minor"), number("micro")),
        qemu: ProcessProof::of(subject.qemu, &subject.hidden, digests)?,
        swtpm: ProcessProof::of(subject.swtpm, &subject.hidden, digests)?,
        chardevs: chardevs.iter().map(|c| Chardev { label: text(c, "label"), backend: text(c, "filename") }).collect(),
        devices,
        block_nodes: nodes
            .iter()
            .map(|n| BlockNode { node: text(n, "node-name"), driver: text(n, "drv"), read_only: n["ro"] != false })
            .collect(),
        exports: exports.iter().map(|e| text(e, "id")).collect(),
        holds: Vec::new(),
    };
    proof.holds = statements::all(&proof, subject);
    Ok(proof)
}

impl Proof {
    /// # Errors
    /// [`Error::Exposed`] naming the statements that must hold for a VM to run, and do not.
    pub(crate) fn require(&self) -> Result<()> {
        let broken: Vec<String> =
            self.holds.iter().filter(|s| s.required && !s.holds).map(ToString::to_string).collect();
        if broken.is_empty() { Ok(()) } else { Err(Error::Exposed { what: broken.join("; ") }) }
    }
}

async fn list(qmp: &Qmp, command: Command, arguments: Value) -> Result<Vec<Value>> {
    match qmp.execute(command, arguments).await? {
        Value::Array(entries) if entries.len() <= MAX_ENTRIES => Ok(entries),
        _ => Err(Error::QmpProtocol { reason: "what should be a list of what the VM has is none" }),
    }
}

fn text(entry: &Value, field: &str) -> String {
    entry[field].as_str().unwrap_or("unknown").to_owned()
}

/// A child of a QOM container; its other properties are no devices.
fn device(entry: &Value) -> Option<Device> {
    let driver = entry["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?.to_owned();
    Some(Device { id: text(entry, "name"), driver })
}
