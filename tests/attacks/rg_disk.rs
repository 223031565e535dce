//! A fabric admin who copies the RG disk at any moment, and a tenant or fabric admin who alters it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use drydock_tests::console::Console;
use drydock_tests::exit::{BAD_INPUT, KEY_RELEASE, REFUSED};
use drydock_tests::process::{Finished, run as run_program};
use drydock_tests::second_agent::SecondAgent;
use drydock_tests::tenant::{Plan, hand_back, rg_disk};
use drydock_tests::world::World;
use garage::Device;
use image::{Digest, Format, Source};
use machine::{DiskSpec, Policy, VmSpec};
use recovery::Step;
use serde_json::{Value, json};

use crate::suite::{Row, Suite};

const SHORT: Duration = Duration::from_secs(120);
const EXPORT: [&str; 6] = ["recovery", "export", "dvm", "--to", "vmre", "--copy"];
const REINSTATE: [&str; 3] = ["recovery", "reinstate", "dvm"];
const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];

/// The VM's host, another one that the Host Guardian Service trusts, and one that it does not know.
pub(crate) struct Hosts {
    world: World,
    second: SecondAgent,
    stranger: SecondAgent,
}

const COPIES: &[Row<Hosts>] = &[
    Row {
        name: "a_copy_of_the_rg_disk_has_a_console_nowhere",
        attacker: "fabric admin",
        holds: "copies of the RG disk from before and after every step of export and reinstate, and as it was handed \
                back; the VM's host, another attested host, one that is not attested",
        tries: "starts each copy on each host, with a console in its specification, and as it is",
        must: "attested hosts refuse the console: the sealed policy is another; the other host gets no key",
        control: "on the other attested host the same copy, unaltered, starts: shielded, without a console",
        run: copies,
    },
    Row {
        name: "state_lowered_in_the_garage_opens_on_no_host",
        attacker: "fabric admin, with a tenant whose garage gives its state away",
        holds: "the state with the lowered policy, sealed as a garage seals it",
        tries: "starts it on each host, with a console in its specification",
        must: "no key is released on any of them",
        control: "the same state, sealed for the fabric too, starts and has a console",
        run: lowered,
    },
];

const ALTERED: &[Row<World>] = &[
    Row {
        name: "an_altered_rg_disk_is_refused",
        attacker: "tenant or fabric admin",
        holds: "an RG disk that was handed back, and the tools to write partition tables and manifests with good \
                checksums",
        tries: "alters partition table, names, sizes, serial numbers, identities, mode, direction, digests, protector, \
                receipt, state or disk",
        must: "reinstate refuses each, the original is untouched",
        control: "the same RG disk, unaltered, is taken back at the end and starts",
        run: altered,
    },
    Row {
        name: "an_rg_disk_of_another_recovery_is_refused",
        attacker: "tenant or fabric admin",
        holds: "RG disks that were handed back honestly: of an earlier recovery of this VM, and of another VM's",
        tries: "puts them in the place of this recovery's",
        must: "reinstate refuses each",
        control: "its own is taken back",
        run: foreign,
    },
];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        "rg_disk_copied",
        COPIES,
        || {
            let world = world()?;
            let second = world.add_agent("host-2", "store-2", true)?;
            let stranger = world.add_agent("host-3", "store-3", false)?;
            Ok(Hosts { world, second, stranger })
        },
        |hosts| {
            hosts.second.close()?;
            hosts.stranger.close()?;
            hosts.world.close()
        },
    );
    suite.group(
        "rg_disk_altered",
        ALTERED,
        || {
            let world = world()?;
            world.create_blank("other", &["--memory", "128"])?;
            world.create_blank("garage", &["--memory", "1024", "--nested"])?;
            Ok(world)
        },
        World::close,
    );
}

fn world() -> Result<World> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "128"])?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    Ok(world)
}

fn copies(hosts: &mut Hosts) -> Result<()> {
    let taken = take_copies(&mut hosts.world)?;
    ensure!(taken.len() == 15, "two points of the export, one hand-back, twelve of the reinstatement: {}", taken.len());
    for (number, (at, copy)) in taken.iter().enumerate() {
        let raw = raw(&hosts.world, copy)?;
        for (host, code, says) in [
            (Place::First, REFUSED, "'policy'"),
            (Place::Second, REFUSED, "'policy'"),
            (Place::Stranger, KEY_RELEASE, "add-host"),
        ] {
            let copy = place(&hosts.world, hosts.store(host), &raw, Policy::EncryptionSupported)?;
            let done = hosts.admin(host, &["vm", "start", "copy"])?;
            ensure!(done.code == code && done.stderr.contains(says), "{at}: exit code {}: {}", done.code, done.stderr);
            fs::remove_dir_all(copy)?;
        }
        // The control, at the first moment, at the hand-back, and at the last.
        if [0, 2, taken.len() - 1].contains(&number) {
            let copy = place(&hosts.world, hosts.store(Place::Second), &raw, Policy::Shielded)?;
            hosts.second.admin(&["vm", "start", "copy"])?.ok().with_context(|| format!("the control: {at}"))?;
            let console = hosts.second.admin(&["vm", "console", "copy"])?;
            ensure!(console.code == REFUSED, "{at}: a console: exit code {}", console.code);
            hosts.second.admin(&["vm", "stop", "copy", "--force"])?.ok()?;
            fs::remove_dir_all(copy)?;
        }
        println!("  no console: {at}");
    }
    Ok(())
}

/// Goes through a recovery with an agent that dies before and after every step, and copies the RG disk each time.
fn take_copies(world: &mut World) -> Result<Vec<(String, PathBuf)>> {
    let mut taken = Vec::new();
    let folder = world.fabric("copies");
    fs::create_dir(&folder)?;
    let mut take = |world: &World, at: &str| -> Result<()> {
        let copy = folder.join(at);
        fs::copy(rg_disk(world, "dvm")?, &copy)?;
        taken.push((at.to_owned(), copy));
        Ok(())
    };
    for step in [Step::RgDiskMade, Step::Attached] {
        world.dies_at(&EXPORT, &format!("{step}:after"))?;
        take(world, &format!("{step}:after"))?;
    }
    world.admin(&EXPORT)?.ok()?;
    hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
    take(world, "handed-back")?;
    for step in [Step::Detached, Step::Verified, Step::Copied, Step::Swapped, Step::Started, Step::Merged] {
        for when in ["before", "after"] {
            let at = format!("{step}:{when}");
            world.dies_at(&REINSTATE, &at)?;
            world.admin(&["vm", "stop", "dvm", "--force"])?;
            take(world, &at)?;
        }
    }
    world.admin(&REINSTATE)?.ok()?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    Ok(taken)
}

#[derive(Clone, Copy)]
enum Place {
    First,
    Second,
    Stranger,
}

impl Hosts {
    fn store(&self, place: Place) -> PathBuf {
        match place {
            Place::First => self.world.store(),
            Place::Second => self.second.store().to_owned(),
            Place::Stranger => self.stranger.store().to_owned(),
        }
    }

    fn admin(&self, place: Place, args: &[&str]) -> Result<Finished> {
        match place {
            Place::First => self.world.admin(args),
            Place::Second => self.second.admin(args),
            Place::Stranger => self.stranger.admin(args),
        }
    }
}

/// Makes a VM named `copy` in a store from what is on an RG disk; returns its folder.
fn place(world: &World, store: PathBuf, raw: &Path, policy: Policy) -> Result<PathBuf> {
    let device = Device::open(raw)?;
    let manifest = device.manifest()?;
    let shape: Value = serde_json::from_str(&manifest.spec)?;
    let generation = shape["generation"].as_u64().context("no generation")?;
    let mut spec: VmSpec = serde_json::from_value(shape["spec"].clone())?;
    spec.name = "copy".into();
    spec.policy = policy;
    for disk in &mut spec.disks {
        let copy = world.fabric("copy.disk.raw");
        fs::File::create(&copy)?.set_len(disk.size)?;
        *disk = DiskSpec { source: Source::new(copy, Format::Raw), backing: None, ..disk.clone() };
    }
    let vm = store.join("vms/copy");
    let slot = vm.join("slots").join(generation.to_string());
    fs::create_dir_all(vm.join("slots"))?;
    device.bundle()?.unpack(&slot)?;
    fs::write(slot.join("protector.xml"), &manifest.protector)?;
    fs::write(vm.join("current"), format!("{generation}\n"))?;
    fs::write(vm.join("vm.json"), serde_json::to_vec(&spec)?)?;
    Ok(vm)
}

/// The copy as QEMU reads it, its log replayed.
fn raw(world: &World, copy: &Path) -> Result<PathBuf> {
    let raw = world.fabric("rg.raw");
    run_program(Command::new("qemu-img").args(["check", "-q", "-r", "all", "-f", "vhdx"]).arg(copy), b"", SHORT)?;
    convert(copy, "vhdx", &raw, "raw")?;
    Ok(raw)
}

fn convert(from: &Path, from_format: &str, to: &Path, to_format: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", from_format, "-O", to_format]).arg(from).arg(to);
    run_program(&mut command, b"", SHORT)?.ok().map(drop)
}

fn lowered(hosts: &mut Hosts) -> Result<()> {
    for to_fabric in [false, true] {
        hosts.world.admin(&EXPORT)?.ok()?;
        let plan = Plan { policy: Policy::EncryptionSupported, to_fabric, ..Plan::default() };
        hand_back(&hosts.world, "dvm", &plan, |_| Ok(()))?;
        let raw = raw(&hosts.world, &rg_disk(&hosts.world, "dvm")?)?;
        for host in [Place::First, Place::Second, Place::Stranger] {
            let copy = place(&hosts.world, hosts.store(host), &raw, Policy::EncryptionSupported)?;
            let done = hosts.admin(host, &["vm", "start", "copy"])?;
            if to_fabric && !matches!(host, Place::Stranger) {
                done.ok().context("the control")?;
                has_console(hosts, host)?;
                hosts.admin(host, &["vm", "stop", "copy", "--force"])?.ok()?;
            } else {
                ensure!(done.code == KEY_RELEASE, "exit code {}: {}", done.code, done.stderr);
            }
            fs::remove_dir_all(copy)?;
        }
        hosts.world.admin(&ABORT)?.ok()?;
    }
    Ok(())
}

fn has_console(hosts: &Hosts, host: Place) -> Result<()> {
    let mut command = match host {
        Place::First => hosts.world.admin_command(&["vm", "console", "copy"])?,
        Place::Second => hosts.second.admin_command(&["vm", "console", "copy"])?,
        Place::Stranger => bail!("nothing runs there"),
    };
    Console::open(&mut command)?.expect("BdsDxe", SHORT).context("the control").map(drop)
}

/// A manifest slot with good checksums and whatever body.
fn forge(raw: &Path, change: &dyn Fn(&mut Value)) -> Result<()> {
    use std::os::unix::fs::FileExt;
    const SLOTS: [u64; 2] = [0, 2 << 20];
    let device = Device::open(raw)?;
    let manifest = device.manifest()?;
    let sequence = manifest.sequence + 1;
    let mut body = serde_json::to_value(&manifest)?;
    body["sequence"] = json!(sequence);
    change(&mut body);
    let body = body.to_string().into_bytes();
    let mut slot = b"DDRGMAN1".to_vec();
    slot.extend(u32::try_from(body.len())?.to_le_bytes());
    slot.extend([0; 4]);
    slot.extend(sequence.to_le_bytes());
    let digest = Digest::of(&[slot.as_slice(), &body].concat());
    slot.extend(digest.as_bytes());
    slot.extend(body);
    let start = device.layout().manifest().offset;
    let file = fs::OpenOptions::new().write(true).open(raw)?;
    // In both places: none that is older must count instead.
    SLOTS.iter().try_for_each(|at| file.write_all_at(&slot, start + at)).map_err(Into::into)
}

fn flip(raw: &Path, at: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(raw)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

fn altered(world: &mut World) -> Result<()> {
    let before = world.fingerprint("vms/dvm")?;
    world.admin(&EXPORT)?.ok()?;
    hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
    let vhdx = rg_disk(world, "dvm")?;
    let (good, raw) = (world.fabric("good.raw"), world.fabric("altered.raw"));
    convert(&vhdx, "vhdx", &good, "raw")?;
    let device = Device::open(&good)?;
    let (disk, total) = (device.layout().disks()[0].offset, device.layout().total());
    // In the middle of the state in force; beside it lies the state that left.
    let bundle = device.bundle()?.to_bytes();
    let state = memchr::memmem::find(&fs::read(&good)?, &bundle).context("the state is not where it is read")?;
    let state = u64::try_from(state + bundle.len() / 2)?;
    let manifest = device.manifest()?;
    let attempt = |name: &str, spoil: &dyn Fn(&Path) -> Result<()>| -> Result<()> {
        fs::copy(&good, &raw)?;
        spoil(&raw)?;
        convert(&raw, "raw", &vhdx, "vhdx")?;
        let done = world.admin(&REINSTATE)?;
        ensure!([3, 4, 6].contains(&done.code), "{name}: exit code {}: {}{}", done.code, done.stdout, done.stderr);
        ensure!(done.stderr.contains("next:"), "{name}: no next step: {}", done.stderr);
        println!("  refused: {name}");
        Ok(())
    };
    // Both tables: each alone is mended by the other, or refused, as the format's own tests say.
    attempt("the head of both partition tables", &|raw| {
        flip(raw, 512 + 40).and_then(|()| flip(raw, total - 512 + 40))
    })?;
    attempt("a partition's name", &|raw| flip(raw, 1024 + 56))?;
    attempt("a partition's end", &|raw| flip(raw, 1024 + 2 * 128 + 40))?;
    attempt("a longer image", &|raw| Ok(fs::OpenOptions::new().write(true).open(raw)?.set_len(total + (1 << 20))?))?;
    attempt("a shorter image", &|raw| Ok(fs::OpenOptions::new().write(true).open(raw)?.set_len(total - (1 << 20))?))?;
    attempt("a byte of the state", &|raw| flip(raw, state))?;
    attempt("the first byte of the disk", &|raw| flip(raw, disk))?;
    attempt("the last byte of the disk", &|raw| flip(raw, disk + manifest.disks[0].size - 1))?;
    let size = manifest.disks[0].size;
    let other = "7".repeat(64);
    let digest = other.as_str();
    let cases: [(&str, &str, Value); 17] = [
        ("a disk larger than declared", "/disks/0/size", json!(size - 4096)),
        ("a disk smaller than declared", "/disks/0/size", json!(size + 4096)),
        ("a disk of no size", "/disks/0/size", json!(0)),
        ("a disk of a size that overflows", "/disks/0/size", json!(u64::MAX)),
        ("another partition's name", "/disks/0/name", json!("dd-disk-1")),
        ("a path for a name", "/disks/0/name", json!("../../dev/sda")),
        ("no disks", "/disks", json!([])),
        ("another place", "/disks/0/index", json!(1)),
        ("another recovery", "/recovery_id", json!("00000000-0000-4000-8000-000000000000")),
        ("another VM", "/vm_id", json!("00000000-0000-4000-8000-000000000000")),
        ("another version", "/version", json!(2)),
        ("another mode", "/mode", json!("overlay")),
        ("the other direction", "/direction", json!("outbound")),
        ("another state's digest", "/state_sha256", json!(digest)),
        ("no receipt", "/receipt", Value::Null),
        ("a receipt that is none", "/receipt", json!("bm9uZQ==")),
        ("a key protector that is none", "/protector", json!("PFByb3RlY3Rvci8+")),
    ];
    for (name, place, value) in cases {
        attempt(name, &|raw| {
            forge(raw, &|body| {
                if let Some(field) = body.pointer_mut(place) {
                    *field = value.clone();
                }
            })
        })?;
    }
    attempt("a field too many", &|raw| forge(raw, &|body| body["console"] = json!(true)))?;
    attempt("the key protector that left", &|raw| {
        forge(raw, &|body| body["protector"] = json!(outbound_protector(world).unwrap_or_default()))
    })?;
    world.admin(&ABORT)?.ok()?;
    ensure!(world.fingerprint("vms/dvm")? == before, "the original changed");

    world.admin(&EXPORT)?.ok()?;
    hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
    // Through the same tools as the altered ones.
    let vhdx = rg_disk(world, "dvm")?;
    convert(&vhdx, "vhdx", &raw, "raw")?;
    forge(&raw, &|_| {})?;
    convert(&raw, "raw", &vhdx, "vhdx")?;
    world.admin(&REINSTATE)?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok().map(drop)
}

/// In base64, as a manifest has it.
fn outbound_protector(world: &World) -> Result<String> {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let vm = world.store().join("vms/dvm");
    let current = fs::read_to_string(vm.join("current"))?;
    Ok(BASE64_STANDARD.encode(fs::read(vm.join("slots").join(current.trim()).join("protector.xml"))?))
}

fn foreign(world: &mut World) -> Result<()> {
    world.admin(&EXPORT)?.ok()?;
    hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
    let earlier = world.fabric("earlier.vhdx");
    fs::copy(rg_disk(world, "dvm")?, &earlier)?;
    world.admin(&ABORT)?.ok()?;

    world.admin(&EXPORT)?.ok()?;
    hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
    world.admin(&["recovery", "export", "other", "--to", "garage", "--copy"])?.ok()?;
    hand_back(world, "other", &Plan::default(), |_| Ok(()))?;
    let own = rg_disk(world, "dvm")?;
    let kept = world.fabric("own.vhdx");
    fs::copy(&own, &kept)?;
    for (what, rg) in [("an earlier recovery's", earlier), ("another VM's", rg_disk(world, "other")?)] {
        fs::copy(rg, &own)?;
        let done = world.admin(&REINSTATE)?;
        ensure!(
            done.code == BAD_INPUT && done.stderr.contains("'recovery_id'"),
            "{what}: {}: {}",
            done.code,
            done.stderr
        );
    }
    fs::copy(kept, &own)?;
    world.admin(&REINSTATE)?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    world.admin(&["recovery", "abort", "other"])?.ok().map(drop)
}
