//! Exclusive use of one VM, and what the agent keeps of it while it runs.

use std::path::Path;
use std::time::Duration;

use key_protector::{DerivedKey, TransportKey};
use machine::accel::Verdict;
use machine::record::SealedRecord;
use machine::{DiskSpec, Policy, RunningVm, VmSpec};
use outcome::{Context, Error, Events, Kind, Result};
use tokio::sync::OwnedMutexGuard;

use crate::api::HandedOver;
use crate::console::Console;
use crate::holder::Held;
use crate::vm_dir::VmDir;
use crate::vm_files::VmFiles;

/// How long a guest may take to shut down before the caller is told to use force.
const SHUTDOWN: Duration = Duration::from_secs(90);
/// HKDF label of the key that both hosts of a migration prove to have.
pub(crate) const MIGRATION_LABEL: &str = "drydock/migration/v1";

/// A VM that runs under this agent.
pub(crate) struct Live {
    pub(crate) running: RunningVm,
    /// The policy in the sealed record that it was started with; what the files say does not count.
    pub(crate) policy: Policy,
    pub(crate) console: Option<Console>,
    /// What QEMU was started with, without the disks of a recovery.
    spec: VmSpec,
    accel: Verdict,
    /// Derived from the transport key, of which nothing else is kept.
    migration: DerivedKey,
    /// It was started without the Host Guardian Service, with a key that this host kept.
    pub(crate) offline: bool,
}

impl Live {
    pub(crate) fn new(
        mut running: RunningVm,
        spec: &VmSpec,
        record: &SealedRecord,
        key: &TransportKey,
        accel: Verdict,
        offline: bool,
    ) -> Self {
        let console = running.take_console().map(Console::spawn);
        let migration = key.derive(MIGRATION_LABEL);
        Live { running, policy: record.policy, console, spec: spec.clone(), accel, migration, offline }
    }

    pub(crate) fn spec(&self) -> &VmSpec {
        &self.spec
    }

    pub(crate) fn accel(&self) -> &Verdict {
        &self.accel
    }

    /// The key that both hosts of a migration prove to have.
    pub(crate) fn migration_key(&self) -> &DerivedKey {
        &self.migration
    }
}

/// What can go wrong in a merge: on QEMU's side or on ours.
enum MergeError {
    Host(Error),
    Machine(machine::Error),
}

impl From<machine::Error> for MergeError {
    fn from(error: machine::Error) -> Self {
        MergeError::Machine(error)
    }
}

/// Exclusive use of one VM. Every other command is told that it is busy.
pub struct VmLock {
    dir: VmDir,
    // Dropped before the guard: whoever gets the VM next is not told of this command any more.
    _held: Held,
    live: OwnedMutexGuard<Option<Live>>,
}

impl VmLock {
    pub(crate) fn new(dir: VmDir, held: Held, live: OwnedMutexGuard<Option<Live>>) -> Self {
        VmLock { dir, _held: held, live }
    }

    /// The VM's directory.
    #[must_use]
    pub fn dir(&self) -> &VmDir {
        &self.dir
    }

    pub(crate) fn live(&self) -> Option<&Live> {
        self.live.as_ref()
    }

    pub(crate) fn set_live(&mut self, live: Live) {
        *self.live = Some(live);
    }

    /// Whether QEMU runs. This is where a guest that switched itself off is noticed.
    pub fn is_running(&mut self) -> bool {
        if self.live.as_mut().is_some_and(|live| !live.running.is_alive()) {
            *self.live = None;
        }
        self.live.is_some()
    }

    /// The QEMU of an earlier agent that was killed and left this VM running.
    ///
    /// # Errors
    /// When the VM's files are damaged.
    pub fn orphan(&mut self) -> Result<Option<u32>> {
        // Without a specification there is no VM, and nothing that could run.
        if self.is_running() || !self.dir.exists() {
            return Ok(None);
        }
        Ok(machine::find_qemu(self.dir.spec()?.id))
    }

    /// Refuses a VM that runs, or may run, out of this agent's reach, here or on another host.
    ///
    /// # Errors
    /// `WrongState`, naming the process or the host.
    pub fn refuse_orphan(&mut self) -> Result<()> {
        self.refuse_process()?;
        self.refuse_handed_over(self.dir.handed_over()?.as_ref())
    }

    /// The same with files that were read already.
    ///
    /// # Errors
    /// `WrongState`, naming the process or the host.
    pub(crate) fn refuse_elsewhere(&mut self, files: &VmFiles) -> Result<()> {
        if !self.is_running() {
            self.refuse_pid(machine::find_qemu(files.spec().id))?;
        }
        self.refuse_handed_over(files.handed_over())
    }

    fn refuse_handed_over(&self, handed_over: Option<&HandedOver>) -> Result<()> {
        let Some(HandedOver { to, .. }) = handed_over else { return Ok(()) };
        let name = self.dir.name();
        Err(Error::new(Kind::WrongState, format!("{name} was handed over to {to}, and may run there")).remedy(format!(
            "check on {to}: if {name} is there, delete it here: drydock vm delete {name}; if it is not and never will \
             be: drydock vm migrate {name} --take-back"
        )))
    }

    /// # Errors
    /// `WrongState`, naming the process of an earlier agent.
    pub(crate) fn refuse_process(&mut self) -> Result<()> {
        let orphan = self.orphan()?;
        self.refuse_pid(orphan)
    }

    fn refuse_pid(&self, orphan: Option<u32>) -> Result<()> {
        let Some(pid) = orphan else { return Ok(()) };
        let name = self.dir.name();
        Err(Error::new(
            Kind::WrongState,
            format!("{name} still runs as process {pid} of an earlier agent, which this one cannot control"),
        )
        .remedy(format!("shut it down from inside the guest, or: drydock vm stop {name} --force")))
    }

    /// Asks the guest to shut down and waits; with `force` the power is cut.
    ///
    /// # Errors
    /// `WrongState` when the guest does not react in time, or cannot be asked.
    pub async fn stop(&mut self, force: bool, events: &Events) -> Result<()> {
        if !self.is_running() {
            return match self.orphan()? {
                Some(pid) if force => machine::end_orphan(pid)
                    .await
                    .context(Kind::Internal, || format!("cannot end process {pid}, the QEMU of {}", self.dir.name())),
                _ => self.refuse_process(),
            };
        }
        let Some(live) = self.live.as_mut() else { return Ok(()) };
        if force {
            events.say("power-off", format!("cutting the power of {}", self.dir.name()));
            live.running.kill().await;
        } else {
            events.say("shut-down", format!("asking {} to shut down", self.dir.name()));
            live.running.shutdown(SHUTDOWN).await.map_err(|e| {
                Error::new(Kind::WrongState, format!("{} did not shut down", self.dir.name()))
                    .caused_by(&e)
                    .remedy(format!("drydock vm stop {} --force", self.dir.name()))
            })?;
        }
        *self.live = None;
        Ok(())
    }

    /// Attaches a disk now if the VM runs, and at every later start.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub async fn attach(&mut self, disk: &DiskSpec) -> Result<()> {
        self.refuse_orphan()?;
        let mut attached = self.dir.attached()?;
        if !attached.iter().any(|d| d.serial == disk.serial) {
            attached.push(disk.clone());
            self.dir.set_attached(&attached)?;
        }
        if self.is_running()
            && let Some(live) = self.live.as_mut()
            && !live.running.has_disk(&disk.serial)
        {
            live.running.attach_disk(disk).await.context(Kind::Internal, || {
                format!("QEMU did not attach {} to {}", disk.source.path().display(), self.dir.name())
            })?;
        }
        Ok(())
    }

    /// Lets `work` read an attached disk of the running VM through a socket while the guest uses it. `None` when the VM
    /// is off: then the image itself can be read.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub async fn beside<T>(&mut self, serial: &str, work: impl AsyncFnOnce(&Path) -> T) -> Result<Option<T>> {
        self.refuse_orphan()?;
        if !self.is_running() {
            return Ok(None);
        }
        let Some(live) = self.live.as_ref().filter(|live| live.running.has_disk(serial)) else { return Ok(None) };
        let directory =
            tempfile::tempdir().context(Kind::Internal, || "cannot make a directory for a socket".into())?;
        let socket = directory.path().join("nbd");
        live.running
            .serve_disk(serial, &socket)
            .await
            .context(Kind::Internal, || format!("cannot read disk {serial} while {} uses it", self.dir.name()))?;
        let result = work(&socket).await;
        live.running.stop_serving().await;
        Ok(Some(result))
    }

    /// Whether the VM is paused because the result of merging this disk could not be recorded.
    #[must_use]
    pub fn is_unsettled(&self, serial: &str) -> bool {
        self.live.as_ref().is_some_and(|live| live.running.is_unsettled(serial))
    }

    /// Merges the overlay of a disk of the running VM into the image under it; `merged` is the VM without the overlay.
    ///
    /// # Errors
    /// When QEMU refuses: the VM then keeps running, on both images.
    pub async fn merge_overlay(&mut self, serial: &str, message: &str, merged: &VmSpec, events: &Events) -> Result<()> {
        let Some(live) = self.live.as_ref() else {
            return Err(Error::new(Kind::WrongState, format!("{} is not running", self.dir.name())));
        };
        let dir = &self.dir;
        dir.prepare_spec(merged)?;
        live.running
            .merge_overlay(
                serial,
                |done, total| events.bytes("merge", message.to_owned(), done, total),
                || dir.switch_spec().map_err(MergeError::Host),
            )
            .await
            .map_err(|error| match error {
                MergeError::Host(error) => error.remedy(format!(
                    "{0} is paused until that is done: correct it and run the command again; drydock recovery status {0}",
                    dir.name()
                )),
                MergeError::Machine(error) => {
                    Error::new(Kind::Internal, format!("the disk {serial} of {} was not merged", dir.name()))
                        .caused_by(&error)
                        .remedy(format!("it keeps running; run the command again: drydock recovery status {}", dir.name()))
                }
            })
    }

    /// Detaches a disk, from the running VM too.
    ///
    /// # Errors
    /// `WrongState` when the guest does not release it.
    pub async fn detach(&mut self, serial: &str) -> Result<()> {
        self.refuse_orphan()?;
        if self.is_running()
            && let Some(live) = self.live.as_mut()
            && live.running.has_disk(serial)
        {
            live.running.detach_disk(serial).await.map_err(|e| {
                Error::new(Kind::WrongState, format!("{} does not release disk {serial}", self.dir.name()))
                    .caused_by(&e)
                    .remedy("finish or abort the recovery inside it first, or stop it")
            })?;
        }
        let mut attached = self.dir.attached()?;
        attached.retain(|d| d.serial != serial);
        self.dir.set_attached(&attached)
    }
}
