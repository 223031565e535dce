//! A recovery's journal: which steps are done, on stable storage, so that a command that was killed resumes where it
//! was; and the one piece of code that runs steps, and undoes them.
//!
//! ```text
//! STORE/recoveries/ID/journal.json
//! STORE/recoveries/ID/rg.vhdx          host side: the RG disk
//! STORE/recoveries/ID/overlay-N.qcow2  host side, overlay mode: what the repair changes of disk N
//! STORE/recoveries/ID/staging/         host side: the VM as it comes back; after the exchange, as it was
//! STORE/recoveries/ID/ingress.xml      garage side: the key protector that the VM arrived with
//! ```
//!
//! Where the garage is on another host, the RG disk is a file that its admins carry: the journal names it, on either
//! host.
//!
//! A step is recorded after its work. Every step can be repeated: a crash after the work and before the record repeats
//! it. So can every undo: a step may have been half done, or done and not recorded, when its undo runs.

use std::fs;
use std::path::{Path, PathBuf};

use durable::{parse_json, read_json, write_json};
use garage::Mode;
use host::Store;
use outcome::{Context, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::crash;
use crate::step::{self, Side, Step, Undo};

/// A step that is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The step.
    pub step: Step,
    /// When it was recorded, in seconds since the epoch.
    pub at: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    version: u32,
    id: Uuid,
    side: Side,
    vm: String,
    /// Counts the recoveries of this store, from 1.
    number: u64,
    /// The repair garage's name, known on its host.
    #[serde(default)]
    garage: Option<String>,
    /// The RG disk, where it travels between two hosts as a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// How the VM's disks travel.
    mode: Mode,
    steps: Vec<Entry>,
}

/// A recovery as one side of it begins.
#[derive(Debug, Clone, Copy)]
pub struct Beginning<'a> {
    /// The side.
    pub side: Side,
    /// The recovery's id, the same on every side.
    pub id: Uuid,
    /// The damaged VM's name.
    pub vm: &'a str,
    /// The repair garage's name, where it is a VM of this host.
    pub garage: Option<&'a str>,
    /// The RG disk, where it travels between two hosts as a file.
    pub file: Option<&'a Path>,
    /// How the VM's disks travel.
    pub mode: Mode,
}

/// The journal of one recovery, on one side.
#[derive(Debug, Clone)]
pub struct Journal {
    dir: PathBuf,
    data: Data,
}

/// What undoes the steps of one side.
pub(crate) trait Undoing {
    /// Undoes what it finds of a step.
    ///
    /// # Errors
    /// Whatever stands against it; the abort or rollback can be run again then.
    async fn undo(&mut self, action: Undo, journal: &mut Journal) -> Result<()>;
}

impl Journal {
    /// Starts a recovery's journal.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(store: &Store, beginning: Beginning<'_>) -> Result<Self> {
        let Beginning { side, id, vm, garage, file, mode } = beginning;
        let number = Journal::all(store)?.last().map_or(1, |last| last.data.number.saturating_add(1));
        let dir = store.recoveries().join(id.to_string());
        durable::private_dir(&dir).context(Kind::Internal, || format!("cannot make {}", dir.display()))?;
        let data = Data {
            version: 1,
            number,
            id,
            side,
            vm: vm.to_owned(),
            garage: garage.map(str::to_owned),
            file: file.map(Path::to_owned),
            mode,
            steps: Vec::new(),
        };
        let journal = Journal { dir, data };
        journal.write()?;
        Ok(journal)
    }

    fn load(dir: &Path) -> Result<Self> {
        Self::from_data(dir, read_json(&dir.join("journal.json"))?)
    }

    /// Reads the content of the journal in `dir`.
    ///
    /// # Errors
    /// `BadInput` naming the file.
    pub fn parse(dir: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_data(dir, parse_json(&dir.join("journal.json"), bytes)?)
    }

    fn from_data(dir: &Path, data: Data) -> Result<Self> {
        let path = dir.join("journal.json");
        if data.version != 1 {
            return Err(Error::new(Kind::BadInput, format!("{}: version {}", path.display(), data.version))
                .remedy("it was written by a newer drydock; use that one"));
        }
        Ok(Journal { dir: dir.to_path_buf(), data })
    }

    /// All journals of a store, the oldest first.
    ///
    /// # Errors
    /// When one is damaged.
    pub fn all(store: &Store) -> Result<Vec<Journal>> {
        let dir = store.recoveries();
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).context(Kind::Internal, || format!("cannot list {}", dir.display()))?.flatten()
        {
            if entry.path().join("journal.json").exists() {
                found.push(Journal::load(&entry.path())?);
            }
        }
        found.sort_by_key(|journal: &Journal| journal.data.number);
        Ok(found)
    }

    /// The open recovery of a VM.
    ///
    /// # Errors
    /// When a journal is damaged.
    pub fn open_for(store: &Store, vm: &str) -> Result<Option<Journal>> {
        Ok(Journal::all(store)?.into_iter().find(|j| j.data.vm == vm && !j.is_closed()))
    }

    /// The last recovery of a VM, open or closed.
    ///
    /// # Errors
    /// When a journal is damaged.
    pub fn last_for(store: &Store, vm: &str) -> Result<Option<Journal>> {
        Ok(Journal::all(store)?.into_iter().rfind(|j| j.data.vm == vm))
    }

    /// The recovery's id, the same on every side.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.data.id
    }

    /// The side that this journal is of.
    #[must_use]
    pub fn side(&self) -> Side {
        self.data.side
    }

    /// The damaged VM's name.
    #[must_use]
    pub fn vm(&self) -> &str {
        &self.data.vm
    }

    /// The repair garage's name, where it is a VM of this host.
    #[must_use]
    pub fn garage(&self) -> Option<&str> {
        self.data.garage.as_deref()
    }

    /// The RG disk as a file that travels from host to host; `None` where one host has both VMs.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.data.file.as_deref()
    }

    /// Where the RG disk is: the file that travels, or one of the recovery's own.
    pub(crate) fn rg_disk(&self) -> PathBuf {
        self.file().map_or_else(|| self.dir.join("rg.vhdx"), Path::to_owned)
    }

    /// Whether the export is complete: the VM is in the garage, or in the file that goes there.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        self.done(if self.data.file.is_some() { Step::RgDiskMade } else { Step::Attached })
    }

    /// How the VM's disks travel.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.data.mode
    }

    /// The recovery's directory, which holds the journal.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is done, in the order in which it was recorded.
    #[must_use]
    pub fn steps(&self) -> &[Entry] {
        &self.data.steps
    }

    /// Whether a step is recorded as done.
    #[must_use]
    pub fn done(&self, step: Step) -> bool {
        self.data.steps.iter().any(|e| e.step == step)
    }

    /// Whether the recovery has ended, in whatever way.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.done(Step::Closed) || self.done(Step::Aborted) || self.done(Step::RolledBack)
    }

    /// Runs a step's work, unless the step is recorded as done, and records it.
    ///
    /// # Errors
    /// Those of the work, and when the journal cannot be written.
    pub(crate) async fn step(&mut self, step: Step, work: impl AsyncFnOnce(&mut Journal) -> Result<()>) -> Result<()> {
        self.step_again_if(false, step, work).await
    }

    /// The same, for a step whose work is done once more where `again`, although it is recorded.
    ///
    /// # Errors
    /// Those of the work, and when the journal cannot be written.
    pub(crate) async fn step_again_if(
        &mut self,
        again: bool,
        step: Step,
        work: impl AsyncFnOnce(&mut Journal) -> Result<()>,
    ) -> Result<()> {
        if self.done(step) && !again {
            return Ok(());
        }
        self.repeat(step, work).await
    }

    /// Runs the work of a step every time, because what follows needs its value, which is not written down; and records
    /// the step the first time.
    ///
    /// # Errors
    /// Those of the work, and when the journal cannot be written.
    pub(crate) async fn repeat<T>(
        &mut self,
        step: Step,
        work: impl AsyncFnOnce(&mut Journal) -> Result<T>,
    ) -> Result<T> {
        let value = work(self).await?;
        self.record(step)?;
        Ok(value)
    }

    /// Undoes this side's steps, the last one first, clears the recovery's directory, and records the `end`.
    ///
    /// Steps that are not recorded are undone as well: the one that was under way when its command was killed is among
    /// them.
    ///
    /// # Errors
    /// Those of the undo actions, and when the journal cannot be written. What is undone stays undone; the rest is left to
    /// the next run.
    pub(crate) async fn undo(&mut self, end: Step, by: &mut impl Undoing) -> Result<()> {
        for row in step::of_side(self.side()).rev() {
            if row.undo != Undo::Nothing {
                by.undo(row.undo, self).await?;
            }
        }
        self.clear_files()?;
        self.record(end)
    }

    /// Records, durably, that a step is done. Recording it twice changes nothing.
    fn record(&mut self, step: Step) -> Result<()> {
        if self.done(step) {
            return Ok(());
        }
        crash::point(step, "before");
        self.data.steps.push(Entry { step, at: OffsetDateTime::now_utc().unix_timestamp() });
        self.write()?;
        crash::point(step, "after");
        Ok(())
    }

    /// Takes a record back, of a step that was undone and may be done again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn take_back(&mut self, step: Step) -> Result<()> {
        if !self.done(step) {
            return Ok(());
        }
        self.data.steps.retain(|e| e.step != step);
        self.write()
    }

    /// Removes everything in the recovery's directory but the journal itself, which stays as the record of what happened.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn clear_files(&self) -> Result<()> {
        for entry in
            fs::read_dir(&self.dir).context(Kind::Internal, || format!("cannot list {}", self.dir.display()))?.flatten()
        {
            if entry.file_name() == "journal.json" {
                continue;
            }
            let path = entry.path();
            let removed = fault::write()
                .and_then(|()| if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) });
            removed.context(Kind::Internal, || format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        write_json(&self.dir.join("journal.json"), &self.data)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn begin(store: &Store, side: Side, garage: Option<&str>) -> Journal {
        let beginning = Beginning { side, id: Uuid::new_v4(), vm: "dvm", garage, file: None, mode: Mode::Overlay };
        Journal::begin(store, beginning).unwrap()
    }

    #[test]
    fn steps_survive_a_restart() {
        let (_dir, store) = store();
        let mut journal = begin(&store, Side::Host, Some("vmre"));
        journal.record(Step::Held).unwrap();
        journal.record(Step::Held).unwrap();
        let again = Journal::open_for(&store, "dvm").unwrap().unwrap();
        assert!(again.done(Step::Held) && !again.done(Step::RgDiskMade));
        assert_eq!(again.steps().len(), 1);
        assert_eq!(again.garage(), Some("vmre"));
    }

    #[tokio::test]
    async fn a_step_is_done_once_and_its_failure_is_not_recorded() {
        let (_dir, store) = store();
        let mut journal = begin(&store, Side::Host, Some("vmre"));
        let failed = journal.step(Step::Held, async |_| Err(Error::new(Kind::Internal, "no"))).await;
        assert!(failed.is_err() && !journal.done(Step::Held));
        let mut runs = 0;
        for (again, expected) in [(false, 1), (false, 1), (true, 2)] {
            let count = async |_: &mut Journal| {
                runs += 1;
                Ok(())
            };
            journal.step_again_if(again, Step::Held, count).await.unwrap();
            assert_eq!(runs, expected);
        }
        for value in 0..2 {
            assert_eq!(journal.repeat(Step::Verified, async |_| Ok(value)).await.unwrap(), value);
        }
        assert_eq!(journal.steps().len(), 2);
        journal.take_back(Step::Held).unwrap();
        assert!(!Journal::open_for(&store, "dvm").unwrap().unwrap().done(Step::Held));
    }

    #[test]
    fn a_closed_recovery_is_not_open() {
        let (_dir, store) = store();
        let mut journal = begin(&store, Side::Garage, None);
        journal.record(Step::Aborted).unwrap();
        assert!(Journal::open_for(&store, "dvm").unwrap().is_none());
        assert!(Journal::last_for(&store, "dvm").unwrap().is_some());
    }

    #[test]
    fn a_damaged_journal_is_named() {
        let (_dir, store) = store();
        let journal = begin(&store, Side::Host, None);
        fs::write(journal.dir().join("journal.json"), b"{").unwrap();
        let error = Journal::open_for(&store, "dvm").unwrap_err();
        assert_eq!(error.kind, Kind::BadInput);
        assert!(error.message.contains("journal.json"));
    }
}
