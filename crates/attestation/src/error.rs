//! What can be wrong with keys, certificates and evidence.

pub type Result<T> = std::result::Result<T, Error>;

/// One variant per broken rule; none of them carries bytes of the offending input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not PEM of the expected kind")]
    NotPem,
    #[error("the host key is not an ECDSA P-256 key")]
    NotHostKey,
    #[error("the identity key is not an RSA key of 2048 to 4096 bits")]
    NotIdentityKey,
    #[error("the endorsement key is not an RSA key of 2048 bits")]
    NotEndorsementKey,
    #[error("the cryptographic library failed")]
    Crypto,
    #[error("a certificate could not be made")]
    CertificateNotMade,
    #[error("the attestation CA's certificate is damaged")]
    BadCa,
    #[error("the health certificate is not a certificate")]
    NotCertificate,
    #[error("the health certificate was not issued by this service's attestation CA")]
    ForeignIssuer,
    #[error("the health certificate does not say which host it is for")]
    NoHostBinding,
    #[error("the health certificate is not valid yet")]
    NotYetValid,
    #[error("the health certificate has expired")]
    Expired,
    #[error("the answer could not be decrypted with this host's identity key")]
    NotForThisIdentity,
}
