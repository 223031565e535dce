//! The machine as QEMU describes it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::qmp::list;
use crate::error::Result;

/// A channel between QEMU and the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chardev {
    /// QEMU's name for it.
    pub label: String,
    /// What is at its other end.
    pub backend: String,
}

/// A device that was added to the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// QEMU's name for this one.
    pub id: String,
    /// QEMU's name for the kind of device.
    pub driver: String,
}

/// An image, or a layer above one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockNode {
    /// QEMU's name for it.
    pub node: String,
    /// QEMU's name for the format or protocol.
    pub driver: String,
    /// QEMU does not write to it.
    pub read_only: bool,
}

/// What QEMU answered.
#[derive(Clone, Debug, Default)]
pub struct MachineAnswers {
    /// To `query-kvm`.
    pub kvm: Value,
    /// To `query-version`.
    pub version: Value,
    /// To `query-chardev`.
    pub chardevs: Value,
    /// To `query-named-block-nodes`.
    pub nodes: Value,
    /// To `query-block-exports`.
    pub exports: Value,
    /// To `qom-list`, one for each container of devices.
    pub devices: Vec<Value>,
}

/// What the answers say. No entry of a list goes missing: where one cannot be read, `unknown` stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineExposure {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Major, minor and micro version.
    pub qemu_version: String,
    /// Channels.
    pub chardevs: Vec<Chardev>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Images, and layers above them.
    pub block_nodes: Vec<BlockNode>,
    /// Disks that QEMU serves to others, by name.
    pub exports: Vec<String>,
}

impl MachineExposure {
    /// Reads the answers.
    ///
    /// # Errors
    /// [`crate::Error::QmpProtocol`] when an answer that must be a list is not, or is longer than any VM's.
    pub fn of(answers: MachineAnswers) -> Result<Self> {
        let number = |part: &str| answers.version["qemu"][part].as_u64().unwrap_or_default();
        let qemu_version = format!("{}.{}.{}", number("major"), number("minor"), number("micro"));
        let (chardevs, nodes, exports) = (list(answers.chardevs)?, list(answers.nodes)?, list(answers.exports)?);
        let mut devices = Vec::new();
        for entries in answers.devices {
            devices.extend(list(entries)?.iter().filter_map(device));
        }
        let chardev = |c: &Value| Chardev { label: text(c, "label"), backend: text(c, "filename") };
        let node = |n: &Value| BlockNode {
            node: text(n, "node-name"),
            driver: text(n, "drv"),
            // Writable unless QEMU says otherwise.
            read_only: n["ro"] == true,
        };
        Ok(Self {
            accelerator: if answers.kvm["enabled"] == true { "kvm" } else { "tcg" }.to_owned(),
            qemu_version,
            chardevs: chardevs.iter().map(chardev).collect(),
            devices,
            block_nodes: nodes.iter().map(node).collect(),
            exports: exports.iter().map(|e| text(e, "id")).collect(),
        })
    }
}

fn text(entry: &Value, field: &str) -> String {
    entry[field].as_str().unwrap_or("unknown").to_owned()
}

/// A child of a QOM container. Its other properties, which have another type, are not devices.
fn device(entry: &Value) -> Option<Device> {
    let driver = match entry["type"].as_str() {
        Some(kind) => kind.strip_prefix("child<")?.strip_suffix('>')?.to_owned(),
        None => text(entry, "type"),
    };
    Some(Device { id: text(entry, "name"), driver })
}
