//! What can be asked of the agent about recoveries, and what it answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::journal::Entry;
use crate::step::Side;

/// A request about a recovery. A VM is named as it is on the agent's host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RecoveryRequest {
    /// The damaged VM goes onto an RG disk.
    RecoveryExport {
        /// The damaged VM.
        vm: String,
        /// Where the RG disk goes.
        to: Destination,
        /// The disks travel on the RG disk, as copies; they always do in a file.
        copy: bool,
        /// Shut the VM down if it runs.
        stop: bool,
        /// Restart a garage that runs without nested virtualization.
        restart_garage: bool,
    },
    /// In the garage: takes the VM in and asks its owner; with a grant, gives it a console.
    RecoveryImport {
        /// The grant's content.
        grant: Option<String>,
        /// The grant's file name, for messages.
        grant_name: Option<String>,
        /// The bridge of the garage that the VM's NICs are on.
        switch: String,
        /// How many hours the recovery guardian is valid.
        hours: u32,
        /// Install the packages that are missing.
        install: bool,
    },
    /// In the garage: hands the repaired VM back.
    RecoveryFinish {
        /// The VM; may be left out where only one is in recovery.
        vm: Option<String>,
        /// Shut the VM down if it runs.
        stop: bool,
    },
    /// The RG disk in a file that came from the VM's host goes into a garage on this one.
    RecoveryAttach {
        /// The RG disk.
        file: PathBuf,
        /// The repair garage.
        garage: String,
        /// Restart a garage that runs without nested virtualization.
        restart_garage: bool,
    },
    /// And out of it, when it is handed back.
    RecoveryDetach {
        /// The damaged VM, as it is named on its own host.
        vm: String,
    },
    /// What came back is verified and put in the VM's place.
    RecoveryReinstate {
        /// The damaged VM.
        vm: String,
        /// The RG disk as it came back from a garage on another host; by default the file that was exported.
        from: Option<PathBuf>,
        /// Keep the VM as it was before its repair.
        keep_original: bool,
    },
    /// Ends the keeping: the repaired VM is the VM.
    RecoveryCommit {
        /// The repaired VM.
        vm: String,
    },
    /// Brings back the VM as it was before its repair, where that was kept.
    RecoveryRollback {
        /// The repaired VM.
        vm: String,
        /// Shut the VM down if it runs.
        stop: bool,
    },
    /// Where recoveries stand.
    RecoveryStatus {
        /// Only the last recovery of this VM.
        vm: Option<String>,
    },
    /// Gives a recovery up.
    RecoveryAbort {
        /// The damaged VM.
        vm: String,
    },
    /// The garage's own key, made when it has none.
    GarageInit,
}

/// Where an export goes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Destination {
    /// Into a repair garage on the same host.
    Garage(String),
    /// Into a new file, for a garage on another host.
    File(PathBuf),
}

/// The garage's own key.
#[derive(Debug, Serialize, Deserialize)]
pub struct GarageInfo {
    /// The public half, in PEM.
    pub public_key: String,
    /// SHA-256 of the public half, in hexadecimal.
    pub fingerprint: String,
}

/// Where a recovery stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatusReport {
    /// The damaged VM.
    pub vm: String,
    /// The same on every side of the recovery.
    pub recovery_id: Uuid,
    /// The side that answers.
    pub side: Side,
    /// Whether the recovery has ended, in whatever way.
    pub closed: bool,
    /// What is done.
    pub steps: Vec<Entry>,
    /// Where it stands and what comes next, for people.
    pub sentence: String,
}

/// The answer to an import: a request for the owner, or the news that the grant was taken.
#[derive(Debug, Serialize, Deserialize)]
pub struct Imported {
    /// The VM.
    pub vm: String,
    /// The same on every side of the recovery.
    pub recovery_id: Uuid,
    /// The content of the request's file, for the tenant host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Where the recovery stands and what comes next, for people.
    pub sentence: String,
}
