//! The guarded-host agent: the only process that holds a running VM's keys and its monitor.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use key_protector::{DerivedKey, Protector, Rolled, TransportKey};
use machine::accel::{Chooser, Verdict};
use machine::proof::Proof;
use machine::record::SealedRecord;
use machine::{ConsoleProfile, DiskSpec, Policy, Running, StartOptions, VmSpec};
use time::OffsetDateTime;
use tokio::sync::OwnedMutexGuard;

use crate::api::{AgentInfo, OfflineStatus, PowerState, VmStatus};
use crate::console::Console;
use crate::holder::{Held, Holders, caller};
use crate::keys::{KeySource, Unreleased};
use crate::store::{Store, VmDir};
use crate::{change, offline, session};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};

/// How long a guest may take to shut down before the caller is told to use force.
const SHUTDOWN: Duration = Duration::from_secs(90);

/// A VM that runs under this agent.
pub(crate) struct Live {
    pub(crate) running: Running,
    /// The policy in the sealed record that it was started with; what the files say does not count.
    policy: Policy,
    console: Option<Console>,
    /// What QEMU was started with, disks of a recovery left out.
    spec: VmSpec,
    accel: Verdict,
    /// Derived from the transport key; all that is kept of it.
    migration: DerivedKey,
    /// It was started with a key that this host kept.
    offline: bool,
}

impl Live {
    pub(crate) fn new(
        mut running: Running,
        spec: &VmSpec,
        record: &SealedRecord,
        key: &TransportKey,
        accel: Verdict,
        offline: bool,
    ) -> Self {
        let console = running.take_console().map(Console::spawn);
        let migration = key.derive(crate::migration::LABEL);
        Live { running, policy: record.policy, console, spec: spec.clone(), accel, migration, offline }
    }

    pub(crate) fn spec(&self) -> &VmSpec {
        &self.spec
    }

    pub(crate) fn accel(&self) -> &Verdict {
        &self.accel
    }

    /// What both hosts of a migration prove to have.
    pub(crate) fn migration_key(&self) -> &DerivedKey {
        &self.migration
    }
}

type Cell = Arc<tokio::sync::Mutex<Option<Live>>>;

pub struct Agent {
    store: Store,
    keys: KeySource,
    accel: Arc<Chooser>,
    cells: Mutex<HashMap<String, Cell>>,
    holders: Holders,
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

/// Exclusive use of one VM. Everybody else is told that it is busy.
pub struct VmLock {
    dir: VmDir,
    // Before the guard: nobody who gets the VM next is still told of this one.
    _held: Held,
    live: OwnedMutexGuard<Option<Live>>,
}

impl VmLock {
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

    /// True while QEMU runs. A guest that switched itself off is noticed here.
    pub fn is_running(&mut self) -> bool {
        if self.live.as_mut().is_some_and(|live| !live.running.is_alive()) {
            *self.live = None;
        }
        self.live.is_some()
    }

    /// The QEMU of an earlier agent, killed meanwhile, that still runs this VM.
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

    /// Nothing may be done to a VM that runs out of this agent's hands, here or on another host, except to end it.
    ///
    /// # Errors
    /// `WrongState`, naming the process or the host.
    pub fn refuse_orphan(&mut self) -> Result<()> {
        self.refuse_process()?;
        let name = self.dir.name();
        match self.dir.handed_over()? {
            None => Ok(()),
            Some(handed_over) => Err(Error::new(
                Kind::WrongState,
                format!("{name} was handed over to {}, and may run there", handed_over.to),
            )
            .remedy(format!(
                "look there; if it is there, drydock vm delete {name}, here; if it is not and never will be, drydock vm \
                 migrate {name} --take-back"
            ))),
        }
    }

    /// # Errors
    /// `WrongState`, naming the process of an earlier agent.
    pub(crate) fn refuse_process(&mut self) -> Result<()> {
        let name = self.dir.name().to_owned();
        match self.orphan()? {
            None => Ok(()),
            Some(pid) => Err(Error::new(
                Kind::WrongState,
                format!("{name} still runs as process {pid} of an earlier agent, which this one cannot direct"),
            )
            .remedy(format!("shut it down from inside, or drydock vm stop {name} --force"))),
        }
    }

    /// Asks the guest to switch off and waits; with `force` the power is cut.
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

    /// Lets `work` read an attached disk of the running VM through a socket, beside the guest. `None` when the VM
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
        let folder = tempfile::tempdir().context(Kind::Internal, || "cannot make a folder for a socket".into())?;
        let socket = folder.path().join("nbd");
        live.running
            .serve_disk(serial, &socket)
            .await
            .context(Kind::Internal, || format!("cannot read disk {serial} beside {}", self.dir.name()))?;
        let result = work(&socket).await;
        live.running.stop_serving().await;
        Ok(Some(result))
    }

    /// Whether the VM is paused because a merge of this disk was not written down.
    #[must_use]
    pub fn is_unsettled(&self, serial: &str) -> bool {
        self.live.as_ref().is_some_and(|live| live.running.is_unsettled(serial))
    }

    /// Merges the overlay of a disk of the running VM into the image under it; `merged` is the VM without the overlay.
    ///
    /// # Errors
    /// When QEMU refuses: the VM runs on, on both images.
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
                    "{0} is paused until that is done: put it right and run the command again; drydock recovery status {0}",
                    dir.name()
                )),
                MergeError::Machine(error) => {
                    Error::new(Kind::Internal, format!("the disk {serial} of {} was not merged", dir.name()))
                        .caused_by(&error)
                        .remedy(format!("it runs on; run the command again: drydock recovery status {}", dir.name()))
                }
            })
    }

    /// Takes a disk out again, from the running VM too.
    ///
    /// # Errors
    /// `WrongState` when the guest does not let go of it.
    pub async fn detach(&mut self, serial: &str) -> Result<()> {
        self.refuse_orphan()?;
        if self.is_running()
            && let Some(live) = self.live.as_mut()
            && live.running.has_disk(serial)
        {
            live.running.detach_disk(serial).await.map_err(|e| {
                Error::new(Kind::WrongState, format!("{} does not let go of disk {serial}", self.dir.name()))
                    .caused_by(&e)
                    .remedy("finish or abort the recovery inside it first, or stop it")
            })?;
        }
        let mut attached = self.dir.attached()?;
        attached.retain(|d| d.serial != serial);
        self.dir.set_attached(&attached)
    }
}

impl Agent {
    #[must_use]
    pub fn new(store: Store, keys: KeySource, accel: Chooser) -> Self {
        Agent { store, keys, accel: Arc::new(accel), cells: Mutex::new(HashMap::new()), holders: Holders::default() }
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    #[must_use]
    pub fn keys(&self) -> &KeySource {
        &self.keys
    }

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
            Ok(live) => Ok(VmLock { _held: self.holders.enter(dir.name()), dir, live }),
            Err(_) => Err(Error::new(
                Kind::Busy,
                format!("{} is being worked on: {}", dir.name(), self.holders.who(dir.name())),
            )
            .remedy("wait for that to end, then run this one again")),
        }
    }

    /// Starts a VM: the key is released, rolled, the sealed state moved under the new key, and only then QEMU
    /// runs. While no Host Guardian Service answers, and if owner and fabric allow it, the key of the last start is
    /// used once more (see [`crate::offline`]).
    ///
    /// # Errors
    /// `KeyRelease` when no key comes, `Refused` when the sealed record says otherwise than the files.
    pub async fn start(&self, vm: &mut VmLock, events: &Events) -> Result<()> {
        self.start_with(vm, self.keys.keeps_offline(), events).await
    }

    /// The same for a VM that comes from elsewhere: the Host Guardian Service has to answer.
    ///
    /// # Errors
    /// Those of [`Agent::start`].
    pub async fn first_start(&self, vm: &mut VmLock, events: &Events) -> Result<()> {
        self.start_with(vm, false, events).await
    }

    async fn start_with(&self, vm: &mut VmLock, may_be_offline: bool, events: &Events) -> Result<()> {
        let name = vm.dir.name().to_owned();
        if vm.is_running() {
            return Err(Error::new(Kind::WrongState, format!("{name} is running already")));
        }
        if let Some(hold) = vm.dir.hold()?
            && !hold.may_start
        {
            return Err(Error::new(Kind::WrongState, format!("{name} cannot be started: {}", hold.reason))
                .remedy(format!("drydock recovery status {name}")));
        }
        vm.refuse_orphan()?;
        let spec = vm.dir.spec()?;
        if !spec.firmware.is_known() {
            return Err(Error::new(Kind::Refused, format!("{name}: 'firmware' in vm.json is not the distribution's"))
                .remedy("undo the edit: firmware measures the boot, and another one could give the guest's key away"));
        }
        let current = vm.dir.current()?;
        let protector = vm.dir.protector(current)?;
        let changed = Self::changed(&vm.dir, &protector, events)?;
        events.say("key-release", format!("asking for the key of {name}"));
        let opened = match self.keys.release(changed.as_ref().unwrap_or(&protector)).await {
            Ok(rolled) => {
                let rolled =
                    self.with_the_key_in_force(&vm.dir, current, &protector, changed.is_some(), rolled).await?;
                self.open_rolled(&vm.dir, &spec, current, &protector, rolled, events).await?
            }
            Err(Unreleased::Silence(error)) if may_be_offline => {
                self.open_offline(&vm.dir, &spec, current, &protector, error, events).await?
            }
            Err(Unreleased::Verdict(error)) => {
                // Whoever pulls the plug after a refusal gains nothing.
                self.drop_offline_key(&vm.dir, &spec).await;
                return Err(match changed {
                    None => error,
                    Some(_) => error.remedy(format!(
                        "the owner's new key protector does not open here: have them make another change, or take it back: \
                         drydock vm set-protector {name} --drop"
                    )),
                });
            }
            Err(unreleased) => return Err(unreleased.into()),
        };
        let Opened { slot, key, record, offline } = opened;

        let mut whole = spec.clone();
        whole.disks.extend(vm.dir.attached()?);
        let options = self.start_options(&name, record.policy).await?;
        let accel = options.accel.clone();
        events.say("start", format!("starting {name} under {} ({})", accel.accel, accel.reason));
        let started = Running::start(&whole, &vm.dir.slot(slot), &key, &record, options).await;
        let running = started.map_err(|error| not_started(&name, &error))?;
        *vm.live = Some(Live::new(running, &spec, &record, &key, accel, offline));
        Ok(())
    }

    /// How a VM with this sealed policy is started now.
    pub(crate) async fn start_options(&self, name: &str, policy: Policy) -> Result<StartOptions> {
        let chooser = Arc::clone(&self.accel);
        let accel = tokio::task::spawn_blocking(move || chooser.now())
            .await
            .context(Kind::Internal, || "the search for KVM stopped".into())?;
        Ok(StartOptions {
            accel,
            log_dir: self.store.logs(name),
            console: policy == Policy::EncryptionSupported,
            hidden: vec![self.store.root().to_path_buf()],
        })
    }

    /// A granted protector has the transport key that the state is under. A revocation has another one: then the
    /// protector in force opens the state, once more.
    async fn with_the_key_in_force(
        &self,
        dir: &VmDir,
        current: u64,
        protector: &Protector,
        changed: bool,
        rolled: Rolled,
    ) -> Result<Rolled> {
        if !changed || open_record(dir, current, &rolled, protector).is_ok() {
            return Ok(rolled);
        }
        let in_force = self.keys.roll(protector).await?;
        Ok(Rolled { ingress: in_force.ingress, ..rolled })
    }

    /// What a released key is for: the state goes into the next slot, under the new key.
    async fn open_rolled(
        &self,
        dir: &VmDir,
        spec: &VmSpec,
        current: u64,
        protector: &Protector,
        rolled: Rolled,
        events: &Events,
    ) -> Result<Opened> {
        let record = open_record(dir, current, &rolled, protector)?;
        check_record(spec, &record, current)?;
        events.say("reseal", "sealing the state under the new transport key");
        let Resealed { generation, record } = self.reseal(dir, current, &rolled, record).await?;
        // A crash before this leaves a change that leads from a protector of the past, and is void.
        dir.drop_change()?;
        if let Some(left) = self.keep_offline_key(dir, spec, &rolled).await {
            events.say(
                "offline",
                format!("this host keeps the key of {}: {left} starts without the Host Guardian Service", dir.name()),
            );
        }
        Ok(Opened { slot: generation, key: rolled.egress, record, offline: false })
    }

    /// The owner's new key protector, if there is a change that leads from this one.
    fn changed(dir: &VmDir, protector: &Protector, events: &Events) -> Result<Option<Protector>> {
        let Some(document) = dir.change()? else { return Ok(None) };
        match change::verify(&document, protector, OffsetDateTime::now_utc()) {
            Ok(to) => {
                events.say("protector", format!("{} gets the new key protector of its owner", dir.name()));
                Ok(Some(to))
            }
            Err(error) => {
                tracing::warn!(vm = dir.name(), %error, "a change of the key protector is void");
                events.say("protector", format!("the change of the key protector is void: {}", error.message));
                Ok(None)
            }
        }
    }

    /// Takes an owner's change of the key protector for the next start.
    ///
    /// # Errors
    /// `BadInput` for a change that is not for this; `WrongState` while a recovery holds the VM, and after a hand-over.
    pub fn set_protector(&self, vm: &mut VmLock, change: Option<&[u8]>) -> Result<()> {
        vm.refuse_orphan()?;
        let dir = &vm.dir;
        if let Some(hold) = dir.hold()? {
            return Err(Error::new(Kind::WrongState, format!("{} is in recovery: {}", dir.name(), hold.reason))
                .remedy(format!("drydock recovery status {}", dir.name())));
        }
        match change {
            None => dir.drop_change(),
            Some(change) => {
                change::verify(change, &dir.protector(dir.current()?)?, OffsetDateTime::now_utc())?;
                dir.set_change(change)
            }
        }
    }

    /// Without a service there is nobody who could sign another protector: slot and key stay what they are. The start
    /// is counted before the key is used for anything; one that fails later is counted too.
    async fn open_offline(
        &self,
        dir: &VmDir,
        spec: &VmSpec,
        current: u64,
        protector: &Protector,
        mut silence: Error,
        events: &Events,
    ) -> Result<Opened> {
        let Some(keys) = self.keys.offline_keys() else { return Err(silence) };
        let name = dir.name();
        let taken = match keys.take(dir, spec.id, protector).await {
            Ok(taken) => taken,
            Err(why) => {
                silence.causes.push(why.message);
                silence.causes.extend(why.causes);
                return Err(silence);
            }
        };
        let left = taken.remaining;
        tracing::warn!(vm = name, protector = protector.digest(), left, "started without the Host Guardian Service");
        offline::note(&self.store.logs(name), protector, left)?;
        events.say(
            "offline",
            format!("no Host Guardian Service answers: {name} starts with the key that this host kept ({left} such starts left)"),
        );
        let record = open_record_with(dir, current, &taken.key, protector)?;
        check_record(spec, &record, current)?;
        Ok(Opened { slot: current, key: taken.key, record, offline: true })
    }

    /// After a roll: keeps the new key if owner and fabric allow it, and nothing older in any case. A VM is not kept
    /// from running because its next start would need the service. Returns how many starts the key is good for.
    pub(crate) async fn keep_offline_key(&self, dir: &VmDir, spec: &VmSpec, rolled: &Rolled) -> Option<u32> {
        let allowed = self.keys.keeps_offline() && offline::allowed(&rolled.egress_protector) > 0;
        if allowed && let Some(keys) = self.keys.offline_keys() {
            match keys.keep(dir, spec.id, rolled).await {
                Ok(left) => return Some(left),
                Err(error) => {
                    tracing::warn!(vm = dir.name(), %error, causes = ?error.causes, "no key is kept for offline starts");
                }
            }
        }
        self.drop_offline_key(dir, spec).await;
        None
    }

    async fn drop_offline_key(&self, dir: &VmDir, spec: &VmSpec) {
        if let Some(keys) = self.keys.offline_keys()
            && let Err(error) = keys.forget(dir, spec.id).await
        {
            tracing::warn!(vm = dir.name(), %error, causes = ?error.causes, "a kept key could not be forgotten");
        }
    }

    /// Forgets a key that was kept for starts without the Host Guardian Service: the VM leaves this host, or goes back
    /// to an earlier state.
    ///
    /// # Errors
    /// When its file cannot be removed, or this host's TPM does not follow.
    pub async fn forget_offline_key(&self, dir: &VmDir) -> Result<()> {
        match self.keys.offline_keys() {
            Some(keys) => keys.forget(dir, dir.spec()?.id).await,
            None => Ok(()),
        }
    }

    /// Moves a VM's sealed state into the next slot, under the egress key, and puts that in force.
    ///
    /// # Errors
    /// When it cannot be written; the old slot then stays in force.
    pub async fn reseal(&self, dir: &VmDir, from: u64, rolled: &Rolled, record: SealedRecord) -> Result<Resealed> {
        let generation = from
            .checked_add(1)
            .ok_or_else(|| Error::new(Kind::BadInput, format!("the generation of {} is exhausted", dir.name())))?;
        let record = SealedRecord { generation, ..record };
        let slot = dir.fresh_slot(generation)?;
        machine::state::reseal(
            &dir.slot(from),
            &rolled.ingress,
            &slot,
            &rolled.egress,
            &record,
            &rolled.egress_protector.digest(),
        )
        .await
        .map_err(|error| {
            let message = format!("cannot seal the state of {} again", dir.name());
            let slot = dir.slot(from);
            match error.kind() {
                "vars-format" | "vars-sealed" => Error::new(Kind::BadInput, message)
                    .caused_by(&error)
                    .remedy(format!("the UEFI variables in {} were damaged or altered; restore them", slot.display())),
                _ => Error::new(Kind::Internal, message).caused_by(&error).remedy(format!(
                    "if {} was altered, or is another VM's or time's, put back what belongs there",
                    slot.display()
                )),
            }
        })?;
        dir.write_protector(generation, &rolled.egress_protector)?;
        dir.switch_to(generation, from)?;
        Ok(Resealed { generation, record })
    }

    /// What a running VM exposes, found out now.
    ///
    /// # Errors
    /// `WrongState` when it does not run under this agent.
    pub async fn proof(&self, name: &str) -> Result<Proof> {
        let mut vm = self.lock(name)?;
        vm.refuse_orphan()?;
        if vm.is_running()
            && let Some(live) = &*vm.live
        {
            return live.running.proof().await.context(Kind::Internal, || format!("cannot look at {name}"));
        }
        Err(Error::new(Kind::WrongState, format!("{name} is off, and exposes nothing"))
            .remedy(format!("drydock vm start {name}")))
    }

    /// A stream to the console, for the policies that have one.
    ///
    /// # Errors
    /// `Refused` for a shielded VM, whatever its files say.
    pub async fn console(&self, name: &str) -> Result<tokio::net::UnixStream> {
        let mut vm = self.lock(name)?;
        if !vm.is_running() {
            // The files are not to be trusted, but refusing on their word is safe.
            if vm.dir.spec()?.policy == Policy::Shielded {
                return Err(console_refused(name));
            }
            return Err(
                Error::new(Kind::WrongState, format!("{name} is off")).remedy(format!("drydock vm start {name}"))
            );
        }
        let live = vm.live.as_ref().ok_or_else(|| console_refused(name))?;
        match (&live.console, live.policy) {
            (Some(console), Policy::EncryptionSupported) => {
                console.attach().await.context(Kind::Internal, || format!("the console of {name} is gone"))
            }
            _ => Err(console_refused(name)),
        }
    }

    /// A stream to the service that the guest has for it, for VMs of console profile 2019. A session that is open ends.
    ///
    /// # Errors
    /// `Refused` for a VM of profile 2016, whatever its files say.
    pub async fn session(&self, name: &str) -> Result<tokio::net::UnixStream> {
        let mut vm = self.lock(name)?;
        vm.refuse_orphan()?;
        if !vm.is_running() && vm.dir.spec()?.console_profile == ConsoleProfile::Server2016 {
            return Err(session_refused(name));
        }
        let Some(live) = &*vm.live else {
            return Err(
                Error::new(Kind::WrongState, format!("{name} is off")).remedy(format!("drydock vm start {name}"))
            );
        };
        let opened = live.running.open_session().await.map_err(|error| match error {
            machine::Error::Policy { .. } => session_refused(name),
            error => Error::new(Kind::Internal, format!("no session with {name} could be opened")).caused_by(&error),
        })?;
        tracing::info!(vm = name, by = caller(), "a session was opened");
        session::spawn(opened, name.to_owned()).context(Kind::Internal, || format!("cannot carry a session of {name}"))
    }

    /// Lowers or raises the policy of a VM that is off. Local mode only; the new policy is sealed under a new key.
    ///
    /// # Errors
    /// `Refused` on a guarded host.
    pub async fn set_policy(&self, vm: &mut VmLock, policy: Policy, events: &Events) -> Result<()> {
        let name = vm.dir.name().to_owned();
        if !self.keys.is_local() {
            return Err(Error::new(Kind::Refused, format!("the policy of {name} cannot be changed on a guarded host"))
                .remedy("its owner changes it where they hold a guardian's private key: in a repair garage"));
        }
        if vm.is_running() {
            return Err(
                Error::new(Kind::WrongState, format!("{name} is running")).remedy(format!("drydock vm stop {name}"))
            );
        }
        let mut spec = vm.dir.spec()?;
        let current = vm.dir.current()?;
        let protector = vm.dir.protector(current)?;
        let rolled = self.keys.roll(&protector).await?;
        let record = open_record(&vm.dir, current, &rolled, &protector)?;
        // A run that was killed after the reseal left the file behind: the sealed policy is the true one.
        spec.policy = record.policy;
        check_record(&spec, &record, current)?;
        events.say("reseal", "sealing the policy under a new transport key");
        self.reseal(&vm.dir, current, &rolled, SealedRecord { policy, ..record }).await?;
        spec.policy = policy;
        vm.dir.write_spec(&spec)
    }

    /// # Errors
    /// When its files are damaged.
    pub fn status(&self, dir: &VmDir) -> Result<VmStatus> {
        let spec = dir.spec()?;
        let generation = dir.current()?;
        let protector = dir.parsed_protector(generation)?;
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
            name: spec.name,
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
            generation,
            owner: owner.common_name().to_owned(),
            owner_fingerprint: owner.fingerprint(),
            recovery: dir.hold()?,
            handed_over: dir.handed_over()?,
            offline: (self.keys.keeps_offline() && offline::allowed(&protector) > 0)
                .then(|| OfflineStatus { remaining: offline::left(dir, &protector), started: started_offline }),
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
            let mut vm = VmLock { _held: self.holders.enter(&name), dir, live };
            if let Err(error) = vm.stop(false, events).await {
                tracing::warn!(vm = name, %error, "cutting the power");
                let _ = vm.stop(true, events).await;
            }
        });
        // One after the other would take minutes on a full host.
        futures_join(stops).await;
    }
}

async fn futures_join(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut pending: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        pending.retain_mut(|f| f.as_mut().poll(cx).is_pending());
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// The slot that a VM starts from, and what opens it.
struct Opened {
    slot: u64,
    key: TransportKey,
    record: SealedRecord,
    offline: bool,
}

/// A slot that was just put in force.
pub struct Resealed {
    pub generation: u64,
    pub record: SealedRecord,
}

/// Why a VM did not start. That it exposes too much is a refusal, and no fault of its files.
pub(crate) fn not_started(name: &str, error: &machine::Error) -> Error {
    let message = format!("{name} did not start");
    match error {
        machine::Error::Exposed { .. } => Error::new(Kind::Refused, message).caused_by(error).remedy(
            "what was found contradicts what every VM is started with: look for other programs of these names, or              for what changed on this host; drydock doctor",
        ),
        _ => Error::new(Kind::Internal, message).caused_by(error),
    }
}

fn console_refused(name: &str) -> Error {
    Error::new(Kind::Refused, format!("{name} is shielded: it has no console, and none can be opened on this host"))
        .remedy(format!("its owner gets one in a repair garage: drydock recovery export {name} --to GARAGE"))
}

fn session_refused(name: &str) -> Error {
    Error::new(Kind::Refused, format!("{name} has console profile 2016: no session with it can be opened")).remedy(
        format!(
            "its owner gets a console in a repair garage: drydock recovery export {name} --to GARAGE; the profile is \
             chosen when a VM is made: drydock vm create --console-profile 2019"
        ),
    )
}

/// Opens the sealed record of a slot with the key that its protector released.
///
/// # Errors
/// `Refused` when the record does not open or is not this VM's.
pub fn open_record(dir: &VmDir, slot: u64, rolled: &Rolled, protector: &Protector) -> Result<SealedRecord> {
    open_record_with(dir, slot, &rolled.ingress, protector)
}

fn open_record_with(dir: &VmDir, slot: u64, key: &TransportKey, protector: &Protector) -> Result<SealedRecord> {
    let id = dir.spec()?.id;
    machine::state::open_record(&dir.slot(slot), key, id, &protector.digest()).context(Kind::Refused, || {
        format!(
            "the sealed state of {} does not belong to its key protector: it was altered, or taken from another VM or time",
            dir.name()
        )
    })
    .or_next(|| "put the slot back that belongs to this VM; while it is in recovery: drydock recovery abort".into())
}

/// The files around the sealed record may have been edited; where they disagree with it, nothing starts.
///
/// # Errors
/// `Refused`, naming the field.
pub fn check_record(spec: &VmSpec, record: &SealedRecord, slot: u64) -> Result<()> {
    let field = if record.policy != spec.policy {
        Some("policy")
    } else if record.console_profile != spec.console_profile {
        Some("console_profile")
    } else if record.generation != slot {
        Some("generation")
    } else if record.nics != spec.nics.iter().map(|n| n.mac.clone()).collect::<Vec<_>>() {
        Some("nics")
    } else if record.disks.len() != spec.disks.len()
        || record.disks.iter().zip(&spec.disks).any(|(r, s)| r.serial != s.serial || r.size != s.size)
    {
        Some("disks")
    } else {
        None
    };
    match field {
        None => Ok(()),
        Some(field) => Err(Error::new(
            Kind::Refused,
            format!("{}: '{field}' in the VM's files is not what its owner sealed", spec.name),
        )
        .remedy("undo the edit; what is sealed can be changed by the owner only")),
    }
}
