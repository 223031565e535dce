//! Confines programs that parse untrusted bytes to what they need: no capability, a mount namespace of their own, no
//! core dump.
//!
//! | Function | For |
//! |---|---|
//! | [`view::start_within`], [`NO_CAPABILITY`] | a VM's QEMU and swtpm, which inherit open descriptors |
//! | [`Tool`] | `qemu-img` and `qemu-nbd`, which open files by name |
//! | [`forbid_core_dumps`] | whoever starts them |
//!
//! Every crate that starts a program on a tenant's bytes does it through this one (`image`, `machine`, `hgs`,
//! `recovery`). It knows nothing of them or of VMs.

#![warn(missing_docs)]

mod tool;
pub mod view;

use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit};

pub use tool::{Shown, Tool};

/// Where programs are searched for; the caller's environment does not count.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// `setpriv`'s options that leave a program without capabilities, and without a way to gain one.
pub const NO_CAPABILITY: [&str; 4] =
    ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];

/// The path of a program in [`PATH`].
///
/// # Errors
/// `NotFound`.
pub fn find(program: &str) -> io::Result<PathBuf> {
    std::env::split_paths(PATH)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// This process and its children, which inherit both, leave no core dump. A VM's memory and keys must not end in one.
///
/// # Errors
/// When the kernel refuses: a limit of 0 that was set before cannot be raised to 1 without CAP_SYS_RESOURCE.
pub fn forbid_core_dumps() -> io::Result<()> {
    // Not 0: a program that core_pattern pipes dumps to gets them despite a limit of 0, but not of 1 (core(5)).
    let limit = Rlimit { current: Some(1), maximum: Some(1) };
    if rustix::process::getrlimit(Resource::Core) != limit {
        rustix::process::setrlimit(Resource::Core, limit)?;
    }
    // If one is made all the same, for example because root raised the limit, it contains no memory.
    const FILTER: &str = "/proc/self/coredump_filter";
    if !std::fs::read_to_string(FILTER)?.trim().bytes().all(|digit| digit == b'0') {
        std::fs::write(FILTER, "0")?;
    }
    Ok(())
}
