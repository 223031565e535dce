//! The repair garage's side: the tenant takes the VM in with `import`, repairs it, and hands it back with `finish`.

pub(crate) mod finish;
pub(crate) mod import;
pub mod key;
pub(crate) mod tools;
