//! What the agent reads from its socket and from its store.

use std::path::Path;

use host::api::{CreateNic, CreateVm, VmRequest};
use machine::{ConsoleProfile, Policy};
use recovery::api::{Destination, RecoveryRequest};
use recovery::{Journal, Request, Step};

use crate::Target;
use crate::papers::{json, same_again};
use crate::vm::spec;
use crate::world::{RECOVERY, VM, World};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "migration_message", seeds: messages, run: message },
    Target { name: "agent_request", seeds: requests, run: request },
    Target { name: "journal", seeds: journals, run: journal },
];

fn requests(_: &World) -> Vec<Vec<u8>> {
    let name = || String::from("dvm");
    let create = CreateVm {
        name: name(),
        memory_mib: 1024,
        vcpus: 2,
        disks: vec!["/images/a.qcow2".into()],
        nics: vec![CreateNic { bridge: "br0".into(), mac: Some("52:54:00:00:00:01".into()) }],
        switch: None,
        mac: None,
        nested: true,
        policy: Policy::Shielded,
        console_profile: ConsoleProfile::Server2019,
        protector: "<Protector/>".into(),
    };
    [
        Request::Vm(VmRequest::AgentInfo),
        Request::Vm(VmRequest::VmCreate(create)),
        Request::Vm(VmRequest::VmStop { name: name(), force: true }),
        Request::Vm(VmRequest::VmConsole { name: name() }),
        Request::Vm(VmRequest::VmSession { name: name() }),
        Request::Vm(VmRequest::VmSetPolicy { name: name(), policy: Policy::EncryptionSupported }),
        Request::Recovery(RecoveryRequest::RecoveryExport {
            vm: name(),
            to: Destination::Garage("vmre".into()),
            copy: true,
            stop: false,
            restart_garage: false,
        }),
        Request::Recovery(RecoveryRequest::RecoveryImport {
            grant: Some("{}".into()),
            grant_name: None,
            switch: "br0".into(),
            hours: 24,
            install: false,
        }),
        Request::Recovery(RecoveryRequest::RecoveryAttach {
            file: "/rg.vhdx".into(),
            garage: "vmre".into(),
            restart_garage: true,
        }),
        Request::Recovery(RecoveryRequest::RecoveryReinstate { vm: name(), from: None, keep_original: true }),
        Request::Recovery(RecoveryRequest::RecoveryStatus { vm: None }),
        Request::Recovery(RecoveryRequest::GarageInit),
    ]
    .map(|request| json(&request).into_bytes())
    .to_vec()
}

fn request(_: &World, bytes: &[u8]) -> bool {
    let Ok(request) = Request::read(bytes) else { return false };
    same_again(&request);
    true
}

fn journals(_: &World) -> Vec<Vec<u8>> {
    let steps = |names: &[Step]| -> String {
        let entries: Vec<String> = names.iter().map(|step| format!("{{\"step\":\"{step}\",\"at\":1}}")).collect();
        entries.join(",")
    };
    [("host", "\"vmre\"", &Step::ALL[..11]), ("garage", "null", &Step::ALL[11..20])]
        .map(|(side, garage, done)| {
            format!(
                "{{\"version\":1,\"id\":\"{RECOVERY}\",\"side\":\"{side}\",\"vm\":\"dvm\",\"number\":1,\
                 \"garage\":{garage},\"mode\":\"overlay\",\"steps\":[{}]}}",
                steps(done)
            )
            .into_bytes()
        })
        .to_vec()
}

fn journal(_: &World, bytes: &[u8]) -> bool {
    let Ok(journal) = Journal::parse(Path::new("/recoveries/a"), bytes) else { return false };
    assert!(journal.steps().len() <= bytes.len());
    for step in Step::ALL {
        assert_eq!(journal.done(step), journal.steps().iter().any(|entry| entry.step == step));
    }
    let ended = [Step::Closed, Step::Aborted, Step::RolledBack].into_iter().any(|step| journal.done(step));
    assert_eq!(journal.is_closed(), ended);
    let _ = (journal.id(), journal.side(), journal.mode(), journal.garage(), journal.vm());
    true
}

fn messages(world: &World) -> Vec<Vec<u8>> {
    let shape = spec();
    let offer = serde_json::json!({ "offer": {
        "version": 1, "migration": VM, "processor": "max,-svm", "generation": 3,
        "protector": String::from_utf8_lossy(&world.protector.to_xml()), "record": "AAAA",
        "vm": {
            "id": VM, "name": "dvm", "memory_mib": 1024, "vcpus": 2, "nested": false, "policy": "shielded",
            "disks": [{ "serial": shape.disks[0].serial, "size": shape.disks[0].size }], "nics": shape.nics,
        },
    } });
    let join = serde_json::json!({ "join": { "migration": VM, "purpose": { "disk": 0 } } });
    [offer, join, serde_json::json!("run"), serde_json::json!({ "proof": vec![7; 32] })]
        .map(|message| message.to_string().into_bytes())
        .to_vec()
}

/// What another host says, before it has proved anything. There is one way to write what was read.
fn message(_: &World, bytes: &[u8]) -> bool {
    let Ok(written) = host::migration::respell(bytes) else { return false };
    assert_eq!(host::migration::respell(&written).unwrap(), written);
    true
}
