//! How a machine was started, in TPM mode against real TPMs: the event log, the checks and the baselines.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use attestation::tpm::{Check, EventLog, QUOTED};
use hgs_client::{Error, Status, SubStatus};
use support::boot::{Machine, boot, debug_mode, log};
use support::fabric::{BASELINE_PCRS, Fabric};

#[tokio::test]
async fn the_log_must_lead_to_what_the_tpm_quotes() {
    let fabric = Fabric::with(&boot(true)).await;
    let good = boot(true);
    let file = fabric.machine.log_file();
    let (mut changed, mut swapped) = (good.clone(), good.clone());
    changed[0].2.push(1);
    swapped.swap(1, 2);
    let bytes = log(&good);
    for (case, altered) in [
        ("an event's digest changed", log(&changed)),
        ("an event left out", log(&good[..good.len() - 1])),
        ("an event added", log(&[good.clone(), vec![(9, 13, b"initrd".to_vec())]].concat())),
        ("two events in another order", log(&swapped)),
        ("a byte missing", bytes[..bytes.len() - 1].to_vec()),
        ("a byte more", [bytes.as_slice(), &[0]].concat()),
        ("no events at all", Vec::new()),
        ("no SHA-256", log(&good).replace_algorithm()),
    ] {
        std::fs::write(&file, altered).unwrap();
        let error = fabric.attest().await.err().unwrap();
        assert!(matches!(error, Error::EventLog { .. }), "{case}: {error}");
        assert_eq!(error.status().name(), "TcgLogValidation", "{case}");
        fabric.assert_refused("event log").await;
    }
    std::fs::write(&file, &bytes).unwrap();
    fabric.attest().await.unwrap();

    // A PCR that is not where the log leads to: something was measured that nobody wrote down.
    fabric.machine.extend(4, b"bootkit");
    let error = fabric.attest().await.err().unwrap();
    assert!(matches!(error, Error::EventLog { .. }), "{error}");
    fabric.assert_refused("does not lead to the PCRs").await;
    // And written down, it is not known good.
    std::fs::write(&file, log(&[good, vec![(4, 0x8000_0003, b"bootkit".to_vec())]].concat())).unwrap();
    let error = fabric.attest().await.err().unwrap();
    assert_eq!(error.sub_statuses(), [SubStatus::KnownGood], "{error}");
    fabric.assert_refused("PCR 4 differs from the nearest baseline, 'good'").await;
    fabric.world.shut_down().await;
}

trait Bytes {
    fn replace_algorithm(self) -> Vec<u8>;
}

impl Bytes for Vec<u8> {
    /// Calls SHA-256 something of the same size.
    fn replace_algorithm(mut self) -> Vec<u8> {
        for at in 0..self.len() - 1 {
            if self[at..at + 2] == [11, 0] {
                self[at] = 0x12;
            }
        }
        self
    }
}

#[tokio::test]
async fn secure_boot_off_is_refused_however_the_log_is_told() {
    let fabric = Fabric::with(&boot(false)).await;
    let error = fabric.attest().await.err().unwrap();
    assert_eq!(error.sub_statuses(), [SubStatus::SecureBoot, SubStatus::SecureBootSettings], "{error}");
    assert_eq!(error.status(), Status::InsecureHostConfiguration);
    assert!(error.remedy().contains("turn Secure Boot on"), "{}", error.remedy());
    fabric.assert_refused("Secure Boot was off").await;

    // The operating system measures what firmware would have, and calls the events before it something else.
    let secure = boot(true)[1].clone();
    fabric.machine.extend(secure.0, &secure.2);
    fabric.machine.extend(7, &[0; 4]);
    let mut told = boot(false);
    for event in &mut told {
        if event.0 == 7 {
            event.1 = 0x8000_0007;
        }
    }
    told.extend([secure, (7, 4, vec![0; 4])]);
    std::fs::write(fabric.machine.log_file(), log(&told)).unwrap();
    let error = fabric.attest().await.err().unwrap();
    assert!(error.sub_statuses().contains(&SubStatus::SecureBoot), "{error}");

    // A fabric that does not ask for it takes the machine.
    for check in [Check::SecureBoot, Check::SecureBootSettings] {
        fabric.world.hgs.set_policy(check, false).await.unwrap();
    }
    fabric.attest().await.unwrap();
    fabric.world.hgs.set_policy(Check::SecureBoot, true).await.unwrap();
    assert!(fabric.attest().await.is_err());
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn debug_mode_and_a_missing_baseline_are_refused() {
    let mut measurements = boot(true);
    measurements.push(debug_mode());
    let fabric = Fabric::with(&measurements).await;
    let error = fabric.attest().await.err().unwrap();
    let expected = [SubStatus::DebugMode, SubStatus::SecureBootSettings];
    assert!(expected.iter().all(|sub| error.sub_statuses().contains(sub)), "{error}");

    fabric.world.hgs.add_baseline("debug", &log(&measurements), &BASELINE_PCRS).await.unwrap();
    assert_eq!(fabric.attest().await.err().unwrap().sub_statuses(), [SubStatus::DebugMode]);
    fabric.world.hgs.set_policy(Check::NoDebugMode, false).await.unwrap();
    fabric.attest().await.unwrap();

    for name in ["good", "debug"] {
        fabric.world.hgs.remove_baseline(name).await.unwrap();
    }
    let error = fabric.attest().await.err().unwrap();
    assert!(error.to_string().contains("there is no baseline"), "{error}");
    fabric.world.hgs.verify_audit().await.unwrap();
    fabric.world.shut_down().await;
}

/// The log as others read it: tpm2-tools' PCRs are ours, and both are the TPM's.
#[tokio::test]
async fn other_tools_replay_the_log_to_the_same_pcrs() {
    let machine = Machine::start(&boot(true));
    let output = Command::new("tpm2_eventlog").arg(machine.log_file()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, sums) = text.rsplit_once("sha256:").unwrap();
    let read = machine.folder.path().join("pcrs");
    assert!(machine.tool("tpm2_pcrread", &["sha256:0,1,2,3,4,5,6,7,8,9,14", "-o", "pcrs", "-F", "values"]));
    let values = std::fs::read(read).unwrap();
    let pcrs = EventLog::parse(&log(&boot(true))).unwrap().replay();
    for (place, pcr) in QUOTED.iter().enumerate() {
        let ours = pcrs[*pcr as usize];
        assert_eq!(values[place * 32..place * 32 + 32], ours, "PCR {pcr}");
        let hex: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
        if sums.lines().any(|line| line.trim().starts_with(&format!("{pcr} "))) {
            assert!(sums.contains(&hex), "PCR {pcr} in {sums}");
        }
    }
    assert!(sums.lines().filter(|line| line.contains(": 0x")).count() >= 9, "{sums}");
}
