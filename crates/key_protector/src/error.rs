//! What can be wrong with a guardian, a protector or a signed document: one variant per rule.

use time::OffsetDateTime;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// A broken rule. [`Error::kind`] is the stable name of the variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Documents.
    #[error("the {document} is larger than {limit} bytes")]
    TooLarge { document: &'static str, limit: usize },
    #[error("the {document} is not UTF-8")]
    NotUtf8 { document: &'static str },
    #[error("the {document} is not well-formed XML")]
    Xml { document: &'static str, source: roxmltree::Error },
    #[error("element {element}: {problem}")]
    Structure { element: String, problem: &'static str },
    #[error("element {element} is not base64")]
    Base64 { element: String },
    #[error("{field} is not an unsigned 32-bit number")]
    Number { field: String },
    #[error("element {element} has the unsupported algorithm {uri:?}")]
    Algorithm { element: String, uri: String },
    #[error("the {document} is not in its one accepted serialisation")]
    NotCanonical { document: &'static str },
    #[error("canonicalisation failed")]
    Canonicalize { source: Box<dyn std::error::Error + Send + Sync> },

    // A protector as a whole.
    #[error("the protector has no wrapping")]
    NoWrapping,
    #[error("the protector has more than {limit} wrappings")]
    TooManyWrappings { limit: usize },
    #[error("two wrappings have the id {id}")]
    DuplicateId { id: u32 },
    #[error("no wrapping is its own parent, so the protector has no owner")]
    NoOwner,
    #[error("wrappings {first} and {second} both claim to be the owner's")]
    SeveralOwners { first: u32, second: u32 },
    #[error("the guardian signature names wrapping {id}, which does not exist")]
    UnknownSigner { id: u32 },
    #[error("the guardian signature was not made by wrapping {id} over these wrappings")]
    GuardianSignature { id: u32 },
    #[error("the transport key signature was not made with this transport key")]
    TransportKeySignature,
    #[error("MaxOfflineUnwraps differs from the number that is bound inside the wrappings")]
    OfflineUnwraps,
    #[error("a protector allows at most {limit} offline unwraps")]
    TooManyOfflineUnwraps { limit: u32 },
    #[error("the protector has no wrapping for guardian {guardian:?}")]
    NotARecipient { guardian: String },
    #[error("wrapping {id} does not contain a transport key for this guardian")]
    Unwrap { id: u32 },
    #[error("guardian {guardian:?} is not the owner of the protector")]
    NotOwner { guardian: String },
    #[error("no wrapping has a certificate with the fingerprint {fingerprint}")]
    NoSuchGuardian { fingerprint: String },
    #[error("the owner's own wrapping cannot be revoked")]
    OwnerRevoked,
    #[error("the certificate of recipient {guardian:?} was signed by nobody in the protector")]
    ForeignRecipient { guardian: String },

    // One wrapping.
    #[error("a certificate is not acceptable X.509: {problem}")]
    Certificate { problem: &'static str, source: Option<x509_parser::error::X509Error> },
    #[error("certificate of {subject:?}: {problem}")]
    PublicKey { subject: String, problem: &'static str },
    #[error("certificate of {subject:?} lacks the key usage {usage}")]
    KeyUsage { subject: String, usage: &'static str },
    #[error("a guardian's name must be 1 to 64 printable characters")]
    Name,
    #[error("certificate of {subject:?} does not say which role its guardian has")]
    Role { subject: String },
    #[error("a guardian's two certificates name different roles")]
    RolesDiffer,
    #[error("a guardian's two certificates name different guardians")]
    NamesDiffer,
    #[error("wrapping {id}: the owner's role belongs to the owner's wrapping and to no other")]
    OwnerRole { id: u32 },
    #[error("wrapping {id} was certified by wrapping {parent}, a recovery guardian")]
    RecoveryParent { id: u32, parent: u32 },
    #[error("wrapping {id} names parent {parent}, which does not exist")]
    ParentMissing { id: u32, parent: u32 },
    #[error("wrapping {id} does not chain to the owner")]
    NotChained { id: u32 },
    #[error("wrapping {id}: the signing certificate was not signed by its parent")]
    SigningCertificateSignature { id: u32 },
    #[error("wrapping {id}: the encryption certificate was not signed by its signing certificate")]
    EncryptionCertificateSignature { id: u32 },
    #[error("wrappings {first} and {second} have the same encryption key")]
    DuplicateEncryptionKey { first: u32, second: u32 },

    // Time.
    #[error("certificate of {subject:?} is not valid before {not_before}")]
    NotYetValid { subject: String, not_before: OffsetDateTime },
    #[error("certificate of {subject:?} expired at {not_after}")]
    Expired { subject: String, not_after: OffsetDateTime },

    // Guardians and their files.
    #[error("a guardian's lifetime must begin before it ends, between 1970 and 9999")]
    Lifetime,
    #[error("a certificate could not be made")]
    Issue { source: rcgen::Error },
    #[error("the guardian file is not the expected PEM: {problem}")]
    Pem { problem: &'static str },
    #[error("the PKCS#12 file cannot be read or written")]
    Pkcs12 { source: p12_keystore::error::Error },
    #[error("the PKCS#12 file has no usable entry {alias:?}")]
    Pkcs12Entry { alias: &'static str },
    #[error("the {which} private key is not a usable PKCS#8 key")]
    PrivateKey { which: &'static str },
    #[error("the {which} private key does not belong to its certificate")]
    KeyMismatch { which: &'static str },
    #[error("a guardian's {which} signature is wrong")]
    GuardianSelf { which: &'static str },
    #[error("the metadata document's signature is wrong")]
    MetadataSignature,

    // Signed documents.
    #[error("the signed document is not the expected JSON")]
    SignedEncoding { source: serde_json::Error },
    #[error("a signed document's type must be 1 to 64 of a-z, 0-9, '-', '.', '/'")]
    SignedKindName,
    #[error("the signed document is a {found:?}, not a {expected:?}")]
    SignedKind { expected: String, found: String },
    #[error("the signed document has version {found}; only 1 is known")]
    SignedVersion { found: u32 },
    #[error("the signed document's {field} is not base64")]
    SignedBase64 { field: &'static str },
    #[error("the signed document was not signed by the certificate it carries")]
    SignedSignature,

    #[error("the cryptographic provider failed to {operation}")]
    Crypto { operation: &'static str },
}

impl Error {
    /// The variant's stable name, for logs, protocols and tests.
    pub fn kind(&self) -> &'static str {
        use Error::*;
        match self {
            TooLarge { .. } => "too-large",
            NotUtf8 { .. } => "not-utf8",
            Xml { .. } => "xml",
            Structure { .. } => "structure",
            Base64 { .. } => "base64",
            Number { .. } => "number",
            Algorithm { .. } => "algorithm",
            NotCanonical { .. } => "not-canonical",
            Canonicalize { .. } => "canonicalize",
            NoWrapping => "no-wrapping",
            TooManyWrappings { .. } => "too-many-wrappings",
            DuplicateId { .. } => "duplicate-id",
            NoOwner => "no-owner",
            SeveralOwners { .. } => "several-owners",
            UnknownSigner { .. } => "unknown-signer",
            GuardianSignature { .. } => "guardian-signature",
            TransportKeySignature => "transport-key-signature",
            OfflineUnwraps => "offline-unwraps",
            TooManyOfflineUnwraps { .. } => "too-many-offline-unwraps",
            NotARecipient { .. } => "not-a-recipient",
            Unwrap { .. } => "unwrap",
            NotOwner { .. } => "not-owner",
            NoSuchGuardian { .. } => "no-such-guardian",
            OwnerRevoked => "owner-revoked",
            ForeignRecipient { .. } => "foreign-recipient",
            Certificate { .. } => "certificate",
            PublicKey { .. } => "public-key",
            KeyUsage { .. } => "key-usage",
            Name => "name",
            Role { .. } => "role",
            RolesDiffer => "roles-differ",
            NamesDiffer => "names-differ",
            OwnerRole { .. } => "owner-role",
            RecoveryParent { .. } => "recovery-parent",
            ParentMissing { .. } => "parent-missing",
            NotChained { .. } => "not-chained",
            SigningCertificateSignature { .. } => "signing-certificate-signature",
            EncryptionCertificateSignature { .. } => "encryption-certificate-signature",
            DuplicateEncryptionKey { .. } => "duplicate-encryption-key",
            NotYetValid { .. } => "not-yet-valid",
            Expired { .. } => "expired",
            Lifetime => "lifetime",
            Issue { .. } => "issue",
            Pem { .. } => "pem",
            Pkcs12 { .. } => "pkcs12",
            Pkcs12Entry { .. } => "pkcs12-entry",
            PrivateKey { .. } => "private-key",
            KeyMismatch { .. } => "key-mismatch",
            GuardianSelf { .. } => "guardian-self-signature",
            MetadataSignature => "metadata-signature",
            SignedEncoding { .. } => "signed-encoding",
            SignedKindName => "signed-kind-name",
            SignedKind { .. } => "signed-kind",
            SignedVersion { .. } => "signed-version",
            SignedBase64 { .. } => "signed-base64",
            SignedSignature => "signed-signature",
            Crypto { .. } => "crypto",
        }
    }

    /// The name under which a key protection service reports this error about an ingress
    /// protector (MS-KPS 3.1.5.1.1.3): `InvalidWrappingException` for the rules about one
    /// wrapping, `InvalidProtectorException` for everything else.
    pub fn kps_code(&self) -> &'static str {
        use Error::*;
        match self {
            Certificate { .. }
            | PublicKey { .. }
            | KeyUsage { .. }
            | Name
            | Role { .. }
            | RolesDiffer
            | NamesDiffer
            | NoOwner
            | SeveralOwners { .. }
            | OwnerRole { .. }
            | RecoveryParent { .. }
            | ParentMissing { .. }
            | NotChained { .. }
            | SigningCertificateSignature { .. }
            | EncryptionCertificateSignature { .. }
            | NotARecipient { .. }
            | DuplicateEncryptionKey { .. } => "InvalidWrappingException",
            _ => "InvalidProtectorException",
        }
    }
}
