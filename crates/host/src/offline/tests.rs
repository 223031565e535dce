//! The file under both locks: this host opens it, for one VM and one protector, as often as the owner allowed.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, unreachable_pub)]
#[path = "../../../tpm/tests/support/boot.rs"]
mod boot;

use std::fs;
use std::sync::LazyLock;

use attestation::HostKey;
use key_protector::{Guardian, KeyKind};
use serde_json::{Value, json};
use time::Duration;

use super::*;

const VM: Uuid = Uuid::from_bytes([7; 16]);
const OTHER_VM: Uuid = Uuid::from_bytes([8; 16]);

static OWNER: LazyLock<Guardian> = LazyLock::new(|| guardian(Role::Owner));
static FABRIC: LazyLock<Guardian> = LazyLock::new(|| guardian(Role::Fabric));

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn guardian(role: Role) -> Guardian {
    let hour = Duration::hours(1);
    Guardian::generate(role.as_str(), role, KeyKind::Rsa2048, now() - hour, now() + hour).unwrap()
}

/// What a service answers for a protector that allows `unwraps`.
fn rolled(unwraps: u32) -> Rolled {
    let (protector, _) = Protector::new(&*OWNER, &[FABRIC.public().clone()], now()).unwrap();
    let protector = protector.allow_offline(&*OWNER, unwraps, now()).unwrap();
    protector.roll(&*FABRIC, &[], now()).unwrap()
}

struct Host {
    proof: HostProof,
    dir: VmDir,
    store: tempfile::TempDir,
    _machine: Option<boot::Machine>,
}

impl Host {
    fn new(proof: HostProof, machine: Option<boot::Machine>) -> Self {
        let store = tempfile::tempdir().unwrap();
        let dir = VmDir::at(store.path().to_path_buf(), "dvm".into());
        Host { proof, dir, store, _machine: machine }
    }

    fn with_key() -> Self {
        Host::new(HostProof::Key(HostKey::generate().unwrap()), None)
    }

    async fn with_tpm() -> Self {
        let machine = boot::Machine::start(&boot::boot(true));
        let tpm = HostTpm::open(Some(&machine.tcti), &machine.log_file()).await.unwrap();
        Host::new(HostProof::Tpm(tpm), Some(machine))
    }

    async fn both() -> [Self; 2] {
        [Host::with_key(), Host::with_tpm().await]
    }

    fn keys(&self) -> OfflineKeys<'_> {
        OfflineKeys(&self.proof)
    }

    async fn keep(&self, rolled: &Rolled) {
        let allowed = rolled.egress_protector.max_offline_unwraps();
        assert_eq!(self.keys().keep(&self.dir, VM, rolled).await.unwrap(), allowed);
    }

    async fn take(&self, rolled: &Rolled) -> Result<Taken> {
        self.keys().take(&self.dir, VM, &rolled.egress_protector).await
    }

    /// Takes, and says how many are left.
    async fn takes(&self, rolled: &Rolled) -> u32 {
        let taken = self.take(rolled).await.unwrap();
        assert_eq!(taken.key.expose(), rolled.egress.expose());
        taken.remaining
    }

    fn file(&self) -> PathBuf {
        self.store.path().join(FILE)
    }
}

fn refused(taken: Result<Taken>, what: &str) -> String {
    let error = taken.err().unwrap_or_else(|| panic!("not refused: {what}"));
    error.message
}

#[tokio::test]
async fn a_key_is_taken_as_often_as_the_owner_allows() {
    for host in Host::both().await {
        let rolled = rolled(2);
        assert!(refused(host.take(&rolled).await, "nothing kept").contains("no start without it left"));
        host.keep(&rolled).await;
        for remaining in [1, 0] {
            assert_eq!(left(&host.dir, &rolled.egress_protector), remaining + 1);
            assert_eq!(host.takes(&rolled).await, remaining);
        }
        assert!(!host.file().exists(), "the last one leaves no key behind");
        assert!(refused(host.take(&rolled).await, "a third one").contains("there are 2"));
        assert_eq!(left(&host.dir, &rolled.egress_protector), 0);
        // The next start with the service begins anew.
        host.keep(&rolled).await;
        assert_eq!(host.takes(&rolled).await, 1);
    }
}

#[tokio::test]
async fn another_vm_protector_or_host_gets_nothing() {
    for (host, other) in Host::both().await.into_iter().zip(Host::both().await) {
        let (rolled, older) = (rolled(3), rolled(3));
        host.keep(&rolled).await;
        assert!(refused(host.take(&older).await, "another protector").contains("an earlier state"));
        let taken = host.keys().take(&host.dir, OTHER_VM, &rolled.egress_protector).await;
        assert!(refused(taken, "another VM").contains("another VM"));
        assert_eq!(left(&host.dir, &older.egress_protector), 0);
        fs::copy(host.file(), other.file()).unwrap();
        refused(other.take(&rolled).await, "another host");
        assert_eq!(host.takes(&rolled).await, 2, "the control");
    }
}

#[tokio::test]
async fn what_was_altered_does_not_open() {
    for host in Host::both().await {
        let rolled = rolled(3);
        host.keep(&rolled).await;
        let good = fs::read(host.file()).unwrap();
        let edit = |change: &dyn Fn(&mut Value)| {
            let mut value: Value = serde_json::from_slice(&good).unwrap();
            change(&mut value);
            value.to_string().into_bytes()
        };
        let flipped = |text: &Value| {
            let mut bytes = STANDARD.decode(text.as_str().unwrap()).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            json!(STANDARD.encode(bytes))
        };
        let mut attempts = vec![
            ("more starts", edit(&|v| v["remaining"] = json!(32))),
            ("no starts", edit(&|v| v["remaining"] = json!(0))),
            ("another key", edit(&|v| v["key"] = flipped(&v["key"]))),
            ("a short key", edit(&|v| v["key"] = json!("AAAA"))),
            ("no base64", edit(&|v| v["key"] = json!("?"))),
            ("another version", edit(&|v| v["version"] = json!(2))),
            ("one field more", edit(&|v| v["more"] = json!(1))),
            ("another kind of lock", edit(&|v| v["lock"] = json!({ "kind": "none" }))),
            ("cut short", good[..good.len() / 2].to_vec()),
            ("empty", Vec::new()),
            ("too large", vec![b' '; 1 << 20]),
        ];
        match host.proof {
            HostProof::Key(_) => {
                let tpm = json!({ "kind": "tpm", "at": 1, "public": "AAAA", "private": "AAAA" });
                attempts.push(("another salt", edit(&|v| v["lock"]["salt"] = flipped(&v["lock"]["salt"]))));
                attempts.push(("a TPM's", edit(&|v| v["lock"] = tpm.clone())));
            }
            HostProof::Tpm(_) => {
                let key = json!({ "kind": "host-key", "salt": "AAAA" });
                attempts.push(("another object", edit(&|v| v["lock"]["private"] = flipped(&v["lock"]["private"]))));
                attempts.push(("no object", edit(&|v| v["lock"]["public"] = json!(""))));
                attempts.push(("the end of counting", edit(&|v| v["lock"]["at"] = json!(u64::MAX))));
                attempts.push(("a host key's", edit(&|v| v["lock"] = key.clone())));
            }
        }
        for (what, bytes) in attempts {
            fs::write(host.file(), bytes).unwrap();
            refused(host.take(&rolled).await, what);
        }
        fs::write(host.file(), &good).unwrap();
        assert_eq!(host.takes(&rolled).await, 2, "the control");
    }
}

/// Somebody copies the file and puts it back. A TPM's counter has gone on; in host-key mode nothing has, which is in the
/// threat model.
#[tokio::test]
async fn a_copy_from_before_is_dead_where_there_is_a_tpm() {
    for host in Host::both().await {
        let (first, second) = (rolled(3), rolled(3));
        let mut copies = Vec::new();
        host.keep(&first).await;
        copies.push((fs::read(host.file()).unwrap(), &first, "before a start"));
        assert_eq!(host.takes(&first).await, 2);
        copies.push((fs::read(host.file()).unwrap(), &first, "before a start with the service"));
        host.keep(&second).await;
        copies.push((fs::read(host.file()).unwrap(), &second, "before it was forgotten"));
        host.keys().forget(&host.dir, VM).await.unwrap();
        assert!(!host.file().exists());
        for (bytes, rolled, when) in copies {
            fs::write(host.file(), bytes).unwrap();
            let taken = host.take(rolled).await;
            match host.proof {
                HostProof::Key(_) => assert_eq!(taken.unwrap().key.expose(), rolled.egress.expose()),
                HostProof::Tpm(_) => assert!(refused(taken, when).contains("TPM"), "{when}"),
            }
        }
    }
}

/// The agent dies between the countdown's file and the counter's step: that start was not one, and none is lost but it.
#[tokio::test]
async fn a_crash_in_the_countdown_locks_nobody_out() {
    let host = Host::with_tpm().await;
    let rolled = rolled(3);
    host.keep(&rolled).await;
    let Lock::Tpm { at, .. } = read(&host.dir).unwrap().unwrap().lock else { panic!("not the TPM's") };
    let next = host.keys().seal(VM, rolled.egress_protector.digest(), 2, &rolled.egress, at + 1).await.unwrap();
    write(&host.dir, &next).unwrap();
    assert_eq!(host.takes(&rolled).await, 1);
    assert_eq!(host.takes(&rolled).await, 0);
}

#[test]
fn only_what_a_service_signed_allows_starts_without_it() {
    let (protector, _) = Protector::new(&*OWNER, &[FABRIC.public().clone()], now()).unwrap();
    let protector = protector.allow_offline(&*OWNER, 5, now()).unwrap();
    assert_eq!(allowed(&protector), 0, "signed by its owner");
    let recovery = guardian(Role::Recovery);
    let granted = protector.grant(&*OWNER, recovery.public(), now()).unwrap();
    let repaired = granted.roll(&recovery, granted.wrappings(), now()).unwrap().egress_protector;
    assert_eq!(repaired.max_offline_unwraps(), 5);
    assert_eq!(allowed(&repaired), 0, "signed by a recovery guardian");
    assert_eq!(allowed(&repaired.roll(&*FABRIC, &[], now()).unwrap().egress_protector), 5, "the control");
}

#[test]
fn each_start_is_a_line_in_the_log() {
    use std::os::unix::fs::PermissionsExt;
    let logs = tempfile::tempdir().unwrap();
    let protector = rolled(2).egress_protector;
    for remaining in [1, 0] {
        note(logs.path(), &protector, remaining).unwrap();
    }
    let path = logs.path().join(LOG);
    let lines: Vec<Value> =
        fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["remaining"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 0]);
    assert!(lines.iter().all(|line| line["protector"] == json!(protector.digest())));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
