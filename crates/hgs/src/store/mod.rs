//! What the service knows and has done, in SQLite or PostgreSQL. The SQL is the subset that both accept.

mod answered;
mod engine;
mod hosts;
mod log;
mod open;
mod permits;
mod policy;
mod protectors;
mod settings;

pub use engine::StoreUrl;
pub use hosts::HostEntry;
pub(crate) use open::Store;
pub use protectors::InUse;
pub(crate) use protectors::{Egress, Release, key_id};
pub(crate) use settings::{REFUSE, STALE};
