//! X.509 certificates of guardians.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::PublicEncryptingKey;
use data_encoding::HEXLOWER;
use time::OffsetDateTime;
use x509_parser::nom;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use crate::error::{Error, Result};

/// The largest certificate that is read, in bytes.
const MAX_DER: usize = 8 * 1024;
/// `ub-common-name` of RFC 5280, appendix A.1, in characters.
const MAX_NAME: usize = 64;
pub(crate) const ORGANIZATION: &str = "Drydock";

const OID_RSA: &str = "1.2.840.113549.1.1.1";
const OID_EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";

/// What a guardian is to a protector. A certificate carries it as its subject's `OU`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The tenant's guardian, which owns protectors and certifies the others.
    Owner,
    /// That of a host guardian service.
    Fabric,
    /// Made inside a repair garage, and short-lived.
    Recovery,
}

impl Role {
    /// The role as it is written in a certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Fabric => "fabric",
            Self::Recovery => "recovery",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Owner, Self::Fabric, Self::Recovery].into_iter().find(|role| role.as_str() == name)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kinds of public key that are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// An uncompressed point of NIST P-256.
    P256 { point: Vec<u8> },
    /// At least 2048 bits: as `RSAPublicKey` (for verifying) and as `SubjectPublicKeyInfo`
    /// (for encrypting).
    Rsa { pkcs1: Vec<u8>, spki: Vec<u8> },
}

impl PublicKey {
    /// The key's own bytes, which tell keys of one kind apart.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::P256 { point } => point,
            Self::Rsa { pkcs1, .. } => pkcs1,
        }
    }
}

/// What a certificate's key is for.
#[derive(Clone, Copy)]
pub(crate) enum Usage {
    /// `digitalSignature`.
    Signing,
    /// `keyEncipherment`, with an RSA key.
    Encryption,
}

/// A certificate that has been parsed, with a key of an accepted kind and size.
///
/// Its issuer is not checked here: in a protector, the signatures in each wrapping do that.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    common_name: String,
    role: Option<Role>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    key: PublicKey,
    digital_signature: bool,
    key_encipherment: bool,
}

impl Certificate {
    /// Parses a DER certificate of at most 8 KiB, with nothing after it.
    ///
    /// # Errors
    /// [`Error::Certificate`], [`Error::Name`] or [`Error::PublicKey`].
    pub fn from_der(der: &[u8]) -> Result<Self> {
        let invalid = |problem| Error::Certificate { problem, source: None };
        if der.len() > MAX_DER {
            return Err(invalid("it is larger than 8 KiB"));
        }
        let (rest, x509) = X509Certificate::from_der(der).map_err(|e| Error::Certificate {
            problem: "it cannot be parsed",
            source: match e {
                nom::Err::Incomplete(_) => None,
                nom::Err::Error(source) | nom::Err::Failure(source) => Some(source),
            },
        })?;
        if !rest.is_empty() {
            return Err(invalid("bytes follow it"));
        }
        let subject = x509.subject();
        let common_name = only(subject.iter_common_name())
            .ok_or_else(|| invalid("its subject does not have exactly one common name"))?;
        check_name(common_name)?;
        let role = only(subject.iter_organization())
            .filter(|organization| *organization == ORGANIZATION)
            .and_then(|_| only(subject.iter_organizational_unit()))
            .and_then(Role::from_name);
        // A missing extension permits nothing here, although X.509 lets it permit everything.
        let usage = x509
            .key_usage()
            .map_err(|source| Error::Certificate { problem: "its key usage cannot be read", source: Some(source) })?;
        let usage = usage.map(|extension| extension.value);
        Ok(Self {
            der: der.to_vec(),
            common_name: common_name.to_owned(),
            role,
            not_before: x509.validity().not_before.to_datetime(),
            not_after: x509.validity().not_after.to_datetime(),
            key: public_key(&x509, common_name)?,
            digital_signature: usage.is_some_and(|u| u.digital_signature()),
            key_encipherment: usage.is_some_and(|u| u.key_encipherment()),
        })
    }

    /// The certificate as it was given.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The guardian's name.
    pub fn common_name(&self) -> &str {
        &self.common_name
    }

    /// The guardian's role, if the subject has `O=Drydock` and one known `OU`.
    pub fn role(&self) -> Option<Role> {
        self.role
    }

    /// SHA-256 of the DER form, as lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        HEXLOWER.encode(digest(&SHA256, &self.der).as_ref())
    }

    /// The first instant at which the certificate is valid.
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// The last instant at which the certificate is valid.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Whether the certificate is valid at `now`, both ends included (RFC 5280, 4.1.2.5).
    ///
    /// # Errors
    /// [`Error::NotYetValid`] or [`Error::Expired`].
    pub fn check_valid_at(&self, now: OffsetDateTime) -> Result<()> {
        if now < self.not_before {
            return Err(Error::NotYetValid { subject: self.common_name.clone(), not_before: self.not_before });
        }
        if now > self.not_after {
            return Err(Error::Expired { subject: self.common_name.clone(), not_after: self.not_after });
        }
        Ok(())
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// Requires the key to be usable for `usage`, and permitted to be.
    pub(crate) fn check_usage(&self, usage: Usage) -> Result<()> {
        let (permitted, name) = match usage {
            Usage::Signing => (self.digital_signature, "digitalSignature"),
            Usage::Encryption => (self.key_encipherment, "keyEncipherment"),
        };
        if !permitted {
            return Err(Error::KeyUsage { subject: self.common_name.clone(), usage: name });
        }
        if matches!(usage, Usage::Encryption) && !matches!(self.key, PublicKey::Rsa { .. }) {
            return Err(Error::PublicKey {
                subject: self.common_name.clone(),
                problem: "an encryption key must be RSA",
            });
        }
        Ok(())
    }

    /// The role, which a guardian's certificate must have.
    pub(crate) fn required_role(&self) -> Result<Role> {
        self.role.ok_or_else(|| Error::Role { subject: self.common_name.clone() })
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("common_name", &self.common_name)
            .field("role", &self.role)
            .field("not_after", &self.not_after)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

/// Requires a guardian's two certificates to be of the right kinds and to agree with each other,
/// and returns the role.
pub(crate) fn check_pair(signing: &Certificate, encryption: &Certificate) -> Result<Role> {
    signing.check_usage(Usage::Signing)?;
    encryption.check_usage(Usage::Encryption)?;
    let role = signing.required_role()?;
    if encryption.required_role()? != role {
        return Err(Error::RolesDiffer);
    }
    if signing.common_name != encryption.common_name {
        return Err(Error::NamesDiffer);
    }
    Ok(role)
}

/// Requires a name that fits a certificate and is safe to print.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let length = name.chars().count();
    if !(1..=MAX_NAME).contains(&length) || name.chars().any(char::is_control) || name.trim() != name {
        return Err(Error::Name);
    }
    Ok(())
}

/// The only value of an attribute; `None` if there are several, or none.
fn only<'a>(mut attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let value = attributes.next()?.as_str().ok()?;
    attributes.next().is_none().then_some(value)
}

fn public_key(x509: &X509Certificate<'_>, subject: &str) -> Result<PublicKey> {
    let refuse = |problem| Error::PublicKey { subject: subject.to_owned(), problem };
    let info = x509.public_key();
    let bits = info.subject_public_key.data.as_ref();
    match info.algorithm.algorithm.to_id_string().as_str() {
        OID_RSA => {
            // The provider refuses fewer than 2048 and more than 8192 bits.
            PublicEncryptingKey::from_der(info.raw).map_err(|_| refuse("not an RSA key of 2048 to 8192 bits"))?;
            Ok(PublicKey::Rsa { pkcs1: bits.to_vec(), spki: info.raw.to_vec() })
        }
        OID_EC_PUBLIC_KEY => {
            let curve = info.algorithm.parameters.as_ref();
            let curve = curve.and_then(|any| any.as_oid().ok());
            if curve.is_none_or(|oid| oid.to_id_string() != OID_P256) {
                return Err(refuse("the only accepted curve is P-256"));
            }
            if bits.len() != 65 || bits.first() != Some(&4) {
                return Err(refuse("not an uncompressed point"));
            }
            Ok(PublicKey::P256 { point: bits.to_vec() })
        }
        _ => Err(refuse("the only accepted keys are RSA and P-256")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::test_support::{assert_refused, guardian};

    /// Made with `openssl req -x509` for `/O=Drydock/OU=fabric/CN=odd`, unless the name says what
    /// is different.
    const RSA_1024: &[u8] = include_bytes!("../testdata/rsa-1024.der");
    const P384: &[u8] = include_bytes!("../testdata/p384.der");
    const ED25519: &[u8] = include_bytes!("../testdata/ed25519.der");
    const NO_USAGE: &[u8] = include_bytes!("../testdata/no-usage.der");
    const TWO_ROLES: &[u8] = include_bytes!("../testdata/two-roles.der");
    const TWO_NAMES: &[u8] = include_bytes!("../testdata/two-names.der");

    #[test]
    fn weak_and_unknown_keys_are_refused() {
        for der in [RSA_1024, P384, ED25519] {
            assert_refused!(Certificate::from_der(der), PublicKey);
        }
    }

    #[test]
    fn a_missing_usage_permits_nothing() {
        let certificate = Certificate::from_der(NO_USAGE).unwrap();
        for usage in [Usage::Signing, Usage::Encryption] {
            assert_refused!(certificate.check_usage(usage), KeyUsage);
        }
    }

    #[test]
    fn an_ambiguous_subject_is_refused() {
        assert_eq!(Certificate::from_der(TWO_ROLES).unwrap().role(), None);
        assert_refused!(Certificate::from_der(TWO_NAMES), Certificate);
    }

    #[test]
    fn bytes_around_a_certificate_are_refused() {
        let der = guardian("tenant", Role::Owner).public().signing().der();
        assert!(Certificate::from_der(der).is_ok());
        let longer = [der, &[0]].concat();
        let cases = [&longer[..], &der[..der.len() - 1], &[], &[0; 9000]];
        for case in cases {
            assert_refused!(Certificate::from_der(case), Certificate);
        }
    }
}
