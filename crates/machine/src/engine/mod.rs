//! The only code that knows QEMU.

pub mod argv;
pub mod exposure;
mod incoming;
pub(crate) mod merge;
pub mod orphan;
pub(crate) mod outgoing;
pub(crate) mod qmp;
pub mod running;
pub mod session;
