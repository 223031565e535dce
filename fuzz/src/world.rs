//! The keys and documents that seeds and targets share. They are made once and kept, so that what a corpus holds stays
//! valid, and an input that fails fails again. They protect nothing.

use std::fs;
use std::io;
use std::path::Path;

use attestation::tpm::EkPublic;
use attestation::{HealthCa, HostKey, HostPublicKey, IdentityKey, IdentityPublic, P256Key};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use key_protector::{Guardian, KeyKind, Protector, Role};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// The time that it always is.
pub(crate) const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);
/// The VM that everything is about.
pub(crate) const VM: Uuid = Uuid::from_u128(0x11111111_2222_4333_8444_555555555555);
/// The recovery that everything is about.
pub(crate) const RECOVERY: Uuid = Uuid::from_u128(0x66666666_7777_4888_8999_aaaaaaaaaaaa);

/// Long enough for a corpus.
const LIFETIME: Duration = Duration::days(3650);

/// Keys and documents.
pub struct World {
    pub owner: Guardian,
    pub fabric: Guardian,
    pub recovery: Guardian,
    /// The document of the recovery guardian. Its signatures would be others if they were made again.
    pub recovery_public: Vec<u8>,
    /// Wrapped for owner and fabric guardian.
    pub protector: Protector,
    /// The same, granted to the recovery guardian.
    pub granted: Protector,
    pub health: HealthCa,
    pub health_key: P256Key,
    pub host: HostKey,
    /// A repair garage's key; its vTPM has it in life.
    pub garage: P256Key,
    pub identity: IdentityPublic,
    pub ek: EkPublic,
    /// The attestation key of a TPM.
    pub ak: P256Key,
}

impl World {
    /// Reads what is in `folder`, and makes what is missing.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let owner = guardian(folder, "owner", Role::Owner)?;
        let fabric = guardian(folder, "fabric", Role::Fabric)?;
        let recovery = guardian(folder, "recovery", Role::Recovery)?;
        let protector = kept(folder, "protector.xml", || {
            Protector::new(&owner, &[fabric.public().clone()], NOW).unwrap().0.to_xml()
        })?;
        let protector = Protector::parse(&protector).unwrap();
        let granted =
            kept(folder, "granted.xml", || protector.grant(&owner, recovery.public(), NOW).unwrap().to_xml())?;
        let health = text(folder, "health-ca.pem", || {
            HealthCa::generate("fuzz", NOW - LIFETIME, LIFETIME * 2).unwrap().to_pem().to_string()
        })?;
        let host = text(folder, "host.pem", || HostKey::generate().unwrap().to_pem().to_string())?;
        let identity = kept(folder, "identity.der", || IdentityKey::generate().unwrap().public().der().to_vec())?;
        let ek = kept(folder, "ek.der", || {
            let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
            let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            der.as_ref().to_vec()
        })?;
        let recovery_public = kept(folder, "recovery.xml", || recovery.public().to_xml())?;
        Ok(Self {
            granted: Protector::parse(&granted).unwrap(),
            health: HealthCa::from_pem(&health).unwrap(),
            health_key: P256Key::from_pem(&health).unwrap(),
            host: HostKey::from_pem(&host).unwrap(),
            garage: p256(folder, "garage")?,
            identity: IdentityPublic::from_der(&identity).unwrap(),
            ek: EkPublic::from_der(&ek).unwrap(),
            ak: p256(folder, "ak")?,
            owner,
            fabric,
            recovery,
            recovery_public,
            protector,
        })
    }

    /// The garage's key, as its tenant knows it.
    pub fn garage_public(&self) -> HostPublicKey {
        HostPublicKey::from_der(&self.garage.public_der().unwrap()).unwrap()
    }
}

fn guardian(folder: &Path, name: &str, role: Role) -> io::Result<Guardian> {
    let pem = text(folder, &format!("{name}.pem"), || {
        let (from, until) = (NOW - LIFETIME, NOW + LIFETIME);
        Guardian::generate(name, role, KeyKind::Rsa2048, from, until).unwrap().to_pem().to_string()
    })?;
    Ok(Guardian::from_pem(&pem).unwrap())
}

fn p256(folder: &Path, name: &str) -> io::Result<P256Key> {
    let pem = text(folder, &format!("{name}.pem"), || P256Key::generate().unwrap().to_pem().to_string())?;
    Ok(P256Key::from_pem(&pem).unwrap())
}

fn text(folder: &Path, name: &str, make: impl FnOnce() -> String) -> io::Result<String> {
    kept(folder, name, || make().into_bytes()).map(|bytes| String::from_utf8(bytes).unwrap())
}

/// The file's content, or what `make` makes, which it then has.
fn kept(folder: &Path, name: &str, make: impl FnOnce() -> Vec<u8>) -> io::Result<Vec<u8>> {
    let path = folder.join(name);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = make();
            fs::write(&path, &bytes)?;
            Ok(bytes)
        }
        read => read,
    }
}
