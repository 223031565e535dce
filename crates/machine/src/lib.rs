//! One virtual machine on QEMU, swtpm and OVMF, its state at rest under one transport key.
//!
//! | Module | Subject |
//! |---|---|
//! | [`spec`] | what a VM is made of, checked |
//! | [`accel`] | whether KVM can be used here, and why |
//! | [`record`] | the sealed record: identity, policy and devices, under AES-256-GCM |
//! | [`luks`] | the UEFI variables' container |
//! | [`state`] | a slot: record, UEFI variables and vTPM under keys from one transport key |
//! | [`qemu`] | typed spec to QEMU command line; pure |
//! | [`disk`] | what a disk image must not bring along, and its description for QEMU |
//! | [`tap`] | a VM's port on a virtual switch |
//! | [`user`] | who QEMU and swtpm run as; what they see of the file system is `confine`'s |
//! | [`proof`] | what a running VM exposes, as kernel and QEMU say |
//! | [`running`] | a live VM; its overlays merged while it runs; its state passed to another host's QEMU, or taken from one |
//! | [`session`] | bytes between the host and a service of the guest's, where the console profile has them |
//!
//! Secrets reach the child processes through pipes that they inherit, never through an argument,
//! an environment variable or a file.

pub mod accel;
pub mod disk;
mod error;
mod incoming;
pub mod luks;
mod merge;
mod orphan;
mod outgoing;
mod policy_nv;
mod process;
pub mod proof;
pub mod qemu;
mod qmp;
pub mod record;
pub mod running;
pub mod session;
pub mod spec;
pub mod state;
mod swtpm;
mod swtpm_ctrl;
pub mod tap;
pub mod user;

pub use error::Error;
pub use orphan::{end_orphan, find_qemu, find_qemu_with};
pub use running::{Exit, Running, StartOptions};
pub use spec::{ConsoleProfile, DiskSpec, Firmware, NicSpec, Policy, VmSpec};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
