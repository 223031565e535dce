//! The RG disk as every side of a recovery knows it: the `garage` crate's operations with this crate's errors, progress
//! and types. What only one side does with it is in that side's own `rg`.

use std::path::{Path, PathBuf};

use garage::container;
use garage::{Bundle, Contents as RawContents, Direction, Manifest, Mode};
use host::VmLock;
use image::{Cancel, Format, Source};
use machine::{DiskSpec, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::journal::Journal;

/// The remedy for an RG disk that cannot be read.
pub(crate) const DAMAGED: &str =
    "the RG disk is damaged, or the file is not an RG disk: abort the recovery and export again";
/// The remedy for one that is not what the owner handed back.
pub(crate) const ALTERED: &str = "it was altered or damaged after `recovery finish`; abort and start again";

/// What the manifest carries of the VM besides protector and state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlotSpec {
    pub(crate) spec: VmSpec,
    /// The slot that the sealed state was, for which its record is made.
    pub(crate) generation: u64,
}

/// The RG disk as a garage gets it.
pub(crate) fn rg_disk(path: &Path, size: u64, recovery: Uuid) -> DiskSpec {
    DiskSpec::new(Source::new(path, Format::Vhdx), rg_serial(recovery), size)
}

/// The RG disk's serial number, by which it is found for detaching.
#[must_use]
pub(crate) fn rg_serial(recovery: Uuid) -> String {
    format!("rg-{}", &recovery.simple().to_string()[..16])
}

/// The serial numbers of the overlays on a VM's `disks`, as a garage gets them. None where the disks are on the RG disk.
pub(crate) fn overlay_serials(journal: &Journal, disks: usize) -> Vec<String> {
    let overlays = if journal.mode() == Mode::Overlay { disks } else { 0 };
    (0..overlays).map(|index| garage::layout::overlay_serial(journal.id(), index)).collect()
}

/// The VM's specification on an RG disk, which must agree with the rest of the manifest.
///
/// # Errors
/// `BadInput`, naming the field.
pub(crate) fn slot_spec(manifest: &Manifest, path: &Path) -> Result<SlotSpec> {
    let path = path.display();
    let found: SlotSpec = serde_json::from_str(&manifest.spec)
        .context(Kind::BadInput, || format!("{path}: manifest: field 'spec' is not a VM specification"))
        .or_next(|| DAMAGED.into())?;
    let spec = &found.spec;
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
    Ok(found)
}

/// Packs the sealed state of a slot.
///
/// # Errors
/// When the slot cannot be read.
pub(crate) fn pack(slot: &Path) -> Result<Bundle> {
    const PROTECTOR: &str = "protector.xml";
    // The protector travels in the manifest, where it is read first; the bundle is what it locks.
    let bundle =
        Bundle::pack(slot).context(Kind::Internal, || format!("cannot pack the sealed state {}", slot.display()))?;
    let files = bundle.files().filter(|(name, _)| *name != PROTECTOR).map(|(n, c)| (n.to_owned(), c.to_vec()));
    Bundle::from_files(files).context(Kind::Internal, || format!("cannot pack the sealed state {}", slot.display()))
}

/// Unpacks sealed state into the slot.
///
/// # Errors
/// `BadInput` when it does not fit together.
pub(crate) fn unpack(bundle: &Bundle, slot: &Path) -> Result<()> {
    bundle.unpack(slot).context(Kind::BadInput, || format!("cannot unpack the sealed state into {}", slot.display()))
}

/// What is on an RG disk, read by a host. Nothing in it is believed yet.
pub(crate) struct Contents {
    pub(crate) path: PathBuf,
    pub(crate) raw: RawContents,
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

/// Whatever keeps an RG disk from being read that was in others' hands is a fault of the disk.
pub(crate) fn not_ours_to_trust(error: Error) -> Error {
    match error.kind {
        Kind::Internal => Error { kind: Kind::BadInput, ..error.remedy(DAMAGED) },
        _ => error,
    }
}

/// Runs a long operation off the async threads, with progress, until the client goes away.
pub(crate) async fn work<T: Send + 'static>(
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

/// Runs an operation off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(run: impl FnOnce() -> garage::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(run).await {
        Ok(result) => result.map_err(lift),
        Err(stopped) => Err(stopped).context(Kind::Internal, || "the work on the RG disk stopped".into()),
    }
}

/// An error of the `garage` crate as one of this crate.
pub(crate) fn lift(error: garage::Error) -> Error {
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
        E::Image(I::Cancelled) => (Kind::Interrupted, Some("run the command again to resume")),
        _ => (Kind::BadInput, Some(DAMAGED)),
    };
    let lifted = Error::of(kind, &error);
    match remedy {
        Some(remedy) => lifted.remedy(remedy),
        None => lifted,
    }
}

/// Seconds since the epoch, for a manifest.
pub(crate) fn now() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default()
}
