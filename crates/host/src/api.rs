//! What can be asked of the agent about VMs, and what it answers.

use std::path::PathBuf;

use machine::{ConsoleProfile, Policy};
use outcome::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// A request about one VM or all of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VmRequest {
    /// What the agent is: mode, version, accelerator, HGS.
    AgentInfo,
    /// Creates a VM.
    VmCreate(CreateVm),
    /// Gets the VM's key and starts it.
    VmStart {
        /// The VM.
        name: String,
    },
    /// Ends a VM.
    VmStop {
        /// The VM.
        name: String,
        /// Cut the power instead of asking the guest.
        force: bool,
    },
    /// All VMs; answered with a list of [`VmStatus`].
    VmList,
    /// One VM; answered with a [`VmStatus`].
    VmShow {
        /// The VM.
        name: String,
    },
    /// What a running VM exposes; answered with a [`machine::exposure::ExposureReport`].
    VmProof {
        /// The VM.
        name: String,
    },
    /// Deletes a VM that is off, with its disks.
    VmDelete {
        /// The VM.
        name: String,
    },
    /// The connection becomes the VM's serial console, if its policy has one.
    VmConsole {
        /// The VM.
        name: String,
    },
    /// The connection becomes a session with the guest, if its console profile has them; an earlier session ends.
    VmSession {
        /// The VM.
        name: String,
    },
    /// The active key protector, for the VM's owner.
    VmProtector {
        /// The VM.
        name: String,
    },
    /// A signed protector update, for the next start (`crate::protector_update`).
    VmSetProtector {
        /// The VM.
        name: String,
        /// The owner's signed update; none discards one that has not taken effect yet.
        change: Option<String>,
    },
    /// Moves a running VM to the agent that takes migrations at `to`, `HOST:PORT`.
    VmMigrate {
        /// The VM.
        name: String,
        /// `HOST:PORT`.
        to: String,
    },
    /// The VM did not arrive where it was handed over, and never will: this host owns it again.
    VmTakeBack {
        /// The VM.
        name: String,
    },
    /// Changes the security policy; possible in local mode only, where a guardian's private key is.
    VmSetPolicy {
        /// The VM.
        name: String,
        /// The new policy.
        policy: Policy,
    },
}

/// A VM to create.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// The new VM's name; see [`outcome::check_name`].
    pub name: String,
    /// MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Disk images to copy into the store (qcow2, raw or VHDX; the first one boots).
    pub disks: Vec<PathBuf>,
    /// Network cards, in the order in which the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<CreateNic>,
    /// The bridge of the only card, in requests of releases that knew no `nics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether the guest can run virtual machines of its own: a repair garage must.
    pub nested: bool,
    /// The security policy that is sealed.
    pub policy: Policy,
    /// What reaches the VM out of band.
    #[serde(default, skip_serializing_if = "ConsoleProfile::is_default")]
    pub console_profile: ConsoleProfile,
    /// The key protector, an MS-KPS `Protector` document.
    pub protector: String,
}

/// A network card of a VM that is to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNic {
    /// Name of a Linux bridge.
    pub bridge: String,
    /// `xx:xx:xx:xx:xx:xx` in lower case, unicast; derived from the VM's id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl CreateVm {
    /// The network cards, in whichever form the request names them.
    ///
    /// # Errors
    /// `BadInput` when it names none, or uses both forms.
    pub fn nics(&self) -> Result<Vec<CreateNic>> {
        match (&self.switch, self.nics.as_slice()) {
            (None, []) => Err(Error::new(Kind::BadInput, "a VM needs at least one network card")
                .remedy("--nic bridge=NAME, with an existing bridge: ip link show type bridge")),
            (None, nics) if self.mac.is_none() => Ok(nics.to_vec()),
            (Some(bridge), []) => Ok(vec![CreateNic { bridge: bridge.clone(), mac: self.mac.clone() }]),
            _ => Err(Error::new(Kind::BadInput, "the request names network cards in two forms")
                .remedy("use `nics`, or `switch` and `mac`")),
        }
    }
}

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// It does not run.
    Off,
    /// An operation holds it: starting, stopping, being exported.
    Busy,
    /// It runs under this agent.
    Running,
    /// A QEMU of an earlier agent still runs; only `vm stop --force` reaches it.
    Orphaned,
}

/// What the agent knows of a VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name on this host.
    pub name: String,
    /// Its identity, wherever it is.
    pub id: uuid::Uuid,
    /// Whether it runs.
    pub state: PowerState,
    /// The security policy, as `vm.json` says.
    pub policy: Policy,
    /// What reaches it out of band, as `vm.json` says.
    #[serde(default)]
    pub console_profile: ConsoleProfile,
    /// MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Whether the guest can run virtual machines of its own.
    pub nested: bool,
    /// The bridge of each network card.
    pub switch: Vec<String>,
    /// The MAC address of each network card, in the same order.
    pub mac: Vec<String>,
    /// The path of each disk's image.
    pub disks: Vec<String>,
    /// The sealed state's generation: it grows by one with every start.
    pub generation: u64,
    /// The VM's owner: the name in the signing certificate.
    pub owner: String,
    /// SHA-256 of that certificate, 64 hexadecimal digits.
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
    /// QEMU's process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Where a VM was handed over and may run: it must not be started here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandedOver {
    /// The attempt to migrate it.
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

/// Why a VM must not be started, changed or deleted at present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The recovery that holds it.
    pub recovery_id: uuid::Uuid,
    /// One sentence for people, with the next step.
    pub reason: String,
    /// False while the VM must not run at all.
    pub may_start: bool,
}

/// What the agent says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Drydock's version.
    pub version: String,
    /// `guarded` (keys from an HGS) or `local`.
    pub mode: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that one.
    pub accelerator_reason: String,
    /// The address of the Host Guardian Service's node that answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hgs: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    /// A request as a client writes it, with these fields added.
    fn create(cards: Value) -> CreateVm {
        let mut request = json!({
            "op": "vm-create", "name": "web", "memory_mib": 1024, "vcpus": 1, "disks": ["/a"], "nested": false,
            "policy": "shielded", "protector": "<Protector/>",
        });
        request.as_object_mut().unwrap().extend(cards.as_object().unwrap().clone());
        match serde_json::from_value(request).unwrap() {
            VmRequest::VmCreate(create) => create,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn cards_are_a_list_and_the_earlier_form_is_still_understood() {
        let card = |bridge: &str, mac: Option<&str>| CreateNic { bridge: bridge.into(), mac: mac.map(str::to_owned) };
        let mac = "52:54:00:00:00:01";
        let two = json!({ "nics": [{ "bridge": "br0" }, { "bridge": "br1", "mac": mac }] });
        assert_eq!(create(two).nics().unwrap(), [card("br0", None), card("br1", Some(mac))]);
        assert_eq!(create(json!({ "switch": "br0" })).nics().unwrap(), [card("br0", None)]);
        assert_eq!(create(json!({ "switch": "br0", "mac": null })).nics().unwrap(), [card("br0", None)]);
        assert_eq!(create(json!({ "switch": "br0", "mac": mac })).nics().unwrap(), [card("br0", Some(mac))]);
        for wrong in [
            json!({}),
            json!({ "mac": mac }),
            json!({ "nics": [] }),
            json!({ "nics": [{ "bridge": "br0" }], "switch": "br0" }),
            json!({ "nics": [{ "bridge": "br0" }], "mac": mac }),
        ] {
            assert_eq!(create(wrong.clone()).nics().unwrap_err().kind, Kind::BadInput, "{wrong}");
        }
    }
}
