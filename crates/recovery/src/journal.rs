//! A recovery's journal: which steps are done, on stable storage, so that a killed command goes on where it was.
//!
//! ```text
//! STORE/recoveries/ID/journal.json
//! STORE/recoveries/ID/rg.vhdx        host side: the RG disk
//! STORE/recoveries/ID/overlay-N.qcow2  host side, overlay mode: what the repair changes of disk N
//! STORE/recoveries/ID/staging/       host side: the VM as it comes back; after the exchange, as it was
//! STORE/recoveries/ID/slot/          garage side: state on its way to the RG disk
//! ```
//!
//! Where the garage is on another host, the RG disk is a file that its admins carry: the journal names it, on either
//! host.
//!
//! Every step is idempotent: a crash after the work and before the mark only repeats it.

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

/// Which machine this journal is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The guarded host: export and reinstate.
    Host,
    /// The garage's host, where that is another one: attach and detach.
    GarageHost,
    /// The repair garage: import and finish.
    Garage,
}

/// The steps of a recovery in their order, on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    // Host
    Held,
    NestedOn,
    RgDiskMade,
    Attached,
    Detached,
    Verified,
    Copied,
    Swapped,
    Started,
    Kept,
    Merged,
    // The garage's host, where that is another one
    GarageNested,
    PluggedIn,
    TakenOut,
    // Garage
    Imported,
    GuardianMade,
    Requested,
    Granted,
    PolicyLowered,
    PolicyRaised,
    HandedBack,
    Cleaned,
    // Both
    Closed,
    Aborted,
    RolledBack,
}

impl Step {
    /// All of them, in their order.
    pub const ALL: [Step; 25] = [
        Step::Held,
        Step::NestedOn,
        Step::RgDiskMade,
        Step::Attached,
        Step::Detached,
        Step::Verified,
        Step::Copied,
        Step::Swapped,
        Step::Started,
        Step::Kept,
        Step::Merged,
        Step::GarageNested,
        Step::PluggedIn,
        Step::TakenOut,
        Step::Imported,
        Step::GuardianMade,
        Step::Requested,
        Step::Granted,
        Step::PolicyLowered,
        Step::PolicyRaised,
        Step::HandedBack,
        Step::Cleaned,
        Step::Closed,
        Step::Aborted,
        Step::RolledBack,
    ];

    /// The command that does this step; where several do it, the one on the VM's host.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Step::Held | Step::NestedOn | Step::RgDiskMade | Step::Attached => "export",
            Step::Detached
            | Step::Verified
            | Step::Copied
            | Step::Swapped
            | Step::Started
            | Step::Merged
            | Step::Closed => "reinstate",
            Step::Kept => "reinstate --keep-original",
            Step::GarageNested | Step::PluggedIn => "attach",
            Step::TakenOut => "detach",
            Step::Imported | Step::GuardianMade | Step::Requested => "import",
            Step::Granted | Step::PolicyLowered => "import --grant",
            Step::PolicyRaised | Step::HandedBack | Step::Cleaned => "finish",
            Step::Aborted => "abort",
            Step::RolledBack => "rollback",
        }
    }
}

impl std::fmt::Display for Step {
    /// The name in the journal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub step: Step,
    /// Seconds since the epoch.
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

#[derive(Debug, Clone)]
pub struct Journal {
    dir: PathBuf,
    data: Data,
}

impl Journal {
    /// Starts a recovery's journal.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(
        store: &Store,
        side: Side,
        id: Uuid,
        vm: &str,
        garage: Option<&str>,
        file: Option<&Path>,
        mode: Mode,
    ) -> Result<Self> {
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

    #[must_use]
    pub fn id(&self) -> Uuid {
        self.data.id
    }

    #[must_use]
    pub fn side(&self) -> Side {
        self.data.side
    }

    #[must_use]
    pub fn vm(&self) -> &str {
        &self.data.vm
    }

    #[must_use]
    pub fn garage(&self) -> Option<&str> {
        self.data.garage.as_deref()
    }

    /// The RG disk as a file that is carried from host to host; `None` where one host has both VMs.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.data.file.as_deref()
    }

    /// Whether the export has come to its end: the VM is in the garage, or in the file that goes there.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        self.done(if self.data.file.is_some() { Step::RgDiskMade } else { Step::Attached })
    }

    #[must_use]
    pub fn mode(&self) -> Mode {
        self.data.mode
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn steps(&self) -> &[Entry] {
        &self.data.steps
    }

    #[must_use]
    pub fn done(&self, step: Step) -> bool {
        self.data.steps.iter().any(|e| e.step == step)
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.done(Step::Closed) || self.done(Step::Aborted) || self.done(Step::RolledBack)
    }

    /// Records, durably, that a step is done. Recording it twice changes nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark(&mut self, step: Step) -> Result<()> {
        if self.done(step) {
            return Ok(());
        }
        crash::point(step, "before");
        self.data.steps.push(Entry { step, at: OffsetDateTime::now_utc().unix_timestamp() });
        self.write()?;
        crash::point(step, "after");
        Ok(())
    }

    /// Takes a step back, for an operation that undid it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn unmark(&mut self, step: Step) -> Result<()> {
        self.data.steps.retain(|e| e.step != step);
        self.write()
    }

    /// Removes everything of the recovery but the journal itself, which stays as the record of what happened.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn clear_files(&self) -> Result<()> {
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

    #[test]
    fn steps_survive_a_restart() {
        let (_dir, store) = store();
        let mut journal =
            Journal::begin(&store, Side::Host, Uuid::new_v4(), "dvm", Some("vmre"), None, Mode::Overlay).unwrap();
        journal.mark(Step::Held).unwrap();
        journal.mark(Step::Held).unwrap();
        let again = Journal::open_for(&store, "dvm").unwrap().unwrap();
        assert!(again.done(Step::Held) && !again.done(Step::RgDiskMade));
        assert_eq!(again.steps().len(), 1);
        assert_eq!(again.garage(), Some("vmre"));
    }

    #[test]
    fn every_step_is_listed_once() {
        let names: std::collections::BTreeSet<String> = Step::ALL.iter().map(Step::to_string).collect();
        assert_eq!(names.len(), Step::ALL.len());
        assert!(Step::ALL.is_sorted());
        assert_eq!(Step::ALL.last(), Some(&Step::RolledBack), "a new last step is missing in ALL");
        assert_eq!(Step::ALL.len(), Step::RolledBack as usize + 1);
    }

    #[test]
    fn a_closed_recovery_is_not_open() {
        let (_dir, store) = store();
        let mut journal = Journal::begin(&store, Side::Garage, Uuid::new_v4(), "dvm", None, None, Mode::Copy).unwrap();
        journal.mark(Step::Aborted).unwrap();
        assert!(Journal::open_for(&store, "dvm").unwrap().is_none());
        assert!(Journal::last_for(&store, "dvm").unwrap().is_some());
    }

    #[test]
    fn a_damaged_journal_is_named() {
        let (_dir, store) = store();
        let journal = Journal::begin(&store, Side::Host, Uuid::new_v4(), "dvm", None, None, Mode::Copy).unwrap();
        fs::write(journal.dir().join("journal.json"), b"{").unwrap();
        let error = Journal::open_for(&store, "dvm").unwrap_err();
        assert_eq!(error.kind, Kind::BadInput);
        assert!(error.message.contains("journal.json"));
    }
}
