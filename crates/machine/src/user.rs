//! Who QEMU and swtpm run as: users of no account, two for each VM that runs.
//!
//! QEMU gets an even number and swtpm the odd one above it, so that a guest which took over its QEMU can neither
//! read swtpm's memory nor signal it; no two VMs have a number in common. An agent that is not root cannot give
//! its rights away: its VMs run as the agent's own user, and the proof says so.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Uid, chownat, fchown, statat};
use uuid::Uuid;

use crate::{Error, Result};

/// First number of the range. Above what SSSD maps directory accounts to (2 000 200 000), below systemd's foreign
/// users; systemd, Debian and subuid give none of it to anybody (UIDS-GIDS in systemd's documentation).
pub const FIRST: u32 = 0x7800_0000;
/// Pairs in the range.
const PAIRS: u32 = 1 << 24;

const KVM: &str = "/dev/kvm";

/// Who a program runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// The agent's own user.
    Own,
    /// A user, and a group of the same number.
    Reserved(u32),
}

/// The two users of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) qemu: User,
    pub(crate) swtpm: User,
}

impl Pair {
    /// Two users that no process has now; the same for the same VM as long as nobody else has them: whoever makes a
    /// VM can choose its id, and must not get another VM's users by it.
    pub(crate) fn of(vm: Uuid) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { qemu: User::Own, swtpm: User::Own });
        }
        Ok(Self::unused(vm, &in_use()?))
    }

    fn unused(vm: Uuid, in_use: &BTreeSet<u32>) -> Self {
        let [.., a, b, c] = *vm.as_bytes();
        let wanted = u32::from_be_bytes([0, a, b, c]);
        // There are far fewer processes than pairs, so one is free.
        let first = (0..PAIRS)
            .map(|step| FIRST + 2 * ((wanted + step) % PAIRS))
            .find(|uid| !in_use.contains(uid) && !in_use.contains(&(uid + 1)))
            .unwrap_or(FIRST);
        Self { qemu: User::Reserved(first), swtpm: User::Reserved(first + 1) }
    }
}

impl User {
    /// The number, as `ip tuntap` wants it.
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

    /// Makes what a descriptor refers to this user's, who may then open it by its number.
    pub(crate) fn own_descriptor(self, descriptor: impl AsFd) -> Result<()> {
        let Self::Reserved(uid) = self else { return Ok(()) };
        fchown(descriptor, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))
            .map_err(Error::system("give a descriptor away"))
    }

    /// Makes a folder and the regular files in it this user's; the folder above stays closed. What else lies there
    /// an earlier run may have planted, and is left alone.
    pub(crate) fn own(self, folder: &Path) -> Result<()> {
        let Self::Reserved(uid) = self else { return Ok(()) };
        let give = |path: &Path| {
            chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| Error::io("change the owner of", path)(errno.into()))
        };
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let path = entry.map_err(Error::io("list", folder))?.path();
            let stat = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| Error::io("look at", &path)(errno.into()))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1 {
                give(&path)?;
            }
        }
        give(folder)
    }
}

/// The group that /dev/kvm is open to. Root's is given to nobody.
fn kvm_group() -> Option<u32> {
    let device = fs::metadata(KVM).ok()?;
    (device.mode() & 0o060 == 0o060 && device.gid() != 0).then(|| device.gid())
}

/// Whether a VM's user may use /dev/kvm.
pub(crate) fn may_use_kvm() -> bool {
    let open_to_all = fs::metadata(KVM).is_ok_and(|device| device.mode() & 0o006 == 0o006);
    !rustix::process::geteuid().is_root() || open_to_all || kvm_group().is_some()
}

/// Users of the range that processes have now, whoever started them.
fn in_use() -> Result<BTreeSet<u32>> {
    let proc = Path::new("/proc");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(proc).map_err(Error::io("list", proc))?.flatten() {
        // A process that ended meanwhile has no user any more.
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
    fn a_user_that_a_process_has_is_passed_over() {
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
    fn what_was_planted_beside_the_state_is_nobodys_new_property() {
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
