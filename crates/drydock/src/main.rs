//! The `drydock` command.

mod agent_call;
mod cli;
mod doctor;
mod garage;
mod guardian;
mod hgs;
mod host;
mod keyring;
mod output;
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
        Command::Doctor { service } => doctor::run(&service, &out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Keys pass through this process: no core dumps, no ptrace by others of the same user, nothing of it in swap.
fn harden() {
    // First: the rest takes the right to. What fails here is told where a VM starts; below holds without it.
    let _ = confine::forbid_core_dumps();
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // Others have a limit, and beyond it allocations would fail.
    if rustix::process::geteuid().is_root() {
        use rustix::mm::{MlockAllFlags, mlockall};
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}
