//! The RG disk: the VHDX on which a damaged VM travels into the repair garage and back. In copy mode its disks are on
//! it; in overlay mode each is attached to the garage separately, as an overlay on the untouched original.
//!
//! The crate `recovery` decides what goes onto an RG disk and what is believed of it. The crate `image` reads and
//! writes the VHDX itself.
//!
//! ```text
//!  host, exporting        VHDX file                      VMRE                host, reinstating
//!  container::create ──▶ GPT │ dd-manifest │ dd-state │ dd-disk-N ──▶ device::Device ──▶ container::read
//!                                                                     (kernel's view)     container::extract_disk
//! ```
//!
//! Who distrusts whom: everything on the disk can be written by the tenant (from inside the VMRE) and by
//! the fabric (from outside). Both sides therefore read a GPT, a manifest and a bundle, in user space,
//! within fixed limits, and nothing else; a malformed byte is a typed error, never a panic.
//!
//! Key protectors, receipts and sealed state are opaque bytes here: this crate checks that they arrived as
//! they were sent (SHA-256), not what they mean. The digests guard against damage, not against an
//! attacker, who can recompute them; the signatures and seals inside those bytes guard against that.
//!
//! All functions block. From async code call them in `tokio::task::spawn_blocking`; [`image::Cancel`] stops them.

#![warn(missing_docs)]

pub mod container;
pub mod device;
mod error;
pub mod layout;
pub mod manifest;
#[cfg(test)]
mod memory;
pub mod state;

pub use container::Contents;
pub use device::Device;
pub use error::{Error, Result};
pub use layout::{Layout, Partition};
pub use manifest::{Direction, Disk, Manifest, Mode};
pub use state::Bundle;
