//! A VM's own files: specification, sealed record, images.

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use host::VmDir;
use image::import::ImageInfo;
use image::{Format, Source};
use key_protector::TransportKey;
use machine::disk::check_qcow2;
use machine::record::{LABEL, MAX_LEN, SealedRecord};
use machine::{ConsoleProfile, DiskSpec, Firmware, NicSpec, Policy, VmSpec};
use uuid::Uuid;

use crate::Target;
use crate::papers::{json, same_again};
use crate::world::{VM, World};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "vm_spec", seeds: specs, run: vm_spec },
    Target { name: "sealed_record", seeds: records, run: sealed_record },
    Target { name: "image_info", seeds: image_infos, run: image_info },
    Target { name: "qcow2_header", seeds: headers, run: qcow2_header },
];

/// A VM with one disk.
pub(crate) fn spec() -> VmSpec {
    VmSpec {
        id: VM,
        name: "dvm".into(),
        memory_mib: 1024,
        vcpus: 2,
        nested: false,
        policy: Policy::Shielded,
        console_profile: ConsoleProfile::Server2016,
        disks: vec![DiskSpec::new(Source::new("/vm/disk-0.qcow2", Format::Qcow2), "dvm-0", 1 << 30)],
        nics: vec![NicSpec { switch: "br0".into(), mac: "52:54:00:00:00:01".into() }],
        firmware: Firmware { code: "/fw/code.fd".into(), vars_template: "/fw/vars.fd".into() },
    }
}

fn with_sessions() -> VmSpec {
    VmSpec { console_profile: ConsoleProfile::Server2019, ..spec() }
}

fn specs(_: &World) -> Vec<Vec<u8>> {
    let mut other = spec();
    other.policy = Policy::EncryptionSupported;
    let mut overlay = other.disks[0].clone();
    overlay.serial = "dd-0".into();
    overlay.opaque = true;
    overlay.backing = Some(Source::new("/vm/base.raw", Format::Raw));
    other.disks.push(overlay);
    [spec(), with_sessions(), other].map(|spec| json(&spec).into_bytes()).to_vec()
}

fn vm_spec(_: &World, bytes: &[u8]) -> bool {
    let folder = VmDir::at(PathBuf::from("/vms/dvm"), "dvm".into());
    let Ok(spec) = folder.parse_spec(bytes) else { return false };
    same_again(&spec);
    assert_eq!(spec.name, "dvm");
    let mut paths = vec![spec.firmware.code.as_path(), &spec.firmware.vars_template];
    for disk in &spec.disks {
        paths.push(disk.source.path());
        paths.extend(disk.backing.as_ref().map(Source::path));
        assert!(!disk.serial_seen().is_empty());
    }
    assert!(paths.into_iter().all(|path| path.is_absolute()), "a path that QEMU could take for a protocol");
    // Its record vouches for it, and for no VM with another policy, console profile, disk or card.
    let record = SealedRecord::new(&spec, 1);
    record.check(&spec).unwrap();
    let mut other = spec.clone();
    other.policy = match spec.policy {
        Policy::Shielded => Policy::EncryptionSupported,
        Policy::EncryptionSupported => Policy::Shielded,
    };
    assert!(record.check(&other).is_err());
    let mut other = spec.clone();
    other.console_profile = match spec.console_profile {
        ConsoleProfile::Server2016 => ConsoleProfile::Server2019,
        ConsoleProfile::Server2019 => ConsoleProfile::Server2016,
    };
    assert!(record.check(&other).is_err());
    let mut other = spec.clone();
    other.disks[0].size ^= 512;
    assert!(record.check(&other).is_err());
    let mut other = spec;
    other.nics.push(NicSpec { switch: "br0".into(), mac: "52:54:00:ff:ff:ff".into() });
    assert!(record.check(&other).is_err());
    true
}

const PROTECTOR: &str = "abababababababababababababababababababababababababababababababab";

fn transport_key() -> TransportKey {
    TransportKey::from_bytes([7; 32])
}

fn records(_: &World) -> Vec<Vec<u8>> {
    [spec(), with_sessions()].map(|spec| json(&SealedRecord::new(&spec, 1)).into_bytes()).to_vec()
}

/// The bytes as a record that is sealed, and as one that its holder made up.
fn sealed_record(_: &World, bytes: &[u8]) -> bool {
    assert!(SealedRecord::open(bytes, &transport_key(), VM, PROTECTOR).is_err(), "a record without a seal");
    let mut body = bytes.to_vec();
    let key = UnboundKey::new(&AES_256_GCM, transport_key().derive(LABEL).expose()).map(LessSafeKey::new).unwrap();
    let aad = [b"drydock-record-v1".as_slice(), VM.as_bytes(), PROTECTOR.as_bytes()].concat();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(aad), &mut body).unwrap();
    let sealed = [b"DDREC\0\0\x01".as_slice(), VM.as_bytes(), &[0; 12], &body].concat();
    let Ok(record) = SealedRecord::open(&sealed, &transport_key(), VM, PROTECTOR) else { return false };
    assert!(sealed.len() <= MAX_LEN && record.vm_id == VM);
    same_again(&record);
    let _ = record.check(&spec());
    // Under any other name, key or protector, or with any byte changed, it does not open.
    let refused = |sealed: &[u8], key: TransportKey, vm, protector: &str| {
        assert!(SealedRecord::open(sealed, &key, vm, protector).is_err());
    };
    refused(&sealed, TransportKey::from_bytes([8; 32]), VM, PROTECTOR);
    refused(&sealed, transport_key(), Uuid::nil(), PROTECTOR);
    refused(&sealed, transport_key(), VM, &PROTECTOR.replace('a', "c"));
    let mut forged = sealed;
    for place in [0, 8, 24, 36] {
        forged[place] ^= 1;
        refused(&forged, transport_key(), VM, PROTECTOR);
        forged[place] ^= 1;
    }
    true
}

fn image_infos(_: &World) -> Vec<Vec<u8>> {
    let qcow2 = "{\"virtual-size\":1073741824,\"filename\":\"a\",\"cluster-size\":65536,\"format\":\"qcow2\",\
                 \"format-specific\":{\"type\":\"qcow2\",\"data\":{\"compat\":\"1.1\",\"lazy-refcounts\":false}}}";
    let raw = "{\"virtual-size\":512,\"filename\":\"a\",\"format\":\"raw\",\"backing-filename\":null}";
    [qcow2, raw].map(|text| text.as_bytes().to_vec()).to_vec()
}

fn image_info(_: &World, bytes: &[u8]) -> bool {
    let Ok(info) = ImageInfo::read(Path::new("/image"), bytes) else { return false };
    // As a reader sees it that looks at everything, even at what is not UTF-8.
    let text = String::from_utf8_lossy(bytes);
    let value: serde_json::Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        // A number that no type has room for, in a field that nobody reads.
        Err(error) if error.to_string().starts_with("number out of range") => return true,
        Err(error) => panic!("not JSON, but accepted: {error}"),
    };
    assert_eq!(value.get("format"), Some(&info.format.driver().into()));
    assert!(value.get("backing-filename").is_none_or(serde_json::Value::is_null), "a backing file");
    assert!(value.pointer("/format-specific/data/data-file").is_none(), "a data file");
    true
}

fn headers(_: &World) -> Vec<Vec<u8>> {
    [2_u32, 3]
        .map(|version| {
            let mut header = vec![0; 80];
            header[..4].copy_from_slice(b"QFI\xfb");
            header[4..8].copy_from_slice(&version.to_be_bytes());
            header
        })
        .to_vec()
}

fn qcow2_header(_: &World, bytes: &[u8]) -> bool {
    if check_qcow2(bytes).is_err() {
        return false;
    }
    assert!(bytes.starts_with(b"QFI\xfb"));
    assert_eq!(bytes[8..16], [0; 8], "a backing file");
    let version = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
    assert!(version == 2 || version == 3 && bytes[79] & 4 == 0, "a data file");
    true
}
