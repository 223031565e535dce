//! Guardians and key protectors.
//!
//! A *guardian* is a named pair of X.509 certificates with their private keys. A *key protector*
//! is the XML document in which a VM's transport key is wrapped for its owner and for guardians
//! whose certificates chain to that owner. The format is the `Protector` of the Key Protection
//! Service protocol, [MS-KPS]; where that specification leaves the cryptography to the
//! implementation, this crate uses the W3C algorithm identifiers listed in [`protector`].
//!
//! The crate does no I/O and reads no clock: documents come and go as bytes, and every operation
//! that depends on the time takes `now` as an argument. It depends on no other crate of Drydock;
//! `hgs`, `machine`, `host`, `recovery` and the command line are built on it.
//!
//! # A recovery, as far as keys are concerned
//!
//! ```
//! use key_protector::{Error, Guardian, KeyKind, Protector, Role};
//! use time::{Duration, OffsetDateTime};
//!
//! # fn main() -> key_protector::Result<()> {
//! let now = OffsetDateTime::now_utc();
//! let guardian = |name, role, lifetime| Guardian::generate(name, role, KeyKind::Rsa2048, now, now + lifetime);
//! let owner = guardian("tenant", Role::Owner, Duration::days(365))?;
//! let fabric = guardian("fabric", Role::Fabric, Duration::days(365))?;
//! let garage = guardian("garage", Role::Recovery, Duration::hours(8))?;
//!
//! // The owner issues a protector of a new transport key for the fabric, which can open it.
//! let (protector, key) = Protector::new(&owner, &[fabric.public().clone()], now)?;
//! let file = protector.to_xml();
//! let protector = Protector::parse(&file)?;
//! assert_eq!(protector.open(&fabric, now)?.expose(), key.expose());
//! assert!(matches!(protector.open(&garage, now), Err(Error::NotARecipient { .. })));
//!
//! // The owner grants the same key to the garage, for as long as its guardian lives.
//! let granted = protector.grant(&owner, garage.public(), now)?;
//! assert_eq!(granted.open(&garage, now)?.expose(), key.expose());
//!
//! // The garage rolls the VM onto a key of its own, which the owner can open and the fabric cannot.
//! let rolled = granted.roll(&garage, &[], now)?;
//! assert_eq!(rolled.ingress.expose(), key.expose());
//! assert_eq!(rolled.egress_protector.open(&owner, now)?.expose(), rolled.egress.expose());
//! assert!(matches!(rolled.egress_protector.open(&fabric, now), Err(Error::NotARecipient { .. })));
//! # Ok(())
//! # }
//! ```
//!
//! # Seams
//!
//! - [`Signer`] and [`Opener`] are an owner's two private operations. [`Guardian`] is the
//!   implementation with keys in memory; a token is another.
//! - [`Approval`] says who must have signed a [`signed`] document.
//!
//! [MS-KPS]: https://learn.microsoft.com/openspecs/windows_protocols/ms-kps/
#![warn(missing_docs)]

mod algorithm;
mod approval;
mod certificate;
mod error;
mod guardian;
mod guardian_public;
mod key_file;
mod key_wrap;
mod memory_keys;
mod metadata;
mod private_keys;
pub mod protector;
mod signature;
pub mod signed;
mod strict_xml;
#[cfg(test)]
mod test_support;
mod transport_key;

pub use algorithm::SignatureAlgorithm;
pub use approval::{Approval, Approved, Refusal};
pub use certificate::{Certificate, Role};
pub use error::{Error, KeyError, Result};
pub use guardian::{Guardian, GuardianKeys};
pub use guardian_public::GuardianPublic;
pub use memory_keys::KeyKind;
pub use private_keys::{Identified, KeyResult, Opener, PrivateKeys, Signer};
pub use protector::{Protector, Rolled, Wrapping};
pub use transport_key::{DerivedKey, TransportKey};
