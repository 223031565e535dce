//! One more agent on the first host's machine: a guarded host to the service, with a store and a key of its own, but on the same
//! file system, so that state can be put in its place with a rename.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::{Finished, Service, run};
use crate::world::{World, drydock, path};

const COMMAND: Duration = Duration::from_secs(300);
const END: Duration = Duration::from_secs(120);

pub struct SecondAgent {
    agent: Service,
    store: PathBuf,
    socket: PathBuf,
}

impl World {
    /// `folder` is where its store is made, in the fabric's; `attested`: the Host Guardian Service has its key.
    pub fn add_agent(&self, name: &str, folder: &str, attested: bool) -> Result<SecondAgent> {
        let store = self.fabric(folder);
        let key = path(&self.fabric(&format!("{name}.pub.pem")));
        self.admin(&["host", "init", "--store", &path(&store), "--out", &key])?.ok()?;
        if attested {
            self.admin(&["hgs", "add-host", name, &key, "--dir", &path(&self.fabric("hgs"))])?.ok()?;
        }
        let socket = self.fabric(&format!("run-{name}/agent.sock"));
        let ca = path(&self.fabric("hgs/hgs-ca.pem"));
        let (folder, at) = (path(&store), path(&socket));
        let agent = self.serve(
            &format!("the agent of {name}"),
            &["host", "serve", "--hgs", "https://127.0.0.1:8443", "--hgs-ca", &ca, "--store", &folder, "--socket", &at],
        )?;
        Ok(SecondAgent { agent, store, socket })
    }
}

impl SecondAgent {
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// `drydock` as its admin.
    pub fn admin(&self, args: &[&str]) -> Result<Finished> {
        run(&mut self.admin_command(args)?, b"", COMMAND)
    }

    /// The same, not yet run.
    pub fn admin_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(drydock()?);
        command.args(args).arg("--socket").arg(&self.socket);
        Ok(command)
    }

    /// Ends its agent, and with it its VMs.
    pub fn close(self) -> Result<()> {
        self.agent.terminate(END)
    }
}
