//! One Host Guardian Service, and what its admin does with it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use attestation::tpm::{Baseline, Check, EkPublic, EventLog, Policy, QUOTED};
use attestation::{HostIdentity, HostKind, HostPublicKey};
use key_protector::GuardianPublic;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::audit::{Entry, Event, Record};
use crate::challenge::Challenges;
use crate::error::{Error, Result};
use crate::keys::{self, Keys};
use crate::permit::Permit;
use crate::store::{HostEntry, InUse, REFUSE, STALE, Store, StoreUrl};
use crate::throttle::Throttle;
use crate::{backup, files};

/// How long a host that passed may ask for keys. MS-HGSA leaves it open; Windows uses eight hours.
const HEALTH_LIFETIME: Duration = Duration::hours(8);
const MAX_HOST_NAME: usize = 64;
/// The setting that names the guardian that is the primary one after the next start of each node.
const PRIMARY: &str = "primary-guardian";
/// The setting's other value: stale protectors are reported and released.
const REPORT: &str = "report";

type Clock = Box<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// The settings of a new service.
pub struct InitOptions {
    /// Name of its fabric guardian, as tenants will see it.
    pub name: String,
    /// DNS names and IP addresses under which hosts reach it.
    pub server_names: Vec<String>,
    /// Lifetime of its guardian and authorities.
    pub lifetime: Duration,
    /// How hosts attest: a service accepts one kind of evidence only (MS-HGSA 1.5).
    pub mode: HostKind,
    /// A PostgreSQL database that several nodes can share; SQLite in the service's directory otherwise.
    pub store: Option<StoreUrl>,
    /// Refuse stale protectors instead of only reporting them.
    pub strict: bool,
}

impl Default for InitOptions {
    fn default() -> Self {
        InitOptions {
            name: "fabric".to_owned(),
            server_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            lifetime: Duration::days(5 * 365),
            mode: HostKind::HostKey,
            store: None,
            strict: false,
        }
    }
}

/// An open service. One process at a time serves its directory; others may add and remove hosts at the same time.
pub struct Hgs {
    dir: PathBuf,
    pub(crate) keys: Keys,
    pub(crate) store: Store,
    health_lifetime: Duration,
    clock: Clock,
    pub(crate) unproven: Mutex<Throttle>,
    pub(crate) challenges: Challenges,
}

impl Hgs {
    /// Makes a service in `dir`, which must be empty or not exist. If it fails half-way, it leaves nothing behind; if
    /// it is killed, a directory whose name ends in `.new-…`.
    ///
    /// # Errors
    /// `AlreadyThere`, `Certificate` (a server name is not valid), `Io`, `Store`.
    pub async fn init(dir: &Path, options: InitOptions) -> Result<Self> {
        let temporary = files::begin(dir)?;
        let now = OffsetDateTime::now_utc();
        let strict = options.strict;
        let keys = blocking(move || {
            let InitOptions { name, server_names, lifetime, mode, store, .. } = options;
            Keys::generate(&name, server_names, mode, now, lifetime, store)
        })
        .await?;
        keys.save(temporary.path())?;
        Store::open(temporary.path(), keys.store.as_ref(), keys.audit_key()?).await?.close().await;
        files::finish(temporary, dir)?;
        let service = Self::with_keys(dir, keys).await?;
        if strict {
            service.set_strict(true).await?;
        }
        Ok(service)
    }

    /// Opens the service in `dir`.
    ///
    /// # Errors
    /// `NotThere`, `Exposed` (a key file that others can read), `Damaged`, `Io`, `Store`.
    pub async fn open(dir: &Path) -> Result<Self> {
        let keys = Keys::load(dir)?;
        Self::with_keys(dir, keys).await
    }

    async fn with_keys(dir: &Path, keys: Keys) -> Result<Self> {
        Ok(Hgs {
            dir: dir.to_owned(),
            store: Store::open(dir, keys.store.as_ref(), keys.audit_key()?).await?,
            challenges: keys.challenges()?,
            health_lifetime: HEALTH_LIFETIME,
            clock: Box::new(OffsetDateTime::now_utc),
            unproven: Mutex::default(),
            keys,
        })
    }

    /// Sets another clock, for tests and for rehearsals of an expiry.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> OffsetDateTime + Send + Sync + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// Sets how long health certificates are valid; eight hours by default.
    #[must_use]
    pub fn with_health_lifetime(mut self, lifetime: Duration) -> Self {
        self.health_lifetime = lifetime;
        self
    }

    /// Registers a host. `host_key_public` is the file that `drydock host init` wrote (PEM or DER).
    ///
    /// # Errors
    /// `OtherMode`, `BadHostName`, `BadHostKey`, `HostExists`, `KeyExists`, `Store`.
    pub async fn add_host(&self, name: &str, host_key_public: &[u8]) -> Result<HostEntry> {
        self.expect_mode(HostKind::HostKey)?;
        check_name(name)?;
        let key = HostPublicKey::from_file(host_key_public).map_err(Error::BadHostKey)?;
        self.register(name, key.into()).await
    }

    /// Registers the host with this TPM. `endorsement_key` is the public key in PEM or DER.
    ///
    /// # Errors
    /// `OtherMode`, `BadHostName`, `BadEndorsementKey`, `HostExists`, `KeyExists`, `Store`.
    pub async fn add_tpm_host(&self, name: &str, endorsement_key: &[u8]) -> Result<HostEntry> {
        self.expect_mode(HostKind::Tpm)?;
        check_name(name)?;
        let key = EkPublic::from_file(endorsement_key).map_err(Error::BadEndorsementKey)?;
        self.register(name, key.into()).await
    }

    async fn register(&self, name: &str, identity: HostIdentity) -> Result<HostEntry> {
        let added_at = self.now();
        self.store.add_host(name, &identity, added_at).await?;
        Ok(HostEntry { name: name.to_owned(), identity, added_at })
    }

    /// The kind of evidence that the service accepts.
    #[must_use]
    pub fn mode(&self) -> HostKind {
        self.keys.mode
    }

    /// Whether its store is a PostgreSQL database, which other nodes may use too.
    #[must_use]
    pub fn has_shared_store(&self) -> bool {
        self.keys.store.is_some()
    }

    fn expect_mode(&self, kind: HostKind) -> Result<()> {
        if self.mode() == kind { Ok(()) } else { Err(Error::OtherMode { mode: self.mode().name() }) }
    }

    /// Declares the values that this event log leads to in these PCRs to be known good.
    ///
    /// # Errors
    /// `BadHostName` (the baseline's), `BadLog`, `BadPcrs`, `BaselineExists`, `Store`.
    pub async fn add_baseline(&self, name: &str, event_log: &[u8], pcrs: &[u32]) -> Result<Baseline> {
        check_name(name)?;
        let log = EventLog::parse(event_log).map_err(Error::BadLog)?;
        let baseline = Baseline::of_log(name, &log, pcrs)
            .ok_or_else(|| Error::BadPcrs { quoted: QUOTED.map(|pcr| pcr.to_string()).join(", ") })?;
        self.store.add_baseline(&baseline, self.now()).await?;
        Ok(baseline)
    }

    /// Removes a baseline: what only it declared good no longer passes.
    ///
    /// # Errors
    /// `NoSuchBaseline`, `Store`.
    pub async fn remove_baseline(&self, name: &str) -> Result<()> {
        self.store.remove_baseline(name, self.now()).await
    }

    /// Turns a check of TPM mode on or off.
    ///
    /// # Errors
    /// `Store`.
    pub async fn set_policy(&self, check: Check, on: bool) -> Result<()> {
        self.store.set_policy(check, on, self.now()).await
    }

    /// The checks of TPM mode, and the baselines that they compare with.
    ///
    /// # Errors
    /// `BaselineDamaged`, `NoSuchPolicy` (of a newer version), `Store`.
    pub async fn policy(&self) -> Result<Policy> {
        self.store.policy().await
    }

    /// Whether stale protectors are refused. This applies to all nodes of a service.
    ///
    /// # Errors
    /// `Store`.
    pub async fn strict(&self) -> Result<bool> {
        Ok(self.store.setting(STALE).await?.is_some_and(|value| value == REFUSE))
    }

    /// Sets whether stale protectors are refused or only reported.
    ///
    /// # Errors
    /// `Store`.
    pub async fn set_strict(&self, on: bool) -> Result<()> {
        self.store.set_setting(STALE, if on { REFUSE } else { REPORT }, self.now()).await
    }

    /// Accepts an owner's permit for a stale protector.
    ///
    /// # Errors
    /// `Permit` (not signed by an owner), `BadPermit`, `PermitExpired`, `PermitKnown`, `Store`.
    pub async fn permit(&self, document: &[u8]) -> Result<Permit> {
        let permit = Permit::verify(document, self.now())?;
        self.store.add_permit(&permit, self.now()).await?;
        Ok(permit)
    }

    /// All keys and settings of the service, for a backup or for a further node, encrypted under a passphrase. The
    /// content of the store is not included.
    ///
    /// # Errors
    /// `ShortPassphrase`, `Io`, `Store`.
    pub async fn export(&self, passphrase: &Zeroizing<String>) -> Result<Vec<u8>> {
        // The files as they are now, not as they were when the service was opened.
        let (dir, passphrase) = (self.dir.clone(), passphrase.clone());
        let exported = blocking(move || backup::export(&dir, &Keys::load(&dir)?, &passphrase)).await?;
        self.record(Event::KeysExported, Record::default()).await?;
        Ok(exported)
    }

    /// Makes a service in `dir` with the keys of another node, or of one that was lost. `store` replaces the store of
    /// the exported service.
    ///
    /// # Errors
    /// `AlreadyThere`, `NotAnExport`, `ExportSealed`, `ForeignStore`, `Io`, `Store`.
    pub async fn import(
        dir: &Path,
        exported: Vec<u8>,
        passphrase: &Zeroizing<String>,
        store: Option<StoreUrl>,
    ) -> Result<Self> {
        let temporary = files::begin(dir)?;
        let (target, passphrase) = (temporary.path().to_owned(), passphrase.clone());
        let keys = blocking(move || {
            backup::import(&target, &exported, &passphrase, store.as_ref())?;
            Keys::load(&target)
        })
        .await?;
        Store::open(temporary.path(), keys.store.as_ref(), keys.audit_key()?).await?.close().await;
        files::finish(temporary, dir)?;
        let service = Self::with_keys(dir, keys).await?;
        service.record(Event::KeysImported, Record::default()).await?;
        Ok(service)
    }

    /// Removes a host: from now on it gets no key, whatever health certificate it still has.
    ///
    /// # Errors
    /// `NoSuchHost`, `Store`.
    pub async fn remove_host(&self, name: &str) -> Result<()> {
        self.store.remove_host(name, self.now()).await
    }

    /// The registered hosts, by name.
    ///
    /// # Errors
    /// `Store`.
    pub async fn hosts(&self) -> Result<Vec<HostEntry>> {
        self.store.hosts().await
    }

    /// The fabric guardian that tenants grant their protectors to.
    #[must_use]
    pub fn guardian(&self) -> GuardianPublic {
        self.keys.primary().public().clone()
    }

    /// All guardians that the service opens protectors with, the primary one first.
    #[must_use]
    pub fn guardians(&self) -> Vec<GuardianPublic> {
        self.keys.guardians.iter().map(|guardian| guardian.public().clone()).collect()
    }

    /// Makes a new guardian, which becomes the primary one at the next start of the service. The old ones still open
    /// the protectors that are not granted to the new one.
    ///
    /// # Errors
    /// `Guardian`, `Io`, `Store`.
    pub async fn rotate_guardian(&self, lifetime: Duration) -> Result<GuardianPublic> {
        let (dir, now) = (self.dir.clone(), self.now());
        let guardian = blocking(move || Keys::rotate(&dir, now, lifetime)).await?;
        let why = format!("guardian '{}', signing certificate {}", guardian.name(), guardian.signing().fingerprint());
        self.record(Event::GuardianAdded, Record { why, ..Record::default() }).await?;
        self.store.set_setting(PRIMARY, &guardian.signing().fingerprint(), self.now()).await?;
        Ok(guardian)
    }

    /// Checks that this node has the guardian that another node made primary: protectors that are granted to it alone
    /// would not open here.
    pub(crate) async fn check_guardians(&self) -> Result<()> {
        let Some(fingerprint) = self.store.setting(PRIMARY).await? else { return Ok(()) };
        let known = self.keys.guardians.iter().any(|own| own.public().signing().fingerprint() == fingerprint);
        if known { Ok(()) } else { Err(Error::GuardianMissing { fingerprint }) }
    }

    /// Destroys the key of a guardian that is not the primary one; the running service forgets it at its next start.
    /// This service never again opens what only that guardian can open.
    ///
    /// # Errors
    /// `NoSuchGuardian`, `PrimaryGuardian`, `GuardianInUse` (unless forced), `Io`, `Store`.
    pub async fn retire_guardian(&self, fingerprint: &str, force: bool) -> Result<()> {
        let count = self.in_use().await?.iter().filter(|protector| protector.guardian == fingerprint).count();
        if count > 0 && !force {
            return Err(Error::GuardianInUse { count });
        }
        let (dir, which) = (self.dir.clone(), fingerprint.to_owned());
        blocking(move || Keys::retire(&dir, &which)).await?;
        let why = format!("signing certificate {fingerprint}, {count} protectors depended on it");
        self.record(Event::GuardianRetired, Record { why, ..Record::default() }).await
    }

    /// The newest protector of each VM that this service rolled, and the guardian it depends on.
    ///
    /// # Errors
    /// `Store`.
    pub async fn in_use(&self) -> Result<Vec<InUse>> {
        self.store.in_use().await
    }

    /// The file with the certificate by which guarded hosts check the service.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join(keys::PUBLIC_CA)
    }

    /// That certificate, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.keys.tls_ca.certificate_pem()
    }

    /// The newest `last` rows of the audit log, oldest first.
    ///
    /// # Errors
    /// `Store`.
    pub async fn audit(&self, last: u32) -> Result<Vec<Entry>> {
        self.store.audit(last).await
    }

    /// Checks that no row of the audit log was changed, removed or inserted by others, and returns the hash of the last
    /// one. Rows cut off at the end are noticed only by comparison with a hash that was kept elsewhere.
    ///
    /// # Errors
    /// `AuditBroken`, `AuditForged`, `Store`.
    pub async fn verify_audit(&self) -> Result<String> {
        self.store.verify_audit(None).await.map(|(_, head)| head)
    }

    /// The same, compared with a hash that was kept elsewhere: this also finds rows that were cut off at the end, or a
    /// log that was rewritten. Returns the number of rows and the hash to keep next.
    ///
    /// # Errors
    /// `AuditBroken`, `AuditForged`, `AuditCut`, `Store`.
    pub async fn verify_audit_since(&self, kept: Option<&str>) -> Result<(i64, String)> {
        self.store.verify_audit(kept).await
    }

    pub(crate) fn now(&self) -> OffsetDateTime {
        (self.clock)()
    }

    pub(crate) fn health_lifetime(&self) -> Duration {
        self.health_lifetime
    }
}

/// Runs what takes long on a thread where no connection waits for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopped)?
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > MAX_HOST_NAME || !name.chars().all(allowed) {
        return Err(Error::BadHostName { name: name.to_owned() });
    }
    Ok(())
}
