//! A live VM: QEMU and swtpm, and the only control channel to them.
//!
//! ```text
//! start ── QEMU greets, runs, has no forbidden device ──> running ── guest off ──────> ended
//!   └── anything fails ──> both killed                      ├──────── kill, dropped ──> ended
//!                                                           └──────── either dies ────> ended
//! ```
//! One task owns both processes. Whichever ends first, the other is ended and both are reaped, and
//! the network ports are removed.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use confine::view;
use key_protector::TransportKey;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use crate::accel::{Accel, Verdict};
use crate::disk::CheckedDisk;
use crate::process::{Process, Program, QEMU, Rights};
use crate::proof::{self, FileId, Proof, Subject, file_id};
use crate::qemu::{self, Fds, HOT_PORTS, Launch};
use crate::qmp::{Command, Qmp};
use crate::record::SealedRecord;
use crate::session::Sessions;
use crate::spec::{DiskSpec, Policy, VmSpec};
use crate::user::{Pair, User};
use crate::{Error, Result, disk, state, swtpm, tap};

/// How a VM is started, beside what it is.
#[derive(Clone, Debug)]
pub struct StartOptions {
    pub accel: Verdict,
    /// Gets `qemu.log` and `swtpm.log`; made if missing.
    pub log_dir: PathBuf,
    /// A serial console. Refused for a shielded VM.
    pub console: bool,
    /// Folders that its processes do not see, beside [`view::HIDDEN`]: the store.
    pub hidden: Vec<PathBuf>,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The guest switched itself off, or was asked to.
    pub clean: bool,
    /// For people.
    pub reason: String,
}

/// From QEMU's start to its control channel's greeting; minutes would mean that it hangs.
const START: Duration = Duration::from_secs(60);
/// A guest acknowledges the unplugging of a PCIe device after five seconds at the earliest.
const DETACH: Duration = Duration::from_secs(60);
/// A guest that was still booting missed the power button; it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(10);
const SWTPM_END: Duration = Duration::from_secs(5);
/// What a disk that is shown, and its listener, are called in QEMU.
const SERVED: &str = "served";

/// A live VM. Dropping it cuts the power.
pub struct Running {
    qmp: Qmp,
    pid: u32,
    kill: mpsc::Sender<()>,
    exit: watch::Receiver<Option<Exit>>,
    console: Option<UnixStream>,
    disks: Mutex<Disks>,
    subject: Mutex<Subject>,
    sessions: tokio::sync::Mutex<Sessions>,
}

/// The disks that the VM has now.
pub(crate) struct Disks {
    pub(crate) attached: Vec<Attached>,
    /// Node and device names are never used twice.
    next_index: usize,
    free_ports: Vec<usize>,
}

pub(crate) struct Attached {
    serial: String,
    pub(crate) index: usize,
    /// QEMU's name for the image that the guest uses.
    pub(crate) node: String,
    port: usize,
    /// In the sealed record: part of the VM, cannot be taken out.
    pub(crate) sealed: bool,
    /// An operation on it is under way.
    pub(crate) busy: bool,
    /// Its overlay was merged and nobody has written that down: the guest is paused.
    pub(crate) unsettled: bool,
}

impl Running {
    /// Starts the VM `spec` on the state in `slot`, which `key` opens and whose record is `record`.
    /// Disks behind the record's own are attached too and can be detached again.
    ///
    /// # Errors
    /// [`Error::RecordMismatch`] when `spec` is not what was sealed; [`Error::Policy`]; whatever
    /// keeps QEMU or swtpm from starting, with the end of their logs. Nothing is left running.
    pub async fn start(
        spec: &VmSpec,
        slot: &Path,
        key: &TransportKey,
        record: &SealedRecord,
        options: StartOptions,
    ) -> Result<Self> {
        Self::launch(spec, slot, key, record, options, false).await
    }

    /// Starts QEMU and swtpm for the same VM without its guest, whose state is to come from another host; `slot` is one
    /// of [`state::prepare`].
    ///
    /// # Errors
    /// As for [`Running::start`].
    pub async fn incoming(
        spec: &VmSpec,
        slot: &Path,
        key: &TransportKey,
        record: &SealedRecord,
        options: StartOptions,
    ) -> Result<Self> {
        Self::launch(spec, slot, key, record, options, true).await
    }

    async fn launch(
        spec: &VmSpec,
        slot: &Path,
        key: &TransportKey,
        record: &SealedRecord,
        options: StartOptions,
        incoming: bool,
    ) -> Result<Self> {
        spec.validate()?;
        record.check(spec)?;
        if options.console && record.policy == Policy::Shielded {
            return Err(Error::Policy { what: "a console".into() });
        }
        if !incoming {
            swtpm::require_state(&slot.join(state::VTPM))?;
        }
        let (own, attached) = spec.disks.split_at(record.disks.len());
        let disks =
            own.iter().map(disk::check_own).chain(attached.iter().map(disk::check)).collect::<Result<Vec<_>>>()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&options.log_dir)
            .map_err(Error::io("create", &options.log_dir))?;

        let users = Pair::of(spec.id)?;
        let written = disks.iter().map(CheckedDisk::written).collect::<Result<Vec<_>>>()?.concat();
        let hidden = options.hidden.iter().cloned().chain(view::HIDDEN.map(PathBuf::from)).collect();
        let spent: Vec<usize> = disks.iter().enumerate().flat_map(|(index, disk)| disk.spent_sets(index)).collect();
        let mut ports = Ports::default();
        if let Err(error) = ports.plug(spec, users.qemu).await {
            ports.unplug().await;
            return Err(error);
        }
        let what = What { spec, slot, key, options: &options, incoming };
        let parts = match launch(&what, users, disks, &ports.taps) {
            Ok(parts) => parts,
            Err(error) => {
                ports.unplug().await;
                return Err(error);
            }
        };
        let (exit_sender, mut exit) = watch::channel(None);
        let (kill, killed) = mpsc::channel(1);
        let pid = parts.qemu.child.id().unwrap_or_default();
        let swtpm = parts.swtpm.child.id().unwrap_or_default();
        let console = options.console;
        let (policy, console_profile) = (record.policy, record.console_profile);
        let mut subject = Subject { qemu: pid, swtpm, policy, console, console_profile, written, hidden };
        subject.written.push(parts.vars);
        tokio::spawn(supervise(parts.qemu, parts.swtpm, ports, killed, exit_sender));

        match greet(parts.qmp, &subject, &spent, incoming).await {
            Ok(qmp) => Ok(Self {
                qmp,
                pid,
                kill,
                exit,
                console: parts.console,
                disks: Mutex::new(Disks::new(spec, record)),
                subject: Mutex::new(subject),
                sessions: tokio::sync::Mutex::default(),
            }),
            Err(error) => {
                // If QEMU is ending by itself, its own words are wanted rather than "killed".
                if matches!(error, Error::QmpClosed) {
                    let _ = tokio::time::timeout(SWTPM_END, ended(&mut exit)).await;
                }
                drop(kill);
                let exit = ended(&mut exit).await;
                Err(match error {
                    Error::QmpClosed => Error::Ended { reason: exit.reason },
                    error => error,
                })
            }
        }
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// The serial console, once, if the VM has one.
    pub fn take_console(&mut self) -> Option<UnixStream> {
        self.console.take()
    }

    /// What it exposes now.
    ///
    /// # Errors
    /// When it has ended, or cannot be looked at.
    pub async fn proof(&self) -> Result<Proof> {
        proof::take(&self.qmp, &self.subject(), true).await
    }

    /// What must hold for a VM to run, as after every start.
    pub(crate) async fn require_proof(&self) -> Result<()> {
        proof::take(&self.qmp, &self.subject(), false).await?.require()
    }

    pub(crate) fn subject(&self) -> Subject {
        self.subject.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the VM's end.
    pub async fn wait(&self) -> Exit {
        ended(&mut self.exit.clone()).await
    }

    /// Cuts the power and waits until both processes are gone.
    pub async fn kill(&self) {
        // full or closed: it is being killed, or has ended
        let _ = self.kill.try_send(());
        self.wait().await;
    }

    /// Asks the guest to switch off and waits. After an error the VM still runs.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the guest does not comply in time.
    pub async fn shutdown(&self, deadline: Duration) -> Result<Exit> {
        let late = || Error::Deadline { what: "the guest's shutdown", seconds: deadline.as_secs() };
        let end = Instant::now() + deadline;
        loop {
            match self.qmp.execute(Command::SystemPowerdown, json!({})).await {
                // it may have switched itself off in this moment
                Ok(_) | Err(Error::QmpClosed) => {}
                Err(error) => return Err(error),
            }
            let until = end.min(Instant::now() + PRESS_AGAIN);
            if let Ok(exit) = tokio::time::timeout_at(until, self.wait()).await {
                return Ok(exit);
            }
            if Instant::now() >= end {
                return Err(late());
            }
        }
    }

    /// Whether a disk with this serial number is attached.
    pub fn has_disk(&self, serial: &str) -> bool {
        self.disks().attached.iter().any(|d| d.serial == serial)
    }

    /// Attaches a disk to the running VM.
    ///
    /// # Errors
    /// [`Error::NoFreePort`]; [`Error::DiskImage`] for an image that must not be used; QEMU's refusal.
    pub async fn attach_disk(&self, spec: &DiskSpec) -> Result<()> {
        let checked = disk::check(spec)?;
        let (index, port) = self.disks().reserve(spec)?;
        let node = qemu::disk_node(index);
        let (sets, blockdev) = (checked.sets(index), checked.blockdev(index));
        let written = checked.written()?;
        self.subject.lock().unwrap_or_else(PoisonError::into_inner).written.extend(written);
        let result = async {
            for (set, file) in sets.iter().zip(checked.into_files()) {
                self.qmp.add_fd(*set, file).await?;
            }
            let added = self.qmp.execute(Command::BlockdevAdd, blockdev).await;
            for set in sets {
                self.qmp.release(set).await?;
            }
            added?;
            let device = qemu::disk_device(spec, index, port);
            let plugged = self.qmp.execute(Command::DeviceAdd, device).await;
            if plugged.is_err() {
                self.drop_node(&node).await;
            }
            plugged
        }
        .await;
        self.disks().settle(index, result.is_ok());
        result.map(|_| ())
    }

    /// Takes a disk out of the running VM, when the guest lets go of it.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the guest does not; [`Error::DiskAttachment`] for a disk that is not
    /// attached or is part of the VM.
    pub async fn detach_disk(&self, serial: &str) -> Result<()> {
        let index = self.disks().claim(serial)?;
        let result = self.unplug(index).await;
        self.disks().settle(index, result.is_err());
        result
    }

    async fn unplug(&self, index: usize) -> Result<()> {
        self.remove_device(&qemu::disk_id(index), "the guest's release of a disk").await?;
        self.qmp.execute(Command::BlockdevDel, json!({"node-name": qemu::disk_node(index)})).await.map(|_| ())
    }

    /// Takes a device out and waits until it is gone; `what` is what then did not happen in time.
    pub(crate) async fn remove_device(&self, id: &str, what: &'static str) -> Result<()> {
        let mut events = self.qmp.events();
        match self.qmp.execute(Command::DeviceDel, json!({"id": id})).await {
            Ok(_) => {}
            // asked before and still waiting for the guest
            Err(Error::Qmp { description, .. }) if description.contains("in the process of unplug") => {}
            Err(error) => return Err(error),
        }
        let gone = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.name == "DEVICE_DELETED" && event.data["device"] == id => {
                        return Ok(());
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(Error::QmpClosed),
                }
            }
        };
        tokio::select! {
            gone = tokio::time::timeout(DETACH, gone) => {
                gone.map_err(|_| Error::Deadline { what, seconds: DETACH.as_secs() })?
            }
            exit = self.wait() => Err(Error::Ended { reason: exit.reason }),
        }
    }

    /// Serves an attached disk over NBD, to be read beside the guest. `socket` must be in a folder that nobody
    /// else can enter; QEMU cannot either, and inherits the listener. End it with [`Running::stop_serving`].
    ///
    /// # Errors
    /// [`Error::DiskAttachment`] for a disk that is not attached or is part of the VM.
    pub async fn serve_disk(&self, serial: &str, socket: &Path) -> Result<()> {
        let refuse = |reason| Error::DiskAttachment { serial: serial.to_owned(), reason };
        let index = match self.disks().attached.iter().find(|d| d.serial == serial) {
            None => return Err(refuse("is not attached")),
            Some(disk) if disk.sealed => return Err(refuse("is part of the VM and is shown to nobody")),
            Some(disk) if disk.busy => return Err(refuse("is being attached or detached")),
            Some(disk) => disk.index,
        };
        self.listen(socket, json!({})).await?;
        let export = json!({
            "type": "nbd", "id": SERVED, "node-name": qemu::disk_node(index), "name": "", "writable": false,
        });
        let served = self.qmp.execute(Command::BlockExportAdd, export).await;
        if served.is_err() {
            self.stop_serving().await;
        }
        served.map(|_| ())
    }

    /// Starts QEMU's NBD server on a listener that it inherits. `limits` are further arguments.
    pub(crate) async fn listen(&self, socket: &Path, mut limits: Value) -> Result<()> {
        let listener = UnixListener::bind(socket).map_err(Error::io("listen on", socket))?;
        self.qmp.get_fd(SERVED, listener.into()).await?;
        limits["addr"] = json!({"type": "fd", "data": {"str": SERVED}});
        self.qmp.execute(Command::NbdServerStart, limits).await.map(drop)
    }

    /// Ends what serves disks.
    pub async fn stop_serving(&self) {
        if let Err(error) = self.qmp.execute(Command::NbdServerStop, json!({})).await {
            tracing::warn!(%error, "QEMU goes on serving a disk");
        }
    }

    /// Whether the guest is paused because a merge of this disk was not written down.
    pub fn is_unsettled(&self, serial: &str) -> bool {
        self.disks().attached.iter().any(|disk| disk.serial == serial && disk.unsettled)
    }

    /// The index by which the nodes of one of the VM's own disks are named.
    pub(crate) fn own_disk_index(&self, serial: &str) -> Result<usize> {
        let refuse = |reason| Error::DiskAttachment { serial: serial.to_owned(), reason };
        match self.disks().attached.iter().find(|disk| disk.serial == serial) {
            None => Err(refuse("is not attached")),
            Some(disk) if !disk.sealed => Err(refuse("is not part of the VM: what lies under it is only read")),
            Some(disk) => Ok(disk.index),
        }
    }

    pub(crate) fn set_unsettled(&self, index: usize, unsettled: bool) {
        if let Some(disk) = self.disks().attached.iter_mut().find(|disk| disk.index == index) {
            disk.unsettled = unsettled;
        }
    }

    /// A disk's overlay was merged and that was written down.
    pub(crate) fn set_merged(&self, index: usize) {
        if let Some(disk) = self.disks().attached.iter_mut().find(|disk| disk.index == index) {
            disk.unsettled = false;
            disk.node = disk::backing_node(&disk.node);
        }
    }

    pub(crate) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    pub(crate) fn sessions(&self) -> &tokio::sync::Mutex<Sessions> {
        &self.sessions
    }

    pub(crate) async fn drop_node(&self, node: &str) {
        let arguments = json!({"node-name": node});
        if let Err(error) = self.qmp.execute(Command::BlockdevDel, arguments).await {
            tracing::warn!(node, %error, "QEMU keeps a disk image open");
        }
    }

    pub(crate) fn disks(&self) -> std::sync::MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disks {
    fn new(spec: &VmSpec, record: &SealedRecord) -> Self {
        let used = spec.disks.len();
        let first_hot = used + spec.nics.len();
        Self {
            attached: spec
                .disks
                .iter()
                .enumerate()
                .map(|(index, disk)| Attached {
                    serial: disk.serial.clone(),
                    index,
                    node: qemu::disk_node(index),
                    port: index,
                    sealed: index < record.disks.len(),
                    busy: false,
                    unsettled: false,
                })
                .collect(),
            next_index: used,
            free_ports: (first_hot..first_hot + HOT_PORTS).rev().collect(),
        }
    }

    fn reserve(&mut self, spec: &DiskSpec) -> Result<(usize, usize)> {
        let seen = spec.serial_seen();
        if self.attached.iter().any(|d| d.serial.starts_with(seen)) {
            return Err(Error::DiskAttachment {
                serial: spec.serial.clone(),
                reason: "a disk with this serial number is attached already",
            });
        }
        let port = self.free_ports.pop().ok_or(Error::NoFreePort)?;
        let index = self.next_index;
        self.next_index += 1;
        self.attached.push(Attached {
            serial: spec.serial.clone(),
            index,
            node: qemu::disk_node(index),
            port,
            sealed: false,
            busy: true,
            unsettled: false,
        });
        Ok((index, port))
    }

    fn claim(&mut self, serial: &str) -> Result<usize> {
        let refuse = |reason| Error::DiskAttachment { serial: serial.to_owned(), reason };
        let disk = self.attached.iter_mut().find(|d| d.serial == serial).ok_or_else(|| refuse("is not attached"))?;
        if disk.sealed {
            return Err(refuse("is part of the VM and cannot be taken out"));
        }
        if disk.busy {
            return Err(refuse("is being attached or detached"));
        }
        disk.busy = true;
        Ok(disk.index)
    }

    /// Ends an operation: the disk is attached now, or it is gone and its port free.
    fn settle(&mut self, index: usize, attached: bool) {
        let Some(at) = self.attached.iter().position(|d| d.index == index) else {
            return;
        };
        if attached {
            self.attached[at].busy = false;
        } else {
            let gone = self.attached.remove(at);
            self.free_ports.push(gone.port);
        }
    }
}

/// Network ports that exist because of this VM.
#[derive(Default)]
struct Ports {
    taps: Vec<String>,
}

impl Ports {
    async fn plug(&mut self, spec: &VmSpec, user: User) -> Result<()> {
        for (index, nic) in spec.nics.iter().enumerate() {
            let name = tap::tap_name(spec.id, index);
            tap::create(&name, &nic.switch, user).await?;
            self.taps.push(name);
        }
        Ok(())
    }

    async fn unplug(self) {
        for name in &self.taps {
            tap::remove(name).await;
        }
    }
}

struct Parts {
    qemu: Process,
    swtpm: Process,
    qmp: UnixStream,
    console: Option<UnixStream>,
    vars: FileId,
}

/// What is started.
struct What<'a> {
    spec: &'a VmSpec,
    slot: &'a Path,
    key: &'a TransportKey,
    options: &'a StartOptions,
    /// Without its guest, whose state comes from another host.
    incoming: bool,
}

fn launch(what: &What<'_>, users: Pair, disks: Vec<CheckedDisk>, taps: &[String]) -> Result<Parts> {
    let &What { spec, slot, key, options, incoming } = what;
    const FDS: Fds = Fds { qmp: 3, tpm: 4, vars_key: 5, console: Some(6), vars: 7, first_image: 8 };
    let slot = std::path::absolute(slot).map_err(Error::io("find", slot))?;
    let fds = Fds { console: FDS.console.filter(|_| options.console), ..FDS };
    let args = qemu::argv(&Launch { spec, disks: &disks, taps, accel: &options.accel, fds, incoming })?;
    let vars = disk::open(&slot.join(state::VARS), true)?;
    let vars_id = file_id(&vars.metadata().map_err(Error::io("look at", &slot))?);
    let (tpm, tpm_control) = StdStream::pair().map_err(Error::system("make a socket pair"))?;
    let (qmp, qmp_theirs) = our_pair()?;
    let mut inherited = vec![
        (qmp_theirs.into(), fds.qmp),
        (tpm.into(), fds.tpm),
        (state::vars_secret(key, users.qemu)?, fds.vars_key),
        (vars.into(), fds.vars),
    ];
    inherited.extend(disks.into_iter().flat_map(CheckedDisk::into_files).zip(fds.first_image..));
    let console = match fds.console {
        None => None,
        Some(number) => {
            let (ours, theirs) = our_pair()?;
            inherited.push((theirs.into(), number));
            Some(ours)
        }
    };
    let log = |name: &str| Some(options.log_dir.join(name));
    let hidden = &options.hidden;
    let rights = Rights { user: users.swtpm, kvm: false, hidden, folder: None };
    let swtpm = swtpm::spawn(&slot.join(state::VTPM), rights, key, tpm_control.into(), log("swtpm.log"))?;
    let rights = Some(Rights { user: users.qemu, kvm: options.accel.accel == Accel::Kvm, hidden, folder: None });
    let qemu = Program { name: QEMU, rights, args, fds: inherited, log: log("qemu.log") }.spawn()?;
    Ok(Parts { qemu, swtpm, qmp, console, vars: vars_id })
}

/// A socket pair without a name in any file system: our end, and the one to pass on.
pub(crate) fn our_pair() -> Result<(UnixStream, StdStream)> {
    let (ours, theirs) = StdStream::pair().map_err(Error::system("make a socket pair"))?;
    ours.set_nonblocking(true).map_err(Error::system("set up a socket"))?;
    let ours = UnixStream::from_std(ours).map_err(Error::system("set up a socket"))?;
    Ok((ours, theirs))
}

/// Waits until QEMU runs the guest, or is ready to take its state, and looks at what the VM exposes: what counts is
/// what was made of it.
async fn greet(stream: UnixStream, subject: &Subject, spent: &[usize], incoming: bool) -> Result<Qmp> {
    let wanted = if incoming { "inmigrate" } else { "running" };
    let work = async {
        let qmp = Qmp::connect(stream).await?;
        loop {
            let status = qmp.execute(Command::QueryStatus, json!({})).await?;
            match status["status"].as_str() {
                Some(status) if status == wanted => break,
                Some("prelaunch") => tokio::time::sleep(Duration::from_millis(50)).await,
                other => {
                    return Err(Error::Ended { reason: format!("QEMU is {}", other.unwrap_or("in no state")) });
                }
            }
        }
        for set in [qemu::VARS_SET].iter().chain(spent) {
            qmp.release(*set).await?;
        }
        proof::take(&qmp, subject, false).await?.require()?;
        Ok(qmp)
    };
    tokio::time::timeout(START, work)
        .await
        .map_err(|_| Error::Deadline { what: "QEMU's start", seconds: START.as_secs() })?
}

async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone(),
        Err(_) => None,
    }
    .unwrap_or_else(|| Exit { clean: false, reason: "its supervisor is gone".into() })
}

async fn supervise(
    mut qemu: Process,
    mut swtpm: Process,
    ports: Ports,
    mut killed: mpsc::Receiver<()>,
    exit: watch::Sender<Option<Exit>>,
) {
    let outcome = tokio::select! {
        status = qemu.child.wait() => Some(status),
        status = swtpm.child.wait() => {
            qemu.kill().await;
            let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
            let reason = swtpm.failure(status).await.to_string();
            ports.unplug().await;
            exit.send_replace(Some(Exit { clean: false, reason }));
            return;
        }
        // a message, or the VM's handle was dropped
        _ = killed.recv() => None,
    };
    if outcome.is_none() {
        qemu.kill().await;
    }
    // It ends by itself once QEMU is gone.
    if tokio::time::timeout(SWTPM_END, swtpm.child.wait()).await.is_err() {
        swtpm.kill().await;
    }
    ports.unplug().await;
    let result = match outcome {
        None => Exit { clean: false, reason: "its power was cut".into() },
        Some(Ok(status)) if status.success() => Exit { clean: true, reason: "the guest switched off".into() },
        Some(Ok(status)) => Exit { clean: false, reason: qemu.failure(status.to_string()).await.to_string() },
        Some(Err(error)) => Exit { clean: false, reason: error.to_string() },
    };
    exit.send_replace(Some(result));
}
