//! What an admin and an owner type about stale protectors and the audit log, and the exit codes.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sqlx::{AnyConnection, Connection};
use tempfile::TempDir;

/// A directory in which commands run.
struct Desk {
    directory: TempDir,
}

impl Desk {
    /// Exit code and the last line of `--json`.
    fn run(&self, line: &str) -> (i32, Value) {
        let done = Command::new(env!("CARGO_BIN_EXE_drydock"))
            .arg("--json")
            .args(line.split(' '))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        let last = text.lines().last().unwrap_or_default();
        (done.status.code().unwrap(), serde_json::from_str(last).unwrap_or(Value::Null))
    }

    fn ok(&self, line: &str) -> Value {
        let (code, value) = self.run(line);
        assert_eq!(code, 0, "{line}: {value}");
        value["result"].clone()
    }

    /// The message and the remedy of a command that fails.
    fn fails(&self, line: &str, expected: i32) -> String {
        let (code, value) = self.run(line);
        assert_eq!(code, expected, "{line}: {value}");
        value["error"].to_string()
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn fabric() -> Desk {
    let desk = Desk { directory: tempfile::tempdir().unwrap() };
    desk.ok("hgs init --dir hgs --strict");
    desk.ok("hgs guardian --dir hgs --out fabric.xml");
    for name in ["tenant", "other"] {
        desk.ok(&format!("guardian new {name} --format pem --guardians keys"));
    }
    desk.ok("guardian import fabric.xml --guardians keys");
    desk.ok("protector new --owner tenant --guardian fabric --guardians keys --out vm.protector");
    desk
}

#[test]
fn an_owner_permits_a_stale_protector_and_the_service_takes_it_once() {
    let desk = fabric();
    assert_eq!(desk.ok("hgs status --dir hgs")["strict"], true);
    let signed = desk.ok("protector permit-stale vm.protector --owner tenant --guardians keys --out vm.permit");
    let taken = desk.ok("hgs permit vm.permit --dir hgs");
    assert_eq!(signed["protector"], taken["protector"]);
    assert_eq!(signed["not_after"], taken["not_after"]);
    let why = desk.fails("hgs permit vm.permit --dir hgs", 6);
    assert!(why.contains("used before"), "{why}");
    // Neither overwritten, nor signed by another owner, nor open-ended.
    desk.fails("protector permit-stale vm.protector --owner tenant --guardians keys --out vm.permit", 6);
    let why = desk.fails("protector permit-stale vm.protector --owner other --guardians keys --out other.permit", 4);
    assert!(why.contains("belongs to 'tenant'"), "{why}");
    desk.fails("protector permit-stale vm.protector --owner tenant --guardians keys --out x --hours 10000", 2);
    assert!(!desk.path().join("other.permit").exists());
    // What is no permit.
    desk.fails("hgs permit vm.protector --dir hgs", 4);
    desk.ok("hgs strict off --dir hgs");
    assert_eq!(desk.ok("hgs status --dir hgs")["strict"], false);
    let log = desk.ok("hgs audit --dir hgs");
    let events: Vec<_> = log["entries"].as_array().unwrap().iter().map(|entry| entry["event"].clone()).collect();
    assert_eq!(events, ["policy-changed", "stale-permitted", "policy-changed"]);
}

#[tokio::test]
async fn a_meddled_log_is_refused() {
    let desk = fabric();
    desk.ok("hgs strict off --dir hgs");
    let verified = desk.ok("hgs audit verify --dir hgs");
    assert_eq!(verified["rows"], 2);
    let kept = verified["head"].as_str().unwrap();
    desk.ok(&format!("hgs audit verify --dir hgs --kept {kept}"));
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}", desk.path().join("hgs/hgs.sqlite").display());
    let mut store = AnyConnection::connect(&url).await.unwrap();
    sqlx::query("DELETE FROM audit WHERE seq = 2").execute(&mut store).await.unwrap();
    desk.ok("hgs audit verify --dir hgs");
    let why = desk.fails(&format!("hgs audit verify --dir hgs --kept {kept}"), 3);
    assert!(why.contains("cut"), "{why}");
    sqlx::query("UPDATE audit SET why = 'nothing'").execute(&mut store).await.unwrap();
    for command in ["hgs audit verify --dir hgs", "hgs audit --dir hgs"] {
        let why = desk.fails(command, 3);
        assert!(why.contains("row 1"), "{why}");
    }
}
