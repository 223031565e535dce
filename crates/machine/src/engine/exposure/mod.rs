//! What a running VM exposes, found out at the moment of the request: the kernel is asked about its two processes, and
//! QEMU about its devices. Nothing in the report comes from what was intended.
//!
//! ```text
//! inspect ──> statements ──> report ──> machine, process ──> descriptors ──> procfs
//!                  └───> subject
//! ```
//! What the kernel says holds even if a guest has taken over its QEMU; what QEMU says of itself then does not.

mod descriptors;
mod inspect;
mod machine;
mod process;
mod procfs;
mod report;
mod statements;
mod subject;
#[cfg(test)]
mod tests;

pub use descriptors::{ChannelKind, Descriptor};
pub(crate) use inspect::inspect;
pub use machine::{BlockNode, Chardev, Device, MachineAnswers, MachineExposure};
pub use process::{Capabilities, ProcessExposure};
pub use report::{ExposureReport, Statement};
pub(crate) use subject::Subject;
