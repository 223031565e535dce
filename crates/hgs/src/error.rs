//! What can go wrong on the service's side. What a client sees is in `hgs_client`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is something in {} already; a new service needs a folder of its own", .dir.display())]
    AlreadyThere { dir: PathBuf },
    #[error("there is no Host Guardian Service in {}; make one with `drydock hgs init`", .dir.display())]
    NotThere { dir: PathBuf },
    #[error("cannot {doing} {}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} can be read by others (mode {mode:o}): its keys may be known, make a new service", .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is larger than such a file can be", .path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is damaged", .path.display())]
    Damaged { path: PathBuf },
    #[error("the attestation keys cannot be used")]
    Attestation(#[from] attestation::Error),
    #[error("the fabric guardian cannot be used")]
    Guardian(#[from] key_protector::Error),
    #[error("the TLS certificate cannot be made; names must be DNS names or IP addresses")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("the store failed")]
    Store(#[from] sqlx::Error),
    #[error(
        "the store's PostgreSQL cannot be used: see that it runs, and that it has the role and the database in the URL"
    )]
    StoreUnreachable(#[source] sqlx::Error),
    #[error("the store's tables cannot be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("'{name}' is not a host name: 1 to 64 letters, digits, dots, dashes and underscores")]
    BadHostName { name: String },
    #[error("that file is not a host's public key: it comes from `drydock host init`")]
    BadHostKey(#[source] attestation::Error),
    #[error("that file is not a TPM's endorsement key: RSA of 2048 bits, as `tpm2_createek -u` writes it")]
    BadEndorsementKey(#[source] attestation::Error),
    #[error("this service is in {mode} mode and takes no other keys")]
    OtherMode { mode: &'static str },
    #[error("that file is not an event log of firmware in the crypto-agile format")]
    BadLog(#[source] attestation::tpm::LogError),
    #[error("a baseline is of PCRs among {quoted}")]
    BadPcrs { quoted: String },
    #[error("a baseline '{name}' is there already; remove it first")]
    BaselineExists { name: String },
    #[error("there is no baseline '{name}'")]
    NoSuchBaseline { name: String },
    #[error("the baseline '{name}' cannot be read; remove it and add it anew")]
    BaselineDamaged { name: String },
    #[error("there is no policy '{name}'")]
    NoSuchPolicy { name: String },
    #[error("a host '{name}' is registered already; remove it first")]
    HostExists { name: String },
    #[error("that key is registered already, as '{name}'")]
    KeyExists { name: String },
    #[error("no guardian of this service has a signing certificate with the fingerprint {fingerprint}")]
    NoSuchGuardian { fingerprint: String },
    #[error(
        "another node made a guardian that this one does not have ({fingerprint}); take the service's keys over from \
         there: `drydock hgs export`, `drydock hgs import`"
    )]
    GuardianMissing { fingerprint: String },
    #[error("that is the primary guardian; make another one first: `drydock hgs rotate`")]
    PrimaryGuardian,
    #[error("{count} protectors in use still depend on that guardian; `drydock hgs status` lists them")]
    GuardianInUse { count: usize },
    #[error("no host '{name}' is registered")]
    NoSuchHost { name: String },
    #[error("the audit log was changed: row {seq} does not follow from the one before it")]
    AuditBroken { seq: i64 },
    #[error("the audit log was cut or made anew: none of its {rows} rows has the hash that was kept")]
    AuditCut { rows: i64 },
    #[error(
        "the audit log has {rows} rows where row {seen} was written before: rows were cut off, or an older copy of the \
         store was put back; find out which, then start the service again"
    )]
    AuditShrank { rows: i64, seen: i64 },
    #[error("row {seq} of the audit log does not bear this service's signature: somebody without its key wrote it")]
    AuditForged { seq: i64 },
    #[error("that is not the URL of a PostgreSQL database (postgres://USER@HOST/DATABASE)")]
    BadStoreUrl,
    #[error(
        "the database on {host} would be reached without a verified certificate; add sslmode=verify-full to its URL, \
         and sslrootcert=FILE if its authority is your own"
    )]
    StoreExposed { host: String },
    #[error(
        "the store belongs to another service: give each a database of its own; a further node of the same service \
         is made with `drydock hgs import`"
    )]
    ForeignStore,
    #[error("that file is not what `drydock hgs export` writes, or it is damaged")]
    NotAnExport,
    #[error("the passphrase is wrong, or the file is damaged")]
    ExportSealed,
    #[error("the passphrase is shorter than {least} characters")]
    ShortPassphrase { least: usize },
    #[error("the permit cannot be used")]
    Permit(#[source] key_protector::Error),
    #[error("the protector belongs to '{owner}': a permit is its owner's to sign")]
    OtherOwner { owner: String },
    #[error("the permit's content is not that of a permit")]
    BadPermit,
    #[error("the permit ended at {until}; the owner makes a new one with `drydock protector permit-stale`")]
    PermitExpired { until: String },
    #[error("this permit was taken before")]
    PermitKnown,
    #[error("plain HTTP is for loopback addresses only, and {address} is not one")]
    PlainHttpExposed { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Bind { address: SocketAddr, source: io::Error },
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
