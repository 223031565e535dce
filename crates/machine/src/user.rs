//! Who QEMU and swtpm run as: unallocated UIDs, two for each running VM.
//!
//! QEMU gets an even UID and swtpm the odd one above it, so that a guest which has taken over its QEMU can neither read
//! swtpm's memory nor send it a signal; no two VMs share a UID. An agent that is not root cannot drop its rights: its
//! VMs run as the agent's own user, and the exposure report says so.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Uid, chownat, fchown, statat};
use uuid::Uuid;

use crate::error::{Error, Result};

/// First UID of the range. It lies above the UIDs that SSSD maps directory accounts to (2 000 200 000) and below
/// systemd's foreign UID range; systemd, Debian and subuid allocate nothing in it (UIDS-GIDS in systemd's documentation).
pub const FIRST: u32 = 0x7800_0000;
/// Pairs in the range.
const PAIRS: u32 = 1 << 24;

const KVM: &str = "/dev/kvm";

/// Who a program runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// The agent's own user.
    Own,
    /// An unallocated UID, and the GID with the same number.
    Reserved(u32),
}

/// The two users of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) qemu: User,
    pub(crate) swtpm: User,
}

impl Pair {
    /// Two UIDs that no process has now. A VM gets the same ones each time while no other process has them. Anyone
    /// who creates a VM can choose its id, and must not get another VM's UIDs by that.
    pub(crate) fn of(vm: Uuid) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { qemu: User::Own, swtpm: User::Own });
        }
        Ok(Self::unused(vm, &in_use()?))
    }

    fn unused(vm: Uuid, in_use: &BTreeSet<u32>) -> Self {
        let [.., a, b, c] = *vm.as_bytes();
        let wanted = u32::from_be_bytes([0, a, b, c]);
        // There are far fewer processes than pairs, so one pair is free.
        let first = (0..PAIRS)
            .map(|step| FIRST + 2 * ((wanted + step) % PAIRS))
            .find(|uid| !in_use.contains(uid) && !in_use.contains(&(uid + 1)))
            .unwrap_or(FIRST);
        Self { qemu: User::Reserved(first), swtpm: User::Reserved(first + 1) }
    }
}

impl User {
    /// The UID, as `ip tuntap` takes it.
    pub(crate) fn uid(self) -> u32 {
        match self {
            Self::Own => rustix::process::geteuid().as_raw(),
            Self::Reserved(uid) => uid,
        }
    }

    /// `setpriv`'s options. `kvm` adds the group that may use /dev/kvm.
    pub(crate) fn options(self, kvm: bool) -> Vec<String> {
        let Self::Reserved(uid) = self else { return Vec::new() };
        let groups = match kvm.then(kvm_group).flatten() {
            Some(group) => format!("--groups={group}"),
            None => "--clear-groups".to_owned(),
        };
        vec![format!("--reuid={uid}"), format!("--regid={uid}"), groups]
    }

    /// Makes this user the owner of what a descriptor refers to, so that it may open the descriptor by its number.
    pub(crate) fn own_descriptor(self, descriptor: impl AsFd) -> Result<()> {
        let Self::Reserved(uid) = self else { return Ok(()) };
        fchown(descriptor, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))
            .map_err(Error::system("change the owner of a descriptor"))
    }

    /// Makes this user the owner of a directory and of the regular files in it; the parent directory stays closed. An
    /// earlier run may have planted anything else in there: it is left alone.
    pub(crate) fn own(self, directory: &Path) -> Result<()> {
        let Self::Reserved(uid) = self else { return Ok(()) };
        let give = |path: &Path| {
            chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| Error::io("change the owner of", path)(errno.into()))
        };
        for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
            let path = entry.map_err(Error::io("list", directory))?.path();
            let stat = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| Error::io("inspect", &path)(errno.into()))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1 {
                give(&path)?;
            }
        }
        give(directory)
    }
}

/// The group that may use /dev/kvm. No VM gets root's group.
fn kvm_group() -> Option<u32> {
    let device = fs::metadata(KVM).ok()?;
    (device.mode() & 0o060 == 0o060 && device.gid() != 0).then(|| device.gid())
}

/// Whether a VM's user may use /dev/kvm.
pub(crate) fn may_use_kvm() -> bool {
    let open_to_all = fs::metadata(KVM).is_ok_and(|device| device.mode() & 0o006 == 0o006);
    !rustix::process::geteuid().is_root() || open_to_all || kvm_group().is_some()
}

/// The UIDs that processes have now.
fn in_use() -> Result<BTreeSet<u32>> {
    let proc = Path::new("/proc");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(proc).map_err(Error::io("list", proc))?.flatten() {
        // A process that has ended in the meantime holds no UID.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        found.extend(uids.split_whitespace().filter_map(|uid| uid.parse::<u32>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_uid_that_a_process_has_is_skipped() {
        let vm = Uuid::from_u128(u128::MAX);
        let last = FIRST + 2 * (PAIRS - 1);
        let pair = |in_use: &[u32]| Pair::unused(vm, &in_use.iter().copied().collect()).qemu;
        assert_eq!(pair(&[]), User::Reserved(last));
        assert_eq!(pair(&[0, 1000]), User::Reserved(last));
        for taken in [last, last + 1] {
            assert_eq!(pair(&[taken]), User::Reserved(FIRST));
        }
        assert_eq!(pair(&[last, FIRST + 1]), User::Reserved(FIRST + 2));
    }

    #[test]
    fn planted_files_keep_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (state, secret) = (dir.path().join("state"), dir.path().join("secret"));
        fs::create_dir(&state).unwrap();
        fs::write(&secret, "s").unwrap();
        fs::write(state.join("own"), "o").unwrap();
        std::os::unix::fs::symlink(&secret, state.join("link")).unwrap();
        fs::hard_link(&secret, state.join("hard")).unwrap();
        User::Reserved(FIRST).own(&state).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        assert_eq!(owner(&state), FIRST);
        assert_eq!(owner(&state.join("own")), FIRST);
        for untouched in [&secret, &state.join("link"), &state.join("hard")] {
            assert_eq!(owner(untouched), 0, "{}", untouched.display());
        }
    }
}
