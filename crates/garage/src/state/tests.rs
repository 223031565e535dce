#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use proptest::prelude::*;

use super::*;
use crate::layout::STATE_SIZE;
use crate::memory::Memory;

fn bundle(text: &str) -> Bundle {
    Bundle::from_files([
        ("record.sealed".to_owned(), text.as_bytes().to_vec()),
        ("vars.luks".to_owned(), vec![0x5a; 3000]),
        ("vtpm/tpm2-00.permall".to_owned(), vec![1, 2, 3]),
        ("vtpm/.lock".to_owned(), vec![]),
    ])
    .unwrap()
}

/// A bundle's bytes with any names, sorted as given.
fn raw(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = BUNDLE_MAGIC.to_vec();
    out.extend_from_slice(&(files.len() as u32).to_le_bytes());
    for (name, contents) in files {
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&(contents.len() as u32).to_le_bytes());
        out.extend_from_slice(contents);
    }
    out
}

#[test]
fn folders_round_trip() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("slot");
    let bundle = bundle("one");
    bundle.unpack(&folder).unwrap();
    assert!(Bundle::pack(&folder).unwrap() == bundle);
    for (path, mode) in [("", 0o700), ("vtpm", 0o700), ("vars.luks", 0o600), ("vtpm/.lock", 0o600)] {
        let found = fs::metadata(folder.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(found, mode, "{path}");
    }
    // Never over something, and nothing is left of the attempt.
    assert!(matches!(bundle.unpack(&folder).unwrap_err(), StateError::File { op: "create", .. }));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
}

#[test]
fn only_plain_small_folders_are_packed() {
    let temp = tempfile::tempdir().unwrap();
    let make = |name: &str, fill: &dyn Fn(&std::path::Path)| {
        let folder = temp.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("record.sealed"), "x").unwrap();
        fill(&folder);
        Bundle::pack(&folder).map(drop).unwrap_err()
    };
    assert!(matches!(
        make("symlink", &|f| symlink("record.sealed", f.join("vars.luks")).unwrap()),
        StateError::FileType { .. }
    ));
    assert!(matches!(
        make("socket", &|f| drop(std::os::unix::net::UnixListener::bind(f.join("s")).unwrap())),
        StateError::FileType { .. }
    ));
    assert!(matches!(make("deep", &|f| fs::create_dir_all(f.join("a/b")).unwrap()), StateError::FileType { .. }));
    assert!(matches!(make("name", &|f| fs::write(f.join("a b"), "").unwrap()), StateError::Name));
    assert!(matches!(
        make("many", &|f| (0..16).for_each(|i| fs::write(f.join(i.to_string()), "").unwrap())),
        StateError::FileCount { count: 17 }
    ));
    assert!(matches!(
        make("big", &|f| fs::File::create(f.join("big")).unwrap().set_len(MAX_CONTENTS as u64).unwrap()),
        StateError::TooLarge
    ));
    let link = temp.path().join("link");
    symlink(temp.path().join("name"), &link).unwrap();
    assert!(matches!(Bundle::pack(&link).map(drop).unwrap_err(), StateError::File { op: "open", .. }));
    let empty = temp.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(Bundle::pack(&empty).map(drop).unwrap_err(), StateError::FileCount { count: 0 }));
}

#[test]
fn the_largest_bundle_fits_its_slot() {
    let largest = Bundle::from_files([("a".to_owned(), vec![0; MAX_CONTENTS])]).unwrap();
    let mut part = Memory::new(STATE_SIZE);
    let digest = write(&mut part, &largest, None).unwrap();
    assert!(read(&mut part, digest).unwrap() == largest);
    assert!((SLOT_HEADER + MAX_BUNDLE) as u64 <= SLOTS[1]);
    assert!(matches!(
        Bundle::from_files([("a".to_owned(), vec![0; MAX_CONTENTS + 1])]).map(drop).unwrap_err(),
        StateError::TooLarge
    ));
}

#[test]
fn names_cannot_leave_the_folder() {
    let long = "x".repeat(MAX_COMPONENT + 1);
    for name in ["", ".", "..", "/etc", "../x", "a/..", "a//b", "a/b/c", "a/", "a\0", "ä", "a b", &long] {
        let result = Bundle::parse(&raw(&[(name, b"")]));
        assert!(matches!(result, Err(StateError::Name)), "{name:?}");
    }
    let result = Bundle::parse(&raw(&[("vtpm", b""), ("vtpm/a", b"")]));
    assert!(matches!(result, Err(StateError::Name)));
}

#[test]
fn there_is_one_encoding() {
    let error = |bytes: &[u8]| Bundle::parse(bytes).map(drop).unwrap_err();
    assert!(matches!(error(&raw(&[("b", b""), ("a", b"")])), StateError::Order));
    assert!(matches!(error(&raw(&[("a", b""), ("a", b"")])), StateError::Order));
    assert!(matches!(error(&raw(&[])), StateError::FileCount { count: 0 }));
    let mut trailing = bundle("x").to_bytes();
    trailing.push(0);
    assert!(matches!(error(&trailing), StateError::Trailing { count: 1 }));
    let good = bundle("x").to_bytes();
    for cut in 0..good.len() {
        assert!(Bundle::parse(&good[..cut]).is_err());
    }
    let mut many = BUNDLE_MAGIC.to_vec();
    many.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(error(&many), StateError::FileCount { .. }));
}

#[test]
fn a_torn_write_leaves_the_active_state() {
    let mut part = Memory::new(STATE_SIZE);
    let mut active = write(&mut part, &bundle("0"), None).unwrap();
    for round in 1..4 {
        let next = bundle(&round.to_string());
        let full = SLOT_HEADER + next.to_bytes().len();
        for cut in (0..full).step_by(97).chain([full]) {
            let mut torn = part.clone();
            torn.cut_after(cut);
            assert!(write(&mut torn, &next, Some(active)).is_err());
            torn.restore();
            assert_eq!(read(&mut torn, active).unwrap().sha256(), active);
        }
        let digest = write(&mut part, &next, Some(active)).unwrap();
        assert_eq!(digest, next.sha256());
        assert!(read(&mut part, active).is_ok());
        assert!(read(&mut part, digest).unwrap() == next);
        active = digest;
    }
    let other = Digest::of(b"other");
    assert!(matches!(
        read(&mut part, other).map(drop).unwrap_err(),
        StateError::NotFound { expected } if expected == other
    ));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Bundle::parse(&bytes);
        let mut after = BUNDLE_MAGIC.to_vec();
        after.extend_from_slice(&[3, 0, 0, 0]);
        after.extend_from_slice(&bytes);
        let _ = Bundle::parse(&after);
    }

    #[test]
    fn what_parses_is_canonical(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = bundle("text").to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(parsed) = Bundle::parse(&bytes) {
            prop_assert_eq!(parsed.to_bytes(), bytes);
        }
    }

    #[test]
    fn a_flip_on_the_disk_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut part = Memory::new(STATE_SIZE);
        let digest = write(&mut part, &bundle("x"), None).unwrap();
        let len = SLOT_HEADER + bundle("x").to_bytes().len();
        part.flip(at.index(len) as u64, 1 << bit);
        let refused = matches!(read(&mut part, digest), Err(StateError::NotFound { .. }));
        prop_assert!(refused);
    }
}
