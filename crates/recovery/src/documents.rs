//! The three documents of a recovery: request, grant, hand-back receipt. Each is JSON inside a signed document.

use attestation::HostPublicKey;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use key_protector::signed::{self, Verified};
use key_protector::{Approval, GuardianPublic, Protector, Signer};
use outcome::{Context, Error, Kind, Next, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

const REQUEST: &str = "drydock/recovery-request";
const GRANT: &str = "drydock/recovery-grant";
const RECEIPT: &str = "drydock/hand-back-receipt";
/// What a garage signs begins with this: its key signs nothing else.
const GARAGE_DOMAIN: &[u8] = b"drydock-garage-request\0";

/// The longest time that a recovery guardian may be granted, in hours.
pub const MAX_HOURS: i64 = 72;

/// The remedy for a request that cannot be granted as it is.
const NEW_REQUEST: &str = "make a new request: drydock recovery import, in the repair garage";

/// What the repair garage asks of the owner. Signed by the recovery guardian it carries, which proves that the
/// garage holds that guardian's private key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryRequest {
    /// The recovery.
    pub recovery_id: Uuid,
    /// The VM.
    pub vm_id: Uuid,
    /// The VM's name, for people.
    pub vm_name: String,
    /// The garage, as it names itself: host name and machine id.
    pub garage: String,
    /// When it was made, in seconds since the epoch.
    pub created: i64,
    /// The protector that came with the VM, an MS-KPS document.
    pub protector: String,
    /// The recovery guardian, an MS-KPS metadata document.
    pub guardian: String,
}

/// The owner's answer, signed with the owner's key: who may open which VM, where, until when.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryGrant {
    /// The recovery.
    pub recovery_id: Uuid,
    /// The VM.
    pub vm_id: Uuid,
    /// The VM's name, for people.
    pub vm_name: String,
    /// The garage, as it named itself in the request.
    pub garage: String,
    /// Digest of the protector that was asked about; a grant is good for no other.
    pub ingress_protector: String,
    /// Fingerprint of the recovery guardian's signing certificate.
    pub guardian: String,
    /// When the grant expires, in seconds since the epoch.
    pub not_after: i64,
    /// The protector that the recovery guardian can open.
    pub protector: String,
}

/// What the garage hands back, signed by the recovery guardian before its key is destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The recovery.
    pub recovery_id: Uuid,
    /// The VM.
    pub vm_id: Uuid,
    /// Digest of the protector that the VM left the fabric with.
    pub ingress_protector: String,
    /// Digest of the protector that it comes back with.
    pub egress_protector: String,
    /// SHA-256 of the state bundle.
    pub state: String,
    /// The VM's disks, in their order.
    pub disks: Vec<ReceiptDisk>,
    /// When the repair was finished, in seconds since the epoch.
    pub finished: i64,
}

/// A disk in a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptDisk {
    /// Its serial number.
    pub serial: String,
    /// In bytes.
    pub size: u64,
    /// Over all bytes of a disk that travelled on the RG disk; `None` for one that stayed on its host, under an overlay.
    pub sha256: Option<String>,
}

fn sign<T: Serialize>(kind: &str, payload: &T, by: &dyn Signer) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(payload).context(Kind::Internal, || format!("cannot write a {kind}"))?;
    signed::sign(kind, &bytes, by).context(Kind::Internal, || format!("cannot sign a {kind}"))
}

fn open<T: DeserializeOwned>(kind: &str, what: &str, document: &[u8]) -> Result<(T, Verified)> {
    let name = kind.trim_start_matches("drydock/").replace('-', " ");
    let again = || format!("name a complete, unaltered {name}: copy it again from where it was made");
    let verified = signed::verify(kind, document)
        .context(Kind::BadInput, || format!("{what} is not a valid {name}"))
        .or_next(again)?;
    let payload = serde_json::from_slice(&verified.payload)
        .context(Kind::BadInput, || format!("{what}: its content does not have the right fields"))
        .or_next(again)?;
    Ok((payload, verified))
}

/// A request as a file: the signed document, and the garage's signature over it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFile {
    request: String,
    /// Fingerprint of the garage's key, to find it by.
    garage_key: String,
    /// Base64, over [`signed_bytes`] of `request`.
    garage_signature: String,
}

/// A garage that the tenant knows: its key came to the tenant host when the garage was provisioned.
pub struct KnownGarage {
    /// The tenant's name for it.
    pub name: String,
    /// The public half of the key in its vTPM.
    pub key: HostPublicKey,
}

/// A request whose signatures and documents have been checked.
pub struct CheckedRequest {
    /// The tenant's name for the garage that signed it.
    pub garage: String,
    /// What is asked.
    pub request: RecoveryRequest,
    /// The protector in it.
    pub protector: Protector,
    /// The recovery guardian in it.
    pub guardian: GuardianPublic,
}

/// The bytes that a garage's own key signs for a request.
#[must_use]
pub fn signed_bytes(document: &[u8]) -> Vec<u8> {
    [GARAGE_DOMAIN, document].concat()
}

/// Writes the signed part of a request.
///
/// # Errors
/// When it cannot be signed.
pub fn write_request(request: &RecoveryRequest, by: &dyn Signer) -> Result<Vec<u8>> {
    sign(REQUEST, request, by)
}

/// Puts a signed request and the garage's signature over it into a file.
///
/// # Errors
/// When the request is not what [`write_request`] made.
pub fn write_request_file(document: Vec<u8>, garage: &HostPublicKey, signature: &[u8]) -> Result<Vec<u8>> {
    let request = String::from_utf8(document).context(Kind::Internal, || "a request is UTF-8".into())?;
    let file =
        RequestFile { request, garage_key: garage.fingerprint(), garage_signature: BASE64_STANDARD.encode(signature) };
    serde_json::to_vec(&file).context(Kind::Internal, || "cannot write a recovery request".into())
}

/// Reads a request file: which garage signed it first, then what it says of itself.
///
/// # Errors
/// `Refused` when none of the tenant's garages signed it; `BadInput`, naming what is wrong.
pub fn read_request(what: &str, file: &[u8], garages: &[KnownGarage], now: OffsetDateTime) -> Result<CheckedRequest> {
    let again = || "name a complete, unaltered recovery request: copy it again from the garage".to_owned();
    let file: RequestFile = serde_json::from_slice(file)
        .context(Kind::BadInput, || format!("{what} is not a valid recovery request"))
        .or_next(again)?;
    let known = garages.iter().find(|garage| garage.key.fingerprint() == file.garage_key).ok_or_else(|| {
        let key: String = file.garage_key.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        Error::new(Kind::Refused, format!("{what} comes from a garage that is not one of yours (key {key}…)")).remedy(
            "if it is yours, get its key from inside it, `drydock garage init --out FILE`, and import that here: \
             drydock garage import FILE --name NAME",
        )
    })?;
    let signature = BASE64_STANDARD.decode(&file.garage_signature).unwrap_or_default();
    if !known.key.verify(&signed_bytes(file.request.as_bytes()), &signature) {
        return Err(
            Error::new(Kind::BadInput, format!("{what} is not signed by the garage '{}'", known.name)).remedy(again())
        );
    }
    let (request, verified): (RecoveryRequest, _) = open(REQUEST, what, file.request.as_bytes())?;
    // It becomes part of a file's name on the tenant host.
    outcome::check_name(&request.vm_name)
        .context(Kind::BadInput, || format!("{what}: field 'vm_name' is not a valid VM name"))
        .or_next(again)?;
    let guardian = GuardianPublic::parse(request.guardian.as_bytes())
        .context(Kind::BadInput, || format!("{what}: field 'guardian' is not a valid guardian"))?;
    if Approval::of(guardian.signing()).check(verified).is_err() {
        return Err(Error::new(Kind::BadInput, format!("{what}: it is not signed by the recovery guardian in it"))
            .remedy(NEW_REQUEST));
    }
    guardian
        .signing()
        .check_valid_at(now)
        .context(Kind::BadInput, || format!("{what}: its recovery guardian is not valid now"))
        .or_next(|| format!("{NEW_REQUEST}; and check both clocks"))?;
    let protector = Protector::parse(request.protector.as_bytes())
        .context(Kind::BadInput, || format!("{what}: field 'protector' is not a key protector"))?;
    Ok(CheckedRequest { garage: known.name.clone(), request, protector, guardian })
}

/// Writes a grant.
///
/// # Errors
/// When it cannot be signed.
pub fn write_grant(grant: &RecoveryGrant, owner: &dyn Signer) -> Result<Vec<u8>> {
    sign(GRANT, grant, owner)
}

/// Reads a grant. Its signature is verified; whether it is the owner's is for the caller to require.
///
/// # Errors
/// `BadInput`, naming what is wrong.
pub fn read_grant(what: &str, document: &[u8]) -> Result<(RecoveryGrant, Verified)> {
    open(GRANT, what, document)
}

/// Writes a receipt.
///
/// # Errors
/// When it cannot be signed.
pub fn write_receipt(receipt: &Receipt, by: &dyn Signer) -> Result<Vec<u8>> {
    sign(RECEIPT, receipt, by)
}

/// Reads a receipt. Its signature is verified; whose it must be is for the caller to require.
///
/// # Errors
/// `BadInput`, naming what is wrong.
pub fn read_receipt(what: &str, document: &[u8]) -> Result<(Receipt, Verified)> {
    open(RECEIPT, what, document)
}
