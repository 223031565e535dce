//! QEMU's tools for disk images. They open files by their names, which an agent passes no descriptors for; so they
//! see these files, programs and libraries, and nothing else: no other file, process, device or network.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{NO_CAPABILITY, PATH, find, forbid_core_dumps, view};

/// A file that a tool sees, under its own name.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// For reading only.
    Read(&'a Path),
    Write(&'a Path),
}

impl<'a> Shown<'a> {
    #[must_use]
    pub fn path(self) -> &'a Path {
        match self {
            Self::Read(path) | Self::Write(path) => path,
        }
    }
}

/// A new root, over /sys, where nobody keeps images; then what it needs in it, and nothing of the old one, whose /proc
/// `umount` wants to read at last. QEMU tries its locks on /dev/null. Words up to `--` are files, each with its mount
/// option. It costs time at every start, so it starts few programs.
const SCRIPT: &str = r#"set -e
here=$PWD
mount -t tmpfs -o mode=0755,size=64k,nr_inodes=1k,nosuid,nodev,noexec root /sys
cd /sys
mkdir usr dev .before
mount --bind -o ro /usr usr
: > dev/null
mount --bind /dev/null dev/null
links=
for folder in bin sbin lib lib32 lib64; do
    if [ -L /$folder ]; then links="$links usr/$folder"
    elif [ -d /$folder ]; then mkdir $folder; mount --bind -o ro /$folder $folder; fi
done
ln -s $links .before/proc .
while [ "$1" != -- ]; do
    if ! [ -e ".$2" ]; then mkdir -p ".${2%/*}"; : > ".$2"; fi
    mount --bind -o "$1" "$2" ".$2"
    shift 2
done
shift
pivot_root . .before
umount -l /.before
if [ -d "$here" ]; then cd "$here"; else cd /; fi
ulimit -d 4194304
exec "$@"
"#;

/// A command that runs a program on these files, with no capability, network or environment, and no access to other
/// processes; arguments are added to it. The files are there already and belong to one user, as whom it runs: without
/// capabilities nobody else may open them.
///
/// An agent that is not root cannot do most of that. Its tools have its own rights, and can gain none.
///
/// # Errors
/// `NotFound` for a program that is not installed; `InvalidInput` for files of several users; what the system says of a
/// file, or of a limit.
pub fn tool(program: &str, files: &[Shown<'_>]) -> io::Result<Command> {
    let program = find(program)?;
    forbid_core_dumps()?;
    let root = rustix::process::geteuid().is_root();
    let mut words: Vec<OsString> = Vec::new();
    let own_view = root && view::offered();
    if own_view {
        let namespaces = ["unshare", "--mount", "--propagation", "private", "--net", "--ipc", "--uts", "--pid"];
        words.extend(namespaces.map(Into::into));
        // Killed with `unshare`, which its caller has as a child.
        words.extend(["--kill-child", "sh", "-c", SCRIPT, "sh"].map(Into::into));
        for file in files {
            let option = if matches!(file, Shown::Read(_)) { "ro" } else { "rw" };
            words.extend([option.into(), std::path::absolute(file.path())?.into()]);
        }
        words.push("--".into());
    }
    words.push(find("setpriv")?.into());
    if root {
        let (user, group) = owner(files)?;
        words.extend([format!("--reuid={user}"), format!("--regid={group}")].map(Into::into));
        words.push("--clear-groups".into());
        words.extend(NO_CAPABILITY.map(Into::into));
    } else {
        words.push("--no-new-privs".into());
    }
    if own_view {
        // Forgotten when the user changed.
        words.push("--pdeathsig=KILL".into());
    }
    words.push("--".into());
    words.push(program.into());
    let mut command = Command::new(words.remove(0));
    command.args(words).env_clear().env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null());
    Ok(command)
}

/// User and group of all these files.
fn owner(files: &[Shown<'_>]) -> io::Result<(u32, u32)> {
    let mut owners = BTreeMap::new();
    for file in files {
        let metadata = fs::metadata(file.path())?;
        owners.entry(metadata.uid()).or_insert((metadata.gid(), file.path()));
    }
    let mut found = owners.iter();
    match (found.next(), found.next()) {
        (Some((user, (group, _))), None) => Ok((*user, *group)),
        (Some((user, (_, file))), Some((other, (_, beside)))) => Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} belongs to user {user} and {} to user {other}: give them to one (chown)",
                file.display(),
                beside.display()
            ),
        )),
        (None, _) => Err(io::Error::new(ErrorKind::InvalidInput, "a tool needs a file")),
    }
}

#[cfg(test)]
mod tests;
