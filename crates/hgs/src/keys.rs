//! The service's long-lived keys and the files they live in.

use std::path::Path;

use attestation::{HealthCa, HostKind};
use key_protector::{Guardian, KeyKind, Role};
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
    pub(crate) guardian: Guardian,
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
            guardian: Guardian::generate(name, Role::Fabric, KeyKind::Rsa3072, now - BACKDATE, now + lifetime)?,
            attestation_ca: HealthCa::generate(name, now, lifetime)?,
            tls_ca: TlsCa::generate(name, now - BACKDATE, now + lifetime)?,
            settings: Settings { version: 1, server_names, mode: mode.name().to_owned() },
            mode,
        };
        // A name that no certificate can carry is found out now, not at the first start.
        keys.tls_ca.server_config(&keys.settings.server_names)?;
        Ok(keys)
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        files::write_new(&dir.join(GUARDIAN), self.guardian.to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(ATTESTATION_CA), self.attestation_ca.to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(TLS_CA), self.tls_ca.to_pem().as_bytes(), SECRET)?;
        files::write_new(&dir.join(PUBLIC_CA), self.tls_ca.certificate_pem().as_bytes(), PUBLIC)?;
        let path = dir.join(SETTINGS);
        let settings = serde_json::to_vec_pretty(&self.settings).map_err(|_| Error::Damaged { path: path.clone() })?;
        files::write_new(&path, &settings, PUBLIC)
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
        Ok(Keys {
            guardian: Guardian::from_pem(&files::read_secret(&dir.join(GUARDIAN))?)?,
            attestation_ca: HealthCa::from_pem(&files::read_secret(&dir.join(ATTESTATION_CA))?)?,
            tls_ca: TlsCa::from_pem(&files::read_secret(&dir.join(TLS_CA))?)?,
            settings,
            mode,
        })
    }
}
