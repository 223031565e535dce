//! Disks that come and go while the VM runs.

use serde_json::json;

use super::blockdev::{blockdev, disk_device, sets, written};
use super::nodes::{disk_id, disk_node};
use super::qmp::Command;
use super::running::RunningVm;
use crate::disk;
use crate::error::Result;
use crate::spec::DiskSpec;

impl RunningVm {
    /// How many disks the sealed record names.
    pub fn disk_count(&self) -> usize {
        self.disks().sealed().count()
    }

    /// Whether a disk with this serial number is attached.
    pub fn has_disk(&self, serial: &str) -> bool {
        self.disks().find(serial).is_some()
    }

    /// Attaches a disk to the running VM.
    ///
    /// # Errors
    /// [`crate::Error::NoFreePort`]; [`crate::Error::DiskImage`] for an image that must not be used; QEMU's refusal.
    pub async fn attach_disk(&self, spec: &DiskSpec) -> Result<()> {
        let checked = disk::check(spec)?;
        let (index, port) = self.disks().reserve(spec)?;
        let node = disk_node(index);
        let (sets, blockdev) = (sets(&checked, index), blockdev(&checked, index));
        self.allow_writes(written(&checked)?);
        let result = async {
            for (set, file) in sets.iter().zip(checked.into_files()) {
                self.qmp().add_fd(*set, file).await?;
            }
            let added = self.qmp().execute(Command::BlockdevAdd, blockdev).await;
            for set in sets {
                self.qmp().release(set).await?;
            }
            added?;
            let device = disk_device(spec, index, port);
            let plugged = self.qmp().execute(Command::DeviceAdd, device).await;
            if plugged.is_err() {
                self.drop_node(&node).await;
            }
            plugged
        }
        .await;
        self.disks().settle(index, result.is_ok());
        result.map(|_| ())
    }

    /// Detaches a disk from the running VM as soon as the guest releases it.
    ///
    /// # Errors
    /// [`crate::Error::Deadline`] when the guest does not; [`crate::Error::DiskAttachment`] for a disk that is not
    /// attached or is part of the VM.
    pub async fn detach_disk(&self, serial: &str) -> Result<()> {
        let index = self.disks().claim(serial)?;
        let result = self.unplug(index).await;
        self.disks().settle(index, result.is_err());
        result
    }

    async fn unplug(&self, index: usize) -> Result<()> {
        self.remove_device(&disk_id(index), "the guest's release of a disk").await?;
        self.qmp().execute(Command::BlockdevDel, json!({"node-name": disk_node(index)})).await.map(|_| ())
    }
}
