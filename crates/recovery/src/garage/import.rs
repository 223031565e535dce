//! Steps 2 and 4, tenant in the garage: import the VM, ask its owner, and with the grant lower the policy.

use std::fs;
use std::path::PathBuf;

use host::LocalGuardians;
use host::VmDir;
use host::api::Hold;
use host::{Agent, Unsealed, VmFiles, VmLock};
use image::{Format, Source};
use key_protector::{Approval, Guardian, Protector, Role, Rolled, Wrapping};
use machine::{DiskSpec, NicSpec, Policy, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result, rfc3339};
use time::OffsetDateTime;

use crate::api::Imported;
use crate::documents::{self, MAX_HOURS, RecoveryGrant};
use crate::garage::guardian::{self, guardian_name, local};
use crate::garage::key::{GarageKey, LoadedKey};
use crate::garage::{rg, tools};
use crate::journal::{Beginning, Journal};
use crate::status;
use crate::step::{Side, Step};

/// The remedy for a grant that does not fit.
const REQUEST_AGAIN: &str = "make a new request with `drydock recovery import` and have that one granted";

pub(crate) struct Options {
    /// The bridge of the garage that the VM's NICs are on.
    pub switch: String,
    /// How long the recovery guardian is valid.
    pub hours: u32,
    /// Install the packages that are missing.
    pub install: bool,
}

/// Runs or resumes an import; with a grant, its second half.
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

async fn import(agent: &Agent, guardians: &LocalGuardians, options: &Options, events: &Events) -> Result<Imported> {
    let hours = i64::from(options.hours);
    if !(1..=MAX_HOURS).contains(&hours) {
        return Err(Error::new(
            Kind::BadInput,
            format!("--hours {hours}: a recovery guardian is valid for 1 to {MAX_HOURS} hours"),
        ));
    }
    let key = GarageKey::open(agent.store())?;
    events.say("find", "looking for the RG disk");
    let device = rg::open_device().await?;
    let outbound = device.outbound()?;
    let name = outbound.spec.name.clone();
    machine::tap::check_switch(&options.switch)
        .context(Kind::NotFound, || format!("'{}' is not a bridge of this garage", options.switch))
        .or_next(|| "name an existing bridge with --switch: ip link show type bridge".into())?;
    let lock = agent.lock_dir(agent.store().vm_dir(&name)?)?;
    let mut journal = open_journal(agent, &lock, &outbound)?;
    if journal.done(Step::PolicyLowered) {
        return Ok(imported(&journal, None));
    }
    let kept = guardians.get(&guardian_name(&journal))?;
    if kept.is_none() {
        // In parallel with what comes before they are needed.
        guardians.prepare();
    }
    let take_in = async |journal: &mut Journal| {
        events.say("import", format!("importing {name}"));
        place(lock.dir(), &outbound, options)?;
        durable::write_atomic(&ingress_file(journal), &outbound.protector.to_xml())
            .context(Kind::Internal, || "cannot keep the VM's key protector".into())
    };
    journal.step(Step::Imported, take_in).await?;
    events.say("guardian", "making the recovery guardian");
    let loaded = key.load().await?;
    let make = async |journal: &mut Journal| match kept {
        Some(guardian) => Ok(guardian),
        None => guardian::make(guardians, journal, hours).await,
    };
    let guardian = journal.repeat(Step::GuardianMade, make).await?;
    let ask = async |journal: &mut Journal| {
        let document = request(journal, &outbound, &guardian)?;
        events.say("sign", "signing the request with the garage's own key");
        sign(&key, loaded, document).await
    };
    let file = journal.repeat(Step::Requested, ask).await?;
    Ok(imported(&journal, Some(text(file)?)))
}

/// The journal of this RG disk's recovery, begun now if it is new here.
fn open_journal(agent: &Agent, lock: &VmLock, outbound: &rg::Outbound) -> Result<Journal> {
    let name = &outbound.spec.name;
    match Journal::open_for(agent.store(), name)? {
        Some(journal) if journal.id() == outbound.recovery_id => Ok(journal),
        Some(journal) => {
            Err(Error::new(Kind::WrongState, format!("{name} is in another recovery here ({})", journal.id()))
                .remedy(format!("drydock recovery abort {name}")))
        }
        // The name comes from the RG disk: it must not be able to push out a VM that exists here.
        None if lock.dir().exists() => {
            Err(Error::new(Kind::WrongState, format!("this garage already has a VM named '{name}'"))
                .remedy("that one is not touched; import into another garage, or move it away first"))
        }
        None => Journal::begin(
            agent.store(),
            Beginning {
                side: Side::Garage,
                id: outbound.recovery_id,
                vm: name,
                garage: None,
                file: None,
                mode: outbound.mode,
            },
        ),
    }
}

fn imported(journal: &Journal, request: Option<String>) -> Imported {
    Imported { vm: journal.vm().to_owned(), recovery_id: journal.id(), request, sentence: status::sentence(journal) }
}

/// The request that its owner decides on, signed by the recovery guardian.
fn request(journal: &Journal, outbound: &rg::Outbound, guardian: &Guardian) -> Result<Vec<u8>> {
    let request = documents::RecoveryRequest {
        recovery_id: journal.id(),
        vm_id: outbound.spec.id,
        vm_name: outbound.spec.name.clone(),
        garage: garage_name(),
        created: OffsetDateTime::now_utc().unix_timestamp(),
        protector: text(outbound.protector.to_xml())?,
        guardian: text(guardian.public().to_xml())?,
    };
    documents::write_request(&request, guardian)
}

/// The request's file: the document, and the garage's own signature over it.
async fn sign(key: &GarageKey, loaded: LoadedKey, document: Vec<u8>) -> Result<Vec<u8>> {
    let signature = loaded.sign(&document).await?;
    documents::write_request_file(document, &key.public()?, &signature)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context(Kind::Internal, || "a document is not UTF-8".into())
}

/// The garage as the owner will read it in the request.
fn garage_name() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!("{} ({})", read("/proc/sys/kernel/hostname"), read("/etc/machine-id"))
}

/// Makes the VM in the garage's store. Its disks stay where they are: on the RG disk, or attached next to it.
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
    let (grant, verified) = documents::read_grant(what, document)?;
    let lock = agent.lock(&grant.vm_name).map_err(|e| {
        if e.kind == Kind::NotFound {
            Error::new(Kind::BadInput, format!("{what} is for '{}', which is not imported here", grant.vm_name))
                .remedy("run `drydock recovery import` first, or bring the grant that answers its request")
        } else {
            e
        }
    })?;
    let mut journal = Journal::open_for(agent.store(), &grant.vm_name)?
        .ok_or_else(|| Error::new(Kind::WrongState, format!("{} is not in recovery here", grant.vm_name)))?;
    let ingress = ingress_protector(&journal)?;
    let guardian = guardian::existing(guardians, &journal)?;
    Approval::of_owner(&ingress).check(verified).map_err(|_| {
        Error::new(Kind::BadInput, format!("{what} is not signed by the owner of {}", grant.vm_name))
            .remedy("have it made with the owner guardian: drydock recovery grant REQUEST --owner NAME")
    })?;
    let answer = Answer { what, grant, ingress, guardian };
    answer.check(&journal, lock.dir().spec()?.id)?;
    let take = async |journal: &mut Journal| {
        let rolled = journal.repeat(Step::Granted, async |_| answer.roll()).await?;
        lower(&lock, journal, &answer.ingress, rolled, events).await
    };
    journal.step(Step::PolicyLowered, take).await?;
    Ok(imported(&journal, None))
}

fn ingress_file(journal: &Journal) -> PathBuf {
    journal.dir().join("ingress.xml")
}

/// The protector that the VM left the fabric with.
pub(crate) fn ingress_protector(journal: &Journal) -> Result<Protector> {
    let path = ingress_file(journal);
    let bytes =
        durable::read_bounded(&path, 1 << 20).context(Kind::BadInput, || format!("cannot read {}", path.display()))?;
    Protector::parse(&bytes).context(Kind::BadInput, || format!("{} is not a key protector", path.display()))
}

/// A grant, and what it answers.
struct Answer<'a> {
    /// What messages call it.
    what: &'a str,
    grant: RecoveryGrant,
    /// The protector that the VM left the fabric with.
    ingress: Protector,
    /// The recovery guardian of this recovery.
    guardian: Guardian,
}

impl Answer<'_> {
    /// That the grant is for this recovery, this garage and this time.
    fn check(&self, journal: &Journal, vm_id: uuid::Uuid) -> Result<()> {
        let Answer { what, grant, ingress, guardian } = self;
        let stale = |field: &str, why: &str| {
            Err(Error::new(Kind::BadInput, format!("{what}: field '{field}': {why}")).remedy(REQUEST_AGAIN))
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
            return stale("not_after", &format!("it expired at {end}"));
        }
        Ok(())
    }

    /// Opens the VM's key, and makes the next one: only the owner and this garage's guardian can open that.
    fn roll(&self) -> Result<Rolled> {
        let Answer { what, grant, ingress, guardian } = self;
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
        granted
            .roll(guardian, &recipients, OffsetDateTime::now_utc())
            .context(Kind::BadInput, || format!("{what}: its key protector does not open"))
            .or_next(|| REQUEST_AGAIN.into())
    }
}

/// Garage keys: the VM moves onto a transport key that only its owner and this garage's guardian can open, and
/// the lowered policy is sealed under that key and no other.
async fn lower(lock: &VmLock, journal: &Journal, ingress: &Protector, rolled: Rolled, events: &Events) -> Result<()> {
    let dir = lock.dir();
    let files = VmFiles::read(dir)?;
    if files.protector()?.digest() == ingress.digest() {
        let unsealed = Unsealed::open(&files, &rolled.ingress)?;
        events.say("policy-lowered", "sealing the lowered policy under garage keys");
        unsealed.reseal(&rolled.egress, &rolled.egress_protector, Policy::EncryptionSupported).await?;
        // The copy under the fabric's key goes at once: nothing here but the garage's own key opens the VM.
        let _ = fs::remove_dir_all(dir.slot(files.slot()));
    }
    let spec = VmSpec { policy: Policy::EncryptionSupported, ..files.spec().clone() };
    dir.write_spec(&spec)?;
    dir.set_hold(Some(&Hold {
        recovery_id: journal.id(),
        reason: format!("it is being repaired; when done: drydock recovery finish {}", spec.name),
        may_start: true,
    }))
}
