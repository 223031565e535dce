//! Transport keys that a host keeps, so that a VM starts while no Host Guardian Service answers: if the VM's owner
//! allowed it in the key protector (`MaxOfflineUnwraps`) and the fabric runs the agent with `--offline`.
//!
//! Each start with the service writes the VM's file again, for the key protector that is then active. A start without
//! it counts down before the key is used; the last one removes the file. Earlier copies of the file no longer open:
//!
//! | This host attests by | The file is sealed | An older copy of it |
//! |---|---|---|
//! | TPM | by the TPM, for this boot chain and one value of a counter in it | does not open: the counter has advanced |
//! | host key | under a key derived from the host's | opens for anyone who has the host's key |

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use key_protector::protector::MAX_OFFLINE_UNWRAPS;
use key_protector::{Protector, Role, Rolled, TransportKey};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tpm::{Counter, HostTpm, Sealed, TpmError};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::guarded::HostProof;
use crate::vm_dir::VmDir;
use durable::{read_json, write_json};
use outcome::{Context, Error, Kind, Result};

#[cfg(test)]
mod tests;

const FILE: &str = "offline.sealed";
const LOG: &str = "offline-starts.log";
const VERSION: u32 = 1;
const AAD: &[u8] = b"drydock-offline-start-v1";
/// HKDF info of the key that seals in host-key mode.
const LABEL: &str = "drydock/offline-start/v1";
const NONCE: usize = 12;
const TAG: usize = 16;

/// The file: one transport key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    vm_id: Uuid,
    /// Digest of the only key protector that it is valid for.
    protector: String,
    /// Starts that are left, including the one that this file is for.
    remaining: u32,
    lock: Lock,
    /// Nonce, ciphertext and tag, in base64.
    key: String,
}

/// How to obtain the key that the transport key is encrypted under.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Lock {
    HostKey {
        salt: String,
    },
    Tpm {
        /// The value that the VM's counter must have.
        at: u64,
        public: String,
        private: String,
    },
}

/// A key to start with, and how many starts are left after this one.
pub(crate) struct Taken {
    pub(crate) key: TransportKey,
    pub(crate) remaining: u32,
}

/// How many starts without the service the protector allows. A protector that no Host Guardian Service signed allows
/// none: one that comes from a tenant or out of a repair must be released here first.
pub(crate) fn allowed(protector: &Protector) -> u32 {
    match protector.signer().role() {
        Role::Fabric => protector.max_offline_unwraps().min(MAX_OFFLINE_UNWRAPS),
        Role::Owner | Role::Recovery => 0,
    }
}

/// How many are left, according to the file: to show it.
pub(crate) fn left(dir: &VmDir, protector: &Protector) -> u32 {
    match read(dir) {
        Ok(Some(kept)) if kept.protector == protector.digest() => kept.remaining.min(allowed(protector)),
        _ => 0,
    }
}

/// Adds a line for the fabric admin: the service's audit log does not know of this start.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn note(logs: &Path, protector: &Protector, remaining: u32) -> Result<()> {
    let path = logs.join(LOG);
    let at =
        OffsetDateTime::now_utc().format(&Rfc3339).context(Kind::Internal, || "the clock is out of range".into())?;
    let line = serde_json::json!({ "at": at, "protector": protector.digest(), "remaining": remaining });
    durable::private_dir(logs)
        .and_then(|()| fault::write())
        .and_then(|()| OpenOptions::new().create(true).append(true).mode(0o600).open(&path))
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_all()))
        .context(Kind::Internal, || format!("cannot write {}", path.display()))
}

/// The way this host seals keys.
pub(crate) struct OfflineKeys<'a>(pub(crate) &'a HostProof);

impl OfflineKeys<'_> {
    /// Keeps the key that the VM's state was just sealed under. Returns how many starts it is good for.
    ///
    /// # Errors
    /// When it cannot be sealed or written; nothing older opens then either, in TPM mode.
    pub(crate) async fn keep(&self, dir: &VmDir, vm: Uuid, rolled: &Rolled) -> Result<u32> {
        let at = match self.0 {
            HostProof::Tpm(tpm) => step(tpm, vm).await?,
            HostProof::Key(_) => 0,
        };
        let remaining = allowed(&rolled.egress_protector);
        let kept = self.seal(vm, rolled.egress_protector.digest(), remaining, &rolled.egress, at).await?;
        write(dir, &kept)?;
        Ok(remaining)
    }

    /// Takes the key for one start; that start is counted when this returns.
    ///
    /// # Errors
    /// `KeyRelease` when there is none for this VM and this protector, when the file was altered or is another host's,
    /// and when it is an older copy that the TPM no longer opens.
    pub(crate) async fn take(&self, dir: &VmDir, vm: Uuid, protector: &Protector) -> Result<Taken> {
        let name = dir.name();
        let no = |why: String| Err(Error::new(Kind::KeyRelease, why));
        let allowed = allowed(protector);
        if allowed == 0 {
            return no(format!("the owner of {name} allows no start without it"));
        }
        let file = path(dir);
        let Some(kept) = read(dir)? else {
            return no(format!("{name} has no start without it left; after each start with it there are {allowed}"));
        };
        if kept.version != VERSION || kept.vm_id != vm || kept.protector != protector.digest() {
            return no(format!("{} belongs to another VM, or to an earlier state of {name}", file.display()));
        }
        let Some(remaining) = kept.remaining.checked_sub(1) else {
            return no(format!("{} allows no start", file.display()));
        };
        self.finish_step(vm, &kept).await?;
        let key = self.open(&kept).await?;
        let stands = match &kept.lock {
            Lock::Tpm { at, .. } => *at,
            Lock::HostKey { .. } => 0,
        };
        let next = stands.saturating_add(1);
        if remaining == 0 {
            destroy(dir)?;
        } else {
            write(dir, &self.seal(vm, kept.protector, remaining, &key, next).await?)?;
        }
        if let HostProof::Tpm(tpm) = self.0
            && step(tpm, vm).await? != next
        {
            return no(format!("something else advanced the TPM's counter of {name}"));
        }
        Ok(Taken { key, remaining })
    }

    /// Forgets the key. In TPM mode no copy of the file opens after that.
    ///
    /// # Errors
    /// When the file cannot be removed, or the TPM does not delete the counter.
    pub(crate) async fn forget(&self, dir: &VmDir, vm: Uuid) -> Result<()> {
        destroy(dir)?;
        let HostProof::Tpm(tpm) = self.0 else { return Ok(()) };
        tpm.retire(Counter::of(vm))
            .await
            .context(Kind::Internal, || format!("cannot make the TPM forget {}", dir.name()))
            .map_err(|error| error.remedy("make sure that the agent may use /dev/tpmrm0, then run the command again"))
    }

    /// Completes a countdown that a crash interrupted between writing the file and advancing the counter: the file opens
    /// only after the advance.
    async fn finish_step(&self, vm: Uuid, kept: &Kept) -> Result<()> {
        let (HostProof::Tpm(tpm), Lock::Tpm { at, .. }) = (self.0, &kept.lock) else { return Ok(()) };
        let stands = tpm.counter(Counter::of(vm)).await.map_err(tpm_error)?;
        if stands.is_some_and(|stands| stands.checked_add(1) == Some(*at)) {
            step(tpm, vm).await?;
        }
        Ok(())
    }

    /// `at` is the value that the VM's counter must have when the key is opened; without a TPM it has no meaning.
    async fn seal(&self, vm: Uuid, protector: String, remaining: u32, key: &TransportKey, at: u64) -> Result<Kept> {
        let failed = |_| Error::new(Kind::Internal, "the cryptographic provider failed to seal a key");
        let mut wrapping = Zeroizing::new([0; 32]);
        let lock = match self.0 {
            HostProof::Key(host) => {
                let mut salt = [0; 32];
                rand::fill(&mut salt).map_err(failed)?;
                wrapping = host.derive(&salt, LABEL).context(Kind::Internal, || "cannot use the host's key".into())?;
                Lock::HostKey { salt: STANDARD.encode(salt) }
            }
            HostProof::Tpm(tpm) => {
                rand::fill(wrapping.as_mut()).map_err(failed)?;
                let sealed = tpm.seal(wrapping.as_ref(), Counter::of(vm), at).await.map_err(tpm_error)?;
                let (public, private) = (STANDARD.encode(sealed.public), STANDARD.encode(sealed.private));
                Lock::Tpm { at, public, private }
            }
        };
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).map_err(failed)?;
        let mut text = Zeroizing::new(key.expose().to_vec());
        let tag = aead(&wrapping)
            .and_then(|aead| {
                let aad = Aad::from(aad(vm, &protector, remaining));
                aead.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            })
            .map_err(failed)?;
        let sealed = STANDARD.encode([&nonce[..], &text, tag.as_ref()].concat());
        Ok(Kept { version: VERSION, vm_id: vm, protector, remaining, lock, key: sealed })
    }

    async fn open(&self, kept: &Kept) -> Result<TransportKey> {
        let altered = || {
            Error::new(
                Kind::KeyRelease,
                "the key that this host kept does not open: it was altered, or kept by another host",
            )
        };
        let wrapping = match (&kept.lock, self.0) {
            (Lock::HostKey { salt }, HostProof::Key(host)) => {
                let salt = STANDARD.decode(salt).map_err(|_| altered())?;
                host.derive(&salt, LABEL).context(Kind::Internal, || "cannot use the host's key".into())?
            }
            (Lock::Tpm { at, public, private }, HostProof::Tpm(tpm)) => {
                let (public, private) = (STANDARD.decode(public), STANDARD.decode(private));
                let (Ok(public), Ok(private)) = (public, private) else { return Err(altered()) };
                let sealed = Sealed { public, private };
                let opened = tpm.unseal(&sealed, Counter::of(kept.vm_id), *at).await.map_err(tpm_error)?;
                Zeroizing::new(opened.as_slice().try_into().map_err(|_| altered())?)
            }
            _ => return Err(altered()),
        };
        let sealed = STANDARD.decode(&kept.key).map_err(|_| altered())?;
        let (nonce, text) = sealed.split_first_chunk::<NONCE>().ok_or_else(altered)?;
        if text.len() != TransportKey::LEN + TAG {
            return Err(altered());
        }
        let mut text = Zeroizing::new(text.to_vec());
        let aead = aead(&wrapping).map_err(|_| altered())?;
        let aad = Aad::from(aad(kept.vm_id, &kept.protector, kept.remaining));
        let key = aead.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut text).map_err(|_| altered())?;
        let key = Zeroizing::new(<[u8; TransportKey::LEN]>::try_from(&*key).map_err(|_| altered())?);
        Ok(TransportKey::from_bytes(*key))
    }
}

async fn step(tpm: &HostTpm, vm: Uuid) -> Result<u64> {
    tpm.step(Counter::of(vm)).await.map_err(tpm_error)
}

fn tpm_error(error: TpmError) -> Error {
    Error::new(
        Kind::KeyRelease,
        "this host's TPM does not cooperate: a different boot chain, an older copy, or no space left in it",
    )
    .caused_by(&error)
}

fn aead(wrapping: &[u8; 32]) -> std::result::Result<LessSafeKey, aws_lc_rs::error::Unspecified> {
    UnboundKey::new(&AES_256_GCM, wrapping).map(LessSafeKey::new)
}

/// Only the digest has a variable length, and it comes last.
fn aad(vm: Uuid, protector: &str, remaining: u32) -> Vec<u8> {
    [AAD, vm.as_bytes(), &remaining.to_be_bytes(), protector.as_bytes()].concat()
}

fn path(dir: &VmDir) -> PathBuf {
    dir.path().join(FILE)
}

fn read(dir: &VmDir) -> Result<Option<Kept>> {
    let path = path(dir);
    if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
}

fn write(dir: &VmDir, kept: &Kept) -> Result<()> {
    write_json(&path(dir), kept)
}

fn destroy(dir: &VmDir) -> Result<()> {
    let path = path(dir);
    if !path.exists() {
        return Ok(());
    }
    durable::destroy_file(&path).context(Kind::Internal, || format!("cannot destroy {}", path.display()))
}
