//! The recovery of a shielded VM: commands, each a list of journaled steps that can be killed anywhere and run again.
//!
//! # Rooms
//!
//! One module for each side of a recovery, which imports no other side; what all of them share; and on top what only
//! chooses between the sides.
//!
//! ```text
//!                    service ── abort                       the agent's requests
//!          ┌────────────┼───────────────┐
//!        host       garage_host       garage       tenant    the sides
//!       export        attach          import       grant
//!     export_file     detach          finish
//!      reinstate        rg          guardian key
//!  commit rollback     undo           tools
//!   original verify                   rg undo
//!       rg undo
//!          └────────────┼───────────────┴────────────┘
//!     vmre   damaged   rg   status   documents               shared by the sides
//!               journal                                      runs the steps, undoes them
//!                step                                        the table of steps
//! ```
//!
//! | Module | Subject |
//! |---|---|
//! | `step` | the steps in one table: side, command, the sentence of `recovery status`, undo |
//! | `journal` | which steps are done, durably; the runner of steps and of their undo actions |
//! | [`documents`] | request, grant and hand-back receipt |
//! | `rg` | what all sides know of the RG disk |
//! | `vmre` | the repair garage as a VM of its host |
//! | `damaged` | the damaged VM, as a command must find it |
//! | `status` | where a recovery stands, for people |
//! | [`api`] | the agent's requests about recoveries, and its answers |
//!
//! # Steps
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
//! commands of its own: `attach ─ GarageNested ─ PluggedIn` and `detach ─ TakenOut ─ Closed`.
//!
//! With `--keep-original` a reinstatement ends at `Kept`; `commit` continues from there, `rollback` leads back.
//! `abort` leads from any earlier step back to the VM as it was before the export.

#![warn(missing_docs)]

mod abort;
pub mod api;
mod crash;
mod damaged;
pub mod documents;
mod garage;
mod garage_host;
mod host;
mod journal;
#[cfg(test)]
mod rehearsal;
mod rg;
mod service;
mod status;
mod step;
mod tenant;
mod vmre;

pub use journal::{Beginning, Entry, Journal};
pub use service::{AgentService, Request};
pub use step::{Side, Step};
pub use tenant::grant;
