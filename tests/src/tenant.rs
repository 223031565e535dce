//! A garage played by the test: it has the keys that a real one has, and does with them what it likes.
//!
//! What leaves here is what a tenant with full control of their garage could hand back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration as Span;

use anyhow::{Context, Result};
use garage::{Bundle, Device, Direction, Manifest, Mode};
use key_protector::{Guardian, KeyKind, Protector, Role, Wrapping};
use machine::Policy;
use machine::record::SealedRecord;
use recovery::documents::{self, Receipt, ReceiptDisk};
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::host::Host;
use crate::process::run;

const CONVERT: Span = Span::from_secs(60);

/// A hand-back before it is signed and written. A test spoils what it wants to.
pub struct Draft {
    pub manifest: Manifest,
    pub generation: u64,
    pub protector: Protector,
    pub state: Vec<(String, Vec<u8>)>,
    pub receipt: Receipt,
    /// Who signs the receipt.
    pub signer: Guardian,
    /// False: the manifest carries no receipt.
    pub with_receipt: bool,
    /// Bytes to write over the disk after it was hashed.
    pub late_write: Option<(u64, Vec<u8>)>,
    /// Keep the receipt's digests of state and protector as they are, although these were spoiled.
    pub keep_digests: bool,
}

/// How the tenant turns the policy, and which keys they use.
pub struct Plan {
    pub policy: Policy,
    pub vm_id: Option<Uuid>,
    pub to_fabric: bool,
    /// How long the recovery guardian lives.
    pub lifetime: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { policy: Policy::Shielded, vm_id: None, to_fabric: true, lifetime: Duration::hours(1) }
    }
}

/// The owner's keys, as they lie on the tenant host.
pub fn owner(host: &Host) -> Result<Guardian> {
    let pem = fs::read_to_string(host.offline(".config/drydock/guardians/tenant.pem"))?;
    Guardian::from_pem(&pem).context("the owner's keys cannot be read")
}

pub fn recovery_guardian(lifetime: Duration) -> Result<Guardian> {
    let made = OffsetDateTime::now_utc();
    Ok(Guardian::generate("recovery", Role::Recovery, KeyKind::Rsa2048, made - Duration::minutes(5), made + lifetime)?)
}

/// The RG disk of the VM's open recovery, on the host.
pub fn rg_disk(host: &Host, vm: &str) -> Result<PathBuf> {
    let status = host.admin_json(&["recovery", "status", vm])?;
    let id = status[0]["recovery_id"].as_str().context("no recovery")?;
    Ok(host.store().join("recoveries").join(id).join("rg.vhdx"))
}

/// The overlay of the VM's first disk, on the host.
pub fn overlay(host: &Host, vm: &str) -> Result<PathBuf> {
    Ok(rg_disk(host, vm)?.with_file_name("overlay-0.qcow2"))
}

/// What a repair does to the first disk in overlay mode: `length` bytes at `offset` are written.
pub fn repair(host: &Host, vm: &str, offset: u64, length: u64) -> Result<()> {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2", "-c", &format!("write -P 77 {offset} {length}")]).arg(overlay(host, vm)?);
    run(&mut command, b"", CONVERT)?.ok().context("qemu-io").map(drop)
}

/// The same in copy mode, on the RG disk itself.
pub fn repair_copy(vhdx: &Path, offset: u64, length: u64) -> Result<()> {
    let contents = garage::container::read(vhdx)?;
    let at = contents.layout.disks().first().context("no disk")?.offset + offset;
    let mut command = Command::new("qemu-io");
    command.args(["-f", "vhdx", "-c", &format!("write -P 77 {at} {length}")]).arg(vhdx);
    run(&mut command, b"", CONVERT)?.ok().context("qemu-io").map(drop)
}

/// An RG disk like `from`, whose manifest says what its maker likes. Its disks are empty.
pub fn forge(from: &Path, to: &Path, change: impl FnOnce(&mut Manifest, &mut Value)) -> Result<()> {
    let garage::Contents { layout, mut manifest, bundle } = garage::container::read(from)?;
    let mut shape: Value = serde_json::from_str(&manifest.spec)?;
    change(&mut manifest, &mut shape);
    manifest.spec = shape.to_string();
    let work = tempfile::tempdir()?;
    let mut sources = Vec::new();
    for (index, disk) in layout.disks().iter().enumerate().filter(|_| manifest.mode == Mode::Copy) {
        let path = work.path().join(index.to_string());
        fs::File::create(&path)?.set_len(disk.size)?;
        sources.push(image::Source::new(path, image::Format::Raw));
    }
    let layout = if sources.is_empty() { garage::Layout::plan(&[])? } else { layout };
    garage::container::create(to, &layout, &manifest, &bundle, &sources, &|_| {}, &image::Cancel::new())?;
    Ok(())
}

/// Takes the VM's RG disk through a garage: lowers nothing, raises nothing, but seals state anew under keys for the
/// fabric as a garage's `finish` does, lets `spoil` at the result, and puts the disk back.
pub fn hand_back(host: &Host, vm: &str, plan: &Plan, spoil: impl FnOnce(&mut Draft) -> Result<()>) -> Result<()> {
    hand_back_disk(host, &rg_disk(host, vm)?, plan, spoil)
}

/// The same with an RG disk that lies anywhere.
pub fn hand_back_disk(
    host: &Host,
    vhdx: &Path,
    plan: &Plan,
    spoil: impl FnOnce(&mut Draft) -> Result<()>,
) -> Result<()> {
    let work = tempfile::tempdir()?;
    let raw = work.path().join("rg.raw");
    convert(vhdx, "vhdx", &raw, "raw")?;
    let device = Device::open(&raw)?;
    let mut manifest = device.manifest()?;
    let shape: Value = serde_json::from_str(&manifest.spec)?;
    let generation = shape["generation"].as_u64().context("no generation")?;
    let ingress = Protector::parse(&manifest.protector)?;
    let owner = owner(host)?;
    let now = OffsetDateTime::now_utc();
    let guardian = recovery_guardian(plan.lifetime)?;
    let granted = ingress.grant(&owner, &guardian.public().clone(), now)?;
    let recipients: Vec<Wrapping> =
        ingress.wrappings().iter().filter(|w| plan.to_fabric || w.role() == Role::Owner).cloned().collect();
    let rolled = granted.roll(&guardian, &recipients, now)?;

    let (from, to) = (work.path().join("from"), work.path().join("to"));
    device.bundle()?.unpack(&from)?;
    let record = machine::slot::open_record(&from, &rolled.ingress, manifest.vm_id, &ingress.digest())?;
    let record = SealedRecord {
        policy: plan.policy,
        vm_id: plan.vm_id.unwrap_or(record.vm_id),
        generation: generation + 1,
        ..record
    };
    let digest = rolled.egress_protector.digest();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(machine::slot::reseal(&from, &rolled.ingress, &to, &rolled.egress, &record, &digest))?;
    let bundle = Bundle::pack(&to)?;
    let mut disks = Vec::new();
    for (index, disk) in manifest.disks.iter().enumerate() {
        let sha256 = match manifest.mode {
            Mode::Copy => Some(device.digest_disk(index, &|_| {}, &image::Cancel::new())?.to_string()),
            Mode::Overlay => None,
        };
        disks.push(ReceiptDisk { serial: disk.serial.clone(), size: disk.size, sha256 });
    }
    manifest.sequence += 1;
    manifest.direction = Direction::Handback;
    let mut draft = Draft {
        receipt: Receipt {
            recovery_id: manifest.recovery_id,
            vm_id: manifest.vm_id,
            ingress_protector: ingress.digest(),
            egress_protector: digest,
            state: bundle.sha256().to_string(),
            disks,
            finished: now.unix_timestamp(),
        },
        manifest,
        generation: generation + 1,
        protector: rolled.egress_protector,
        state: bundle.files().map(|(name, contents)| (name.to_owned(), contents.to_vec())).collect(),
        signer: guardian,
        with_receipt: true,
        late_write: None,
        keep_digests: false,
    };
    spoil(&mut draft)?;
    write(&device, &raw, draft, shape)?;
    convert(&raw, "raw", vhdx, "vhdx")
}

fn write(device: &Device, raw: &Path, draft: Draft, mut shape: Value) -> Result<()> {
    let Draft { mut manifest, generation, protector, state, mut receipt, signer, .. } = draft;
    let bundle = Bundle::from_files(state)?;
    if !draft.keep_digests {
        receipt.state = bundle.sha256().to_string();
        receipt.egress_protector = protector.digest();
    }
    shape["generation"] = generation.into();
    manifest.spec = shape.to_string();
    manifest.protector = protector.to_xml();
    manifest.state_sha256 = device.write_state(&bundle)?;
    manifest.receipt = if draft.with_receipt { Some(documents::write_receipt(&receipt, &signer)?) } else { None };
    device.write_manifest(&manifest)?;
    if let Some((offset, bytes)) = draft.late_write {
        use std::os::unix::fs::FileExt;
        let disk = device.layout().disks().first().context("no disk")?;
        fs::OpenOptions::new().write(true).open(raw)?.write_all_at(&bytes, disk.offset + offset)?;
    }
    Ok(())
}

/// One image into another.
pub fn convert(from: &Path, from_format: &str, to: &Path, to_format: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", from_format, "-O", to_format]).arg(from).arg(to);
    run(&mut command, b"", CONVERT)?.ok().context("qemu-img").map(drop)
}
