//! Where Linux shows an RG disk's partitions.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layout::Layout;

/// The directories in which the kernel and udev show block devices.
#[derive(Clone, Debug)]
pub struct Places {
    /// Links from partition names to nodes, made by udev.
    pub by_partlabel: PathBuf,
    /// Links from serial numbers to disks, made by udev.
    pub by_id: PathBuf,
    /// The kernel's list of disks and partitions.
    pub sys_class_block: PathBuf,
    /// The device nodes.
    pub dev: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            by_partlabel: "/dev/disk/by-partlabel".into(),
            by_id: "/dev/disk/by-id".into(),
            sys_class_block: "/sys/class/block".into(),
            dev: "/dev".into(),
        }
    }
}

impl Places {
    /// The whole disk that has the partition `dd-manifest`.
    pub(super) fn find_disk(&self) -> Result<PathBuf> {
        let link = self.by_partlabel.join("dd-manifest");
        let node = match fs::canonicalize(&link) {
            Ok(node) => node,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound { path: link });
            }
            Err(error) => return Err(Error::io(&link, "follow the link")(error)),
        };
        // sysfs keeps a partition's directory inside its disk's: …/block/vdb/vdb1.
        let entry = self.sys_class_block.join(name(&node)?);
        let directory = fs::canonicalize(&entry).map_err(Error::io(&entry, "follow the link"))?;
        if !directory.join("partition").exists() {
            return Err(Error::NotFound { path: link });
        }
        let disk = directory.parent().ok_or(Error::NotFound { path: link })?;
        Ok(self.dev.join(name(disk)?))
    }

    /// The nodes of a disk's partitions, in the order of the layout.
    pub(super) fn partition_nodes(&self, disk: &Path, layout: &Layout) -> Result<Vec<PathBuf>> {
        let disk = fs::canonicalize(disk).map_err(Error::io(disk, "follow the link"))?;
        let directory = self.sys_class_block.join(name(&disk)?);
        let mut found = vec![None; layout.partitions().count()];
        for entry in fs::read_dir(&directory).map_err(Error::io(&directory, "list"))? {
            let entry = entry.map_err(Error::io(&directory, "list"))?;
            // Only partitions have this file; it holds the number in the GPT, from 1.
            let Ok(number) = fs::read_to_string(entry.path().join("partition")) else {
                continue;
            };
            let place = number.trim().parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            if let Some(slot) = place.and_then(|place| found.get_mut(place)) {
                *slot = Some(self.dev.join(entry.file_name()));
            }
        }
        found
            .into_iter()
            .zip(layout.partitions())
            .map(|(node, part)| node.ok_or_else(|| Error::NotFound { path: self.by_partlabel.join(&part.name) }))
            .collect()
    }

    /// Refuses a name that belongs to another disk: two RG disks are attached, or another disk imitates one.
    pub(super) fn check_links(&self, disk: &Path, layout: &Layout) -> Result<()> {
        let nodes = self.partition_nodes(disk, layout)?;
        for (part, node) in layout.partitions().zip(nodes) {
            let link = self.by_partlabel.join(&part.name);
            let target = fs::canonicalize(&link).map_err(Error::io(&link, "follow the link"))?;
            if name(&target)? != name(&node)? {
                return Err(Error::Ambiguous { link, disk: disk.to_owned() });
            }
        }
        Ok(())
    }
}

fn name(path: &Path) -> Result<OsString> {
    path.file_name().map(ToOwned::to_owned).ok_or_else(|| Error::NotFound { path: path.to_owned() })
}
