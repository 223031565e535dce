//! The top level of the command line: the options that every command has, and one subcommand for each noun.
//!
//! What can be typed after a noun is in the noun's own module, beside the code that runs it.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::garage::GarageCommand;
use crate::guardian::GuardianCommand;
use crate::hgs::HgsCommand;
use crate::host::{HgsArgs, HostCommand};
use crate::protector::ProtectorCommand;
use crate::recovery::RecoveryCommand;
use crate::vm::VmCommand;

/// Where the help lists them: after a command's own options.
const GLOBAL: &str = "Options of every command";

#[derive(Parser)]
#[command(
    name = "drydock",
    version,
    about = "Recovery of shielded virtual machines on Linux/KVM",
    after_help = "A recovery, step by step:\n  \
        fabric admin, on the host:    drydock recovery export DVM --to VMRE\n  \
        tenant, in the garage VMRE:   drydock recovery import\n  \
        tenant, on the tenant host:   drydock recovery grant REQUEST --owner NAME\n  \
        tenant, in the garage:        drydock recovery import --grant GRANT\n                                \
        drydock vm start DVM; drydock vm console DVM\n                                \
        drydock recovery finish\n  \
        fabric admin, on the host:    drydock recovery reinstate DVM\n\n\
        `drydock NOUN COMMAND --help` explains a command and shows an example.\n\n\
        Exit codes: 0 done, 1 internal error, 2 usage, 3 refused, 4 bad input, 5 not found, 6 wrong state,\n\
        7 key not released, 8 missing tool, 9 no space, 10 busy, 11 agent unreachable, 130 interrupted."
)]
pub(crate) struct Cli {
    /// Print JSON: one object per line, `{"progress":…}` during the work, `{"result":…}` or `{"error":…}` at the end.
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Print no progress, only results and errors.
    #[arg(long, short, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
    /// The agent's socket.
    #[arg(long, global = true, value_name = "SOCKET", default_value = "/run/drydock/agent.sock", help_heading = GLOBAL)]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// VMs: create, start, stop, inspect and migrate them; open a console where the policy allows one.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Guardians: pairs of signing and encryption certificates, kept as files in one directory.
    #[command(subcommand)]
    Guardian(GuardianCommand),
    /// Repair garages: the key by which their owner recognizes them.
    #[command(subcommand)]
    Garage(GarageCommand),
    /// Key protectors: who owns a VM and who can open it.
    #[command(subcommand)]
    Protector(ProtectorCommand),
    /// Recoveries: the seven steps that repair a VM which does not boot or cannot be reached.
    #[command(subcommand)]
    Recovery(RecoveryCommand),
    /// The Host Guardian Service: attests hosts and releases keys to them.
    #[command(subcommand)]
    Hgs(HgsCommand),
    /// The agent of a guarded host or of a repair garage.
    #[command(subcommand)]
    Host(HostCommand),
    /// Check everything that a guarded host needs, and say how to get what is missing.
    ///
    /// Run it before the first start of the agent, and when VMs do not start. It changes nothing, and ends with exit
    /// code 6 if a check fails.
    #[command(
        after_long_help = "Example:\n  drydock doctor --hgs https://hgs.example:8443 --hgs-ca /etc/drydock/hgs-ca.pem"
    )]
    Doctor {
        #[command(flatten)]
        hgs: HgsArgs,
    },
}

#[cfg(test)]
mod tests {
    use clap::{Arg, CommandFactory};

    use super::*;

    /// Words that the house does not use, in lower case. A word matches as a whole.
    const AVOIDED: &[&str] = &[
        "folder",
        "folders",
        "beside",
        "goes on",
        "go on",
        "gone on",
        "in force",
        "anew",
        "papers",
        "strangers",
        "stranger",
        "verdict",
        "silence",
        "virtual switch",
        "is none",
        "is not one",
        "is there",
        "is not there",
        "who can write",
        "the change of the key protector",
        "view",
        "users of no account",
        "the policy's register",
        "proof",
        "without a word",
        "said",
        "told",
        "look at",
    ];

    /// Each command with its path, `drydock vm start`.
    fn all() -> Vec<(String, clap::Command)> {
        fn walk(path: &str, command: &clap::Command, found: &mut Vec<(String, clap::Command)>) {
            found.push((path.to_owned(), command.clone()));
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                walk(&format!("{path} {}", sub.get_name()), sub, found);
            }
        }
        let mut found = Vec::new();
        let mut root = Cli::command();
        root.build();
        walk("drydock", &root, &mut found);
        found
    }

    fn own_arguments(command: &clap::Command) -> impl Iterator<Item = &Arg> {
        command.get_arguments().filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_help_is_missing() {
        let mut missing = Vec::new();
        for (path, command) in all() {
            if command.get_about().is_none() {
                missing.push(path.clone());
            }
            for arg in own_arguments(&command) {
                if arg.get_help().is_none() {
                    missing.push(format!("{path}: {}", arg.get_id()));
                }
                if arg.get_action().takes_values() {
                    let values = arg.get_possible_values();
                    let bare = values.iter().filter(|value| value.get_help().is_none());
                    missing.extend(bare.map(|value| format!("{path}: {}={}", arg.get_id(), value.get_name())));
                }
            }
        }
        assert!(missing.is_empty(), "no help for {missing:#?}");
    }

    #[test]
    fn every_command_shows_an_example() {
        for (path, command) in all() {
            if command.has_subcommands() && path != "drydock hgs audit" {
                continue;
            }
            let example = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.starts_with("Example") && example.contains(&path), "{path} shows no example: {example}");
        }
    }

    #[test]
    fn help_is_in_the_words_of_the_house() {
        let mut found = Vec::new();
        for (path, mut command) in all() {
            let help = command.render_long_help().to_string().to_lowercase();
            let words = help.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty());
            let text = format!(" {} ", words.collect::<Vec<_>>().join(" "));
            found.extend(
                AVOIDED.iter().filter(|avoided| text.contains(&format!(" {avoided} "))).map(|a| (path.clone(), *a)),
            );
        }
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn earlier_spellings_still_work() {
        for line in [
            "drydock vm show web --proof",
            "drydock vm create web --disk a --protector b --switch br0",
            "drydock vm create web --disk a --protector b --switch br0 --mac 52:54:00:00:00:01",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn cards_are_repeated_and_one_form_is_used() {
        let create = |cards: &str| {
            let line = format!("drydock vm create web --disk a --protector b {cards}");
            Cli::try_parse_from(line.split_whitespace()).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(create("--nic bridge=br0 --nic bridge=br1,mac=52:54:00:00:00:01"), Ok(()));
        for refused in ["", "--nic bridge=br0 --switch br0", "--nic bridge=br0 --mac 52:54:00:00:00:01"] {
            assert!(create(refused).is_err(), "{refused}");
        }
        let said = create("--nic brige=br0").expect_err("an unknown key");
        assert!(said.contains("'brige'") && said.contains("bridge=br0,mac="), "{said}");
    }
}
