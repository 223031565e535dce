//! Where the agent gets transport keys from: a Host Guardian Service, or guardians on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use attestation::HostKey;
use hgs_client::{HealthCertificate, HgsClient, Status};
use key_protector::{Guardian, GuardianKeys, GuardianPublic, KeyKind, Protector, Rolled};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tpm::HostTpm;
use zeroize::Zeroizing;

use crate::offline::OfflineKeys;
use outcome::{Context, Error, Kind, Result};

const MAX_GUARDIAN: u64 = 256 << 10;

/// Both ways to open a protector. Either way the answer is already rolled: the transport key that opened the
/// state is never used again to seal it.
pub enum KeySource {
    /// A guarded host: the key comes over the network, after attestation.
    Hgs(Box<Guarded>),
    /// Local mode: guardians whose private keys are on this machine. How the repair garage runs a VM.
    Local(LocalGuardians),
}

impl KeySource {
    /// Unwraps the protector's transport key and rolls it.
    ///
    /// # Errors
    /// `KeyRelease` with the HGS's or the protector's reason.
    pub async fn roll(&self, protector: &Protector) -> Result<Rolled> {
        self.release(protector).await.map_err(Error::from)
    }

    /// The same, and what a failure means for a key that this host keeps.
    pub(crate) async fn release(&self, protector: &Protector) -> std::result::Result<Rolled, Unreleased> {
        match self {
            KeySource::Hgs(guarded) => guarded.roll(protector).await,
            KeySource::Local(local) => local.roll(protector).map_err(Unreleased::Unclear),
        }
    }

    /// Where a guarded host keeps keys for starts without the service, also while it keeps none.
    pub(crate) fn offline_keys(&self) -> Option<OfflineKeys<'_>> {
        match self {
            KeySource::Hgs(guarded) => Some(OfflineKeys(&guarded.proof)),
            KeySource::Local(_) => None,
        }
    }

    /// Whether the fabric lets this host keep keys. Guardians on this machine need no such thing.
    pub(crate) fn keeps_offline(&self) -> bool {
        matches!(self, KeySource::Hgs(guarded) if guarded.offline)
    }

    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, KeySource::Local(_))
    }
}

/// No key came.
pub(crate) enum Unreleased {
    /// No node of the service answered.
    Silence(Error),
    /// The service said no, and means it.
    Verdict(Error),
    /// Neither: something else answered, or the question could not be put.
    Unclear(Error),
}

impl From<Unreleased> for Error {
    fn from(unreleased: Unreleased) -> Self {
        match unreleased {
            Unreleased::Silence(error) | Unreleased::Verdict(error) | Unreleased::Unclear(error) => error,
        }
    }
}

/// What a host proves itself with: the two modes of MS-HGSA that are spoken here.
pub enum HostProof {
    /// A key that the Host Guardian Service knows.
    Key(HostKey),
    /// A TPM that it knows, and how that TPM saw the host start.
    Tpm(HostTpm),
}

/// A guarded host's side of attestation and key protection, with one Host Guardian Service or several nodes of it.
pub struct Guarded {
    nodes: Vec<Node>,
    /// The node that answered last: asked first the next time.
    preferred: AtomicUsize,
    proof: HostProof,
    offline: bool,
}

struct Node {
    client: HgsClient,
    url: String,
}

impl Guarded {
    /// # Errors
    /// `BadInput` for a URL or CA file that is not one, or when there is none.
    pub fn new(urls: &[String], ca_pem: Option<&[u8]>, proof: HostProof) -> Result<Self> {
        let nodes = urls
            .iter()
            .map(|url| {
                let client = HgsClient::new(url, ca_pem)
                    .context(Kind::BadInput, || format!("cannot use the Host Guardian Service at {url}"))?;
                Ok(Node { client, url: url.clone() })
            })
            .collect::<Result<Vec<_>>>()?;
        if nodes.is_empty() {
            return Err(Error::new(Kind::BadInput, "no Host Guardian Service is named"));
        }
        Ok(Guarded { nodes, preferred: AtomicUsize::new(0), proof, offline: false })
    }

    /// Whether this host keeps keys for starts without the service, where the VM's owner allows it.
    #[must_use]
    pub fn offline(self, offline: bool) -> Self {
        Guarded { offline, ..self }
    }

    /// All nodes' addresses.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.url.as_str())
    }

    /// The fabric guardian that each node answers for, in the order of [`Guarded::urls`].
    pub async fn guardians(&self) -> Vec<Result<GuardianPublic>> {
        let mut found = Vec::new();
        for node in &self.nodes {
            found.push(
                node.client.metadata().await.map_err(|e| {
                    release_error(format!("the Host Guardian Service at {} does not answer", node.url), &e)
                }),
            );
        }
        found
    }

    /// The node that answered last.
    #[must_use]
    pub fn url(&self) -> &str {
        self.nodes.get(self.preferred.load(Ordering::Relaxed)).map_or("", |node| &node.url)
    }

    /// Attests, as every start of a VM does.
    ///
    /// # Errors
    /// `KeyRelease` with the AttestationStatus and what to do about it.
    pub async fn attest(&self) -> Result<HealthCertificate> {
        Ok(self.try_nodes(None).await?.0)
    }

    async fn roll(&self, protector: &Protector) -> std::result::Result<Rolled, Unreleased> {
        let (_, rolled) = self.try_nodes(Some(protector)).await?;
        rolled.ok_or_else(|| Unreleased::Unclear(Error::new(Kind::Internal, "no key was asked for")))
    }

    /// A health certificate per start: it costs one request, and a host that was removed from the HGS a minute ago
    /// gets nothing.
    async fn ask(&self, node: &Node, protector: Option<&Protector>) -> std::result::Result<Answer, Failure> {
        let health = self.attest_at(node).await?;
        let Some(protector) = protector else { return Ok((health, None)) };
        let rolled = node.client.roll_transport_key(protector, &health).await.map_err(|e| {
            Failure::new(format!("the Host Guardian Service at {} did not release the key", node.url), &e)
        })?;
        Ok((health, Some(rolled)))
    }

    async fn attest_at(&self, node: &Node) -> std::result::Result<HealthCertificate, Failure> {
        let attested = match &self.proof {
            HostProof::Key(key) => node.client.attest(key).await,
            HostProof::Tpm(tpm) => node.client.attest_tpm(tpm).await,
        };
        attested.map_err(|e| {
            let status = e.status().name();
            Failure::new(format!("the Host Guardian Service at {} did not attest this host: {status}", node.url), &e)
        })
    }

    /// Asks each node once (MS-KPS 3.2.3: as many tries as there are addresses), the one that answered last first. A
    /// node that answers decides, also when it refuses.
    async fn try_nodes(&self, protector: Option<&Protector>) -> std::result::Result<Answer, Unreleased> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut passed = Vec::new();
        for place in (0..self.nodes.len()).map(|n| (first + n) % self.nodes.len()) {
            let Some(node) = self.nodes.get(place) else { continue };
            match self.ask(node, protector).await {
                Ok(answer) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Failure { passing: true, silent, error, .. }) => {
                    tracing::warn!(hgs = node.url, %error, "asking the next node");
                    passed.push((silent, error));
                }
                Err(Failure { verdict: true, error, .. }) => return Err(Unreleased::Verdict(error)),
                Err(Failure { error, .. }) => return Err(Unreleased::Unclear(error)),
            }
        }
        let silence = passed.iter().all(|(silent, _)| *silent);
        let mut errors = passed.into_iter().map(|(_, error)| error);
        let mut error = errors.next().unwrap_or_else(|| Error::new(Kind::KeyRelease, "no node was asked"));
        error.causes.extend(errors.map(|error| error.message));
        Err(if silence { Unreleased::Silence(error) } else { Unreleased::Unclear(error) })
    }
}

/// Proof of health, and the key if one was asked for.
type Answer = (HealthCertificate, Option<Rolled>);

struct Failure {
    /// Another node may answer.
    passing: bool,
    /// This one did not.
    silent: bool,
    /// This one did, and refused.
    verdict: bool,
    error: Error,
}

impl Failure {
    fn new(message: String, cause: &hgs_client::Error) -> Self {
        Failure {
            passing: cause.status() == Status::TransientError,
            silent: cause.is_unreachable(),
            verdict: cause.is_denied(),
            error: release_error(message, cause),
        }
    }
}

fn release_error(message: String, cause: &hgs_client::Error) -> Error {
    Error::new(Kind::KeyRelease, message).caused_by(cause).remedy(cause.remedy())
}

/// Guardians with private keys, one PEM file each, 0600, in one directory.
pub struct LocalGuardians {
    dir: PathBuf,
    /// The keys of the next guardian that is made here, done or in the making.
    ahead: Mutex<Option<JoinHandle<key_protector::Result<GuardianKeys>>>>,
}

impl LocalGuardians {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        LocalGuardians { dir, ahead: Mutex::default() }
    }

    /// Begins to make the keys of the next guardian, if that was not begun: the search for prime numbers takes a second
    /// or two where the machine is emulated. Until they are taken they are in this process's memory and nowhere else.
    pub fn prepare(&self) {
        self.ahead().get_or_insert_with(|| tokio::task::spawn_blocking(|| GuardianKeys::generate(KeyKind::Rsa2048)));
    }

    /// Keys for a guardian, which nobody else gets.
    ///
    /// # Errors
    /// `Internal` when they cannot be made.
    pub async fn new_keys(&self) -> Result<GuardianKeys> {
        self.prepare();
        let failed = || "cannot make a guardian's keys".to_owned();
        let Some(made) = self.ahead().take() else { return Err(Error::new(Kind::Internal, failed())) };
        made.await.context(Kind::Internal, failed)?.context(Kind::Internal, failed)
    }

    fn ahead(&self) -> MutexGuard<'_, Option<JoinHandle<key_protector::Result<GuardianKeys>>>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    /// Keeps a guardian.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, name: &str, guardian: &Guardian) -> Result<()> {
        let path = self.path(name);
        durable::write_atomic(&path, guardian.to_pem().as_bytes())
            .context(Kind::Internal, || format!("cannot write {}", path.display()))
    }

    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn get(&self, name: &str) -> Result<Option<Guardian>> {
        let path = self.path(name);
        if path.exists() { load_guardian(&path).map(Some) } else { Ok(None) }
    }

    /// Destroys a guardian's private keys; one that is already gone is fine.
    ///
    /// # Errors
    /// When the file cannot be overwritten or removed.
    pub fn destroy(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        durable::destroy_file(&path).context(Kind::Internal, || format!("cannot destroy {}", path.display()))
    }

    /// The first guardian here that the protector has a wrapping for.
    ///
    /// # Errors
    /// `KeyRelease` when there is none.
    pub fn for_protector(&self, protector: &Protector) -> Result<Guardian> {
        let entries =
            fs::read_dir(&self.dir).context(Kind::Internal, || format!("cannot list {}", self.dir.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|e| e != "pem") {
                continue;
            }
            let guardian = load_guardian(&path)?;
            let mine = guardian.public().encryption().fingerprint();
            if protector.wrappings().iter().any(|w| w.encryption_certificate().fingerprint() == mine) {
                return Ok(guardian);
            }
        }
        Err(Error::new(Kind::KeyRelease, "no guardian on this machine can open the VM's key protector")
            .remedy("in a repair garage: bring the grant (`drydock recovery import --grant FILE`)"))
    }

    fn roll(&self, protector: &Protector) -> Result<Rolled> {
        let guardian = self.for_protector(protector)?;
        protector.roll(&guardian, protector.wrappings(), OffsetDateTime::now_utc()).context(Kind::KeyRelease, || {
            format!("guardian '{}' cannot open the VM's key protector", guardian.public().name())
        })
    }
}

fn load_guardian(path: &Path) -> Result<Guardian> {
    let bytes = durable::read_bounded(path, MAX_GUARDIAN)
        .map(Zeroizing::new)
        .context(Kind::BadInput, || format!("cannot read the guardian {}", path.display()))?;
    let text = std::str::from_utf8(&bytes)
        .context(Kind::BadInput, || format!("{} is not a guardian in PEM", path.display()))?;
    Guardian::from_pem(text).context(Kind::BadInput, || format!("{} is not a guardian in PEM", path.display()))
}
