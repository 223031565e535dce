//! Our LUKS containers and QEMU's are interchangeable: each program opens what the other made.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Sandbox, contains, qemu_img};
use machine::LuksFault;
use machine::luks::{self, SECTOR};
use proptest::prelude::*;

const PASSPHRASE: &str = "8c0b2f9f82a0f0bb7d2af0ae01c13b6e93b1314988d15681356cdec086b4a818";
const OTHER: &str = "9c0b2f9f82a0f0bb7d2af0ae01c13b6e93b1314988d15681356cdec086b4a818";

/// `sectors` that all differ.
fn contents(sectors: usize) -> Vec<u8> {
    (0..sectors * SECTOR).map(|n| (n / SECTOR * 7 + n * 13) as u8).collect()
}

fn secret(sandbox: &Sandbox, passphrase: &str) -> String {
    let file = sandbox.path("secret");
    std::fs::write(&file, passphrase).unwrap();
    format!("secret,id=k,file={}", file.display())
}

fn image(path: &Path) -> String {
    format!("driver=luks,key-secret=k,file.filename={}", path.display())
}

/// What QEMU reads in a container.
fn read_by_qemu(sandbox: &Sandbox, container: &Path, passphrase: &str) -> Result<Vec<u8>, Output> {
    let (secret, out) = (secret(sandbox, passphrase), sandbox.path("read"));
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-O", "raw", "--object", &secret, "--image-opts", &image(container)]).arg(&out);
    let output = command.output().unwrap();
    if output.status.success() { Ok(std::fs::read(out).unwrap()) } else { Err(output) }
}

fn made_by_qemu(sandbox: &Sandbox, contents: &[u8]) -> PathBuf {
    let (raw, container, secret) = (sandbox.path("raw"), sandbox.path("qemu.luks"), secret(sandbox, PASSPHRASE));
    std::fs::write(&raw, contents).unwrap();
    let (raw, out) = (raw.to_str().unwrap(), container.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "luks", "--object", &secret, "-o", "key-secret=k,iter-time=10", raw, out]);
    container
}

fn made_by_us(sandbox: &Sandbox, contents: &[u8]) -> PathBuf {
    let container = sandbox.path("ours.luks");
    std::fs::write(&container, luks::seal(contents, PASSPHRASE.as_bytes()).unwrap()).unwrap();
    container
}

#[test]
fn qemu_opens_and_writes_ours() {
    let sandbox = Sandbox::new();
    let contents = contents(1056);
    let container = made_by_us(&sandbox, &contents);
    assert_eq!(read_by_qemu(&sandbox, &container, PASSPHRASE).unwrap(), contents);
    let refused = read_by_qemu(&sandbox, &container, OTHER).unwrap_err();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Invalid password"), "{refused:?}");

    let info = qemu_img(&["info", "--output=json", container.to_str().unwrap()]);
    assert!(info.contains("\"format\": \"luks\"") && info.contains("\"virtual-size\": 540672"), "{info}");

    // As a guest writes its variables.
    let status = Command::new("qemu-io")
        .args(["--object", &secret(&sandbox, PASSPHRASE), "-c", "write -P 77 1024 1024", "--image-opts"])
        .arg(image(&container))
        .status()
        .unwrap();
    assert!(status.success());
    let mut written = contents;
    written[1024..2048].fill(77);
    assert_eq!(*luks::open(&std::fs::read(&container).unwrap(), PASSPHRASE.as_bytes()).unwrap(), written);
}

#[test]
fn we_open_what_qemu_made_and_make_its_header() {
    let sandbox = Sandbox::new();
    let contents = contents(1056);
    let mut qemus = std::fs::read(made_by_qemu(&sandbox, &contents)).unwrap();
    assert_eq!(*luks::open(&qemus, PASSPHRASE.as_bytes()).unwrap(), contents);
    assert_eq!(luks::open(&qemus, OTHER.as_bytes()), Err(LuksFault::Key));

    // Byte for byte, but for digests, salts, iterations and the UUID.
    let mut ours = luks::seal(&contents, PASSPHRASE.as_bytes()).unwrap();
    assert_eq!(ours.len(), qemus.len());
    for header in [&mut ours, &mut qemus] {
        header.truncate(592);
        let random = [112..132, 132..164, 164..168, 168..208, 212..216, 216..248];
        random.into_iter().for_each(|range| header[range].fill(0));
    }
    assert_eq!(ours, qemus);
}

#[test]
fn two_containers_of_the_same_share_nothing() {
    let contents = vec![0x5a; 64 * SECTOR];
    let [one, two] = [(); 2].map(|()| luks::seal(&contents, PASSPHRASE.as_bytes()).unwrap());
    for (a, b) in one[4096..].chunks(16).zip(two[4096..].chunks(16)) {
        assert!(a != b || a == [0; 16], "sixteen bytes are the same");
    }
    assert!(one[luks::HOLE].iter().all(|byte| *byte == 0));
    for secret in [&contents[..16], PASSPHRASE.as_bytes()] {
        assert!(!contains(&one, secret));
    }
}

#[test]
fn damage_is_told() {
    let sound = luks::seal(&contents(4), PASSPHRASE.as_bytes()).unwrap();
    let open = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut container = sound.clone();
        change(&mut container);
        luks::open(&container, PASSPHRASE.as_bytes()).map(drop)
    };
    assert_eq!(open(&|_| ()), Ok(()));
    // The key slot and the digest of what it holds.
    for at in [112, 132, 216, 4096, 200_000, 260_095] {
        assert_eq!(open(&|container| container[at] ^= 1), Err(LuksFault::Key), "byte {at}");
    }
    // Other magic, version, cipher, mode and hash.
    for at in [0, 7, 8, 11, 40, 71, 72, 77] {
        let refused = open(&|container| container[at] ^= 1);
        assert_eq!(matches!(refused, Err(LuksFault::Format(_))), at != 71, "byte {at}: {refused:?}");
    }
    let set = |at: usize, number: u32| {
        open(&move |container: &mut Vec<u8>| container[at..at + 4].copy_from_slice(&number.to_be_bytes()))
    };
    // Payload, key length, iterations (none, and enough for a week), slot state, its place, its stripes.
    for (at, number) in
        [(104, 0), (104, u32::MAX), (108, 32), (164, 0), (164, u32::MAX), (208, 0xdead), (212, 0), (212, u32::MAX)]
            .into_iter()
            .chain([(248, 0), (248, u32::MAX), (252, 0), (252, 4001)])
    {
        assert!(matches!(set(at, number), Err(LuksFault::Format(_))), "{number} at {at}");
    }
    for length in [0, 6, 207, 591, 592, 260_095, luks::HOLE.end - 1, sound.len() - 1] {
        assert!(matches!(open(&|container| container.truncate(length)), Err(LuksFault::Format(_))), "{length} bytes");
    }
    assert!(matches!(open(&|container| container.resize(luks::MAX_LEN + SECTOR, 0)), Err(LuksFault::Format(_))));
    assert!(matches!(luks::seal(&[0; SECTOR + 1], b""), Err(LuksFault::Format(_))));
    assert!(matches!(luks::seal(&vec![0; luks::MAX_LEN], b""), Err(LuksFault::Format(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_sealed_opens(sectors in 0usize..64, fill: u8, passphrase: Vec<u8>) {
        let contents = vec![fill; sectors * SECTOR];
        let container = luks::seal(&contents, &passphrase).unwrap();
        prop_assert_eq!(&*luks::open(&container, &passphrase).unwrap(), &contents);
        prop_assert_eq!(container.len(), luks::HOLE.end + contents.len());
    }

    #[test]
    fn no_header_makes_it_panic(at in 0usize..592, bytes: [u8; 8]) {
        let mut container = luks::seal(&[7; SECTOR], b"k").unwrap();
        let end = (at + 8).min(592);
        container[at..end].copy_from_slice(&bytes[..end - at]);
        // At most the bounded number of iterations: it ends.
        let _ = luks::open(&container, b"k");
    }
}
