//! `drydock host …`: how a host proves itself to the Host Guardian Service, and the agent.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attestation::HostKey;
use clap::{Args, Subcommand, ValueEnum};
use host::migration::Destination;
use host::{Agent, Guarded, HostProof, KeySource, LocalGuardians, Store};
use machine::accel::{Accel, Chooser};
use outcome::{Context, Error, Events, Kind, Next, Result};
use recovery::AgentService;
use serde_json::json;
use tpm::{HostTpm, KERNEL_LOG};

use crate::output::Output;
use crate::{daemon, files, fingerprint, rights};

/// The host's attestation key, in the store.
const HOST_KEY: &str = "host-key.pem";
/// The longest such file that is read, in bytes.
const MAX_HOST_KEY: u64 = 64 << 10;

#[derive(Subcommand)]
pub(crate) enum HostCommand {
    /// Make this host's attestation key, or with --tpm read its TPM's endorsement key, and write the public half.
    ///
    /// Do this once, before the host's first attestation. The admin of the Host Guardian Service registers the file with
    /// `drydock hgs add-host`. Running it again writes the same public half again.
    #[command(after_long_help = "Examples:\n  \
        drydock host init --out host1.pub.pem\n  \
        drydock host init --tpm --out host1.ek.der")]
    Init {
        /// The agent's store.
        #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/drydock")]
        store: PathBuf,
        /// Where to write the public key.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
        /// The service is in TPM mode: hosts attest with their TPMs.
        #[arg(long)]
        tpm: bool,
    },
    /// Attest once and print the result. Every start of a VM begins with this.
    ///
    /// Run it after the host was registered, and whenever the service refuses its keys. It changes nothing.
    #[command(after_long_help = "Example:\n  \
        drydock host attest --hgs https://hgs.example:8443 --hgs-ca /etc/drydock/hgs-ca.pem")]
    Attest {
        #[command(flatten)]
        hgs: HgsArgs,
    },
    /// Run the agent: on a guarded host with --hgs, in a repair garage with --local.
    ///
    /// Normally systemd runs it: contrib/systemd has a unit for either. The agent must be started as root; it gives up
    /// all capabilities that it does not need. SIGTERM shuts its VMs down.
    #[command(after_long_help = "Examples:\n  \
        drydock host serve --hgs https://hgs.example:8443 --hgs-ca /etc/drydock/hgs-ca.pem\n  \
        drydock host serve --local")]
    Serve(Serve),
}

#[derive(Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub hgs: HgsArgs,
    /// Get keys from guardians on this machine: for a repair garage.
    #[arg(long, conflicts_with = "hgs", required_unless_present = "hgs")]
    pub local: bool,
    /// Use this accelerator instead of testing whether KVM works.
    #[arg(long, value_enum)]
    pub accel: Option<AccelArg>,
    /// Keep the keys of VMs whose owners allow it (`drydock protector new --offline-unwraps`), sealed to this host, and
    /// start those VMs with them while no Host Guardian Service is reachable.
    #[arg(long, requires = "hgs")]
    pub offline: bool,
    /// Take VMs that other hosts of this fabric migrate here, on this address and port.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "local")]
    pub migration_listen: Option<SocketAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum AccelArg {
    /// Hardware virtualization.
    Kvm,
    /// Emulation, which is slow.
    Tcg,
}

/// The Host Guardian Service, and how this host proves itself to it.
#[derive(Args)]
pub(crate) struct HgsArgs {
    /// The agent's store.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/drydock")]
    pub store: PathBuf,
    /// URL of the Host Guardian Service. Repeatable, once for each node: if one does not answer, the next one is asked.
    #[arg(long, value_name = "URL")]
    pub hgs: Vec<String>,
    /// The CA that issued the service's TLS certificate (PEM).
    #[arg(long, requires = "hgs", value_name = "FILE")]
    pub hgs_ca: Option<PathBuf>,
    /// Attest with this host's TPM, which proves how the host was started, instead of with a key in a file.
    #[arg(long, requires = "hgs")]
    pub tpm: bool,
}

pub(crate) fn run(command: HostCommand, socket: &Path, out: &Output) -> Result<()> {
    match command {
        HostCommand::Init { store, out: target, tpm } => {
            let store = Store::open(&store)?;
            if tpm { init_tpm(&target, out) } else { init(&store, &target, out) }
        }
        HostCommand::Attest { hgs } => {
            let store = Store::open(&hgs.store)?;
            daemon::runtime()?.block_on(async {
                guarded(&hgs, &store).await?.attest().await?;
                out.result(&json!({ "status": "Passed" }), || "Passed: the service gives this host keys".into());
                Ok(())
            })
        }
        HostCommand::Serve(args) => serve(args, socket, out),
    }
}

/// This host as a client of the Host Guardian Service.
///
/// # Errors
/// `BadInput` when no service is named, `NotFound` when the host has no key, `MissingTool` when its TPM cannot be used.
pub(crate) async fn guarded(args: &HgsArgs, store: &Store) -> Result<Guarded> {
    if args.hgs.is_empty() {
        return Err(Error::new(Kind::BadInput, "no Host Guardian Service is named").remedy("--hgs URL --hgs-ca FILE"));
    }
    let ca = args.hgs_ca.as_deref().map(files::read).transpose()?;
    let proof = if args.tpm { HostProof::Tpm(open_tpm().await?) } else { HostProof::Key(load_host_key(store)?) };
    Guarded::new(&args.hgs, ca.as_deref(), proof)
}

async fn open_tpm() -> Result<HostTpm> {
    HostTpm::open(None, Path::new(KERNEL_LOG))
        .await
        .context(Kind::MissingTool, || "this host's TPM cannot be used".into())
        .or_next(|| "apt-get install tpm2-tools, and check that /dev/tpmrm0 exists".into())
}

fn init_tpm(target: &Path, out: &Output) -> Result<()> {
    let tpm = daemon::runtime()?.block_on(open_tpm())?;
    let key = tpm.endorsement_key();
    files::write(target, key.der())?;
    let fingerprint = key.fingerprint();
    out.result(&json!({ "endorsement_key": target, "fingerprint": fingerprint }), || {
        format!(
            "the endorsement key of this host's TPM is in {}\n  key {}\n\
             On the Host Guardian Service: drydock hgs add-host NAME --tpm {}\n\
             and a known good boot: drydock hgs add-baseline NAME {KERNEL_LOG}, copied from this host",
            target.display(),
            fingerprint::grouped(&fingerprint),
            files::name(target)
        )
    });
    Ok(())
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
    files::write(target, key.public_pem().as_bytes())?;
    out.result(&json!({ "public_key": target }), || {
        format!(
            "this host's public key is in {}\nOn the Host Guardian Service: drydock hgs add-host NAME {}",
            target.display(),
            files::name(target)
        )
    });
    Ok(())
}

fn load_host_key(store: &Store) -> Result<HostKey> {
    let path = store.root().join(HOST_KEY);
    let bytes = zeroize::Zeroizing::new(durable::read_bounded(&path, MAX_HOST_KEY).map_err(|e| {
        Error::new(Kind::NotFound, format!("this host has no key: {}", path.display()))
            .caused_by(&e)
            .remedy("make one (drydock host init --out host.pub.pem) and have it registered with the HGS")
    })?);
    let text = std::str::from_utf8(&bytes).context(Kind::BadInput, || format!("{} is not PEM", path.display()))?;
    HostKey::from_pem(text).context(Kind::BadInput, || format!("{} is not a host key", path.display()))
}

fn serve(args: Serve, socket: &Path, out: &Output) -> Result<()> {
    // Before the first thread: capabilities are a thread's.
    out.note(&format!("capabilities: {}", rights::reduce(args.local)?));
    let store = Store::open(&args.hgs.store)?;
    let runtime = daemon::runtime()?;
    let keys = if args.local {
        KeySource::Local(LocalGuardians::new(store.guardians()))
    } else {
        KeySource::Hgs(Box::new(runtime.block_on(guarded(&args.hgs, &store))?.offline(args.offline)))
    };
    let accel = Chooser::new(args.accel.map(|accel| match accel {
        AccelArg::Kvm => Accel::Kvm,
        AccelArg::Tcg => Accel::Tcg,
    }));
    let choice = accel.last();
    out.note(&format!("accelerator: {} ({})", choice.accel, choice.reason));
    runtime.block_on(serve_agent(Agent::new(store, keys, accel), socket, args.migration_listen, out))
}

async fn serve_agent(agent: Agent, socket: &Path, migrations: Option<SocketAddr>, out: &Output) -> Result<()> {
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
    let ready = || {
        out.note(&format!("listening on {}", socket.display()));
        daemon::ready();
    };
    host::server::serve(socket, service, ready, daemon::shutdown()?).await?;
    // A VM that has not fully arrived is removed here, and keeps running where it was.
    arriving.shutdown().await;
    out.note("shutting the VMs down");
    let (sender, mut reports) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    agent.stop_all(&Events::new(sender)).await;
    Ok(())
}
