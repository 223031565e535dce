//! Keeping programs that read what strangers made to what they need: no capability, a view of their own, no core dump.
//!
//! | Function | For |
//! |---|---|
//! | [`view::start_within`], [`NO_CAPABILITY`] | QEMU and swtpm of a VM, which are given open descriptors |
//! | [`Tool`] | `qemu-img` and `qemu-nbd`, which open files by their names |
//! | [`forbid_core_dumps`] | whoever starts them |

mod tool;
pub mod view;

use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit};

pub use tool::{Shown, Tool};

/// Where programs are looked for: never where the caller's environment says.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// `setpriv`'s options that leave a program without capabilities, and without a way to gain one.
pub const NO_CAPABILITY: [&str; 4] =
    ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];

/// Where a program is.
///
/// # Errors
/// `NotFound`.
pub fn find(program: &str) -> io::Result<PathBuf> {
    std::env::split_paths(PATH)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// This process and its children, which inherit both, leave no core dump. A VM's memory and keys must not end in one.
///
/// # Errors
/// When the kernel refuses: a limit of 0 that somebody else has set cannot be raised to 1 without CAP_SYS_RESOURCE.
pub fn forbid_core_dumps() -> io::Result<()> {
    // Not 0: programs that take dumps from a pipe get them in spite of it, but not with this one (core(5)).
    let limit = Rlimit { current: Some(1), maximum: Some(1) };
    if rustix::process::getrlimit(Resource::Core) != limit {
        rustix::process::setrlimit(Resource::Core, limit)?;
    }
    // Where one is made all the same, for example because root raised the limit, it has no memory in it.
    const FILTER: &str = "/proc/self/coredump_filter";
    if !std::fs::read_to_string(FILTER)?.trim().bytes().all(|digit| digit == b'0') {
        std::fs::write(FILTER, "0")?;
    }
    Ok(())
}
