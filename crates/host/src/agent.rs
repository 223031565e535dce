//! The guarded-host agent: the only process that holds a running VM's keys and its monitor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use machine::accel::Chooser;
use outcome::{Error, Events, Kind, Result};
use time::OffsetDateTime;

use crate::api::{AgentInfo, OfflineStatus, PowerState, VmStatus};
use crate::holder::Holders;
use crate::keys::KeySource;
use crate::store::Store;
use crate::vm_dir::VmDir;
use crate::vm_files::VmFiles;
use crate::vm_lock::{Live, VmLock};
use crate::{offline, protector_update};

type Cell = Arc<tokio::sync::Mutex<Option<Live>>>;

/// Everything that a host's agent has: its store, where keys come from, and the VMs that run under it.
pub struct Agent {
    store: Store,
    keys: KeySource,
    accel: Arc<Chooser>,
    cells: Mutex<HashMap<String, Cell>>,
    holders: Holders,
}

impl Agent {
    /// An agent that runs no VM yet.
    #[must_use]
    pub fn new(store: Store, keys: KeySource, accel: Chooser) -> Self {
        Agent { store, keys, accel: Arc::new(accel), cells: Mutex::new(HashMap::new()), holders: Holders::default() }
    }

    /// Where its VMs are.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where its keys come from.
    #[must_use]
    pub fn keys(&self) -> &KeySource {
        &self.keys
    }

    pub(crate) fn accel(&self) -> &Arc<Chooser> {
        &self.accel
    }

    /// What the agent says of itself.
    #[must_use]
    pub fn info(&self) -> AgentInfo {
        let (mode, hgs) = match &self.keys {
            KeySource::Hgs(guarded) => ("guarded", Some(guarded.url().to_owned())),
            KeySource::Local(_) => ("local", None),
        };
        let accel = self.accel.last();
        AgentInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: mode.to_owned(),
            accelerator: accel.accel.to_string(),
            accelerator_reason: accel.reason,
            hgs,
        }
    }

    fn cell(&self, name: &str) -> Cell {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(name.to_owned()).or_default())
    }

    /// Takes an existing VM for one operation.
    ///
    /// # Errors
    /// `NotFound`, or `Busy` while another operation has it.
    pub fn lock(&self, name: &str) -> Result<VmLock> {
        let dir = self.store.vm(name)?;
        self.lock_dir(dir)
    }

    /// Takes a name for one operation, whether there is a VM behind it or not.
    ///
    /// # Errors
    /// `Busy` while another operation has it.
    pub fn lock_dir(&self, dir: VmDir) -> Result<VmLock> {
        match self.cell(dir.name()).try_lock_owned() {
            Ok(live) => {
                let held = self.holders.enter(dir.name());
                Ok(VmLock::new(dir, held, live))
            }
            Err(_) => Err(Error::new(
                Kind::Busy,
                format!("{} is being worked on: {}", dir.name(), self.holders.who(dir.name())),
            )
            .remedy("wait for that to end, then run this one again")),
        }
    }

    /// Stores an owner's signed protector update for the next start, or discards the one that waits.
    ///
    /// # Errors
    /// `BadInput` for an update of another protector; `WrongState` while a recovery holds the VM, and after a hand-over.
    pub fn set_protector(&self, vm: &mut VmLock, update: Option<&[u8]>) -> Result<()> {
        let files = VmFiles::read(vm.dir())?;
        vm.refuse_elsewhere(&files)?;
        let dir = files.dir();
        if let Some(hold) = files.hold() {
            return Err(Error::new(Kind::WrongState, format!("{} is in recovery: {}", dir.name(), hold.reason))
                .remedy(format!("drydock recovery status {}", dir.name())));
        }
        match update {
            None => dir.drop_protector_update(),
            Some(update) => {
                protector_update::verify(update, files.protector()?, OffsetDateTime::now_utc())?;
                dir.set_protector_update(update)
            }
        }
    }

    /// What is known of a VM now.
    ///
    /// # Errors
    /// When its files are damaged.
    pub fn status(&self, dir: &VmDir) -> Result<VmStatus> {
        let files = VmFiles::read(dir)?;
        let (spec, protector) = (files.spec(), files.parsed_protector()?);
        let owner = protector.owner().signing_certificate();
        let mut state = PowerState::Off;
        let mut pid = None;
        let mut started_offline = false;
        match self.cell(dir.name()).try_lock() {
            Err(_) => state = PowerState::Busy,
            Ok(mut live) => {
                if let Some(live) = live.as_mut().filter(|live| live.running.is_alive()) {
                    state = PowerState::Running;
                    pid = Some(live.running.pid());
                    started_offline = live.offline;
                } else if let Some(orphan) = machine::find_qemu(spec.id) {
                    state = PowerState::Orphaned;
                    pid = Some(orphan);
                }
            }
        }
        Ok(VmStatus {
            name: spec.name.clone(),
            id: spec.id,
            state,
            policy: spec.policy,
            console_profile: spec.console_profile,
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            nested: spec.nested,
            switch: spec.nics.iter().map(|n| n.switch.clone()).collect(),
            mac: spec.nics.iter().map(|n| n.mac.clone()).collect(),
            disks: spec.disks.iter().map(|d| d.source.path().display().to_string()).collect(),
            generation: files.slot(),
            owner: owner.common_name().to_owned(),
            owner_fingerprint: owner.fingerprint(),
            recovery: files.hold().cloned(),
            handed_over: files.handed_over().cloned(),
            offline: (self.keys.keeps_offline() && offline::allowed(protector) > 0)
                .then(|| OfflineStatus { remaining: offline::left(dir, protector), started: started_offline }),
            pid,
        })
    }

    /// Stops every VM: asked first, then by force. For the end of the agent.
    pub async fn stop_all(&self, events: &Events) {
        let names: Vec<String> = self.cells.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let stops = names.into_iter().map(|name| async move {
            let cell = self.cell(&name);
            let Ok(dir) = self.store.vm_dir(&name) else { return };
            let live = cell.lock_owned().await;
            let mut vm = VmLock::new(dir, self.holders.enter(&name), live);
            if let Err(error) = vm.stop(false, events).await {
                tracing::warn!(vm = name, %error, "cutting the power");
                let _ = vm.stop(true, events).await;
            }
        });
        // In parallel: one after the other would take minutes on a full host.
        join_all(stops).await;
    }
}
