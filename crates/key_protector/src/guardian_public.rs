//! A guardian's public half.

use time::OffsetDateTime;

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, Role, check_pair};
use crate::error::{Error, KeyError, Result};
use crate::metadata;
use crate::signature::{Signature, algorithm_of};

/// What everybody may know about a guardian, under its own signatures (MS-KPS 3.1.5.1.2).
///
/// [`GuardianPublic::to_xml`] and [`GuardianPublic::parse`] are its document form. The signatures
/// are verified whenever a value of this type is made. They prove that whoever made it holds the
/// signing key, not who that is: compare the fingerprint over a channel that is trusted.
#[derive(Clone, Debug)]
pub struct GuardianPublic {
    role: Role,
    pub(crate) signing: Certificate,
    pub(crate) encryption: Certificate,
    pub(crate) encryption_signature: Signature,
    pub(crate) self_signature: Signature,
    /// The document form; it is the only place of the signature over the whole document.
    xml: Vec<u8>,
}

impl GuardianPublic {
    /// Makes the public half from two certificates with the help of the signing key, which `sign`
    /// uses as [`Signer::sign`](crate::Signer::sign) does: three signatures, all of them checked.
    ///
    /// # Errors
    /// [`Error::KeyOperation`] if `sign` fails; [`Error::GuardianSelf`] if its key is not that of
    /// `signing`; or whatever makes the certificates unfit for a guardian.
    pub fn self_signed(
        signing: Certificate,
        encryption: Certificate,
        sign: impl Fn(SignatureAlgorithm, &[u8]) -> std::result::Result<Vec<u8>, KeyError>,
    ) -> Result<Self> {
        let algorithm = algorithm_of(&signing);
        let sign = |message: &[u8]| match sign(algorithm, message) {
            Ok(value) => Ok(Signature { algorithm, value }),
            Err(source) => {
                Err(Error::KeyOperation { guardian: signing.common_name().to_owned(), operation: "sign", source })
            }
        };
        let encryption_signature = sign(encryption.der())?;
        let self_signature = sign(signing.der())?;
        let body = metadata::Body {
            signing: &signing,
            encryption: &encryption,
            encryption_signature: &encryption_signature,
            self_signature: &self_signature,
        };
        let metadata_signature = sign(&body.to_be_signed()?)?;
        Self::new(metadata::Document { signing, encryption, encryption_signature, self_signature, metadata_signature })
    }

    /// Reads and verifies a document of at most 64 KiB.
    ///
    /// # Errors
    /// Whatever is wrong with the document, its certificates or its signatures.
    pub fn parse(xml: &[u8]) -> Result<Self> {
        let guardian = Self::new(metadata::read(xml)?)?;
        // Writing it again settles everything that metadata::read() skips: the versions, and every
        // algorithm and digest in SignedInfo.
        if guardian.to_xml() != xml {
            return Err(Error::NotCanonical { document: metadata::DOCUMENT });
        }
        Ok(guardian)
    }

    /// Puts the parts together and checks all three signatures.
    fn new(document: metadata::Document) -> Result<Self> {
        let metadata::Document { signing, encryption, encryption_signature, self_signature, metadata_signature } =
            document;
        let role = check_pair(&signing, &encryption)?;
        if !self_signature.is_by(&signing, signing.der()) {
            return Err(Error::GuardianSelf { which: "signing certificate self" });
        }
        if !encryption_signature.is_by(&signing, encryption.der()) {
            return Err(Error::GuardianSelf { which: "encryption certificate" });
        }
        let body = metadata::Body {
            signing: &signing,
            encryption: &encryption,
            encryption_signature: &encryption_signature,
            self_signature: &self_signature,
        };
        if !metadata_signature.is_by(&signing, &body.to_be_signed()?) {
            return Err(Error::MetadataSignature);
        }
        Ok(Self {
            role,
            xml: body.signed_by(&metadata_signature)?.into_bytes(),
            signing,
            encryption,
            encryption_signature,
            self_signature,
        })
    }

    /// The document form, in UTF-8.
    pub fn to_xml(&self) -> Vec<u8> {
        self.xml.clone()
    }

    /// The guardian's name, the common name of both certificates.
    pub fn name(&self) -> &str {
        self.signing.common_name()
    }

    /// The guardian's role, the organisational unit of both certificates.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The certificate of the signing key.
    pub fn signing(&self) -> &Certificate {
        &self.signing
    }

    /// The certificate of the encryption key.
    pub fn encryption(&self) -> &Certificate {
        &self.encryption
    }

    /// When the first of the two certificates expires.
    pub fn not_after(&self) -> OffsetDateTime {
        self.signing.not_after().min(self.encryption.not_after())
    }

    /// Whether both certificates are valid at `now`.
    ///
    /// # Errors
    /// [`Error::NotYetValid`] or [`Error::Expired`].
    pub fn check_valid_at(&self, now: OffsetDateTime) -> Result<()> {
        self.signing.check_valid_at(now)?;
        self.encryption.check_valid_at(now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::metadata::Body;
    use crate::test_support::{assert_refused, guardian};
    use crate::{Guardian, Signer};

    fn sign(by: &Guardian, message: &[u8]) -> Signature {
        let algorithm = algorithm_of(by.public().signing());
        Signature { algorithm, value: by.sign(algorithm, message).unwrap() }
    }

    #[test]
    fn round_trip() {
        let public = guardian("fabric", Role::Fabric).public();
        let read = GuardianPublic::parse(&public.to_xml()).unwrap();
        assert_eq!(read.signing(), public.signing());
        assert_eq!(read.encryption(), public.encryption());
        assert_eq!(read.role(), Role::Fabric);
        assert_eq!(read.to_xml(), public.to_xml());
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let xml = guardian("fabric", Role::Fabric).public().to_xml();
        let mut changed = xml.clone();
        for (place, original) in xml.iter().enumerate() {
            for mask in [0x01, 0x20, 0x80] {
                changed[place] = original ^ mask;
                assert!(GuardianPublic::parse(&changed).is_err(), "byte {place}");
            }
            changed[place] = *original;
        }
    }

    #[test]
    fn a_signature_of_somebody_else_is_refused() {
        let fabric = guardian("fabric", Role::Fabric);
        let other = guardian("second-fabric", Role::Fabric);
        let public = fabric.public();
        let with = |encryption: &GuardianPublic, signature: Signature, own: Signature| {
            let body = Body {
                signing: &public.signing,
                encryption: &encryption.encryption,
                encryption_signature: &signature,
                self_signature: &own,
            };
            let document = sign(fabric, &body.to_be_signed().unwrap());
            let xml = body.signed_by(&document).unwrap();
            GuardianPublic::parse(xml.as_bytes()).map(drop)
        };
        let (signature, own) = (&public.encryption_signature, &public.self_signature);
        assert!(with(public, signature.clone(), own.clone()).is_ok());
        let by_other = sign(other, public.encryption.der());
        let refused = with(public, by_other, own.clone());
        assert_refused!(refused, GuardianSelf);
        let by_other = sign(other, public.signing.der());
        let refused = with(public, signature.clone(), by_other);
        assert_refused!(refused, GuardianSelf);
        // Somebody else's encryption certificate cannot be claimed under another name.
        let claimed = sign(fabric, other.public().encryption.der());
        let refused = with(other.public(), claimed, own.clone());
        assert_refused!(refused, NamesDiffer);

        let body = Body {
            signing: &public.signing,
            encryption: &public.encryption,
            encryption_signature: signature,
            self_signature: own,
        };
        let document = sign(other, &body.to_be_signed().unwrap());
        let xml = body.signed_by(&document).unwrap();
        let refused = GuardianPublic::parse(xml.as_bytes());
        assert_refused!(refused, MetadataSignature);
    }
}
