//! Guardians: a name, a role, a signing key and an encryption key, each with a certificate.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
    PublicEncryptingKey,
};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyUsagePurpose};
use time::{OffsetDateTime, UtcOffset};
use zeroize::Zeroizing;

use crate::certificate::{Certificate, ORGANIZATION, PublicKey, Role, check_name, check_pair};
use crate::error::{Error, Result};
use crate::metadata;
use crate::signature::{Algorithm, Signature};
use crate::transport_key::TransportKey;

/// The size of a new guardian's encryption key. Its signing key is always P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Rsa2048,
    Rsa3072,
}

/// What everybody may know about a guardian, under its own signatures (MS-KPS 3.1.5.1.2).
///
/// [`GuardianPublic::to_xml`] and [`GuardianPublic::parse`] are its document form. The signatures
/// are verified whenever a value of this type is made. They prove who holds the signing key and
/// not whose it is: the fingerprint must be compared over a channel that is trusted.
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
    /// Puts the parts together and checks all three signatures.
    pub(crate) fn new(
        signing: Certificate,
        encryption: Certificate,
        encryption_signature: Signature,
        self_signature: Signature,
        metadata_signature: Signature,
    ) -> Result<Self> {
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

/// A guardian with its private keys, which are zeroed when it is dropped.
pub struct Guardian {
    public: GuardianPublic,
    signing: SigningKey,
    encryption: EncryptionKey,
}

/// Private keys without certificates: what takes time in the making of a guardian. Zeroed when dropped.
pub struct GuardianKeys {
    signing: SigningKey,
    encryption: EncryptionKey,
}

impl GuardianKeys {
    /// # Errors
    /// A failure of the provider.
    pub fn generate(kind: KeyKind) -> Result<Self> {
        Ok(Self { signing: SigningKey::generate()?, encryption: EncryptionKey::generate(kind)? })
    }
}

impl Guardian {
    /// Makes new keys and self-signed certificates for them.
    ///
    /// # Errors
    /// Those of [`Guardian::with_keys`].
    pub fn generate(
        name: &str,
        role: Role,
        keys: KeyKind,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<Self> {
        Self::with_keys(GuardianKeys::generate(keys)?, name, role, not_before, not_after)
    }

    /// Makes self-signed certificates for these keys.
    ///
    /// The lifetime is `not_before` to `not_after`, inclusive, in whole seconds.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Lifetime`], or a failure of the provider.
    pub fn with_keys(
        keys: GuardianKeys,
        name: &str,
        role: Role,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<Self> {
        check_name(name)?;
        let lifetime = lifetime(not_before, not_after)?;
        let GuardianKeys { signing, encryption } = keys;
        let signing_certificate =
            issue(name, role, lifetime, KeyUsagePurpose::DigitalSignature, &X509Ec(&signing.x509_pair()?))?;
        let encryption_certificate =
            issue(name, role, lifetime, KeyUsagePurpose::KeyEncipherment, &X509Rsa(&encryption.x509_pair()?))?;
        Self::assemble(signing_certificate, signing, encryption_certificate, encryption)
    }

    /// Puts a guardian together from certificates and PKCS#8 keys that were read from a file.
    pub(crate) fn from_parts(
        signing_certificate: &[u8],
        signing_key: &[u8],
        encryption_certificate: &[u8],
        encryption_key: &[u8],
    ) -> Result<Self> {
        Self::assemble(
            Certificate::from_der(signing_certificate)?,
            SigningKey::from_pkcs8(signing_key)?,
            Certificate::from_der(encryption_certificate)?,
            EncryptionKey::from_pkcs8(encryption_key)?,
        )
    }

    fn assemble(
        signing_certificate: Certificate,
        signing: SigningKey,
        encryption_certificate: Certificate,
        encryption: EncryptionKey,
    ) -> Result<Self> {
        check_pair(&signing_certificate, &encryption_certificate)?;
        if !signing.belongs_to(&signing_certificate) {
            return Err(Error::KeyMismatch { which: "signing" });
        }
        if !encryption.belongs_to(&encryption_certificate) {
            return Err(Error::KeyMismatch { which: "encryption" });
        }
        let encryption_signature = signing.sign(encryption_certificate.der())?;
        let self_signature = signing.sign(signing_certificate.der())?;
        let metadata_signature = signing.sign(
            &metadata::Body {
                signing: &signing_certificate,
                encryption: &encryption_certificate,
                encryption_signature: &encryption_signature,
                self_signature: &self_signature,
            }
            .to_be_signed()?,
        )?;
        Ok(Self {
            public: GuardianPublic::new(
                signing_certificate,
                encryption_certificate,
                encryption_signature,
                self_signature,
                metadata_signature,
            )?,
            signing,
            encryption,
        })
    }

    /// What may be handed out.
    pub fn public(&self) -> &GuardianPublic {
        &self.public
    }

    pub(crate) fn signing_pkcs8(&self) -> &[u8] {
        &self.signing.pkcs8
    }

    pub(crate) fn encryption_pkcs8(&self) -> &[u8] {
        &self.encryption.pkcs8
    }

    /// Signs `message` as it stands. What is signed in different places must never look alike:
    /// certificates begin with 0x30, XML with `<`, and signed documents with a letter.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Signature> {
        self.signing.sign(message)
    }

    /// Decrypts a wrapped transport key; `None` if it was not made for this guardian.
    pub(crate) fn unwrap(&self, cipher: &[u8]) -> Option<TransportKey> {
        let mut buffer = Zeroizing::new(vec![0; self.encryption.key.min_output_size()]);
        let plain = self.encryption.key.decrypt(&OAEP_SHA256_MGF1SHA256, cipher, &mut buffer, None).ok()?;
        let mut key = Zeroizing::new([0; TransportKey::LEN]);
        if plain.len() != key.len() {
            return None;
        }
        key.copy_from_slice(plain);
        Some(TransportKey::from_bytes(*key))
    }
}

/// Encrypts `key` with RSA-OAEP, SHA-256 throughout and an empty label, for `certificate`.
pub(crate) fn wrap(key: &TransportKey, certificate: &Certificate) -> Result<Vec<u8>> {
    let failed = |_| Error::Crypto { operation: "wrap a transport key" };
    let PublicKey::Rsa { spki, .. } = certificate.public_key() else {
        return Err(Error::PublicKey {
            subject: certificate.common_name().to_owned(),
            problem: "an encryption key must be RSA",
        });
    };
    let public = PublicEncryptingKey::from_der(spki).map_err(|_| Error::Crypto { operation: "read a public key" })?;
    let public = OaepPublicEncryptingKey::new(public).map_err(failed)?;
    let mut cipher = vec![0; public.ciphertext_size()];
    let length = public.encrypt(&OAEP_SHA256_MGF1SHA256, key.expose(), &mut cipher, None).map_err(failed)?.len();
    cipher.truncate(length);
    Ok(cipher)
}

struct SigningKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    fn generate() -> Result<Self> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| Error::Crypto { operation: "generate a signing key" })?;
        Self::from_pkcs8(document.as_ref())
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .map_err(|_| Error::PrivateKey { which: "signing" })?;
        Ok(Self { pkcs8: Zeroizing::new(pkcs8.to_vec()), pair })
    }

    fn belongs_to(&self, certificate: &Certificate) -> bool {
        matches!(certificate.public_key(),
            PublicKey::P256 { point } if point == self.pair.public_key().as_ref())
    }

    fn sign(&self, message: &[u8]) -> Result<Signature> {
        let value = self.pair.sign(&SystemRandom::new(), message).map_err(|_| Error::Crypto { operation: "sign" })?;
        Ok(Signature { algorithm: Algorithm::EcdsaP256, value: value.as_ref().to_vec() })
    }

    /// The same key with ASN.1 signatures, which certificates use.
    fn x509_pair(&self) -> Result<EcdsaKeyPair> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.pkcs8)
            .map_err(|_| Error::PrivateKey { which: "signing" })
    }
}

struct EncryptionKey {
    pkcs8: Zeroizing<Vec<u8>>,
    key: OaepPrivateDecryptingKey,
    spki: Vec<u8>,
}

impl EncryptionKey {
    fn generate(kind: KeyKind) -> Result<Self> {
        let failed = |_| Error::Crypto { operation: "generate an encryption key" };
        let size = match kind {
            KeyKind::Rsa2048 => KeySize::Rsa2048,
            KeyKind::Rsa3072 => KeySize::Rsa3072,
        };
        let key = PrivateDecryptingKey::generate(size).map_err(failed)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        let unusable = || Error::PrivateKey { which: "encryption" };
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| unusable())?;
        let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| unusable())?;
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            spki: spki.as_ref().to_vec(),
            key: OaepPrivateDecryptingKey::new(key).map_err(|_| unusable())?,
        })
    }

    fn belongs_to(&self, certificate: &Certificate) -> bool {
        matches!(certificate.public_key(), PublicKey::Rsa { spki, .. } if *spki == self.spki)
    }

    /// The same key as a signature key: its own certificate is all that it ever signs.
    fn x509_pair(&self) -> Result<RsaKeyPair> {
        RsaKeyPair::from_pkcs8(&self.pkcs8).map_err(|_| Error::PrivateKey { which: "encryption" })
    }
}

/// The provider's keys, lent to the certificate maker without a copy of the private part.
struct X509Ec<'a>(&'a EcdsaKeyPair);
struct X509Rsa<'a>(&'a RsaKeyPair);

impl rcgen::PublicKeyData for X509Ec<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for X509Ec<'_> {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        match self.0.sign(&SystemRandom::new(), message) {
            Ok(signature) => Ok(signature.as_ref().to_vec()),
            Err(_) => Err(rcgen::Error::RemoteKeyError),
        }
    }
}

impl rcgen::PublicKeyData for X509Rsa<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl rcgen::SigningKey for X509Rsa<'_> {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature)
    }
}

#[derive(Clone, Copy)]
struct Lifetime {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

fn lifetime(not_before: OffsetDateTime, not_after: OffsetDateTime) -> Result<Lifetime> {
    let whole_seconds = |instant: OffsetDateTime| {
        instant
            .checked_to_offset(UtcOffset::UTC)
            .and_then(|utc| utc.replace_nanosecond(0).ok())
            .filter(|utc| (1970..=9999).contains(&utc.year()))
            .ok_or(Error::Lifetime)
    };
    let (not_before, not_after) = (whole_seconds(not_before)?, whole_seconds(not_after)?);
    if not_before >= not_after {
        return Err(Error::Lifetime);
    }
    Ok(Lifetime { not_before, not_after })
}

fn issue(
    name: &str,
    role: Role,
    lifetime: Lifetime,
    usage: KeyUsagePurpose,
    key: &impl rcgen::SigningKey,
) -> Result<Certificate> {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, ORGANIZATION);
    subject.push(DnType::OrganizationalUnitName, role.as_str());
    subject.push(DnType::CommonName, name);
    let mut params = CertificateParams::default();
    params.not_before = lifetime.not_before;
    params.not_after = lifetime.not_after;
    params.distinguished_name = subject;
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![usage];
    let certificate = params.self_signed(key).map_err(|source| Error::Issue { source })?;
    Certificate::from_der(certificate.der())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use time::Duration;

    use super::*;
    use crate::test_support::{NOW, guardian};

    fn assert_send_sync<T: Send + Sync>() {}

    #[test]
    fn guardians_cross_threads() {
        assert_send_sync::<Guardian>();
        assert_send_sync::<GuardianPublic>();
    }

    #[test]
    fn certificates_say_who_and_what() {
        let owner = guardian("tenant", Role::Owner);
        let public = owner.public();
        assert_eq!(public.name(), "tenant");
        assert_eq!(public.role(), Role::Owner);
        assert_eq!(public.signing().role(), Some(Role::Owner));
        assert_eq!(public.not_after(), NOW + Duration::days(365));
        assert!(public.check_valid_at(NOW).is_ok());
        assert!(public.check_valid_at(public.not_after()).is_ok());
        assert_eq!(public.check_valid_at(public.not_after() + Duration::SECOND).unwrap_err().kind(), "expired");
        assert_eq!(public.check_valid_at(NOW - Duration::days(2)).unwrap_err().kind(), "not-yet-valid");
    }

    #[test]
    fn bad_names_and_lifetimes_are_refused() {
        let long = "x".repeat(65);
        for name in ["", " tenant", "tenant\n", long.as_str(), "a\u{7f}b"] {
            let made = Guardian::generate(name, Role::Owner, KeyKind::Rsa2048, NOW, NOW + Duration::DAY);
            assert_eq!(made.err().unwrap().kind(), "name", "{name:?}");
        }
        for (from, to) in
            [(NOW, NOW), (NOW, NOW - Duration::SECOND), (OffsetDateTime::UNIX_EPOCH - Duration::SECOND, NOW)]
        {
            let made = Guardian::generate("a", Role::Owner, KeyKind::Rsa2048, from, to);
            assert_eq!(made.err().unwrap().kind(), "lifetime");
        }
    }

    #[test]
    fn a_name_may_be_in_any_script() {
        let made =
            Guardian::generate("Schlüssel 鍵, OU=owner", Role::Recovery, KeyKind::Rsa3072, NOW, NOW + Duration::DAY)
                .unwrap();
        assert_eq!(made.public().name(), "Schlüssel 鍵, OU=owner");
        assert_eq!(made.public().role(), Role::Recovery);
    }
}
