//! A bundle from and to a directory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat_with, statat,
};

use super::{Bundle, MAX_CONTENTS, MAX_FILES, StateError};

const READ_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

impl Bundle {
    /// Packs a sealed state slot: regular files and one level of directories, nothing else.
    ///
    /// # Errors
    /// [`StateError::FileType`], [`StateError::File`], those of [`Bundle::from_files`].
    pub fn pack(directory: &Path) -> Result<Self, StateError> {
        let mut files = Vec::new();
        pack_directory(CWD, directory, directory, "", &mut files)?;
        Self::from_files(files)
    }

    /// Unpacks into a directory that must not exist yet. It appears complete and durable, or not at all.
    ///
    /// Directories get mode 0700, files 0600.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn unpack(&self, directory: &Path) -> Result<(), StateError> {
        let failed = |op| move |source| file_error(directory, op, source);
        let parent = match directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Created with mode 0700; removed with its contents unless it takes its final name.
        let fresh = tempfile::Builder::new()
            .prefix(".dd-state-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(failed("create"))?;
        let root = File::open(fresh.path()).map_err(failed("open"))?;
        for (name, contents) in self.files() {
            write_file(&root, name, contents).map_err(|source| file_error(&directory.join(name), "write", source))?;
        }
        root.sync_all().map_err(failed("make durable"))?;
        renameat_with(CWD, fresh.path(), CWD, directory, RenameFlags::NOREPLACE)
            .map_err(|errno| file_error(directory, "create", errno.into()))?;
        // Renamed away: there is nothing left to remove.
        let _ = fresh.keep();
        fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("make durable"))
    }
}

fn file_error(path: &Path, op: &'static str, source: io::Error) -> StateError {
    StateError::File { path: path.to_owned(), op, source }
}

/// `prefix` is empty at the top and `name/` one level down.
fn pack_directory(
    at: impl AsFd,
    name: &Path,
    shown: &Path,
    prefix: &str,
    files: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), StateError> {
    let failed = |op| move |errno: rustix::io::Errno| file_error(shown, op, errno.into());
    let directory = openat(at, name, READ_FLAGS | OFlags::DIRECTORY, Mode::empty()).map_err(failed("open"))?;
    for entry in Dir::read_from(&directory).map_err(failed("list"))? {
        let entry = entry.map_err(failed("list"))?;
        let name = entry.file_name().to_str().map_err(|_| StateError::Name)?;
        if name == "." || name == ".." {
            continue;
        }
        let path = shown.join(name);
        let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| file_error(&path, "inspect", errno.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if prefix.is_empty() => {
                pack_directory(&directory, Path::new(name), &path, &format!("{name}/"), files)?;
            }
            FileType::RegularFile => {
                if files.len() == MAX_FILES {
                    return Err(StateError::FileCount { count: MAX_FILES + 1 });
                }
                let used: usize = files.iter().map(|(_, contents)| contents.len()).sum();
                let contents = read_file(&directory, name, &path, MAX_CONTENTS - used)?;
                files.push((format!("{prefix}{name}"), contents));
            }
            _ => return Err(StateError::FileType { path }),
        }
    }
    Ok(())
}

fn read_file(directory: impl AsFd, name: &str, path: &Path, max: usize) -> Result<Vec<u8>, StateError> {
    let file =
        openat(directory, name, READ_FLAGS, Mode::empty()).map_err(|errno| file_error(path, "open", errno.into()))?;
    let stat = fstat(&file).map_err(|errno| file_error(path, "inspect", errno.into()))?;
    // Again, on the open file: the name may mean something else by now.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(StateError::FileType { path: path.to_owned() });
    }
    let mut contents = Vec::new();
    File::from(file)
        .take(max as u64 + 1)
        .read_to_end(&mut contents)
        .map_err(|source| file_error(path, "read", source))?;
    if contents.len() > max {
        return Err(StateError::TooLarge);
    }
    Ok(contents)
}

fn write_file(root: &File, name: &str, contents: &[u8]) -> io::Result<()> {
    let Some((directory, name)) = name.split_once('/') else {
        return write_into(root, name, contents);
    };
    match mkdirat(root, directory, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let directory: File = openat(root, directory, READ_FLAGS | OFlags::DIRECTORY, Mode::empty())?.into();
    write_into(&directory, name, contents)?;
    directory.sync_all()
}

fn write_into(directory: &File, name: &str, contents: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?.into();
    fault::write()?;
    file.write_all(contents)?;
    file.sync_all()
}
