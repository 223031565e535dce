//! `drydock garage …`: the key by which a repair garage's owner recognizes its requests.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use outcome::{Error, Kind, Result};
use recovery::api::{GarageInfo, RecoveryRequest};
use serde_json::json;

use crate::agent_call::{answer, call};
use crate::keyring::{self, GARAGE, Keyring, KeyringArgs};
use crate::output::Output;
use crate::{files, fingerprint};

#[derive(Subcommand)]
pub(crate) enum GarageCommand {
    /// In the garage, once: make the garage's own key in its vTPM, and write the public half.
    ///
    /// Do this when you set the garage up, before its first recovery. The garage signs its recovery requests with this
    /// key; running the command again writes the same public half again.
    #[command(after_long_help = "Example, in the garage:\n  drydock garage init --out vmre.garage.pem")]
    Init {
        /// Where to write the public half.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
    /// On the tenant host, once: import a garage's public half.
    ///
    /// From then on `drydock recovery grant` accepts this garage's requests, so bring the file over a channel that you
    /// trust, and compare the key's fingerprint with the one that `drydock garage init` printed.
    #[command(after_long_help = "Example, on the tenant host:\n  drydock garage import vmre.garage.pem --name vmre")]
    Import {
        /// What `drydock garage init` wrote.
        file: PathBuf,
        /// Your name for the garage.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        keyring: KeyringArgs,
    },
    /// On the tenant host: list the garages whose requests can be granted.
    #[command(after_long_help = "Example:\n  drydock garage list")]
    List {
        #[command(flatten)]
        keyring: KeyringArgs,
    },
}

pub(crate) fn run(command: GarageCommand, socket: &Path, out: &Output) -> Result<()> {
    match command {
        GarageCommand::Init { out: target } => init(&target, socket, out),
        GarageCommand::Import { file, name, keyring } => import(&file, &name, keyring, out),
        GarageCommand::List { keyring } => list(keyring, out),
    }
}

fn init(target: &Path, socket: &Path, out: &Output) -> Result<()> {
    let info: GarageInfo = answer(&call(socket, &RecoveryRequest::GarageInit, out)?)?;
    files::write(target, info.public_key.as_bytes())?;
    out.result(&json!({ "file": target, "fingerprint": info.fingerprint }), || {
        format!(
            "the garage's key is in its vTPM, the public half in {}\n  key {}\n\
             On the tenant host: drydock garage import {} --name NAME",
            target.display(),
            fingerprint::grouped(&info.fingerprint),
            files::name(target),
        )
    });
    Ok(())
}

fn import(file: &Path, name: &str, keyring: KeyringArgs, out: &Output) -> Result<()> {
    let keyring = Keyring::open(keyring)?;
    let key = keyring::garage_key(file)?;
    let target = keyring.path(name, GARAGE)?;
    if let Some(known) = keyring.garages()?.into_iter().find(|g| g.name == name || g.key == key) {
        return Err(Error::new(Kind::WrongState, format!("the garage '{}' is already known", known.name))
            .remedy(format!("choose another name, or remove {}", target.display())));
    }
    files::write(&target, key.to_pem().as_bytes())?;
    out.result(&json!({ "name": name, "fingerprint": key.fingerprint() }), || {
        format!(
            "requests of the garage '{name}' can be granted from now on\n  key {}",
            fingerprint::grouped(&key.fingerprint())
        )
    });
    Ok(())
}

fn list(keyring: KeyringArgs, out: &Output) -> Result<()> {
    let garages = Keyring::open(keyring)?.garages()?;
    let rows: Vec<_> = garages.iter().map(|g| json!({ "name": g.name, "fingerprint": g.key.fingerprint() })).collect();
    out.result(&json!(rows), || {
        if garages.is_empty() {
            return "no garages; run `drydock garage init` in one, and import the file that it writes".into();
        }
        garages.iter().map(|g| format!("{:<20} {}\n", g.name, fingerprint::grouped(&g.key.fingerprint()))).collect()
    });
    Ok(())
}
