//! How every part of Drydock reports to whoever ran it, and what all of them agree on in doing so.
//!
//! | Module | Subject |
//! |---|---|
//! | [`error`] | the kinds of failure, their exit codes, and the remedy that a message ends with |
//! | [`name`] | what an object may be called |
//! | [`time`] | how a point in time is written |
//! | [`wire`] | progress, and the lines in which an agent answers |
//!
//! Nothing here knows of VMs, keys or recoveries: every other crate may depend on this one.

pub mod error;
pub mod name;
pub mod time;
pub mod wire;

pub use error::{Context, Error, Kind, Next, Result};
pub use name::check_name;
pub use time::rfc3339;
pub use wire::{Events, Progress};
