//! The attack suite: every row of docs/threat-model.md that needs real processes, each made as its attacker would make
//! it, with a control that shows that the attempt would have worked without the protection.
//!
//! A group is a file with rows and a `run`. To add one: the file, and its two lines here. `make test-attacks` runs all;
//! `cargo test --workspace --test attacks WORD` those with the word in their names.

mod at_rest;
mod console;
mod keys;
mod local_users;
mod policy;
mod requests;
mod rg_disk;
mod secrets;
mod session;
mod socket;
mod suite;
mod table;

use std::process::ExitCode;

use suite::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new(std::env::args());
    // First: what other rows call here forbids core dumps, as in an agent, and its control makes one.
    secrets::run(&mut suite);
    console::run(&mut suite);
    session::run(&mut suite);
    policy::run(&mut suite);
    rg_disk::run(&mut suite);
    requests::run(&mut suite);
    keys::run(&mut suite);
    at_rest::run(&mut suite);
    local_users::run(&mut suite);
    // The last one: it knows all names.
    table::run(&mut suite);
    if suite.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
