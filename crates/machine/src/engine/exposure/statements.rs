//! What is stated of every VM, and whether it holds for this one.

use confine::view;

use super::descriptors::ChannelKind;
use super::process::{Capabilities, ProcessExposure};
use super::report::{ExposureReport, Statement};
use super::subject::Subject;
use crate::engine::channels::chardevs;
use crate::spec::ConsoleProfile;
use crate::user;

/// Devices that a VM may have.
const DEVICES: [&str; 5] = ["pcie-root-port", "virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci", "tpm-crb"];
/// And in addition with a console.
const SERIAL: &str = "isa-serial";
/// And in addition with sessions: the controller, and the port of an open session.
const SESSIONS: [&str; 2] = ["virtio-serial-pci", "virtserialport"];

/// Contradictions make a statement false.
fn statement(subject: &str, statement: &str, required: bool, but: Vec<String>) -> Statement {
    Statement { subject: subject.into(), statement: statement.into(), holds: but.is_empty(), required, but }
}

pub(super) fn all(report: &ExposureReport, subject: &Subject) -> Vec<Statement> {
    let mut all = Vec::new();
    for (name, process) in [("QEMU", &report.qemu), ("swtpm", &report.swtpm)] {
        all.extend(of_process(name, process));
    }
    all.extend(of_machine(report, subject));
    all
}

fn of_process(name: &str, process: &ProcessExposure) -> Vec<Statement> {
    let of_kind = |kind: ChannelKind| {
        process.descriptors.iter().filter(move |d| d.kind == kind).map(|d| d.target.clone()).collect::<Vec<_>>()
    };
    let unless = |holds: bool, but: &dyn Fn() -> String| if holds { Vec::new() } else { vec![but()] };
    let root = rustix::process::geteuid().is_root();
    let (uids, gids) = (&process.uids, [&process.gids[..], &process.groups].concat());
    let reserved = !uids.is_empty() && uids.iter().all(|uid| *uid >= user::FIRST);
    let others = process.same_user.iter().map(|pid| format!("process {pid} has it too"));
    vec![
        statement(name, "no listening socket", true, of_kind(ChannelKind::ListeningSocket)),
        statement(name, "no network socket", true, of_kind(ChannelKind::NetworkSocket)),
        statement(name, "no socket with a name", true, of_kind(ChannelKind::NamedSocket)),
        statement(
            name,
            "a seccomp filter on every thread",
            true,
            unless(process.seccomp == 2 && process.own_seccomp_filters > 0, &|| {
                format!("mode {}, {} beyond the agent's", process.seccomp, process.own_seccomp_filters)
            }),
        ),
        statement(
            name,
            "no new privileges on every thread",
            true,
            unless(process.no_new_privs, &|| "they can be gained".into()),
        ),
        statement(
            name,
            "no capability",
            true,
            unless(process.capabilities == Capabilities::default(), &|| format!("{:x?}", process.capabilities)),
        ),
        statement(
            name,
            "no core dump, to a file or a program, and no memory in one",
            true,
            // A core_pattern program gets dumps even with a limit of 0, but not with 1: core(5).
            unless(process.core_limit == Some(1), &|| format!("the limit is {:?}, not 1", process.core_limit))
                .into_iter()
                .chain(unless(process.core_filter == 0, &|| format!("the filter is {:x}", process.core_filter)))
                .collect(),
        ),
        statement(
            name,
            "a user of its own",
            root,
            unless(reserved, &|| format!("its UIDs are {uids:?}")).into_iter().chain(others).collect(),
        ),
        statement(
            name,
            "not in root's group",
            root,
            unless(!gids.contains(&0), &|| format!("its groups are {gids:?}")),
        ),
        statement(
            name,
            "its own mount namespace, without the files of people, services and other VMs",
            view::offered(),
            unless(process.private_view, &|| "it has the agent's".into())
                .into_iter()
                .chain(process.sees.iter().map(|directory| format!("it sees {}", directory.display())))
                .collect(),
        ),
        statement(
            name,
            "no memory in swap",
            false,
            unless(process.swapped == 0, &|| format!("{} bytes are", process.swapped)),
        ),
    ]
}

fn of_machine(report: &ExposureReport, subject: &Subject) -> Vec<Statement> {
    let name = "the machine";
    let sessions = subject.console_profile == ConsoleProfile::Server2019;
    let channels = chardevs(subject.console, subject.console_profile);
    let only = format!("no channels except {}", channels.join(", "));
    let others = report.chardevs.iter().map(|c| &c.label).filter(|label| !channels.contains(&label.as_str()));
    let foreign = report.devices.iter().filter(|device| {
        let driver = device.driver.as_str();
        let known = DEVICES.contains(&driver)
            || (subject.console && driver == SERIAL)
            || (sessions && SESSIONS.contains(&driver));
        !known
    });
    let devices = if sessions {
        "no devices except disks, network cards, vTPM, random numbers and sessions"
    } else {
        "no devices except disks, network cards, vTPM and random numbers"
    };
    let written = report.qemu.descriptors.iter().filter(|descriptor| {
        let stored = matches!(descriptor.kind, ChannelKind::File | ChannelKind::BlockDevice) && descriptor.writable;
        stored && !descriptor.file.is_some_and(|file| subject.written.contains(&file))
    });
    vec![
        statement(name, &only, true, others.cloned().collect()),
        statement(name, devices, true, foreign.map(|device| format!("{} {}", device.driver, device.id)).collect()),
        statement(
            name,
            "no file open for writing except its own variables and disks",
            true,
            written.map(|descriptor| descriptor.target.clone()).collect(),
        ),
        statement(name, "no disk served to others", true, report.exports.clone()),
    ]
}
