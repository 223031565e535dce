//! The guarded-host agent: keeps VMs, gets their keys, starts and stops them, and answers on a unix socket.
//!
//! The agent distrusts everything that a tenant wrote (images, protectors, what comes back from a repair) and the
//! VM's own files: what counts is the sealed record, which opens only under the VM's transport key.

mod agent;
pub mod api;
pub mod change;
pub mod client;
mod console;
mod create;
pub mod disks;
mod holder;
pub mod keys;
pub mod migration;
mod offline;
pub mod server;
pub mod service;
mod session;
pub mod store;

pub use agent::{Agent, Resealed, VmLock, check_record, open_record};
pub use create::{free_space, record_of};
