//! The side that a VM leaves.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use key_protector::DerivedKey;
use machine::RunningVm;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::channel::{Channel, SHORT, unexpected};
use super::messages::{Hello, Message, Purpose};
use super::offer::{self, Offer, OfferedVm};
use crate::agent::Agent;
use crate::api::HandedOver;
use crate::vm_lock::{Live, VmLock};
use outcome::Events;
use outcome::{Context, Error, Kind, Result};

/// The destination asks a Host Guardian Service, or several nodes of one.
const ATTESTATION: Duration = Duration::from_secs(180);
/// The destination makes a slot and starts QEMU.
const PREPARATION: Duration = Duration::from_secs(180);
/// The destination reads the end of what was sent.
const LOADING: Duration = Duration::from_secs(120);
/// The destination resumes the guest and flushes everything.
const RESUMPTION: Duration = Duration::from_secs(60);
/// After a failure the destination may say why.
const REASON: Duration = Duration::from_secs(5);
/// How long the destination is asked how it ended.
const ASKING: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How a hand-over ended.
enum Ended {
    Running,
    /// The destination's guest never ran and never will.
    Refused(Error),
    /// It is not known.
    Unknown(Error),
}

/// Moves a running VM to the agent at `to`. After an error it keeps running here, with one exception: when the
/// destination may be running it.
///
/// # Errors
/// `WrongState`, the destination's reason, `Interrupted`.
pub(crate) async fn migrate(agent: &Agent, vm: &mut VmLock, to: &str, events: &Events) -> Result<()> {
    let name = vm.dir().name().to_owned();
    refuse_what_stays(agent, vm)?;
    let migration = Uuid::new_v4();
    let offer = make_offer(vm, migration)?;
    let live = vm.live().ok_or_else(|| off(&name))?;
    let stays = |error: Error| Error {
        message: format!("{name} was not migrated and keeps running here: {}", error.message),
        ..error
    };
    events.say("offer", format!("asking {to} to accept {name}"));
    let mut control = Channel::connect(to, &Hello::Offer(Box::new(offer))).await.map_err(stays)?;
    let key = live.migration_key();
    control.prove_as_source(key, migration, Purpose::Control, ATTESTATION).await.map_err(stays)?;
    // Nothing at the destination holds the other end of a session, and both QEMUs need the same devices.
    live.running().close_session().await.context(Kind::Internal, || format!("the session of {name} does not end"))?;
    let transfer = Transfer { name: &name, to, migration, key, running: live.running() };
    if let Err(error) = transfer.run(&mut control, events).await {
        return Err(transfer.take_back(error).await);
    }
    events.say("hand-over", format!("{to} has all of {name}; handing it over"));
    let handed_over = HandedOver { migration, to: to.to_owned() };
    if let Err(error) = vm.dir().set_handed_over(Some(&handed_over)) {
        return Err(transfer.take_back(error).await);
    }
    match transfer.hand_over(control, events).await {
        Ended::Running => {}
        Ended::Refused(error) => {
            let error = transfer.take_back(error).await;
            vm.dir().set_handed_over(None)?;
            return Err(error);
        }
        Ended::Unknown(error) => return Err(in_doubt(&name, to, &error)),
    }
    events.say("remove", format!("{name} runs on {to}; removing it here"));
    vm.stop(true, events).await?;
    agent.keys().forget_offline_key(vm.dir()).await.map_err(|error| {
        let message = format!("{name} runs on {to}, and is not removed here yet: {}", error.message);
        Error { message, ..error }.remedy(format!("drydock vm delete {name}, here"))
    })?;
    vm.dir().remove()?;
    let _ = std::fs::remove_dir_all(agent.store().logs(&name));
    Ok(())
}

/// Resolves a hand-over that was never answered: this host owns the VM again.
///
/// # Errors
/// `WrongState` when none is open.
pub(crate) async fn take_back(vm: &mut VmLock) -> Result<()> {
    let name = vm.dir().name().to_owned();
    if vm.dir().handed_over()?.is_none() {
        return Err(Error::new(Kind::WrongState, format!("{name} was not handed over to another host")));
    }
    if vm.is_running()
        && let Some(live) = vm.live()
    {
        live.running().take_back().await.context(Kind::Internal, || format!("{name} does not resume"))?;
    }
    vm.dir().set_handed_over(None)
}

fn make_offer(vm: &mut VmLock, migration: Uuid) -> Result<Offer> {
    let generation = vm.dir().current()?;
    let protector = vm.dir().protector(generation)?;
    let path = vm.dir().slot(generation).join(machine::slot::RECORD);
    let record = durable::read_bounded(&path, machine::record::MAX_LEN as u64)
        .context(Kind::BadInput, || format!("cannot read {}", path.display()))?;
    let name = vm.dir().name().to_owned();
    let live = vm.live().ok_or_else(|| off(&name))?;
    Ok(Offer {
        version: offer::VERSION,
        migration,
        vm: OfferedVm::of(live.spec()),
        processor: offer::processor(live.accel())?,
        generation,
        protector: String::from_utf8(protector.to_xml())
            .context(Kind::Internal, || "the key protector is not text".into())?,
        record: BASE64_STANDARD.encode(record),
    })
}

/// Refuses a VM that cannot leave at present.
fn refuse_what_stays(agent: &Agent, vm: &mut VmLock) -> Result<()> {
    let name = vm.dir().name().to_owned();
    let refuse = |why: String| Error::new(Kind::WrongState, format!("{name} cannot be migrated: {why}"));
    if agent.keys().is_local() {
        return Err(Error::new(Kind::Refused, "an agent in local mode cannot migrate VMs")
            .remedy("hand the VM back first: drydock recovery finish"));
    }
    vm.refuse_orphan()?;
    if !vm.is_running() {
        return Err(off(&name));
    }
    if let Some(hold) = vm.dir().hold()? {
        return Err(refuse(hold.reason).remedy(format!("drydock recovery status {name}")));
    }
    if vm.dir().protector_update()?.is_some() {
        return Err(refuse(
            "a signed protector update waits for its next start, and would be void after the move".into(),
        )
        .remedy(format!(
            "drydock vm stop {name} && drydock vm start {name}, or drydock vm set-protector {name} --drop"
        )));
    }
    let attached = !vm.dir().attached()?.is_empty() || vm.live().is_some_and(|live| live.running().has_guests_disks());
    if attached {
        return Err(
            refuse("disks of a recovery are attached to it".into()).remedy("finish or abort that recovery first")
        );
    }
    Ok(())
}

fn off(name: &str) -> Error {
    Error::new(Kind::WrongState, format!("{name} is off: only a running VM is migrated"))
        .remedy(format!("drydock vm start {name}"))
}

fn in_doubt(name: &str, to: &str, error: &Error) -> Error {
    Error::new(
        Kind::WrongState,
        format!("{name} was handed over to {to}, and that host has not confirmed whether it runs there"),
    )
    .caused_by(error)
    .remedy(format!(
        "it is paused here; run drydock vm list there. If it is there: drydock vm stop {name} --force, then \
             drydock vm delete {name}, here. If it is not and never will be: drydock vm migrate {name} --take-back"
    ))
}

struct Transfer<'a> {
    name: &'a str,
    to: &'a str,
    migration: Uuid,
    key: &'a DerivedKey,
    running: &'a RunningVm,
}

impl Transfer<'_> {
    /// Runs until the destination has everything. Both guests are paused then.
    async fn run(&self, control: &mut Channel, events: &Events) -> Result<()> {
        match control.receive(PREPARATION).await? {
            Message::Ready => {}
            other => return Err(unexpected(&other)),
        }
        let send = self.send(events);
        // Anything that the destination sends before it has everything is a failure.
        let loaded = async {
            match control.next().await? {
                Message::Loaded => Ok(()),
                other => Err(unexpected(&other)),
            }
        };
        tokio::pin!(send, loaded);
        tokio::select! {
            sent = &mut send => match sent {
                Ok(()) => super::channel::within(LOADING, "the other host's answer", loaded).await,
                Err(error) => match tokio::time::timeout(REASON, loaded).await {
                    Ok(Err(reason)) if reason.kind != Kind::Unreachable => Err(reason),
                    _ => Err(error),
                },
            },
            loaded = &mut loaded => {
                loaded?;
                send.await
            }
            () = events.gone() => Err(Error::new(Kind::Interrupted, "stopped on request")),
        }
    }

    async fn send(&self, events: &Events) -> Result<()> {
        let mut relays = JoinSet::new();
        let disks = self.running.disk_count();
        for index in 0..disks {
            let ours = self.channel(Purpose::Disk(index), &mut relays).await?;
            let message = format!("copying disk {} of {disks}", index + 1);
            events.say("copy-disk", message.as_str());
            self.running
                .mirror_disk(index, ours, |done, total| events.bytes("copy-disk", message.as_str(), done, total))
                .await
                .context(Kind::Internal, || format!("disk {index} was not copied"))?;
        }
        let ours = self.channel(Purpose::Memory, &mut relays).await?;
        self.running
            .send_memory(ours, |done, total| events.bytes("copy-memory", "copying memory", done, total))
            .await
            .context(Kind::Internal, || "the memory was not copied".into())?;
        // QEMU has written everything; some of it may still be in transit.
        while relays.join_next().await.is_some() {}
        Ok(())
    }

    /// A socket whose other end is the destination's QEMU.
    async fn channel(&self, purpose: Purpose, relays: &mut JoinSet<()>) -> Result<std::os::fd::OwnedFd> {
        let hello = Hello::Join { migration: self.migration, purpose };
        let mut channel = Channel::connect(self.to, &hello).await?;
        channel.prove_as_source(self.key, self.migration, purpose, SHORT).await?;
        match channel.receive(SHORT).await? {
            Message::Ready => {}
            other => return Err(unexpected(&other)),
        }
        let failed = || "cannot make a socket pair".to_owned();
        let (ours, qemus) = UnixStream::pair().context(Kind::Internal, failed)?;
        let qemus = qemus.into_std().context(Kind::Internal, failed)?;
        relays.spawn(channel.relay(ours));
        Ok(qemus.into())
    }

    /// Resumes the guest here.
    async fn take_back(&self, error: Error) -> Error {
        let name = self.name;
        match self.running.take_back().await {
            Ok(()) => {
                Error { message: format!("{name} was not migrated and keeps running here: {}", error.message), ..error }
            }
            Err(cause) => Error::new(Kind::Internal, format!("{name} was not migrated, and does not resume here"))
                .caused_by(&error)
                .caused_by(&cause)
                .remedy(format!("drydock vm stop {name} --force; drydock vm start {name}")),
        }
    }

    /// From here on the guest resumes at the destination, or where the destination says.
    async fn hand_over(&self, mut control: Channel, events: &Events) -> Ended {
        let mut last = match control.send(&Message::Run).await {
            Err(error) => error,
            Ok(()) => match control.receive(RESUMPTION).await {
                Ok(Message::Running) => return Ended::Running,
                Ok(other) => unexpected(&other),
                Err(error) if error.kind == Kind::Unreachable => error,
                Err(error) => return Ended::Refused(error),
            },
        };
        drop(control);
        events.say("ask", format!("{} does not answer; asking again", self.to));
        let end = tokio::time::Instant::now() + ASKING;
        while tokio::time::Instant::now() < end {
            match self.ask().await {
                Ok(ended) => return ended,
                Err(error) => last = error,
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ended::Unknown(last)
    }

    /// Asks the destination over an authenticated connection.
    async fn ask(&self) -> Result<Ended> {
        let purpose = Purpose::Outcome;
        let mut channel = Channel::connect(self.to, &Hello::Join { migration: self.migration, purpose }).await?;
        channel.prove_as_source(self.key, self.migration, purpose, SHORT).await?;
        match channel.receive(RESUMPTION).await {
            Ok(Message::Running) => Ok(Ended::Running),
            Ok(other) => Err(unexpected(&other)),
            Err(error) if error.kind == Kind::Unreachable => Err(error),
            Err(error) => Ok(Ended::Refused(error)),
        }
    }
}

impl Live {
    fn running(&self) -> &RunningVm {
        &self.running
    }
}
