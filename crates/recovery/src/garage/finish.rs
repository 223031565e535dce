//! Step 6, tenant in the garage: policy up, new transport key, state and receipt onto the RG disk, and
//! everything temporary destroyed.

use host::api::Hold;
use host::{Agent, Unsealed, VmFiles, VmLock};
use key_protector::{Guardian, Role, Wrapping};
use machine::{Policy, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Result};
use time::OffsetDateTime;

use crate::api::StatusReport;
use crate::damaged::require_off;
use crate::documents::{self, Receipt, ReceiptDisk};
use crate::garage::guardian::{self, local};
use crate::garage::import::ingress_protector;
use crate::garage::rg;
use crate::garage::undo::{destroy_guardian, remove_vm};
use crate::journal::Journal;
use crate::rg::pack;
use crate::status;
use crate::step::{Side, Step};

/// Runs or resumes a finish.
///
/// # Errors
/// `WrongState` when the VM runs or its policy was never lowered.
pub(crate) async fn run(agent: &Agent, vm: Option<&str>, stop: bool, events: &Events) -> Result<StatusReport> {
    let guardians = local(agent)?;
    let mut journal = find(agent, vm)?;
    let name = journal.vm().to_owned();
    if !journal.done(Step::PolicyLowered) {
        return Err(Error::new(
            Kind::WrongState,
            format!("{name} has not been granted, so there is nothing to finish"),
        )
        .remedy(format!(
            "continue with `drydock recovery import --grant FILE`, or give up: drydock recovery abort {name}"
        )));
    }
    let clean = async |journal: &mut Journal| {
        let lock = stopped(agent, &name, stop, events).await?;
        let hand_back = async |journal: &mut Journal| {
            let guardian = guardian::existing(guardians, journal)?;
            let raise = async |journal: &mut Journal| raise(&lock, journal, &guardian, events).await;
            journal.step(Step::PolicyRaised, raise).await?;
            hand_back(&lock, journal, &guardian, events).await
        };
        journal.step(Step::HandedBack, hand_back).await?;
        destroy_guardian(guardians, journal, events)?;
        remove_vm(agent, &lock)?;
        journal.clear_files()
    };
    journal.step(Step::Cleaned, clean).await?;
    journal.step(Step::Closed, async |_| Ok(())).await?;
    // For the next recovery here.
    guardians.prepare();
    Ok(status::describe(&journal))
}

/// The VM, which does not run.
async fn stopped(agent: &Agent, name: &str, stop: bool, events: &Events) -> Result<VmLock> {
    let mut lock = agent.lock_dir(agent.store().vm_dir(name)?)?;
    require_off(&mut lock, stop, &format!("finish {name}"))?;
    if lock.is_running() {
        lock.stop(false, events).await?;
    }
    Ok(lock)
}

fn find(agent: &Agent, vm: Option<&str>) -> Result<Journal> {
    let open: Vec<Journal> = Journal::all(agent.store())?
        .into_iter()
        .filter(|j| j.side() == Side::Garage && !j.is_closed() && vm.is_none_or(|vm| j.vm() == vm))
        .collect();
    match open.len() {
        1 => open.into_iter().next().ok_or_else(|| Error::new(Kind::Internal, "no recovery")),
        0 => Err(Error::new(Kind::NotFound, "there is no recovery to finish here")
            .remedy("to list what there is: drydock recovery status")),
        _ => Err(Error::new(Kind::BadInput, "there are several recoveries here")
            .remedy("name the VM: drydock recovery finish VM")),
    }
}

async fn raise(lock: &VmLock, journal: &Journal, guardian: &Guardian, events: &Events) -> Result<()> {
    let dir = lock.dir();
    let ingress = ingress_protector(journal)?;
    let files = VmFiles::read(dir)?;
    let protector = files.protector()?;
    let fabric_has_it = protector.wrappings().iter().any(|w| w.role() == Role::Fabric);
    if !fabric_has_it {
        let recipients: Vec<Wrapping> =
            ingress.wrappings().iter().filter(|w| w.role() != Role::Recovery).cloned().collect();
        let rolled = protector
            .roll(guardian, &recipients, OffsetDateTime::now_utc())
            .context(Kind::KeyRelease, || "the recovery guardian cannot roll the key back to the fabric".into())?;
        let unsealed = Unsealed::open_for_policy(&files, &rolled.ingress)?;
        events.say("policy-raised", "sealing the raised policy under a key for the fabric");
        unsealed.reseal(&rolled.egress, &rolled.egress_protector, Policy::Shielded).await?;
    }
    dir.set_hold(Some(&Hold {
        recovery_id: journal.id(),
        reason: "it is being handed back".into(),
        may_start: false,
    }))?;
    dir.write_spec(&VmSpec { policy: Policy::Shielded, ..files.spec().clone() })
}

async fn hand_back(lock: &VmLock, journal: &Journal, guardian: &Guardian, events: &Events) -> Result<()> {
    let files = VmFiles::read(lock.dir())?;
    let (spec, generation, protector) = (files.spec(), files.slot(), files.protector()?);
    let device = rg::open_device().await?;
    if device.recovery_id() != journal.id() {
        return Err(Error::new(Kind::BadInput, "the RG disk in this garage belongs to another recovery")
            .remedy("have the fabric admin attach the right one"));
    }
    let bundle = pack(&files.dir().slot(generation))?;
    let mut disks = Vec::new();
    for (index, disk) in spec.disks.iter().enumerate() {
        let sha256 = device.close_disk(index, format!("computing the digest of disk {index}"), events).await?;
        disks.push(ReceiptDisk { serial: disk.serial.clone(), size: disk.size, sha256 });
    }
    let receipt = Receipt {
        recovery_id: journal.id(),
        vm_id: spec.id,
        ingress_protector: ingress_protector(journal)?.digest(),
        egress_protector: protector.digest(),
        state: bundle.sha256().to_string(),
        disks,
        finished: OffsetDateTime::now_utc().unix_timestamp(),
    };
    let document = documents::write_receipt(&receipt, guardian)?;
    events.say("hand-back", "writing state and receipt onto the RG disk");
    device.hand_back(protector, generation, bundle, &receipt, document).await
}
