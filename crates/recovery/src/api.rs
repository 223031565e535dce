//! What can be asked of the agent about recoveries, and what it answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::journal::{Entry, Side};

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RecoveryRequest {
    RecoveryExport {
        vm: String,
        to: Destination,
        /// The disks travel on the RG disk, as copies; they always do in a file.
        copy: bool,
        stop: bool,
        restart_garage: bool,
    },
    RecoveryImport {
        /// The grant's content, and its file's name for messages.
        grant: Option<String>,
        grant_name: Option<String>,
        switch: String,
        hours: u32,
        install: bool,
    },
    RecoveryFinish {
        vm: Option<String>,
        stop: bool,
    },
    /// The RG disk in a file that came from the VM's host goes into a garage on this one.
    RecoveryAttach {
        file: PathBuf,
        garage: String,
        restart_garage: bool,
    },
    /// And out of it, when it is handed back.
    RecoveryDetach {
        vm: String,
    },
    RecoveryReinstate {
        vm: String,
        /// The RG disk as it came back from a garage on another host; by default the file that was exported.
        from: Option<PathBuf>,
        /// Keep the VM as it was before its repair.
        keep_original: bool,
    },
    /// Ends the keeping: the repaired VM is the VM.
    RecoveryCommit {
        vm: String,
    },
    /// Brings back the VM as it was before its repair, where that was kept.
    RecoveryRollback {
        vm: String,
        stop: bool,
    },
    RecoveryStatus {
        vm: Option<String>,
    },
    RecoveryAbort {
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
    /// PEM.
    pub public_key: String,
    pub fingerprint: String,
}

/// Where a recovery stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatusReport {
    pub vm: String,
    pub recovery_id: Uuid,
    pub side: Side,
    pub closed: bool,
    pub steps: Vec<Entry>,
    /// Where it stands and what comes next, for people.
    pub sentence: String,
}

/// The answer to an import: a request for the owner, or the news that the grant was taken.
#[derive(Debug, Serialize, Deserialize)]
pub struct Imported {
    pub vm: String,
    pub recovery_id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    pub sentence: String,
}
