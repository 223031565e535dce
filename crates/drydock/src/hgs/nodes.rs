//! `drydock hgs export`, `import`, and which store a service has: what several nodes of one service are made with.

use std::path::Path;

use hgs::{Hgs as Service, StoreUrl};
use outcome::{Context, Error, Kind, Result};
use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::StoreArgs;
use crate::guardian::{view, write};
use crate::hgs::lift;
use crate::keyring;
use crate::output::Output;

/// As the library wants it at least.
const LEAST_PASSPHRASE: usize = 12;

pub(crate) fn store(arguments: &StoreArgs) -> Result<Option<StoreUrl>> {
    match (&arguments.store, &arguments.store_file) {
        (None, None) => Ok(None),
        (Some(url), _) => {
            let url = StoreUrl::parse(url).map_err(lift)?;
            if url.has_password() {
                return Err(Error::new(
                    Kind::Refused,
                    "the store's URL has a password, which everybody can read there",
                )
                .remedy("change that password, and put the URL into a file of mode 0600: --store-file FILE"));
            }
            Ok(Some(url))
        }
        (None, Some(file)) => {
            keyring::refuse_open_to_others(file)?;
            let bytes = Zeroizing::new(keyring::read(file)?);
            let text = std::str::from_utf8(&bytes)
                .context(Kind::BadInput, || format!("{} is not the URL of a database", file.display()))?;
            StoreUrl::parse(text.trim()).map(Some).map_err(lift)
        }
    }
}

pub(crate) async fn export(service: &Service, target: &Path, fd: Option<i32>, out: &Output) -> Result<()> {
    if target.exists() {
        return Err(Error::new(Kind::WrongState, format!("{} exists already", target.display()))
            .remedy("choose another file; an export is never overwritten"));
    }
    let passphrase = keyring::new_passphrase("the export", fd, LEAST_PASSPHRASE)?;
    let exported = service.export(&passphrase).await.map_err(lift)?;
    write(target, &exported)?;
    out.result(&json!({ "file": target }), || {
        format!(
            "the service's keys and settings are in {}\nA further node: drydock hgs import {} --dir FOLDER",
            target.display(),
            target.file_name().unwrap_or_default().to_string_lossy()
        )
    });
    Ok(())
}

pub(crate) async fn import(
    file: &Path,
    dir: &Path,
    store_arguments: &StoreArgs,
    fd: Option<i32>,
    out: &Output,
) -> Result<()> {
    let store = store(store_arguments)?;
    let exported = keyring::read(file)?;
    let passphrase = keyring::passphrase("Passphrase of the export: ", fd)?;
    let service = Service::import(dir, exported, &passphrase, store).await.map_err(lift)?;
    let guardian = service.guardian();
    let value = json!({
        "dir": dir, "ca": service.ca_file(), "guardian": view(&guardian), "shared_store": service.has_shared_store(),
    });
    out.result(&value, || {
        let mut text = format!(
            "the service '{}' is in {}\nNext: drydock hgs serve --dir {}",
            guardian.name(),
            dir.display(),
            dir.display()
        );
        if !service.has_shared_store() {
            text +=
                "\nIts store is new: put the old service's hgs.sqlite into the folder, or register the hosts again.";
        }
        text
    });
    Ok(())
}
