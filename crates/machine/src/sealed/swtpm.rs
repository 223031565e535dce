//! Starting swtpm, and a vTPM's state at rest: created, or moved to another key.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use key_protector::TransportKey;
use tokio::net::UnixStream;

use super::policy_nv;
use super::swtpm_ctrl::Control;
use crate::error::{Error, Result};
use crate::process::{Process, Program, Rights, SWTPM, secret_pipe, socket_pair};
use crate::spec::Policy;
use crate::user::User;

/// HKDF label of the vTPM's state key.
pub(crate) const LABEL: &str = "drydock/vtpm/v1";
/// The file that swtpm keeps a TPM 2.0's permanent state in.
pub(crate) const STATE_FILE: &str = "tpm2-00.permall";

const CONTROL_FD: i32 = 3;
const KEY_FD: i32 = 4;
/// TPM commands, when no QEMU provides a channel for them.
const DATA_FD: i32 = 5;
/// How long a TPM may take for a few commands, under nested emulation too.
const COMMANDS: Duration = Duration::from_secs(60);
/// How long swtpm may take to exit once its only client has closed the channel.
const END: Duration = Duration::from_secs(10);

/// swtpm's arguments. Its working directory is the state directory, so that no path needs escaping.
pub(crate) fn argv() -> Vec<String> {
    [
        "socket",
        "--tpm2",
        "--ctrl",
        &format!("type=unixio,clientfd={CONTROL_FD}"),
        "--tpmstate",
        "dir=.,mode=0600",
        "--key",
        &format!("fd={KEY_FD},format=binary,mode=aes-256-cbc"),
        "--seccomp",
        "action=kill",
        "--terminate",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Starts swtpm on the state in `dir`, which its user then owns; `control` is its end of a socket pair. The parent
/// directories stay closed to it: it starts inside.
pub(crate) fn spawn(
    dir: &Path,
    rights: Rights<'_>,
    key: &TransportKey,
    control: OwnedFd,
    log: Option<PathBuf>,
) -> Result<Process> {
    program(dir, rights, key, control, log)?.spawn()
}

fn program<'a>(
    dir: &'a Path,
    rights: Rights<'a>,
    key: &TransportKey,
    control: OwnedFd,
    log: Option<PathBuf>,
) -> Result<Program<'a>> {
    rights.user.own(dir)?;
    let key = secret_pipe(key.derive(LABEL).expose(), rights.user)?;
    Ok(Program {
        name: SWTPM,
        rights: Some(Rights { directory: Some(dir), ..rights }),
        args: argv().into_iter().map(Into::into).collect(),
        fds: vec![(control, CONTROL_FD), (key, KEY_FD)],
        log,
    })
}

/// Checks that `dir` holds a vTPM: swtpm would silently create a new one in an empty directory.
pub(crate) fn require_state(dir: &Path) -> Result<()> {
    match std::fs::symlink_metadata(dir.join(STATE_FILE)) {
        Ok(file) if file.is_file() && file.len() > 0 => Ok(()),
        _ => Err(Error::NoTpmState { path: dir.to_path_buf() }),
    }
}

/// Creates a new TPM in the empty directory `dir`, for a VM under this policy.
pub(crate) async fn manufacture(dir: &Path, user: User, key: &TransportKey, policy: Policy) -> Result<()> {
    let mut tpm = Offline::start(dir, user, key)?;
    let done = tpm.init_for(policy).await;
    tpm.stop(done).await?;
    require_state(dir)
}

/// Copies the TPM in `from` into the empty directory `to`, under another key, for a VM under this policy. Only the
/// permanent state: a VM that is off has no volatile state.
pub(crate) async fn reseal(
    from: &Path,
    from_key: &TransportKey,
    to: &Path,
    to_key: &TransportKey,
    user: User,
    policy: Policy,
) -> Result<()> {
    require_state(from)?;
    // Two processes take a while to start and to end: concurrently.
    let (mut old, mut new) = (Offline::start(from, user, from_key)?, Offline::start(to, user, to_key)?);
    let state = match old.control.init().await {
        Ok(()) => old.control.permanent_state().await,
        Err(error) => Err(error),
    };
    let state = match state {
        Ok(state) => state,
        Err(error) => {
            new.process.kill().await;
            return old.stop(Err(error)).await;
        }
    };
    let take_over = async {
        let done = match new.control.set_permanent_state(&state).await {
            Ok(()) => new.init_for(policy).await,
            Err(error) => Err(error),
        };
        new.stop(done).await
    };
    let (old, new) = tokio::join!(old.stop(Ok(())), take_over);
    old.and(new)?;
    require_state(to)
}

/// A running swtpm without a VM.
struct Offline {
    process: Process,
    control: Control,
    commands: UnixStream,
}

impl Offline {
    fn start(dir: &Path, user: User, key: &TransportKey) -> Result<Self> {
        let (control, theirs) = socket_pair()?;
        let rights = Rights { user, kvm: false, hidden: &[], directory: None };
        let mut program = program(dir, rights, key, theirs.into(), None)?;
        let (commands, theirs) = socket_pair()?;
        program.args.extend(["--fd".into(), DATA_FD.to_string().into()]);
        program.fds.push((theirs.into(), DATA_FD));
        Ok(Self { process: program.spawn()?, control: Control::new(control), commands })
    }

    /// Starts the TPM and measures the policy into it.
    async fn init_for(&mut self, policy: Policy) -> Result<()> {
        self.control.init().await?;
        tokio::time::timeout(COMMANDS, policy_nv::measure(&mut self.commands, policy))
            .await
            .map_err(|_| Error::Deadline { what: "the vTPM", seconds: COMMANDS.as_secs() })?
    }

    /// Ends swtpm in an orderly way. After a failure its log says more than the lost connection.
    async fn stop<T>(mut self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => {
                self.control.shutdown().await?;
                drop((self.control, self.commands));
                self.process.finish(END).await?;
                Ok(value)
            }
            Err(error) => {
                drop((self.control, self.commands));
                let exited = tokio::time::timeout(END, self.process.child.wait()).await;
                self.process.kill().await;
                let status = match exited {
                    Ok(Ok(status)) => format!("{status}; {error}"),
                    _ => error.to_string(),
                };
                Err(self.process.failure(status).await)
            }
        }
    }
}
