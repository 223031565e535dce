//! The repair garage's side: the tenant takes the VM in with `import`, repairs it, and hands it back with `finish`.

pub(crate) mod finish;
pub(crate) mod guardian;
pub(crate) mod import;
pub(crate) mod key;
mod rg;
pub(crate) mod tools;
pub(crate) mod undo;
