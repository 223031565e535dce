//! What can be asked of the agent about VMs, and what it answers.

use std::path::PathBuf;

use machine::{ConsoleProfile, Policy};
use serde::{Deserialize, Serialize};

/// A request about one VM or all of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VmRequest {
    /// What the agent is: mode, version, accelerator, HGS.
    AgentInfo,
    VmCreate(CreateVm),
    VmStart {
        name: String,
    },
    VmStop {
        name: String,
        /// Cut the power instead of asking the guest.
        force: bool,
    },
    VmList,
    VmShow {
        name: String,
    },
    /// What a running VM exposes; answered with a [`machine::proof::Proof`].
    VmProof {
        name: String,
    },
    VmDelete {
        name: String,
    },
    /// The connection becomes the VM's serial console, if its policy has one.
    VmConsole {
        name: String,
    },
    /// The connection becomes a session with the guest, if its console profile has them; the one before ends.
    VmSession {
        name: String,
    },
    /// The key protector in force, for the VM's owner.
    VmProtector {
        name: String,
    },
    /// A signed protector update, for the next start (`crate::protector_update`).
    VmSetProtector {
        name: String,
        /// The owner's signed change; none takes one back that was not in force yet.
        change: Option<String>,
    },
    /// Moves a running VM to the agent that takes migrations at `to`, `HOST:PORT`.
    VmMigrate {
        name: String,
        to: String,
    },
    /// The VM did not get to where it was handed over, and never will: it is this host's again.
    VmTakeBack {
        name: String,
    },
    /// Changes the security policy; possible in local mode only, by who holds a guardian's key there.
    VmSetPolicy {
        name: String,
        policy: Policy,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    pub name: String,
    pub memory_mib: u32,
    pub vcpus: u32,
    /// Disk images to copy into the store (qcow2, raw or VHDX; the first one boots).
    pub disks: Vec<PathBuf>,
    pub switch: String,
    #[serde(default)]
    pub mac: Option<String>,
    pub nested: bool,
    pub policy: Policy,
    #[serde(default, skip_serializing_if = "ConsoleProfile::is_default")]
    pub console_profile: ConsoleProfile,
    /// The key protector, an MS-KPS `Protector` document.
    pub protector: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    Off,
    /// An operation holds it: starting, stopping, being exported.
    Busy,
    Running,
    /// A QEMU of an earlier agent still runs; only `vm stop --force` reaches it.
    Orphaned,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmStatus {
    pub name: String,
    pub id: uuid::Uuid,
    pub state: PowerState,
    pub policy: Policy,
    #[serde(default)]
    pub console_profile: ConsoleProfile,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub nested: bool,
    pub switch: Vec<String>,
    pub mac: Vec<String>,
    pub disks: Vec<String>,
    /// The sealed state's generation: it grows by one with every start.
    pub generation: u64,
    /// Who owns the VM: name and certificate fingerprint.
    pub owner: String,
    pub owner_fingerprint: String,
    /// Set while a recovery holds the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Hold>,
    /// Set when it was handed over to another host that has not said whether it runs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_over: Option<HandedOver>,
    /// Set where the fabric and the owner let the VM start without the Host Guardian Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline: Option<OfflineStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Where a VM went that may run there: it must not be started here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandedOver {
    pub migration: uuid::Uuid,
    /// `HOST:PORT` of the agent there.
    pub to: String,
}

/// Starts without the Host Guardian Service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OfflineStatus {
    /// How many are left until the next start with it.
    pub remaining: u32,
    /// Whether the VM runs after such a start.
    pub started: bool,
}

/// Why a VM must not be started, changed or deleted for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    pub recovery_id: uuid::Uuid,
    /// One sentence for people, with the next step.
    pub reason: String,
    /// False while the VM must not run at all.
    pub may_start: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentInfo {
    pub version: String,
    /// `guarded` (keys from an HGS) or `local`.
    pub mode: String,
    pub accelerator: String,
    pub accelerator_reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hgs: Option<String>,
}
