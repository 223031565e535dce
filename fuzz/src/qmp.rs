//! What QEMU sends on its control channel: the guest may have taken QEMU over.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use machine::exposure::{MachineAnswers, MachineExposure};
use machine::qmp::{BlockJob, Message, Migration, list, read_message, run_state};
use serde_json::Value;

use crate::Target;
use crate::world::World;

pub(crate) const TARGETS: &[Target] = &[Target { name: "qmp", seeds: conversations, run: qmp }];

const JOB: &str = "merge-0";

fn conversations(_: &World) -> Vec<Vec<u8>> {
    let lines = [
        r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}"#,
        r#"{"return":{},"id":1}"#,
        r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"BLOCK_JOB_READY","data":{"device":"merge-0"}}"#,
        r#"{"return":{"status":"running","running":true},"id":2}"#,
        r#"{"id":3,"error":{"class":"GenericError","desc":"no"}}"#,
        r#"{"return":[{"device":"merge-0","ready":true,"offset":1,"len":2}],"id":4}"#,
        r#"{"return":{"status":"failed","error-desc":"no","ram":{"total":9,"remaining":3}},"id":5}"#,
        r#"{"return":[{"label":"qmp","filename":"unix:"},{"label":"tpm0","filename":"unix:"}],"id":6}"#,
        r#"{"return":[{"node-name":"disk0","drv":"qcow2","ro":false}],"id":7}"#,
        r#"{"return":[{"name":"nic0","type":"child<virtio-net-pci>"},{"name":"type","type":"string"}],"id":8}"#,
    ];
    let all = lines.map(|line| format!("{line}\n"));
    vec![
        all.concat().into_bytes(),
        all[3].clone().into_bytes(),
        all[5].clone().into_bytes(),
        all[9].clone().into_bytes(),
    ]
}

/// Reads the whole stream; false where it breaks the protocol.
fn qmp(_: &World, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    loop {
        let before = rest;
        match ready(read_message(&mut rest)) {
            Ok(None) => {
                assert!(rest.is_empty(), "bytes were skipped");
                return !bytes.is_empty();
            }
            Ok(Some(message)) => check(&before[..before.len() - rest.len()], message),
            Err(_) => return false,
        }
    }
}

/// Bytes in memory are always there: nothing that reads them waits.
fn ready<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits although it has all bytes"),
    }
}

/// The message against the line that it was read from.
fn check(line: &[u8], message: Message) {
    assert!(line.ends_with(b"\n") && !line[..line.len() - 1].contains(&b'\n'), "more or less than a line was read");
    let value: Value = serde_json::from_slice(line).unwrap();
    match message {
        Message::Greeting => assert!(value.get("QMP").is_some()),
        Message::Event(event) => assert!(value["event"] == event.name.as_str()),
        Message::Answer { id, answer: Ok(answer) } => {
            assert!(value["id"] == id && value.get("return") == Some(&answer), "an answer that QEMU did not give");
            check_answer(answer);
        }
        Message::Answer { id, answer: Err(_) } => {
            assert!(value["id"] == id && value.get("return").is_none(), "a refusal that QEMU did not give");
        }
        Message::Stray => assert!(value.get("QMP").is_none() && value["id"].as_u64().is_none()),
    }
}

/// The answer as one to each of the commands that anything acts on.
fn check_answer(answer: Value) {
    assert_eq!(run_state(&answer), answer["status"].as_str());
    if let Ok(job) = BlockJob::find(&answer, JOB) {
        let named = answer.as_array().unwrap().iter().find(|entry| entry["device"] == JOB);
        assert_eq!(job.is_some(), named.is_some());
        if let (Some(job), Some(named)) = (job, named) {
            assert_eq!(job.ready, named["ready"] == true, "a job that is not ready counts as ready");
        }
    }
    let migration = Migration::of(&answer);
    assert!(migration.done <= migration.total);
    assert!(migration.status() != "completed" || answer["status"] == "completed", "an end that QEMU did not report");
    assert!(!(migration.is_active() && migration.end().is_some()));
    let entries = list(answer.clone());
    assert!(entries.as_ref().is_ok_and(|entries| entries.len() <= 4096) || entries.is_err());
    let machine = MachineExposure::of(MachineAnswers {
        kvm: answer.clone(),
        version: answer.clone(),
        chardevs: answer.clone(),
        nodes: answer.clone(),
        exports: answer.clone(),
        devices: vec![answer],
    });
    assert_eq!(machine.is_ok(), entries.is_ok());
    if let (Ok(machine), Ok(entries)) = (machine, entries) {
        let none_is_missing = [machine.chardevs.len(), machine.block_nodes.len(), machine.exports.len()];
        assert!(none_is_missing.into_iter().all(|count| count == entries.len()), "an entry is not reported");
        let is_property = |entry: &Value| {
            entry["type"].as_str().is_some_and(|kind| !(kind.starts_with("child<") && kind.ends_with('>')))
        };
        let devices = entries.iter().filter(|entry| !is_property(entry)).count();
        assert_eq!(machine.devices.len(), devices, "a device is not reported");
    }
}
