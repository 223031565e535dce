//! The side that receives a VM.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use key_protector::{DerivedKey, Rolled};
use machine::record::SealedRecord;
use machine::{Policy, RunningVm, StartOptions, VmSpec};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use super::channel::{self, Channel, unexpected};
use super::messages::{Hello, Message, Purpose};
use super::offer::{self, Offer};
use crate::agent::Agent;
use crate::disks;
use crate::holder::in_the_name_of;
use crate::start::{not_started, start_options};
use crate::vm_dir::{Arrival, VmDir};
use crate::vm_lock::{Live, VmLock};
use outcome::{Context, Error, Kind, Next, Result};

/// Concurrent connections; one VM with all its disks needs at most 66.
const CONNECTIONS: usize = 160;
/// VMs that may arrive at the same time.
const ARRIVALS: usize = 4;
/// Outcomes that are remembered, for a source that did not receive the answer.
const REMEMBERED: usize = 64;
/// How long the source may take to decide on the hand-over.
const DECISION: Duration = Duration::from_secs(120);

/// Receives VMs from other hosts' agents.
pub struct Destination {
    agent: Arc<Agent>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    calls: Mutex<VecDeque<Arc<IncomingCall>>>,
    arrivals: Semaphore,
}

/// A migration whose source has proved that it holds the VM's key.
struct IncomingCall {
    migration: Uuid,
    key: DerivedKey,
    joining: mpsc::Sender<(Purpose, Channel)>,
    outcome: watch::Receiver<Option<std::result::Result<(), Error>>>,
}

impl Destination {
    /// Listens, after removing what an earlier agent that was killed had received only in part.
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
        let calls = Mutex::default();
        Ok(Destination { agent, listener, acceptor: channel::acceptor()?, calls, arrivals: Semaphore::new(ARRIVALS) })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().context(Kind::Internal, || "a listener has no address".into())
    }

    /// Receives VMs until the future is dropped, which also ends migrations in progress.
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
                let call = self.call(migration).ok_or_else(|| {
                    Error::new(
                        Kind::NotFound,
                        format!("a connection for migration {migration}, which is not in progress"),
                    )
                })?;
                channel.prove_as_destination(&call.key, migration, purpose).await?;
                call.join(purpose, channel).await
            }
        }
    }

    fn call(&self, migration: Uuid) -> Option<Arc<IncomingCall>> {
        self.calls().iter().find(|call| call.migration == migration).cloned()
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<IncomingCall>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, call: IncomingCall) -> Result<()> {
        let mut calls = self.calls();
        if calls.iter().any(|known| known.migration == call.migration) {
            return Err(Error::new(Kind::BadInput, "this migration was offered before"));
        }
        if calls.len() >= REMEMBERED
            && let Some(at) = calls.iter().position(|known| known.outcome.borrow().is_some())
        {
            calls.remove(at);
        }
        calls.push_back(Arc::new(call));
        Ok(())
    }

    /// Receives the VM that is offered.
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
            return Err(Error::new(Kind::Refused, "an agent in local mode receives no VMs"));
        }
        let vm = self.agent.lock_dir(self.agent.store().vm_dir(name)?)?;
        refuse_known(&self.agent, &vm, offer)?;
        let spec = offer.vm.to_spec(vm.dir())?;
        let options = start_options(&self.agent, name, Policy::Shielded).await?;
        let here = offer::processor(&options.accel)?;
        if here != offer.processor {
            return Err(Error::new(
                Kind::WrongState,
                format!("the processor that {name} sees differs from that of this host's guests"),
            )
            .caused_by(&Error::new(Kind::WrongState, format!("there: {}; here: {here}", offer.processor)))
            .remedy("migrate between hosts with the same processor, or stop it and move it while it is off"));
        }
        let protector = offer.protector()?;
        // Here the Host Guardian Service decides: it releases a key only to a host that attests.
        let rolled = self.agent.keys().roll(&protector).await?;
        let (record, key) = offer.open(&spec, &protector, &rolled)?;
        control.prove_as_destination(&key, offer.migration, Purpose::Control).await?;

        let (joining, joined) = mpsc::channel(1);
        let (ended, outcome) = watch::channel(None);
        self.open(IncomingCall { migration: offer.migration, key, joining, outcome })?;
        let options = StartOptions { console: record.policy == Policy::EncryptionSupported, ..options };
        let arriving = Arriving { vm, spec, rolled, record, options, generation: offer.generation };
        let taken = arriving.run(&self.agent, control, joined).await;
        ended.send_replace(Some(taken.clone()));
        taken?;
        // The VM has arrived; a source that misses the answer asks again.
        control.send(&Message::Running).await
    }
}

/// Refuses a VM that this host already has, under this name or another.
fn refuse_known(agent: &Agent, vm: &VmLock, offer: &Offer) -> Result<()> {
    let taken = |name: &str| {
        Error::new(Kind::WrongState, format!("the destination already has a VM named '{name}', or this very VM"))
            .remedy("delete that one if it is not needed")
    };
    if vm.dir().exists() {
        return Err(taken(vm.dir().name()));
    }
    for dir in agent.store().vms()? {
        // A damaged VM must not get in the way.
        if dir.spec().is_ok_and(|spec| spec.id == offer.vm.id) {
            return Err(taken(dir.name()));
        }
    }
    Ok(())
}

impl IncomingCall {
    async fn join(&self, purpose: Purpose, mut channel: Channel) -> Result<()> {
        if purpose != Purpose::Outcome {
            channel.send(&Message::Ready).await?;
            let over = || Error::new(Kind::WrongState, "a connection for a migration that is over");
            return self.joining.send((purpose, channel)).await.map_err(|_| over());
        }
        let mut outcome = self.outcome.clone();
        let ended = match outcome.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            // It was aborted, and what had arrived was removed.
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

/// A VM that is arriving. Dropped before it is complete, it leaves nothing behind.
struct Arriving {
    vm: VmLock,
    spec: VmSpec,
    rolled: Rolled,
    record: SealedRecord,
    options: StartOptions,
    /// Number of the active slot at the source.
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
            // Before the source is told that it does not run.
            running.kill().await;
            return Err(error);
        }
        leaving.stays = true;
        let accel = self.options.accel.clone();
        self.vm.set_live(Live::new(running, &self.spec, &self.record, &self.rolled.egress, accel, false));
        agent.keys().keep_offline_key(&dir, &self.spec, &self.rolled).await;
        Ok(())
    }

    /// Makes the disks and the slot, still empty, and starts QEMU on them.
    async fn prepare(&mut self) -> Result<RunningVm> {
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
        machine::slot::prepare(&slot, &self.rolled.egress, &self.record, &digest, &self.spec.firmware)
            .await
            .context(Kind::Internal, || format!("cannot make a slot for {name}"))?;
        dir.write_protector(self.record.generation, &self.rolled.egress_protector)?;
        RunningVm::start_incoming(&self.spec, &slot, &self.rolled.egress, &self.record, self.options.clone())
            .await
            .map_err(|error| not_started(name, &error))
    }

    fn next(&self) -> Result<u64> {
        self.generation.checked_add(1).ok_or_else(|| Error::new(Kind::BadInput, "the generation is exhausted"))
    }

    async fn complete(
        &self,
        running: &RunningVm,
        control: &mut Channel,
        joined: mpsc::Receiver<(Purpose, Channel)>,
    ) -> Result<()> {
        let dir = self.vm.dir();
        let folder = tempfile::tempdir().context(Kind::Internal, || "cannot make a directory for a socket".into())?;
        let socket = folder.path().join("nbd");
        running.receive_disks(&socket).await.context(Kind::Internal, || "QEMU does not accept disks".into())?;
        control.send(&Message::Ready).await?;
        tokio::select! {
            received = receive(running, &socket, joined) => received?,
            // The source has nothing to send now; it can only disconnect.
            said = control.next() => return Err(said.map_or_else(|gone| gone, |message| unexpected(&message))),
        }
        running.stop_serving().await;
        // Everything that needs disk space happens before the guest resumes.
        dir.prepare_spec(&self.spec)?;
        dir.switch_to(self.record.generation, self.record.generation)?;
        self.flush()?;
        control.send(&Message::Loaded).await?;
        match control.receive(DECISION).await? {
            Message::Run => {}
            other => return Err(unexpected(&other)),
        }
        running.resume().await.map_err(|error| not_started(dir.name(), &error))?;
        let slot = dir.slot(self.record.generation);
        machine::slot::settle(&slot).context(Kind::Internal, || format!("{} is not complete", slot.display()))?;
        dir.switch_spec()?;
        dir.end_arrival()
    }

    /// Flushes what was received for the disks.
    fn flush(&self) -> Result<()> {
        for disk in &self.spec.disks {
            File::open(disk.source.path())
                .and_then(|file| file.sync_all())
                .context(Kind::Internal, || format!("cannot flush {}", disk.source.path().display()))?;
        }
        Ok(())
    }
}

/// Runs until QEMU has the guest's memory, which comes last.
async fn receive(running: &RunningVm, nbd: &Path, mut joined: mpsc::Receiver<(Purpose, Channel)>) -> Result<()> {
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
                    .context(Kind::Internal, || "QEMU did not accept what was received".into());
            }
            Some((Purpose::Control | Purpose::Outcome, _)) | None => {
                return Err(Error::new(Kind::BadInput, "a connection with a purpose that is not expected here"));
            }
        }
    }
}

/// Removes what was received, unless it stays.
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
            tracing::warn!(vm = self.dir.name(), %error, "the partly received VM cannot be removed");
        }
    }
}

/// Removes what a killed agent had begun to receive: its QEMU waits forever, and its directory is not a VM.
async fn clear(dir: &VmDir) -> Result<()> {
    let arrival = dir.arrival()?;
    if dir.exists() {
        return dir.end_arrival();
    }
    if let Some(arrival) = arrival
        && let Some(pid) =
            machine::find_qemu_with(arrival.vm_id, &dir.slot(arrival.generation).join(machine::slot::VARS))
    {
        machine::end_orphan(pid)
            .await
            .context(Kind::Internal, || format!("cannot end process {pid}, the QEMU of a VM that did not arrive"))?;
    }
    dir.remove()
}
