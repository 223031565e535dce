//! What the garage's host reads of an RG disk that came from another host.

use std::path::Path;

use garage::{Direction, Mode};
use key_protector::Protector;
use machine::VmSpec;
use outcome::{Context, Error, Kind, Next, Result};
use uuid::Uuid;

use crate::rg::{DAMAGED, SlotSpec, read, slot_spec};

/// What a garage's host knows of the VM on an RG disk that came from another host.
pub(super) struct Arrived {
    pub recovery_id: Uuid,
    pub spec: VmSpec,
    /// Of the RG disk, in bytes.
    pub size: u64,
}

/// Reads an RG disk that came from another host and is to go into a garage.
///
/// # Errors
/// `BadInput` for anything that is not an RG disk with its VM's disks on it, `WrongState` for one that was handed back.
pub(super) async fn arrived(file: &Path) -> Result<Arrived> {
    let raw = read(file).await?.raw;
    let manifest = &raw.manifest;
    if manifest.direction != Direction::Outbound {
        return Err(Error::new(Kind::WrongState, format!("{} has already been handed back", file.display()))
            .remedy("take it to the VM's host, and run there: drydock recovery reinstate VM --from FILE"));
    }
    if manifest.mode != Mode::Copy {
        return Err(Error::new(Kind::BadInput, format!("{}: the VM's disks are not on it", file.display()))
            .remedy("export it for another host: drydock recovery export VM --to-file PATH"));
    }
    let SlotSpec { spec, .. } = slot_spec(manifest, file)?;
    Protector::parse(&manifest.protector)
        .context(Kind::BadInput, || format!("{}: manifest: field 'protector' is not a key protector", file.display()))
        .or_next(|| DAMAGED.into())?;
    Ok(Arrived { recovery_id: manifest.recovery_id, spec, size: raw.layout.total() })
}
