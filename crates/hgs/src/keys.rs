//! The service's long-lived keys and the files they live in.

use std::path::Path;

use attestation::{HealthCa, HostKind};
use key_protector::{Guardian, GuardianPublic, KeyKind, Role};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::error::{Error, Result};
use crate::files;
use crate::tls::TlsCa;

/// The fabric guardian and the attestation CA have a file each: one can be moved to better protection later
/// without the other.
const GUARDIAN: &str = "guardian.pem";
const ATTESTATION_CA: &str = "attestation-ca.pem";
const TLS_CA: &str = "tls-ca.pem";
/// The public certificate that guarded hosts are given.
pub(crate) const PUBLIC_CA: &str = "hgs-ca.pem";
const SETTINGS: &str = "service.json";

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// Tenants and hosts may have clocks a little behind ours.
const BACKDATE: Duration = Duration::minutes(5);

pub(crate) struct Keys {
    /// The primary one first; the others only open protectors that are not granted to it yet.
    pub(crate) guardians: Vec<Guardian>,
    pub(crate) attestation_ca: HealthCa,
    pub(crate) tls_ca: TlsCa,
    pub(crate) settings: Settings,
    pub(crate) mode: HostKind,
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
    ) -> Result<Self> {
        let keys = Keys {
            guardians: vec![new_guardian(name, now, lifetime)?],
            attestation_ca: HealthCa::generate(name, now, lifetime)?,
            tls_ca: TlsCa::generate(name, now - BACKDATE, now + lifetime)?,
            settings: Settings { version: 1, server_names, mode: mode.name().to_owned(), guardians: first_guardian() },
            mode,
        };
        // A name that no certificate can carry is found out now, not at the first start.
        keys.tls_ca.server_config(&keys.settings.server_names)?;
        Ok(keys)
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        files::write_new(&dir.join(GUARDIAN), self.primary().to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(ATTESTATION_CA), self.attestation_ca.to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(TLS_CA), self.tls_ca.to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(PUBLIC_CA), self.tls_ca.certificate_pem().as_bytes(), PUBLIC)?;
        files::write_new(&dir.join(SETTINGS), &self.settings.write(dir)?, PUBLIC)
    }

    /// The guardian that tenants grant to, and that egress protectors are for.
    pub(crate) fn primary(&self) -> &Guardian {
        // generate() makes one and load() refuses a service without.
        &self.guardians[0]
    }

    /// Makes a guardian in `dir` that is the primary one at the next start. Its key is on the disk before the
    /// settings name it: a crash in between leaves a file that nothing refers to.
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

    /// Takes a guardian that is not the primary one out, and destroys its key. `fingerprint` is that of its signing
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
        })
    }
}

impl Settings {
    fn write(&self, dir: &Path) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|_| Error::Damaged { path: dir.join(SETTINGS) })
    }
}

fn new_guardian(name: &str, now: OffsetDateTime, lifetime: Duration) -> Result<Guardian> {
    Ok(Guardian::generate(name, Role::Fabric, KeyKind::Rsa3072, now - BACKDATE, now + lifetime)?)
}
