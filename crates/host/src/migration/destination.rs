//! The side that takes a VM.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use key_protector::{DerivedKey, Rolled};
use machine::record::SealedRecord;
use machine::{Policy, Running, StartOptions, VmSpec};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use super::channel::{self, Channel, unexpected};
use super::messages::{Hello, Message, Purpose};
use super::offer::{self, Offer};
use crate::agent::{Agent, Live, VmLock, not_started};
use crate::disks;
use crate::holder::in_the_name_of;
use crate::store::{Arrival, VmDir};
use outcome::{Context, Error, Kind, Next, Result};

/// Connections at a time; one VM with all its disks needs at most 66.
const CONNECTIONS: usize = 160;
/// VMs that come at the same time.
const ARRIVALS: usize = 4;
/// Endings that are remembered, for a source that did not hear.
const REMEMBERED: usize = 64;
/// The source prepares to give the VM away.
const DECISION: Duration = Duration::from_secs(120);

/// Takes VMs from other hosts' agents.
pub struct Destination {
    agent: Arc<Agent>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sessions: Mutex<VecDeque<Arc<Session>>>,
    arrivals: Semaphore,
}

/// A migration whose source proved itself.
struct Session {
    migration: Uuid,
    key: DerivedKey,
    joining: mpsc::Sender<(Purpose, Channel)>,
    outcome: watch::Receiver<Option<std::result::Result<(), Error>>>,
}

impl Destination {
    /// Listens, after removing what an earlier agent that was killed had not taken to the end.
    ///
    /// # Errors
    /// `Internal` when it cannot listen there.
    pub async fn bind(agent: Arc<Agent>, address: SocketAddr) -> Result<Self> {
        for dir in agent.store().arrivals()? {
            clear(&dir).await?;
        }
        let listener = TcpListener::bind(address)
            .await
            .context(Kind::Internal, || format!("cannot listen for migrations on {address}"))
            .or_next(|| "name an address of this host and a free port with --migration-listen".into())?;
        let sessions = Mutex::default();
        Ok(Destination {
            agent,
            listener,
            acceptor: channel::acceptor()?,
            sessions,
            arrivals: Semaphore::new(ARRIVALS),
        })
    }

    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().context(Kind::Internal, || "a listener has no address".into())
    }

    /// Takes VMs until the future is dropped, and what is under way with it.
    pub async fn serve(self) {
        let this = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        // The semaphore is never closed.
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            while connections.try_join_next().is_some() {}
            match this.listener.accept().await {
                Ok((tcp, peer)) => {
                    let this = Arc::clone(&this);
                    connections.spawn(async move {
                        let _slot = slot;
                        let caller = format!("a migration from {peer}");
                        if let Err(error) = in_the_name_of(caller, this.connection(tcp)).await {
                            tracing::warn!(%peer, %error, causes = ?error.causes, "a migration's connection");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of file descriptors, most likely: do not spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, tcp: TcpStream) -> Result<()> {
        let (mut channel, hello) = Channel::accept(tcp, &self.acceptor).await?;
        match hello {
            Hello::Offer(offer) => {
                let taken = self.take(&mut channel, &offer).await;
                if let Err(error) = &taken {
                    channel.send(&Message::Refused(error.clone())).await?;
                }
                taken
            }
            Hello::Join { migration, purpose } => {
                let session = self.session(migration).ok_or_else(|| {
                    Error::new(
                        Kind::NotFound,
                        format!("a connection for migration {migration}, which is not under way"),
                    )
                })?;
                channel.prove_as_destination(&session.key, migration, purpose).await?;
                session.join(purpose, channel).await
            }
        }
    }

    fn session(&self, migration: Uuid) -> Option<Arc<Session>> {
        self.sessions().iter().find(|session| session.migration == migration).cloned()
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, session: Session) -> Result<()> {
        let mut sessions = self.sessions();
        if sessions.iter().any(|known| known.migration == session.migration) {
            return Err(Error::new(Kind::BadInput, "this migration was offered before"));
        }
        if sessions.len() >= REMEMBERED
            && let Some(at) = sessions.iter().position(|known| known.outcome.borrow().is_some())
        {
            sessions.remove(at);
        }
        sessions.push_back(Arc::new(session));
        Ok(())
    }

    /// Takes the VM that is offered.
    async fn take(&self, control: &mut Channel, offer: &Offer) -> Result<()> {
        let name = &offer.vm.name;
        if offer.version != offer::VERSION {
            return Err(Error::new(Kind::BadInput, "the offer is of another version")
                .remedy("run the same version of drydock on both hosts"));
        }
        let _arrival = self.arrivals.try_acquire().map_err(|_| {
            Error::new(Kind::Busy, format!("{ARRIVALS} VMs are arriving already")).remedy("run it again later")
        })?;
        if self.agent.keys().is_local() {
            return Err(Error::new(Kind::Refused, "an agent in local mode takes no VMs"));
        }
        let vm = self.agent.lock_dir(self.agent.store().vm_dir(name)?)?;
        refuse_known(&self.agent, &vm, offer)?;
        let spec = offer.vm.to_spec(vm.dir())?;
        let options = self.agent.start_options(name, Policy::Shielded).await?;
        let here = offer::processor(&options.accel)?;
        if here != offer.processor {
            return Err(Error::new(Kind::WrongState, format!("{name} sees another processor than this host's guests"))
                .caused_by(&Error::new(Kind::WrongState, format!("there {}; here {here}", offer.processor)))
                .remedy("migrate between hosts with the same processor, or stop it and move it while it is off"));
        }
        let protector = offer.protector()?;
        // Here the Host Guardian Service decides: it gives a key to a host that attests.
        let rolled = self.agent.keys().roll(&protector).await?;
        let (record, key) = offer.open(&spec, &protector, &rolled)?;
        control.prove_as_destination(&key, offer.migration, Purpose::Control).await?;

        let (joining, joined) = mpsc::channel(1);
        let (ended, outcome) = watch::channel(None);
        self.open(Session { migration: offer.migration, key, joining, outcome })?;
        let options = StartOptions { console: record.policy == Policy::EncryptionSupported, ..options };
        let arriving = Arriving { vm, spec, rolled, record, options, generation: offer.generation };
        let taken = arriving.run(&self.agent, control, joined).await;
        ended.send_replace(Some(taken.clone()));
        taken?;
        // The VM is here; a source that does not hear it asks again.
        control.send(&Message::Running).await
    }
}

/// What is here already, under this name or another.
fn refuse_known(agent: &Agent, vm: &VmLock, offer: &Offer) -> Result<()> {
    let taken = |name: &str| {
        Error::new(
            Kind::WrongState,
            format!("there is a VM named '{name}' on the destination already, or it is this one"),
        )
        .remedy("delete that one, if it is not needed")
    };
    if vm.dir().exists() {
        return Err(taken(vm.dir().name()));
    }
    for dir in agent.store().vms()? {
        // A damaged one can be no hindrance.
        if dir.spec().is_ok_and(|spec| spec.id == offer.vm.id) {
            return Err(taken(dir.name()));
        }
    }
    Ok(())
}

impl Session {
    async fn join(&self, purpose: Purpose, mut channel: Channel) -> Result<()> {
        if purpose != Purpose::Outcome {
            channel.send(&Message::Ready).await?;
            let over = || Error::new(Kind::WrongState, "a connection for a migration that is over");
            return self.joining.send((purpose, channel)).await.map_err(|_| over());
        }
        let mut outcome = self.outcome.clone();
        let ended = match outcome.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            // It was cut off, and what there was of it removed.
            Err(_) => Some(Err(Error::new(Kind::Interrupted, "the destination's agent was stopped"))),
        };
        let message = match ended {
            Some(Ok(())) => Message::Running,
            Some(Err(error)) => Message::Refused(error),
            None => return Ok(()),
        };
        channel.send(&message).await
    }
}

/// A VM that comes. Dropped before it is in force, it leaves nothing.
struct Arriving {
    vm: VmLock,
    spec: VmSpec,
    rolled: Rolled,
    record: SealedRecord,
    options: StartOptions,
    /// At the source.
    generation: u64,
}

impl Arriving {
    async fn run(
        mut self,
        agent: &Agent,
        control: &mut Channel,
        joined: mpsc::Receiver<(Purpose, Channel)>,
    ) -> Result<()> {
        let dir = self.vm.dir().clone();
        let mut leaving = Leaving { dir: &dir, logs: &self.options.log_dir.clone(), stays: false };
        let running = self.prepare().await?;
        let taken = self.complete(&running, control, joined).await;
        if let Err(error) = taken {
            // Before anybody is told that it does not run.
            running.kill().await;
            return Err(error);
        }
        leaving.stays = true;
        let accel = self.options.accel.clone();
        self.vm.set_live(Live::new(running, &self.spec, &self.record, &self.rolled.egress, accel, false));
        agent.keep_offline_key(&dir, &self.spec, &self.rolled).await;
        Ok(())
    }

    /// Disks and slot, still empty, and QEMU on them.
    async fn prepare(&mut self) -> Result<Running> {
        let dir = self.vm.dir();
        let name = dir.name();
        dir.remove()?;
        dir.set_arrival(&Arrival { vm_id: self.spec.id, generation: self.next()? })?;
        for disk in &self.spec.disks {
            disks::create(disk.source.path(), disk.size).await?;
        }
        let slot = dir.fresh_slot(self.next()?)?;
        self.record.generation = self.next()?;
        let digest = self.rolled.egress_protector.digest();
        machine::state::prepare(&slot, &self.rolled.egress, &self.record, &digest, &self.spec.firmware)
            .await
            .context(Kind::Internal, || format!("cannot make a slot for {name}"))?;
        dir.write_protector(self.record.generation, &self.rolled.egress_protector)?;
        Running::incoming(&self.spec, &slot, &self.rolled.egress, &self.record, self.options.clone())
            .await
            .map_err(|error| not_started(name, &error))
    }

    fn next(&self) -> Result<u64> {
        self.generation.checked_add(1).ok_or_else(|| Error::new(Kind::BadInput, "the generation is exhausted"))
    }

    async fn complete(
        &self,
        running: &Running,
        control: &mut Channel,
        joined: mpsc::Receiver<(Purpose, Channel)>,
    ) -> Result<()> {
        let dir = self.vm.dir();
        let folder = tempfile::tempdir().context(Kind::Internal, || "cannot make a folder for a socket".into())?;
        let socket = folder.path().join("nbd");
        running.receive_disks(&socket).await.context(Kind::Internal, || "QEMU does not take disks".into())?;
        control.send(&Message::Ready).await?;
        tokio::select! {
            received = receive(running, &socket, joined) => received?,
            // A source has nothing to say now, except by going away.
            said = control.next() => return Err(said.map_or_else(|gone| gone, |message| unexpected(&message))),
        }
        running.stop_serving().await;
        // All that needs room on the disk comes before the guest goes on.
        dir.prepare_spec(&self.spec)?;
        dir.switch_to(self.record.generation, self.record.generation)?;
        self.flush()?;
        control.send(&Message::Loaded).await?;
        match control.receive(DECISION).await? {
            Message::Run => {}
            other => return Err(unexpected(&other)),
        }
        running.go_on().await.map_err(|error| not_started(dir.name(), &error))?;
        let slot = dir.slot(self.record.generation);
        machine::state::settle(&slot).context(Kind::Internal, || format!("{} is not whole", slot.display()))?;
        dir.switch_spec()?;
        dir.end_arrival()
    }

    /// What came for the disks is on the disk.
    fn flush(&self) -> Result<()> {
        for disk in &self.spec.disks {
            File::open(disk.source.path())
                .and_then(|file| file.sync_all())
                .context(Kind::Internal, || format!("cannot flush {}", disk.source.path().display()))?;
        }
        Ok(())
    }
}

/// Until QEMU has the guest's memory, and with it everything.
async fn receive(running: &Running, nbd: &Path, mut joined: mpsc::Receiver<(Purpose, Channel)>) -> Result<()> {
    let mut relays = JoinSet::new();
    let failed = || "cannot connect a migration to QEMU".to_owned();
    loop {
        match joined.recv().await {
            Some((Purpose::Disk(_), channel)) => {
                let local = UnixStream::connect(nbd).await.context(Kind::Internal, failed)?;
                relays.spawn(channel.relay(local));
            }
            Some((Purpose::Memory, channel)) => {
                let (ours, qemus) = UnixStream::pair().context(Kind::Internal, failed)?;
                let qemus = qemus.into_std().context(Kind::Internal, failed)?;
                relays.spawn(channel.relay(ours));
                return running
                    .receive_memory(qemus.into())
                    .await
                    .context(Kind::Internal, || "QEMU did not take what came".into());
            }
            Some((Purpose::Control | Purpose::Outcome, _)) | None => {
                return Err(Error::new(Kind::BadInput, "a connection that is of no use here"));
            }
        }
    }
}

/// Removes what came, unless it stays.
struct Leaving<'a> {
    dir: &'a VmDir,
    logs: &'a Path,
    stays: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let _ = std::fs::remove_dir_all(self.logs);
        if let Err(error) = self.dir.remove() {
            tracing::warn!(vm = self.dir.name(), %error, "what came of a VM cannot be removed");
        }
    }
}

/// What a killed agent had begun to take: its QEMU waits for ever, and its folder is no VM.
async fn clear(dir: &VmDir) -> Result<()> {
    let arrival = dir.arrival()?;
    if dir.exists() {
        return dir.end_arrival();
    }
    if let Some(arrival) = arrival
        && let Some(pid) =
            machine::find_qemu_with(arrival.vm_id, &dir.slot(arrival.generation).join(machine::state::VARS))
    {
        machine::end_orphan(pid)
            .await
            .context(Kind::Internal, || format!("cannot end process {pid}, the QEMU of a VM that did not arrive"))?;
    }
    dir.remove()
}
