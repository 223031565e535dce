//! The side of the garage's host, where that is not the VM's host: the RG disk goes into the garage with `attach` and
//! comes out of it with `detach`.

pub(crate) mod attach;
pub(crate) mod detach;
mod rg;
pub(crate) mod undo;
