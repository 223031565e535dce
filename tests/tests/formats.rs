//! A VM with disks of every format goes through a recovery in both modes: order, serial numbers, sizes and addresses stay
//! as they were, each disk keeps its contents, and what a guest wrote into a raw disk is never taken for a format.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::process::run;
use drydock_tests::tenant::{Plan, hand_back, rg_disk};
use drydock_tests::world::{World, path};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 << 20;
const FORMATS: [&str; 3] = ["raw", "qcow2", "vhdx"];

fn tool(program: &str, args: &[&str]) -> Result<String> {
    Ok(run(Command::new(program).args(args), b"", LIMIT)?.ok()?.stdout)
}

/// Each disk begins with the header of a qcow2 that lies on a file of the host, and says which one it is.
fn contents(index: usize) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    bytes[8..16].copy_from_slice(&104u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&11u32.to_be_bytes());
    bytes[104..115].copy_from_slice(b"/etc/passwd");
    bytes[4096..4103].copy_from_slice(format!("disk {index}.").as_bytes());
    bytes
}

/// Three disks, which are then replaced by images of all three formats, one of them outside the VM's folder.
fn make(world: &World) -> Result<()> {
    let blank = world.fabric("blank.raw");
    fs::File::create(&blank)?.set_len(SIZE)?;
    let more = path(&blank);
    world.create_vm("dvm", &blank, &["--memory", "256", "--disk", &more, "--disk", &more])?;
    let file = world.store().join("vms/dvm/vm.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    for (index, format) in FORMATS.iter().enumerate() {
        let raw = world.fabric("contents.raw");
        let written = fs::File::create(&raw)?;
        written.set_len(SIZE)?;
        written.write_all_at(&contents(index), 0)?;
        let old = world.store().join(format!("vms/dvm/disk-{index}.qcow2"));
        let new = match *format {
            "vhdx" => world.fabric("elsewhere.vhdx"),
            _ => old.with_extension(format),
        };
        fs::remove_file(&old)?;
        tool("qemu-img", &["convert", "-f", "raw", "-O", format, &path(&raw), &path(&new)])?;
        spec["disks"][index]["path"] = json!(new);
        spec["disks"][index]["format"] = json!(format);
    }
    Ok(fs::write(&file, serde_json::to_vec_pretty(&spec)?)?)
}

/// The first MiB and the repaired one of a disk.
fn read(disk: &Value) -> Result<(Vec<u8>, Vec<u8>)> {
    let raw = tempfile::NamedTempFile::new()?;
    let (from, format) = (disk["path"].as_str().context("no path")?, disk["format"].as_str().context("no format")?);
    tool("qemu-img", &["convert", "-f", format, "-O", "raw", from, &path(raw.path())])?;
    let bytes = fs::read(raw.path())?;
    Ok((bytes[..1 << 20].to_vec(), bytes[2 << 20..3 << 20].to_vec()))
}

fn spec(world: &World) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(world.store().join("vms/dvm/vm.json"))?)?)
}

/// What a guest and its owner know the VM by.
fn identity(spec: &Value) -> Value {
    let disks: Vec<_> =
        spec["disks"].as_array().into_iter().flatten().map(|disk| json!([disk["serial"], disk["size"]])).collect();
    json!([spec["id"], spec["nics"], disks, spec["memory_mib"], spec["vcpus"]])
}

fn repair(overlay: &Path, index: usize) -> Result<()> {
    tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {} 2M 1M", index + 1), &path(overlay)]).map(drop)
}

#[test]
fn every_format_keeps_what_it_is() -> Result<()> {
    let world = World::new()?;
    make(&world)?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    world.admin(&["vm", "start", "dvm"])?.ok().context("before")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    let before = spec(&world)?;

    // Overlays: the images stay what they are, and where they are.
    world.admin(&["recovery", "export", "dvm", "--to", "vmre"])?.ok()?;
    for index in 0..FORMATS.len() {
        repair(&rg_disk(&world, "dvm")?.with_file_name(format!("overlay-{index}.qcow2")), index)?;
    }
    hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
    world.admin(&["recovery", "reinstate", "dvm"])?.ok()?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    let after = spec(&world)?;
    ensure!(after == before, "the VM's specification changed: {after}");
    for (index, disk) in after["disks"].as_array().into_iter().flatten().enumerate() {
        let (first, repaired) = read(disk)?;
        ensure!(first == contents(index), "disk {index} is another one");
        ensure!(repaired.iter().all(|b| usize::from(*b) == index + 1), "the repair of disk {index} is not there");
    }

    // Copies: the images are new ones, of what was on the old.
    world.admin(&["recovery", "export", "dvm", "--to", "vmre", "--copy"])?.ok()?;
    hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
    world.admin(&["recovery", "reinstate", "dvm"])?.ok()?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    let after = spec(&world)?;
    ensure!(identity(&after) == identity(&before), "the VM is another one: {after}");
    for (index, disk) in after["disks"].as_array().into_iter().flatten().enumerate() {
        let (first, repaired) = read(disk)?;
        ensure!(first == contents(index), "disk {index} is another one after the copy");
        ensure!(repaired.iter().all(|b| usize::from(*b) == index + 1), "disk {index} lost something in the copy");
    }
    world.admin(&["vm", "start", "dvm"])?.ok().context("after")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    world.close()
}
