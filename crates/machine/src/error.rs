//! What can go wrong with one VM.

use std::io;
use std::path::{Path, PathBuf};

use crate::luks;

/// Every failure of this crate. [`Error::kind`] is its stable name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a VM's description breaks a rule.
    #[error("the VM description's {field} {reason}")]
    Spec { field: &'static str, reason: String },
    /// A file or directory operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// An operation on no particular file failed (pipe, socket, memory file).
    #[error("cannot {operation}")]
    System { operation: &'static str, source: io::Error },
    /// A program could not be started at all.
    #[error("cannot start {program}; is it installed?")]
    ToolMissing { program: &'static str, source: io::Error },
    /// A program is there but lacks something.
    #[error("{program} lacks {feature}")]
    ToolTooOld { program: &'static str, feature: &'static str },
    /// A program ended with an error; `log` is the end of what it said.
    #[error("{program} failed ({status}): {log}")]
    Tool { program: &'static str, status: String, log: String },
    /// Something did not happen in time.
    #[error("{what} took longer than {seconds} s")]
    Deadline { what: &'static str, seconds: u64 },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {description}")]
    Qmp { command: &'static str, description: String },
    /// QEMU's control channel ended.
    #[error("QEMU's control channel is closed")]
    QmpClosed,
    /// QEMU's control channel carried something that is not QMP.
    #[error("QEMU's control channel broke the protocol: {reason}")]
    QmpProtocol { reason: &'static str },
    /// swtpm refused a control command; `code` is a TPM result code.
    #[error("swtpm refused {command} with TPM result {code:#x}")]
    Tpm { command: &'static str, code: u32 },
    /// swtpm's control channel carried something unexpected.
    #[error("swtpm's control channel broke the protocol: {reason}")]
    TpmProtocol { reason: &'static str },
    /// The directory holds no vTPM. A new one must never be made by accident in its place.
    #[error("{} holds no vTPM state", path.display())]
    NoTpmState { path: PathBuf },
    /// The sealed record is too long, too short, or has a foreign header.
    #[error("the sealed record is malformed: {reason}")]
    RecordFormat { reason: &'static str },
    /// Wrong transport key, other VM, other key protector, or a changed byte.
    #[error("the sealed record does not open with this key and key protector")]
    RecordSealed,
    /// The sealed record opened, but its contents are not a record of this version.
    #[error("the sealed record's contents are not valid")]
    RecordContents { source: serde_json::Error },
    /// The container of the UEFI variables was not made, or does not open.
    #[error("{} {fault}", path.display())]
    Vars { path: PathBuf, fault: luks::Fault },
    /// The VM's description is not what its sealed record says.
    #[error("the VM's {field} is not what its sealed record says: {reason}")]
    RecordMismatch { field: &'static str, reason: String },
    /// A disk image brings something along that it must not.
    #[error("the disk image {} {reason}", path.display())]
    DiskImage { path: PathBuf, reason: &'static str },
    /// No OVMF of the right build is installed.
    #[error("no OVMF firmware with Secure Boot is installed (Debian package: ovmf)")]
    Firmware,
    /// A device that the policy forbids was asked for or found.
    #[error("the policy forbids {what}")]
    Policy { what: String },
    /// A VM that was just started exposes what none may; it was ended again.
    #[error("it exposes more than it may: {what}")]
    Exposed { what: String },
    /// A virtual switch cannot be used.
    #[error("the virtual switch {name} {reason}")]
    Switch { name: String, reason: String },
    /// All ports for hot attachment are taken.
    #[error("no free port for another disk")]
    NoFreePort,
    /// No hot-attached disk has this serial number, or one has it already.
    #[error("disk {serial}: {reason}")]
    DiskAttachment { serial: String, reason: &'static str },
    /// QEMU did not copy from one image to another to the end.
    #[error("a disk was not copied to the end: {reason}")]
    BlockJob { reason: String },
    /// QEMU did not pass a VM's state on, or did not take it.
    #[error("the state was not transferred: {reason}")]
    Migration { reason: String },
    /// The VM is not running any more.
    #[error("the VM has ended: {reason}")]
    Ended { reason: String },
}

impl Error {
    /// A name for this kind of failure that does not change between versions.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Spec { .. } => "spec",
            Self::Io { .. } | Self::System { .. } => "io",
            Self::ToolMissing { .. } => "tool-missing",
            Self::ToolTooOld { .. } => "tool-too-old",
            Self::Tool { .. } => "tool-failed",
            Self::Deadline { .. } => "deadline",
            Self::Qmp { .. } => "qmp-refused",
            Self::QmpClosed => "qmp-closed",
            Self::QmpProtocol { .. } => "qmp-protocol",
            Self::Tpm { .. } => "tpm-refused",
            Self::TpmProtocol { .. } => "tpm-protocol",
            Self::NoTpmState { .. } => "no-tpm-state",
            Self::RecordFormat { .. } => "record-format",
            Self::RecordSealed => "record-sealed",
            Self::RecordContents { .. } => "record-contents",
            Self::Vars { fault: luks::Fault::Key, .. } => "vars-sealed",
            Self::Vars { fault: luks::Fault::Format(_), .. } => "vars-format",
            Self::Vars { fault: luks::Fault::NoRandom, .. } => "io",
            Self::RecordMismatch { .. } => "record-mismatch",
            Self::DiskImage { .. } => "disk-image",
            Self::Firmware => "no-firmware",
            Self::Policy { .. } => "policy",
            Self::Exposed { .. } => "exposed",
            Self::Switch { .. } => "switch",
            Self::NoFreePort => "no-free-port",
            Self::DiskAttachment { .. } => "disk-attachment",
            Self::BlockJob { .. } => "block-job",
            Self::Migration { .. } => "migration",
            Self::Ended { .. } => "ended",
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn vars(path: &Path) -> impl FnOnce(luks::Fault) -> Self {
        let path = path.to_path_buf();
        move |fault| Self::Vars { path, fault }
    }

    pub(crate) fn system<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { operation, source: source.into() }
    }
}
