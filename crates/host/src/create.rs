//! Creating a VM, and deleting it.

use std::path::Path;

use image::{Format, Source};
use key_protector::Protector;
use machine::record::SealedRecord;
use machine::{DiskSpec, Firmware, NicSpec, VmSpec};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::agent::Agent;
use crate::api::{CreateNic, CreateVm};
use crate::disks;
use crate::vm_lock::VmLock;
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};

/// Creates a VM from images and a key protector. When a step fails, nothing of it is left.
///
/// # Errors
/// `BadInput`, `WrongState` when the name is taken, `KeyRelease`.
pub(crate) async fn create(agent: &Agent, request: CreateVm, events: &Events) -> Result<()> {
    let dir = agent.store().vm_dir(&request.name)?;
    let lock = agent.lock_dir(dir)?;
    if lock.dir().exists() {
        return Err(Error::new(Kind::WrongState, format!("a VM named '{}' already exists", request.name))
            .remedy("choose another name, or delete it first"));
    }
    let protector = Protector::parse(request.protector.as_bytes())
        .context(Kind::BadInput, || "this is not a valid key protector".into())
        .or_next(|| "name the file that the VM's owner made with `drydock protector new`".into())?;
    protector
        .verify(OffsetDateTime::now_utc())
        .context(Kind::BadInput, || "the key protector does not verify".into())
        .or_next(|| "have the VM's owner make it again: drydock protector new".into())?;
    if request.disks.is_empty() {
        return Err(Error::new(Kind::BadInput, "a VM needs at least one disk").remedy("--disk IMAGE"));
    }
    for nic in request.nics()? {
        machine::tap::check_switch(&nic.bridge)
            .context(Kind::NotFound, || format!("'{}' is not a bridge on this host", nic.bridge))
            .or_next(|| "name an existing bridge: ip link show type bridge".into())?;
    }
    let made = create_in(agent, &lock, request, &protector, events).await;
    if made.is_err() {
        lock.dir().remove()?;
    }
    made
}

async fn create_in(
    agent: &Agent,
    lock: &VmLock,
    request: CreateVm,
    protector: &Protector,
    events: &Events,
) -> Result<()> {
    let dir = lock.dir();
    dir.remove()?;
    durable::private_dir(dir.path()).context(Kind::Internal, || format!("cannot make {}", dir.path().display()))?;
    let id = Uuid::new_v4();
    let nics = nics_of(id, request.nics()?);
    let mut spec = VmSpec {
        id,
        name: request.name,
        memory_mib: request.memory_mib,
        vcpus: request.vcpus,
        nested: request.nested,
        policy: request.policy,
        console_profile: request.console_profile,
        disks: Vec::new(),
        nics,
        firmware: Firmware::find().context(Kind::MissingTool, || "no OVMF firmware with Secure Boot".into())?,
    };
    for (index, source) in request.disks.iter().enumerate() {
        let size = disks::info(source).await?.virtual_size;
        let disk = Source::new(dir.path().join(format!("disk-{index}.qcow2")), Format::Qcow2);
        spec.disks.push(DiskSpec::new(disk, format!("{}-{index}", &id.simple().to_string()[..12]), size));
    }
    spec.validate()
        .context(Kind::BadInput, || "the VM cannot be created like that".into())
        .or_next(|| "change that and run the command again; drydock vm create --help".into())?;
    for (source, disk) in request.disks.iter().zip(&spec.disks) {
        disks::import(source, disk.source.path(), events).await?;
    }
    events.say("key-release", format!("asking for the key of {}", spec.name));
    let rolled = agent.keys().roll(protector).await?;
    let record = SealedRecord::new(&spec, 1);
    let slot = dir.fresh_slot(1)?;
    events.say("seal", "making the vTPM and the UEFI variables");
    machine::slot::create(&slot, &rolled.egress, &record, &rolled.egress_protector.digest(), &spec.firmware)
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
pub(crate) async fn delete(agent: &Agent, name: &str) -> Result<()> {
    let mut vm = agent.lock(name)?;
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
    agent.keys().forget_offline_key(vm.dir()).await?;
    vm.dir().remove()?;
    let _ = std::fs::remove_dir_all(agent.store().logs(name));
    Ok(())
}

fn nics_of(id: Uuid, asked: Vec<CreateNic>) -> Vec<NicSpec> {
    let spec = |(index, nic): (u8, CreateNic)| NicSpec {
        switch: nic.bridge,
        mac: nic.mac.unwrap_or_else(|| mac_of(id, index)),
    };
    (0..=u8::MAX).zip(asked).map(spec).collect()
}

/// A locally administered address derived from the VM's id and the card's number: the same wherever the VM goes.
fn mac_of(id: Uuid, index: u8) -> String {
    let b = id.as_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2].wrapping_add(index))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_card_without_an_address_gets_one_of_its_own() {
        let id = Uuid::from_bytes([0x0a, 0x0b, 0xff, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let card = |mac: Option<&str>| CreateNic { bridge: "br0".into(), mac: mac.map(str::to_owned) };
        let nics = nics_of(id, vec![card(None), card(Some("52:54:00:00:00:01")), card(None)]);
        let macs: Vec<_> = nics.iter().map(|nic| nic.mac.as_str()).collect();
        assert_eq!(macs, ["52:54:00:0a:0b:ff", "52:54:00:00:00:01", "52:54:00:0a:0b:01"]);
    }
}
