//! A shell in place of the tools looks around, as a hostile image would have them do.
#![allow(clippy::unwrap_used)]
use super::*;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Output;

const SOMEBODY: u32 = 12345;

/// A folder with an image of somebody's and a file beside it, both open to nobody else.
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
    tool("sh", files).unwrap().args(["-c", script]).output().unwrap()
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
    // Controls: it writes where it may, and sees what is shown to it.
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

/// What the kernel says of it while it runs, and that it ends with its parent.
#[test]
fn a_tool_has_no_capability_no_network_and_nobody_to_signal() {
    let dir = images();
    let image = dir.path().join("image");
    let mut command = tool("sh", &[Shown::Read(&image)]).unwrap();
    command.args(["-c", "kill -0 \"$1\" 2>/dev/null && echo seen; echo ready; read -r end", "sh"]);
    command.arg(std::process::id().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut parent = command.spawn().unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap());
    let mut said = String::new();
    lines.read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let tool = fs::read_to_string(children).unwrap().trim().to_owned();
    let proc = Path::new("/proc").join(tool);
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
    // It would read on, as this end is open; its own end closes when it dies with its parent.
    let _stdin = parent.stdin.take().unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert_eq!(lines.read_to_string(&mut said).unwrap(), 0);
}

#[test]
fn files_of_two_users_and_unknown_programs_are_refused() {
    let dir = images();
    let own = dir.path().join("own");
    fs::write(&own, "").unwrap();
    let image = dir.path().join("image");
    let refused = tool("sh", &[Shown::Read(&image), Shown::Write(&own)]).unwrap_err();
    assert!(refused.to_string().contains("chown"), "{refused}");
    assert_eq!(tool("no-such-program", &[Shown::Read(&own)]).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(tool("sh", &[]).is_err());
}
