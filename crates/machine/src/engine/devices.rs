//! What of a running VM can change: its disks and its session.

use super::nodes::{backing_node, disk_node};
use super::ports::HOT_PORTS;
use crate::error::{Error, Result};
use crate::sealed::SealedRecord;
use crate::spec::{DiskSpec, VmSpec};

/// The disks that the VM has now.
pub(super) struct Disks {
    pub(super) attached: Vec<Attached>,
    /// Node and device names are never reused.
    next_index: usize,
    free_ports: Vec<usize>,
}

/// An attached disk.
pub(super) struct Attached {
    pub(super) serial: String,
    /// It names the disk's nodes and device.
    pub(super) index: usize,
    /// QEMU's name for the image that the guest uses.
    pub(super) node: String,
    port: usize,
    /// In the sealed record: part of the VM, cannot be detached.
    pub(super) sealed: bool,
    /// An operation on it is under way.
    pub(super) busy: bool,
    /// Its overlay was merged but that is not recorded yet: the guest is paused.
    pub(super) unsettled: bool,
}

impl Disks {
    pub(super) fn new(spec: &VmSpec, record: &SealedRecord) -> Self {
        let used = spec.disks.len();
        let first_hot = used + spec.nics.len();
        Self {
            attached: spec
                .disks
                .iter()
                .enumerate()
                .map(|(index, disk)| Attached {
                    serial: disk.serial.clone(),
                    index,
                    node: disk_node(index),
                    port: index,
                    sealed: index < record.disks.len(),
                    busy: false,
                    unsettled: false,
                })
                .collect(),
            next_index: used,
            free_ports: (first_hot..first_hot + HOT_PORTS).rev().collect(),
        }
    }

    /// Reserves index and port for another disk.
    pub(super) fn reserve(&mut self, spec: &DiskSpec) -> Result<(usize, usize)> {
        let seen = spec.serial_seen();
        if self.attached.iter().any(|d| d.serial.starts_with(seen)) {
            return Err(Error::DiskAttachment {
                serial: spec.serial.clone(),
                reason: "a disk with this serial number is attached already",
            });
        }
        let port = self.free_ports.pop().ok_or(Error::NoFreePort)?;
        let index = self.next_index;
        self.next_index += 1;
        self.attached.push(Attached {
            serial: spec.serial.clone(),
            index,
            node: disk_node(index),
            port,
            sealed: false,
            busy: true,
            unsettled: false,
        });
        Ok((index, port))
    }

    /// Marks an attached disk as busy, to be detached.
    pub(super) fn claim(&mut self, serial: &str) -> Result<usize> {
        let refuse = |reason| Error::DiskAttachment { serial: serial.to_owned(), reason };
        let disk = self.attached.iter_mut().find(|d| d.serial == serial).ok_or_else(|| refuse("is not attached"))?;
        if disk.sealed {
            return Err(refuse("is part of the VM and cannot be detached"));
        }
        if disk.busy {
            return Err(refuse("is being attached or detached"));
        }
        disk.busy = true;
        Ok(disk.index)
    }

    /// Ends an operation: the disk is attached now, or it is detached and its port free.
    pub(super) fn settle(&mut self, index: usize, attached: bool) {
        let Some(at) = self.attached.iter().position(|d| d.index == index) else {
            return;
        };
        if attached {
            self.attached[at].busy = false;
        } else {
            let gone = self.attached.remove(at);
            self.free_ports.push(gone.port);
        }
    }

    pub(super) fn find(&self, serial: &str) -> Option<&Attached> {
        self.attached.iter().find(|disk| disk.serial == serial)
    }

    /// The disks that the sealed record names.
    pub(super) fn sealed(&self) -> impl Iterator<Item = &Attached> {
        self.attached.iter().filter(|disk| disk.sealed)
    }

    /// Whether the overlay of this disk was merged, but that is not recorded yet.
    pub(super) fn set_unsettled(&mut self, index: usize, unsettled: bool) {
        if let Some(disk) = self.attached.iter_mut().find(|disk| disk.index == index) {
            disk.unsettled = unsettled;
        }
    }

    /// A disk's overlay was merged, and that is recorded.
    pub(super) fn set_merged(&mut self, index: usize) {
        if let Some(disk) = self.attached.iter_mut().find(|disk| disk.index == index) {
            disk.unsettled = false;
            disk.node = backing_node(&disk.node);
        }
    }
}

/// The session in QEMU.
#[derive(Default)]
pub(super) struct SessionPort {
    /// The number of the last port.
    pub(super) last: u8,
    /// It is plugged in now.
    pub(super) plugged: bool,
}

impl SessionPort {
    pub(super) fn id(&self) -> String {
        format!("session-port{}", self.last)
    }
}
