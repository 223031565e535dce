//! The header of the LUKS container that holds the UEFI variables.

use std::sync::OnceLock;

use machine::LuksFault;
use machine::luks::{self, HEADER_LEN, Header, SECTOR};

use crate::Target;
use crate::world::World;

pub(crate) const TARGETS: &[Target] = &[Target { name: "luks_header", seeds: headers, run: luks_header }];

const PASSPHRASE: &[u8] = b"a passphrase";
const CONTENTS: [u8; SECTOR] = [7; SECTOR];
/// More iterations take too long for a fuzzer. The containers that are made here take 2000.
const AFFORDABLE: u64 = 4000;
/// All that differs between two containers, apart from the UUID: digest, salts and iterations.
const VARIABLE: [std::ops::Range<usize>; 2] = [112..168, 212..248];

/// A sound container, the same one in all runs of a process.
fn sound() -> &'static [u8] {
    static SOUND: OnceLock<Vec<u8>> = OnceLock::new();
    SOUND.get_or_init(|| luks::seal(&CONTENTS, PASSPHRASE).unwrap())
}

fn headers(_: &World) -> Vec<Vec<u8>> {
    let other = luks::seal(&CONTENTS, b"another passphrase").unwrap();
    [sound(), &other].map(|container| container[..HEADER_LEN].to_vec()).to_vec()
}

fn luks_header(_: &World, bytes: &[u8]) -> bool {
    let length = bytes.len().min(HEADER_LEN);
    let mut container = sound().to_vec();
    container[..length].copy_from_slice(&bytes[..length]);
    let Ok(header) = Header::parse(bytes) else {
        if length == HEADER_LEN {
            assert!(luks::open(&container, PASSPHRASE).is_err(), "a container opens without its header");
        }
        return false;
    };
    // Algorithms and places are those that we write, whatever else the header says.
    let again = header.to_bytes();
    assert_eq!(Header::parse(&again).as_ref(), Ok(&header));
    for field in [0..8, 104..168, 208..256] {
        assert!(again[field.clone()] == bytes[field], "a second spelling was accepted");
    }
    for (at, name) in [(8, "aes\0"), (40, "xts-plain64\0"), (72, "sha256\0")] {
        assert!(bytes[at..].starts_with(name.as_bytes()), "another algorithm was accepted");
    }
    assert!((2..=2_000_000).contains(&header.iterations()), "a header that costs nothing, or minutes");
    if header.iterations() <= AFFORDABLE {
        let same = VARIABLE.into_iter().all(|field| bytes[field.clone()] == sound()[field]);
        match luks::open(&container, PASSPHRASE) {
            Ok(contents) => assert!(same && *contents == CONTENTS, "another header opens the container"),
            Err(fault) => assert!(!same && fault == LuksFault::Key, "{fault}"),
        }
    }
    true
}
