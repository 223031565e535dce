//! A small QMP client.
//!
//! ```text
//! client ──> command      what can be sent
//!    └─────> message      what arrives, one line each
//! answers                 what commands return
//! ```
//! Protocol: docs/interop/qmp-spec.rst in QEMU's sources.

mod answers;
mod client;
mod command;
mod message;

pub use answers::{BlockJob, Migration, list, run_state};
pub(crate) use client::Qmp;
pub(crate) use command::Command;
pub use message::{Answer, Event, MAX_LINE, Message, Refusal, read_message};
