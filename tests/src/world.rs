//! A fabric in network namespaces of its own: a Host Guardian Service, a guarded host or two, and the tenant's offline
//! folder. Everything in it ends with it, and what does not fails the run.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host::{Hgs, Host, READY, SHORT, ip};
use crate::images::{self, GuestFile};
use crate::process::{Service, run};

pub const SWITCH: &str = "br0";
/// The host's own address on the switch, as a gateway would have it.
pub const GATEWAY: &str = "10.77.0.1";
/// The second host's.
pub const SECOND_HOST: &str = "10.77.0.2";
const HGS_PORT: u16 = 8443;
pub const DVM_ADDRESS: &str = "10.77.0.10";
pub const VMRE_ADDRESS: &str = "10.77.0.20";
/// Where the garage's agent runs from, in the guest.
const UNIT: &[u8] = include_bytes!("../../contrib/systemd/drydock-garage.service");

/// One fabric and one tenant; what is done on a host is done on the first one.
pub struct World {
    // Fields are dropped in this order: services before what they stand on.
    host: Host,
    hgs: Option<Service>,
    dir: tempfile::TempDir,
}

impl Deref for World {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Host {
        &mut self.host
    }
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
        let home = dir.path().join("fabric");
        let hgs = Hgs { url: format!("https://127.0.0.1:{HGS_PORT}"), ca: home.join("hgs/hgs-ca.pem") };
        let host = Host::new(GATEWAY, home, dir.path().join("tenant"), hgs)?;
        let mut world = World { host, hgs: None, dir };
        prepare(&world.store())?;
        let hgs_dir = path(&world.hgs_dir());
        world.admin(&["hgs", "init", "--san", "127.0.0.1", "--san", GATEWAY, "--dir", &hgs_dir])?.ok()?;
        world.start_hgs()?;
        world.register("host-1", &world.hgs_dir())?;
        world.start_agent()?;

        let fabric = world.fabric("fabric.guardian.xml");
        world.admin(&["hgs", "guardian", "--dir", &hgs_dir, "--out", &path(&fabric)])?.ok()?;
        world.tenant(&["guardian", "new", "tenant"])?.ok()?;
        world.tenant(&["guardian", "import", &path(&fabric), "--name", "fabric"])?.ok()?;
        Ok(world)
    }

    fn hgs_dir(&self) -> PathBuf {
        self.fabric("hgs")
    }

    /// A second guarded host on the same network, with the same service and tenant. It is closed before the world is.
    pub fn second_host(&self) -> Result<Host> {
        let name = "host-2";
        let hgs =
            Hgs { url: format!("https://{GATEWAY}:{HGS_PORT}"), ca: self.dir.path().join(name).join("hgs-ca.pem") };
        let ca = hgs.ca.clone();
        let mut host = self.host.beside(SECOND_HOST, self.dir.path().join(name), hgs)?;
        std::fs::copy(self.hgs_dir().join("hgs-ca.pem"), ca)?;
        host.register(name, &self.hgs_dir())?;
        host.start_agent()?;
        Ok(host)
    }

    pub fn start_hgs(&mut self) -> Result<()> {
        let mut command = self.inside(&drydock()?);
        command.args(["hgs", "serve", "--listen", &format!("0.0.0.0:{HGS_PORT}"), "--dir"]).arg(self.hgs_dir());
        self.hgs = Some(Service::start("the HGS", &mut command, "listening on", READY)?.0);
        Ok(())
    }

    /// Ends the Host Guardian Service as an outage would.
    pub fn kill_hgs(&mut self) {
        self.hgs = None;
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

    /// Processes that belong to this world, by its folder.
    pub fn survivors(&self) -> Vec<String> {
        let found = processes(&self.dir.path().display().to_string());
        found.into_iter().map(|(pid, line)| format!("{}: {line}", pid.as_raw_nonzero())).collect()
    }

    /// Ends everything in order and fails if a process is left.
    pub fn close(mut self) -> Result<()> {
        self.shut_down()?;
        if let Some(hgs) = self.hgs.take() {
            hgs.terminate(SHORT)?;
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
        self.cut_off();
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
