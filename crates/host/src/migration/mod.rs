//! Live migration: a running VM goes to another attested host, its disks with it.
//!
//! ```text
//! source                                             destination
//!   offer: protector, sealed record, devices ──────────▶ has the protector rolled: only an attested host gets the key
//!   proof of the transport key ◀─────────────────────── proof of the transport key
//!   proof of the transport key ────────────────────────▶ fresh slot under the egress key, QEMU without a guest
//!   disks, then memory ────────────────────────────────▶ ready; loaded, paused
//!   paused; `handed-over.json` ─ run ──────────────────▶ guest resumes, flushed, complete
//!   VM ended and removed ◀────────────────────────────── running
//! ```
//! Up to `run` either side can give up: the guest resumes at the source, and the destination removes everything. From
//! then on the source's guest resumes only when the destination says that its own never will. When no answer arrives,
//! [`HandedOver`](crate::api::HandedOver) stays, and keeps the VM from being started there.
//!
//! Every connection is TLS 1.3, and both ends prove over its exporter that they have the key: see `migration::channel`.

mod channel;
mod destination;
mod messages;
mod offer;
mod source;

pub use destination::Destination;
pub use messages::respell;
pub(crate) use source::{migrate, take_back};
