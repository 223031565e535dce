//! A protector whose tree of wrappings has been checked: reading, writing, verifying, opening.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use time::OffsetDateTime;

use super::parts::{Parts, Wrapping};
use super::verify;
use crate::error::{Error, Result};
use crate::guardian_public::GuardianPublic;
use crate::key_wrap::unwrap;
use crate::private_keys::Opener;
use crate::transport_key::TransportKey;

/// A key protector. Its wrappings form a tree below one owner, which is checked whenever a value of
/// this type is made. Its signatures are checked by [`Protector::verify`] and [`Protector::open`] only.
#[derive(Clone, Debug)]
pub struct Protector {
    pub(super) parts: Parts,
    pub(super) owner: usize,
    pub(super) signer: usize,
}

impl Protector {
    /// Reads a protector of at most 1 MiB. Anything that the schema does not allow, and any
    /// spelling other than that of [`Protector::to_xml`], is refused.
    ///
    /// Signatures and lifetimes are not checked.
    ///
    /// # Errors
    /// Whatever is wrong with the document, its certificates or the tree of its wrappings.
    pub fn parse(xml: &[u8]) -> Result<Self> {
        Self::from_parts(Parts::read(xml)?)
    }

    /// The only serialisation of this protector: UTF-8, no declaration, no white space between
    /// elements.
    pub fn to_xml(&self) -> Vec<u8> {
        self.parts.to_xml().into_bytes()
    }

    /// SHA-256 of [`Protector::to_xml`], as lower-case hexadecimal.
    pub fn digest(&self) -> String {
        HEXLOWER.encode(digest(&SHA256, &self.to_xml()).as_ref())
    }

    /// The owner's wrapping.
    pub fn owner(&self) -> &Wrapping {
        &self.parts.wrappings[self.owner]
    }

    /// All wrappings, in the document's order.
    pub fn wrappings(&self) -> &[Wrapping] {
        &self.parts.wrappings
    }

    /// The wrapping of the guardian who signed the protector.
    pub fn signer(&self) -> &Wrapping {
        &self.parts.wrappings[self.signer]
    }

    /// How often the transport key may be unwrapped without a service's help; 0 is never.
    pub fn max_offline_unwraps(&self) -> u32 {
        self.parts.max_offline_unwraps
    }

    /// The wrappings whose guardians cannot use the protector at `now`, because a certificate is not
    /// yet valid or has expired. They do not make the protector invalid.
    pub fn expired(&self, now: OffsetDateTime) -> Vec<&Wrapping> {
        let wrappings = self.parts.wrappings.iter();
        wrappings.filter(|w| w.check_valid_at(now).is_err()).collect()
    }

    /// Checks everything that can be checked without the transport key, and that the certificates of
    /// the protector's signer are valid at `now`.
    ///
    /// This does not show that the owner is the right one: compare [`Protector::owner`]'s certificates
    /// with the expected ones.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn verify(&self, now: OffsetDateTime) -> Result<()> {
        verify::signatures(&self.parts, self.signer(), now).map(drop)
    }

    /// Verifies the protector and decrypts the transport key.
    ///
    /// `by` must be a recipient with certificates that are valid at `now`. An owner whose guardian,
    /// or whose protector's signer, has expired can still choose which instant counts.
    ///
    /// # Errors
    /// Those of [`Protector::verify`]; [`Error::NotARecipient`], [`Error::Expired`],
    /// [`Error::Unwrap`], [`Error::KeyOperation`] or [`Error::TransportKeySignature`].
    pub fn open(&self, by: &dyn Opener, now: OffsetDateTime) -> Result<TransportKey> {
        let signed = verify::signatures(&self.parts, self.signer(), now)?;
        let wrapping = self.wrapping_of(by.public())?;
        wrapping.check_valid_at(now)?;
        let key = unwrap(by, &wrapping.cipher, wrapping.id)?;
        verify::check_transport_key(&self.parts, &key, &signed)?;
        Ok(key)
    }

    pub(super) fn wrapping_of(&self, guardian: &GuardianPublic) -> Result<&Wrapping> {
        let mut wrappings = self.parts.wrappings.iter();
        wrappings
            .find(|w| w.is_for(guardian))
            .ok_or_else(|| Error::NotARecipient { guardian: guardian.name().to_owned() })
    }

    pub(super) fn from_parts(parts: Parts) -> Result<Self> {
        let (owner, signer) = verify::check_tree(&parts)?;
        Ok(Self { parts, owner, signer })
    }
}
