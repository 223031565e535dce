//! A VM on an overlay that is merged, while the VM runs, into the image under it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Sandbox, verdict};
use image::{Format, Source};
use key_protector::TransportKey;
use machine::accel::Accel;
use machine::record::SealedRecord;
use machine::slot as state;
use machine::{Error, Policy, RunningVm, StartOptions};

fn write(image: &str, format: &str, pattern: &str, at: &str, length: &str) {
    let command = format!("write -P {pattern} {at} {length}");
    let output =
        std::process::Command::new("qemu-io").args(["-f", format, "-c", &command, image]).output().expect("qemu-utils");
    assert!(output.status.success(), "{output:?}");
}

fn holds(image: &str, format: &str, pattern: &str, at: &str, length: &str) -> bool {
    let command = format!("read -P {pattern} {at} {length}");
    let output =
        std::process::Command::new("qemu-io").args(["-f", format, "-c", &command, image]).output().expect("qemu-utils");
    assert!(output.status.success() || output.status.code() == Some(1), "{output:?}");
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

#[tokio::test]
async fn an_overlay_is_merged_into_every_format_while_the_vm_runs() {
    for format in [Format::Raw, Format::Qcow2, Format::Vhdx] {
        let sandbox = Sandbox::new();
        let mut spec = sandbox.spec(Policy::Shielded);
        let overlay = spec.disks[0].source.path().to_str().unwrap().to_owned();
        let base = sandbox.path("base");
        let (below, driver) = (base.to_str().unwrap(), format.driver());
        common::qemu_img(&["create", "-q", "-f", driver, below, "64M"]);
        write(below, driver, "1", "0", "2M");
        write(&overlay, "qcow2", "2", "1M", "64k");
        spec.disks[0].backing = Some(Source::new(&base, format));
        let before = std::fs::read(&base).unwrap();

        let (key, slot) = (TransportKey::generate(), sandbox.path("slot"));
        let record = SealedRecord::new(&spec, 1);
        state::create(&slot, &key, &record, &"c".repeat(64), &spec.firmware).await.unwrap();
        let options = || StartOptions {
            accel: verdict(Accel::Tcg),
            log_dir: sandbox.path("log"),
            console: false,
            hidden: Vec::new(),
        };
        let running = RunningVm::start(&spec, &slot, &key, &record, options()).await.unwrap();
        assert_eq!(std::fs::read(&base).unwrap(), before, "{driver}: a start writes into the image below");

        let unknown = running.merge_overlay("other", |_, _| (), || Ok::<(), Error>(())).await.unwrap_err();
        assert!(matches!(unknown, Error::DiskAttachment { .. }));
        // A merge that cannot be recorded leaves the guest paused, and the next call continues from there.
        let unwritten = running
            .merge_overlay("root", |_, _| (), || Err(Error::BlockJob { reason: "the disk is full".into() }))
            .await
            .unwrap_err();
        assert!(unwritten.to_string().contains("the disk is full"), "{unwritten}");
        assert!(running.is_alive() && running.is_unsettled("root"));
        let mut settled = false;
        running
            .merge_overlay(
                "root",
                |_, _| (),
                || {
                    settled = true;
                    Ok::<(), Error>(())
                },
            )
            .await
            .unwrap();
        assert!(settled && running.is_alive() && !running.is_unsettled("root"));
        // The overlay is closed and can be removed; the VM runs without it.
        common::qemu_img(&["check", "-q", &overlay]);
        std::fs::remove_file(&overlay).unwrap();
        running.kill().await;
        assert!(holds(below, driver, "1", "0", "1M"), "{driver}: what was below is gone");
        assert!(holds(below, driver, "2", "1M", "64k"), "{driver}: what was above did not arrive");
        assert!(!holds(below, driver, "1", "0", "2M"));
        assert!(holds(below, driver, "1", "1088k", "960k"), "{driver}: more was written than the overlay held");

        spec.disks[0].source = Source::new(base, format);
        spec.disks[0].backing = None;
        let running = RunningVm::start(&spec, &slot, &key, &record, options()).await.unwrap();
        let none = running.merge_overlay("root", |_, _| (), || Ok::<(), Error>(())).await.unwrap_err();
        assert!(matches!(none, Error::Qmp { .. }), "{none}");
        running.kill().await;
    }
}

#[tokio::test]
async fn an_overlay_that_does_not_fit_is_kept_and_the_vm_goes_on() {
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(Policy::Shielded);
    let overlay = spec.disks[0].source.path().to_str().unwrap().to_owned();
    write(&overlay, "qcow2", "2", "0", "4M");
    let small = common::SmallFileSystem::new(&sandbox.path("small"), 1);
    let base = small.path().join("base.qcow2");
    common::qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "64M"]);
    spec.disks[0].backing = Some(Source::new(base, Format::Qcow2));
    let (key, slot) = (TransportKey::generate(), sandbox.path("slot"));
    let record = SealedRecord::new(&spec, 1);
    state::create(&slot, &key, &record, &"c".repeat(64), &spec.firmware).await.unwrap();
    let options =
        StartOptions { accel: verdict(Accel::Tcg), log_dir: sandbox.path("log"), console: false, hidden: Vec::new() };
    let running = RunningVm::start(&spec, &slot, &key, &record, options).await.unwrap();
    let full = running
        .merge_overlay("root", |_, _| (), || -> Result<(), Error> { panic!("settled, although nothing was merged") })
        .await
        .unwrap_err();
    assert!(matches!(full, Error::BlockJob { .. }), "{full}");
    assert!(full.to_string().contains("space"), "{full}");
    assert!(running.is_alive());
    running.kill().await;
    assert!(holds(&overlay, "qcow2", "2", "0", "4M"), "the overlay lost something");
}

/// A garage gets an overlay on another VM's disk: whatever its QEMU is told, it can write only to the overlay.
#[tokio::test]
async fn under_an_attached_overlay_nothing_can_be_written() {
    let sandbox = Sandbox::new();
    let spec = sandbox.spec(Policy::Shielded);
    let (mut overlay, original) = (sandbox.disk("overlay"), sandbox.disk("original"));
    overlay.backing = Some(original.source.clone());
    let (key, slot) = (TransportKey::generate(), sandbox.path("slot"));
    let record = SealedRecord::new(&spec, 1);
    state::create(&slot, &key, &record, &"c".repeat(64), &spec.firmware).await.unwrap();
    let log_dir = sandbox.path("log");
    let options = StartOptions { accel: verdict(Accel::Tcg), log_dir, console: false, hidden: Vec::new() };
    let running = RunningVm::start(&spec, &slot, &key, &record, options).await.unwrap();
    running.attach_disk(&overlay).await.unwrap();
    let report = running.exposure().await.unwrap();
    let writable = |path: &std::path::Path| {
        let target = path.display().to_string();
        report.qemu.descriptors.iter().filter(|d| d.target == target).map(|d| d.writable).collect::<Vec<_>>()
    };
    assert_eq!(writable(original.source.path()), [false]);
    assert_eq!(writable(overlay.source.path()), [true]);
    assert!(report.holds.iter().all(|statement| statement.holds), "{:?}", report.holds);
    let merged = running.merge_overlay("overlay", |_, _| (), || Ok::<(), Error>(())).await.unwrap_err();
    assert!(matches!(merged, Error::DiskAttachment { .. }), "{merged}");
    running.detach_disk("overlay").await.unwrap();
    running.kill().await;
}
