//! The guarded host's side: the VM leaves with `export`, comes back with `reinstate`, and stays repaired with `commit`
//! or as it was with `rollback`.

pub(crate) mod commit;
pub(crate) mod export;
pub(crate) mod export_file;
mod original;
pub(crate) mod reinstate;
mod rg;
pub(crate) mod rollback;
pub(crate) mod undo;
mod verify;
