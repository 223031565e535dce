//! What the VM's host does with an RG disk: it makes one, and reads what came back on it; and the overlays that go with
//! it.

use std::path::{Path, PathBuf};

use garage::container;
use garage::{Bundle, Direction, Layout, Manifest, Mode};
use host::VmDir;
use image::{Cancel, Format, Source};
use key_protector::Protector;
use machine::{DiskSpec, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};
use uuid::Uuid;

use crate::rg::{ALTERED, Contents, SlotSpec, blocking, lift, not_ours_to_trust, now, pack, read, unpack, work};

/// The overlays of a recovery, as they are attached to the garage: each on one of the VM's disks.
pub(super) fn overlays(dir: &Path, recovery: Uuid, vm: &VmSpec) -> Vec<DiskSpec> {
    vm.disks
        .iter()
        .enumerate()
        .map(|(index, disk)| {
            let source = Source::new(overlay(dir, index), Format::Qcow2);
            let serial = garage::layout::overlay_serial(recovery, index);
            DiskSpec { opaque: true, ..DiskSpec::new(source, serial, disk.size).over(disk.source.clone()) }
        })
        .collect()
}

/// The file that holds what a repair changes of disk `index`.
pub(super) fn overlay(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("overlay-{index}.qcow2"))
}

/// Checks what the garage left in an overlay, as an image; what is in it, nobody but its owner can judge.
///
/// # Errors
/// `BadInput` when it is damaged.
pub(super) async fn check_overlay(path: PathBuf, size: u64) -> Result<()> {
    blocking(move || Ok(image::overlay::check(&path, size, &Cancel::new())?)).await.map_err(not_ours_to_trust)
}

/// Merges an overlay into the image under it while no VM uses them.
///
/// # Errors
/// `Interrupted` when the client went away: both images together are the disk, as before.
pub(super) async fn merge(index: usize, disk: &DiskSpec, backing: &Source, events: &Events) -> Result<()> {
    let (overlay, below) = (disk.source.path().to_owned(), backing.clone());
    work(events, "merge", format!("merging disk {index}"), move |progress, cancel| {
        Ok(image::overlay::merge(&overlay, &below, progress, cancel)?)
    })
    .await
}

/// Makes the RG disk with the VM's sealed state, protector and specification on it, and its disks; or, in overlay
/// mode, empty overlays next to it.
///
/// # Errors
/// `Interrupted` when the client went away; nothing is left then.
pub(super) async fn create(target: &Path, recovery: Uuid, vm: &VmDir, mode: Mode, events: &Events) -> Result<()> {
    let spec = vm.spec()?;
    let generation = vm.current()?;
    let protector = vm.protector(generation)?;
    let mut sources = sources(&spec).await?;
    let overlays: Vec<(PathBuf, u64)> = match (mode, target.parent()) {
        (Mode::Overlay, Some(dir)) => spec.disks.iter().enumerate().map(|(i, d)| (overlay(dir, i), d.size)).collect(),
        _ => Vec::new(),
    };
    if mode == Mode::Overlay {
        sources.clear();
    }
    let sizes: Vec<u64> = spec.disks.iter().take(sources.len()).map(|disk| disk.size).collect();
    let layout = Layout::plan(&sizes)
        .context(Kind::BadInput, || format!("the disks of {} do not fit on an RG disk", spec.name))?;
    let bundle = pack(&vm.slot(generation))?;
    let manifest = outbound(recovery, mode, SlotSpec { spec: spec.clone(), generation }, &protector, &bundle)?;
    let target = target.to_path_buf();
    let message = match mode {
        Mode::Copy => format!("copying {} onto the RG disk", spec.name),
        Mode::Overlay => format!("making the RG disk and the overlays of {}", spec.name),
    };
    work(events, "rg-disk", message, move |progress, cancel| {
        for (path, size) in &overlays {
            image::create(path, *size, cancel)?;
        }
        container::create(&target, &layout, &manifest, &bundle, &sources, progress, cancel)
    })
    .await
}

/// The images of the VM's disks, each of the size that the specification says.
async fn sources(spec: &VmSpec) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for disk in &spec.disks {
        // The container takes disks in whole sectors, and the specification may have been edited.
        let source = disk.source.clone();
        let image = source.clone();
        let size =
            blocking(move || Ok(image::disk_size(&image, &Cancel::new())?)).await.map_err(|error| {
                match error.kind {
                    Kind::Internal => Error { kind: Kind::BadInput, ..error }
                        .remedy("the disk was damaged or altered outside drydock; restore it"),
                    _ => error,
                }
            })?;
        if size != disk.size {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "{}: has {size} bytes, the VM's specification says {}",
                    disk.source.path().display(),
                    disk.size
                ),
            )
            .remedy("the disk or vm.json was altered outside drydock; restore it"));
        }
        sources.push(source);
    }
    Ok(sources)
}

/// The manifest of an RG disk on its way to the garage.
fn outbound(recovery: Uuid, mode: Mode, vm: SlotSpec, protector: &Protector, bundle: &Bundle) -> Result<Manifest> {
    let spec = &vm.spec;
    let disks = spec
        .disks
        .iter()
        .zip(0u32..)
        .map(|(disk, index)| garage::Disk {
            index,
            name: match mode {
                Mode::Copy => garage::layout::disk_name(index as usize),
                Mode::Overlay => garage::layout::overlay_serial(recovery, index as usize),
            },
            size: disk.size,
            serial: disk.serial.clone(),
            sha256: None,
        })
        .collect();
    Ok(Manifest {
        version: garage::manifest::VERSION,
        sequence: 1,
        recovery_id: recovery,
        vm_id: spec.id,
        vm_name: spec.name.clone(),
        direction: Direction::Outbound,
        mode,
        created: now(),
        disks,
        spec: serde_json::to_string(&vm).context(Kind::Internal, || "cannot write the specification".into())?,
        protector: protector.to_xml(),
        state_sha256: bundle.sha256(),
        receipt: None,
    })
}

/// Whether the file is this recovery's RG disk on its way to the garage.
///
/// # Errors
/// When the file cannot be read.
pub(super) async fn is_outbound(file: &Path, recovery: Uuid) -> Result<bool> {
    if !file.try_exists().context(Kind::Internal, || format!("cannot inspect {}", file.display()))? {
        return Ok(false);
    }
    let manifest = read(file).await?.raw.manifest;
    Ok(manifest.recovery_id == recovery && manifest.direction == Direction::Outbound)
}

/// Removes what a killed run left of an RG disk that it did not complete.
///
/// # Errors
/// When the file system refuses.
pub(super) fn discard(file: &Path) -> Result<()> {
    container::discard(file).map_err(lift)
}

/// What was handed back.
pub(super) struct Handback {
    pub(super) recovery_id: Uuid,
    pub(super) mode: Mode,
    pub(super) vm_id: Uuid,
    pub(super) generation: u64,
    pub(super) protector: Protector,
    pub(super) receipt: Vec<u8>,
}

impl Contents {
    /// The documents of the hand-back.
    ///
    /// # Errors
    /// `BadInput` when a document is missing or is not valid.
    pub(super) fn handback(&self) -> Result<Handback> {
        let manifest = &self.raw.manifest;
        let bad = |field: &str| format!("the RG disk's manifest: field '{field}'");
        let receipt = match (&manifest.receipt, manifest.direction) {
            (Some(receipt), Direction::Handback) => receipt.clone(),
            _ => {
                return Err(Error::new(Kind::BadInput, format!("{} is missing", bad("receipt")))
                    .remedy("have the owner run `drydock recovery finish` in the garage"));
            }
        };
        let again = || ALTERED.to_owned();
        let found: SlotSpec =
            serde_json::from_str(&manifest.spec).context(Kind::BadInput, || bad("spec")).or_next(again)?;
        let protector =
            Protector::parse(&manifest.protector).context(Kind::BadInput, || bad("protector")).or_next(again)?;
        Ok(Handback {
            recovery_id: manifest.recovery_id,
            mode: manifest.mode,
            vm_id: manifest.vm_id,
            generation: found.generation,
            protector,
            receipt,
        })
    }

    /// SHA-256 of the state that came back.
    pub(super) fn state_digest(&self) -> String {
        self.raw.bundle.sha256().to_string()
    }

    /// Unpacks the state that came back into the slot.
    ///
    /// # Errors
    /// `BadInput` when it does not fit together.
    pub(super) fn unpack(&self, slot: &Path) -> Result<()> {
        unpack(&self.raw.bundle, slot)
    }

    /// Copies disk `index` into the new raw image `target` and gives the digest of the copy: what was hashed is what
    /// will be used.
    ///
    /// # Errors
    /// `BadInput` when the disk is missing or of another size, `Interrupted` when the client went away.
    pub(super) async fn extract(&self, index: usize, target: &Path, size: u64, events: &Events) -> Result<String> {
        let part = self
            .raw
            .layout
            .disks()
            .get(index)
            .cloned()
            .ok_or_else(|| Error::new(Kind::BadInput, format!("the RG disk has no disk {index}")))?;
        let (path, to) = (self.path.clone(), target.to_path_buf());
        let message = format!("copying disk {index} back, and verifying it");
        work(events, "copy", message, move |progress, cancel| {
            container::extract_disk(&path, &part, &to, size, progress, cancel)
        })
        .await
        .map(|digest| digest.to_string())
    }
}
