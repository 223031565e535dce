//! Starting a VM: QEMU and swtpm, checked before anything counts as started.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use confine::view;
use key_protector::TransportKey;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::argv::{Fds, VmArgs, argv};
use super::blockdev;
use super::devices::Disks;
use super::exposure::{Subject, inspect};
use super::file_id::{FileId, file_id};
use super::nodes::VARS_SET;
use super::qmp::{Command, Qmp, run_state};
use super::running::RunningVm;
use super::supervisor::{Exit, SWTPM_END, ended, supervise};
use crate::accel::{Accel, Verdict};
use crate::disk::{self, CheckedDisk};
use crate::error::{Error, Result};
use crate::process::{Process, Program, QEMU, Rights, socket_pair};
use crate::sealed::{SealedRecord, slot, swtpm};
use crate::spec::{Policy, VmSpec};
use crate::tap::Taps;
use crate::user::Pair;

/// How a VM is started, as opposed to what it is.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// What executes the guest's instructions.
    pub accel: Verdict,
    /// Gets `qemu.log` and `swtpm.log`; created if missing.
    pub log_dir: PathBuf,
    /// A serial console. Refused for a shielded VM.
    pub console: bool,
    /// Directories that its processes do not see, in addition to [`view::HIDDEN`]: the store.
    pub hidden: Vec<PathBuf>,
}

/// From QEMU's start to its control channel's greeting; minutes would mean that it hangs.
const START: Duration = Duration::from_secs(60);

/// What is started.
struct Start<'a> {
    spec: &'a VmSpec,
    slot: &'a Path,
    key: &'a TransportKey,
    record: &'a SealedRecord,
    options: StartOptions,
    /// Without its guest, whose state arrives from another host.
    incoming: bool,
}

impl RunningVm {
    /// Starts the VM `spec` on the state in the directory `slot`, which `key` opens and whose record is `record`.
    /// Disks behind the record's own are attached too and can be detached again.
    ///
    /// # Errors
    /// [`Error::RecordMismatch`] when `spec` is not what was sealed; [`Error::Policy`]; [`Error::Exposed`]; whatever
    /// keeps QEMU or swtpm from starting, with the end of their logs. Nothing is left running.
    pub async fn start(
        spec: &VmSpec,
        slot: &Path,
        key: &TransportKey,
        record: &SealedRecord,
        options: StartOptions,
    ) -> Result<Self> {
        Start { spec, slot, key, record, options, incoming: false }.run().await
    }

    /// Starts QEMU and swtpm for the same VM without its guest, whose state arrives from another host; `slot` is one of
    /// [`slot::prepare`].
    ///
    /// # Errors
    /// As for [`RunningVm::start`].
    pub async fn start_incoming(
        spec: &VmSpec,
        slot: &Path,
        key: &TransportKey,
        record: &SealedRecord,
        options: StartOptions,
    ) -> Result<Self> {
        Start { spec, slot, key, record, options, incoming: true }.run().await
    }
}

impl Start<'_> {
    async fn run(self) -> Result<RunningVm> {
        let disks = self.check()?;
        let options = &self.options;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&options.log_dir)
            .map_err(Error::io("create", &options.log_dir))?;
        let users = Pair::of(self.spec.id)?;
        let mut written = disks.iter().map(blockdev::written).collect::<Result<Vec<_>>>()?.concat();
        let spent: Vec<usize> =
            disks.iter().enumerate().flat_map(|(index, disk)| blockdev::spent_sets(disk, index)).collect();
        let mut taps = Taps::default();
        let spawned = match taps.create(self.spec, users.qemu).await {
            Ok(()) => self.spawn(users, disks, taps.names()),
            Err(error) => Err(error),
        };
        let processes = match spawned {
            Ok(processes) => processes,
            Err(error) => {
                taps.remove().await;
                return Err(error);
            }
        };
        written.push(processes.vars);
        let subject = Subject {
            qemu: processes.qemu.child.id().unwrap_or_default(),
            swtpm: processes.swtpm.child.id().unwrap_or_default(),
            policy: self.record.policy,
            console: options.console,
            console_profile: self.record.console_profile,
            written,
            hidden: options.hidden.iter().cloned().chain(view::HIDDEN.map(PathBuf::from)).collect(),
        };
        let (exit_sender, mut exit) = watch::channel(None);
        let (kill, killed) = mpsc::channel(1);
        tokio::spawn(supervise(processes.qemu, processes.swtpm, taps, killed, exit_sender));
        match greet(processes.qmp, &subject, &spent, self.incoming).await {
            Ok(qmp) => Ok(RunningVm {
                qmp,
                pid: subject.qemu,
                kill,
                exit,
                console: processes.console,
                disks: Mutex::new(Disks::new(self.spec, self.record)),
                subject: Mutex::new(subject),
                session: tokio::sync::Mutex::default(),
            }),
            Err(error) => {
                // If QEMU is exiting by itself, its own message is wanted rather than "killed".
                if matches!(error, Error::QmpClosed) {
                    let _ = tokio::time::timeout(SWTPM_END, ended(&mut exit)).await;
                }
                drop(kill);
                Err(not_started(error, ended(&mut exit).await))
            }
        }
    }

    /// Everything that can be refused before anything is created.
    fn check(&self) -> Result<Vec<CheckedDisk>> {
        self.spec.validate()?;
        self.record.check(self.spec)?;
        if self.options.console && self.record.policy == Policy::Shielded {
            return Err(Error::Policy { what: "a console".into() });
        }
        if !self.incoming {
            swtpm::require_state(&self.slot.join(slot::VTPM))?;
        }
        let (own, attached) = self.spec.disks.split_at(self.record.disks.len());
        own.iter().map(disk::check_own).chain(attached.iter().map(disk::check)).collect()
    }

    fn spawn(&self, users: Pair, disks: Vec<CheckedDisk>, taps: &[String]) -> Result<Processes> {
        const FDS: Fds = Fds { qmp: 3, tpm: 4, vars_key: 5, console: Some(6), vars: 7, first_image: 8 };
        let options = &self.options;
        let slot = std::path::absolute(self.slot).map_err(Error::io("find", self.slot))?;
        let fds = Fds { console: FDS.console.filter(|_| options.console), ..FDS };
        let vm = VmArgs { spec: self.spec, disks: &disks, taps, accel: &options.accel, fds, incoming: self.incoming };
        let args = argv(&vm)?;
        let vars = disk::open(&slot.join(slot::VARS), true)?;
        let vars_id = file_id(&vars.metadata().map_err(Error::io("inspect", &slot))?);
        let (tpm, tpm_control) = StdStream::pair().map_err(Error::system("make a socket pair"))?;
        let (qmp, qmp_theirs) = socket_pair()?;
        let mut inherited = vec![
            (qmp_theirs.into(), fds.qmp),
            (tpm.into(), fds.tpm),
            (slot::vars_secret(self.key, users.qemu)?, fds.vars_key),
            (vars.into(), fds.vars),
        ];
        inherited.extend(disks.into_iter().flat_map(CheckedDisk::into_files).zip(fds.first_image..));
        let console = match fds.console {
            None => None,
            Some(number) => {
                let (ours, theirs) = socket_pair()?;
                inherited.push((theirs.into(), number));
                Some(ours)
            }
        };
        let log = |name: &str| Some(options.log_dir.join(name));
        let hidden = &options.hidden;
        let rights = Rights { user: users.swtpm, kvm: false, hidden, directory: None };
        let swtpm = swtpm::spawn(&slot.join(slot::VTPM), rights, self.key, tpm_control.into(), log("swtpm.log"))?;
        let kvm = options.accel.accel == Accel::Kvm;
        let rights = Some(Rights { user: users.qemu, kvm, hidden, directory: None });
        let qemu = Program { name: QEMU, rights, args, fds: inherited, log: log("qemu.log") }.spawn()?;
        Ok(Processes { qemu, swtpm, qmp, console, vars: vars_id })
    }
}

/// Why a VM did not start. A closed control channel only says that QEMU has ended; how it ended says more.
fn not_started(error: Error, exit: Exit) -> Error {
    match error {
        Error::QmpClosed => Error::Ended { reason: exit.reason },
        error => error,
    }
}

/// The two processes, and our ends of the channels to them.
struct Processes {
    qemu: Process,
    swtpm: Process,
    qmp: UnixStream,
    console: Option<UnixStream>,
    /// The UEFI variables.
    vars: FileId,
}

/// Waits until QEMU runs the guest, or is ready to receive its state, and inspects what the VM exposes: what counts is
/// what was really made of the command line.
async fn greet(stream: UnixStream, subject: &Subject, spent: &[usize], incoming: bool) -> Result<Qmp> {
    let wanted = if incoming { "inmigrate" } else { "running" };
    let work = async {
        let qmp = Qmp::connect(stream).await?;
        loop {
            let status = qmp.execute(Command::QueryStatus, json!({})).await?;
            match run_state(&status) {
                Some(state) if state == wanted => break,
                Some("prelaunch") => tokio::time::sleep(Duration::from_millis(50)).await,
                other => {
                    return Err(Error::Ended { reason: format!("QEMU's run state is {}", other.unwrap_or("unknown")) });
                }
            }
        }
        for set in [VARS_SET].iter().chain(spent) {
            qmp.release(*set).await?;
        }
        inspect(&qmp, subject, false).await?.require()?;
        Ok(qmp)
    };
    tokio::time::timeout(START, work)
        .await
        .map_err(|_| Error::Deadline { what: "QEMU's start", seconds: START.as_secs() })?
}
