//! `drydock host …`

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use attestation::HostKey;
use host::Agent;
use host::keys::{Guarded, HostProof, KeySource, LocalGuardians};
use host::migration::Destination;
use host::store::Store;
use machine::accel::{Accel, Chooser};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};
use recovery::AgentService;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tpm::{HostTpm, KERNEL_LOG};

use crate::cli::{AccelArg, Host, Service};
use crate::output::Output;
use crate::{keyring, rights};

const HOST_KEY: &str = "host-key.pem";

pub(crate) fn run(command: Host, socket: &Path, out: &Output) -> Result<()> {
    match command {
        Host::Init { store, out: target, tpm } => {
            let store = Store::open(&store)?;
            if tpm { init_tpm(&target, out) } else { init(&store, &target, out) }
        }
        Host::Attest { service } => {
            let store = Store::open(&service.store)?;
            runtime()?.block_on(async {
                guarded(&service, &store).await?.attest().await?;
                out.result(&json!({ "status": "Passed" }), || "Passed: the service gives this host keys".into());
                Ok(())
            })
        }
        Host::Serve { service, local, accel, offline, migration_listen } => {
            out.note(&format!("rights: {}", rights::reduce(local)?));
            let store = Store::open(&service.store)?;
            let runtime = runtime()?;
            let keys = if local {
                KeySource::Local(LocalGuardians::new(store.guardians()))
            } else {
                KeySource::Hgs(Box::new(runtime.block_on(guarded(&service, &store))?.offline(offline)))
            };
            let accel = Chooser::new(accel.map(|a| match a {
                AccelArg::Kvm => Accel::Kvm,
                AccelArg::Tcg => Accel::Tcg,
            }));
            let verdict = accel.last();
            out.note(&format!("accelerator: {} ({})", verdict.accel, verdict.reason));
            runtime.block_on(serve(Agent::new(store, keys, accel), socket, migration_listen, out))
        }
    }
}

pub(crate) async fn guarded(service: &Service, store: &Store) -> Result<Guarded> {
    if service.hgs.is_empty() {
        return Err(Error::new(Kind::BadInput, "no Host Guardian Service is named").remedy("--hgs URL --hgs-ca FILE"));
    }
    let ca = service.hgs_ca.as_deref().map(keyring::read).transpose()?;
    let proof = if service.tpm { HostProof::Tpm(open_tpm().await?) } else { HostProof::Key(load_host_key(store)?) };
    Guarded::new(&service.hgs, ca.as_deref(), proof)
}

async fn open_tpm() -> Result<HostTpm> {
    HostTpm::open(None, Path::new(KERNEL_LOG))
        .await
        .context(Kind::MissingTool, || "this host's TPM cannot be used".into())
        .or_next(|| "apt-get install tpm2-tools, and see that /dev/tpmrm0 is there".into())
}

fn init_tpm(target: &Path, out: &Output) -> Result<()> {
    let tpm = runtime()?.block_on(open_tpm())?;
    let key = tpm.endorsement_key();
    crate::guardian::write(target, key.der())?;
    let fingerprint = key.fingerprint();
    out.result(&json!({ "endorsement_key": target, "fingerprint": fingerprint }), || {
        format!(
            "the endorsement key of this host's TPM is in {}\n  key {fingerprint}\n\
             On the Host Guardian Service: drydock hgs add-host NAME --tpm {}\n\
             and a known good boot: drydock hgs add-baseline NAME {KERNEL_LOG}, copied from this host",
            target.display(),
            target.file_name().unwrap_or_default().to_string_lossy()
        )
    });
    Ok(())
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().context(Kind::Internal, || "cannot start the runtime".into())
}

/// Completes at SIGTERM or Ctrl-C.
pub(crate) fn shutdown() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate =
        signal(SignalKind::terminate()).context(Kind::Internal, || "cannot listen for signals".into())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    })
}

fn init(store: &Store, target: &Path, out: &Output) -> Result<()> {
    let path = store.root().join(HOST_KEY);
    let key = if path.exists() {
        load_host_key(store)?
    } else {
        let key = HostKey::generate().context(Kind::Internal, || "cannot make a host key".into())?;
        let pem = key.to_pem();
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
            .context(Kind::Internal, || format!("cannot write {}", path.display()))?;
        key
    };
    crate::guardian::write(target, key.public_pem().as_bytes())?;
    out.result(&json!({ "public_key": target }), || {
        format!(
            "this host's public key is in {}\nOn the Host Guardian Service: drydock hgs add-host NAME {}",
            target.display(),
            target.file_name().unwrap_or_default().to_string_lossy()
        )
    });
    Ok(())
}

fn load_host_key(store: &Store) -> Result<HostKey> {
    let path = store.root().join(HOST_KEY);
    let bytes = zeroize::Zeroizing::new(durable::read_bounded(&path, 64 << 10).map_err(|e| {
        Error::new(Kind::NotFound, format!("this host has no key: {}", path.display()))
            .caused_by(&e)
            .remedy("make one: drydock host init --out host.pub.pem, and have it added to the HGS")
    })?);
    let text = std::str::from_utf8(&bytes).context(Kind::BadInput, || format!("{} is not PEM", path.display()))?;
    HostKey::from_pem(text).context(Kind::BadInput, || format!("{} is not a host key", path.display()))
}

async fn serve(agent: Agent, socket: &Path, migrations: Option<SocketAddr>, out: &Output) -> Result<()> {
    let agent = Arc::new(agent);
    if let KeySource::Local(guardians) = agent.keys() {
        guardians.prepare();
    }
    let mut arriving = tokio::task::JoinSet::new();
    if let Some(address) = migrations {
        let destination = Destination::bind(Arc::clone(&agent), address).await?;
        out.note(&format!("taking migrations on {}", destination.address()?));
        arriving.spawn(destination.serve());
    }
    let service = Arc::new(AgentService::new(Arc::clone(&agent)));
    let ready = || out.note(&format!("listening on {}", socket.display()));
    host::server::serve(socket, service, ready, shutdown()?).await?;
    // What has not arrived is removed, and goes on where it was.
    arriving.shutdown().await;
    out.note("shutting the VMs down");
    let (sender, mut reports) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    agent.stop_all(&Events::new(sender)).await;
    Ok(())
}
