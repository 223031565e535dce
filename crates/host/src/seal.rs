//! The ritual around every key that is released: open the sealed record, compare it with the VM's files, and seal the
//! state again, under the next key, in the next slot.

use key_protector::{Protector, Rolled, TransportKey};
use machine::record::SealedRecord;
use machine::{LuksFault, OpenSlot, Policy, VmSpec};
use outcome::{Context, Error, Events, Kind, Next, Result};

use crate::agent::Agent;
use crate::vm_dir::VmDir;
use crate::vm_files::VmFiles;
use crate::vm_lock::VmLock;

/// The sealed state of a VM that is off, opened with the key that its active slot is sealed under, and found to agree
/// with the VM's files.
pub struct Unsealed<'a> {
    dir: &'a VmDir,
    slot: u64,
    open: OpenSlot<'a>,
}

/// A slot that was just made the active one.
pub struct Resealed {
    /// Its number.
    pub generation: u64,
    /// What is sealed in it.
    pub record: SealedRecord,
}

impl<'a> Unsealed<'a> {
    /// Opens the active slot and compares it with the VM's files.
    ///
    /// # Errors
    /// `Refused` when the record does not open, is of another VM or protector, or disagrees with a file.
    pub fn open(files: &'a VmFiles, key: &'a TransportKey) -> Result<Self> {
        let unsealed = Self::open_record(files, key)?;
        check_record(files.spec(), unsealed.record(), files.slot())?;
        Ok(unsealed)
    }

    /// The same for a change of the policy. A run that was killed after it resealed left the old policy in `vm.json`:
    /// what is sealed is true.
    ///
    /// # Errors
    /// Those of [`Unsealed::open`].
    pub fn open_for_policy(files: &'a VmFiles, key: &'a TransportKey) -> Result<Self> {
        let unsealed = Self::open_record(files, key)?;
        let spec = VmSpec { policy: unsealed.record().policy, ..files.spec().clone() };
        check_record(&spec, unsealed.record(), files.slot())?;
        Ok(unsealed)
    }

    /// Whether `key` is the one that the active slot is sealed under.
    #[must_use]
    pub fn opens(files: &VmFiles, key: &TransportKey) -> bool {
        Unsealed::open_record(files, key).is_ok()
    }

    fn open_record(files: &'a VmFiles, key: &'a TransportKey) -> Result<Self> {
        let (dir, slot) = (files.dir(), files.slot());
        let digest = files.parsed_protector()?.digest();
        let open = OpenSlot::open(&dir.slot(slot), key, files.spec().id, &digest)
            .context(Kind::Refused, || {
                format!(
                    "the sealed state of {} does not belong to its key protector: it was altered, or comes from \
                     another VM or an earlier time",
                    dir.name()
                )
            })
            .or_next(|| "restore the slot that belongs to this VM; during a recovery: drydock recovery abort".into())?;
        Ok(Unsealed { dir, slot, open })
    }

    /// What the VM's owner sealed.
    #[must_use]
    pub fn record(&self) -> &SealedRecord {
        self.open.record()
    }

    /// Seals the state again under a new key and makes that slot the active one. The policy becomes `policy`.
    ///
    /// # Errors
    /// When it cannot be written; the old slot then stays active.
    pub async fn reseal(self, egress: &TransportKey, protector: &Protector, policy: Policy) -> Result<Resealed> {
        let Unsealed { dir, slot: from, open } = self;
        let generation = from
            .checked_add(1)
            .ok_or_else(|| Error::new(Kind::BadInput, format!("the generation of {} is exhausted", dir.name())))?;
        let record = SealedRecord { generation, policy, ..open.record().clone() };
        let slot = dir.fresh_slot(generation)?;
        open.reseal_into(&slot, egress, record.clone(), &protector.digest())
            .await
            .map_err(|error| not_resealed(dir, from, &error))?;
        dir.write_protector(generation, protector)?;
        dir.switch_to(generation, from)?;
        Ok(Resealed { generation, record })
    }
}

fn not_resealed(dir: &VmDir, from: u64, error: &machine::Error) -> Error {
    let message = format!("cannot seal the state of {} again", dir.name());
    let slot = dir.slot(from);
    if let machine::Error::Vars { fault: LuksFault::Key | LuksFault::Format(_), .. } = error {
        return Error::new(Kind::BadInput, message)
            .caused_by(error)
            .remedy(format!("the UEFI variables in {} were damaged or altered; restore them", slot.display()));
    }
    Error::new(Kind::Internal, message).caused_by(error).remedy(format!(
        "if {} was altered, or is of another VM or an earlier time, restore what belongs there",
        slot.display()
    ))
}

/// The files around the sealed record may have been edited; where they disagree with it, nothing starts.
///
/// # Errors
/// `Refused`, naming the field.
pub(crate) fn check_record(spec: &VmSpec, record: &SealedRecord, slot: u64) -> Result<()> {
    match record.disagreement(spec, slot) {
        None => Ok(()),
        Some(field) => Err(Error::new(
            Kind::Refused,
            format!("{}: '{field}' in the VM's files is not what its owner sealed", spec.name),
        )
        .remedy("undo the edit; only the VM's owner can change what is sealed")),
    }
}

/// Lowers or raises the policy of a VM that is off. Local mode only; the new policy is sealed under a new key.
///
/// # Errors
/// `Refused` on a guarded host.
pub(crate) async fn set_policy(agent: &Agent, vm: &mut VmLock, policy: Policy, events: &Events) -> Result<()> {
    let name = vm.dir().name().to_owned();
    if !agent.keys().is_local() {
        return Err(Error::new(Kind::Refused, format!("the policy of {name} cannot be changed on a guarded host"))
            .remedy("its owner changes it where they hold a guardian's private key: in a repair garage"));
    }
    if vm.is_running() {
        return Err(
            Error::new(Kind::WrongState, format!("{name} is running")).remedy(format!("drydock vm stop {name}"))
        );
    }
    let files = VmFiles::read(vm.dir())?;
    let Rolled { ingress, egress, egress_protector } = agent.keys().roll(files.protector()?).await?;
    let unsealed = Unsealed::open_for_policy(&files, &ingress)?;
    events.say("reseal", "sealing the policy under a new transport key");
    unsealed.reseal(&egress, &egress_protector, policy).await?;
    vm.dir().write_spec(&VmSpec { policy, ..files.spec().clone() })
}
