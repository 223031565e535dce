//! What can go wrong with one VM.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a LUKS container does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LuksFault {
    /// Not a container as this program or QEMU makes it.
    #[error("is not a LUKS container of the expected kind: {0}")]
    Format(&'static str),
    /// Another passphrase, or a changed byte in the key slot.
    #[error("does not open with this key")]
    Key,
    /// The operating system gave no random bytes.
    #[error("was not made: the system has no random numbers")]
    NoRandom,
}

/// A field in which a VM can disagree with its sealed record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordField {
    /// The VM's id.
    VmId,
    /// The security policy.
    Policy,
    /// The console profile.
    ConsoleProfile,
    /// The number of the slot.
    Generation,
    /// Number, serial numbers or sizes of the disks.
    Disks,
    /// Number or MAC addresses of the network cards.
    Nics,
}

impl fmt::Display for RecordField {
    /// As the field is called in `vm.json`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VmId => "id",
            Self::Policy => "policy",
            Self::ConsoleProfile => "console_profile",
            Self::Generation => "generation",
            Self::Disks => "disks",
            Self::Nics => "nics",
        })
    }
}

/// Every failure of this crate, to be matched by its variants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a VM's description breaks a rule.
    #[error("the VM description's {field} {reason}")]
    Spec {
        /// The field, as in `vm.json`.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An operation on no particular file failed (pipe, socket, memory file).
    #[error("cannot {operation}")]
    System {
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A program could not be started at all.
    #[error("cannot start {program}; is it installed?")]
    ToolMissing {
        /// Its name.
        program: &'static str,
        /// Why it was not found.
        source: io::Error,
    },
    /// A program ended with an error; `log` is the end of its standard error.
    #[error("{program} failed ({status}): {log}")]
    Tool {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The end of its standard error.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {seconds} s")]
    Deadline {
        /// What was awaited.
        what: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {description}")]
    Qmp {
        /// Its name in QMP.
        command: &'static str,
        /// QEMU's description and class of the error.
        description: String,
    },
    /// QEMU's control channel ended.
    #[error("QEMU's control channel is closed")]
    QmpClosed,
    /// QEMU's control channel carried something that is not QMP.
    #[error("QEMU's control channel broke the protocol: {reason}")]
    QmpProtocol {
        /// What was wrong.
        reason: &'static str,
    },
    /// swtpm refused a control command; `code` is a TPM result code.
    #[error("swtpm refused {command} with TPM result {code:#x}")]
    Tpm {
        /// Its name.
        command: &'static str,
        /// The TPM result code.
        code: u32,
    },
    /// swtpm's control channel carried something unexpected.
    #[error("swtpm's control channel broke the protocol: {reason}")]
    TpmProtocol {
        /// What was wrong.
        reason: &'static str,
    },
    /// The directory holds no vTPM. A new one must never be created in its place by accident.
    #[error("{} holds no vTPM state", path.display())]
    NoTpmState {
        /// The directory.
        path: PathBuf,
    },
    /// The sealed record is too long, too short, or has an unknown header.
    #[error("the sealed record is malformed: {reason}")]
    RecordFormat {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Wrong transport key, other VM, other key protector, or a changed byte.
    #[error("the sealed record does not open with this key and key protector")]
    RecordSealed,
    /// The sealed record opened, but its contents are not a record of this version.
    #[error("the sealed record's contents are not valid")]
    RecordContents {
        /// Where the contents are invalid.
        source: serde_json::Error,
    },
    /// The container of the UEFI variables could not be made, or does not open.
    #[error("{} {fault}", path.display())]
    Vars {
        /// The container.
        path: PathBuf,
        /// What is wrong with it.
        fault: LuksFault,
    },
    /// The VM's description differs from its sealed record.
    #[error("'{field}' in the VM's description differs from its sealed record: {reason}")]
    RecordMismatch {
        /// The first field that differs.
        field: RecordField,
        /// How it differs.
        reason: String,
    },
    /// A disk image has a property that it must not have.
    #[error("the disk image {} {reason}", path.display())]
    DiskImage {
        /// The image.
        path: PathBuf,
        /// What it has.
        reason: &'static str,
    },
    /// No OVMF of the right build is installed.
    #[error("no OVMF firmware with Secure Boot is installed (Debian package: ovmf)")]
    Firmware,
    /// A device that the policy forbids was requested or found.
    #[error("the policy forbids {what}")]
    Policy {
        /// The device.
        what: String,
    },
    /// A VM that was just started exposes more than a VM may; it was ended again.
    #[error("the VM exposes more than it may: {what}")]
    Exposed {
        /// The statements that do not hold.
        what: String,
    },
    /// A bridge cannot be used.
    #[error("the bridge {name} {reason}")]
    Switch {
        /// The bridge's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// All ports for hot attachment are taken.
    #[error("no free port for another disk")]
    NoFreePort,
    /// The disk with this serial number is not in the state that the operation needs.
    #[error("disk {serial}: {reason}")]
    DiskAttachment {
        /// Its serial number.
        serial: String,
        /// What is wrong with its state.
        reason: &'static str,
    },
    /// QEMU did not finish copying one image to another.
    #[error("a disk was not copied completely: {reason}")]
    BlockJob {
        /// QEMU's reason.
        reason: String,
    },
    /// QEMU did not send a VM's state, or did not receive it.
    #[error("the state was not transferred: {reason}")]
    Migration {
        /// QEMU's reason.
        reason: String,
    },
    /// The VM no longer runs.
    #[error("the VM has ended: {reason}")]
    Ended {
        /// How it ended.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn vars(path: &Path) -> impl FnOnce(LuksFault) -> Self {
        let path = path.to_path_buf();
        move |fault| Self::Vars { path, fault }
    }

    pub(crate) fn system<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { operation, source: source.into() }
    }
}
