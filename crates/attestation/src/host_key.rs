//! The key that identifies a host to the Host Guardian Service.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::identity::IdentityPublic;
use crate::p256::P256Key;
use crate::pem;

const PUBLIC_LABEL: &str = "PUBLIC KEY";

/// The start of a P-256 SubjectPublicKeyInfo (RFC 5480): everything up to the uncompressed point. Only this encoding is
/// accepted, so that equal keys have equal bytes and one fingerprint.
const SPKI_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const SPKI_LEN: usize = 91;

/// A host's long-lived signing key pair. The caller keeps the PEM in a file of mode 0600.
pub struct HostKey(P256Key);

impl HostKey {
    /// A new key.
    ///
    /// # Errors
    /// `Crypto` when the library has no randomness.
    pub fn generate() -> Result<Self> {
        P256Key::generate().map(HostKey)
    }

    /// Reads PKCS#8 in PEM.
    ///
    /// # Errors
    /// `NotPem`, `NotHostKey`.
    pub fn from_pem(text: &str) -> Result<Self> {
        P256Key::from_pem(text).map(HostKey)
    }

    /// The private key as PKCS#8 in PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.0.to_pem()
    }

    /// The public half.
    ///
    /// # Errors
    /// `Crypto` when the library cannot encode it.
    pub fn public(&self) -> Result<HostPublicKey> {
        HostPublicKey::from_der(&self.0.public_der()?)
    }

    /// The file that `drydock hgs add-host` reads: SubjectPublicKeyInfo in PEM.
    #[must_use]
    pub fn public_pem(&self) -> String {
        // The library parsed or made the pair: its point is the 65 bytes that the prefix announces.
        pem::encode(PUBLIC_LABEL, &rcgen::PublicKeyData::subject_public_key_info(&self.0)).to_string()
    }

    /// MS-HGSA 2.2.1.2, HostKeySignature: over HostKeyPublicKey and VirtualSecureModeIdentityKey, consecutively.
    ///
    /// # Errors
    /// `Crypto` when the library fails.
    pub fn certify(&self, identity: &IdentityPublic) -> Result<Vec<u8>> {
        self.0.sign(&signed_bytes(&self.public()?, identity))
    }

    /// A key for data that only this host can read: HKDF-SHA256 of the private key in PKCS#8, with `label` as info.
    ///
    /// # Errors
    /// `Crypto` when the library fails.
    pub fn derive(&self, salt: &[u8], label: &str) -> Result<Zeroizing<[u8; 32]>> {
        let mut derived = Zeroizing::new([0; 32]);
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(self.0.pkcs8());
        prk.expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(derived.as_mut()))
            .map_err(|_| Error::Crypto)?;
        Ok(derived)
    }
}

/// The public half. Equality is equality of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPublicKey {
    der: [u8; SPKI_LEN],
}

impl HostPublicKey {
    /// Reads DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// `NotHostKey` for anything but the one DER encoding of a valid P-256 point.
    pub fn from_der(der: &[u8]) -> Result<Self> {
        let der: [u8; SPKI_LEN] = der.try_into().map_err(|_| Error::NotHostKey)?;
        if !der.starts_with(&SPKI_PREFIX) {
            return Err(Error::NotHostKey);
        }
        ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, der).map_err(|_| Error::NotHostKey)?;
        Ok(HostPublicKey { der })
    }

    /// Reads PEM or DER: the file that an admin was given.
    ///
    /// # Errors
    /// `NotHostKey`.
    pub fn from_file(bytes: &[u8]) -> Result<Self> {
        if bytes.first() == Some(&SPKI_PREFIX[0]) {
            return Self::from_der(bytes);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Error::NotHostKey)?;
        Self::from_der(&pem::decode(PUBLIC_LABEL, text).map_err(|_| Error::NotHostKey)?)
    }

    /// DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Lower-case hexadecimal SHA-256 of [`der`](Self::der).
    #[must_use]
    pub fn fingerprint(&self) -> String {
        HEXLOWER.encode(digest(&SHA256, &self.der).as_ref())
    }

    /// Whether `signature` was made by this key over itself and `identity`.
    #[must_use]
    pub fn certified(&self, identity: &IdentityPublic, signature: &[u8]) -> bool {
        self.verify(&signed_bytes(self, identity), signature)
    }

    /// Whether `signature` (ECDSA with SHA-256, ASN.1) was made by this key over `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.der)
            .is_ok_and(|key| key.verify_sig(message, signature).is_ok())
    }

    /// The file that [`from_file`](Self::from_file) reads.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode(PUBLIC_LABEL, &self.der).to_string()
    }
}

/// The first part has a fixed length, so the concatenation is unambiguous.
fn signed_bytes(host: &HostPublicKey, identity: &IdentityPublic) -> Vec<u8> {
    [host.der(), identity.der()].concat()
}
