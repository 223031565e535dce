//! `RollTransportKey` (MS-KPS 3.1.5.1.1.3): the one place where a transport key leaves the service.

use std::sync::Arc;

use attestation::Health;
use key_protector::{Guardian, Protector, Role, Rolled, Wrapping};
use kps::ApiVersion;
use kps::release::{self, Binding};
use kps::wire::{HEALTH_CERTIFICATE, INVALID_PROTECTOR, INVALID_WRAPPING, Request, Response};
use time::OffsetDateTime;

use crate::admin::{Hgs, blocking};
use crate::audit::{Event, Record};
use crate::error::Result;
use crate::store::{Egress, Release, key_id};

/// Why a key stays here.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// One of the names in MS-KPS 3.1.5.1.1.3.
    pub(crate) code: &'static str,
    /// For the person who reads the host's log: what is wrong, and what helps.
    pub(crate) message: String,
}

impl Refusal {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into() }
    }

    fn protector(error: &key_protector::Error) -> Self {
        let mut message = format!("the key protector cannot be used: {error}");
        let mut cause = std::error::Error::source(error);
        while let Some(next) = cause {
            message = format!("{message}: {next}");
            cause = next.source();
        }
        Refusal::new(error.kps_code(), message)
    }
}

/// Decides, writes the verdict down, and only then gives the answer out.
///
/// # Errors
/// Outer: the service's own troubles, above all an audit log that cannot be written; inner: refused.
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
            tracing::warn!(host = %record.host, "no key released: {}", refusal.message);
            record.why.clone_from(&refusal.message);
            hgs.record_stranger(Event::KeyRefused, record).await?;
            return Ok(Err(refusal));
        }
    };
    // Signatures and RSA: long enough to keep other connections waiting.
    let (answer, mut record) = {
        let hgs = Arc::clone(hgs);
        blocking(move || Ok((release(&hgs, version, &request, &health, now, &mut record), record))).await?
    };
    match answer {
        Ok((document, egress)) => {
            let (host, protector) = (record.host.clone(), record.protector.clone());
            match hgs.store.record_release(record, &egress, now).await? {
                Release::Granted => {
                    tracing::info!(%host, %protector, "key released");
                    Ok(Ok(document))
                }
                Release::Refused(message) => {
                    tracing::warn!(%host, %protector, "no key released: {message}");
                    Ok(Err(Refusal::new(INVALID_PROTECTOR, message)))
                }
            }
        }
        Err(refusal) => {
            tracing::warn!(host = %record.host, protector = %record.protector, "no key released: {}", refusal.message);
            record.why.clone_from(&refusal.message);
            hgs.record(Event::KeyRefused, record).await?;
            Ok(Err(refusal))
        }
    }
}

/// Whoever asks: a readable request, with a health certificate of ours, of a host that is still registered.
async fn admit(
    hgs: &Hgs,
    body: &[u8],
    now: OffsetDateTime,
    record: &mut Record,
) -> Result<std::result::Result<(Request, Health), Refusal>> {
    let request = match Request::read(body) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("the request is not a RollTransportKeyRequest: {error}");
            return Ok(Err(Refusal::new(INVALID_PROTECTOR, message)));
        }
    };
    let health = match hgs.keys.attestation_ca.verify(&request.health_certificate, now) {
        Ok(health) => health,
        Err(error) => return Ok(Err(Refusal::new(HEALTH_CERTIFICATE, format!("{error}; attest again")))),
    };
    record.host.clone_from(&health.host_name);
    record.host_key.clone_from(&health.host_fingerprint);
    // A service that was put into TPM mode believes no host key any more, whatever it has certified.
    if health.host_kind != hgs.mode() {
        let message = format!("attestation is in {} mode now; attest again", hgs.mode().name());
        return Ok(Err(Refusal::new(HEALTH_CERTIFICATE, message)));
    }
    if hgs.store.host_by_key(&health.host_fingerprint).await?.is_none() {
        let message = format!("the host '{}' is no longer registered", health.host_name);
        return Ok(Err(Refusal::new(HEALTH_CERTIFICATE, message)));
    }
    Ok(Ok((request, health)))
}

/// What is asked for: a protector in which every signature chains to its owner, with a wrapping for us.
fn release(
    hgs: &Hgs,
    version: ApiVersion,
    request: &Request,
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
        return Err(Refusal::new(INVALID_WRAPPING, message));
    };
    let mut recipients = recipients(&protector, now);
    if own.parent_id() == protector.owner().id() {
        // Granted by the owner itself: it stands without our other guardians, and moves away from them.
        let others = |wrapping: &Wrapping| {
            let mut guardians = hgs.keys.guardians.iter();
            guardians.any(|other| own_wrapping(&protector, other).is_some_and(|theirs| theirs.id() == wrapping.id()))
        };
        recipients.retain(|wrapping| wrapping.id() == own.id() || !others(wrapping));
        recipients = chained(recipients, &protector);
    }
    // Rolling begins with verifying, which is half of the work: it is not done twice for what passes.
    let rolled = protector.roll(guardian, &recipients, now);
    if rolled.is_ok() || protector.verify(now).is_ok() {
        // Only a verified owner is worth writing down.
        record.owner = protector.owner().signing_certificate().fingerprint();
    }
    let Rolled { ingress, egress_protector, egress } = rolled.map_err(|error| Refusal::protector(&error))?;
    let egress_digest = egress_protector.digest();
    let binding = Binding { version, ingress: &record.protector, egress: &egress_digest };
    let sealed = release::seal(&health.identity, &ingress, &egress, &binding)
        .map_err(|error| Refusal::new(HEALTH_CERTIFICATE, format!("nothing can be encrypted to this host: {error}")))?;
    let document = Response { egress_protector: egress_protector.to_xml(), sealed }.write();
    let egress = Egress {
        ingress_id: key_id(&ingress),
        egress_id: key_id(&egress),
        digest: egress_digest,
        guardian: guardian.public().signing().fingerprint(),
    };
    Ok((document, egress))
}

fn own_wrapping<'a>(protector: &'a Protector, guardian: &Guardian) -> Option<&'a Wrapping> {
    let public = guardian.public();
    protector.wrappings().iter().find(|wrapping| {
        wrapping.signing_certificate() == public.signing() && wrapping.encryption_certificate() == public.encryption()
    })
}

/// Everyone the ingress protector was for, except recovery guardians (the recovery is over once the VM is back on
/// the fabric), those whose certificates have expired, and those who chain to the owner through one of these.
fn recipients(protector: &Protector, now: OffsetDateTime) -> Vec<Wrapping> {
    let kept = protector
        .wrappings()
        .iter()
        .filter(|wrapping| wrapping.role() != Role::Recovery && wrapping.check_valid_at(now).is_ok())
        .cloned()
        .collect();
    chained(kept, protector)
}

/// Those among them that lead to the owner through one another.
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
