//! What a recovery does with the RG disk: the `garage` crate's operations with this crate's errors, progress and
//! types.

use std::path::{Path, PathBuf};

use garage::container;
use garage::device::Places;
use garage::{Bundle, Contents as RawContents, Device as RawDevice, Direction, Layout, Manifest, Mode};
use host::VmLock;
use host::store::VmDir;
use image::{Cancel, Format, Source};
use key_protector::Protector;
use machine::{DiskSpec, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::documents::Receipt;

/// What the manifest carries of the VM beside protector and state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    spec: VmSpec,
    /// The slot that the sealed state was, for which its record is made.
    generation: u64,
}

/// Where the garage finds disk `index`: a partition's name, or an overlay's serial number. udev links both to the
/// devices, on every boot anew.
fn place(mode: Mode, recovery: Uuid, index: usize) -> PathBuf {
    match mode {
        Mode::Copy => Places::default().by_partlabel.join(garage::layout::disk_name(index)),
        Mode::Overlay => garage::device::overlay_path(&Places::default(), recovery, index),
    }
}

/// The overlays of a recovery, as they are attached to the garage: each on one of the VM's disks.
pub(crate) fn overlays(dir: &Path, recovery: Uuid, vm: &VmSpec) -> Vec<DiskSpec> {
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
pub(crate) fn overlay(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("overlay-{index}.qcow2"))
}

/// Checks what the garage left in an overlay, as an image; what is in it, nobody but its owner can judge.
///
/// # Errors
/// `BadInput` when it is damaged.
pub(crate) async fn check_overlay(path: PathBuf, size: u64) -> Result<()> {
    blocking(move || Ok(image::overlay::check(&path, size, &Cancel::new())?)).await.map_err(not_ours_to_trust)
}

/// Merges an overlay into the image under it while no VM uses them.
///
/// # Errors
/// `Interrupted` when the client went away: both images together are the disk, as before.
pub(crate) async fn merge(index: usize, disk: &DiskSpec, backing: &Source, events: &Events) -> Result<()> {
    let (overlay, below) = (disk.source.path().to_owned(), backing.clone());
    work(events, "merge", format!("merging disk {index}"), move |progress, cancel| {
        Ok(image::overlay::merge(&overlay, &below, progress, cancel)?)
    })
    .await
}

/// Packs the sealed state of a slot.
pub(crate) fn pack(slot: &Path) -> Result<Bundle> {
    // The protector travels in the manifest, where it is read first; the bundle is what it locks.
    let bundle =
        Bundle::pack(slot).context(Kind::Internal, || format!("cannot pack the sealed state {}", slot.display()))?;
    let files = bundle.files().filter(|(name, _)| *name != PROTECTOR).map(|(n, c)| (n.to_owned(), c.to_vec()));
    Bundle::from_files(files).context(Kind::Internal, || format!("cannot pack the sealed state {}", slot.display()))
}

const PROTECTOR: &str = "protector.xml";

/// Makes the RG disk with the VM's sealed state, protector and specification on it, and its disks; or, in overlay
/// mode, empty overlays beside it.
///
/// # Errors
/// `Interrupted` when the client went away; nothing is left then.
pub(crate) async fn create(target: &Path, recovery: Uuid, vm: &VmDir, mode: Mode, events: &Events) -> Result<()> {
    let spec = vm.spec()?;
    let generation = vm.current()?;
    let protector = vm.protector(generation)?;
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
    let manifest = Manifest {
        version: garage::manifest::VERSION,
        sequence: 1,
        recovery_id: recovery,
        vm_id: spec.id,
        vm_name: spec.name.clone(),
        direction: Direction::Outbound,
        mode,
        created: now(),
        disks,
        spec: serde_json::to_string(&Shape { spec: spec.clone(), generation })
            .context(Kind::Internal, || "cannot write the specification".into())?,
        protector: protector.to_xml(),
        state_sha256: bundle.sha256(),
        receipt: None,
    };
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

fn now() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default()
}

/// The VM's shape on an RG disk, which must agree with the rest of the manifest.
fn shape(manifest: &Manifest, path: &Path) -> Result<Shape> {
    let path = path.display();
    let shape: Shape = serde_json::from_str(&manifest.spec)
        .context(Kind::BadInput, || format!("{path}: manifest: field 'spec' is not a VM specification"))
        .or_next(|| DAMAGED.into())?;
    let spec = &shape.spec;
    spec.validate().context(Kind::BadInput, || format!("{path}: manifest: field 'spec'")).or_next(|| DAMAGED.into())?;
    let same_disks = spec.disks.len() == manifest.disks.len()
        && spec.disks.iter().zip(&manifest.disks).all(|(s, m)| s.size == m.size && s.serial == m.serial);
    for (field, holds) in
        [("vm_id", spec.id == manifest.vm_id), ("vm_name", spec.name == manifest.vm_name), ("disks", same_disks)]
    {
        if !holds {
            return Err(Error::new(
                Kind::BadInput,
                format!("{path}: manifest: field '{field}' disagrees with the specification"),
            )
            .remedy("have the fabric admin abort and export again"));
        }
    }
    Ok(shape)
}

/// Whether the file is this recovery's RG disk on its way to the garage.
///
/// # Errors
/// When the file cannot be looked at.
pub(crate) async fn is_outbound(file: &Path, recovery: Uuid) -> Result<bool> {
    if !file.try_exists().context(Kind::Internal, || format!("cannot look at {}", file.display()))? {
        return Ok(false);
    }
    let manifest = read(file).await?.raw.manifest;
    Ok(manifest.recovery_id == recovery && manifest.direction == Direction::Outbound)
}

/// Removes what a killed run left of an RG disk that it did not complete.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn discard(file: &Path) -> Result<()> {
    container::discard(file).map_err(lift)
}

/// What a garage's host knows of the VM on an RG disk that came from another host.
pub(crate) struct Arrived {
    pub recovery_id: Uuid,
    pub spec: VmSpec,
    /// Of the RG disk, in bytes.
    pub size: u64,
}

/// Reads an RG disk that came from another host and is to go into a garage.
///
/// # Errors
/// `BadInput` for anything that is not an RG disk with its VM's disks on it, `WrongState` for one that was handed back.
pub(crate) async fn arrived(file: &Path) -> Result<Arrived> {
    let raw = read(file).await?.raw;
    let manifest = &raw.manifest;
    if manifest.direction != Direction::Outbound {
        return Err(Error::new(Kind::WrongState, format!("{} is handed back already", file.display()))
            .remedy("take it to the VM's host, and run there: drydock recovery reinstate VM --from FILE"));
    }
    if manifest.mode != Mode::Copy {
        return Err(Error::new(Kind::BadInput, format!("{}: the VM's disks are not on it", file.display()))
            .remedy("export it for another host: drydock recovery export VM --to-file PATH"));
    }
    let Shape { spec, .. } = shape(manifest, file)?;
    Protector::parse(&manifest.protector)
        .context(Kind::BadInput, || format!("{}: manifest: field 'protector' is not a key protector", file.display()))
        .or_next(|| DAMAGED.into())?;
    Ok(Arrived { recovery_id: manifest.recovery_id, spec, size: raw.layout.total() })
}

/// The RG disk that is attached to this garage.
pub(crate) struct Device {
    device: RawDevice,
    manifest: Manifest,
}

/// The damaged VM as it arrived.
pub(crate) struct Outbound {
    pub recovery_id: Uuid,
    pub mode: Mode,
    pub spec: VmSpec,
    pub generation: u64,
    pub protector: Protector,
    bundle: Bundle,
}

impl Outbound {
    /// Where disk `index` is in this garage.
    pub(crate) fn place(&self, index: usize) -> PathBuf {
        place(self.mode, self.recovery_id, index)
    }

    pub(crate) fn unpack(&self, slot: &Path) -> Result<()> {
        unpack(&self.bundle, slot)
    }
}

fn unpack(bundle: &Bundle, slot: &Path) -> Result<()> {
    bundle.unpack(slot).context(Kind::BadInput, || format!("cannot unpack the sealed state into {}", slot.display()))
}

/// Finds the RG disk and reads its manifest.
///
/// # Errors
/// `NotFound` when none is attached, `BadInput` when it is not one.
pub(crate) async fn open_device() -> Result<Device> {
    blocking(|| {
        let device = RawDevice::find(&Places::default())?;
        let manifest = device.manifest()?;
        Ok(Device { device, manifest })
    })
    .await
}

impl Device {
    pub(crate) fn recovery_id(&self) -> Uuid {
        self.manifest.recovery_id
    }

    /// # Errors
    /// `WrongState` for a disk that was handed back already, `BadInput` for one whose parts disagree.
    pub(crate) fn outbound(&self) -> Result<Outbound> {
        let (path, manifest) = (self.device.path().display(), &self.manifest);
        if manifest.direction != Direction::Outbound {
            return Err(Error::new(Kind::WrongState, format!("the repair of {} is finished", manifest.vm_name))
                .remedy(format!("the fabric admin now runs: drydock recovery reinstate {}", manifest.vm_name)));
        }
        let Shape { spec, generation } = shape(manifest, self.device.path())?;
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
    pub(crate) async fn close_disk(&self, index: usize, message: String, events: &Events) -> Result<Option<String>> {
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

    /// Writes the repaired VM's state and papers. The old ones are in force until the last write.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub(crate) async fn hand_back(
        &self,
        protector: &Protector,
        generation: u64,
        bundle: Bundle,
        receipt: &Receipt,
        document: Vec<u8>,
    ) -> Result<()> {
        let mut next = self.manifest.clone();
        let mut shape: Shape = serde_json::from_str(&next.spec)
            .context(Kind::BadInput, || "the RG disk's manifest: field 'spec' is not a VM specification".into())?;
        shape.generation = generation;
        next.spec =
            serde_json::to_string(&shape).context(Kind::Internal, || "cannot write the specification".into())?;
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

/// What came back on an RG disk, read by the host. Nothing in it is believed yet.
pub(crate) struct Contents {
    path: PathBuf,
    raw: RawContents,
}

/// The papers of a hand-back.
pub(crate) struct Handback {
    pub recovery_id: Uuid,
    pub mode: Mode,
    pub vm_id: Uuid,
    pub generation: u64,
    pub protector: Protector,
    pub receipt: Vec<u8>,
}

/// Refuses unless the owner has finished: an RG disk is never taken away from a repair under way.
///
/// # Errors
/// `WrongState` when the disk still travels outbound, `BadInput` when it cannot be read.
pub(crate) async fn require_handed_back(path: &Path, serial: &str, garage: Option<&mut VmLock>) -> Result<()> {
    let peek = async |socket: &Path| {
        let socket = socket.to_path_buf();
        blocking(move || container::peek(&socket)).await
    };
    let beside = match garage {
        Some(garage) => garage.beside(serial, peek).await?,
        None => None,
    };
    let manifest = match beside {
        Some(manifest) => manifest.map_err(not_ours_to_trust)?,
        None => read(path).await?.raw.manifest,
    };
    if manifest.direction == Direction::Handback {
        return Ok(());
    }
    Err(Error::new(Kind::WrongState, format!("the owner has not handed {} back yet", manifest.vm_name)).remedy(format!(
        "wait until they have run `drydock recovery finish` in the garage; to give up instead: drydock recovery abort {}",
        manifest.vm_name
    )))
}

/// Reads an RG disk that no VM has open.
///
/// # Errors
/// `BadInput`, naming what is wrong with it.
pub(crate) async fn read(path: &Path) -> Result<Contents> {
    let path = path.to_path_buf();
    blocking(move || {
        let raw = match container::read(&path) {
            // Its VM was killed; nobody uses it now, or QEMU's lock says so.
            Err(garage::Error::Image(image::Error::DirtyLog { .. })) => {
                image::replay_log(&path, &Cancel::new())?;
                container::read(&path)?
            }
            other => other?,
        };
        Ok(Contents { path, raw })
    })
    .await
    .map_err(not_ours_to_trust)
}

/// Whatever keeps an RG disk that was in others' hands from being read is a fault of the disk.
fn not_ours_to_trust(error: Error) -> Error {
    match error.kind {
        Kind::Internal => Error { kind: Kind::BadInput, ..error.remedy(DAMAGED) },
        _ => error,
    }
}

const DAMAGED: &str = "the RG disk is damaged or not one: abort the recovery and export again";

impl Contents {
    /// # Errors
    /// `BadInput` when a paper is missing or is not one.
    pub(crate) fn handback(&self) -> Result<Handback> {
        let manifest = &self.raw.manifest;
        let bad = |field: &str| format!("the RG disk's manifest: field '{field}'");
        let receipt = match (&manifest.receipt, manifest.direction) {
            (Some(receipt), Direction::Handback) => receipt.clone(),
            _ => {
                return Err(Error::new(Kind::BadInput, format!("{} is missing", bad("receipt")))
                    .remedy("have the owner run `drydock recovery finish` in the garage"));
            }
        };
        let again = || "it was altered or damaged after `recovery finish`; abort and start again".to_owned();
        let shape: Shape =
            serde_json::from_str(&manifest.spec).context(Kind::BadInput, || bad("spec")).or_next(again)?;
        let protector =
            Protector::parse(&manifest.protector).context(Kind::BadInput, || bad("protector")).or_next(again)?;
        Ok(Handback {
            recovery_id: manifest.recovery_id,
            mode: manifest.mode,
            vm_id: manifest.vm_id,
            generation: shape.generation,
            protector,
            receipt,
        })
    }

    pub(crate) fn state_digest(&self) -> String {
        self.raw.bundle.sha256().to_string()
    }

    pub(crate) fn unpack(&self, slot: &Path) -> Result<()> {
        unpack(&self.raw.bundle, slot)
    }

    /// Copies disk `index` into the new raw image `target` and gives the digest of the copy: what was hashed is what
    /// will be used.
    ///
    /// # Errors
    /// `BadInput` when the disk is missing or of another size, `Interrupted` when the client went away.
    pub(crate) async fn extract(&self, index: usize, target: &Path, size: u64, events: &Events) -> Result<String> {
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

/// Runs a long operation off the async threads, with progress, until the client goes away.
async fn work<T: Send + 'static>(
    events: &Events,
    step: &'static str,
    message: String,
    run: impl FnOnce(&dyn Fn(image::Progress), &Cancel) -> garage::Result<T> + Send + 'static,
) -> Result<T> {
    let events = events.clone();
    blocking(move || {
        let cancel = Cancel::new();
        let stop = cancel.clone();
        run(
            &|progress| {
                if events.abandoned() {
                    stop.cancel();
                }
                events.bytes(step, message.clone(), progress.bytes, progress.total);
            },
            &cancel,
        )
    })
    .await
}

async fn blocking<T: Send + 'static>(run: impl FnOnce() -> garage::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(run).await {
        Ok(result) => result.map_err(lift),
        Err(stopped) => Err(stopped).context(Kind::Internal, || "the work on the RG disk stopped".into()),
    }
}

fn lift(error: garage::Error) -> Error {
    use garage::Error as E;
    use image::Error as I;
    let (kind, remedy) = match &error {
        E::Image(I::Io { .. } | I::NotStarted { .. } | I::Tool { .. } | I::ToolAnswer { .. }) => (Kind::Internal, None),
        E::Image(I::ToolMissing { .. }) => (Kind::MissingTool, None),
        E::Exists { .. } => (Kind::WrongState, Some("nothing is overwritten: move the file away")),
        E::Image(I::Busy { .. }) => (Kind::Busy, Some("run the command again when that has ended")),
        E::NotFound { .. } => (
            Kind::NotFound,
            Some("have the fabric admin attach it: drydock recovery export VM --to THIS-GARAGE, on the host"),
        ),
        E::Image(I::Cancelled) => (Kind::Interrupted, Some("run the command again to go on")),
        _ => (Kind::BadInput, Some(DAMAGED)),
    };
    let lifted = Error::of(kind, &error);
    match remedy {
        Some(remedy) => lifted.remedy(remedy),
        None => lifted,
    }
}
