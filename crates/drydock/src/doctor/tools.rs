//! The programs and the firmware that run VMs.

use std::process::Command;

use super::check::Check;

/// Programs, the packages that they come in, and whether they belong to QEMU.
const PROGRAMS: [(&str, &str, bool); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86", true),
    ("qemu-img", "qemu-utils", true),
    ("qemu-nbd", "qemu-utils", true),
    ("swtpm", "swtpm", false),
    ("setpriv", "util-linux", false),
    ("ip", "iproute2", false),
];

pub(super) fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    let mut qemu: Vec<(&str, String)> = Vec::new();
    for (program, package, of_qemu) in PROGRAMS {
        match version(program) {
            Some(said) => {
                if of_qemu {
                    qemu.push((program, number(&said)));
                }
                checks.push(Check::pass(program, said));
            }
            None => checks.push(Check::fail(program, "is not installed", format!("apt-get install {package}"))),
        }
    }
    checks.push(same_version(&qemu));
    checks.push(match machine::Firmware::find() {
        Ok(firmware) => Check::pass("firmware", firmware.code.display().to_string()),
        Err(error) => Check::fail("firmware", error.to_string(), "apt-get install ovmf"),
    });
    checks
}

/// QEMU's programs read each other's images and talk to each other: all must be of one release.
fn same_version(parts: &[(&str, String)]) -> Check {
    const NAME: &str = "qemu versions";
    let all: Vec<String> = parts.iter().map(|(program, version)| format!("{program} {version}")).collect();
    match parts.split_first() {
        Some(((_, first), rest)) if rest.iter().all(|(_, other)| other == first) => Check::pass(NAME, first.clone()),
        Some(_) => Check::fail(
            NAME,
            all.join(", "),
            "install qemu-system-x86 and qemu-utils from the same release (on Debian 12 both with -t bookworm-backports)",
        ),
        None => Check::skip(NAME, "QEMU is not installed", None),
    }
}

/// The first line that a program prints about its version; none if it does not run.
fn version(program: &str) -> Option<String> {
    let flag = if program == "ip" { "-V" } else { "--version" };
    let output = Command::new(program).arg(flag).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().find(|line| !line.trim().is_empty()).map(|line| line.chars().take(100).collect())
}

/// `10.0.2` in `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn number(said: &str) -> String {
    let word = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    word.unwrap_or(said).trim_end_matches(',').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Outcome;

    #[test]
    fn parts_of_two_releases_are_noticed() {
        assert_eq!(number("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), "10.0.2");
        assert_eq!(number("qemu-nbd 7.2.17 (Debian)"), "7.2.17");
        let of = |versions: &[&'static str]| {
            let parts: Vec<_> = versions.iter().map(|version| ("part", (*version).to_owned())).collect();
            same_version(&parts).outcome
        };
        assert_eq!(of(&["10.0.2", "10.0.2"]), Outcome::Pass);
        assert_eq!(of(&["10.0.2", "7.2.17"]), Outcome::Fail);
        assert_eq!(of(&[]), Outcome::Skip);
    }
}
