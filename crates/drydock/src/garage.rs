//! `drydock garage …`

use std::path::Path;

use outcome::{Context, Error, Kind, Result};
use recovery::api::{GarageInfo, RecoveryRequest};
use serde_json::json;

use crate::agent_call::call;
use crate::cli::Garage;
use crate::guardian::write;
use crate::keyring::{self, GARAGE, Keyring};
use crate::output::Output;

pub(crate) fn run(command: Garage, socket: &Path, out: &Output) -> Result<()> {
    match command {
        Garage::Init { out: target } => {
            let value = call(socket, &RecoveryRequest::GarageInit, out)?;
            let info: GarageInfo = serde_json::from_value(value)
                .context(Kind::Internal, || "the agent's answer has another shape".into())?;
            write(&target, info.public_key.as_bytes())?;
            out.result(&json!({ "file": target, "fingerprint": info.fingerprint }), || {
                format!(
                    "the garage's key is in its vTPM, the public half in {}\n  key {}\n\
                     On the tenant host: drydock garage import {} --name NAME",
                    target.display(),
                    info.fingerprint,
                    target.file_name().unwrap_or_default().to_string_lossy(),
                )
            });
            Ok(())
        }
        Garage::Import { file, name, folder } => {
            let keyring = Keyring::open(folder.guardians)?;
            let key = keyring::garage_key(&file)?;
            let target = keyring.path(&name, GARAGE)?;
            if let Some(known) = keyring.garages()?.into_iter().find(|g| g.name == name || g.key == key) {
                return Err(Error::new(Kind::WrongState, format!("the garage '{}' is known already", known.name))
                    .remedy(format!("choose another name, or remove {}", target.display())));
            }
            write(&target, key.to_pem().as_bytes())?;
            out.result(&json!({ "name": name, "fingerprint": key.fingerprint() }), || {
                format!("requests of the garage '{name}' can be granted from now on\n  key {}", key.fingerprint())
            });
            Ok(())
        }
        Garage::List { folder } => {
            let garages = Keyring::open(folder.guardians)?.garages()?;
            let rows: Vec<_> =
                garages.iter().map(|g| json!({ "name": g.name, "fingerprint": g.key.fingerprint() })).collect();
            out.result(&json!(rows), || {
                if garages.is_empty() {
                    return "no garages; `drydock garage init` in one writes the file to import".into();
                }
                garages.iter().map(|g| format!("{:<20} {}\n", g.name, g.key.fingerprint())).collect()
            });
            Ok(())
        }
    }
}
