//! The signature algorithms by name.

use std::fmt;

const ECDSA_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256";
const RSA_PSS_SHA256: &str = "http://www.w3.org/2007/05/xmldsig-more#sha256-rsa-MGF1";

/// How a guardian's signing key signs. The kind of the key in the certificate decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureAlgorithm {
    /// ECDSA on P-256 with SHA-256. The value is r and s, big-endian, 32 bytes each, as XML
    /// signatures and PKCS#11 (`CKM_ECDSA`) have it; not ASN.1. Guardians with keys in memory use
    /// no other.
    EcdsaP256,
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and a salt of 32 bytes.
    RsaPss,
}

impl SignatureAlgorithm {
    /// The W3C identifier that XML signatures carry.
    pub fn uri(self) -> &'static str {
        match self {
            Self::EcdsaP256 => ECDSA_SHA256,
            Self::RsaPss => RSA_PSS_SHA256,
        }
    }

    pub(crate) fn from_uri(uri: &str) -> Option<Self> {
        [Self::EcdsaP256, Self::RsaPss].into_iter().find(|a| a.uri() == uri)
    }
}

impl fmt::Display for SignatureAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256 => "ECDSA P-256 with SHA-256",
            Self::RsaPss => "RSASSA-PSS with SHA-256",
        })
    }
}
