//! What the garage does with the RG disk that is attached to it.

use std::path::{Path, PathBuf};

use garage::device::Places;
use garage::{Bundle, Device as RawDevice, Direction, Manifest, Mode};
use key_protector::Protector;
use machine::VmSpec;
use outcome::Events;
use outcome::{Context, Error, Kind, Result};
use uuid::Uuid;

use crate::documents::Receipt;
use crate::rg::{SlotSpec, blocking, lift, now, slot_spec, unpack, work};

/// Where the garage finds disk `index`: a partition's name, or an overlay's serial number. udev links both to the
/// devices, at every boot.
fn place(mode: Mode, recovery: Uuid, index: usize) -> PathBuf {
    match mode {
        Mode::Copy => Places::default().by_partlabel.join(garage::layout::disk_name(index)),
        Mode::Overlay => garage::device::overlay_path(&Places::default(), recovery, index),
    }
}

/// The RG disk that is attached to this garage.
pub(super) struct Device {
    device: RawDevice,
    manifest: Manifest,
}

/// The damaged VM as it arrived.
pub(super) struct Outbound {
    pub(super) recovery_id: Uuid,
    pub(super) mode: Mode,
    pub(super) spec: VmSpec,
    pub(super) generation: u64,
    pub(super) protector: Protector,
    bundle: Bundle,
}

impl Outbound {
    /// Where disk `index` is in this garage.
    pub(super) fn place(&self, index: usize) -> PathBuf {
        place(self.mode, self.recovery_id, index)
    }

    /// Unpacks the sealed state that arrived into the slot.
    ///
    /// # Errors
    /// `BadInput` when it does not fit together.
    pub(super) fn unpack(&self, slot: &Path) -> Result<()> {
        unpack(&self.bundle, slot)
    }
}

/// Finds the RG disk and reads its manifest.
///
/// # Errors
/// `NotFound` when none is attached, `BadInput` when it is not valid.
pub(super) async fn open_device() -> Result<Device> {
    blocking(|| {
        let device = RawDevice::find(&Places::default())?;
        let manifest = device.manifest()?;
        Ok(Device { device, manifest })
    })
    .await
}

impl Device {
    pub(super) fn recovery_id(&self) -> Uuid {
        self.manifest.recovery_id
    }

    /// # Errors
    /// `WrongState` for a disk that was handed back already, `BadInput` for one whose parts disagree.
    pub(super) fn outbound(&self) -> Result<Outbound> {
        let (path, manifest) = (self.device.path().display(), &self.manifest);
        if manifest.direction != Direction::Outbound {
            return Err(Error::new(Kind::WrongState, format!("the repair of {} is finished", manifest.vm_name))
                .remedy(format!("the fabric admin now runs: drydock recovery reinstate {}", manifest.vm_name)));
        }
        let SlotSpec { spec, generation } = slot_spec(manifest, self.device.path())?;
        let protector = Protector::parse(&manifest.protector)
            .context(Kind::BadInput, || format!("{path}: manifest: field 'protector' is not a key protector"))?;
        let bundle = self.device.bundle().map_err(lift)?;
        if manifest.mode == Mode::Overlay {
            for (index, disk) in spec.disks.iter().enumerate() {
                let path = place(manifest.mode, manifest.recovery_id, index);
                garage::device::check_overlay(&path, disk.size).map_err(lift)?;
            }
        }
        Ok(Outbound { recovery_id: manifest.recovery_id, mode: manifest.mode, spec, generation, protector, bundle })
    }

    /// Ends the repair of a disk: all of it is durable, and its digest is taken if it lies on the RG disk. One that
    /// stayed on its host, under an overlay, went over no wire and through no copy that a digest would vouch for.
    ///
    /// # Errors
    /// `Interrupted` when the client went away.
    pub(super) async fn close_disk(&self, index: usize, message: String, events: &Events) -> Result<Option<String>> {
        if self.manifest.mode == Mode::Overlay {
            let path = place(self.manifest.mode, self.manifest.recovery_id, index);
            blocking(move || garage::device::flush_overlay(&path)).await?;
            return Ok(None);
        }
        let device = self.device.clone();
        work(events, "digest", message, move |progress, cancel| device.digest_disk(index, progress, cancel))
            .await
            .map(|digest| Some(digest.to_string()))
    }

    /// Writes the repaired VM's state and documents. The old ones stay valid until the last write.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub(super) async fn hand_back(
        &self,
        protector: &Protector,
        generation: u64,
        bundle: Bundle,
        receipt: &Receipt,
        document: Vec<u8>,
    ) -> Result<()> {
        let mut next = self.manifest.clone();
        let mut sent: SlotSpec = serde_json::from_str(&next.spec)
            .context(Kind::BadInput, || "the RG disk's manifest: field 'spec' is not a VM specification".into())?;
        sent.generation = generation;
        next.spec = serde_json::to_string(&sent).context(Kind::Internal, || "cannot write the specification".into())?;
        for (disk, signed) in next.disks.iter_mut().zip(&receipt.disks) {
            disk.sha256 = signed.sha256.as_ref().and_then(|digest| digest.parse().ok());
        }
        next.sequence = next
            .sequence
            .checked_add(1)
            .ok_or_else(|| Error::new(Kind::BadInput, "the RG disk's manifest: field 'sequence' is exhausted"))?;
        next.direction = Direction::Handback;
        next.created = now();
        next.protector = protector.to_xml();
        next.state_sha256 = bundle.sha256();
        next.receipt = Some(document);
        let device = self.device.clone();
        blocking(move || {
            device.write_state(&bundle)?;
            device.write_manifest(&next)
        })
        .await
    }
}
