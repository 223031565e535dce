//! `RollTransportKey` (MS-KPS 3.1.5.1.1.3): the one place where a transport key leaves the service.

use std::sync::Arc;

use attestation::Health;
use key_protector::{Guardian, Protector, Role, Rolled, Wrapping};
use kps::{ApiVersion, Binding, ErrorCode, RollRequest, RollResponse, WrappedKeys};
use time::OffsetDateTime;

use crate::admin::{Hgs, blocking};
use crate::audit::{Event, Record};
use crate::error::Result;
use crate::store::{Egress, Release, key_id};

/// Why a key stays here.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// For the host's agent.
    pub(crate) code: ErrorCode,
    /// For the person who reads the host's log: what is wrong, and what to do.
    pub(crate) message: String,
}

impl Refusal {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into() }
    }

    fn protector(error: &key_protector::Error) -> Self {
        let mut message = format!("the key protector cannot be used: {error}");
        let mut cause = std::error::Error::source(error);
        while let Some(next) = cause {
            message = format!("{message}: {next}");
            cause = next.source();
        }
        // `key_protector` has two of the names.
        Refusal::new(ErrorCode::from_name(error.kps_code()).unwrap_or(ErrorCode::InvalidProtector), message)
    }
}

/// Decides, writes the decision down, and only then lets the answer out.
///
/// # Errors
/// Outer: failures of the service itself, above all an audit log that cannot be written; inner: refused.
pub(crate) async fn roll(
    hgs: &Arc<Hgs>,
    version: ApiVersion,
    body: &[u8],
) -> Result<std::result::Result<Vec<u8>, Refusal>> {
    let now = hgs.now();
    let mut record = Record::default();
    let (request, health) = match admit(hgs, body, now, &mut record).await? {
        Ok(admitted) => admitted,
        Err(refusal) => {
            record.why.clone_from(&refusal.message);
            hgs.record_unproven(Event::KeyRefused, record).await?;
            return Ok(Err(refusal));
        }
    };
    // Signatures and RSA take long enough to keep other connections waiting.
    let (answer, mut record) = {
        let hgs = Arc::clone(hgs);
        blocking(move || Ok((release(&hgs, version, &request, &health, now, &mut record), record))).await?
    };
    match answer {
        Ok((document, egress)) => match hgs.record_release(record, &egress, now).await? {
            Release::Granted(_) => Ok(Ok(document)),
            Release::Refused(message) => Ok(Err(Refusal::new(ErrorCode::InvalidProtector, message))),
        },
        Err(refusal) => {
            record.why.clone_from(&refusal.message);
            hgs.record(Event::KeyRefused, record).await?;
            Ok(Err(refusal))
        }
    }
}

/// Checks who asks: a readable request, with a health certificate of ours, of a host that is still registered.
async fn admit(
    hgs: &Hgs,
    body: &[u8],
    now: OffsetDateTime,
    record: &mut Record,
) -> Result<std::result::Result<(RollRequest, Health), Refusal>> {
    let request = match RollRequest::read(body) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("the request is not a RollTransportKeyRequest: {error}");
            return Ok(Err(Refusal::new(ErrorCode::InvalidProtector, message)));
        }
    };
    let health = match hgs.keys.attestation_ca.verify(&request.health_certificate, now) {
        Ok(health) => health,
        Err(error) => return Ok(Err(Refusal::new(ErrorCode::HealthCertificate, format!("{error}; attest again")))),
    };
    record.host.clone_from(&health.host_name);
    record.host_key.clone_from(&health.host_fingerprint);
    // A service that was switched to TPM mode no longer trusts host keys, whatever it has certified.
    if health.host_kind != hgs.mode() {
        let message = format!("attestation is in {} mode now; attest again", hgs.mode().name());
        return Ok(Err(Refusal::new(ErrorCode::HealthCertificate, message)));
    }
    if hgs.store.host_by_key(&health.host_fingerprint).await?.is_none() {
        let message = format!("the host '{}' is no longer registered", health.host_name);
        return Ok(Err(Refusal::new(ErrorCode::HealthCertificate, message)));
    }
    Ok(Ok((request, health)))
}

/// Checks what is asked for (a protector in which every signature chains to its owner, with a wrapping for us) and
/// rolls it.
fn release(
    hgs: &Hgs,
    version: ApiVersion,
    request: &RollRequest,
    health: &Health,
    now: OffsetDateTime,
    record: &mut Record,
) -> std::result::Result<(Vec<u8>, Egress), Refusal> {
    let protector = Protector::parse(&request.protector).map_err(|error| Refusal::protector(&error))?;
    record.protector = protector.digest();
    // The primary one is the first.
    let found = hgs.keys.guardians.iter().find_map(|guardian| Some((guardian, own_wrapping(&protector, guardian)?)));
    let Some((guardian, own)) = found else {
        protector.verify(now).map_err(|error| Refusal::protector(&error))?;
        record.owner = protector.owner().signing_certificate().fingerprint();
        let message = format!(
            "the key protector has no wrapping for this service's guardian '{}'; \
             the VM's owner grants it with `drydock protector grant`",
            hgs.keys.primary().public().name()
        );
        return Err(Refusal::new(ErrorCode::InvalidWrapping, message));
    };
    let mut recipients = recipients(&protector, now);
    if own.parent_id() == protector.owner().id() {
        // Granted by the owner itself: it does not depend on our other guardians, and leaves them behind.
        let others = |wrapping: &Wrapping| {
            let mut guardians = hgs.keys.guardians.iter();
            guardians.any(|other| own_wrapping(&protector, other).is_some_and(|theirs| theirs.id() == wrapping.id()))
        };
        recipients.retain(|wrapping| wrapping.id() == own.id() || !others(wrapping));
        recipients = chained(recipients, &protector);
    }
    // Rolling begins with verifying, which is half of the work: what passes is not verified twice.
    let rolled = protector.roll(guardian, &recipients, now);
    if rolled.is_ok() || protector.verify(now).is_ok() {
        // Only a verified owner is written down.
        record.owner = protector.owner().signing_certificate().fingerprint();
    }
    let Rolled { ingress, egress_protector, egress } = rolled.map_err(|error| Refusal::protector(&error))?;
    let egress_digest = egress_protector.digest();
    let binding = Binding { version, ingress: &record.protector, egress: &egress_digest };
    let keys = WrappedKeys::seal(&health.identity, &ingress, &egress, &binding).map_err(|error| {
        Refusal::new(ErrorCode::HealthCertificate, format!("nothing can be encrypted to this host: {error}"))
    })?;
    let document = RollResponse { egress_protector: egress_protector.to_xml(), keys }.write();
    let egress = Egress {
        ingress_id: key_id(&ingress),
        egress_id: key_id(&egress),
        digest: egress_digest,
        guardian: guardian.public().signing().fingerprint(),
    };
    Ok((document, egress))
}

fn own_wrapping<'a>(protector: &'a Protector, guardian: &Guardian) -> Option<&'a Wrapping> {
    protector.wrappings().iter().find(|wrapping| wrapping.is_for(guardian.public()))
}

/// All recipients of the ingress protector, except recovery guardians (the recovery is over once the VM is back on the
/// fabric), those whose certificates have expired, and those that chain to the owner through one of these.
fn recipients(protector: &Protector, now: OffsetDateTime) -> Vec<Wrapping> {
    let kept = protector
        .wrappings()
        .iter()
        .filter(|wrapping| wrapping.role() != Role::Recovery && wrapping.check_valid_at(now).is_ok())
        .cloned()
        .collect();
    chained(kept, protector)
}

/// Those among them that chain to the owner through one another.
fn chained(mut kept: Vec<Wrapping>, protector: &Protector) -> Vec<Wrapping> {
    let owner = protector.owner().id();
    loop {
        let ids: Vec<u32> = kept.iter().map(Wrapping::id).collect();
        let before = kept.len();
        kept.retain(|wrapping| wrapping.parent_id() == owner || ids.contains(&wrapping.parent_id()));
        if kept.len() == before {
            return kept;
        }
    }
}
