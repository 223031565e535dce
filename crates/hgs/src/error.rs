//! What can go wrong in the service. What a host sees is in `hgs_client`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The outcome of an operation of the service.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the service, or its admin, cannot do something. Refusals of hosts are not errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of a new service is in use.
    #[error("{} is not empty; a new service needs a directory of its own", .dir.display())]
    AlreadyThere {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory has no service.
    #[error("there is no Host Guardian Service in {}; make one with `drydock hgs init`", .dir.display())]
    NotThere {
        /// The directory.
        dir: PathBuf,
    },
    /// A file could not be used.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What failed, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A secret is not private.
    #[error("other users can read {} (mode {mode:o}): its keys may be known, make a new service", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file is larger than any of ours.
    #[error("{} is larger than such a file can be", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{} is damaged", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Keys or certificates of attestation.
    #[error("the attestation keys cannot be used")]
    Attestation(#[from] attestation::Error),
    /// Keys or documents of key protection.
    #[error("the fabric guardian cannot be used")]
    Guardian(#[from] key_protector::Error),
    /// A name that no certificate can carry.
    #[error("the TLS certificate cannot be made; names must be DNS names or IP addresses")]
    Certificate(#[from] rcgen::Error),
    /// The library refused the configuration.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The database failed.
    #[error("the store failed")]
    Store(#[from] sqlx::Error),
    /// No connection to the database.
    #[error(
        "the store's PostgreSQL cannot be used: check that it runs and that the role and the database in the URL exist"
    )]
    StoreUnreachable(#[source] sqlx::Error),
    /// The database refused a migration.
    #[error("the store's tables cannot be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A name of a host or a baseline that is not valid.
    #[error("'{name}' is not a host name: 1 to 64 letters, digits, dots, dashes and underscores")]
    BadHostName {
        /// The name.
        name: String,
    },
    /// Another kind of file.
    #[error("that file is not a host's public key: `drydock host init` writes it")]
    BadHostKey(#[source] attestation::Error),
    /// Another kind of file.
    #[error("that file is not a TPM's endorsement key: RSA of 2048 bits, as `tpm2_createek -u` writes it")]
    BadEndorsementKey(#[source] attestation::Error),
    /// The key is of the kind of evidence that this service does not accept.
    #[error("this service is in {mode} mode and accepts no other keys")]
    OtherMode {
        /// The service's mode.
        mode: &'static str,
    },
    /// Another kind of file, or a damaged one.
    #[error("that file is not a firmware event log in the crypto-agile format")]
    BadLog(#[source] attestation::tpm::LogError),
    /// A PCR that is not quoted, or none.
    #[error("a baseline holds PCRs out of {quoted}")]
    BadPcrs {
        /// Those that are quoted.
        quoted: String,
    },
    /// The name is taken.
    #[error("a baseline '{name}' exists already; remove it first")]
    BaselineExists {
        /// The name.
        name: String,
    },
    /// No baseline has this name.
    #[error("there is no baseline '{name}'")]
    NoSuchBaseline {
        /// The name.
        name: String,
    },
    /// The store was changed by something else.
    #[error("the baseline '{name}' cannot be read; remove it and add it again")]
    BaselineDamaged {
        /// The name.
        name: String,
    },
    /// A check that this version does not know.
    #[error("there is no policy '{name}'")]
    NoSuchPolicy {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("a host '{name}' is registered already; remove it first")]
    HostExists {
        /// The name.
        name: String,
    },
    /// The key is registered under another name.
    #[error("that key is registered already, as '{name}'")]
    KeyExists {
        /// The name.
        name: String,
    },
    /// No guardian has this fingerprint.
    #[error("no guardian of this service has a signing certificate with the fingerprint {fingerprint}")]
    NoSuchGuardian {
        /// Of its signing certificate.
        fingerprint: String,
    },
    /// This node lacks the service's primary guardian.
    #[error(
        "another node made a guardian that this one does not have ({fingerprint}); copy the service's keys from \
         there: `drydock hgs export`, `drydock hgs import`"
    )]
    GuardianMissing {
        /// Of its signing certificate.
        fingerprint: String,
    },
    /// The primary guardian cannot be retired.
    #[error("that is the primary guardian; make another one first: `drydock hgs rotate`")]
    PrimaryGuardian,
    /// Protectors would be lost with the guardian.
    #[error("{count} protectors in use still depend on that guardian; `drydock hgs status` lists them")]
    GuardianInUse {
        /// How many.
        count: usize,
    },
    /// No host has this name.
    #[error("no host '{name}' is registered")]
    NoSuchHost {
        /// The name.
        name: String,
    },
    /// A row was changed, removed or inserted.
    #[error("the audit log was changed: row {seq} does not follow from the one before it")]
    AuditBroken {
        /// Its number.
        seq: i64,
    },
    /// The kept hash is missing.
    #[error("the audit log was cut or rewritten: none of its {rows} rows has the hash that was kept")]
    AuditCut {
        /// How many there are.
        rows: i64,
    },
    /// The log has become shorter under a running service.
    #[error(
        "the audit log has {rows} rows, but row {seen} was written before: rows were cut off, or an older copy of the \
         store was restored; find out which, then start the service again"
    )]
    AuditShrank {
        /// How many there are.
        rows: i64,
        /// The last row that this process wrote.
        seen: i64,
    },
    /// A row has a wrong signature.
    #[error("row {seq} of the audit log is not signed by this service: somebody without its key wrote it")]
    AuditForged {
        /// Its number.
        seq: i64,
    },
    /// The address cannot be used.
    #[error("that is not the URL of a PostgreSQL database (postgres://USER@HOST/DATABASE)")]
    BadStoreUrl,
    /// The database would be reached without a verified certificate.
    #[error(
        "the database on {host} would be reached without a verified certificate; add sslmode=verify-full to its URL, \
         and sslrootcert=FILE if its authority is your own"
    )]
    StoreExposed {
        /// Its machine.
        host: String,
    },
    /// Two services cannot share a database.
    #[error(
        "the store belongs to another service: give each service a database of its own; `drydock hgs import` makes \
         a further node of the same service"
    )]
    ForeignStore,
    /// Another kind of file.
    #[error("that file was not written by `drydock hgs export`, or it is damaged")]
    NotAnExport,
    /// The export does not open.
    #[error("the passphrase is wrong, or the file is damaged")]
    ExportSealed,
    /// Too easy to guess.
    #[error("the passphrase is shorter than {least} characters")]
    ShortPassphrase {
        /// The shortest, in characters.
        least: usize,
    },
    /// Its signature or certificate is not valid.
    #[error("the permit cannot be used")]
    Permit(#[source] key_protector::Error),
    /// Another owner signed.
    #[error("the protector belongs to '{owner}': only its owner can sign a permit")]
    OtherOwner {
        /// Its owner.
        owner: String,
    },
    /// It has another content.
    #[error("the document is not a permit")]
    BadPermit,
    /// Its time is over.
    #[error("the permit expired at {until}; the owner makes a new one with `drydock protector permit-stale`")]
    PermitExpired {
        /// When, in RFC 3339.
        until: String,
    },
    /// A permit is good for one restore.
    #[error("this permit was used before")]
    PermitKnown,
    /// Other machines could reach the service in the clear.
    #[error("plain HTTP is allowed only on a loopback address; {address} is not a loopback address")]
    PlainHttpExposed {
        /// The address.
        address: SocketAddr,
    },
    /// The address is in use or not available.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A task of the service ended.
    #[error("the service stopped unexpectedly")]
    Stopped,
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    }
}
