//! Recovery requests without a garage: made as one would make them, with a key in memory instead of in a vTPM.

use std::fs;

use anyhow::Result;
use attestation::{HostPublicKey, P256Key};
use key_protector::{Guardian, Protector};
use recovery::documents::{RecoveryRequest, signed_bytes, write_request, write_request_file};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::host::Host;
use crate::world::path;

/// Who signs requests as a garage does.
pub struct Asker(P256Key);

impl Asker {
    pub fn new() -> Result<Self> {
        Ok(Asker(P256Key::generate()?))
    }

    /// One whose key the tenant host knows.
    pub fn known(host: &Host) -> Result<Self> {
        let asker = Self::new()?;
        let key = host.offline("vmre.pem");
        fs::write(&key, asker.public()?.to_pem())?;
        host.tenant(&["garage", "import", &path(&key), "--name", "vmre"])?.ok()?;
        Ok(asker)
    }

    pub fn public(&self) -> Result<HostPublicKey> {
        Ok(HostPublicKey::from_der(&self.0.public_der()?)?)
    }

    pub fn sign(&self, document: &[u8]) -> Result<Vec<u8>> {
        Ok(self.0.sign(&signed_bytes(document))?)
    }

    /// The file that goes to the tenant host.
    pub fn ask(&self, request: &RecoveryRequest, by: &Guardian) -> Result<Vec<u8>> {
        let document = write_request(request, by)?;
        let signature = self.sign(&document)?;
        Ok(write_request_file(document, &self.public()?, &signature)?)
    }
}

/// For a VM with this protector, which `guardian` is to open.
pub fn request(protector: &Protector, guardian: &Guardian) -> Result<RecoveryRequest> {
    Ok(RecoveryRequest {
        recovery_id: Uuid::new_v4(),
        vm_id: Uuid::new_v4(),
        vm_name: "dvm".into(),
        garage: "vmre (0123)".into(),
        created: OffsetDateTime::now_utc().unix_timestamp(),
        protector: String::from_utf8(protector.to_xml())?,
        guardian: String::from_utf8(guardian.public().to_xml())?,
    })
}
