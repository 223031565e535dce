//! A VM's state at rest under one transport key.

pub mod luks;
pub(crate) mod policy_nv;
pub mod record;
pub mod slot;
pub(crate) mod swtpm;
pub(crate) mod swtpm_ctrl;
