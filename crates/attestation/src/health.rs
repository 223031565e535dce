//! Health certificates: the attestation CA issues them to hosts that passed, and key protection asks for them.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::host_identity::{HostIdentity, HostKind};
use crate::identity::IdentityPublic;
use crate::p256::P256Key;
use crate::pem;

const CERTIFICATE: &str = "CERTIFICATE";
/// Largest certificate accepted, in bytes. Ours are about 1 KiB.
const MAX_DER: usize = 16 << 10;
/// The subjectAltName that binds a health certificate to what the host is registered with; followed by the key's
/// fingerprint.
const HOST_KEY_BINDING: &str = "urn:drydock:host-key:sha256:";
const TPM_BINDING: &str = "urn:drydock:tpm-ek:sha256:";
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
/// `AlgorithmIdentifier` of ecdsa-with-SHA256 (RFC 5758, 3.2), which is what this CA signs with.
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// How far in the past a certificate becomes valid, for hosts whose clock is slow.
const BACKDATE: Duration = Duration::minutes(5);

/// The CA that issues health certificates, and nothing else.
pub struct HealthCa {
    key: P256Key,
    der: Vec<u8>,
}

/// What a valid health certificate states.
pub struct Health {
    /// Name the host was registered under when the certificate was issued.
    pub host_name: String,
    /// How it passed attestation.
    pub host_kind: HostKind,
    /// Fingerprint of the key that passed attestation.
    pub host_fingerprint: String,
    /// The key to encrypt to.
    pub identity: IdentityPublic,
    /// When it expires.
    pub not_after: OffsetDateTime,
}

impl HealthCa {
    /// A CA with a new key, valid from `now` for `lifetime`. `name` is the service's.
    ///
    /// # Errors
    /// `CertificateNotMade`, `Crypto`.
    pub fn generate(name: &str, now: OffsetDateTime, lifetime: Duration) -> Result<Self> {
        let key = P256Key::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name, "attestation");
        params.not_before = now - BACKDATE;
        params.not_after = now + lifetime;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(|_| Error::CertificateNotMade)?;
        Ok(HealthCa { key, der: certificate.der().to_vec() })
    }

    /// Certificate and private key, for a file of mode 0600.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let certificate = pem::encode(CERTIFICATE, &self.der);
        let key = self.key.to_pem();
        let mut both = Zeroizing::new(String::with_capacity(certificate.len() + key.len()));
        both.push_str(&certificate);
        both.push_str(&key);
        both
    }

    /// Reads what [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// `NotPem`, `NotHostKey`, `BadCa` (the certificate is not for that key).
    pub fn from_pem(text: &str) -> Result<Self> {
        let der = pem::decode(CERTIFICATE, text)?.to_vec();
        let key = P256Key::from_pem(text)?;
        let certificate = parse(&der).map_err(|_| Error::BadCa)?;
        if certificate.public_key().raw != key.public_der()? {
            return Err(Error::BadCa);
        }
        Ok(HealthCa { key, der })
    }

    /// The CA's own certificate, in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Certifies that the host passed, until `now + lifetime`. The certificate is X.509 in DER.
    ///
    /// # Errors
    /// `CertificateNotMade`, `BadCa`, `Crypto`.
    pub fn issue(
        &self,
        host_name: &str,
        host: &HostIdentity,
        identity: &IdentityPublic,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<Vec<u8>> {
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| Error::Crypto)?;
        // RFC 5280 4.1.2.2: positive, not zero.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(host_name, "guarded host");
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = now - BACKDATE;
        params.not_after = now + lifetime;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        let binding = format!("{}{}", prefix(host.kind()), host.fingerprint());
        params.subject_alt_names = vec![SanType::URI(binding.try_into().map_err(|_| Error::CertificateNotMade)?)];
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(identity.der()).map_err(|_| Error::CertificateNotMade)?;
        let issuer = Issuer::from_ca_cert_der(&self.der.as_slice().into(), &self.key).map_err(|_| Error::BadCa)?;
        let certificate = params.signed_by(&key, &issuer).map_err(|_| Error::CertificateNotMade)?;
        Ok(certificate.der().to_vec())
    }

    /// Checks everything that the certificate alone can show. Whether the host is *still* registered, the caller asks
    /// its store.
    ///
    /// # Errors
    /// `NotCertificate`, `ForeignIssuer`, `NotYetValid`, `Expired`, `NoHostBinding`, `NotIdentityKey`.
    pub fn verify(&self, der: &[u8], now: OffsetDateTime) -> Result<Health> {
        let certificate = parse(der)?;
        let ca = parse(&self.der).map_err(|_| Error::BadCa)?;
        if certificate.issuer().as_raw() != ca.subject().as_raw()
            || certificate.verify_signature(Some(ca.public_key())).is_err()
            || !is_spelled_as_issued(der, &certificate)
        {
            return Err(Error::ForeignIssuer);
        }
        if now < certificate.validity().not_before.to_datetime() {
            return Err(Error::NotYetValid);
        }
        let not_after = certificate.validity().not_after.to_datetime();
        if now > not_after {
            return Err(Error::Expired);
        }
        // The CA's own certificate is self-signed and would pass the signature check: it has no binding.
        let (host_kind, host_fingerprint) = binding(&certificate).ok_or(Error::NoHostBinding)?;
        let host_name = certificate
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .ok_or(Error::NoHostBinding)?
            .to_owned();
        let identity = IdentityPublic::from_der(certificate.public_key().raw)?;
        Ok(Health { host_name, host_kind, host_fingerprint, identity, not_after })
    }
}

fn subject(name: &str, unit: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Drydock");
    subject.push(DnType::OrganizationalUnitName, unit);
    subject.push(DnType::CommonName, name);
    subject
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>> {
    if der.len() > MAX_DER {
        return Err(Error::NotCertificate);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Error::NotCertificate),
    }
}

/// The signature covers what is certified, not what is wrapped around it, and the parser is lenient about the latter:
/// the outer tags and the outer algorithm must be the ones that [`HealthCa::issue`] writes.
fn is_spelled_as_issued(der: &[u8], certificate: &X509Certificate<'_>) -> bool {
    let signature = [&[0], certificate.signature_value.data.as_ref()].concat();
    let signature = element(BIT_STRING, &signature);
    element(SEQUENCE, &[certificate.tbs_certificate.as_ref(), &ECDSA_SHA256, &signature].concat()) == der
}

/// A DER element (X.690, 8.1 and 10.1).
fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len().to_be_bytes();
    let significant = length.iter().position(|byte| *byte != 0).map_or(&[0][..], |at| &length[at..]);
    let mut out = vec![tag];
    if contents.len() >= 0x80 {
        out.push(0x80 | significant.len().to_le_bytes()[0]);
    }
    out.extend_from_slice(significant);
    out.extend_from_slice(contents);
    out
}

fn prefix(kind: HostKind) -> &'static str {
    match kind {
        HostKind::HostKey => HOST_KEY_BINDING,
        HostKind::Tpm => TPM_BINDING,
    }
}

fn binding(certificate: &X509Certificate<'_>) -> Option<(HostKind, String)> {
    let names = certificate.subject_alternative_name().ok()??;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => [HostKind::HostKey, HostKind::Tpm]
            .into_iter()
            .find_map(|kind| uri.strip_prefix(prefix(kind)).map(|fingerprint| (kind, fingerprint.to_owned()))),
        _ => None,
    }
}
