//! The only code that knows QEMU: its command line, its control channel, and a VM that runs on it.
//!
//! ```text
//! incoming, outgoing ──> migration ─┐
//! merge, outgoing ─────> jobs ──────┤
//! launch, session, disks, serve ────┴──> running ──> exposure, devices, supervisor, qmp
//!    └──> argv ──> blockdev ──> nodes, file_id; channels, ports
//! ```
//! A [`RunningVm`] is defined in one leaf module; each operation on it is an `impl` in a module of its own.

pub mod argv;
mod blockdev;
mod channels;
mod devices;
mod disks;
pub mod exposure;
mod file_id;
mod incoming;
mod jobs;
mod launch;
mod merge;
mod migration;
mod nodes;
mod orphan;
mod outgoing;
mod ports;
pub mod qmp;
mod running;
mod serve;
pub mod session;
mod supervisor;

pub use channels::chardevs;
pub use launch::StartOptions;
pub use orphan::{end_orphan, find_qemu, find_qemu_with};
pub use ports::HOT_PORTS;
pub use running::RunningVm;
pub use supervisor::Exit;
