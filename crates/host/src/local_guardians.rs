//! Guardians whose private keys are on this machine: how a repair garage opens the VM that it was granted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use key_protector::{Guardian, GuardianKeys, KeyKind, Protector, Rolled};
use outcome::{Context, Error, Kind, Result};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// The most bytes that a guardian's file may have.
const MAX_GUARDIAN: u64 = 256 << 10;

/// Guardians with private keys, one PEM file each, 0600, in one directory.
pub struct LocalGuardians {
    dir: PathBuf,
    /// The keys of the next guardian: ready, or being made.
    ahead: Mutex<Option<JoinHandle<key_protector::Result<GuardianKeys>>>>,
}

impl LocalGuardians {
    /// The guardians in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        LocalGuardians { dir, ahead: Mutex::default() }
    }

    /// Starts making the keys of the next guardian, unless that has started: the search for prime numbers takes a second
    /// or two on an emulated machine. Until they are taken they are in this process's memory and nowhere else.
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

    /// Stores a guardian.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, name: &str, guardian: &Guardian) -> Result<()> {
        let path = self.path(name);
        durable::write_atomic(&path, guardian.to_pem().as_bytes())
            .context(Kind::Internal, || format!("cannot write {}", path.display()))
    }

    /// A guardian by name.
    ///
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

    pub(crate) fn roll(&self, protector: &Protector) -> Result<Rolled> {
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
