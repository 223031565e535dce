//! What QEMU and swtpm see of the file system: programs, libraries and devices. Where people, services and VMs keep
//! their files there are empty folders that cannot be written to. What the two need beyond that they inherit as open
//! descriptors, or as their working folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Emptied for every VM; a host's store is added to these.
pub const HIDDEN: [&str; 10] = ["/boot", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var"];

/// Folders up to `--`, then the program.
const SCRIPT: &str = "while [ \"$1\" != -- ]; do \
    if [ -d \"$1\" ]; then mount -t tmpfs -o ro,nosuid,nodev,noexec,mode=0555 hidden \"$1\" || exit 125; fi; shift; \
    done; shift; exec \"$@\"";

/// The words that give the program behind them its own view, without `folders` too. None where the kernel does not
/// offer one.
#[must_use]
pub fn words(folders: &[PathBuf]) -> Vec<PathBuf> {
    if !offered() {
        return Vec::new();
    }
    let mut words: Vec<PathBuf> =
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"].map(PathBuf::from).to_vec();
    // First what may lie in another hidden folder, and would not be found any more.
    words.extend(folders.iter().filter(|folder| folder.is_absolute()).cloned());
    words.extend(HIDDEN.map(PathBuf::from));
    words.push("--".into());
    words
}

/// Whether this process may make mount namespaces. Found out once, by doing it.
pub fn offered() -> bool {
    static OFFERED: OnceLock<bool> = OnceLock::new();
    *OFFERED.get_or_init(|| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg("mount -t tmpfs -o ro hidden /tmp").env_clear().env("PATH", crate::PATH);
        let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let offered = done.is_ok_and(|status| status.success());
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
