//! Several people at work on one host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::BUSY;
use drydock_tests::process::Service;
use drydock_tests::tenant::{Plan, hand_back, repair};
use drydock_tests::world::World;

/// Two operators run the same command: one goes on, the other is told who is at work.
#[test]
fn the_second_operator_is_told_who_is_first() -> Result<()> {
    let world = World::new()?;
    // Large enough that the second one is there long before the first has ended.
    world.create_large("dvm", 3072)?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;

    let export = ["recovery", "export", "dvm", "--to", "vmre", "--copy"];
    let mut command = world.admin_command(&export)?;
    let (first, _) = Service::start("the export", &mut command, "copying dvm", Duration::from_secs(60))?;
    let second = world.admin(&export)?;
    ensure!(second.code == BUSY, "exit code {}: {}{}", second.code, second.stdout, second.stderr);
    let named = second.stderr.contains("recovery-export by user 0 (process");
    ensure!(named, "it does not say who: {}", second.stderr);
    first.died(Duration::from_secs(120))?;
    // The same command again finds everything done.
    world.admin(&export)?.ok()?;
    world.admin(&["recovery", "abort", "dvm"])?.ok()?;
    world.close()
}

/// Three VMs in three garages, all at once: none gets what is another's.
#[test]
fn recoveries_beside_each_other_do_not_meet() -> Result<()> {
    let world = World::new()?;
    for n in 1..=3 {
        world.create_blank(&format!("dvm-{n}"), &["--memory", "128"])?;
        world.create_blank(&format!("vmre-{n}"), &["--memory", "1024", "--nested"])?;
    }
    let all = |work: &(dyn Fn(u64) -> Result<()> + Sync)| -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=3).map(|n| scope.spawn(move || work(n))).collect();
            threads.into_iter().enumerate().try_for_each(|(n, thread)| {
                thread.join().ok().context("a thread panicked")?.with_context(|| format!("of recovery {}", n + 1))
            })
        })
    };
    all(&|n| {
        let (dvm, vmre) = (format!("dvm-{n}"), format!("vmre-{n}"));
        world.admin(&["recovery", "export", &dvm, "--to", &vmre])?.ok()?;
        repair(&world, &dvm, n << 20, 64 << 10)?;
        hand_back(&world, &dvm, &Plan::default(), |_| Ok(()))
    })?;
    all(&|n| world.admin(&["recovery", "reinstate", &format!("dvm-{n}")])?.ok().map(drop))?;
    for n in 1..=3u64 {
        let dvm = format!("dvm-{n}");
        ensure!(world.admin_json(&["vm", "show", &dvm])?["state"] == "running", "{dvm} does not run");
        world.admin(&["vm", "stop", &dvm, "--force"])?.ok()?;
        for other in 1..=3u64 {
            let changed = world.disk_holds(&dvm, other << 20, 64 << 10, 77)?;
            ensure!(changed == (n == other), "{dvm} and the repair of dvm-{other}");
        }
    }
    world.close()
}
