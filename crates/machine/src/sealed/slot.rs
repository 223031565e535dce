//! A *slot*: a directory with all of a VM's state that is sealed under one transport key.
//!
//! | Entry | What | Under |
//! |---|---|---|
//! | `record.sealed` | [`SealedRecord`] | AES-256-GCM, see [`super::record`] |
//! | `vars.luks` | UEFI variables | LUKS, see [`super::luks`]; the passphrase is a derived key in hex |
//! | `vtpm/` | swtpm's permanent state, with the policy NV index | swtpm's AES-256-CBC state encryption |
//!
//! A slot is written once and as a whole; a new transport key means a new slot, which the caller then makes the active
//! one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use key_protector::TransportKey;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::record::{self, SealedRecord};
use super::{luks, swtpm};
use crate::error::{Error, Result};
use crate::process::secret_pipe;
use crate::spec::Firmware;
use crate::user::{Pair, User};

/// HKDF label of the passphrase of the UEFI variables.
pub const VARS_LABEL: &str = "drydock/uefi-vars/v1";
/// Name of the sealed record in a slot.
pub const RECORD: &str = "record.sealed";
/// Name of the UEFI variables in a slot.
pub const VARS: &str = "vars.luks";
/// Name of the directory with the vTPM's state in a slot.
pub const VTPM: &str = "vtpm";

/// Creates a new VM's sealed state: a new vTPM, UEFI variables from the template, its record.
/// Creates the directory `slot`, or uses an empty one.
///
/// # Errors
/// When the directory is not empty, or a tool fails.
pub async fn create(
    slot: &Path,
    key: &TransportKey,
    record: &SealedRecord,
    protector_digest: &str,
    firmware: &Firmware,
) -> Result<()> {
    let sealed = record.seal(key, protector_digest)?;
    make_empty_dir(slot)?;
    new_vars(slot, key, firmware).await?;
    let vtpm = slot.join(VTPM);
    make_empty_dir(&vtpm)?;
    swtpm::manufacture(&vtpm, Pair::of(record.vm_id)?.swtpm, key, record.policy).await?;
    finish(slot, &sealed)
}

/// Creates the slot of a VM whose state will arrive from another host's QEMU: its record, variables that will be
/// overwritten, no vTPM yet.
///
/// # Errors
/// When the directory is not empty, or a tool fails.
pub async fn prepare(
    slot: &Path,
    key: &TransportKey,
    record: &SealedRecord,
    protector_digest: &str,
    firmware: &Firmware,
) -> Result<()> {
    let sealed = record.seal(key, protector_digest)?;
    make_empty_dir(slot)?;
    new_vars(slot, key, firmware).await?;
    make_empty_dir(&slot.join(VTPM))?;
    write_record(slot, &sealed)
}

/// Flushes what arrived in a slot of [`prepare`], once the VM runs on it.
///
/// # Errors
/// [`Error::NoTpmState`] when no vTPM arrived.
pub fn settle(slot: &Path) -> Result<()> {
    swtpm::require_state(&slot.join(VTPM))?;
    sync(&slot.join(VARS))?;
    sync_vtpm(slot)?;
    sync(slot)
}

/// Opens a slot's record.
///
/// # Errors
/// [`Error::RecordSealed`] when key, VM or key protector are not the ones that it was sealed for.
pub fn open_record(slot: &Path, key: &TransportKey, vm_id: Uuid, protector_digest: &str) -> Result<SealedRecord> {
    let sealed = read_bounded(&slot.join(RECORD), record::MAX_LEN)?;
    SealedRecord::open(&sealed, key, vm_id, protector_digest)
}

/// Writes the state of slot `from` into the new slot `to`, all of it encrypted again under `to_key`.
/// `from` stays as it is. The VM must be off.
///
/// # Errors
/// [`Error::Vars`] when `from_key` is wrong or the variables are damaged; when `to` is not empty, or a tool fails.
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
    let vtpm = to.join(VTPM);
    make_empty_dir(&vtpm)?;
    let (old, new) = ((from.join(VARS), vars_passphrase(from_key)), (to.join(VARS), vars_passphrase(to_key)));
    let vars = blocking(move || write_vars(&read_vars(&old.0, &old.1)?, &new.0, &new.1));
    let from_vtpm = from.join(VTPM);
    let user = Pair::of(new_record.vm_id)?.swtpm;
    // Concurrently, and both to their end: after a failure nothing may still write into the slot.
    let (vars, vtpm) = tokio::join!(vars, swtpm::reseal(&from_vtpm, from_key, &vtpm, to_key, user, new_record.policy));
    vars.and(vtpm)?;
    finish(to, &sealed)
}

/// The record comes last: without one a directory is not a slot.
fn finish(slot: &Path, sealed: &[u8]) -> Result<()> {
    sync_vtpm(slot)?;
    write_record(slot, sealed)
}

fn sync_vtpm(slot: &Path) -> Result<()> {
    let vtpm = slot.join(VTPM);
    sync(&vtpm.join(swtpm::STATE_FILE))?;
    sync(&vtpm)
}

fn write_record(slot: &Path, sealed: &[u8]) -> Result<()> {
    let path = slot.join(RECORD);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(Error::io("create", &path))?;
    fault::write()
        .and_then(|()| file.write_all(sealed))
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &path))?;
    sync(slot)?;
    slot.parent().map_or(Ok(()), sync)
}

fn sync(path: &Path) -> Result<()> {
    fault::write().and_then(|()| File::open(path)?.sync_all()).map_err(Error::io("flush", path))
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

/// Seals the firmware's template of variables for a new slot.
async fn new_vars(slot: &Path, key: &TransportKey, firmware: &Firmware) -> Result<()> {
    let (template, vars, passphrase) = (firmware.vars_template.clone(), slot.join(VARS), vars_passphrase(key));
    blocking(move || write_vars(&read_bounded(&template, luks::MAX_LEN)?, &vars, &passphrase)).await
}

/// Seals the variables with the passphrase into the new file `to`.
fn write_vars(contents: &[u8], to: &Path, passphrase: &str) -> Result<()> {
    let container = luks::seal(contents, passphrase.as_bytes()).map_err(Error::vars(to))?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(Error::io("create", to))?;
    // The hole between the used key slot and the contents stays sparse.
    fault::write()
        .and_then(|()| file.write_all_at(&container[..luks::HOLE.start], 0))
        .and_then(|()| file.write_all_at(&container[luks::HOLE.end..], luks::HOLE.end as u64))
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", to))
}

fn read_vars(from: &Path, passphrase: &str) -> Result<Zeroizing<Vec<u8>>> {
    luks::open(&read_bounded(from, luks::MAX_LEN)?, passphrase.as_bytes()).map_err(Error::vars(from))
}

/// Reads at most one byte more than `limit`, which shows the caller that the file is too long.
fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(Error::io("open", path))?
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// QEMU takes a LUKS passphrase as text, hence hex.
fn vars_passphrase(key: &TransportKey) -> Zeroizing<String> {
    key.derive(VARS_LABEL).hex()
}

/// Runs work that keeps the processor or a disk busy, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::system("seal the UEFI variables"))?
}

/// A pipe with the passphrase of the UEFI variables.
pub(crate) fn vars_secret(key: &TransportKey, user: User) -> Result<std::os::fd::OwnedFd> {
    secret_pipe(vars_passphrase(key).as_bytes(), user)
}
