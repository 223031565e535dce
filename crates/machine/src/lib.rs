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
mod engine;
mod error;
mod process;
mod sealed;
pub mod spec;
pub mod tap;
pub mod user;

pub use engine::argv as qemu;
pub use engine::exposure as proof;
pub use engine::orphan::{end_orphan, find_qemu, find_qemu_with};
pub use engine::running::{self, Exit, Running, StartOptions};
pub use engine::session;
use engine::{merge, outgoing, qmp};
pub use error::Error;
pub use sealed::slot as state;
pub use sealed::{luks, record};
use sealed::{policy_nv, swtpm, swtpm_ctrl};
pub use spec::{Backing, ConsoleProfile, DiskFormat, DiskSpec, Firmware, NicSpec, Policy, VmSpec};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
