//! QEMU's tools for disk images. They open files by name and cannot be passed descriptors instead; so they see the
//! files that they work on, programs and libraries, and nothing else: no other file, process, device or network.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{self, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, chdir, pidfd_open, pivot_root};

use crate::{NO_CAPABILITY, PATH, find, forbid_core_dumps, view};

/// A file that a tool sees, under its own name.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// For reading only.
    Read(&'a Path),
    /// For reading and writing.
    Write(&'a Path),
}

impl<'a> Shown<'a> {
    /// The file.
    #[must_use]
    pub fn path(self) -> &'a Path {
        match self {
            Self::Read(path) | Self::Write(path) => path,
        }
    }
}

/// Where a tool's root is assembled: in its own mount namespace nothing needs what is mounted there.
const ROOT: &str = "/sys";
/// Where the old root is until it is unmounted; no image's path begins with it.
const BEFORE: &str = ".before";
/// Most bytes of data that a tool may have, for setrlimit(2).
const MAX_DATA: u64 = 4 << 30;

/// A program that is about to be started on some files, with no capability, network or environment, and no access to
/// other processes or files.
pub struct Tool {
    /// For the caller to add arguments, streams and descriptors.
    pub command: Command,
    /// The files that it sees, and whether it may write them; absent where it shares its caller's mount namespace.
    shown: Option<Vec<(PathBuf, bool)>>,
}

impl Tool {
    /// Prepares `program` to run on `files`. They exist already and belong to one user, as whom it runs: without
    /// capabilities it could not open another user's.
    ///
    /// An agent that is not root cannot do most of that. Its tools have its own rights, and cannot gain more.
    ///
    /// # Errors
    /// `NotFound` for a program that is not installed; `InvalidInput` for files of several users; what the system
    /// answers for a file or a limit.
    pub fn new(program: &str, files: &[Shown<'_>]) -> io::Result<Self> {
        let program = find(program)?;
        forbid_core_dumps()?;
        let root = rustix::process::geteuid().is_root();
        let shown = if root && view::offered() {
            let absolute = |file: &Shown<'_>| Ok((path::absolute(file.path())?, matches!(file, Shown::Write(_))));
            Some(files.iter().map(absolute).collect::<io::Result<_>>()?)
        } else {
            None
        };
        let mut command = Command::new(find("prlimit")?);
        command.arg(format!("--data={MAX_DATA}")).arg(find("setpriv")?);
        if root {
            let (user, group) = owner(files)?;
            command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
            command.args(NO_CAPABILITY);
        } else {
            command.arg("--no-new-privs");
        }
        if shown.is_some() {
            command.arg("--pdeathsig=KILL");
        }
        command.arg("--").arg(program);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null());
        Ok(Self { command, shown })
    }

    /// Starts it.
    ///
    /// # Errors
    /// What the system answers.
    pub fn spawn(self) -> io::Result<Child> {
        self.spawn_with(|mut command| {
            let child = command.spawn()?;
            let id = child.id();
            Ok((child, id))
        })
    }

    /// Starts it with `spawn`, which returns the child and its process id.
    ///
    /// # Errors
    /// What the system answers.
    pub fn spawn_with<T: Send + 'static>(
        self,
        spawn: impl FnOnce(Command) -> io::Result<(T, u32)> + Send + 'static,
    ) -> io::Result<T> {
        let Self { command, shown } = self;
        let Some(shown) = shown else { return spawn(command).map(|(child, _)| child) };
        let (sender, started) = mpsc::sync_channel(1);
        // Namespaces belong to a thread. It waits for the program's end, because PR_SET_PDEATHSIG kills the program
        // with the thread that started it: so the program does not outlive an agent that is killed.
        thread::Builder::new().name("tool".into()).spawn(move || {
            let done = enter(&shown).and_then(|()| spawn(command)).and_then(|(child, id)| {
                let id = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(ErrorKind::NotFound)?;
                Ok((child, pidfd_open(id, PidfdFlags::empty())?))
            });
            match done {
                Ok((child, end)) => {
                    let _ = sender.send(Ok(child));
                    while poll(&mut [PollFd::new(&end, PollFlags::IN)], None) == Err(Errno::INTR) {}
                }
                Err(error) => drop(sender.send(Err(error))),
            }
        })?;
        started.recv().map_err(|_| io::Error::other("the thread that starts it is gone"))?
    }
}

/// Moves this thread into namespaces of its own, with nothing but programs, libraries and these files. What the thread
/// starts is also in a new process namespace.
fn enter(shown: &[(PathBuf, bool)]) -> io::Result<()> {
    let here = std::env::current_dir()?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWPID,
    )?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("root"), ROOT, Some("tmpfs"), flags, Some("mode=0755,size=64k,nr_inodes=1k"))?;
    chdir(ROOT)?;
    for directory in ["usr", "dev", BEFORE] {
        fs::create_dir(directory)?;
    }
    bind(Path::new("/usr"), Path::new("usr"), false)?;
    // QEMU probes on it whether file locks work.
    show(Path::new("/dev/null"), true)?;
    for directory in ["bin", "sbin", "lib", "lib32", "lib64"] {
        let old = Path::new("/").join(directory);
        if old.is_symlink() {
            symlink(Path::new("usr").join(directory), directory)?;
        } else if old.is_dir() {
            fs::create_dir(directory)?;
            bind(&old, Path::new(directory), false)?;
        }
    }
    for (file, writable) in shown {
        show(file, *writable)?;
    }
    pivot_root(".", BEFORE)?;
    let before = Path::new("/").join(BEFORE);
    umount2(&before, MntFlags::MNT_DETACH)?;
    // Relative names keep their meaning if this directory exists inside.
    chdir(&here).or_else(|_| chdir("/"))?;
    Ok(())
}

const NONE: Option<&str> = None;

/// Binds a file of the old root under its name in the new one, which is the working directory.
fn show(file: &Path, writable: bool) -> io::Result<()> {
    let inside = Path::new(".").join(file.strip_prefix("/").unwrap_or(file));
    if !inside.exists() {
        if let Some(directory) = inside.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&inside, "")?;
    }
    bind(file, &inside, writable)
}

fn bind(from: &Path, to: &Path, writable: bool) -> io::Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)?;
    if writable {
        return Ok(());
    }
    // A remount must keep the restrictions that the mount already has.
    let now = statvfs(to)?.f_flag;
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (is, flag) in [
        (StatVfsMountFlags::NOSUID, MsFlags::MS_NOSUID),
        (StatVfsMountFlags::NODEV, MsFlags::MS_NODEV),
        (StatVfsMountFlags::NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if now.contains(is) {
            flags |= flag;
        }
    }
    Ok(mount(NONE, to, NONE, flags, NONE)?)
}

/// The one user, and a group, of all these files.
fn owner(files: &[Shown<'_>]) -> io::Result<(u32, u32)> {
    let mut owners = BTreeMap::new();
    for file in files {
        let metadata = fs::metadata(file.path())?;
        owners.entry(metadata.uid()).or_insert((metadata.gid(), file.path()));
    }
    let mut found = owners.iter();
    match (found.next(), found.next()) {
        (Some((user, (group, _))), None) => Ok((*user, *group)),
        (Some((user, (_, file))), Some((other, (_, beside)))) => Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} belongs to user {user} and {} to user {other}: give them to one (chown)",
                file.display(),
                beside.display()
            ),
        )),
        (None, _) => Err(io::Error::new(ErrorKind::InvalidInput, "a tool needs a file")),
    }
}

#[cfg(test)]
mod tests;
