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
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use key_protector::TransportKey;
use uuid::Uuid;

use crate::process::{Program, QEMU_IMG, Rights, secret_pipe};
use crate::record::{self, SealedRecord};
use crate::spec::Firmware;
use crate::user::{Pair, User};
use crate::{Error, Result, swtpm};

/// HKDF label of the passphrase of the UEFI variables.
pub const VARS_LABEL: &str = "drydock/uefi-vars/v1";
/// Names in a slot.
pub const RECORD: &str = "record.sealed";
pub const VARS: &str = "vars.luks";
pub const VTPM: &str = "vtpm";

const DEADLINE: Duration = Duration::from_secs(120);
/// Far more than any firmware has (bytes).
const MAX_VARS: u64 = 64 << 20;
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
    let user = Pair::of(record.vm_id)?.swtpm;
    convert_vars(Source::Template(&firmware.vars_template), &vars, key, user).await?;
    let vtpm = slot.join(VTPM);
    make_empty_dir(&vtpm)?;
    swtpm::manufacture(&vtpm, user, key).await?;
    finish(slot, &sealed)
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
    let user = Pair::of(new_record.vm_id)?.swtpm;
    convert_vars(Source::Sealed(&from.join(VARS), from_key), &to.join(VARS), to_key, user).await?;
    let vtpm = to.join(VTPM);
    make_empty_dir(&vtpm)?;
    swtpm::reseal(&from.join(VTPM), from_key, &vtpm, to_key, user).await?;
    finish(to, &sealed)
}

/// The record comes last: a slot without one is not a slot.
fn finish(slot: &Path, sealed: &[u8]) -> Result<()> {
    sync(&slot.join(VARS))?;
    let vtpm = slot.join(VTPM);
    sync(&vtpm.join(swtpm::STATE_FILE))?;
    sync(&vtpm)?;
    let path = slot.join(RECORD);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(Error::io("create", &path))?;
    file.write_all(sealed).and_then(|()| file.sync_all()).map_err(Error::io("write", &path))?;
    sync(slot)?;
    slot.parent().map_or(Ok(()), sync)
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

/// Where variables come from.
enum Source<'a> {
    Template(&'a Path),
    Sealed(&'a Path, &'a TransportKey),
}

/// Runs qemu-img on copies in memory: what it reads may be hostile, so its user can open no file of the store.
async fn convert_vars(source: Source<'_>, to: &Path, to_key: &TransportKey, user: User) -> Result<()> {
    const TO_KEY_FD: i32 = 3;
    const FROM_KEY_FD: i32 = 4;
    const FROM_FD: i32 = 5;
    const TO_FD: i32 = 6;
    let mut target =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(Error::io("create", to))?;
    let mut args: Vec<OsString> = ["convert", "-O", "luks"].map(Into::into).to_vec();
    let mut option = |name: &str, value: String| {
        args.push(name.into());
        args.push(value.into());
    };
    option("--object", format!("secret,id=to,file=/dev/fd/{TO_KEY_FD}"));
    let mut fds = vec![(vars_secret(to_key, user)?, TO_KEY_FD)];
    let (path, mut options) = match source {
        Source::Template(path) => (path, "driver=raw".to_owned()),
        Source::Sealed(path, key) => {
            fds.push((vars_secret(key, user)?, FROM_KEY_FD));
            option("--object", format!("secret,id=from,file=/dev/fd/{FROM_KEY_FD}"));
            (path, "driver=luks,key-secret=from".to_owned())
        }
    };
    options += &format!(",file.driver=file,file.filename=/dev/fd/{FROM_FD}");
    option("-o", format!("key-secret=to,iter-time={ITER_TIME_MS}"));
    args.extend(["--image-opts".into(), options.into(), format!("/dev/fd/{TO_FD}").into()]);
    let mut converted = memory_file(user)?;
    fds.push((copy_of(path, user)?.into(), FROM_FD));
    fds.push((converted.try_clone().map_err(Error::system("share a memory file"))?.into(), TO_FD));
    let rights = Some(Rights { user, kvm: false, hidden: &[] });
    Program { name: QEMU_IMG, rights, args, fds, current_dir: None, log: None }.spawn()?.finish(DEADLINE).await?;
    converted.rewind().map_err(Error::system("read a memory file"))?;
    std::io::copy(&mut converted, &mut target).map(drop).map_err(Error::io("write", to))
}

fn copy_of(path: &Path, user: User) -> Result<File> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut copy = memory_file(user)?;
    let length = std::io::copy(&mut file.take(MAX_VARS + 1), &mut copy).map_err(Error::io("read", path))?;
    if length > MAX_VARS {
        return Err(Error::io("use", path)(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(copy)
}

/// A file without a name that `user` may open.
fn memory_file(user: User) -> Result<File> {
    use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
    let file = memfd_create("drydock-vars", MemfdFlags::CLOEXEC).map_err(Error::system("make a memory file"))?;
    fchmod(&file, Mode::RUSR | Mode::WUSR).map_err(Error::system("close a memory file to others"))?;
    user.own_descriptor(&file)?;
    Ok(file.into())
}

/// A pipe with the passphrase of the UEFI variables. LUKS in QEMU wants text, hence hex.
pub(crate) fn vars_secret(key: &TransportKey, user: User) -> Result<std::os::fd::OwnedFd> {
    secret_pipe(key.derive(VARS_LABEL).hex().as_bytes(), user)
}
