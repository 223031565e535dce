//! The memory of every command, with a disk that is far larger than it may be: of the command itself, the agent that does the
//! work, and each tool that this starts, the largest by itself. VMs have what they are given, and are left out.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::garage::Garage;
use drydock_tests::process::Finished;
use drydock_tests::tenant::{Plan, hand_back, hand_back_disk};
use drydock_tests::world::{SWITCH, World, path};

use crate::copy::fill;
use crate::peak::peak_kib;
use crate::{Figures, put};

const DISK: u64 = 8 << 30;
const SAMPLE: Duration = Duration::from_millis(5);
const OFF: [&str; 4] = ["vm", "stop", "dvm", "--force"];
const EXPORT: [&str; 5] = ["recovery", "export", "dvm", "--to", "vmre"];
const EXPORT_COPY: [&str; 6] = ["recovery", "export", "dvm", "--to", "vmre", "--copy"];
const REINSTATE: [&str; 3] = ["recovery", "reinstate", "dvm"];
const KEEP: [&str; 4] = ["recovery", "reinstate", "dvm", "--keep-original"];
const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let world = World::new()?;
    let mut second = world.second_host()?;
    let disk = world.fabric("large.raw");
    // Data that is to be copied, in as many pieces as a used disk has.
    fill(&disk, DISK, 16)?;
    world.create_vm("dvm", &disk, &["--memory", "256"])?;
    fs::remove_file(&disk)?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    second.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    let mut peaks = Peaks::default();
    let admin = |args: &[&str]| world.admin(args);

    peaks.of("export", || admin(&EXPORT))?;
    in_the_garage(&world, &mut peaks)?;
    peaks.of("reinstate", || admin(&REINSTATE))?;
    admin(&OFF)?.ok()?;

    for (name, end) in [("commit", &["recovery", "commit", "dvm"][..]), ("rollback", &["recovery", "rollback", "dvm"])]
    {
        admin(&EXPORT)?.ok()?;
        hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
        peaks.of("reinstate_keep", || admin(&KEEP))?;
        admin(&OFF)?.ok()?;
        peaks.of(name, || admin(end))?;
        admin(&OFF)?;
    }

    peaks.of("export_copy", || admin(&EXPORT_COPY))?;
    peaks.of("abort", || admin(&ABORT))?;
    admin(&EXPORT_COPY)?.ok()?;
    hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
    peaks.of("reinstate_copy", || admin(&REINSTATE))?;
    admin(&OFF)?.ok()?;

    let file = path(&world.fabric("dvm.vhdx"));
    peaks.of("export_to_file", || admin(&["recovery", "export", "dvm", "--to-file", &file]))?;
    peaks.of("attach", || second.admin(&["recovery", "attach", &file, "--to", "vmre"]))?;
    hand_back_disk(&world, Path::new(&file), &Plan::default(), |_| Ok(()))?;
    peaks.of("detach", || second.admin(&["recovery", "detach", "dvm"]))?;
    peaks.of("reinstate_from", || admin(&["recovery", "reinstate", "dvm", "--from", &file]))?;

    for (name, kib) in &peaks.0 {
        put(figures, &format!("peak_mib_{name}"), *kib as f64 / 1024.0);
    }
    put(figures, "peak_mib", peaks.0.values().copied().max().context("nothing was measured")? as f64 / 1024.0);
    second.shut_down()?;
    world.close()
}

/// The owner's commands, in a garage that is played by this machine, and on the tenant host.
fn in_the_garage(world: &World, peaks: &mut Peaks) -> Result<()> {
    let garage = Garage::new(world, "dvm")?;
    let [key, request, grant] = ["vmre.pem", "request", "grant"].map(|name| path(&world.offline(name)));
    garage.run(&["garage", "init", "--out", &key])?.ok()?;
    world.tenant(&["garage", "import", &key, "--name", "vmre"])?.ok()?;
    peaks.of("import", || garage.run(&["recovery", "import", "--out", &request, "--switch", SWITCH]))?;
    peaks.of("grant", || {
        world.tenant(&["recovery", "grant", &request, "--owner", "tenant", "--yes", "--out", &grant])
    })?;
    peaks.of("lower", || garage.run(&["recovery", "import", "--grant", &grant]))?;
    peaks.of("finish", || garage.run(&["recovery", "finish"]))?;
    garage.hand_in(world, "dvm")?;
    garage.close()
}

/// The largest resident set of each command, in KiB.
#[derive(Default)]
struct Peaks(HashMap<&'static str, u64>);

impl Peaks {
    fn of(&mut self, name: &'static str, command: impl FnOnce() -> Result<Finished>) -> Result<()> {
        for process in ours()? {
            // proc(5): 5 makes the present size the peak.
            let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
        }
        let (end, peak) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| -> Result<()> {
            let sampler = scope.spawn(|| -> Result<()> {
                while !end.load(Ordering::Relaxed) {
                    for process in ours()? {
                        peak.fetch_max(peak_kib(process).unwrap_or(0), Ordering::Relaxed);
                    }
                    std::thread::sleep(SAMPLE);
                }
                Ok(())
            });
            let done = command();
            end.store(true, Ordering::Relaxed);
            sampler.join().ok().context("the sampler panicked")??;
            done?.ok().context(name).map(drop)
        })?;
        let peak = peak.into_inner();
        ensure!(peak > 0, "nothing was seen of {name}");
        self.0.entry(name).and_modify(|most| *most = peak.max(*most)).or_insert(peak);
        Ok(())
    }
}

/// What runs below this process, VMs left out: agents, their tools, commands.
fn ours() -> Result<Vec<u32>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((name, fields)) = stat.rsplit_once(')') else { continue };
        let is_vm = ["(qemu-system", "(swtpm"].iter().any(|vm| name.contains(vm));
        if let Some(parent) = fields.split_whitespace().nth(1).and_then(|parent| parent.parse::<u32>().ok())
            && !is_vm
        {
            parents.insert(process, parent);
        }
    }
    let me = std::process::id();
    let below =
        |process: u32| std::iter::successors(parents.get(&process), |parent| parents.get(parent)).any(|p| *p == me);
    Ok(parents.keys().copied().filter(|process| below(*process)).collect())
}
