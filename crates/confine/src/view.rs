//! What QEMU and swtpm see of the file system: programs, libraries and devices. Where people, services and VMs keep
//! their files there are empty folders that cannot be written to. What the two need beyond that they inherit as open
//! descriptors, or as their working folder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Emptied for every VM; a host's store is added to these.
pub const HIDDEN: [&str; 10] = ["/boot", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var"];

/// Does `start` where it sees neither `folders` nor [`HIDDEN`], working in `folder`, and so does the program that
/// it starts; here where the kernel offers no such view.
///
/// View and working folder are one thread's: it is made for this and ends with it.
///
/// # Errors
/// What the system says to either, or to `start`.
pub fn start_within<T: Send>(
    folders: &[PathBuf],
    folder: Option<&Path>,
    start: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let inside = || {
        // Beside a view of its own the first gives the thread a working folder of its own.
        let flags = if offered() { CloneFlags::CLONE_NEWNS } else { CloneFlags::CLONE_FS };
        unshare(flags)?;
        if let Some(folder) = folder {
            rustix::process::chdir(folder)?;
        }
        if offered() {
            empty(folders)?;
        }
        start()
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(started) => started,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Empties `folders` and [`HIDDEN`] in this thread's view, which nobody else has.
fn empty(folders: &[PathBuf]) -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // First what may lie in another hidden folder, and would not be found any more.
    let given = folders.iter().map(PathBuf::as_path).filter(|folder| folder.is_absolute());
    for folder in given.chain(HIDDEN.map(Path::new)).filter(|folder| folder.is_dir()) {
        mount(Some("hidden"), folder, Some("tmpfs"), flags, Some("mode=0555"))?;
    }
    Ok(())
}

/// Whether this process may make mount namespaces. Found out once, by doing it.
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

/// Whether a process, by its folder in /proc, has a view of its own, and not this one's.
pub fn is_private(process: &Path) -> bool {
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let theirs = namespace(process);
    theirs.is_some() && theirs != namespace(Path::new("/proc/self"))
}
