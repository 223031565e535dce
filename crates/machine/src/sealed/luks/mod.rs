//! The LUKS container that holds the UEFI variables. We write it; QEMU opens it and writes into it like one of its own.
//!
//! ```text
//! container (seal, open) ──> header ──> layout
//!             └────────────> split ──────┘
//! ```
//! LUKS On-Disk Format Specification 1.2.3, with the only set of algorithms that QEMU uses by default: AES-256 in XTS
//! mode with the sector number (`xts-plain64`), SHA-256. The passphrase is a random key, so stretching it protects
//! nothing: the iteration counts are the lowest that QEMU would use.
//!
//! QEMU can create such a container, but measures for seconds how many iterations the machine can afford.

mod container;
mod header;
mod layout;
mod split;

pub use container::{open, seal};
pub use header::Header;
pub use layout::{HEADER_LEN, HOLE, MAX_LEN, SECTOR};
