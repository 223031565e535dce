//! Starting child processes: only the descriptors that they need, a user and a mount namespace of their own, no
//! environment, no core dump, and bounded logs.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use confine::{NO_CAPABILITY, PATH, forbid_core_dumps, view};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::runtime::Handle;

use crate::error::{Error, Result};
use crate::user::User;

pub(crate) const QEMU: &str = "qemu-system-x86_64";
pub(crate) const SWTPM: &str = "swtpm";
pub(crate) const IP: &str = "ip";

const SETPRIV: &str = "setpriv";

/// A guest can make QEMU write warnings; a log file stops growing here (bytes).
const MAX_LOG: usize = 1 << 20;
/// How much of its end is kept for error messages (bytes).
const TAIL: usize = 2048;
/// How long to wait for the end of a log after its writer has died.
const LOG_END: Duration = Duration::from_secs(1);

/// What a program may do. It is chosen as if a guest or a hostile image had taken the program over.
#[derive(Clone, Copy)]
pub(crate) struct Rights<'a> {
    pub(crate) user: User,
    /// It may use /dev/kvm.
    pub(crate) kvm: bool,
    /// Directories that it does not see, in addition to [`HIDDEN`](view::HIDDEN).
    pub(crate) hidden: &'a [PathBuf],
    /// Its working directory; None: the agent's.
    pub(crate) directory: Option<&'a Path>,
}

/// A program to start. Each descriptor comes with the number that it gets in the program.
pub(crate) struct Program<'a> {
    pub(crate) name: &'static str,
    /// None: the agent's own rights.
    pub(crate) rights: Option<Rights<'a>>,
    pub(crate) args: Vec<OsString>,
    pub(crate) fds: Vec<(OwnedFd, i32)>,
    /// Where its standard error goes, up to [`MAX_LOG`] bytes. None: only the end is kept, in memory.
    pub(crate) log: Option<PathBuf>,
}

/// A started program. Killed when dropped.
pub(crate) struct Process {
    pub(crate) name: &'static str,
    pub(crate) child: Child,
    tail: Arc<Mutex<VecDeque<u8>>>,
    log_task: tokio::task::JoinHandle<()>,
}

impl Program<'_> {
    pub(crate) fn spawn(self) -> Result<Process> {
        forbid_core_dumps()
            .map_err(Error::system("forbid core dumps: set their limit to 1, not to 0 (LimitCORE=1)"))?;
        let mut words = match self.rights {
            None => Vec::new(),
            Some(rights) => words_before(rights)?,
        };
        words.push(find(self.name)?);
        let mut command = Command::new(words.remove(0));
        command
            .args(words)
            .args(&self.args)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            // Its own process group: an interrupt from the terminal is for the agent, not for the VM.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mappings = self.fds.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        command
            .fd_mappings(mappings)
            .map_err(|e| Error::System { operation: "pass on descriptors", source: std::io::Error::other(e) })?;
        let log = match &self.log {
            Some(path) => Some(open_log(path)?),
            None => None,
        };
        let child = match self.rights {
            None => command.spawn(),
            Some(rights) => {
                let runtime = Handle::current();
                view::start_within(rights.hidden, rights.directory, || {
                    let _tokio = runtime.enter();
                    command.spawn()
                })
            }
        };
        let mut child = child.map_err(Error::system("start a program"))?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = child.stderr.take();
        let log_task = tokio::spawn(keep_log(stderr, log, Arc::clone(&tail)));
        Ok(Process { name: self.name, child, tail, log_task })
    }
}

impl Process {
    /// Waits for the exit; any code but 0 is an error with the end of the log.
    pub(crate) async fn finish(mut self, deadline: Duration) -> Result<()> {
        let Ok(status) = tokio::time::timeout(deadline, self.child.wait()).await else {
            self.kill().await;
            return Err(Error::Deadline { what: self.name, seconds: deadline.as_secs() });
        };
        let status = status.map_err(Error::system("wait for a child process"))?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(status.to_string()).await)
    }

    /// Kills and reaps.
    pub(crate) async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::debug!(program = self.name, %error, "has exited already");
        }
    }

    /// The error of a program that has ended, with the end of its log.
    pub(crate) async fn failure(&mut self, status: String) -> Error {
        Error::Tool { program: self.name, status, log: self.tail().await }
    }

    /// The end of its standard error, after it has ended.
    pub(crate) async fn tail(&mut self) -> String {
        let _ = tokio::time::timeout(LOG_END, &mut self.log_task).await;
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

/// The command words in front of a program that keep it within `rights`: it has no capability and can gain none.
fn words_before(rights: Rights<'_>) -> Result<Vec<PathBuf>> {
    let mut words = vec![find(SETPRIV)?];
    words.extend(rights.user.options(rights.kvm).into_iter().map(PathBuf::from));
    words.extend(NO_CAPABILITY.map(PathBuf::from));
    words.push("--".into());
    Ok(words)
}

fn find(program: &'static str) -> Result<PathBuf> {
    confine::find(program).map_err(|source| Error::ToolMissing { program, source })
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create the log", path))
}

async fn keep_log(stderr: Option<ChildStderr>, mut log: Option<File>, tail: Arc<Mutex<VecDeque<u8>>>) {
    let Some(mut stderr) = stderr else { return };
    let mut room = MAX_LOG;
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        let written = &buffer[..n];
        if let Some(file) = &mut log {
            let kept = &written[..n.min(room)];
            room -= kept.len();
            if let Err(error) = file.write_all(kept) {
                tracing::warn!(%error, "cannot write a VM's log");
                log = None;
            }
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(written);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
    }
}

/// A pipe that holds `secret` for `user` and then ends. It can be read once; no file ever holds it.
pub(crate) fn secret_pipe(secret: &[u8], user: User) -> Result<OwnedFd> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Error::system("make a pipe"))?;
    // far below a pipe's capacity, so this does not block
    File::from(write).write_all(secret).map_err(Error::system("write to a pipe"))?;
    // QEMU opens it by its number in /dev/fd.
    user.own_descriptor(&read)?;
    Ok(read)
}

/// A socket pair without a name in any file system: our end, and the one to pass on.
pub(crate) fn socket_pair() -> Result<(UnixStream, StdStream)> {
    let (ours, theirs) = StdStream::pair().map_err(Error::system("make a socket pair"))?;
    ours.set_nonblocking(true).map_err(Error::system("set up a socket"))?;
    let ours = UnixStream::from_std(ours).map_err(Error::system("set up a socket"))?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn shell(script: &str, log: Option<PathBuf>, fds: Vec<(OwnedFd, i32)>) -> Process {
        confined(script, log, fds, &[])
    }

    fn confined(script: &str, log: Option<PathBuf>, fds: Vec<(OwnedFd, i32)>, hidden: &[PathBuf]) -> Process {
        let rights = Rights { user: User::Reserved(crate::user::FIRST), kvm: false, hidden, directory: None };
        let args = vec!["-c".into(), script.into()];
        Program { name: "sh", rights: Some(rights), args, fds, log }.spawn().unwrap()
    }

    /// The child searches for the files of others, as a user that may not even enter their directories.
    #[tokio::test]
    async fn a_child_has_a_user_and_a_mount_namespace_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::write(open.join("file"), "everybody may read this").unwrap();
        for path in [dir.path(), &open] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let looks = format!(
            "! cat {}/file && test -z \"$(find /root /home /tmp -mindepth 1)\" && ! touch /tmp/x",
            open.display()
        );
        confined(&looks, None, vec![], std::slice::from_ref(&open)).finish(Duration::from_secs(10)).await.unwrap();
        let is = format!("test $(id -u),$(id -g),$(id -G) = {0},{0},{0} && test -r /usr/bin/env", crate::user::FIRST);
        shell(&is, None, vec![]).finish(Duration::from_secs(10)).await.unwrap();
        // The control: the same program with the agent's own rights.
        let args = vec!["-c".into(), format!("cat {}/file", open.display()).into()];
        let own = Program { name: "sh", rights: None, args, fds: vec![], log: None };
        own.spawn().unwrap().finish(Duration::from_secs(10)).await.unwrap();
    }

    #[tokio::test]
    async fn a_child_gets_its_descriptor_no_environment_and_no_core() {
        let pipe = secret_pipe(b"hush", User::Reserved(crate::user::FIRST)).unwrap();
        let script = r#"test "$(cat /dev/fd/7)" = hush && test -z "$HOME$CARGO_HOME" &&
            test "$(cat /proc/self/coredump_filter)" = 00000000 &&
            test "$(prlimit --core --raw --noheadings --output SOFT,HARD)" = "1 1""#;
        let child = shell(script, None, vec![(pipe, 7)]);
        child.finish(Duration::from_secs(10)).await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_carries_the_end_of_a_bounded_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "yes | head -c 3000000 >&2; echo last words >&2; exit 3";
        let error = shell(script, Some(log.clone()), vec![]).finish(Duration::from_secs(30)).await.unwrap_err();
        assert!(error.to_string().contains("last words"), "{error}");
        assert!(error.to_string().len() < TAIL + 100);
        let metadata = std::fs::metadata(log).unwrap();
        assert_eq!(metadata.len(), MAX_LOG as u64);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_deadline_kills() {
        let error = shell("sleep 60", None, vec![]).finish(Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }));
    }
}
