//! `drydock host …`

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use attestation::HostKey;
use host::Agent;
use host::error::{Context, Error, Kind, Result};
use host::keys::{Guarded, KeySource, LocalGuardians};
use host::store::Store;
use host::wire::Events;
use machine::accel::{Accel, Chooser};
use recovery::AgentService;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{AccelArg, Host};
use crate::keyring;
use crate::output::Output;

const HOST_KEY: &str = "host-key.pem";

pub(crate) fn run(command: Host, socket: &Path, out: &Output) -> Result<()> {
    match command {
        Host::Init { store, out: target } => init(&store, &target, out),
        Host::Serve { store, hgs, hgs_ca, local, accel } => {
            let store = Store::open(&store)?;
            let keys = if local {
                KeySource::Local(LocalGuardians::new(store.guardians()))
            } else {
                let url = hgs.unwrap_or_default();
                let ca = hgs_ca.as_deref().map(keyring::read).transpose()?;
                KeySource::Hgs(Box::new(Guarded::new(&url, ca.as_deref(), load_host_key(&store)?)?))
            };
            let accel = Chooser::new(accel.map(|a| match a {
                AccelArg::Kvm => Accel::Kvm,
                AccelArg::Tcg => Accel::Tcg,
            }));
            let verdict = accel.last();
            out.note(&format!("accelerator: {} ({})", verdict.accel, verdict.reason));
            runtime()?.block_on(serve(Agent::new(store, keys, accel), socket, out))
        }
    }
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

fn init(store: &Path, target: &Path, out: &Output) -> Result<()> {
    let store = Store::open(store)?;
    let path = store.root().join(HOST_KEY);
    let key = if path.exists() {
        load_host_key(&store)?
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
    let bytes = zeroize::Zeroizing::new(host::durable::read_bounded(&path, 64 << 10).map_err(|e| {
        Error::new(Kind::NotFound, format!("this host has no key: {}", path.display()))
            .caused_by(&e)
            .remedy("make one: drydock host init --out host.pub.pem, and have it added to the HGS")
    })?);
    let text = std::str::from_utf8(&bytes).context(Kind::BadInput, || format!("{} is not PEM", path.display()))?;
    HostKey::from_pem(text).context(Kind::BadInput, || format!("{} is not a host key", path.display()))
}

async fn serve(agent: Agent, socket: &Path, out: &Output) -> Result<()> {
    let agent = Arc::new(agent);
    let service = Arc::new(AgentService::new(Arc::clone(&agent)));
    let ready = || out.note(&format!("listening on {}", socket.display()));
    host::server::serve(socket, service, ready, shutdown()?).await?;
    out.note("shutting the VMs down");
    let (sender, mut reports) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    agent.stop_all(&Events::new(sender)).await;
    Ok(())
}
