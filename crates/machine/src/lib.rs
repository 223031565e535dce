//! One virtual machine on QEMU, swtpm and OVMF, its state at rest under one transport key.
//!
//! ```text
//! host, recovery ──> machine ──> engine   QEMU: start, disks, sessions, migration, exposure report
//!                       │          ├────> sealed   state at rest: record, UEFI variables, vTPM
//!                       │          ├────> disk, tap, accel   images, ports on bridges, KVM or TCG
//!                       │          └────> process, user   children without rights
//!                       └──────> spec   what a VM is made of, checked
//! ```
//! It depends on `key_protector` for the transport key and on `confine` for the rights of child processes, and knows no
//! store, no network and no recovery.
//!
//! | Module | Subject |
//! |---|---|
//! | [`spec`] | what a VM is made of, checked |
//! | [`engine`] | the only code that knows QEMU; [`RunningVm`] and the operations on it |
//! | [`exposure`], [`session`] | parts of it: what a running VM exposes; a byte stream to a service of the guest |
//! | [`sealed`] | the state at rest, sealed under keys from one transport key |
//! | [`record`], [`slot`], [`luks`] | parts of it: the sealed record; the directory; the UEFI variables' container |
//! | [`accel`] | whether KVM works on this machine, and why |
//! | [`disk`] | what a disk image must not bring along |
//! | [`tap`] | a VM's ports on bridges |
//! | [`user`] | who QEMU and swtpm run as; `confine` decides what they see of the file system |
//!
//! Secrets reach the child processes through pipes that they inherit, never through an argument, an environment variable
//! or a file.
#![warn(missing_docs)]

pub mod accel;
pub mod disk;
pub mod engine;
mod error;
mod process;
pub mod sealed;
pub mod spec;
pub mod tap;
pub mod user;

pub use engine::{
    Exit, HOT_PORTS, RunningVm, StartOptions, end_orphan, exposure, find_qemu, find_qemu_with, qmp, session,
};
pub use error::{Error, LuksFault, RecordField, Result};
pub use sealed::{OpenSlot, luks, record, slot};
pub use spec::{ConsoleProfile, DiskSpec, Firmware, NicSpec, Policy, VmSpec};
