//! What a report is about.

use std::path::PathBuf;

use crate::engine::file_id::FileId;
use crate::spec::{ConsoleProfile, Policy};

/// What is inspected, and what it is measured by.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// QEMU's process id.
    pub(crate) qemu: u32,
    /// swtpm's process id.
    pub(crate) swtpm: u32,
    pub(crate) policy: Policy,
    /// It was started with a serial console.
    pub(crate) console: bool,
    pub(crate) console_profile: ConsoleProfile,
    /// Files that QEMU may write to.
    pub(crate) written: Vec<FileId>,
    /// Directories that the two processes must not see into.
    pub(crate) hidden: Vec<PathBuf>,
}
