//! `drydock recovery …`: the steps of a recovery, each on the side that takes it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use outcome::Result;
use recovery::api::{Destination, Imported, RecoveryRequest, StatusReport};
use recovery::grant::Summary;
use serde_json::json;
use time::OffsetDateTime;

use crate::agent_call::{answer, call};
use crate::keyring::{Keyring, OwnerArgs};
use crate::output::Output;
use crate::{files, fingerprint, prompt};

#[derive(Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Step 1, fabric admin: export the damaged VM onto an RG disk, and attach it to the repair garage.
    ///
    /// The VM's disks are attached as overlays: the export takes as long for 1 TiB as for 1 GiB, the originals stay
    /// untouched, and only what the repair changes is written. `--copy` copies the disks onto the RG disk instead.
    ///
    /// For a garage on another host, `--to-file` writes the RG disk with the disks on it into a file. Carry it to the
    /// garage's host, and attach it there with `drydock recovery attach`.
    #[command(after_long_help = "Examples:\n  \
        drydock recovery export web --to vmre --stop\n  \
        drydock recovery export web --to-file /mnt/usb/web.rg.vhdx --stop")]
    Export {
        /// The damaged VM.
        vm: String,
        /// The repair garage, on this host.
        #[arg(long, required_unless_present = "to_file", value_name = "GARAGE")]
        to: Option<String>,
        /// A new file, for a repair garage on another host.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["to", "copy", "restart_garage"])]
        to_file: Option<PathBuf>,
        /// Copy the disks onto the RG disk instead of attaching overlays.
        #[arg(long)]
        copy: bool,
        /// Shut the damaged VM down first if it runs.
        #[arg(long)]
        stop: bool,
        /// Restart the repair garage if nested virtualization requires it.
        #[arg(long)]
        restart_garage: bool,
    },
    /// Fabric admin, on the host of a garage elsewhere: attach an RG disk that was exported to a file.
    ///
    /// Run it after the file has arrived, and before the tenant imports the VM in the garage.
    #[command(after_long_help = "Example:\n  drydock recovery attach /mnt/usb/web.rg.vhdx --to vmre")]
    Attach {
        /// The file that `drydock recovery export --to-file` wrote.
        file: PathBuf,
        /// The repair garage.
        #[arg(long, value_name = "GARAGE")]
        to: String,
        /// Restart the repair garage if nested virtualization requires it.
        #[arg(long)]
        restart_garage: bool,
    },
    /// Fabric admin, on the host of a garage elsewhere: detach the RG disk, to carry it back.
    ///
    /// Run it after the owner has finished; then reinstate the VM on its own host with
    /// `drydock recovery reinstate --from`.
    #[command(after_long_help = "Example:\n  drydock recovery detach web")]
    Detach {
        /// The damaged VM.
        vm: String,
    },
    /// Steps 2 and 4, tenant in the garage: import the VM and write a request; with --grant, lower its policy.
    ///
    /// The first call imports the VM and writes a recovery request for the owner. After the owner has answered it with
    /// `drydock recovery grant`, call it again with the grant: the VM can then be started with a console (step 5).
    #[command(after_long_help = "Examples, in the garage:\n  \
        drydock recovery import\n  \
        drydock recovery import --grant web.recovery-grant")]
    Import(Import),
    /// Step 3, tenant host, offline: answer a recovery request with the owner's key.
    ///
    /// The command shows what the request asks for - the VM, the garage that signed it, the temporary guardian that
    /// would be able to open the VM, and until when - and uses the key only after you have typed 'yes'.
    #[command(after_long_help = "Example, on the tenant host:\n  \
        drydock recovery grant web.recovery-request --owner tenant")]
    Grant(Grant),
    /// Step 6, tenant in the garage: raise the policy, hand the VM back, and destroy what was temporary.
    #[command(after_long_help = "Example, in the garage:\n  drydock recovery finish --stop")]
    Finish {
        /// The VM; needed only if the garage holds several recoveries.
        vm: Option<String>,
        /// Shut it down first if it runs.
        #[arg(long)]
        stop: bool,
    },
    /// Step 7, fabric admin: verify what came back, put it in the VM's place, and start it.
    ///
    /// With `--keep-original`, the VM as it was before its repair stays available: end that with
    /// `drydock recovery commit` or `drydock recovery rollback`.
    #[command(after_long_help = "Examples:\n  \
        drydock recovery reinstate web\n  \
        drydock recovery reinstate web --from /mnt/usb/web.rg.vhdx --keep-original")]
    Reinstate {
        /// The damaged VM.
        vm: String,
        /// The RG disk that came back from a garage on another host [default: the file that was exported].
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Keep the VM as it was before its repair, until `commit` or `rollback`.
        #[arg(long)]
        keep_original: bool,
    },
    /// After `reinstate --keep-original`: accept the repair, merge it, and delete the original.
    #[command(after_long_help = "Example:\n  drydock recovery commit web")]
    Commit {
        /// The repaired VM.
        vm: String,
    },
    /// After `reinstate --keep-original`: restore the VM as it was before its repair, and discard the repair.
    #[command(after_long_help = "Example:\n  drydock recovery rollback web --stop")]
    Rollback {
        /// The repaired VM.
        vm: String,
        /// Shut the repaired VM down first if it runs.
        #[arg(long)]
        stop: bool,
    },
    /// Show where a recovery stands and what comes next. Works on every side.
    #[command(after_long_help = "Example:\n  drydock recovery status web")]
    Status {
        /// The VM [default: all recoveries on this side].
        vm: Option<String>,
    },
    /// Abort a recovery: the VM is again as it was before the export.
    ///
    /// On the host of a garage elsewhere it detaches the RG disk from the garage, unchanged.
    #[command(after_long_help = "Example:\n  drydock recovery abort web")]
    Abort {
        /// The damaged VM.
        vm: String,
    },
}

#[derive(Args)]
pub(crate) struct Import {
    /// Where to write the recovery request [default: NAME.recovery-request].
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The owner's answer to the request.
    #[arg(long, value_name = "FILE")]
    pub grant: Option<PathBuf>,
    /// The bridge inside the garage that the VM's network cards are plugged into.
    #[arg(long, value_name = "BRIDGE", default_value = "br0")]
    pub switch: String,
    /// Lifetime of the temporary recovery guardian in hours.
    #[arg(long, default_value_t = 24)]
    pub hours: u32,
    /// Install missing packages with apt-get.
    #[arg(long)]
    pub install: bool,
}

#[derive(Args)]
pub(crate) struct Grant {
    /// The recovery request that the garage wrote.
    pub request: PathBuf,
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// Where to write the grant [default: NAME.recovery-grant].
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

pub(crate) fn run(command: RecoveryCommand, socket: &Path, out: &Output) -> Result<()> {
    let request = match command {
        RecoveryCommand::Export { vm, to, to_file, copy, stop, restart_garage } => {
            let to = match (to, to_file) {
                (_, Some(file)) => Destination::File(files::absolute(&file)?),
                (garage, None) => Destination::Garage(garage.unwrap_or_default()),
            };
            RecoveryRequest::RecoveryExport { vm, to, copy, stop, restart_garage }
        }
        RecoveryCommand::Attach { file, to, restart_garage } => {
            RecoveryRequest::RecoveryAttach { file: files::absolute(&file)?, garage: to, restart_garage }
        }
        RecoveryCommand::Detach { vm } => RecoveryRequest::RecoveryDetach { vm },
        RecoveryCommand::Finish { vm, stop } => RecoveryRequest::RecoveryFinish { vm, stop },
        RecoveryCommand::Reinstate { vm, from, keep_original } => {
            let from = from.as_deref().map(files::absolute).transpose()?;
            RecoveryRequest::RecoveryReinstate { vm, from, keep_original }
        }
        RecoveryCommand::Commit { vm } => RecoveryRequest::RecoveryCommit { vm },
        RecoveryCommand::Rollback { vm, stop } => RecoveryRequest::RecoveryRollback { vm, stop },
        RecoveryCommand::Abort { vm } => RecoveryRequest::RecoveryAbort { vm },
        RecoveryCommand::Import(args) => return import(args, socket, out),
        RecoveryCommand::Grant(args) => return grant(args, out),
        RecoveryCommand::Status { vm } => return status(vm, socket, out),
    };
    // These answer with where the recovery stands now.
    let value = call(socket, &request, out)?;
    let report: StatusReport = answer(&value)?;
    out.result(&value, || report.sentence);
    Ok(())
}

fn status(vm: Option<String>, socket: &Path, out: &Output) -> Result<()> {
    let value = call(socket, &RecoveryRequest::RecoveryStatus { vm }, out)?;
    let reports: Vec<StatusReport> = answer(&value)?;
    out.result(&value, || {
        if reports.is_empty() {
            return "no recovery on this side".into();
        }
        reports.iter().map(|r| format!("{}: {}\n", r.vm, r.sentence)).collect()
    });
    Ok(())
}

fn import(args: Import, socket: &Path, out: &Output) -> Result<()> {
    let Import { out: target, grant, switch, hours, install } = args;
    let (grant, grant_name) = match grant {
        Some(path) => (Some(files::read_text(&path, "a recovery grant")?), Some(path.display().to_string())),
        None => (None, None),
    };
    let request = RecoveryRequest::RecoveryImport { grant, grant_name, switch, hours, install };
    let value = call(socket, &request, out)?;
    let imported: Imported = answer(&value)?;
    match imported.request {
        Some(document) => {
            let target = target.unwrap_or_else(|| PathBuf::from(format!("{}.recovery-request", imported.vm)));
            files::write(&target, document.as_bytes())?;
            out.result(&json!({ "vm": imported.vm, "request": target, "next": imported.sentence }), || {
                format!("recovery request written to {}\n{}", target.display(), imported.sentence)
            });
        }
        None => out.result(&value, || imported.sentence),
    }
    Ok(())
}

fn grant(args: Grant, out: &Output) -> Result<()> {
    let Grant { request, owner, out: target, yes } = args;
    let now = OffsetDateTime::now_utc();
    let what = request.display().to_string();
    let keyring = Keyring::open(owner.keyring)?;
    let checked = recovery::documents::read_request(&what, &files::read(&request)?, &keyring.garages()?, now)?;
    recovery::grant::check(&what, &checked, &keyring.public(&owner.owner)?, now)?;
    let target = target.unwrap_or_else(|| PathBuf::from(format!("{}.recovery-grant", checked.request.vm_name)));
    files::must_be_new(&target, "name another file with --out")?;
    let summary = recovery::grant::summary(&checked);
    out.note(&question(&summary));
    if !yes {
        prompt::confirm("Grant it?")?;
    }
    let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
    let document = recovery::grant::issue(&what, &checked, &keys, now)?;
    // After a failed write no half of a grant stays behind, nor blocks the next attempt.
    files::write(&target, &document).inspect_err(|_| drop(std::fs::remove_file(&target)))?;
    out.result(&json!({ "grant": target, "summary": summary }), || {
        format!(
            "recovery grant written to {}\nBring it into the garage and run: drydock recovery import --grant {}",
            target.display(),
            files::name(&target)
        )
    });
    Ok(())
}

/// What the owner decides on.
fn question(summary: &Summary) -> String {
    format!(
        "This request asks you to let a repair garage open your VM:\n  \
         VM         {} ({})\n  garage     {} (it calls itself {})\n  guardian   {}\n             {}\n  until      {}\n  \
         can open it already: {}",
        summary.vm_name,
        summary.vm_id,
        summary.garage,
        summary.garage_says,
        summary.guardian,
        fingerprint::grouped(&summary.guardian_fingerprint),
        summary.not_after,
        summary.can_open_now.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_shown_every_digit_of_the_guardian() {
        let fingerprint = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";
        let text = question(&Summary {
            vm_name: "web".into(),
            vm_id: uuid::Uuid::nil(),
            recovery_id: uuid::Uuid::nil(),
            garage: "vmre".into(),
            garage_says: "garage-7".into(),
            guardian: "recovery".into(),
            guardian_fingerprint: fingerprint.into(),
            not_after: "2026-11-25T13:05:45Z".into(),
            can_open_now: vec!["fabric".into()],
        });
        assert!(text.contains(&fingerprint::grouped(fingerprint)), "{text}");
        assert!(text.contains("web") && text.contains("until      2026-11-25T13:05:45Z"), "{text}");
    }
}
