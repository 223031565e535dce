//! A fabric in a network namespace of its own: a switch, a Host Guardian Service, a guarded host's agent, and the
//! tenant's offline folder. Everything in it ends with it, and what does not fails the run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::images::{self, GuestFile};
use crate::process::{Finished, Service, run};
use crate::ssh::Ssh;

pub const SWITCH: &str = "br0";
/// The host's own address on the switch, as a gateway would have it.
pub const GATEWAY: &str = "10.77.0.1";
pub const DVM_ADDRESS: &str = "10.77.0.10";
pub const VMRE_ADDRESS: &str = "10.77.0.20";
/// Where the garage's agent runs from, in the guest.
const UNIT: &[u8] = include_bytes!("../../contrib/systemd/drydock-garage.service");

const SHORT: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(30);

/// What `ip netns` made, gone with the value.
struct Netns(String);

impl Netns {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let ns = Netns(name);
        ip(&["-n", &ns.0, "link", "set", "lo", "up"])?;
        ip(&["-n", &ns.0, "link", "add", SWITCH, "type", "bridge"])?;
        ip(&["-n", &ns.0, "addr", "add", &format!("{GATEWAY}/24"), "dev", SWITCH])?;
        ip(&["-n", &ns.0, "link", "set", SWITCH, "up"])?;
        Ok(ns)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn ip(args: &[&str]) -> Result<String> {
    Ok(run(Command::new("ip").args(args), b"", SHORT)?.ok().with_context(|| format!("ip {}", args.join(" ")))?.stdout)
}

/// One fabric and one tenant.
pub struct World {
    // Fields are dropped in this order: services before what they stand on.
    agent: Option<Service>,
    hgs: Option<Service>,
    netns: Netns,
    dir: tempfile::TempDir,
}

impl World {
    /// The Host Guardian Service runs, the host is attested, the tenant knows the fabric.
    pub fn new() -> Result<Self> {
        Self::with_store(|_| Ok(()))
    }

    /// The host's store lies on a file system of `mib` MiB.
    pub fn on_small_store(mib: u32) -> Result<Self> {
        Self::with_store(|store| {
            std::fs::create_dir(store)?;
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "tmpfs"]).arg(store);
            run(&mut mount, b"", SHORT)?.ok().map(drop)
        })
    }

    /// The host's store lies on a device of its own of `mib` MiB, whose writes are counted.
    pub fn on_device(mib: u32) -> Result<Self> {
        Self::with_store(|store| {
            let image = store.with_extension("ext4");
            std::fs::File::create(&image)?.set_len(u64::from(mib) << 20)?;
            run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]).arg(&image), b"", SHORT)?.ok()?;
            std::fs::create_dir(store)?;
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(store), b"", SHORT)?.ok()?;
            std::fs::remove_dir(store.join("lost+found"))?;
            run(Command::new("chmod").arg("700").arg(store), b"", SHORT)?.ok().map(drop)
        })
    }

    /// Bytes written to the device of [`World::on_device`] since it was made, with nothing left to write.
    pub fn bytes_written(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        run(Command::new("sync").arg("--file-system").arg(self.store()), b"", SHORT)?.ok()?;
        let device = std::fs::metadata(self.store())?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"))?;
        // Documentation/block/stat.rst: the seventh field, in sectors of 512 bytes.
        let sectors: u64 = stat.split_whitespace().nth(6).and_then(|n| n.parse().ok()).context("no write count")?;
        Ok(sectors * 512)
    }

    fn with_store(prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        // Disks are large: not where the system keeps small temporary files in memory.
        let base = worlds()?;
        reap_the_dead(&base)?;
        let dir = tempfile::Builder::new().prefix(&format!("{}-", std::process::id())).tempdir_in(&base)?;
        for folder in ["tenant", "fabric"] {
            std::fs::create_dir(dir.path().join(folder))?;
        }
        let mut world = World { agent: None, hgs: None, netns: Netns::new()?, dir };
        prepare(&world.store())?;
        let hgs_dir = world.fabric("hgs").display().to_string();
        world.admin(&["hgs", "init", "--dir", &hgs_dir])?.ok()?;
        world.start_hgs()?;
        let (key, store) = (world.fabric("host.pub.pem"), world.fabric("store"));
        world.admin(&["host", "init", "--store", &path(&store), "--out", &path(&key)])?.ok()?;
        world.admin(&["hgs", "add-host", "host-1", &path(&key), "--dir", &hgs_dir])?.ok()?;
        world.start_agent()?;

        let fabric = world.fabric("fabric.guardian.xml");
        world.admin(&["hgs", "guardian", "--dir", &hgs_dir, "--out", &path(&fabric)])?.ok()?;
        world.tenant(&["guardian", "new", "tenant"])?.ok()?;
        world.tenant(&["guardian", "import", &path(&fabric), "--name", "fabric"])?.ok()?;
        Ok(world)
    }

    /// One more virtual switch.
    pub fn add_switch(&self, name: &str) -> Result<()> {
        ip(&["-n", &self.netns.0, "link", "add", name, "type", "bridge"])?;
        ip(&["-n", &self.netns.0, "link", "set", name, "up"]).map(drop)
    }

    /// A path in the fabric's folder.
    pub fn fabric(&self, name: &str) -> PathBuf {
        self.dir.path().join("fabric").join(name)
    }

    /// A path in the tenant's folder.
    pub fn offline(&self, name: &str) -> PathBuf {
        self.dir.path().join("tenant").join(name)
    }

    /// The guarded host's store.
    pub fn store(&self) -> PathBuf {
        self.fabric("store")
    }

    pub fn netns(&self) -> &str {
        &self.netns.0
    }

    fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns.0]).arg(program);
        command
    }

    pub fn start_hgs(&mut self) -> Result<()> {
        let mut command = self.inside(&drydock()?);
        command.args(["hgs", "serve", "--listen", "127.0.0.1:8443", "--dir"]).arg(self.fabric("hgs"));
        self.hgs = Some(Service::start("the HGS", &mut command, "listening on", READY)?.0);
        Ok(())
    }

    /// One more service of `drydock` in the fabric.
    pub fn serve(&self, name: &str, args: &[&str]) -> Result<Service> {
        let mut command = self.inside(&drydock()?);
        command.args(args);
        Ok(Service::start(name, &mut command, "listening on", READY)?.0)
    }

    /// Ends the Host Guardian Service as an outage would.
    pub fn kill_hgs(&mut self) {
        self.hgs = None;
    }

    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// With variables for its environment.
    pub fn start_agent_with(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        self.start_agent_of(&["https://127.0.0.1:8443"], variables)
    }

    /// With several nodes of the Host Guardian Service, in this order.
    pub fn start_agent_of(&mut self, nodes: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        self.run_agent(nodes, &[], variables)
    }

    /// Keeping keys for starts without the Host Guardian Service.
    pub fn start_agent_offline(&mut self) -> Result<()> {
        self.run_agent(&["https://127.0.0.1:8443"], &["--offline"], &[])
    }

    fn run_agent(&mut self, nodes: &[&str], more: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        // The variables are the agent's, not those of the programs that lead to it.
        let mut command = self.inside(Path::new("env"));
        command.args(variables.iter().map(|(name, value)| format!("{name}={value}"))).arg(drydock()?);
        command.args(["host", "serve"]).args(nodes.iter().flat_map(|url| ["--hgs", url])).arg("--hgs-ca");
        command.arg(self.fabric("hgs/hgs-ca.pem")).arg("--store").arg(self.store());
        command.arg("--socket").arg(self.socket()).args(more);
        self.agent = Some(Service::start("the agent", &mut command, "listening on", READY)?.0);
        Ok(())
    }

    /// In local mode on the same store, with the owner's private keys: as if the host were the owner's own machine.
    pub fn start_local_agent(&mut self) -> Result<()> {
        let guardian = self.store().join("guardians/tenant.pem");
        std::fs::copy(self.offline(".config/drydock/guardians/tenant.pem"), guardian)?;
        let mut command = self.inside(&drydock()?);
        command.args(["host", "serve", "--local", "--store"]).arg(self.store());
        command.arg("--socket").arg(self.socket());
        self.agent = Some(Service::start("the agent in local mode", &mut command, "listening on", READY)?.0);
        Ok(())
    }

    /// Kills the agent where it stands. Its VMs go on without it.
    pub fn kill_agent(&mut self) -> Result<()> {
        let agent = self.agent.take().context("no agent runs")?;
        agent.kill_alone()
    }

    /// Waits for the end of an agent that is dying.
    pub fn agent_died(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.died(SHORT)
    }

    pub fn agent_log(&self) -> String {
        self.agent.as_ref().map(Service::log).unwrap_or_default()
    }

    pub fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.pid())
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.fabric("run/agent.sock")
    }

    /// `drydock` as the fabric admin on the host.
    pub fn admin(&self, args: &[&str]) -> Result<Finished> {
        self.admin_within(args, SHORT * 10)
    }

    pub fn admin_within(&self, args: &[&str], deadline: Duration) -> Result<Finished> {
        run(&mut self.admin_command(args)?, b"", deadline)
    }

    /// The same, not yet run.
    pub fn admin_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.inside(&drydock()?);
        command.args(args).arg("--socket").arg(self.socket());
        Ok(command)
    }

    /// The answer of an admin's command as JSON.
    pub fn admin_json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        self.admin(&all)?.ok()?.json().map(|mut value| value["result"].take())
    }

    /// `drydock` on the tenant host: no network at all, the keys in a folder of its own.
    pub fn tenant(&self, args: &[&str]) -> Result<Finished> {
        self.tenant_with(args, &[])
    }

    /// With variables for its environment.
    pub fn tenant_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Result<Finished> {
        let mut command = Command::new("unshare");
        command.envs(variables.iter().copied());
        let home = self.dir.path().join("tenant");
        command.arg("--net").arg(drydock()?).args(args).env("HOME", &home).current_dir(&home);
        run(&mut command, b"", SHORT)
    }

    /// The tenant's SSH key, made when first asked for.
    pub fn ssh_key(&self) -> Result<PathBuf> {
        let key = self.offline("id_ed25519");
        if !key.exists() {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
            run(&mut command, b"", SHORT)?.ok()?;
        }
        Ok(key)
    }

    pub fn ssh(&self, address: &str) -> Result<Ssh> {
        Ok(Ssh { netns: self.netns.0.clone(), address: address.to_owned(), key: self.ssh_key()? })
    }

    /// The tenant makes a protector, the fabric admin a VM with it.
    pub fn create_vm(&self, name: &str, disk: &Path, extra: &[&str]) -> Result<Value> {
        self.create_with(name, disk, SWITCH, extra)
    }

    pub fn create_with(&self, name: &str, disk: &Path, switch: &str, extra: &[&str]) -> Result<Value> {
        let protector = self.offline(&format!("{name}.protector.xml"));
        if !protector.exists() {
            self.new_protector(name, &[])?;
        }
        let (disk, protector) = (path(disk), path(&protector));
        let mut args = vec!["vm", "create", name, "--disk", &disk, "--protector", &protector, "--switch", switch];
        args.extend(extra);
        self.admin_json(&args)
    }

    /// The tenant makes the protector of a VM that will be created.
    pub fn new_protector(&self, name: &str, extra: &[&str]) -> Result<()> {
        let file = path(&self.offline(&format!("{name}.protector.xml")));
        let mut args = vec!["protector", "new", "--owner", "tenant", "--guardian", "fabric", "--out", &file];
        args.extend(extra);
        self.tenant(&args)?.ok().map(drop)
    }

    /// The VM that will be damaged: a web server of somebody's, reachable by SSH.
    pub fn provision_dvm(&self, image: &Path) -> Result<PathBuf> {
        let network = format!("[Match]\nName=en*\n[Network]\nAddress={DVM_ADDRESS}/24\nGateway={GATEWAY}\n");
        let disk = self.fabric("dvm.raw");
        self.provision(image, &disk, "dvm", &[("etc/systemd/network/10-lan.network", 0o644, network.as_bytes())])?;
        Ok(disk)
    }

    /// The repair garage: its network card is in a switch of its own, where nested VMs are plugged in too.
    pub fn provision_vmre(&self, image: &Path) -> Result<PathBuf> {
        let program = travelling_drydock(&self.fabric("travelling"))?;
        let address = format!("[Match]\nName=br0\n[Network]\nAddress={VMRE_ADDRESS}/24\nGateway={GATEWAY}\n");
        let disk = self.fabric("vmre.raw");
        let mut files: Vec<GuestFile> = vec![
            ("etc/systemd/network/10-br0.netdev", 0o644, b"[NetDev]\nName=br0\nKind=bridge\n"),
            ("etc/systemd/network/20-lan.network", 0o644, b"[Match]\nName=en*\n[Network]\nBridge=br0\n"),
            ("etc/systemd/network/30-br0.network", 0o644, address.as_bytes()),
            ("etc/systemd/system/drydock-garage.service", 0o644, UNIT),
            ("etc/systemd/system/multi-user.target.d/drydock.conf", 0o644, b"[Unit]\nWants=drydock-garage.service\n"),
        ];
        files.extend(program.iter().map(|(path, contents)| (path.as_str(), 0o755, contents.as_slice())));
        self.provision(image, &disk, "vmre", &files)?;
        Ok(disk)
    }

    fn provision(&self, image: &Path, disk: &Path, name: &str, more: &[GuestFile]) -> Result<()> {
        let public = std::fs::read(self.ssh_key()?.with_extension("pub"))?;
        let hostname = format!("{name}\n");
        let mut files: Vec<GuestFile> =
            vec![("etc/hostname", 0o644, hostname.as_bytes()), ("root/.ssh/authorized_keys", 0o600, &public)];
        files.extend_from_slice(more);
        images::provision(image, disk, &files)
    }

    /// Waits until a guest with this MAC address has spoken on the switch: it is up, whatever its network does.
    pub fn wait_for_mac(&self, mac: &str, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let table = run(
                Command::new("bridge").args(["-n", &self.netns.0, "fdb", "show", "br", SWITCH, "dynamic"]),
                b"",
                SHORT,
            )?
            .ok()?;
            if table.stdout.to_lowercase().contains(&mac.to_lowercase()) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("no sign of {mac} on the switch within {} s", deadline.as_secs());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Processes that belong to this world, by its folder.
    pub fn survivors(&self) -> Vec<String> {
        let found = processes(&self.dir.path().display().to_string());
        found.into_iter().map(|(pid, line)| format!("{}: {line}", pid.as_raw_nonzero())).collect()
    }

    /// Ends everything in order and fails if a process is left.
    pub fn close(mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.terminate(Duration::from_secs(180))?;
        }
        if let Some(hgs) = self.hgs.take() {
            hgs.terminate(Duration::from_secs(30))?;
        }
        let left = self.survivors();
        if !left.is_empty() {
            bail!("still running at the end:\n{}", left.join("\n"));
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // After a failure: nothing of ours may outlive the run.
        self.agent = None;
        self.hgs = None;
        unmount(&self.store());
        kill_all(&self.dir.path().display().to_string());
    }
}

/// Where worlds live: with the build, since their disks are large.
fn worlds() -> Result<PathBuf> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/worlds");
    std::fs::create_dir_all(&base)?;
    base.canonicalize().context("no folder for worlds")
}

/// Ends everything that this process made, at once: for a signal.
pub fn reap_ours() {
    let Ok(base) = worlds() else { return };
    reap(&base, std::process::id());
}

/// Ends what killed runs left behind.
fn reap_the_dead(base: &Path) -> Result<()> {
    for entry in std::fs::read_dir(base)? {
        let name = entry?.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
        if let Some(owner) = owner.filter(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            reap(base, owner);
        }
    }
    Ok(())
}

fn reap(base: &Path, owner: u32) {
    kill_all(&format!("{}/{owner}-", base.display()));
    for namespace in ip(&["netns", "list"]).unwrap_or_default().lines() {
        let name = namespace.split_whitespace().next().unwrap_or_default();
        if name.starts_with(&format!("dd-{owner}-")) {
            let _ = ip(&["netns", "del", name]);
        }
    }
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{owner}-")) {
            unmount(&entry.path().join("fabric/store"));
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Other processes with `mark` in their command line, or in what they hold: QEMU and swtpm are told no paths.
fn processes(mark: &str) -> Vec<(rustix::process::Pid, String)> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok().and_then(rustix::process::Pid::from_raw)?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (pid != rustix::process::getpid() && (line.contains(mark) || holds(&entry.path(), mark))).then_some((pid, line))
    })
    .collect()
}

fn holds(process: &Path, mark: &str) -> bool {
    let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut links = open.chain([process.join("cwd")]).filter_map(|link| std::fs::read_link(link).ok());
    links.any(|target| target.to_string_lossy().contains(mark))
}

/// Takes away a file system of its own, if there is one.
fn unmount(store: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.split(' ').nth(1) == store.to_str()) {
        let _ = run(Command::new("umount").arg("--lazy").arg(store), b"", SHORT);
    }
}

fn kill_all(mark: &str) {
    for (pid, _) in processes(mark) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// The program with the libraries that it was linked with: the garage's system may be older than the one that built
/// it. Paths and contents.
fn travelling_drydock(work: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    const HOME: &str = "usr/local/lib/drydock";
    std::fs::create_dir_all(work)?;
    let program = drydock()?;
    let stripped = work.join("drydock");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&program), b"", SHORT)?.ok()?;
    let mut files = vec![(format!("{HOME}/drydock"), std::fs::read(&stripped)?)];
    let mut loader = None;
    for line in run(Command::new("ldd").arg(&program), b"", SHORT)?.ok()?.stdout.lines() {
        let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let name = library.rsplit('/').next().unwrap_or_default().to_owned();
        if name.starts_with("ld-linux") {
            loader = Some(name.clone());
        }
        files.push((format!("{HOME}/{name}"), std::fs::read(library)?));
    }
    let loader = loader.context("ldd names no loader")?;
    let start = format!("#!/bin/sh\nexec /{HOME}/{loader} --library-path /{HOME} /{HOME}/drydock \"$@\"\n");
    files.push(("usr/local/bin/drydock".to_owned(), start.into_bytes()));
    Ok(files)
}

/// The program under test: `DRYDOCK_BIN`, or what the workspace built.
pub fn drydock() -> Result<PathBuf> {
    let bin = match std::env::var_os("DRYDOCK_BIN") {
        Some(bin) => PathBuf::from(bin),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/drydock"),
    };
    bin.canonicalize().with_context(|| format!("{} is missing: run `make build`", bin.display()))
}

pub fn path(path: &Path) -> String {
    path.display().to_string()
}
