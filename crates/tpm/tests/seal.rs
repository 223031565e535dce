//! Sealed secrets of a host, against real TPMs (swtpm): one opens in this TPM, after this boot, until the counter's
//! next step, and never otherwise.

#![allow(clippy::unwrap_used)]

#[path = "support/boot.rs"]
#[allow(dead_code, unreachable_pub)]
mod boot;

use boot::{Machine, boot};
use tpm::{Counter, HostTpm, TpmError};
use uuid::Uuid;

const SECRET: &[u8; 32] = b"the key of what this host keeps.";
const VM: Counter = Counter::of(Uuid::from_bytes([1; 16]));
const OTHER: Counter = Counter::of(Uuid::from_bytes([2; 16]));

async fn machine() -> (Machine, HostTpm) {
    let machine = Machine::start(&boot(true));
    let tpm = HostTpm::open(Some(&machine.tcti), &machine.log_file()).await.unwrap();
    (machine, tpm)
}

fn failed_in<T>(done: Result<T, TpmError>) -> &'static str {
    match done.err().unwrap() {
        TpmError::Failed { tool, .. } => tool,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_step_of_the_counter_closes_what_was_sealed_before() {
    let (_machine, tpm) = machine().await;
    assert_eq!(tpm.counter(VM).await.unwrap(), None);
    let first = tpm.step(VM).await.unwrap();
    assert_eq!(tpm.counter(VM).await.unwrap(), Some(first));
    let old = tpm.seal(SECRET, VM, first).await.unwrap();
    // Made for where the counter will stand next.
    let next = tpm.seal(SECRET, VM, first + 1).await.unwrap();
    assert_eq!(failed_in(tpm.unseal(&next, VM, first + 1).await), "tpm2_policynv");
    for _ in 0..2 {
        assert_eq!(*tpm.unseal(&old, VM, first).await.unwrap(), SECRET);
    }
    assert_eq!(tpm.step(VM).await.unwrap(), first + 1);
    assert_eq!(failed_in(tpm.unseal(&old, VM, first).await), "tpm2_policynv");
    // The value that it has now is not the one in the policy.
    assert_eq!(failed_in(tpm.unseal(&old, VM, first + 1).await), "tpm2_unseal");
    assert_eq!(*tpm.unseal(&next, VM, first + 1).await.unwrap(), SECRET);
}

#[tokio::test]
async fn a_counter_that_is_made_anew_does_not_come_back() {
    let (_machine, tpm) = machine().await;
    let at = tpm.step(VM).await.unwrap();
    let sealed = tpm.seal(SECRET, VM, at).await.unwrap();
    tpm.retire(VM).await.unwrap();
    tpm.retire(VM).await.unwrap();
    assert!(tpm.unseal(&sealed, VM, at).await.is_err());
    assert!(tpm.step(VM).await.unwrap() > at);
    assert!(tpm.unseal(&sealed, VM, at).await.is_err());
    let again = tpm.counter(VM).await.unwrap().unwrap();
    let sealed = tpm.seal(SECRET, VM, again).await.unwrap();
    assert_eq!(*tpm.unseal(&sealed, VM, again).await.unwrap(), SECRET, "the control");
}

#[tokio::test]
async fn another_boot_another_tpm_and_another_vms_counter_open_nothing() {
    let (machine, tpm) = machine().await;
    let at = tpm.step(VM).await.unwrap();
    let sealed = tpm.seal(SECRET, VM, at).await.unwrap();
    // A second VM's counter that has the same value.
    while tpm.step(OTHER).await.unwrap() < at {}
    assert!(tpm.unseal(&sealed, OTHER, at).await.is_err());
    let (_other, elsewhere) = self::machine().await;
    while elsewhere.step(VM).await.unwrap() < at {}
    assert_eq!(failed_in(elsewhere.unseal(&sealed, VM, at).await), "tpm2_load");
    assert_eq!(*tpm.unseal(&sealed, VM, at).await.unwrap(), SECRET, "the control");
    machine.extend(7, b"Secure Boot is off");
    assert_eq!(failed_in(tpm.unseal(&sealed, VM, at).await), "tpm2_unseal");
}

/// Root makes an index of another kind where the counter would be: one that can be set back.
#[tokio::test]
async fn an_index_that_is_no_counter_is_not_used() {
    let (machine, tpm) = machine().await;
    tpm.step(VM).await.unwrap();
    tpm.retire(VM).await.unwrap();
    let index = VM.index();
    assert!(machine.tool("tpm2_nvdefine", &["-C", "o", "-s", "8", "-a", "authread|authwrite|no_da", &index]));
    for done in [tpm.step(VM).await.map(drop), tpm.counter(VM).await.map(drop), tpm.retire(VM).await] {
        assert!(matches!(done, Err(TpmError::ForeignCounter { .. })), "{done:?}");
    }
}

#[tokio::test]
async fn nothing_stays_in_the_tpm_but_the_counter() {
    let (machine, tpm) = machine().await;
    let at = tpm.step(VM).await.unwrap();
    let sealed = tpm.seal(SECRET, VM, at).await.unwrap();
    tpm.unseal(&sealed, VM, at).await.unwrap();
    tpm.unseal(&sealed, VM, at + 1).await.err().unwrap();
    for kind in ["handles-transient", "handles-loaded-session", "handles-saved-session"] {
        assert_eq!(machine.says("tpm2_getcap", &[kind]), "", "{kind}");
    }
    assert_ne!(machine.says("tpm2_getcap", &["handles-nv-index"]), "", "the control");
}
