//! Guardians with their private keys in memory.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyUsagePurpose};
use time::{OffsetDateTime, UtcOffset};
use zeroize::Zeroizing;

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, ORGANIZATION, Role, check_name, check_pair};
use crate::error::{Error, Result};
use crate::guardian_public::GuardianPublic;
use crate::memory_keys::{EncryptionKey, KeyKind, SigningKey, X509Ec, X509Rsa};
use crate::private_keys::{Identified, KeyResult, Opener, Signer};

/// A guardian with its private keys, which are zeroed when it is dropped.
pub struct Guardian {
    public: GuardianPublic,
    signing: SigningKey,
    encryption: EncryptionKey,
}

/// Private keys without certificates: the part of making a guardian that takes time. Zeroed when
/// dropped.
pub struct GuardianKeys {
    signing: SigningKey,
    encryption: EncryptionKey,
}

impl GuardianKeys {
    /// Makes both keys at random.
    ///
    /// # Errors
    /// [`Error::Crypto`].
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
        let public = GuardianPublic::self_signed(signing_certificate, encryption_certificate, |algorithm, message| {
            signing.sign(algorithm, message)
        })?;
        Ok(Self { public, signing, encryption })
    }

    /// What may be handed out.
    pub fn public(&self) -> &GuardianPublic {
        &self.public
    }

    pub(crate) fn signing_pkcs8(&self) -> &[u8] {
        self.signing.pkcs8()
    }

    pub(crate) fn encryption_pkcs8(&self) -> &[u8] {
        self.encryption.pkcs8()
    }
}

impl Identified for Guardian {
    fn public(&self) -> &GuardianPublic {
        &self.public
    }
}

impl Signer for Guardian {
    fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> KeyResult<Vec<u8>> {
        self.signing.sign(algorithm, message)
    }
}

impl Opener for Guardian {
    fn unwrap_key(&self, cipher: &[u8]) -> KeyResult<Zeroizing<Vec<u8>>> {
        self.encryption.unwrap(cipher)
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
    use crate::test_support::{NOW, assert_refused, guardian};

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
        assert_refused!(public.check_valid_at(public.not_after() + Duration::SECOND), Expired);
        assert_refused!(public.check_valid_at(NOW - Duration::days(2)), NotYetValid);
    }

    #[test]
    fn bad_names_and_lifetimes_are_refused() {
        let long = "x".repeat(65);
        for name in ["", " tenant", "tenant\n", long.as_str(), "a\u{7f}b"] {
            let made = Guardian::generate(name, Role::Owner, KeyKind::Rsa2048, NOW, NOW + Duration::DAY);
            assert_refused!(made, Name, "{name:?}");
        }
        for (from, to) in
            [(NOW, NOW), (NOW, NOW - Duration::SECOND), (OffsetDateTime::UNIX_EPOCH - Duration::SECOND, NOW)]
        {
            let made = Guardian::generate("a", Role::Owner, KeyKind::Rsa2048, from, to);
            assert_refused!(made, Lifetime);
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
