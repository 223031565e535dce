//! What a tenant with full control of their garage hands back, and what the fabric's host makes of it. Whatever is
//! wrong, the refusal names it, the original is untouched, and `abort` gives it back.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::{BAD_INPUT, KEY_RELEASE, REFUSED, WRONG_STATE};
use drydock_tests::process::run;
use drydock_tests::tenant::{Draft, Plan, hand_back, overlay, recovery_guardian, repair, rg_disk};
use drydock_tests::world::World;
use machine::Policy;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

struct Bench {
    world: World,
    export: Vec<&'static str>,
    failures: Vec<String>,
    cases: usize,
}

impl Bench {
    fn new(more: &[&'static str]) -> Result<Self> {
        let mut export = vec!["recovery", "export", "dvm", "--to", "vmre"];
        export.extend(more);
        let world = World::new()?;
        world.create_blank("dvm", &["--memory", "256"])?;
        world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
        Ok(Bench { world, export, failures: Vec::new(), cases: 0 })
    }

    /// Exports, hands back what `prepare` makes of it, expects `reinstate` to refuse, aborts, and compares.
    fn case(&mut self, name: &str, code: i32, says: &str, prepare: impl FnOnce(&World) -> Result<()>) {
        self.cases += 1;
        match self.try_case(code, says, prepare) {
            Ok(()) => println!("  refused: {name}"),
            Err(error) => {
                println!("  NOT refused as it should be: {name}: {error:#}");
                self.failures.push(name.to_owned());
            }
        }
    }

    fn try_case(&self, code: i32, says: &str, prepare: impl FnOnce(&World) -> Result<()>) -> Result<()> {
        let world = &self.world;
        let before = world.fingerprint("vms/dvm")?;
        world.admin_json(&self.export)?;
        let result = prepare(world).context("preparing").and_then(|()| {
            let reinstated = world.admin(&["recovery", "reinstate", "dvm"])?;
            ensure!(reinstated.code == code, "exit code {}, not {code}: {}", reinstated.code, reinstated.stderr);
            ensure!(reinstated.stderr.contains(says), "it does not say {says:?}: {}", reinstated.stderr);
            ensure!(reinstated.stderr.contains("next:"), "no next step: {}", reinstated.stderr);
            let started = world.admin(&["vm", "start", "dvm"])?;
            ensure!(started.code == WRONG_STATE, "a VM in recovery starts: {}", started.stdout);
            Ok(())
        });
        world.admin(&["recovery", "abort", "dvm"])?.ok().context("abort")?;
        result?;
        ensure!(world.fingerprint("vms/dvm")? == before, "the original changed");
        Ok(())
    }

    fn spoiled(&mut self, name: &str, says: &str, spoil: impl FnOnce(&mut Draft) -> Result<()>) {
        self.case(name, BAD_INPUT, says, |world| hand_back(world, "dvm", &Plan::default(), spoil));
    }
}

impl Bench {
    /// The same garage, honest, is taken back and started.
    fn control(self) -> Result<()> {
        let world = &self.world;
        world.admin_json(&self.export)?;
        hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
        let report = world.admin_json(&["recovery", "reinstate", "dvm"])?;
        assert_eq!(report["closed"], true);
        assert_eq!(world.admin_json(&["vm", "show", "dvm"])?["state"], "running");
        world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
        assert!(self.failures.is_empty(), "{} of {} cases: {:?}", self.failures.len(), self.cases, self.failures);
        self.world.close()
    }
}

#[test]
fn nothing_wrong_comes_back() -> Result<()> {
    let mut bench = Bench::new(&["--copy"])?;

    bench.case("nothing handed back yet", WRONG_STATE, "has not handed dvm back yet", |_| Ok(()));
    bench.spoiled("another recovery's manifest", "'recovery_id'", |draft| {
        draft.manifest.recovery_id = Uuid::new_v4();
        Ok(())
    });
    bench.spoiled("another VM's manifest", "'vm_id'", |draft| {
        draft.manifest.vm_id = Uuid::new_v4();
        Ok(())
    });
    bench.spoiled("no receipt", "'receipt' is missing", |draft| {
        draft.with_receipt = false;
        Ok(())
    });
    bench.spoiled("an earlier recovery's receipt", "'receipt.recovery_id'", |draft| {
        draft.receipt.recovery_id = Uuid::new_v4();
        Ok(())
    });
    bench.spoiled("another VM's receipt", "'receipt.vm_id'", |draft| {
        draft.receipt.vm_id = Uuid::new_v4();
        Ok(())
    });
    bench.spoiled(
        "a receipt signed by somebody else",
        "'receipt': it is not signed by the recovery guardian",
        |draft| {
            draft.signer = recovery_guardian(Duration::hours(1))?;
            Ok(())
        },
    );
    bench.spoiled("a receipt for another protector that left", "'receipt.ingress_protector'", |draft| {
        draft.receipt.ingress_protector = "0".repeat(64);
        Ok(())
    });
    bench.spoiled("a receipt for another protector that came", "'receipt.egress_protector'", |draft| {
        draft.keep_digests = true;
        draft.receipt.egress_protector = "0".repeat(64);
        Ok(())
    });
    bench.spoiled("state that was not signed", "'receipt.state'", |draft| {
        draft.keep_digests = true;
        let vars = draft.state.iter_mut().find(|(name, _)| name == "vars.luks").context("no variables")?;
        vars.1[5000] ^= 1;
        Ok(())
    });
    bench.spoiled("a disk altered after it was signed", "disk 0 is not what the owner signed", |draft| {
        draft.late_write = Some((1 << 20, b"altered".to_vec()));
        Ok(())
    });
    bench.spoiled("a copied disk without a digest", "'receipt.disks'", |draft| {
        draft.receipt.disks[0].sha256 = None;
        Ok(())
    });
    bench.spoiled("another disk's serial number", "'receipt.disks'", |draft| {
        draft.receipt.disks[0].serial = "another".into();
        Ok(())
    });
    bench.spoiled("an old generation", "'generation'", |draft| {
        draft.generation -= 1;
        Ok(())
    });
    bench.case("a stranger's protector", BAD_INPUT, "its owner is not the VM's owner", |world| {
        use key_protector::{Guardian, KeyKind, Protector, Role};
        let now = OffsetDateTime::now_utc();
        let stranger = Guardian::generate(
            "tenant",
            Role::Owner,
            KeyKind::Rsa2048,
            now - Duration::hours(1),
            now + Duration::hours(1),
        )?;
        hand_back(world, "dvm", &Plan::default(), |draft| {
            let recovery = draft.signer.public().clone();
            let (protector, _) = Protector::new(&stranger, &[recovery], now)?;
            draft.protector = protector.roll(&draft.signer, protector.wrappings(), now)?.egress_protector;
            Ok(())
        })
    });
    bench.case("a protector that its owner signed", BAD_INPUT, "not signed by a recovery guardian", |world| {
        let owner = drydock_tests::tenant::owner(world)?;
        hand_back(world, "dvm", &Plan::default(), |draft| {
            let now = OffsetDateTime::now_utc();
            draft.protector = draft.protector.roll(&owner, draft.protector.wrappings(), now)?.egress_protector;
            Ok(())
        })
    });
    bench.case("an expired recovery guardian", BAD_INPUT, "its key protector does not verify", |world| {
        let plan = Plan { lifetime: Duration::seconds(8), ..Plan::default() };
        let mut end = None;
        hand_back(world, "dvm", &plan, |draft| {
            end = Some(draft.signer.public().not_after());
            Ok(())
        })?;
        // Its lifetime is what is tested: nothing but the clock can be awaited.
        let left = end.context("no guardian")? + Duration::seconds(1) - OffsetDateTime::now_utc();
        std::thread::sleep(left.try_into().unwrap_or_default());
        Ok(())
    });
    // These pass every check that needs no key; the sealed record does not let them run.
    bench.case("a policy left lowered", REFUSED, "policy", |world| {
        let plan = Plan { policy: Policy::EncryptionSupported, ..Plan::default() };
        hand_back(world, "dvm", &plan, |_| Ok(()))
    });
    bench.case("a record sealed for another VM", REFUSED, "does not belong", |world| {
        hand_back(world, "dvm", &Plan { vm_id: Some(Uuid::new_v4()), ..Plan::default() }, |_| Ok(()))
    });
    bench.case("a protector that the fabric cannot open", KEY_RELEASE, "key", |world| {
        hand_back(world, "dvm", &Plan { to_fabric: false, ..Plan::default() }, |_| Ok(()))
    });
    bench.case("an RG disk cut short", BAD_INPUT, "rg.vhdx", |world| {
        let disk = rg_disk(world, "dvm")?;
        let file = std::fs::OpenOptions::new().write(true).open(&disk)?;
        Ok(file.set_len(file.metadata()?.len() / 2)?)
    });
    bench.case("a text file for an RG disk", BAD_INPUT, "rg.vhdx", |world| {
        Ok(std::fs::write(rg_disk(world, "dvm")?, "not a disk at all\n")?)
    });

    bench.control()
}

/// The same in overlay mode, where the disks never left the host.
#[test]
fn nothing_wrong_comes_back_on_an_overlay() -> Result<()> {
    let mut bench = Bench::new(&[])?;
    bench.case("nothing handed back yet", WRONG_STATE, "has not handed dvm back yet", |_| Ok(()));
    bench.spoiled("another recovery's manifest", "'recovery_id'", |draft| {
        draft.manifest.recovery_id = Uuid::new_v4();
        draft.manifest.disks[0].name = garage::layout::overlay_serial(draft.manifest.recovery_id, 0);
        Ok(())
    });
    bench.spoiled("an earlier recovery's receipt", "'receipt.recovery_id'", |draft| {
        draft.receipt.recovery_id = Uuid::new_v4();
        Ok(())
    });
    bench.spoiled("a digest that nobody could check", "'receipt.disks'", |draft| {
        draft.receipt.disks[0].sha256 = Some("0".repeat(64));
        Ok(())
    });
    bench.spoiled("another disk's size", "'receipt.disks'", |draft| {
        draft.receipt.disks[0].size += 4096;
        Ok(())
    });
    let qemu_img = |world: &World, before: &[&str], after: &[&str]| -> Result<()> {
        let mut command = Command::new("qemu-img");
        command.args(before).arg(overlay(world, "dvm")?).args(after);
        run(&mut command, b"", std::time::Duration::from_secs(60))?.ok().map(drop)
    };
    bench.case("a longer overlay", BAD_INPUT, "overlay-0.qcow2", |world| {
        hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
        qemu_img(world, &["resize", "-q", "-f", "qcow2"], &["+1M"])
    });
    bench.case("an overlay that names a file of the host", BAD_INPUT, "backing file", |world| {
        hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
        qemu_img(world, &["rebase", "-u", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"], &[])
    });
    bench.case("a damaged overlay", BAD_INPUT, "overlay-0.qcow2", |world| {
        use std::os::unix::fs::FileExt;
        repair(world, "dvm", 1 << 20, 1 << 16)?;
        hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
        // The level 1 table, in the fourth cluster, now points into nowhere.
        let file = std::fs::OpenOptions::new().write(true).open(overlay(world, "dvm")?)?;
        Ok(file.write_all_at(&[0x80, 0, 0, 0, 0x77, 0, 0, 0], 3 << 16)?)
    });
    bench.case("no overlay", BAD_INPUT, "disk 0", |world| {
        hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
        Ok(std::fs::remove_file(overlay(world, "dvm")?)?)
    });
    bench.case("a policy left lowered", REFUSED, "policy", |world| {
        let plan = Plan { policy: Policy::EncryptionSupported, ..Plan::default() };
        hand_back(world, "dvm", &plan, |_| Ok(()))
    });
    bench.control()
}
