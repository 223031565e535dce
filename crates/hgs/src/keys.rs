//! The service's long-lived keys and the files they live in.

use std::path::Path;

use attestation::{HealthCa, HostKind, P256Key};
use aws_lc_rs::rand;
use data_encoding::HEXLOWER;
use key_protector::{Guardian, GuardianPublic, KeyKind, Role};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::audit::AuditKey;
use crate::challenge::Challenges;
use crate::error::{Error, Result};
use crate::files;
use crate::store::StoreUrl;
use crate::tls::TlsCa;

/// The fabric guardian and the attestation CA have a file each, so that one can be moved to better protection without
/// the other.
const GUARDIAN: &str = "guardian.pem";
const ATTESTATION_CA: &str = "attestation-ca.pem";
const TLS_CA: &str = "tls-ca.pem";
/// The public certificate for guarded hosts.
pub(crate) const PUBLIC_CA: &str = "hgs-ca.pem";
pub(crate) const SETTINGS: &str = "service.json";
/// Signs the rows of the audit log.
const AUDIT_KEY: &str = "audit-key.pem";
/// Seals the state that a host carries from one half of a TPM attestation to the other; 32 bytes in hexadecimal.
const CHALLENGE_KEY: &str = "challenge.key";
/// Where the store is, if not in the directory. A URL may contain a password.
pub(crate) const STORE_URL: &str = "store.url";

pub(crate) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;
/// For tenants and hosts whose clocks are slow.
const BACKDATE: Duration = Duration::minutes(5);

pub(crate) struct Keys {
    /// The primary one first. The others only open protectors that are not granted to it yet.
    pub(crate) guardians: Vec<Guardian>,
    pub(crate) attestation_ca: HealthCa,
    pub(crate) tls_ca: TlsCa,
    pub(crate) settings: Settings,
    pub(crate) mode: HostKind,
    /// `None`: SQLite in the directory.
    pub(crate) store: Option<StoreUrl>,
    audit_key: P256Key,
    challenge_key: Zeroizing<[u8; 32]>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    version: u32,
    /// DNS names and IP addresses for the server certificate.
    pub(crate) server_names: Vec<String>,
    /// [`HostKind::name`]: how hosts attest.
    #[serde(default = "host_key_mode")]
    mode: String,
    /// Files of the guardians, the primary one's first.
    #[serde(default = "first_guardian")]
    guardians: Vec<String>,
}

fn first_guardian() -> Vec<String> {
    vec![GUARDIAN.to_owned()]
}

fn host_key_mode() -> String {
    HostKind::HostKey.name().to_owned()
}

impl Keys {
    /// Takes about a second: RSA.
    pub(crate) fn generate(
        name: &str,
        server_names: Vec<String>,
        mode: HostKind,
        now: OffsetDateTime,
        lifetime: Duration,
        store: Option<StoreUrl>,
    ) -> Result<Self> {
        let keys = Keys {
            guardians: vec![new_guardian(name, now, lifetime)?],
            attestation_ca: HealthCa::generate(name, now, lifetime)?,
            tls_ca: TlsCa::generate(name, now - BACKDATE, now + lifetime)?,
            settings: Settings { version: 1, server_names, mode: mode.name().to_owned(), guardians: first_guardian() },
            mode,
            store,
            audit_key: P256Key::generate()?,
            challenge_key: new_challenge_key()?,
        };
        // A name that no certificate can carry fails now, not at the first start.
        keys.tls_ca.server_config(&keys.settings.server_names)?;
        Ok(keys)
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        files::write_new(&dir.join(GUARDIAN), self.primary().to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(ATTESTATION_CA), self.attestation_ca.to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(TLS_CA), self.tls_ca.to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(PUBLIC_CA), self.tls_ca.certificate_pem().as_bytes(), PUBLIC)?;
        files::write_new(&dir.join(AUDIT_KEY), self.audit_key.to_pem().as_bytes(), SECRET)?;
        let challenge_key = Zeroizing::new(HEXLOWER.encode(&*self.challenge_key));
        files::write_new(&dir.join(CHALLENGE_KEY), challenge_key.as_bytes(), SECRET)?;
        save_store(dir, self.store.as_ref())?;
        files::write_new(&dir.join(SETTINGS), &self.settings.write(dir)?, PUBLIC)
    }

    /// The names of all these files except [`PUBLIC_CA`], whose content is also in [`TLS_CA`].
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files: Vec<String> =
            [SETTINGS, ATTESTATION_CA, TLS_CA, AUDIT_KEY, CHALLENGE_KEY].map(str::to_owned).to_vec();
        files.extend(self.settings.guardians.iter().cloned());
        if self.store.is_some() {
            files.push(STORE_URL.to_owned());
        }
        files
    }

    pub(crate) fn audit_key(&self) -> Result<AuditKey> {
        AuditKey::new(P256Key::from_pem(&self.audit_key.to_pem())?)
    }

    pub(crate) fn challenges(&self) -> Result<Challenges> {
        Challenges::new(&self.challenge_key)
    }

    /// The guardian that tenants grant to, and that egress protectors are for.
    pub(crate) fn primary(&self) -> &Guardian {
        // `generate` makes one, and `load` refuses a service without any.
        &self.guardians[0]
    }

    /// Makes a guardian in `dir` that becomes the primary one at the next start. Its key is on disk before the settings
    /// name it: a crash in between leaves a file that nothing refers to.
    pub(crate) fn rotate(dir: &Path, now: OffsetDateTime, lifetime: Duration) -> Result<GuardianPublic> {
        let mut keys = Keys::load(dir)?;
        let guardian = new_guardian(keys.primary().public().name(), now, lifetime)?;
        let public = guardian.public().clone();
        let file = format!("guardian-{}.pem", &public.signing().fingerprint()[..16]);
        files::write_new(&dir.join(&file), guardian.to_pem().as_bytes(), SECRET)?;
        keys.settings.guardians.insert(0, file);
        files::replace(&dir.join(SETTINGS), &keys.settings.write(dir)?, PUBLIC)?;
        Ok(public)
    }

    /// Removes a guardian that is not the primary one and destroys its key. `fingerprint` is that of its signing
    /// certificate.
    pub(crate) fn retire(dir: &Path, fingerprint: &str) -> Result<()> {
        let mut keys = Keys::load(dir)?;
        let mut guardians = keys.guardians.iter();
        let place = guardians.position(|guardian| guardian.public().signing().fingerprint() == fingerprint);
        match place {
            None => Err(Error::NoSuchGuardian { fingerprint: fingerprint.chars().take(64).collect() }),
            Some(0) => Err(Error::PrimaryGuardian),
            Some(place) => {
                let file = keys.settings.guardians.remove(place);
                files::replace(&dir.join(SETTINGS), &keys.settings.write(dir)?, PUBLIC)?;
                files::remove(&dir.join(file))
            }
        }
    }

    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(SETTINGS);
        if !path.exists() {
            return Err(Error::NotThere { dir: dir.to_owned() });
        }
        complete(dir)?;
        let settings: Settings =
            serde_json::from_slice(&files::read(&path)?).map_err(|_| Error::Damaged { path: path.clone() })?;
        let mode = HostKind::from_name(&settings.mode);
        let (1, Some(mode)) = (settings.version, mode) else { return Err(Error::Damaged { path }) };
        if settings.guardians.is_empty() || settings.guardians.iter().any(|file| file.contains('/')) {
            return Err(Error::Damaged { path });
        }
        let guardians = settings
            .guardians
            .iter()
            .map(|file| Ok(Guardian::from_pem(&files::read_secret(&dir.join(file))?)?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Keys {
            guardians,
            attestation_ca: HealthCa::from_pem(&files::read_secret(&dir.join(ATTESTATION_CA))?)?,
            tls_ca: TlsCa::from_pem(&files::read_secret(&dir.join(TLS_CA))?)?,
            settings,
            mode,
            store: match dir.join(STORE_URL) {
                path if path.exists() => Some(StoreUrl::parse(files::read_secret(&path)?.trim_end())?),
                _ => None,
            },
            audit_key: P256Key::from_pem(&files::read_secret(&dir.join(AUDIT_KEY))?)?,
            challenge_key: read_challenge_key(dir)?,
        })
    }
}

impl Settings {
    fn write(&self, dir: &Path) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|_| Error::Damaged { path: dir.join(SETTINGS) })
    }
}

/// Makes the keys that services of earlier versions lack. Nothing there depends on them yet.
fn complete(dir: &Path) -> Result<()> {
    let path = dir.join(AUDIT_KEY);
    if !path.exists() {
        files::write_new(&path, P256Key::generate()?.to_pem().as_bytes(), SECRET)?;
    }
    let path = dir.join(CHALLENGE_KEY);
    if !path.exists() {
        let key = Zeroizing::new(HEXLOWER.encode(&*new_challenge_key()?));
        files::write_new(&path, key.as_bytes(), SECRET)?;
    }
    Ok(())
}

/// Names the store in the service's directory; `None` is SQLite there.
pub(crate) fn save_store(dir: &Path, store: Option<&StoreUrl>) -> Result<()> {
    store.map_or(Ok(()), |url| files::write_new(&dir.join(STORE_URL), url.expose().as_bytes(), SECRET))
}

fn new_challenge_key() -> Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    rand::fill(&mut *key).map_err(|_| attestation::Error::Crypto)?;
    Ok(key)
}

fn read_challenge_key(dir: &Path) -> Result<Zeroizing<[u8; 32]>> {
    let path = dir.join(CHALLENGE_KEY);
    let text = files::read_secret(&path)?;
    let mut key = Zeroizing::new([0; 32]);
    let text = text.trim_end().as_bytes();
    if text.len() != HEXLOWER.encode_len(key.len()) || HEXLOWER.decode_mut(text, &mut *key).is_err() {
        return Err(Error::Damaged { path });
    }
    Ok(key)
}

fn new_guardian(name: &str, now: OffsetDateTime, lifetime: Duration) -> Result<Guardian> {
    Ok(Guardian::generate(name, Role::Fabric, KeyKind::Rsa3072, now - BACKDATE, now + lifetime)?)
}
