//! Starting a VM: its key is released and rolled, its sealed state moves under the new key, and only then QEMU runs.

use std::sync::Arc;

use key_protector::{Protector, Rolled, TransportKey};
use machine::record::SealedRecord;
use machine::{Policy, RunningVm, StartOptions};
use outcome::{Context, Error, Events, Kind, Result};
use time::OffsetDateTime;

use crate::agent::Agent;
use crate::guarded::Unreleased;
use crate::seal::{Resealed, Unsealed};
use crate::vm_dir::VmDir;
use crate::vm_files::VmFiles;
use crate::vm_lock::{Live, VmLock};
use crate::{offline, protector_update};

/// The slot that a VM starts from, and what opens it.
struct Opened {
    slot: u64,
    key: TransportKey,
    record: SealedRecord,
    offline: bool,
}

/// Starts a VM: the key is released, rolled, the sealed state moved under the new key, and only then QEMU
/// runs. While no Host Guardian Service answers, and if owner and fabric allow it, the key of the last start is
/// used once more.
///
/// # Errors
/// `KeyRelease` when no key is released, `Refused` when the sealed record disagrees with the files.
pub async fn start(agent: &Agent, vm: &mut VmLock, events: &Events) -> Result<()> {
    start_with(agent, vm, agent.keys().keeps_offline(), events).await
}

/// The same for a VM that comes from elsewhere: the Host Guardian Service has to answer.
///
/// # Errors
/// Those of [`start`].
pub async fn first_start(agent: &Agent, vm: &mut VmLock, events: &Events) -> Result<()> {
    start_with(agent, vm, false, events).await
}

async fn start_with(agent: &Agent, vm: &mut VmLock, may_be_offline: bool, events: &Events) -> Result<()> {
    if vm.is_running() {
        return Err(Error::new(Kind::WrongState, format!("{} is running already", vm.dir().name())));
    }
    let files = VmFiles::read(vm.dir())?;
    files.refuse_held_start()?;
    vm.refuse_elsewhere(&files)?;
    let (name, spec) = (files.name(), files.spec());
    if !spec.firmware.is_known() {
        return Err(Error::new(Kind::Refused, format!("{name}: 'firmware' in vm.json is not the distribution's"))
            .remedy("undo the edit: firmware measures the boot, and another one could give the guest's key away"));
    }
    let Opened { slot, key, record, offline } = open(agent, &files, may_be_offline, events).await?;

    let mut with_attached = spec.clone();
    with_attached.disks.extend_from_slice(files.attached());
    let options = start_options(agent, name, record.policy).await?;
    let accel = options.accel.clone();
    events.say("start", format!("starting {name} under {} ({})", accel.accel, accel.reason));
    let started = RunningVm::start(&with_attached, &vm.dir().slot(slot), &key, &record, options).await;
    let running = started.map_err(|error| not_started(name, &error))?;
    vm.set_live(Live::new(running, spec, &record, &key, accel, offline));
    Ok(())
}

/// How a VM with this sealed policy is started now.
pub(crate) async fn start_options(agent: &Agent, name: &str, policy: Policy) -> Result<StartOptions> {
    let chooser = Arc::clone(agent.accel());
    let accel = tokio::task::spawn_blocking(move || chooser.now())
        .await
        .context(Kind::Internal, || "the search for KVM stopped".into())?;
    Ok(StartOptions {
        accel,
        log_dir: agent.store().logs(name),
        console: policy == Policy::EncryptionSupported,
        hidden: vec![agent.store().root().to_path_buf()],
    })
}

/// Gets the VM's key and opens its state with it.
async fn open(agent: &Agent, files: &VmFiles, may_be_offline: bool, events: &Events) -> Result<Opened> {
    let name = files.name();
    let protector = files.protector()?;
    let updated = updated_protector(files.dir(), protector, events)?;
    events.say("key-release", format!("asking for the key of {name}"));
    match agent.keys().release(updated.as_ref().unwrap_or(protector)).await {
        Ok(rolled) => {
            let rolled = with_active_key(agent, files, updated.is_some(), rolled).await?;
            open_rolled(agent, files, rolled, events).await
        }
        Err(Unreleased::Unreachable(error)) if may_be_offline => open_offline(agent, files, error, events).await,
        Err(Unreleased::Denied(error)) => {
            // Disconnecting the host after a refusal gains nothing.
            agent.keys().drop_offline_key(files.dir(), files.spec()).await;
            Err(match updated {
                None => error,
                Some(_) => error.remedy(format!(
                    "the owner's new key protector does not open here: have them make another update, or discard \
                     it: drydock vm set-protector {name} --drop"
                )),
            })
        }
        Err(unreleased) => Err(unreleased.into()),
    }
}

/// A granted protector holds the transport key that the state is sealed under. After a revocation it holds another
/// one: then the active protector opens the state once more.
async fn with_active_key(agent: &Agent, files: &VmFiles, updated: bool, rolled: Rolled) -> Result<Rolled> {
    if !updated || Unsealed::opens(files, &rolled.ingress) {
        return Ok(rolled);
    }
    let active = agent.keys().roll(files.protector()?).await?;
    Ok(Rolled { ingress: active.ingress, ..rolled })
}

/// Uses a released key: the state goes into the next slot, under the new key.
async fn open_rolled(agent: &Agent, files: &VmFiles, rolled: Rolled, events: &Events) -> Result<Opened> {
    let dir = files.dir();
    let unsealed = Unsealed::open(files, &rolled.ingress)?;
    let policy = unsealed.record().policy;
    events.say("reseal", "sealing the state under the new transport key");
    let Resealed { generation, record } = unsealed.reseal(&rolled.egress, &rolled.egress_protector, policy).await?;
    // A crash before this leaves an update that names an earlier protector, and is void.
    dir.drop_protector_update()?;
    if let Some(left) = agent.keys().keep_offline_key(dir, files.spec(), &rolled).await {
        events.say(
            "offline",
            format!("this host keeps the key of {}: {left} starts without the Host Guardian Service", dir.name()),
        );
    }
    Ok(Opened { slot: generation, key: rolled.egress, record, offline: false })
}

/// Without a service nobody can sign another protector: slot and key stay what they are. The start is counted
/// before the key is used for anything; one that fails later is counted too.
async fn open_offline(agent: &Agent, files: &VmFiles, mut unreachable: Error, events: &Events) -> Result<Opened> {
    let Some(keys) = agent.keys().offline_keys() else { return Err(unreachable) };
    let (name, protector) = (files.name(), files.protector()?);
    let taken = match keys.take(files.dir(), files.spec().id, protector).await {
        Ok(taken) => taken,
        Err(why) => {
            unreachable.causes.push(why.message);
            unreachable.causes.extend(why.causes);
            return Err(unreachable);
        }
    };
    let left = taken.remaining;
    tracing::warn!(vm = name, protector = protector.digest(), left, "started without the Host Guardian Service");
    offline::note(&agent.store().logs(name), protector, left)?;
    events.say(
        "offline",
        format!(
            "no Host Guardian Service answers: {name} starts with the key that this host kept ({left} such starts \
             left)"
        ),
    );
    let record = Unsealed::open(files, &taken.key)?.record().clone();
    Ok(Opened { slot: files.slot(), key: taken.key, record, offline: true })
}

/// The owner's new key protector, if a signed protector update waits that replaces this one.
fn updated_protector(dir: &VmDir, protector: &Protector, events: &Events) -> Result<Option<Protector>> {
    let Some(document) = dir.protector_update()? else { return Ok(None) };
    match protector_update::verify(&document, protector, OffsetDateTime::now_utc()) {
        Ok(to) => {
            events.say("protector", format!("{} gets the new key protector of its owner", dir.name()));
            Ok(Some(to))
        }
        Err(error) => {
            tracing::warn!(vm = dir.name(), %error, "a signed protector update is void");
            events.say("protector", format!("the signed protector update is void: {}", error.message));
            Ok(None)
        }
    }
}

/// Why a VM did not start. That it exposes too much is a refusal, and no fault of its files.
pub(crate) fn not_started(name: &str, error: &machine::Error) -> Error {
    let message = format!("{name} did not start");
    match error {
        machine::Error::Exposed { .. } => Error::new(Kind::Refused, message).caused_by(error).remedy(
            "what was found contradicts what every VM is started with: look for other programs of these names, or for \
             what changed on this host; drydock doctor",
        ),
        _ => Error::new(Kind::Internal, message).caused_by(error),
    }
}
