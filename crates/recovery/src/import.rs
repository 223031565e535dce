//! Steps 2 and 4, tenant in the garage: import the VM, ask its owner, and with the grant lower the policy.

use std::fs;

use host::api::Hold;
use host::keys::{KeySource, LocalGuardians};
use host::store::VmDir;
use host::{Agent, VmLock, check_record};
use image::{Format, Source};
use key_protector::{Guardian, GuardianKeys, Protector, Role, Wrapping};
use machine::record::SealedRecord;
use machine::{DiskSpec, NicSpec, Policy, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};
use time::{Duration, OffsetDateTime};

use crate::api::Imported;
use crate::documents::{self, RecoveryGrant};
use crate::garage_key::GarageKey;
use crate::grant::MAX_HOURS;
use crate::journal::{Journal, Side, Step};
use crate::{rg, status, tools};
use outcome::rfc3339;

pub(crate) struct Options {
    pub switch: String,
    pub hours: u32,
    pub install: bool,
}

/// Runs, or goes on with, an import; with a grant, its second half.
///
/// # Errors
/// `MissingTool`, `NotFound` without an RG disk, `BadInput` for a grant that is not for this.
pub(crate) async fn run(
    agent: &Agent,
    grant: Option<(&str, &[u8])>,
    options: &Options,
    events: &Events,
) -> Result<Imported> {
    let guardians = local(agent)?;
    tools::ensure(options.install, events).await?;
    match grant {
        None => import(agent, guardians, options, events).await,
        Some((what, document)) => take_grant(agent, guardians, what, document, events).await,
    }
}

/// The guardians of this garage.
pub(crate) fn local(agent: &Agent) -> Result<&LocalGuardians> {
    match agent.keys() {
        KeySource::Local(guardians) => Ok(guardians),
        KeySource::Hgs(_) => {
            Err(Error::new(Kind::Refused, "this is a guarded host: a VM's policy is never lowered here")
                .remedy("run the command inside the repair garage"))
        }
    }
}

/// The recovery guardian's name in the garage.
pub(crate) fn guardian_name(journal: &Journal) -> String {
    format!("recovery-{}", journal.id().simple())
}

async fn import(agent: &Agent, guardians: &LocalGuardians, options: &Options, events: &Events) -> Result<Imported> {
    let hours = i64::from(options.hours);
    if !(1..=MAX_HOURS).contains(&hours) {
        return Err(Error::new(
            Kind::BadInput,
            format!("--hours {hours}: a recovery guardian lives 1 to {MAX_HOURS} hours"),
        ));
    }
    let key = GarageKey::open(agent.store())?;
    events.say("find", "looking for the RG disk");
    let device = rg::open_device().await?;
    let outbound = device.outbound()?;
    let name = outbound.spec.name.clone();
    machine::tap::check_switch(&options.switch)
        .context(Kind::NotFound, || format!("'{}' is not a virtual switch of this garage", options.switch))
        .or_next(|| "name an existing bridge with --switch: ip link show type bridge".into())?;
    let lock = agent.lock_dir(agent.store().vm_dir(&name)?)?;
    let mut journal = match Journal::open_for(agent.store(), &name)? {
        Some(journal) if journal.id() == outbound.recovery_id => journal,
        Some(journal) => {
            return Err(Error::new(Kind::WrongState, format!("{name} is in another recovery here ({})", journal.id()))
                .remedy(format!("drydock recovery abort {name}")));
        }
        // The name comes from the RG disk: it must not be able to push out a VM that is here already.
        None if lock.dir().exists() => {
            return Err(Error::new(Kind::WrongState, format!("there is a VM named '{name}' in this garage already"))
                .remedy("that one is not touched; import into another garage, or move it away first"));
        }
        None => Journal::begin(agent.store(), Side::Garage, outbound.recovery_id, &name, None, None, outbound.mode)?,
    };
    if journal.done(Step::PolicyLowered) {
        return Ok(Imported {
            vm: name,
            recovery_id: journal.id(),
            request: None,
            sentence: status::describe(&journal).sentence,
        });
    }
    let kept = guardians.get(&guardian_name(&journal))?;
    if kept.is_none() {
        // Beside what comes before they are needed.
        guardians.prepare();
    }
    if !journal.done(Step::Imported) {
        events.say("import", format!("importing {name}"));
        place(lock.dir(), &outbound, options)?;
        durable::write_atomic(&journal.dir().join("ingress.xml"), &outbound.protector.to_xml())
            .context(Kind::Internal, || "cannot keep the VM's key protector".into())?;
        journal.mark(Step::Imported)?;
    }
    events.say("guardian", "making the recovery guardian");
    let loaded = key.load().await?;
    let guardian = match kept {
        Some(guardian) => guardian,
        None => {
            let fresh = recovery_guardian(guardians.new_keys().await?, &name, hours)
                .context(Kind::Internal, || "cannot make the recovery guardian".into())?;
            guardians.add(&guardian_name(&journal), &fresh)?;
            fresh
        }
    };
    journal.mark(Step::GuardianMade)?;
    let request = documents::RecoveryRequest {
        recovery_id: journal.id(),
        vm_id: outbound.spec.id,
        vm_name: name.clone(),
        garage: garage_name(),
        created: OffsetDateTime::now_utc().unix_timestamp(),
        protector: text(outbound.protector.to_xml())?,
        guardian: text(guardian.public().to_xml())?,
    };
    let document = documents::write_request(&request, &guardian)?;
    events.say("sign", "signing the request with the garage's own key");
    let signature = loaded.sign(&document).await?;
    let file = documents::write_request_file(document, &key.public()?, &signature)?;
    journal.mark(Step::Requested)?;
    Ok(Imported {
        vm: name,
        recovery_id: journal.id(),
        request: Some(text(file)?),
        sentence: status::describe(&journal).sentence,
    })
}

fn recovery_guardian(keys: GuardianKeys, vm: &str, hours: i64) -> key_protector::Result<Guardian> {
    let now = OffsetDateTime::now_utc();
    let (from, until) = (now - Duration::minutes(5), now + Duration::hours(hours));
    Guardian::with_keys(keys, &format!("recovery of {vm}"), Role::Recovery, from, until)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context(Kind::Internal, || "a document is not UTF-8".into())
}

/// The garage as the owner will read it in the request.
fn garage_name() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!("{} ({})", read("/proc/sys/kernel/hostname"), read("/etc/machine-id"))
}

/// Makes the VM in the garage's store. Its disks stay where they are: on the RG disk, or attached beside it.
fn place(dir: &VmDir, outbound: &rg::Outbound, options: &Options) -> Result<()> {
    dir.remove()?;
    durable::private_dir(dir.path()).context(Kind::Internal, || format!("cannot make {}", dir.path().display()))?;
    let slot = dir.slot(outbound.generation);
    durable::private_dir(&dir.path().join("slots"))
        .context(Kind::Internal, || format!("cannot make {}", slot.display()))?;
    outbound.unpack(&slot)?;
    dir.write_protector(outbound.generation, &outbound.protector)?;
    dir.switch_to(outbound.generation, outbound.generation)?;
    let mut spec: VmSpec = outbound.spec.clone();
    for (index, disk) in spec.disks.iter_mut().enumerate() {
        *disk = DiskSpec::new(Source::new(outbound.place(index), Format::Raw), &disk.serial, disk.size);
    }
    for nic in &mut spec.nics {
        *nic = NicSpec { switch: options.switch.clone(), mac: nic.mac.clone() };
    }
    spec.nested = false;
    spec.firmware = machine::Firmware::find()
        .context(Kind::MissingTool, || "no OVMF firmware with Secure Boot in this garage".into())?;
    dir.set_hold(Some(&Hold {
        recovery_id: outbound.recovery_id,
        reason: "it waits for its owner's grant".into(),
        may_start: false,
    }))?;
    dir.write_spec(&spec)
}

async fn take_grant(
    agent: &Agent,
    guardians: &LocalGuardians,
    what: &str,
    document: &[u8],
    events: &Events,
) -> Result<Imported> {
    let (grant, signer) = documents::read_grant(what, document)?;
    let mut lock = agent.lock(&grant.vm_name).map_err(|e| {
        if e.kind == Kind::NotFound {
            Error::new(Kind::BadInput, format!("{what} is for '{}', which is not imported here", grant.vm_name))
                .remedy("run `drydock recovery import` first, or bring the grant that answers its request")
        } else {
            e
        }
    })?;
    let mut journal = Journal::open_for(agent.store(), &grant.vm_name)?
        .ok_or_else(|| Error::new(Kind::WrongState, format!("{} is in no recovery here", grant.vm_name)))?;
    let ingress = ingress_protector(&journal)?;
    let guardian = guardians.get(&guardian_name(&journal))?.ok_or_else(|| {
        Error::new(Kind::WrongState, "the recovery guardian is gone").remedy("drydock recovery abort, then start again")
    })?;
    if signer.fingerprint() != ingress.owner().signing_certificate().fingerprint() {
        return Err(Error::new(Kind::BadInput, format!("{what} is not signed by the owner of {}", grant.vm_name))
            .remedy("have it made with the owner guardian: drydock recovery grant REQUEST --owner NAME"));
    }
    check_grant(what, &grant, &journal, &ingress, &guardian, lock.dir().spec()?.id)?;
    if !journal.done(Step::PolicyLowered) {
        lower(agent, &mut lock, &mut journal, what, &grant, &ingress, &guardian, events).await?;
    }
    Ok(Imported {
        vm: grant.vm_name,
        recovery_id: journal.id(),
        request: None,
        sentence: status::describe(&journal).sentence,
    })
}

/// The protector that the VM left the fabric with.
pub(crate) fn ingress_protector(journal: &Journal) -> Result<Protector> {
    let path = journal.dir().join("ingress.xml");
    let bytes =
        durable::read_bounded(&path, 1 << 20).context(Kind::BadInput, || format!("cannot read {}", path.display()))?;
    Protector::parse(&bytes).context(Kind::BadInput, || format!("{} is not a key protector", path.display()))
}

fn check_grant(
    what: &str,
    grant: &RecoveryGrant,
    journal: &Journal,
    ingress: &Protector,
    guardian: &Guardian,
    vm_id: uuid::Uuid,
) -> Result<()> {
    let stale = |field: &str, why: &str| {
        Err(Error::new(Kind::BadInput, format!("{what}: field '{field}': {why}"))
            .remedy("make a new request with `drydock recovery import` and have that one granted"))
    };
    if grant.recovery_id != journal.id() {
        return stale("recovery_id", "it was given for another recovery");
    }
    if grant.vm_id != vm_id {
        return stale("vm_id", "it was given for another VM");
    }
    if grant.garage != garage_name() {
        return stale("garage", "it was given to another garage");
    }
    if grant.ingress_protector != ingress.digest() {
        return stale("ingress_protector", "it answers another key protector");
    }
    if grant.guardian != guardian.public().signing().fingerprint() {
        return stale("guardian", "it was given to another recovery guardian");
    }
    let now = OffsetDateTime::now_utc();
    if grant.not_after < now.unix_timestamp() {
        let end = OffsetDateTime::from_unix_timestamp(grant.not_after).map(rfc3339).unwrap_or_default();
        return stale("not_after", &format!("it ended at {end}"));
    }
    Ok(())
}

/// Garage keys: the VM moves onto a transport key that only its owner and this garage's guardian can open, and
/// the lowered policy is sealed under that key and no other.
#[allow(clippy::too_many_arguments)] // one operation, called once; a struct would only rename the list
async fn lower(
    agent: &Agent,
    lock: &mut VmLock,
    journal: &mut Journal,
    what: &str,
    grant: &RecoveryGrant,
    ingress: &Protector,
    guardian: &Guardian,
    events: &Events,
) -> Result<()> {
    let granted = Protector::parse(grant.protector.as_bytes())
        .context(Kind::BadInput, || format!("{what}: field 'protector' is not a key protector"))?;
    if granted.owner().signing_certificate().fingerprint() != ingress.owner().signing_certificate().fingerprint() {
        return Err(Error::new(Kind::BadInput, format!("{what}: its key protector has another owner")));
    }
    let own = guardian.public().encryption().fingerprint();
    let recipients: Vec<Wrapping> = granted
        .wrappings()
        .iter()
        .filter(|w| w.role() == Role::Owner || w.encryption_certificate().fingerprint() == own)
        .cloned()
        .collect();
    let rolled = granted
        .roll(guardian, &recipients, OffsetDateTime::now_utc())
        .context(Kind::BadInput, || format!("{what}: its key protector does not open"))
        .or_next(|| "make a new request with `drydock recovery import` and have that one granted".into())?;
    journal.mark(Step::Granted)?;

    let dir = lock.dir().clone();
    let current = dir.current()?;
    let mut spec = dir.spec()?;
    let protector = dir.protector(current)?;
    if protector.digest() == ingress.digest() {
        let record = host::open_record(&dir, current, &rolled, &protector)?;
        check_record(&spec, &record, current)?;
        events.say("policy-lowered", "sealing the lowered policy under garage keys");
        let lowered = SealedRecord { policy: Policy::EncryptionSupported, ..record };
        agent.reseal(&dir, current, &rolled, lowered).await?;
        // The copy under the fabric's key goes at once: nothing here but the garage's own key opens the VM.
        let _ = fs::remove_dir_all(dir.slot(current));
    }
    spec.policy = Policy::EncryptionSupported;
    dir.write_spec(&spec)?;
    dir.set_hold(Some(&Hold {
        recovery_id: journal.id(),
        reason: format!("it is being repaired; when done: drydock recovery finish {}", spec.name),
        may_start: true,
    }))?;
    journal.mark(Step::PolicyLowered)
}
