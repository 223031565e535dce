//! A guarded host: a network namespace with a switch, a store, an agent with its own key, and the admin's command line
//! there. What the fabric and its tenant share is the [`World`](crate::world::World)'s.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::exit::UNREACHABLE;
use crate::process::{Finished, Service, run};
use crate::ssh::Ssh;
use crate::world::{SWITCH, drydock, path};

pub(crate) const SHORT: Duration = Duration::from_secs(60);
pub(crate) const READY: Duration = Duration::from_secs(60);

/// What `ip netns` made, gone with the value.
struct Netns(String);

impl Netns {
    fn new(address: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let ns = Netns(name);
        ip(&["-n", &ns.0, "link", "set", "lo", "up"])?;
        // An address of its own: otherwise it changes with every port, and the other hosts look for the old one.
        let host = address.rsplit('.').next().and_then(|last| last.parse::<u8>().ok()).unwrap_or_default();
        let mac = format!("52:54:00:77:00:{host:02x}");
        ip(&["-n", &ns.0, "link", "add", SWITCH, "address", &mac, "type", "bridge"])?;
        ip(&["-n", &ns.0, "addr", "add", &format!("{address}/24"), "dev", SWITCH])?;
        ip(&["-n", &ns.0, "link", "set", SWITCH, "up"])?;
        Ok(ns)
    }

    /// A cable between the two switches: they are one network then.
    fn join(&self, other: &Netns) -> Result<()> {
        let (here, there) = ("uplink", "downlink");
        ip(&["-n", &self.0, "link", "add", here, "type", "veth", "peer", "name", there, "netns", &other.0])?;
        ip(&["-n", &self.0, "link", "set", here, "master", SWITCH, "up"])?;
        ip(&["-n", &other.0, "link", "set", there, "master", SWITCH, "up"]).map(drop)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.0]);
    }
}

pub(crate) fn ip(args: &[&str]) -> Result<String> {
    Ok(run(Command::new("ip").args(args), b"", SHORT)?.ok().with_context(|| format!("ip {}", args.join(" ")))?.stdout)
}

/// Where a host finds the Host Guardian Service.
pub(crate) struct Hgs {
    pub url: String,
    pub ca: PathBuf,
}

/// One guarded host.
pub struct Host {
    // Fields are dropped in this order: the agent before what it stands on.
    agent: Option<Service>,
    netns: Netns,
    /// The host's folder.
    home: PathBuf,
    /// The tenant's, somewhere else.
    tenant: PathBuf,
    hgs: Hgs,
}

impl Host {
    /// A host that nothing runs on yet; its folders are there.
    pub(crate) fn new(address: &str, home: PathBuf, tenant: PathBuf, hgs: Hgs) -> Result<Self> {
        for folder in [&home, &tenant] {
            std::fs::create_dir_all(folder)?;
        }
        Ok(Host { agent: None, netns: Netns::new(address)?, home, tenant, hgs })
    }

    /// One more host on the same network, with the same tenant.
    pub(crate) fn beside(&self, address: &str, home: PathBuf, hgs: Hgs) -> Result<Self> {
        let host = Self::new(address, home, self.tenant.clone(), hgs)?;
        host.netns.join(&self.netns)?;
        Ok(host)
    }

    /// One more virtual switch.
    pub fn add_switch(&self, name: &str) -> Result<()> {
        ip(&["-n", &self.netns.0, "link", "add", name, "type", "bridge"])?;
        ip(&["-n", &self.netns.0, "link", "set", name, "up"]).map(drop)
    }

    /// A path in this host's folder.
    pub fn fabric(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// A path in the tenant's folder.
    pub fn offline(&self, name: &str) -> PathBuf {
        self.tenant.join(name)
    }

    /// The guarded host's store.
    pub fn store(&self) -> PathBuf {
        self.fabric("store")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.fabric("run/agent.sock")
    }

    pub fn netns(&self) -> &str {
        &self.netns.0
    }

    pub(crate) fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns.0]).arg(program);
        command
    }

    /// One more service of `drydock` on this host.
    pub fn serve(&self, name: &str, args: &[&str]) -> Result<Service> {
        let mut command = self.inside(&drydock()?);
        command.args(args);
        Ok(Service::start(name, &mut command, "listening on", READY)?.0)
    }

    /// Makes the host's key and has it trusted by the service in the folder `hgs_dir`.
    pub(crate) fn register(&self, name: &str, hgs_dir: &Path) -> Result<()> {
        let key = path(&self.fabric("host.pub.pem"));
        self.admin(&["host", "init", "--store", &path(&self.store()), "--out", &key])?.ok()?;
        self.admin(&["hgs", "add-host", name, &key, "--dir", &path(hgs_dir)])?.ok().map(drop)
    }

    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// With variables for its environment.
    pub fn start_agent_with(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        let url = self.hgs.url.clone();
        self.start_agent_of(&[&url], variables)
    }

    /// With several nodes of the Host Guardian Service, in this order.
    pub fn start_agent_of(&mut self, nodes: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        self.run_agent(nodes, &[], variables)
    }

    /// Keeping keys for starts without the Host Guardian Service.
    pub fn start_agent_offline(&mut self) -> Result<()> {
        let url = self.hgs.url.clone();
        self.run_agent(&[&url], &["--offline"], &[])
    }

    /// Taking migrations on this address and port, with further options.
    pub fn start_agent_taking(&mut self, migrations: &str, more: &[&str]) -> Result<()> {
        let url = self.hgs.url.clone();
        self.run_agent(&[&url], &[&["--migration-listen", migrations], more].concat(), &[])
    }

    fn run_agent(&mut self, nodes: &[&str], more: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        // The variables are the agent's, not those of the programs that lead to it.
        let mut command = self.inside(Path::new("env"));
        command.args(variables.iter().map(|(name, value)| format!("{name}={value}"))).arg(drydock()?);
        command.args(["host", "serve"]).args(nodes.iter().flat_map(|url| ["--hgs", url])).arg("--hgs-ca");
        command.arg(&self.hgs.ca).arg("--store").arg(self.store());
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

    /// Runs a command whose agent dies at the point, and brings an agent back.
    pub fn dies_at(&mut self, args: &[&str], point: &str) -> Result<()> {
        self.kill_agent()?;
        self.start_agent_with(&[("DRYDOCK_CRASH_AT", point)])?;
        let done = self.admin(args)?;
        self.agent_died().with_context(|| format!("at {point} nobody died: {}{}", done.stdout, done.stderr))?;
        ensure!(done.code == UNREACHABLE, "at {point}, the command ended with {}: {}", done.code, done.stderr);
        self.start_agent()
    }

    pub fn agent_log(&self) -> String {
        self.agent.as_ref().map(Service::log).unwrap_or_default()
    }

    pub fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.pid())
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

    /// Whether the VM's last recovery on this host is not closed.
    pub fn in_recovery(&self, vm: &str) -> Result<bool> {
        Ok(self.admin_json(&["recovery", "status", vm])?[0]["closed"] != true)
    }

    /// `drydock` on the tenant host: no network at all, the keys in a folder of its own.
    pub fn tenant(&self, args: &[&str]) -> Result<Finished> {
        self.tenant_with(args, &[])
    }

    /// With variables for its environment.
    pub fn tenant_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Result<Finished> {
        let mut command = Command::new("unshare");
        command.envs(variables.iter().copied());
        command.arg("--net").arg(drydock()?).args(args).env("HOME", &self.tenant).current_dir(&self.tenant);
        run(&mut command, b"", SHORT)
    }

    /// The tenant's SSH key, made when first asked for.
    pub fn ssh_key(&self) -> Result<PathBuf> {
        self.key_pair(self.offline("id_ed25519"))
    }

    /// The fabric admin's, of which no guest knows.
    pub fn foreign_ssh_key(&self) -> Result<PathBuf> {
        self.key_pair(self.fabric("id_ed25519"))
    }

    fn key_pair(&self, key: PathBuf) -> Result<PathBuf> {
        if !key.exists() {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
            run(&mut command, b"", SHORT)?.ok()?;
        }
        Ok(key)
    }

    pub fn ssh(&self, address: &str) -> Result<Ssh> {
        Ok(Ssh { netns: self.netns.0.clone(), address: address.to_owned(), key: self.ssh_key()?, proxy: None })
    }

    /// Through a session with the VM, whatever its network does.
    pub fn ssh_session(&self, vm: &str) -> Result<Ssh> {
        let proxy = format!("{} vm session {vm} --socket {}", drydock()?.display(), self.socket().display());
        Ok(Ssh { proxy: Some(proxy), ..self.ssh(vm)? })
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

    /// Ends the agent and its VMs in order.
    pub fn shut_down(&mut self) -> Result<()> {
        match self.agent.take() {
            Some(agent) => agent.terminate(Duration::from_secs(180)),
            None => Ok(()),
        }
    }

    /// Ends the agent and its VMs at once.
    pub(crate) fn cut_off(&mut self) {
        self.agent = None;
    }
}
