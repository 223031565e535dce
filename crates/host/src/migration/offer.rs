//! What the source tells about a VM before it knows its peer: nothing that opens anything.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use image::{Format, Source};
use key_protector::{DerivedKey, Protector, Rolled};
use machine::accel::{Accel, Verdict};
use machine::record::{DiskIdentity, MAX_LEN, SealedRecord};
use machine::{ConsoleProfile, DiskSpec, Firmware, NicSpec, Policy, VmSpec};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::seal::check_record;
use crate::vm_dir::VmDir;
use crate::vm_lock::MIGRATION_LABEL;
use outcome::{Context, Error, Kind, Next, Result};

pub(super) const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Offer {
    /// [`VERSION`].
    pub(super) version: u32,
    /// Made for this attempt.
    pub(super) migration: Uuid,
    pub(super) vm: OfferedVm,
    /// The processor that the guest sees; see [`processor`].
    pub(super) processor: String,
    /// Number of the active slot.
    pub(super) generation: u64,
    /// The slot's key protector, XML.
    pub(super) protector: String,
    /// The slot's sealed record, base64.
    pub(super) record: String,
}

/// A VM without the paths of a host.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfferedVm {
    pub(super) id: Uuid,
    pub(super) name: String,
    memory_mib: u32,
    vcpus: u32,
    nested: bool,
    policy: Policy,
    #[serde(default, skip_serializing_if = "ConsoleProfile::is_default")]
    console_profile: ConsoleProfile,
    disks: Vec<DiskIdentity>,
    nics: Vec<NicSpec>,
}

impl OfferedVm {
    pub(super) fn of(spec: &VmSpec) -> Self {
        let disks = spec.disks.iter().map(|d| DiskIdentity { serial: d.serial.clone(), size: d.size }).collect();
        OfferedVm {
            id: spec.id,
            name: spec.name.clone(),
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            nested: spec.nested,
            policy: spec.policy,
            console_profile: spec.console_profile,
            disks,
            nics: spec.nics.clone(),
        }
    }

    /// The VM as it will be in `dir`.
    ///
    /// # Errors
    /// `BadInput` for an invalid VM, `NotFound` for a bridge that this host does not have.
    pub(super) fn to_spec(&self, dir: &VmDir) -> Result<VmSpec> {
        let disks = self.disks.iter().enumerate().map(|(index, disk)| {
            let source = Source::new(dir.path().join(format!("disk-{index}.qcow2")), Format::Qcow2);
            DiskSpec::new(source, &disk.serial, disk.size)
        });
        let spec = VmSpec {
            id: self.id,
            name: self.name.clone(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            nested: self.nested,
            policy: self.policy,
            console_profile: self.console_profile,
            disks: disks.collect(),
            nics: self.nics.clone(),
            firmware: Firmware::find().context(Kind::MissingTool, || "no OVMF firmware with Secure Boot".into())?,
        };
        spec.validate().context(Kind::BadInput, || "what is offered is not a valid VM".into())?;
        for nic in &spec.nics {
            machine::tap::check_switch(&nic.switch)
                .context(Kind::NotFound, || format!("'{}' is not a bridge on this host", nic.switch))
                .or_next(|| format!("make it on the destination: ip link add {} type bridge", nic.switch))?;
        }
        Ok(spec)
    }
}

impl Offer {
    /// The key protector, every signature in it checked.
    pub(super) fn protector(&self) -> Result<Protector> {
        let bad = || "the key protector that was offered is not valid".to_owned();
        let protector = Protector::parse(self.protector.as_bytes()).context(Kind::BadInput, bad)?;
        protector.verify(OffsetDateTime::now_utc()).context(Kind::BadInput, bad)?;
        Ok(protector)
    }

    /// Opens what the VM's owner sealed, with the key that was released for it. Returns it with the key that both ends
    /// prove to have.
    ///
    /// # Errors
    /// `Refused` when the record is another VM's, or disagrees with the offer.
    pub(super) fn open(
        &self,
        spec: &VmSpec,
        protector: &Protector,
        rolled: &Rolled,
    ) -> Result<(SealedRecord, DerivedKey)> {
        let sealed = BASE64_STANDARD
            .decode(&self.record)
            .ok()
            .filter(|bytes| bytes.len() <= MAX_LEN)
            .ok_or_else(|| Error::new(Kind::BadInput, "the sealed record that was offered is not valid"))?;
        let record = SealedRecord::open(&sealed, &rolled.ingress, self.vm.id, &protector.digest())
            .context(Kind::Refused, || {
                "the sealed record that was offered does not belong to its key protector".into()
            })?;
        check_record(spec, &record, self.generation)?;
        Ok((record, rolled.ingress.derive(MIGRATION_LABEL)))
    }
}

/// A running guest can resume only on the same processor.
pub(super) fn processor(verdict: &Verdict) -> Result<String> {
    if verdict.accel == Accel::Tcg {
        return Ok("emulated".into());
    }
    let all =
        std::fs::read_to_string("/proc/cpuinfo").context(Kind::Internal, || "cannot read /proc/cpuinfo".into())?;
    let line = |name: &str| {
        all.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map_or("", |(_, v)| v.trim())
    };
    let mut flags: Vec<&str> = line("flags").split(' ').collect();
    flags.sort_unstable();
    let nested = if verdict.outer_tcg { ", itself emulated" } else { "" };
    Ok(format!("{}{nested}: {}", line("model name"), flags.join(" ")))
}
