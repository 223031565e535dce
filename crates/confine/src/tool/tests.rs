//! A shell in place of the tools looks around, as a hostile image would make them do.
#![allow(clippy::unwrap_used)]
use super::*;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Output;

use rustix::event::Timespec;

const SOMEBODY: u32 = 12345;

/// A directory with an image and a file beside it, both of another user and closed to everybody else.
fn images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["image", "beside"] {
        let path = dir.path().join(name);
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }
    dir
}

fn shell(files: &[Shown<'_>], script: &str) -> Output {
    let mut tool = Tool::new("sh", files).unwrap();
    tool.command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
    tool.spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn a_tool_reads_its_file_and_sees_no_other() {
    let dir = images();
    let (image, beside) = (dir.path().join("image"), dir.path().join("beside"));
    let script = format!(
        "cat {0}; test ! -e {1} && test ! -e /proc/self && test ! -e /sys/class && test ! -e /etc/passwd && test ! -e /root &&
         test \"$(ls /dev)\" = null &&
         ! echo x > {0} && ! touch /x /usr/x {1} &&
         test $(id -u) = {SOMEBODY} && test -z \"$HOME$CARGO_HOME\"",
        image.display(),
        beside.display()
    );
    let output = shell(&[Shown::Read(&image)], &script);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"image");
    // Controls: it can write where it may, and sees what is shown to it.
    let script = format!("echo x > {} && cat {}", image.display(), beside.display());
    let output = shell(&[Shown::Write(&image), Shown::Read(&beside)], &script);
    assert!(output.status.success() && output.stdout == b"beside", "{output:?}");
    assert_eq!(fs::read(&image).unwrap(), b"x\n");
}

#[test]
fn a_tool_finds_its_file_by_a_relative_name_and_through_links() {
    let dir = images();
    let link = dir.path().join("a link");
    std::os::unix::fs::symlink("image", &link).unwrap();
    let output = shell(&[Shown::Read(&link)], &format!("cat '{}'", link.display()));
    assert_eq!(output.stdout, b"image", "{output:?}");
    let output = shell(&[Shown::Read(Path::new("Cargo.toml"))], "cat Cargo.toml");
    assert!(output.stdout.starts_with(b"[package]"), "{output:?}");
}

/// What the kernel reports while it runs.
#[test]
fn a_tool_has_no_capability_no_network_and_nobody_to_signal() {
    let dir = images();
    let image = dir.path().join("image");
    let mut tool = Tool::new("sh", &[Shown::Read(&image)]).unwrap();
    tool.command.args(["-c", "kill -0 \"$1\" 2>/dev/null && echo seen; echo ready; read -r end", "sh"]);
    tool.command.arg(std::process::id().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = tool.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    lines.read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    let proc = Path::new("/proc").join(child.id().to_string());
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Uid"), format!("{SOMEBODY} {SOMEBODY} {SOMEBODY} {SOMEBODY}"));
    assert_eq!(field("Groups"), "");
    let interfaces = fs::read_to_string(proc.join("net/dev")).unwrap();
    assert_eq!(
        interfaces.lines().skip(2).map(|line| line.split(':').next().unwrap().trim()).collect::<Vec<_>>(),
        ["lo"]
    );
    for namespace in ["mnt", "net", "pid", "ipc", "uts"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
        assert_ne!(of(&proc), of(Path::new("/proc/self")), "{namespace}");
    }
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().take(2).collect::<Vec<_>>(), ["1", "1"]);
    drop(child.stdin.take());
    assert!(child.wait().is_ok());
}

/// The agent that is killed is this test again, in a process of its own.
#[test]
fn a_tool_ends_with_the_agent_that_started_it() {
    const AGENT: &str = "DRYDOCK_TEST_AGENT";
    if let Some(image) = std::env::var_os(AGENT) {
        let mut tool = Tool::new("sh", &[Shown::Read(Path::new(&image))]).unwrap();
        tool.command.args(["-c", "echo up; read -r end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = tool.spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        eprintln!("tool {}", child.id());
        child.wait().unwrap();
        return;
    }
    let dir = images();
    let mut agent = Command::new(std::env::current_exe().unwrap());
    agent.args(["--exact", "tool::tests::a_tool_ends_with_the_agent_that_started_it", "--nocapture"]);
    agent.env(AGENT, dir.path().join("image")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut agent = agent.spawn().unwrap();
    let mut said = BufReader::new(agent.stderr.take().unwrap()).lines();
    let id = said.find_map(|line| line.unwrap().strip_prefix("tool ").map(str::to_owned)).unwrap();
    let tool = pidfd_open(Pid::from_raw(id.parse().unwrap()).unwrap(), PidfdFlags::empty()).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&tool, PollFlags::IN)], Some(&patience)), Ok(1));
}

#[test]
fn files_of_two_users_and_unknown_programs_are_refused() {
    let dir = images();
    let own = dir.path().join("own");
    fs::write(&own, "").unwrap();
    let image = dir.path().join("image");
    let refused = Tool::new("sh", &[Shown::Read(&image), Shown::Write(&own)]).err().unwrap();
    assert!(refused.to_string().contains("chown"), "{refused}");
    assert_eq!(Tool::new("no-such-program", &[Shown::Read(&own)]).err().unwrap().kind(), ErrorKind::NotFound);
    assert!(Tool::new("sh", &[]).is_err());
}
