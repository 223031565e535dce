//! What came back on the RG disk is verified without a key: it is of this recovery, of this VM, from its owner, and newer
//! than the original. Nothing in it is believed before.

use std::path::Path;

use garage::Mode;
use host::VmDir;
use key_protector::{Approval, Protector, Role};
use machine::VmSpec;
use outcome::{Context, Error, Kind, Next, Result};
use time::OffsetDateTime;

use crate::documents::{self, Receipt};
use crate::journal::Journal;
use crate::rg::{Contents, read};

const WHAT: &str = "the RG disk";

/// What came back, after every check that needs no key.
pub(super) struct Back {
    pub protector: Protector,
    pub generation: u64,
    pub receipt: Receipt,
    pub contents: Contents,
}

/// Verifies what came back against the original.
///
/// # Errors
/// `BadInput`, naming the field that is wrong.
pub(super) async fn verify(journal: &Journal, disk: &Path, original: &VmDir) -> Result<Back> {
    let spec = original.spec()?;
    let contents = read(disk).await?;
    let handback = contents.handback()?;
    let another = if journal.file().is_some() { "name the right file with --from, or " } else { "" };
    let give_up = format!(
        "nothing was changed; {another}abort this recovery and start another: drydock recovery abort {}",
        spec.name
    );
    let wrong = |field: &str, why: String| {
        Err(Error::new(Kind::BadInput, format!("{WHAT}: field '{field}': {why}")).remedy(give_up.clone()))
    };
    if handback.mode != journal.mode() {
        return wrong("mode", "its disks did not travel in this recovery's mode".into());
    }
    if handback.recovery_id != journal.id() {
        return wrong("recovery_id", "it belongs to another recovery".into());
    }
    if handback.vm_id != spec.id {
        return wrong("vm_id", "it belongs to another VM".into());
    }
    let ours = original.protector(original.current()?)?;
    let protector = handback.protector;
    protector
        .verify(OffsetDateTime::now_utc())
        .context(Kind::BadInput, || format!("{WHAT}: its key protector does not verify"))
        .or_next(|| give_up.clone())?;
    let owner = ours.owner().signing_certificate().fingerprint();
    if protector.owner().signing_certificate().fingerprint() != owner {
        return wrong("protector", "its owner is not the VM's owner".into());
    }
    let signer = protector.signer();
    if signer.role() != Role::Recovery {
        return wrong("protector", "it is not signed by a recovery guardian".into());
    }
    let (receipt, verified) = documents::read_receipt(&format!("{WHAT}: the receipt"), &handback.receipt)?;
    if Approval::of(signer.signing_certificate()).check(verified).is_err() {
        return wrong("receipt", "it is not signed by the recovery guardian".into());
    }
    let expected = [
        ("receipt.recovery_id", receipt.recovery_id == journal.id()),
        ("receipt.vm_id", receipt.vm_id == spec.id),
        ("receipt.ingress_protector", receipt.ingress_protector == ours.digest()),
        ("receipt.egress_protector", receipt.egress_protector == protector.digest()),
        ("receipt.state", receipt.state == contents.state_digest()),
        ("receipt.disks", same_disks(&receipt, &spec, journal.mode())),
    ];
    for (field, holds) in expected {
        if !holds {
            return wrong(field, "it is not what this VM left with, or not what came back".into());
        }
    }
    if handback.generation <= original.current()? {
        return wrong("generation", "the state is not newer than the original".into());
    }
    Ok(Back { protector, generation: handback.generation, receipt, contents })
}

/// Whether the receipt names the VM's disks, with digests of those that travelled on the RG disk.
fn same_disks(receipt: &Receipt, spec: &VmSpec, mode: Mode) -> bool {
    receipt.disks.len() == spec.disks.len()
        && receipt.disks.iter().zip(&spec.disks).all(|(signed, disk)| {
            signed.serial == disk.serial && signed.size == disk.size && signed.sha256.is_some() == (mode == Mode::Copy)
        })
}
