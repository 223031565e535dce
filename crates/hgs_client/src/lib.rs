//! A guarded host's side of the Host Guardian Service: proves who it is, and gets transport keys for it.

mod client;
mod error;
mod status;

pub use client::{HealthCertificate, HgsClient};
pub use error::{Error, Result};
pub use status::{Status, SubStatus};
