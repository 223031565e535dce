//! A recovery: seven commands, each a list of journaled steps that can be killed anywhere and run again.
//!
//! ```text
//! host:    export ─ Held ─ NestedOn ─ RgDiskMade ─ Attached ┐            ┌ reinstate ─ Detached ─ Verified ─ Copied
//!                                                           │            │             ─ Swapped ─ Started ─ Merged
//!                                                           │            │             ─ Closed
//! garage:                                                   └ import ─ Imported ─ GuardianMade ─ Requested
//! tenant host:                                                 grant (files only)
//! garage:                                                     import --grant ─ Granted ─ PolicyLowered
//!                                                             finish ─ PolicyRaised ─ HandedBack ─ Cleaned ─ Closed
//! ```
//!
//! Where the garage is on another host, an export ends at `RgDiskMade`, with a file, and the garage's host has two
//! commands of its own: `attach ─ GarageNested ─ PluggedIn` and `detach ─ TakenOut`.
//!
//! With `--keep-original` a reinstatement ends at `Kept`; `commit` goes on from there, `rollback` leads back.
//! `abort` leads from any earlier step back to the VM as it was before the export.

mod abort;
pub mod api;
mod crash;
pub mod documents;
mod garage;
mod garage_host;
mod host;
mod journal;
mod rg;
mod service;
mod status;
mod tenant;

pub use garage::key as garage_key;
pub use journal::{Entry, Journal, Side, Step};
pub use service::{AgentService, Request};
pub use tenant::grant;
