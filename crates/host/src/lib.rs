//! The guarded-host agent: keeps VMs, gets their keys, starts and stops them, and answers on a unix socket.
//!
//! ```text
//! server ─▶ service ─▶ agent ── start ─ seal ─ channels ─ create ─ migration      operations on a VM
//!                        │                 │
//!                        ├─ vm_lock        └─ keys ─ guarded, local_guardians, offline
//!                        └─ store ─ vm_dir ─ vm_files
//! ```
//!
//! The agent distrusts everything that a tenant wrote (images, protectors, what comes back from a repair) and the
//! VM's own files: what counts is the sealed record, which opens only under the VM's transport key. [`Unsealed`] is
//! the one place where a record is opened, compared with the files, and sealed again.

#![warn(missing_docs)]

mod agent;
pub mod api;
mod channels;
pub mod client;
mod console;
mod create;
pub mod disks;
mod guarded;
mod holder;
mod keys;
mod local_guardians;
pub mod migration;
mod offline;
pub mod protector_update;
mod seal;
pub mod server;
pub mod service;
mod session;
mod start;
mod store;
mod vm_dir;
mod vm_files;
mod vm_lock;

pub use agent::Agent;
pub use create::free_space;
pub use guarded::{Guarded, HostProof};
pub use keys::KeySource;
pub use local_guardians::LocalGuardians;
pub use seal::{Resealed, Unsealed};
pub use start::{first_start, start};
pub use store::Store;
pub use vm_dir::VmDir;
pub use vm_files::VmFiles;
pub use vm_lock::VmLock;
