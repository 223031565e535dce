//! Provisioning a VM, and removing it.

use std::path::Path;

use image::{Format, Source};
use key_protector::Protector;
use machine::record::{DiskIdentity, SealedRecord};
use machine::{DiskSpec, Firmware, NicSpec, VmSpec};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::agent::{Agent, VmLock};
use crate::api::CreateVm;
use crate::disks;
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};

impl Agent {
    /// Makes a VM from images and a key protector. Nothing of it is left when a step fails.
    ///
    /// # Errors
    /// `BadInput`, `WrongState` when the name is taken, `KeyRelease`.
    pub async fn create(&self, request: CreateVm, events: &Events) -> Result<()> {
        let dir = self.store().vm_dir(&request.name)?;
        let lock = self.lock_dir(dir)?;
        if lock.dir().exists() {
            return Err(Error::new(Kind::WrongState, format!("there is a VM named '{}' already", request.name))
                .remedy("choose another name, or delete it first"));
        }
        let protector = Protector::parse(request.protector.as_bytes())
            .context(Kind::BadInput, || "the key protector is not one".into())
            .or_next(|| "name what the VM's owner made with `drydock protector new`".into())?;
        protector
            .verify(OffsetDateTime::now_utc())
            .context(Kind::BadInput, || "the key protector does not verify".into())
            .or_next(|| "have the VM's owner make it again: drydock protector new".into())?;
        if request.disks.is_empty() {
            return Err(Error::new(Kind::BadInput, "a VM needs at least one disk").remedy("--disk IMAGE"));
        }
        machine::tap::check_switch(&request.switch)
            .context(Kind::NotFound, || format!("'{}' is not a virtual switch of this host", request.switch))
            .or_next(|| "name an existing bridge: ip link show type bridge".into())?;
        let made = self.create_in(&lock, request, &protector, events).await;
        if made.is_err() {
            lock.dir().remove()?;
        }
        made
    }

    async fn create_in(&self, lock: &VmLock, request: CreateVm, protector: &Protector, events: &Events) -> Result<()> {
        let dir = lock.dir();
        dir.remove()?;
        durable::private_dir(dir.path()).context(Kind::Internal, || format!("cannot make {}", dir.path().display()))?;
        let id = Uuid::new_v4();
        let mut spec = VmSpec {
            id,
            name: request.name,
            memory_mib: request.memory_mib,
            vcpus: request.vcpus,
            nested: request.nested,
            policy: request.policy,
            console_profile: request.console_profile,
            disks: Vec::new(),
            nics: vec![NicSpec { switch: request.switch, mac: request.mac.unwrap_or_else(|| mac_of(id)) }],
            firmware: Firmware::find().context(Kind::MissingTool, || "no OVMF firmware with Secure Boot".into())?,
        };
        for (index, source) in request.disks.iter().enumerate() {
            let size = disks::info(source).await?.virtual_size;
            let disk = Source::new(dir.path().join(format!("disk-{index}.qcow2")), Format::Qcow2);
            spec.disks.push(DiskSpec::new(disk, format!("{}-{index}", &id.simple().to_string()[..12]), size));
        }
        spec.validate()
            .context(Kind::BadInput, || "the VM cannot be made like that".into())
            .or_next(|| "change that and run the command again; drydock vm create --help".into())?;
        for (source, disk) in request.disks.iter().zip(&spec.disks) {
            disks::import(source, disk.source.path(), events).await?;
        }
        events.say("key-release", format!("asking for the key of {}", spec.name));
        let rolled = self.keys().roll(protector).await?;
        let record = record_of(&spec, 1);
        let slot = dir.fresh_slot(1)?;
        events.say("seal", "making the vTPM and the UEFI variables");
        machine::state::create(&slot, &rolled.egress, &record, &rolled.egress_protector.digest(), &spec.firmware)
            .await
            .context(Kind::Internal, || format!("cannot make the sealed state of {}", spec.name))?;
        dir.write_protector(1, &rolled.egress_protector)?;
        dir.switch_to(1, 1)?;
        // Last: a directory without vm.json is not a VM.
        dir.write_spec(&spec)
    }

    /// Deletes a VM that is off and in no recovery.
    ///
    /// # Errors
    /// `WrongState` while it runs or a recovery holds it.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let mut vm = self.lock(name)?;
        if vm.is_running() {
            return Err(
                Error::new(Kind::WrongState, format!("{name} is running")).remedy(format!("drydock vm stop {name}"))
            );
        }
        vm.refuse_process()?;
        if let Some(hold) = vm.dir().hold()? {
            return Err(Error::new(Kind::WrongState, format!("{name} cannot be deleted: {}", hold.reason))
                .remedy(format!("drydock recovery status {name}")));
        }
        self.forget_offline_key(vm.dir()).await?;
        vm.dir().remove()?;
        let _ = std::fs::remove_dir_all(self.store().logs(name));
        Ok(())
    }
}

/// What of a VM is sealed.
#[must_use]
pub fn record_of(spec: &VmSpec, generation: u64) -> SealedRecord {
    SealedRecord {
        version: 1,
        vm_id: spec.id,
        policy: spec.policy,
        console_profile: spec.console_profile,
        generation,
        disks: spec.disks.iter().map(|d| DiskIdentity { serial: d.serial.clone(), size: d.size }).collect(),
        nics: spec.nics.iter().map(|n| n.mac.clone()).collect(),
    }
}

/// A locally administered address derived from the VM's id: the same wherever the VM goes.
fn mac_of(id: Uuid) -> String {
    let b = id.as_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2])
}

/// Free bytes on the file system that holds `path`.
///
/// # Errors
/// When it cannot be asked.
pub fn free_space(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)
        .context(Kind::Internal, || format!("cannot ask for the free space of {}", path.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
