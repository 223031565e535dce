//! What can be wrong with keys, certificates and evidence.

/// The outcome of an operation on keys, certificates or evidence.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per broken rule; none of them carries bytes of the offending input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No block of PEM with the right label, or a damaged one.
    #[error("not PEM of the expected kind")]
    NotPem,
    /// A key of another kind, or in another encoding.
    #[error("the host key is not an ECDSA P-256 key")]
    NotHostKey,
    /// A key of another kind or size.
    #[error("the identity key is not an RSA key of 2048 to 4096 bits")]
    NotIdentityKey,
    /// A key of another kind or size.
    #[error("the endorsement key is not an RSA key of 2048 bits")]
    NotEndorsementKey,
    /// No randomness, or a bug.
    #[error("the cryptographic library failed")]
    Crypto,
    /// A name that no certificate can carry.
    #[error("a certificate could not be made")]
    CertificateNotMade,
    /// It cannot be read, or belongs to another key.
    #[error("the attestation CA's certificate is damaged")]
    BadCa,
    /// It cannot be read.
    #[error("the health certificate is not a certificate")]
    NotCertificate,
    /// Another issuer, or a wrong signature.
    #[error("the health certificate was not issued by this service's attestation CA")]
    ForeignIssuer,
    /// It has no subjectAltName of ours.
    #[error("the health certificate does not say which host it is for")]
    NoHostBinding,
    /// Its lifetime begins later.
    #[error("the health certificate is not valid yet")]
    NotYetValid,
    /// Its lifetime is over.
    #[error("the health certificate has expired")]
    Expired,
    /// It was encrypted to another key, or damaged.
    #[error("the answer could not be decrypted with this host's identity key")]
    NotForThisIdentity,
}
