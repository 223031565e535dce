//! A slot's state moves to a new key as a whole, and the old key opens nothing in the new slot.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, all_bytes, contains};
use key_protector::TransportKey;
use machine::record::SealedRecord;
use machine::slot as state;
use machine::{ConsoleProfile, Error, LuksFault, NicSpec, OpenSlot, Policy, RecordField};

const MARKER: &[u8; 32] = b"DRYDOCK-PLAINTEXT-MARKER-IN-NVRA";

fn digest(c: &str) -> String {
    c.repeat(64)
}

async fn create(sandbox: &Sandbox, name: &str, key: &TransportKey) -> SealedRecord {
    let spec = sandbox.spec(Policy::Shielded);
    let record = SealedRecord::new(&spec, 1);
    state::create(&sandbox.path(name), key, &record, &digest("a"), &spec.firmware).await.unwrap();
    record
}

async fn reseal(
    sandbox: &Sandbox,
    record: &SealedRecord,
    from_key: &TransportKey,
    to_key: &TransportKey,
) -> machine::Result<SealedRecord> {
    let record = SealedRecord { generation: 2, ..record.clone() };
    let (from, to) = (sandbox.path("1"), sandbox.path("2"));
    state::reseal(&from, from_key, &to, to_key, &record, &digest("b")).await?;
    Ok(record)
}

#[tokio::test]
async fn the_vtpm_survives_a_new_key_and_the_old_key_does_not_open_it() {
    let sandbox = Sandbox::new();
    let (old, new) = (TransportKey::generate(), TransportKey::generate());
    let record = create(&sandbox, "1", &old).await;
    let vtpm = sandbox.path("1").join("vtpm");
    let mut tpm = Tpm::start(&sandbox, &vtpm, &old).unwrap();
    tpm.define_and_write(MARKER);
    assert_eq!(tpm.read(), MARKER);
    drop(tpm);

    reseal(&sandbox, &record, &old, &new).await.unwrap();

    let resealed = sandbox.path("2").join("vtpm");
    let mut tpm = Tpm::start(&sandbox, &resealed, &new).unwrap();
    assert_eq!(tpm.read(), MARKER);
    drop(tpm);
    assert!(Tpm::start(&sandbox, &resealed, &old).is_none());
    assert!(Tpm::start(&sandbox, &vtpm, &new).is_none());
    // The old slot is untouched, so that a crash in between loses nothing.
    assert_eq!(Tpm::start(&sandbox, &vtpm, &old).unwrap().read(), MARKER);
    for slot in ["1", "2"] {
        assert!(!contains(&all_bytes(&sandbox.path(slot)), MARKER));
    }
}

#[tokio::test]
async fn two_new_vtpms_are_two() {
    let sandbox = Sandbox::new();
    let key = TransportKey::generate();
    create(&sandbox, "1", &key).await;
    create(&sandbox, "2", &key).await;
    let publics = ["1", "2"].map(|slot| {
        let mut tpm = Tpm::start(&sandbox, &sandbox.path(slot).join("vtpm"), &key).unwrap();
        tpm.endorsement_public()
    });
    assert!(publics[0].len() > 60);
    assert_ne!(publics[0], publics[1]);
}

#[tokio::test]
async fn the_endorsement_key_survives() {
    let sandbox = Sandbox::new();
    let (old, new) = (TransportKey::generate(), TransportKey::generate());
    let record = create(&sandbox, "1", &old).await;
    let public = |slot: &str, key| {
        let vtpm = sandbox.path(slot).join("vtpm");
        Tpm::start(&sandbox, &vtpm, key).unwrap().endorsement_public()
    };
    let before = public("1", &old);
    reseal(&sandbox, &record, &old, &new).await.unwrap();
    assert_eq!(public("2", &new), before);
}

#[tokio::test]
async fn the_policy_in_force_is_in_the_vtpm() {
    let sandbox = Sandbox::new();
    let (old, new) = (TransportKey::generate(), TransportKey::generate());
    let record = create(&sandbox, "1", &old).await;
    let measured =
        |slot: &str, key| Tpm::start(&sandbox, &sandbox.path(slot).join("vtpm"), key).unwrap().read_index(POLICY_INDEX);
    assert_eq!(measured("1", &old), register("shielded"));
    let lowered = SealedRecord { policy: Policy::EncryptionSupported, ..record.clone() };
    let lowered = reseal(&sandbox, &lowered, &old, &new).await.unwrap();
    assert_eq!(measured("2", &new), register("encryption-supported"));
    let raised = SealedRecord { policy: Policy::Shielded, generation: 3, ..lowered };
    let (from, to) = (sandbox.path("2"), sandbox.path("3"));
    state::reseal(&from, &new, &to, &old, &raised, &digest("c")).await.unwrap();
    assert_eq!(measured("3", &old), register("shielded"));

    // The guest's owner hierarchy can do nothing about it.
    let mut tpm = Tpm::start(&sandbox, &to.join("vtpm"), &old).unwrap();
    let (owner, index) = (0x4000_0001u32.to_be_bytes(), POLICY_INDEX.to_be_bytes());
    let undefine = [&owner[..], &index, EMPTY_PASSWORD].concat();
    let extend = [&owner[..], &index, EMPTY_PASSWORD, &[0, 32], &[7; 32]].concat();
    let by_itself = [&index[..], &index, EMPTY_PASSWORD, &[0, 32], &[7; 32]].concat();
    for (command, body) in [(0x122, &undefine), (0x136, &extend), (0x136, &by_itself)] {
        assert_ne!(tpm.result(0x8002, command, body).unwrap().0, 0, "command {command:#x}");
    }
    assert_eq!(tpm.read_index(POLICY_INDEX), register("shielded"));
}

/// What docs/formats.md says of the policy NV index.
fn register(policy: &str) -> Vec<u8> {
    let sha256 = |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let event = sha256(format!("drydock policy: {policy}").as_bytes());
    sha256(&[&[0; 32], event.as_ref()].concat()).as_ref().to_vec()
}

#[tokio::test]
async fn variables_and_record_move_to_the_new_key() {
    let sandbox = Sandbox::new();
    let (old, new) = (TransportKey::generate(), TransportKey::generate());
    let record = create(&sandbox, "1", &old).await;
    let record = reseal(&sandbox, &record, &old, &new).await.unwrap();
    let template = std::fs::read(sandbox.spec(Policy::Shielded).firmware.vars_template).unwrap();
    let (one, two) = (sandbox.path("1"), sandbox.path("2"));

    assert_eq!(read_vars(&sandbox, &one, &old).unwrap(), template);
    assert_eq!(read_vars(&sandbox, &two, &new).unwrap(), template);
    assert!(read_vars(&sandbox, &two, &old).is_none());
    assert!(read_vars(&sandbox, &one, &new).is_none());

    let id = record.vm_id;
    assert_eq!(state::open_record(&two, &new, id, &digest("b")).unwrap(), record);
    for (key, d) in [(&old, digest("b")), (&new, digest("a"))] {
        assert!(matches!(state::open_record(&two, key, id, &d), Err(Error::RecordSealed)));
    }
}

#[tokio::test]
async fn nobody_else_can_read_a_slot() {
    let sandbox = Sandbox::new();
    create(&sandbox, "1", &TransportKey::generate()).await;
    let slot = sandbox.path("1");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&slot), 0o700);
    assert_eq!(mode(&slot.join("vtpm")), 0o700);
    for file in ["record.sealed", "vars.luks", "vtpm/tpm2-00.permall"] {
        assert_eq!(mode(&slot.join(file)), 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_wrong_key_or_a_missing_vtpm_stops_a_reseal() {
    let sandbox = Sandbox::new();
    let (old, new) = (TransportKey::generate(), TransportKey::generate());
    let record = create(&sandbox, "1", &old).await;
    let error = reseal(&sandbox, &record, &new, &old).await.unwrap_err();
    assert!(matches!(error, Error::Vars { fault: LuksFault::Key, .. }), "{error}");
    assert!(!sandbox.path("2").join("record.sealed").exists());

    // The remains of a failed attempt are in the way, and reported.
    let error = reseal(&sandbox, &record, &old, &new).await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }));

    std::fs::remove_dir_all(sandbox.path("2")).unwrap();
    std::fs::remove_file(sandbox.path("1/vtpm/tpm2-00.permall")).unwrap();
    let error = reseal(&sandbox, &record, &old, &new).await.unwrap_err();
    assert!(matches!(error, Error::NoTpmState { .. }), "{error}");
}

#[tokio::test]
async fn a_slot_whose_path_has_commas_works() {
    let sandbox = Sandbox::new();
    let spec = sandbox.spec(Policy::Shielded);
    let record = SealedRecord::new(&spec, 1);
    let (old, new) = (TransportKey::generate(), TransportKey::generate());
    let (one, two) = (sandbox.path("a,b=c,,d"), sandbox.path("e,f"));
    state::create(&one, &old, &record, &digest("a"), &spec.firmware).await.unwrap();
    state::reseal(&one, &old, &two, &new, &record, &digest("b")).await.unwrap();
}

#[tokio::test]
async fn an_open_slot_is_checked_and_resealed() {
    let sandbox = Sandbox::new();
    let spec = sandbox.spec(Policy::Shielded);
    let (old, new) = (TransportKey::generate(), TransportKey::generate());
    let record = create(&sandbox, "1", &old).await;
    let (one, two) = (sandbox.path("1"), sandbox.path("2"));
    for (key, protector) in [(&new, digest("a")), (&old, digest("b"))] {
        assert!(matches!(OpenSlot::open(&one, key, spec.id, &protector), Err(Error::RecordSealed)));
    }
    let open = OpenSlot::open(&one, &old, spec.id, &digest("a")).unwrap();
    assert_eq!(open.record(), &record);
    assert_eq!(open.check(&spec, 1), Ok(()));

    let changed = |change: &dyn Fn(&mut machine::VmSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        open.check(&spec, 1)
    };
    let nic = NicSpec { switch: "br0".into(), mac: "52:54:00:00:00:01".into() };
    let more = spec.disks[0].clone();
    assert_eq!(open.check(&spec, 2), Err(RecordField::Generation));
    assert_eq!(changed(&|spec| spec.id = uuid::Uuid::nil()), Err(RecordField::VmId));
    assert_eq!(changed(&|spec| spec.policy = Policy::EncryptionSupported), Err(RecordField::Policy));
    let sessions = changed(&|spec| spec.console_profile = ConsoleProfile::Server2019);
    assert_eq!(sessions, Err(RecordField::ConsoleProfile));
    assert_eq!(changed(&|spec| spec.nics.push(nic.clone())), Err(RecordField::Nics));
    assert_eq!(changed(&|spec| spec.disks[0].size += 512), Err(RecordField::Disks));
    assert_eq!(changed(&|spec| spec.disks[0].serial = "other".into()), Err(RecordField::Disks));
    assert_eq!(changed(&|spec| spec.disks.push(more.clone())), Err(RecordField::Disks));
    assert_eq!(changed(&|spec| spec.memory_mib += 64), Ok(()));

    let next = open.record().successor().unwrap();
    assert_eq!(next, SealedRecord { generation: 2, ..record });
    assert_eq!(SealedRecord { generation: u64::MAX, ..next.clone() }.successor(), None);
    let foreign = SealedRecord { vm_id: uuid::Uuid::nil(), ..next.clone() };
    let refused = open.reseal_into(&two, &new, foreign, &digest("b")).await.err().unwrap();
    assert!(matches!(refused, Error::RecordMismatch { field: RecordField::VmId, .. }), "{refused}");
    assert!(!two.exists());
    let resealed = open.reseal_into(&two, &new, next.clone(), &digest("b")).await.unwrap();
    assert_eq!(resealed.check(&spec, 2), Ok(()));
    assert_eq!(OpenSlot::open(&two, &new, spec.id, &digest("b")).unwrap().record(), &next);
    assert!(OpenSlot::open(&two, &old, spec.id, &digest("b")).is_err());
    // The opened slot is as it was.
    OpenSlot::open(&one, &old, spec.id, &digest("a")).unwrap();
}

/// The UEFI variables in plain text, by an independent qemu-img call.
fn read_vars(sandbox: &Sandbox, slot: &Path, key: &TransportKey) -> Option<Vec<u8>> {
    let (secret, out) = (sandbox.path("secret"), sandbox.path("vars.raw"));
    std::fs::write(&secret, key.derive(state::VARS_LABEL).hex().as_bytes()).unwrap();
    let status = Command::new("qemu-img")
        .args(["convert", "-O", "raw", "--object"])
        .arg(format!("secret,id=k,file={}", secret.display()))
        .arg("--image-opts")
        .arg(format!("driver=luks,key-secret=k,file.filename={}", slot.join("vars.luks").display()))
        .arg(&out)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success().then(|| std::fs::read(out).unwrap())
}

/// An swtpm of the test's own, spoken to in raw TPM 2.0 commands.
struct Tpm {
    _swtpm: Swtpm,
    data: UnixStream,
}

const INDEX: u32 = 0x0150_0001;
const POLICY_INDEX: u32 = 0x0144_0001;
/// Authorization area: an empty password.
const EMPTY_PASSWORD: &[u8] = b"\0\0\0\x09\x40\0\0\x09\0\0\0\0\0";

impl Tpm {
    /// None when swtpm does not come up with this key.
    fn start(sandbox: &Sandbox, dir: &Path, key: &TransportKey) -> Option<Self> {
        let (socket, key_file) = (sandbox.path("tpm.sock"), sandbox.path("tpm.key"));
        let _ = std::fs::remove_file(&socket);
        std::fs::write(&key_file, key.derive("drydock/vtpm/v1").expose()).unwrap();
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", dir.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--key")
            .arg(format!("file={},format=binary,mode=aes-256-cbc", key_file.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the Debian package swtpm must be installed");
        let mut swtpm = Swtpm(child);
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if swtpm.0.try_wait().unwrap().is_some() {
                return None;
            }
            if let Ok(data) = UnixStream::connect(&socket) {
                data.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let mut tpm = Self { _swtpm: swtpm, data };
                // a TPM that failed to read its state accepts connections and then ends
                return tpm.try_command(0x8001, 0x17b, &[0, 8]).map(|_| tpm);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("swtpm neither ended nor listened");
    }

    /// The response code and what follows it.
    fn result(&mut self, tag: u16, code: u32, body: &[u8]) -> Option<(u32, Vec<u8>)> {
        let size = u32::try_from(10 + body.len()).unwrap();
        let mut request = tag.to_be_bytes().to_vec();
        request.extend(size.to_be_bytes());
        request.extend(code.to_be_bytes());
        request.extend(body);
        self.data.write_all(&request).ok()?;
        let mut response = vec![0; 4096];
        let n = self.data.read(&mut response).ok()?;
        response.truncate(n);
        let result = u32::from_be_bytes(response.get(6..10)?.try_into().unwrap());
        Some((result, response.split_off(10)))
    }

    fn try_command(&mut self, tag: u16, code: u32, body: &[u8]) -> Option<Vec<u8>> {
        let (result, response) = self.result(tag, code, body)?;
        assert_eq!(result, 0, "TPM command {code:#x}");
        Some(response)
    }

    fn command(&mut self, tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
        self.try_command(tag, code, body).expect("swtpm is gone")
    }

    fn define_and_write(&mut self, data: &[u8; 32]) {
        let mut define = 0x4000_0001u32.to_be_bytes().to_vec();
        define.extend(EMPTY_PASSWORD);
        define.extend([0, 0, 0, 14]);
        define.extend(INDEX.to_be_bytes());
        define.extend(0x000bu16.to_be_bytes());
        define.extend(0x0206_0006u32.to_be_bytes());
        define.extend([0, 0, 0, 32]);
        self.command(0x8002, 0x12a, &define);
        let mut write = [INDEX.to_be_bytes(), INDEX.to_be_bytes()].concat();
        write.extend(EMPTY_PASSWORD);
        write.extend([0, 32]);
        write.extend(data);
        write.extend([0, 0]);
        self.command(0x8002, 0x137, &write);
    }

    fn read(&mut self) -> Vec<u8> {
        self.read_index(INDEX)
    }

    fn read_index(&mut self, index: u32) -> Vec<u8> {
        let mut read = [index.to_be_bytes(), index.to_be_bytes()].concat();
        read.extend(EMPTY_PASSWORD);
        read.extend([0, 32, 0, 0]);
        let response = self.command(0x8002, 0x14e, &read);
        response[6..38].to_vec()
    }

    /// Public area of an ECC P-256 primary in the endorsement hierarchy: it follows from the seed.
    fn endorsement_public(&mut self) -> Vec<u8> {
        let mut create = 0x4000_000bu32.to_be_bytes().to_vec();
        create.extend(EMPTY_PASSWORD);
        // no password, no data
        create.extend([0, 4, 0, 0, 0, 0]);
        let template = [
            &[0x00, 0x23, 0x00, 0x0b][..],
            // restricted decryption key, fixed to this TPM
            &0x0003_0072u32.to_be_bytes(),
            &[0, 0],
            // AES-128-CFB, no scheme, P-256, no KDF, empty point
            &[0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0, 0],
        ]
        .concat();
        create.extend(u16::try_from(template.len()).unwrap().to_be_bytes());
        create.extend(template);
        // no outside data, no PCR
        create.extend([0, 0, 0, 0, 0, 0]);
        let response = self.command(0x8002, 0x131, &create);
        let length = usize::from(u16::from_be_bytes([response[8], response[9]]));
        response[10..10 + length].to_vec()
    }
}

/// Killed and reaped when dropped.
struct Swtpm(Child);

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
