//! A whole recovery on real VMs, as the people in it live it: on one host, or with the garage on another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use key_protector::{Guardian, Protector};
use serde_json::Value;
use time::OffsetDateTime;

use crate::console::Console;
use crate::exit::{REFUSED, WRONG_STATE};
use crate::host::Host;
use crate::images;
use crate::process::Finished;
use crate::report::Report;
use crate::world::{DVM_ADDRESS, VMRE_ADDRESS, World, path};

pub const ADMIN: &str = "fabric admin";
pub const OWNER: &str = "owner, on the VM";
pub const GARAGE: &str = "owner, in the garage";
pub const TENANT: &str = "owner, on the tenant host";

const BOOT: Duration = Duration::from_secs(600);
const LONG: Duration = Duration::from_secs(600);
const NESTED: Duration = Duration::from_secs(900);
/// What the owner logs in with on the console; lives for the length of the run.
const PASSWORD: &str = "harbour-7-lantern";
/// The RG disk's name on each of two hosts.
const CARRIED: &str = "dvm.vhdx";
const NETWORK: &str = "/etc/systemd/network/10-lan.network";
/// Ends each scripted command line on the console. Typed in two parts, so that its echo is not mistaken for it.
const DONE: &str = "step-is-done";
const SAY_DONE: &str = "; echo step-is\"\"-done";

/// What the steps hand on to each other.
pub struct Recovery {
    /// The garage's host, where it is not the VM's. Dropped before the world.
    second: Option<Host>,
    pub world: World,
    pub report: Report,
    marker: String,
    dvm_mac: String,
    /// The recovery guardian's private key, copied out by a curious owner while it exists.
    stolen: Option<Guardian>,
    /// How long each command on the way to the console took, SSH included; and, as `login`, when the login was there
    /// after the last of them began.
    pub seconds: BTreeMap<&'static str, f64>,
}

impl Recovery {
    /// A fabric with both VMs made, on one host; neither runs yet.
    pub fn prepare() -> Result<Self> {
        Self::prepare_in(World::new()?, None)
    }

    /// The same with the garage on a second host.
    pub fn prepare_across() -> Result<Self> {
        let world = World::new()?;
        let second = world.second_host()?;
        Self::prepare_in(world, Some(second))
    }

    fn prepare_in(world: World, second: Option<Host>) -> Result<Self> {
        let images = images::folder()?;
        let disk = world.provision_dvm(&images.join("guest.raw"))?;
        let dvm = world.create_vm("dvm", &disk, &["--memory", "768"])?;
        std::fs::remove_file(&disk)?;
        let disk = world.provision_vmre(&images.join("garage.raw"))?;
        second.as_ref().unwrap_or(&world).create_vm("vmre", &disk, &["--memory", "3072", "--nested"])?;
        std::fs::remove_file(&disk)?;
        Ok(Recovery {
            marker: uuid::Uuid::new_v4().to_string(),
            dvm_mac: dvm["mac"][0].as_str().context("the VM has no MAC address")?.to_owned(),
            second,
            world,
            report: Report::default(),
            seconds: BTreeMap::new(),
            stolen: None,
        })
    }

    /// Ends everything in order and fails if a process is left.
    pub fn close(self) -> Result<()> {
        if let Some(mut second) = self.second {
            second.shut_down()?;
        }
        self.world.close()
    }

    /// Prints what was done, closes, and fails unless all was told and every step is there and went well.
    pub fn conclude(mut self, told: Result<()>) -> Result<()> {
        if told.is_err() {
            println!("{}", self.world.agent_log());
        }
        self.report.close();
        println!("{}", self.report.table());
        let complete = self.report.ok;
        let closed = self.close();
        told?;
        ensure!(complete, "a step is missing or failed");
        closed
    }

    /// Everything from the first start to the proof that the temporary key is dead.
    pub fn run(&mut self) -> Result<()> {
        self.start_and_break()?;
        self.export()?;
        self.import_and_grant()?;
        self.lower()?;
        self.repair()?;
        self.copy_the_key()?;
        self.return_home()
    }

    fn step(&mut self, id: &str, actor: &str, what: &str, work: impl FnOnce(&World) -> Result<String>) -> Result<()> {
        self.step_across(id, actor, what, |world, _| work(world))
    }

    /// A step that may take two hosts.
    fn step_across(
        &mut self,
        id: &str,
        actor: &str,
        what: &str,
        work: impl FnOnce(&World, Option<&Host>) -> Result<String>,
    ) -> Result<()> {
        let (world, second) = (&self.world, self.second.as_ref());
        self.report.step(id, actor, what, || work(world, second))
    }

    pub fn start_and_break(&mut self) -> Result<()> {
        let marker = self.marker.clone();
        let mac = self.dvm_mac.clone();
        let what = "starts the shielded VM; its first boot encrypts its disk";
        self.step_across("dvm-shielded-start", ADMIN, what, |world, second| {
            world.admin(&["vm", "start", "dvm"])?.ok()?;
            // The garage boots beside it.
            second.unwrap_or(world).admin(&["vm", "start", "vmre"])?.ok()?;
            let dvm = world.ssh(DVM_ADDRESS)?;
            dvm.wait(BOOT)?;
            let facts = dvm.ok(
                "cryptsetup status root | grep -o 'type: *LUKS2'; od -An -tu1 -j4 -N1 /sys/firmware/efi/efivars/SecureBoot-*; ls /dev/tpmrm0",
                LONG,
            )?;
            ensure!(facts.contains("LUKS2") && facts.contains("/dev/tpmrm0"), "not shielded: {facts}");
            ensure!(facts.split_whitespace().any(|w| w == "1"), "Secure Boot is off: {facts}");
            let input = format!("root:{PASSWORD}\n");
            let set = crate::process::run(&mut dvm.command("chpasswd"), input.as_bytes(), LONG)?;
            set.ok().context("cannot set the password")?;
            dvm.ok(&format!("echo {marker} > /root/ledger; sync"), LONG)?;
            Ok("LUKS2 root, Secure Boot on, vTPM present; the owner left a file in it".into())
        })?;
        self.step(
            "dvm-broken",
            OWNER,
            "mistypes an address and restarts the VM: nobody reaches it any more",
            |world| {
                let dvm = world.ssh(DVM_ADDRESS)?;
                dvm.ok(&format!("sed -i 's/^Address=.*/Address=10.99.99.10\\/24/' {NETWORK}; sync"), LONG)?;
                world.admin(&["vm", "stop", "dvm"])?.ok()?;
                world.admin(&["vm", "start", "dvm"])?.ok()?;
                world.wait_for_mac(&mac, BOOT)?;
                ensure!(!dvm.reachable(), "the VM still answers");
                Ok(format!("{mac} talks on the switch, but {DVM_ADDRESS} does not answer"))
            },
        )?;
        self.step("fabric-console-refused", ADMIN, "tries to look at its console", |world| {
            refused(world, &["vm", "console", "dvm"])
        })?;
        self.know_the_garage()
    }

    /// When the garage is provisioned, its owner takes its key to the tenant host.
    fn know_the_garage(&self) -> Result<()> {
        let vmre = self.world.ssh(VMRE_ADDRESS)?;
        vmre.wait(BOOT)?;
        let file = self.world.offline("vmre.pem");
        vmre.ok("drydock garage init --out /root/vmre.pem", LONG)?;
        vmre.get("/root/vmre.pem", &file)?;
        self.world.tenant(&["garage", "import", &path(&file), "--name", "vmre"])?.ok().map(drop)
    }

    pub fn export(&mut self) -> Result<()> {
        let mut seconds = 0.0;
        let what = "exports the damaged VM onto an RG disk and attaches it to the garage";
        self.step_across("export", ADMIN, what, |world, second| {
            let Some(second) = second else {
                let done = world.admin(&["recovery", "export", "dvm", "--to", "vmre", "--stop", "--json"])?.ok()?;
                seconds = done.seconds;
                return sentence(&done.json()?["result"]);
            };
            let (here, there) = (world.fabric(CARRIED), second.fabric(CARRIED));
            world.admin(&["recovery", "export", "dvm", "--to-file", &path(&here), "--stop"])?.ok()?;
            std::fs::rename(&here, &there).context("carrying the RG disk to the other host")?;
            sentence(&second.admin_json(&["recovery", "attach", &path(&there), "--to", "vmre"])?)
        })?;
        self.seconds.insert("export", seconds);
        Ok(())
    }

    pub fn import_and_grant(&mut self) -> Result<()> {
        let (mut import, mut grant) = (0.0, 0.0);
        self.step("import", GARAGE, "imports it there and writes a request to the tenant host", |world| {
            let vmre = world.ssh(VMRE_ADDRESS)?;
            vmre.ok("udevadm settle", LONG)?;
            import = vmre.run("drydock recovery import --out /root/dvm.recovery-request", LONG)?.ok()?.seconds;
            vmre.get("/root/dvm.recovery-request", &world.offline("dvm.recovery-request"))?;
            let denied = vmre.run("drydock vm start dvm", LONG)?;
            ensure!(denied.code == WRONG_STATE, "an ungranted VM starts: {}", denied.stdout);
            Ok("request signed by a fresh recovery guardian; the VM does not start without a grant".into())
        })?;
        self.step("grant", TENANT, "grants it there, offline, with the owner's key", |world| {
            let request = path(&world.offline("dvm.recovery-request"));
            let out = path(&world.offline("dvm.recovery-grant"));
            let done = world
                .tenant(&["recovery", "grant", &request, "--owner", "tenant", "--yes", "--out", &out, "--json"])?
                .ok()?;
            grant = done.seconds;
            let answer = done.json()?;
            let until = answer["result"]["summary"]["not_after"].as_str().context("no end")?.to_owned();
            Ok(format!("good for this garage only, until {until}"))
        })?;
        self.seconds.extend([("import", import), ("grant", grant)]);
        Ok(())
    }

    pub fn lower(&mut self) -> Result<()> {
        let mut seconds = 0.0;
        self.step(
            "policy-lowered",
            GARAGE,
            "brings the grant in: the policy is lowered, in the garage and nowhere else",
            |world| {
                let vmre = world.ssh(VMRE_ADDRESS)?;
                vmre.put(&world.offline("dvm.recovery-grant"), "/root/dvm.recovery-grant")?;
                seconds = vmre.run("drydock recovery import --grant /root/dvm.recovery-grant", LONG)?.ok()?.seconds;
                let vm = show(vmre.ok("drydock vm show dvm --json", LONG)?)?;
                ensure!(vm["policy"] == "encryption-supported", "policy in the garage: {}", vm["policy"]);
                let at_home = world.admin_json(&["vm", "show", "dvm"])?;
                ensure!(at_home["policy"] == "shielded", "policy on the fabric: {}", at_home["policy"]);
                Ok("encryption-supported in the garage, shielded on the fabric".into())
            },
        )?;
        self.seconds.insert("lower", seconds);
        Ok(())
    }

    pub fn repair(&mut self) -> Result<()> {
        let marker = self.marker.clone();
        let (mut started_in, mut login_after) = (0.0, 0.0);
        self.report.step(
            "console-repair",
            GARAGE,
            "starts it nested, logs in on the console and repairs the address",
            || {
                let world = &self.world;
                let vmre = world.ssh(VMRE_ADDRESS)?;
                let start = Instant::now();
                let started = vmre.run("drydock vm start dvm", LONG)?.ok()?;
                let nested = started.stderr.contains("under kvm");
                let can_nest = vmre.run("grep -qwE 'vmx|svm' /proc/cpuinfo", LONG)?.code == 0;
                ensure!(nested || !can_nest, "the garage does not use its KVM: {}", started.stderr);
                let mut console = Console::open(&mut vmre.command("drydock vm console dvm"))?;
                console.expect("login:", NESTED)?;
                let under = if nested { "nested KVM" } else { "TCG, without KVM in the garage" };
                let booted = start.elapsed().as_secs();
                started_in = started.seconds;
                login_after = start.elapsed().as_secs_f64();
                console.type_line("root")?;
                console.expect("assword:", LONG)?;
                console.type_line(PASSWORD)?;
                console.expect("# ", LONG)?;
                console.type_line(&format!("cat /root/ledger{SAY_DONE}"))?;
                let shown = console.expect(DONE, LONG)?;
                ensure!(shown.contains(&marker), "the owner's file is not there: {shown}");
                console.type_line(&format!(
                    "sed -i 's,^Address=.*,Address={DVM_ADDRESS}/24,' {NETWORK} && networkctl reload && sync{SAY_DONE}"
                ))?;
                console.expect(DONE, LONG)?;
                // Nested, but on the fabric's own network again.
                world.ssh(DVM_ADDRESS)?.wait(LONG)?;
                console.type_line("exit")?;
                Ok(format!("nested boot to the login in {booted} s under {under}; {DVM_ADDRESS} answers again"))
            },
        )?;
        self.seconds.extend([("start", started_in), ("login", login_after)]);
        Ok(())
    }

    /// A copy of the recovery guardian's private key, while it exists: for the proof at the end.
    pub fn copy_the_key(&mut self) -> Result<()> {
        let vmre = self.world.ssh(VMRE_ADDRESS)?;
        let pem = vmre.ok("cat /var/lib/drydock/guardians/recovery-*.pem", LONG)?;
        self.stolen = Some(Guardian::from_pem(&pem).context("the recovery guardian cannot be read")?);
        Ok(())
    }

    pub fn return_home(&mut self) -> Result<()> {
        self.step("finish", GARAGE, "raises the policy and hands the VM back", |world| {
            let vmre = world.ssh(VMRE_ADDRESS)?;
            let report = show(vmre.ok("drydock recovery finish --stop --json", LONG)?)?;
            let left = vmre.ok("ls /var/lib/drydock/guardians /var/lib/drydock/vms", LONG)?;
            ensure!(!left.contains("recovery-") && !left.contains("dvm"), "left in the garage: {left}");
            sentence(&report)
        })?;
        let what = "verifies what came back, puts it in its place and starts it";
        self.step_across("reinstate", ADMIN, what, |world, second| {
            let back = world.fabric(CARRIED);
            let mut reinstate = vec!["recovery", "reinstate", "dvm"];
            let from = path(&back);
            if let Some(second) = second {
                // Out of a garage that runs: its system lets go of it.
                second.admin(&["recovery", "detach", "dvm"])?.ok()?;
                std::fs::rename(second.fabric(CARRIED), &back).context("carrying the RG disk back")?;
                reinstate.extend(["--from", &from]);
            }
            let report = world.admin_json(&reinstate)?;
            ensure!(report["closed"] == true, "the recovery is still open: {report}");
            sentence(&report)
        })?;
        let marker = self.marker.clone();
        self.step("dvm-healthy", OWNER, "is back in, with everything that was there", |world| {
            let dvm = world.ssh(DVM_ADDRESS)?;
            let seconds = dvm.wait(BOOT)?;
            let ledger = dvm.ok("cat /root/ledger", LONG)?;
            ensure!(ledger.trim() == marker, "the owner's file changed: {ledger}");
            Ok(format!("reached by SSH after {seconds:.0} s; the owner's file is unchanged"))
        })?;
        self.step("fabric-console-still-refused", ADMIN, "tries the console once more", |world| {
            refused(world, &["vm", "console", "dvm"])
        })?;
        let stolen = self.stolen.take().context("no recovery key was taken")?;
        self.step("recovery-key-dead", GARAGE, "tries the recovery key, copied before it was destroyed", |world| {
            key_is_dead(world, &stolen)
        })
    }
}

/// The VM's protector on the fabric does not know the recovery guardian any more.
fn key_is_dead(world: &World, key: &Guardian) -> Result<String> {
    let vm = world.admin_json(&["vm", "show", "dvm"])?;
    let generation = vm["generation"].as_u64().context("no generation")?;
    let slot = world.store().join(format!("vms/dvm/slots/{generation}/protector.xml"));
    let protector = Protector::parse(&std::fs::read(&slot)?).context("the protector cannot be read")?;
    match protector.open(key, OffsetDateTime::now_utc()) {
        Ok(_) => bail!("the recovery key still opens the VM"),
        Err(error) => Ok(format!("refused: {error}")),
    }
}

fn show(stdout: String) -> Result<Value> {
    let line = stdout.lines().last().context("no answer")?;
    let mut value: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    Ok(value["result"].take())
}

fn sentence(report: &Value) -> Result<String> {
    Ok(report["sentence"].as_str().with_context(|| format!("no sentence: {report}"))?.to_owned())
}

/// Runs a command that must be refused.
pub fn refused(world: &World, args: &[&str]) -> Result<String> {
    let Finished { code, stderr, .. } = world.admin(args)?;
    ensure!(code == REFUSED, "exit code {code}, not {REFUSED}: {stderr}");
    Ok(stderr.lines().next().unwrap_or_default().to_owned())
}
