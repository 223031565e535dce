//! `drydock hgs export`, `import`, and which store a service has: how several nodes of one service are made.

use std::path::Path;

use hgs::{Hgs, StoreUrl};
use outcome::{Context, Error, Kind, Result};
use serde_json::json;
use zeroize::Zeroizing;

use super::args::{HgsDir, Import, StoreArgs};
use super::error::lift;
use crate::guardian::to_json;
use crate::output::Output;
use crate::{files, prompt};

/// What `hgs` requires at least, in characters.
const LEAST_PASSPHRASE: usize = 12;

/// The database that the arguments name, if they name one.
///
/// # Errors
/// `Refused` for a password in an argument, or a file that others may read; `BadInput` for what is not a URL.
pub(super) fn store(arguments: &StoreArgs) -> Result<Option<StoreUrl>> {
    match (&arguments.store, &arguments.store_file) {
        (None, None) => Ok(None),
        (Some(url), _) => {
            let url = StoreUrl::parse(url).map_err(lift)?;
            if url.has_password() {
                return Err(Error::new(
                    Kind::Refused,
                    "the store's URL contains a password, which every user of this machine can see in an argument",
                )
                .remedy("change that password, and put the URL into a file of mode 0600: --store-file FILE"));
            }
            Ok(Some(url))
        }
        (None, Some(file)) => {
            files::refuse_open_to_others(file)?;
            let bytes = Zeroizing::new(files::read(file)?);
            let text = std::str::from_utf8(&bytes)
                .context(Kind::BadInput, || format!("{} is not the URL of a database", file.display()))?;
            StoreUrl::parse(text.trim()).map(Some).map_err(lift)
        }
    }
}

pub(super) async fn export(service: &Hgs, target: &Path, fd: Option<i32>, out: &Output) -> Result<()> {
    files::must_be_new(target, "choose another file; an export is never overwritten")?;
    let passphrase = prompt::new_passphrase("the export", fd, LEAST_PASSPHRASE)?;
    let exported = service.export(&passphrase).await.map_err(lift)?;
    files::write(target, &exported)?;
    out.result(&json!({ "file": target }), || {
        format!(
            "the service's keys and settings are in {}\nTo make a further node: drydock hgs import {} --dir DIRECTORY",
            target.display(),
            files::name(target)
        )
    });
    Ok(())
}

pub(super) async fn import(args: Import, out: &Output) -> Result<()> {
    let Import { file, dir: HgsDir { dir }, store: store_args, passphrase_fd } = args;
    let store = store(&store_args)?;
    let exported = files::read(&file)?;
    let passphrase = prompt::passphrase("Passphrase of the export: ", passphrase_fd)?;
    let service = Hgs::import(&dir, exported, &passphrase, store).await.map_err(lift)?;
    let guardian = service.guardian();
    let value = json!({
        "dir": dir, "ca": service.ca_file(), "guardian": to_json(&guardian), "shared_store": service.has_shared_store(),
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
                "\nIts store is empty: copy the old service's hgs.sqlite into the directory, or register the hosts again.";
        }
        text
    });
    Ok(())
}
