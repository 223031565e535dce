//! A new step, as a later change would add one: its row is `Rehearsed` in the table, its function is [`work`], and its
//! undo is one arm of a match. The rest, which is tested here, comes with the table: the step survives the death of the
//! agent before and after its record, is done once, has its sentence, and is undone by an abort.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::{env, fs};

use garage::Mode;
use host::Store;
use outcome::Result;
use uuid::Uuid;

use crate::journal::{Beginning, Journal, Undoing};
use crate::step::{Side, Step, Undo};
use crate::{crash, status};

/// Names the store for the process that is to die.
const STORE: &str = "DRYDOCK_REHEARSAL_STORE";
const KILLED: Option<i32> = Some(9);

/// What the step does outside the recovery's directory: a line for each time that it runs.
fn work(store: &Store) {
    let mut lines = fs::read_to_string(trace(store)).unwrap_or_default();
    lines.push_str("worked\n");
    fs::write(trace(store), lines).unwrap();
}

fn trace(store: &Store) -> PathBuf {
    store.root().join("trace")
}

fn runs(store: &Store) -> usize {
    fs::read_to_string(trace(store)).unwrap_or_default().lines().count()
}

/// The command that does the step.
async fn rehearse(store: &Store) -> Result<()> {
    let mut journal = Journal::open_for(store, "dvm")?.unwrap();
    let rehearse = async |_: &mut Journal| {
        work(store);
        Ok(())
    };
    journal.step(Step::Rehearsed, rehearse).await
}

/// The abort of a side that has the step. Every other action is noted.
struct Rehearsal<'a>(&'a Store, Vec<Undo>);

impl Undoing for Rehearsal<'_> {
    async fn undo(&mut self, action: Undo, _: &mut Journal) -> Result<()> {
        self.1.push(action);
        if action == Undo::Rehearsal {
            let _ = fs::remove_file(trace(self.0));
        }
        Ok(())
    }
}

fn begin() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (side, id, mode) = (Side::Host, Uuid::new_v4(), Mode::Overlay);
    Journal::begin(&store, Beginning { side, id, vm: "dvm", garage: Some("vmre"), file: None, mode }).unwrap();
    (dir, store)
}

/// Runs one of the two commands below in a process of its own, which dies `at` a point.
fn dies(command: &str, store: &Path, at: &str) -> ExitStatus {
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", &format!("rehearsal::{command}")])
        .env(STORE, store)
        .env(crash::VARIABLE, at)
        .output()
        .unwrap()
        .status
}

#[tokio::test]
#[ignore = "run by the tests below, in a process that dies"]
async fn the_command() {
    // Only where a test below names the store: a run of all ignored tests has none.
    let Some(store) = env::var_os(STORE) else { return };
    let store = Store::open(store.as_ref()).unwrap();
    rehearse(&store).await.unwrap();
}

#[tokio::test]
#[ignore = "run by the tests below, in a process that dies"]
async fn the_abort() {
    // Only where a test below names the store: a run of all ignored tests has none.
    let Some(store) = env::var_os(STORE) else { return };
    let store = Store::open(store.as_ref()).unwrap();
    abort(&store).await;
}

async fn abort(store: &Store) -> Vec<Undo> {
    let mut journal = Journal::open_for(store, "dvm").unwrap().unwrap();
    fs::write(journal.dir().join("left"), b"behind").unwrap();
    let mut rehearsal = Rehearsal(store, Vec::new());
    journal.undo(Step::Aborted, &mut rehearsal).await.unwrap();
    assert_eq!(fs::read_dir(journal.dir()).unwrap().count(), 1, "more than the journal is left");
    rehearsal.1
}

#[tokio::test]
async fn a_new_step_survives_the_death_of_the_agent() {
    // Before its record the work is done again, after it not.
    for (when, expected) in [("before", 2), ("after", 1)] {
        let (dir, store) = begin();
        assert_eq!(dies("the_command", dir.path(), &format!("rehearsed:{when}")).signal(), KILLED);
        let journal = Journal::open_for(&store, "dvm").unwrap().unwrap();
        assert_eq!((runs(&store), journal.done(Step::Rehearsed)), (1, when == "after"));
        for _ in 0..2 {
            rehearse(&store).await.unwrap();
        }
        assert_eq!(runs(&store), expected);
        let journal = Journal::open_for(&store, "dvm").unwrap().unwrap();
        assert_eq!(status::sentence(&journal), "dvm was rehearsed.");
        assert_eq!(journal.steps().len(), 1);
    }
}

#[tokio::test]
async fn a_new_step_is_undone_wherever_the_agent_died() {
    for command in ["rehearsed:before", "rehearsed:after", "nowhere"] {
        for ending in ["aborted:before", "aborted:after", "nowhere"] {
            let (dir, store) = begin();
            let killed = if command == "nowhere" { None } else { KILLED };
            assert_eq!(dies("the_command", dir.path(), command).signal(), killed);
            assert_eq!(runs(&store), 1);

            let killed = if ending == "nowhere" { None } else { KILLED };
            assert_eq!(dies("the_abort", dir.path(), ending).signal(), killed);
            if ending == "aborted:before" {
                abort(&store).await;
            }
            assert_eq!(runs(&store), 0, "{command}, {ending}: it is not undone");
            assert!(Journal::open_for(&store, "dvm").unwrap().is_none(), "{command}, {ending}: it is not closed");
        }
    }
}

#[tokio::test]
async fn an_abort_undoes_the_last_step_first() {
    let (_dir, store) = begin();
    rehearse(&store).await.unwrap();
    let undone = abort(&store).await;
    assert_eq!(undone.first(), Some(&Undo::Rehearsal));
    let of_table: Vec<Undo> =
        crate::step::of_side(Side::Host).map(|row| row.undo).filter(|undo| *undo != Undo::Nothing).collect();
    assert!(undone.iter().eq(of_table.iter().rev()), "{undone:?}");
}
