//! What can be wrong with a guardian, a protector or a signed document (one variant per rule), and
//! with a private key.

use time::OffsetDateTime;

use crate::algorithm::SignatureAlgorithm;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// A broken rule.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Documents.
    /// A document exceeds the size that is read or written.
    #[error("the {document} is larger than {limit} bytes")]
    TooLarge {
        /// Which kind of document.
        document: &'static str,
        /// The size that is allowed, in bytes.
        limit: usize,
    },
    /// XML in another encoding.
    #[error("the {document} is not UTF-8")]
    NotUtf8 {
        /// Which kind of document.
        document: &'static str,
    },
    /// Not XML, or XML with a document type definition or too many nodes.
    #[error("the {document} is not well-formed XML")]
    Xml {
        /// Which kind of document.
        document: &'static str,
        /// The cause.
        source: roxmltree::Error,
    },
    /// An element, attribute or text that the schema does not have there.
    #[error("element {element}: {problem}")]
    Structure {
        /// The element's local name.
        element: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Base64 with line breaks, other padding or other characters.
    #[error("element {element} is not base64")]
    Base64 {
        /// The element's local name.
        element: String,
    },
    /// A number with a sign, a space or a leading zero, or one that is too large.
    #[error("{field} is not an unsigned 32-bit number")]
    Number {
        /// Which field.
        field: String,
    },
    /// An algorithm that this crate does not implement.
    #[error("element {element} has the unsupported algorithm {uri:?}")]
    Algorithm {
        /// The element's local name.
        element: String,
        /// The identifier that was found.
        uri: String,
    },
    /// The same content in another spelling.
    #[error("the {document} is not in its one accepted serialisation")]
    NotCanonical {
        /// Which kind of document.
        document: &'static str,
    },
    /// Exclusive XML canonicalisation of our own text failed: a bug.
    #[error("canonicalisation failed")]
    Canonicalize {
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    // A protector as a whole.
    /// A protector without recipients.
    #[error("the protector has no wrapping")]
    NoWrapping,
    /// More guardians than a protector can have.
    #[error("the protector has more than {limit} wrappings")]
    TooManyWrappings {
        /// How many are allowed.
        limit: usize,
    },
    /// Wrappings refer to each other by id, so an id is unique.
    #[error("two wrappings have the id {id}")]
    DuplicateId {
        /// The wrapping's id.
        id: u32,
    },
    /// The tree of wrappings has no root.
    #[error("no wrapping is its own parent, so the protector has no owner")]
    NoOwner,
    /// The tree of wrappings has two roots.
    #[error("wrappings {first} and {second} both claim to be the owner's")]
    SeveralOwners {
        /// One wrapping's id.
        first: u32,
        /// The other's id.
        second: u32,
    },
    /// The protector names a signer that it has no wrapping for.
    #[error("the guardian signature names wrapping {id}, which does not exist")]
    UnknownSigner {
        /// The wrapping's id.
        id: u32,
    },
    /// The list of wrappings was changed, or somebody else signed it.
    #[error("the guardian signature was not made by wrapping {id} over these wrappings")]
    GuardianSignature {
        /// The wrapping's id.
        id: u32,
    },
    /// The wrappings belong to another transport key.
    #[error("the transport key signature was not made with this transport key")]
    TransportKeySignature,
    /// The unsigned attribute and the signed parameter disagree.
    #[error("MaxOfflineUnwraps differs from the value that the owner's wrapping binds")]
    OfflineUnwraps,
    /// More offline unwraps than an owner can allow.
    #[error("a protector allows at most {limit} offline unwraps")]
    TooManyOfflineUnwraps {
        /// How many are allowed.
        limit: u32,
    },
    /// The guardian is not among those the protector is for.
    #[error("the protector has no wrapping for guardian {guardian:?}")]
    NotARecipient {
        /// The guardian's name.
        guardian: String,
    },
    /// A wrapping was encrypted for another key, or holds something else.
    #[error("wrapping {id} does not contain a transport key for this guardian")]
    Unwrap {
        /// The wrapping's id.
        id: u32,
    },
    /// Only the owner changes a protector.
    #[error("guardian {guardian:?} is not the owner of the protector")]
    NotOwner {
        /// The guardian's name.
        guardian: String,
    },
    /// No guardian to revoke.
    #[error("no wrapping has a certificate with the fingerprint {fingerprint}")]
    NoSuchGuardian {
        /// The fingerprint that was asked for, cut to 64 characters.
        fingerprint: String,
    },
    /// A protector always has its owner.
    #[error("the owner's own wrapping cannot be revoked")]
    OwnerRevoked,
    /// A wrapping of another owner, or one whose parent was left out.
    #[error("the certificate of recipient {guardian:?} is not signed by any guardian in the protector")]
    ForeignRecipient {
        /// The guardian's name.
        guardian: String,
    },

    // One wrapping.
    /// A certificate that cannot be parsed, or has no usable subject.
    #[error("a certificate is not acceptable X.509: {problem}")]
    Certificate {
        /// What is wrong.
        problem: &'static str,
        /// The cause.
        source: Option<x509_parser::error::X509Error>,
    },
    /// A key of a kind or size that is not accepted.
    #[error("certificate of {subject:?}: {problem}")]
    PublicKey {
        /// The certificate's common name.
        subject: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A certificate that does not permit what its key is used for.
    #[error("certificate of {subject:?} lacks the key usage {usage}")]
    KeyUsage {
        /// The certificate's common name.
        subject: String,
        /// The missing usage, as X.509 names it.
        usage: &'static str,
    },
    /// A name that does not fit a certificate, or is unsafe to print.
    #[error("a guardian's name must be 1 to 64 printable characters")]
    Name,
    /// A certificate without a role, where one is needed.
    #[error("certificate of {subject:?} names no role for its guardian")]
    Role {
        /// The certificate's common name.
        subject: String,
    },
    /// Both certificates of a guardian have one role.
    #[error("a guardian's two certificates name different roles")]
    RolesDiffer,
    /// Both certificates of a guardian have one name.
    #[error("a guardian's two certificates name different guardians")]
    NamesDiffer,
    /// The owner's role and the owner's place go together.
    #[error("wrapping {id}: the owner's wrapping, and no other, must have the owner's role")]
    OwnerRole {
        /// The wrapping's id.
        id: u32,
    },
    /// A recovery guardian cannot certify anyone.
    #[error("wrapping {id} was certified by wrapping {parent}, a recovery guardian")]
    RecoveryParent {
        /// The wrapping's id.
        id: u32,
        /// The parent's id.
        parent: u32,
    },
    /// A wrapping without the wrapping that certified it.
    #[error("wrapping {id} names parent {parent}, which does not exist")]
    ParentMissing {
        /// The wrapping's id.
        id: u32,
        /// The parent's id.
        parent: u32,
    },
    /// Wrappings that certify each other in a circle.
    #[error("wrapping {id} does not chain to the owner")]
    NotChained {
        /// The wrapping's id.
        id: u32,
    },
    /// A link of the chain to the owner is not signed.
    #[error("wrapping {id}: the signing certificate was not signed by its parent")]
    SigningCertificateSignature {
        /// The wrapping's id.
        id: u32,
    },
    /// The encryption key is not that of the signing key's guardian.
    #[error("wrapping {id}: the encryption certificate was not signed by its signing certificate")]
    EncryptionCertificateSignature {
        /// The wrapping's id.
        id: u32,
    },
    /// A guardian twice, perhaps with another certificate.
    #[error("wrappings {first} and {second} have the same encryption key")]
    DuplicateEncryptionKey {
        /// One wrapping's id.
        first: u32,
        /// The other's id.
        second: u32,
    },

    // Time.
    /// Too early, or a clock that is slow.
    #[error("certificate of {subject:?} is not valid before {not_before}")]
    NotYetValid {
        /// The certificate's common name.
        subject: String,
        /// The first instant of its lifetime.
        not_before: OffsetDateTime,
    },
    /// Too late, or a clock that is fast.
    #[error("certificate of {subject:?} expired at {not_after}")]
    Expired {
        /// The certificate's common name.
        subject: String,
        /// The last instant of its lifetime.
        not_after: OffsetDateTime,
    },

    // Guardians and their files.
    /// A lifetime that certificates cannot express.
    #[error("a guardian's lifetime must begin before it ends, between 1970 and 9999")]
    Lifetime,
    /// The certificate maker failed.
    #[error("a certificate could not be made")]
    Issue {
        /// The cause.
        source: rcgen::Error,
    },
    /// Not the four PEM blocks of a guardian.
    #[error("the guardian file is not the expected PEM: {problem}")]
    Pem {
        /// What is wrong.
        problem: &'static str,
    },
    /// A damaged PKCS#12 file, or a wrong passphrase.
    #[error("the PKCS#12 file cannot be read or written")]
    Pkcs12 {
        /// The cause.
        source: p12_keystore::error::Error,
    },
    /// A PKCS#12 file of something else.
    #[error("the PKCS#12 file has no usable entry {alias:?}")]
    Pkcs12Entry {
        /// The entry's name.
        alias: &'static str,
    },
    /// A private key in another encoding, or of another kind.
    #[error("the {which} private key is not a usable PKCS#8 key")]
    PrivateKey {
        /// Which of the guardian's.
        which: &'static str,
    },
    /// A private key with the certificate of another.
    #[error("the {which} private key does not belong to its certificate")]
    KeyMismatch {
        /// Which of the guardian's.
        which: &'static str,
    },
    /// A guardian who did not sign its own certificates.
    #[error("a guardian's {which} signature is wrong")]
    GuardianSelf {
        /// Which of the guardian's.
        which: &'static str,
    },
    /// A metadata document that its guardian did not sign.
    #[error("the metadata document's signature is wrong")]
    MetadataSignature,

    // Signed documents.
    /// A signed document with other fields, or no JSON at all.
    #[error("the signed document is not the expected JSON")]
    SignedEncoding {
        /// The cause.
        source: serde_json::Error,
    },
    /// A document type that cannot be written.
    #[error("a signed document's type must be 1 to 64 of a-z, 0-9, '-', '.', '/'")]
    SignedKindName,
    /// A signed document of another type.
    #[error("the signed document is a {found:?}, not a {expected:?}")]
    SignedKind {
        /// The type that is needed.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A signed document of a later release.
    #[error("the signed document has version {found}; only 1 is known")]
    SignedVersion {
        /// What was found.
        found: u32,
    },
    /// A field of a signed document that cannot be decoded.
    #[error("the signed document's {field} is not base64")]
    SignedBase64 {
        /// Which field.
        field: &'static str,
    },
    /// A signed document that was changed, or signed by another key.
    #[error("the signed document was not signed by the certificate it carries")]
    SignedSignature,

    /// A private key did not do what it was asked; the document is not to blame.
    #[error("guardian {guardian:?} cannot {operation}")]
    KeyOperation {
        /// The guardian's name.
        guardian: String,
        /// What it was to do.
        operation: &'static str,
        /// The cause.
        source: KeyError,
    },
    /// The cryptographic provider failed at something that normally cannot fail.
    #[error("the cryptographic provider failed to {operation}")]
    Crypto {
        /// What it was to do.
        operation: &'static str,
    },
}

/// Why a private key could not be used. It says nothing about the document, except for
/// [`KeyError::NotForThisKey`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key is of another kind, or its token refuses the mechanism.
    #[error("the key cannot use {algorithm}")]
    Unsupported {
        /// The algorithm that was asked for.
        algorithm: SignatureAlgorithm,
    },
    /// The ciphertext was made for another key, or was changed.
    #[error("the ciphertext was not made for this key")]
    NotForThisKey,
    /// The token is not plugged in, or its module or session failed: try again when it is back.
    #[error("the key cannot be reached")]
    Unavailable {
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A wrong or blocked PIN, or somebody did not confirm.
    #[error("the use of the key was denied")]
    Denied {
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cryptographic provider failed at something that normally cannot fail.
    #[error("the cryptographic provider failed")]
    Provider,
}

impl Error {
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
