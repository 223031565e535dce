//! A repair garage's agent on this machine, for what takes too many tries in a VM. It runs with `--local` as in a garage;
//! where its kernel and udev would show the RG disk, it finds plain files, and its TPM is one of swtpm's.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use garage::Device;

use crate::process::{Finished, Service, run};
use crate::tenant::{self, convert};
use crate::world::{World, drydock, path};

const READY: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(300);

/// In the agent's own mount namespace: a `/dev` with links to what lies in the folder, and a `/sys/class/block` to match.
const PLACES: &str = r#"
set -eu
mount --make-rprivate /
mkdir "$1/dev"
mount -t tmpfs -o mode=755 dev "$1/dev"
for node in null zero full random urandom; do touch "$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
mkdir -p "$1/dev/disk/by-partlabel"
ln -s /proc/self/fd "$1/dev/fd"
ln -s "$1/by-id" "$1/dev/disk/by-id"
ln -s "$1/rgdisk" "$1/dev/rgdisk"
mount -t tmpfs block /sys/class/block
mkdir /sys/class/block/rgdisk
number=0
for part in dd-manifest dd-state; do
    number=$((number + 1)) node=rgdisk$((number))
    touch "$1/dev/$node"
    ln -s "/dev/$node" "$1/dev/disk/by-partlabel/$part"
    mkdir "/sys/class/block/rgdisk/$node"
    echo "$number" > "/sys/class/block/rgdisk/$node/partition"
    ln -s "rgdisk/$node" "/sys/class/block/$node"
done
mount --move "$1/dev" /dev
shift
exec "$@"
"#;

/// tpm2-tools as the agent calls them, on another TPM than `/dev/tpmrm0`, and without a resource manager that would make
/// room after each call.
const TPM2: &str = r#"#!/bin/sh
export TPM2TOOLS_TCTI=swtpm:path=SOCKET
/usr/bin/tpm2 "$@" && /usr/bin/tpm2 flushcontext -t
"#;

pub struct Garage {
    // Before what they stand on.
    agent: Service,
    _tpm: Service,
    dir: tempfile::TempDir,
}

impl Garage {
    /// With the RG disk and the overlay of the VM's open recovery attached. It fails the writes that are ordered.
    pub fn new(world: &World, vm: &str) -> Result<Self> {
        let dir = tempfile::tempdir_in(world.fabric(""))?;
        let at = |name: &str| dir.path().join(name);
        for name in ["tpm", "bin", "by-id", "run", "store"] {
            fs::DirBuilder::new().mode(0o700).create(at(name))?;
        }
        let tpm = start_tpm(dir.path())?;
        fs::write(at("bin/tpm2"), TPM2.replace("SOCKET", &path(&at("tpm.sock"))))?;
        fs::set_permissions(at("bin/tpm2"), fs::Permissions::from_mode(0o755))?;
        convert(&tenant::rg_disk(world, vm)?, "vhdx", &at("rgdisk"), "raw")?;
        let manifest = Device::open(&at("rgdisk"))?.manifest()?;
        for disk in &manifest.disks {
            File::create(at("by-id").join(format!("virtio-{}", disk.name)))?.set_len(disk.size)?;
        }
        let mut agent = Command::new("ip");
        agent.args(["netns", "exec", world.netns(), "sh", "-c", PLACES, "garage"]).arg(dir.path()).arg(drydock()?);
        agent.args(["host", "serve", "--local", "--accel", "tcg", "--store"]).arg(at("store"));
        agent.arg("--socket").arg(at("run/agent.sock"));
        agent.env(fault::VARIABLE, at("orders"));
        agent.env("PATH", format!("{}:{}", path(&at("bin")), std::env::var("PATH")?));
        let (agent, _) = Service::start("the garage's agent", &mut agent, "listening on", READY)?;
        Ok(Garage { agent, _tpm: tpm, dir })
    }

    /// A path in the garage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The RG disk as its kernel shows it.
    pub fn rg_disk(&self) -> PathBuf {
        self.path("rgdisk")
    }

    /// The file that orders a fault.
    pub fn orders(&self) -> PathBuf {
        self.path("orders")
    }

    /// `drydock` in the garage, by its owner.
    pub fn run(&self, args: &[&str]) -> Result<Finished> {
        let mut command = Command::new(drydock()?);
        command.args(args).arg("--socket").arg(self.path("run/agent.sock")).env(fault::VARIABLE, self.orders());
        run(&mut command, b"", LONG)
    }

    /// What is in the garage and on the RG disk now, to come back to.
    pub fn save(&self, name: &str) -> Result<()> {
        let saved = self.path(name);
        fs::create_dir(&saved)?;
        self.copy(&self.path("store"), &saved)?;
        self.copy(&self.rg_disk(), &saved)
    }

    pub fn restore(&self, name: &str) -> Result<()> {
        // The agent has the folder itself open in no place, but its parts go and come.
        for part in fs::read_dir(self.path("store"))? {
            let part = part?.path();
            if part.is_dir() { fs::remove_dir_all(part)? } else { fs::remove_file(part)? }
        }
        for name in ["store", "rgdisk"].map(|part| self.path(name).join(part)) {
            self.copy(&name, self.dir.path())?;
        }
        Ok(())
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let mut command = Command::new("cp");
        command.args(["-a", "--sparse=always"]).arg(from).arg(to);
        run(&mut command, b"", LONG)?.ok().map(drop)
    }

    /// Takes the RG disk back to the host.
    pub fn hand_in(&self, world: &World, vm: &str) -> Result<()> {
        convert(&self.rg_disk(), "raw", &tenant::rg_disk(world, vm)?, "vhdx")
    }

    /// Ends the agent in order.
    pub fn close(self) -> Result<()> {
        self.agent.terminate(LONG)
    }
}

fn start_tpm(dir: &Path) -> Result<Service> {
    let socket = dir.join("tpm.sock");
    let mut swtpm = Command::new("swtpm");
    swtpm.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"]);
    swtpm.arg(format!("dir={}", path(&dir.join("tpm"))));
    swtpm.arg("--server").arg(format!("type=unixio,path={}", path(&socket)));
    swtpm.arg("--ctrl").arg(format!("type=unixio,path={}.ctrl", path(&socket)));
    // Says so when it is: it has no line of its own for that.
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        r#"s=$1; shift; "$@" & until [ -S "$s" ] && [ -S "$s.ctrl" ]; do sleep 0.05; done; echo up >&2; wait"#,
        "swtpm",
    ]);
    shell.arg(&socket).arg(swtpm.get_program()).args(swtpm.get_args());
    Ok(Service::start("the garage's TPM", &mut shell, "up", READY)?.0)
}
