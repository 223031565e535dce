//! A VM's state at rest, all of it sealed under keys derived from one transport key.
//!
//! ```text
//! open_slot ──> slot ──> record      identity, policy and devices (AES-256-GCM)
//!                 ├────> luks        UEFI variables
//!                 └────> swtpm ──> swtpm_ctrl, policy_nv      vTPM, and the policy measured into it
//! ```
//! Nothing in here knows a store, a network or QEMU.

pub mod luks;
mod open_slot;
mod policy_nv;
pub mod record;
pub mod slot;
pub(crate) mod swtpm;
mod swtpm_ctrl;

pub use open_slot::OpenSlot;
pub use record::SealedRecord;
