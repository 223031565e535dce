//! What QEMU and swtpm see of the file system: programs, libraries and devices. Where people, services and VMs keep
//! their files, their mount namespace has empty read-only directories. What the two need beyond that they inherit as
//! open descriptors, or as their working directory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Emptied for every VM; a host's store is added to these.
pub const HIDDEN: [&str; 10] = ["/boot", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var"];

/// Runs `start` in a mount namespace in which `hidden` and [`HIDDEN`] are empty, with `directory` as working directory;
/// the program that it starts inherits both. Where the kernel offers no mount namespaces, only the latter.
///
/// Both belong to a thread, which is made for this and ends with it.
///
/// # Errors
/// What the system answers to either, or to `start`.
pub fn start_within<T: Send>(
    hidden: &[PathBuf],
    directory: Option<&Path>,
    start: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let inside = || {
        // CLONE_NEWNS implies CLONE_FS: a working directory of the thread's own.
        let flags = if offered() { CloneFlags::CLONE_NEWNS } else { CloneFlags::CLONE_FS };
        unshare(flags)?;
        if let Some(directory) = directory {
            rustix::process::chdir(directory)?;
        }
        if offered() {
            empty(hidden)?;
        }
        start()
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(started) => started,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Empties `hidden` and [`HIDDEN`] in this thread's mount namespace, which nobody else shares.
fn empty(hidden: &[PathBuf]) -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The caller's first: inside another hidden directory they could no longer be found.
    let given = hidden.iter().map(PathBuf::as_path).filter(|directory| directory.is_absolute());
    for directory in given.chain(HIDDEN.map(Path::new)).filter(|directory| directory.is_dir()) {
        mount(Some("hidden"), directory, Some("tmpfs"), flags, Some("mode=0555"))?;
    }
    Ok(())
}

/// Whether this process may make mount namespaces. Determined once, by making one.
pub fn offered() -> bool {
    static OFFERED: OnceLock<bool> = OnceLock::new();
    *OFFERED.get_or_init(|| {
        let tried = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS).and_then(|()| empty(&[]))).join();
        let offered = matches!(tried, Ok(Ok(())));
        if !offered {
            tracing::warn!("no mount namespaces here: VMs see the whole file system, with the rights of their user");
        }
        offered
    })
}

/// Whether a process, given by its directory in /proc, is in another mount namespace than this process.
pub fn is_private(process: &Path) -> bool {
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let theirs = namespace(process);
    theirs.is_some() && theirs != namespace(Path::new("/proc/self"))
}
