//! The `drydock` command.
//!
//! | Module | Subject |
//! |---|---|
//! | [`cli`] | the top level of the command line |
//! | [`vm`], [`guardian`], [`garage`], [`protector`], [`recovery`], [`hgs`], [`host`], [`doctor`] | one noun each, its arguments and its code |
//! | [`console`] | a VM's console and sessions |
//! | [`keyring`] | the directory of guardians |
//! | [`daemon`], [`rights`] | what a command that serves needs, and what it gives up |
//! | [`agent_call`] | a request to the agent |
//! | [`output`], [`fingerprint`], [`prompt`], [`files`] | what people and scripts see, are asked, and hand over |

mod agent_call;
mod cli;
mod console;
mod daemon;
mod doctor;
mod files;
mod fingerprint;
mod garage;
mod guardian;
mod hgs;
mod host;
mod keyring;
mod output;
mod prompt;
mod protector;
mod recovery;
mod rights;
mod vm;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::output::Output;

fn main() -> ExitCode {
    harden();
    let cli = Cli::parse();
    let out = Output::new(cli.json, cli.quiet);
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("DRYDOCK_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,drydock=info,host=info,hgs=info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let done = match cli.command {
        Command::Vm(command) => vm::run(command, &cli.socket, &out),
        Command::Guardian(command) => guardian::run(command, &out),
        Command::Garage(command) => garage::run(command, &cli.socket, &out),
        Command::Protector(command) => protector::run(command, &out),
        Command::Recovery(command) => recovery::run(command, &cli.socket, &out),
        Command::Hgs(command) => hgs::run(command, &out),
        Command::Host(command) => host::run(command, &cli.socket, &out),
        Command::Doctor { hgs } => doctor::run(&hgs, &out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Keys pass through this process: no core dumps, no ptrace by other processes of the user, nothing of it in swap.
fn harden() {
    // First, because the rest takes the right to. A failure is reported when a VM starts; the rest works without it.
    let _ = confine::forbid_core_dumps();
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // Other users have a limit, beyond which allocations would fail.
    if rustix::process::geteuid().is_root() {
        use rustix::mm::{MlockAllFlags, mlockall};
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}
