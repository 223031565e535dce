//! Guardians and key protectors.
//!
//! A *guardian* is a named pair of X.509 certificates with their private keys. A *key protector*
//! is the XML document in which a VM's transport key is wrapped for its owner and for guardians
//! whose certificates chain to that owner. The format is the `Protector` of the Key Protection
//! Service protocol, [MS-KPS]; where that specification leaves the cryptography to the
//! implementation, this crate uses the W3C algorithm identifiers listed in [`protector`].
//!
//! The crate does no I/O and reads no clock: documents come and go as bytes, and every operation
//! that depends on the time takes `now` as an argument.
//!
//! [MS-KPS]: https://learn.microsoft.com/openspecs/windows_protocols/ms-kps/

mod certificate;
mod error;
mod guardian;
mod key_file;
mod metadata;
pub mod protector;
mod signature;
pub mod signed;
mod strict_xml;
mod transport_key;

pub use certificate::{Certificate, Role};
pub use error::{Error, Result};
pub use guardian::{Guardian, GuardianKeys, GuardianPublic, KeyKind};
pub use protector::{Protector, Rolled, Wrapping};
pub use transport_key::{DerivedKey, TransportKey};

#[cfg(test)]
mod test_support;
