//! A *slot*: a directory with everything of a VM that is sealed under one transport key.
//!
//! | Entry | What | Under |
//! |---|---|---|
//! | `record.sealed` | [`SealedRecord`] | AES-256-GCM, see [`crate::record`] |
//! | `vars.luks` | UEFI variables | LUKS, passphrase = derived key in hex |
//! | `vtpm/` | swtpm's permanent state | swtpm's AES-256-CBC state encryption |
//!
//! A slot is written once and whole; a new transport key means a new slot, and the caller flips to it.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use key_protector::TransportKey;
use uuid::Uuid;

use crate::process::{Program, QEMU_IMG, secret_pipe};
use crate::record::{self, SealedRecord};
use crate::spec::Firmware;
use crate::{Error, Result, swtpm};

/// HKDF label of the passphrase of the UEFI variables.
pub const VARS_LABEL: &str = "drydock/uefi-vars/v1";
/// Names in a slot.
pub const RECORD: &str = "record.sealed";
pub const VARS: &str = "vars.luks";
pub const VTPM: &str = "vtpm";

const DEADLINE: Duration = Duration::from_secs(120);
/// The passphrase is a random key; stretching it protects nothing and costs seconds (milliseconds
/// of PBKDF2, QEMU's `iter-time`).
const ITER_TIME_MS: u32 = 10;

/// Makes a new VM's sealed state: a new vTPM, UEFI variables from the template, its record.
/// `slot` is made unless it is an empty directory.
///
/// # Errors
/// When the directory has something in it, or a tool fails.
pub async fn create(
    slot: &Path,
    key: &TransportKey,
    record: &SealedRecord,
    protector_digest: &str,
    firmware: &Firmware,
) -> Result<()> {
    let sealed = record.seal(key, protector_digest)?;
    make_empty_dir(slot)?;
    let vars = slot.join(VARS);
    let source = Source { options: file_options("raw", &firmware.vars_template)?, key: None };
    convert_vars(source, &vars, key).await?;
    let vtpm = slot.join(VTPM);
    make_empty_dir(&vtpm)?;
    swtpm::manufacture(&vtpm, key).await?;
    finish(slot, &sealed)
}

/// Makes the slot of a VM whose state is to come from another host's QEMU: its record, variables that will be
/// overwritten, no vTPM yet.
///
/// # Errors
/// When the directory has something in it, or a tool fails.
pub async fn prepare(
    slot: &Path,
    key: &TransportKey,
    record: &SealedRecord,
    protector_digest: &str,
    firmware: &Firmware,
) -> Result<()> {
    let sealed = record.seal(key, protector_digest)?;
    make_empty_dir(slot)?;
    let source = Source { options: file_options("raw", &firmware.vars_template)?, key: None };
    convert_vars(source, &slot.join(VARS), key).await?;
    make_empty_dir(&slot.join(VTPM))?;
    write_record(slot, &sealed)
}

/// Flushes what came into a slot of [`prepare`], once the VM runs on it.
///
/// # Errors
/// [`Error::NoTpmState`] when no vTPM came.
pub fn settle(slot: &Path) -> Result<()> {
    swtpm::require_state(&slot.join(VTPM))?;
    sync_contents(slot)?;
    sync(slot)
}

/// Opens a slot's record.
///
/// # Errors
/// [`Error::RecordSealed`] when key, VM or key protector are not the ones it was sealed for.
pub fn open_record(slot: &Path, key: &TransportKey, vm_id: Uuid, protector_digest: &str) -> Result<SealedRecord> {
    let path = slot.join(RECORD);
    let mut sealed = Vec::new();
    File::open(&path)
        .map_err(Error::io("open", &path))?
        .take(record::MAX_LEN as u64 + 1)
        .read_to_end(&mut sealed)
        .map_err(Error::io("read", &path))?;
    SealedRecord::open(&sealed, key, vm_id, protector_digest)
}

/// Writes the state of slot `from` into the new slot `to`, all of it encrypted again under `to_key`.
/// `from` stays as it is. The VM must be off.
///
/// # Errors
/// When `from_key` is wrong, `to` has something in it, or a tool fails.
pub async fn reseal(
    from: &Path,
    from_key: &TransportKey,
    to: &Path,
    to_key: &TransportKey,
    new_record: &SealedRecord,
    new_protector_digest: &str,
) -> Result<()> {
    let sealed = new_record.seal(to_key, new_protector_digest)?;
    make_empty_dir(to)?;
    let source =
        Source { options: format!("{},key-secret=from", file_options("luks", &from.join(VARS))?), key: Some(from_key) };
    convert_vars(source, &to.join(VARS), to_key).await?;
    let vtpm = to.join(VTPM);
    make_empty_dir(&vtpm)?;
    swtpm::reseal(&from.join(VTPM), from_key, &vtpm, to_key).await?;
    finish(to, &sealed)
}

/// The record comes last: a slot without one is not a slot.
fn finish(slot: &Path, sealed: &[u8]) -> Result<()> {
    sync_contents(slot)?;
    write_record(slot, sealed)?;
    slot.parent().map_or(Ok(()), sync)
}

fn sync_contents(slot: &Path) -> Result<()> {
    sync(&slot.join(VARS))?;
    let vtpm = slot.join(VTPM);
    sync(&vtpm.join(swtpm::STATE_FILE))?;
    sync(&vtpm)
}

fn write_record(slot: &Path, sealed: &[u8]) -> Result<()> {
    let path = slot.join(RECORD);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(Error::io("create", &path))?;
    file.write_all(sealed).and_then(|()| file.sync_all()).map_err(Error::io("write", &path))?;
    sync(slot)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("flush", path))
}

fn make_empty_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let mut entries = std::fs::read_dir(path).map_err(Error::io("list", path))?;
            match entries.next() {
                None => Ok(()),
                Some(_) => Err(Error::io("use the directory", path)(std::io::ErrorKind::DirectoryNotEmpty.into())),
            }
        }
        other => other.map_err(Error::io("create", path)),
    }
}

/// Where variables come from: QEMU image options, and the key if they are encrypted.
struct Source<'a> {
    options: String,
    key: Option<&'a TransportKey>,
}

/// QEMU image options for a file. In these, a comma is doubled.
fn file_options(driver: &str, path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path).map_err(Error::io("find", path))?;
    let text = absolute.to_str().ok_or(Error::Spec { field: "path", reason: "is not UTF-8".into() })?;
    let escaped = text.replace(',', ",,");
    Ok(format!("driver={driver},file.driver=file,file.filename={escaped}"))
}

async fn convert_vars(source: Source<'_>, to: &Path, to_key: &TransportKey) -> Result<()> {
    const TO_FD: i32 = 3;
    const FROM_FD: i32 = 4;
    let to: PathBuf = std::path::absolute(to).map_err(Error::io("find", to))?;
    // Made here so that it is never readable by others; qemu-img keeps the mode.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(Error::io("create", &to))?;
    let mut fds = vec![(vars_secret(to_key)?, TO_FD)];
    let mut args: Vec<OsString> = ["convert", "-O", "luks"].map(Into::into).to_vec();
    let mut option = |name: &str, value: OsString| {
        args.push(name.into());
        args.push(value);
    };
    option("--object", format!("secret,id=to,file=/dev/fd/{TO_FD}").into());
    if let Some(key) = source.key {
        fds.push((vars_secret(key)?, FROM_FD));
        option("--object", format!("secret,id=from,file=/dev/fd/{FROM_FD}").into());
    }
    option("-o", format!("key-secret=to,iter-time={ITER_TIME_MS}").into());
    args.push("--image-opts".into());
    args.push(source.options.into());
    args.push(to.into());
    Program { name: QEMU_IMG, args, fds, current_dir: None, log: None }.spawn()?.finish(DEADLINE).await
}

/// A pipe with the passphrase of the UEFI variables. LUKS in QEMU wants text, hence hex.
pub(crate) fn vars_secret(key: &TransportKey) -> Result<std::os::fd::OwnedFd> {
    secret_pipe(key.derive(VARS_LABEL).hex().as_bytes())
}
