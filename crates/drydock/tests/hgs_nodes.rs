//! Two nodes of a Host Guardian Service on one PostgreSQL, each `drydock hgs serve` in a process of its own, and hosts
//! that roll keys all the time. Either node is killed with SIGKILL while requests are under way, more than once.

#![allow(clippy::unwrap_used)]

#[path = "../../hgs/tests/support/postgres.rs"]
mod postgres;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use attestation::HostKey;
use hgs::Hgs;
use hgs_client::{Error, HgsClient};
use key_protector::{Guardian, GuardianPublic, KeyKind, Protector, Role};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;

const CLIENTS: usize = 4;
const ROLLS: usize = 28;
/// Attempts at one roll, alternately at both nodes: one of them is up at any time.
const ATTEMPTS: usize = 20;

fn drydock(arguments: &[&str], stdin: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_drydock"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

struct Node {
    dir: PathBuf,
    process: Child,
    url: String,
}

impl Node {
    fn start(dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_drydock"))
            .args(["hgs", "serve", "--listen", "127.0.0.1:0", "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let url = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the node ended before it listened");
            if let Some((_, url)) = line.split_once("listening on ") {
                break url.trim().to_owned();
            }
        };
        // What it says later must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Node { dir: dir.to_owned(), process, url }
    }

    /// SIGKILL, and up again.
    fn kill_and_start(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let again = Node::start(&self.dir);
        // The process that this one takes the place of has been waited for.
        *self = again;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What one host did.
#[derive(Default)]
struct Done {
    /// Digests of the protectors that came back.
    answered: Vec<String>,
    /// Requests that got no answer.
    lost: usize,
}

struct Host {
    key: Arc<HostKey>,
    ca: String,
    urls: Arc<Mutex<[String; 2]>>,
    progress: watch::Sender<usize>,
}

impl Host {
    async fn roll_in_a_loop(self, owner: Guardian, fabric: GuardianPublic, number: usize) -> Done {
        let (mut protector, mut key) = Protector::new(&owner, &[fabric], OffsetDateTime::now_utc()).unwrap();
        let mut done = Done::default();
        for roll in 0..ROLLS {
            let mut attempt = roll + number;
            let limit = attempt + ATTEMPTS;
            let rolled = loop {
                assert!(attempt < limit, "no node answered");
                let url = self.urls.lock().unwrap()[attempt % 2].clone();
                attempt += 1;
                let client = HgsClient::new(&url, Some(self.ca.as_bytes())).unwrap();
                let answer = match client.attest(&self.key).await {
                    Ok(health) => client.roll_transport_key(&protector, &health).await,
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(rolled) => break rolled,
                    // Killed before it answered. Anything else would be a wrong answer.
                    Err(Error::Unreachable { .. }) => done.lost += 1,
                    Err(error) => panic!("{error}: {error:?}"),
                }
            };
            assert_eq!(rolled.ingress.expose(), key.expose());
            done.answered.push(rolled.egress_protector.digest());
            (protector, key) = (rolled.egress_protector, rolled.egress);
            self.progress.send_modify(|count| *count += 1);
        }
        done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_node_is_killed_under_load_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (one, two) = (path("one"), path("two"));
    // A file, as for a URL with a password.
    let url = path("store.url");
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&url).unwrap();
    writeln!(file, "{}", postgres::database_url().await).unwrap();
    drydock(&["hgs", "init", "--dir", &one, "--store-file", &url, "--strict"], "");
    let key = HostKey::generate().unwrap();
    std::fs::write(path("host.pem"), key.public_pem()).unwrap();
    drydock(&["hgs", "add-host", "host-1", &path("host.pem"), "--dir", &one], "");
    let passphrase = "correct horse battery\n";
    drydock(&["hgs", "export", "--dir", &one, "--out", &path("keys"), "--passphrase-fd", "0"], passphrase);
    drydock(&["hgs", "import", &path("keys"), "--dir", &two, "--passphrase-fd", "0"], passphrase);
    let kept = head(&drydock(&["--json", "hgs", "audit", "verify", "--dir", &one], ""));

    let mut nodes = [Node::start(Path::new(&one)), Node::start(Path::new(&two))];
    let urls = Arc::new(Mutex::new([nodes[0].url.clone(), nodes[1].url.clone()]));
    let service = Hgs::open(Path::new(&one)).await.unwrap();
    let (progress, mut seen) = watch::channel(0);
    let key = Arc::new(key);
    let mut hosts = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let host = Host {
            key: Arc::clone(&key),
            ca: service.ca_pem().to_owned(),
            urls: Arc::clone(&urls),
            progress: progress.clone(),
        };
        let now = OffsetDateTime::now_utc();
        let (since, until) = (now - Duration::hours(1), now + Duration::days(1));
        let owner = Guardian::generate("tenant", Role::Owner, KeyKind::Rsa2048, since, until).unwrap();
        hosts.spawn(host.roll_in_a_loop(owner, service.guardian(), number));
    }
    // Six times, spread over the first half of the load, each node three times.
    for kill in 0..6 {
        seen.wait_for(|count| *count >= CLIENTS * ROLLS * (kill + 1) / 14).await.unwrap();
        let node = &mut nodes[kill % 2];
        tokio::task::block_in_place(|| node.kill_and_start());
        urls.lock().unwrap()[kill % 2].clone_from(&node.url);
    }
    let mut answered = Vec::new();
    let mut lost = 0;
    while let Some(done) = hosts.join_next().await {
        let done = done.unwrap();
        answered.extend(done.answered);
        lost += done.lost;
    }
    assert_eq!(answered.len(), CLIENTS * ROLLS);
    assert!(lost > 0, "no request was under way when a node was killed");

    for dir in [&one, &two] {
        drydock(&["hgs", "audit", "verify", "--dir", dir, "--kept", &kept], "");
    }
    let mut released: HashMap<String, usize> = HashMap::new();
    let log = service.audit(u32::MAX).await.unwrap();
    for entry in &log {
        // A host that asks again after a lost answer is not stale, and nobody was refused.
        assert!(
            matches!(entry.event.as_str(), "host-added" | "keys-exported" | "keys-imported" | "policy-changed")
                || entry.host == "host-1" && matches!(entry.event.as_str(), "attested" | "key-released"),
            "{entry:?}"
        );
        if entry.event == "key-released" {
            *released.entry(entry.why.strip_prefix("rolled to ").unwrap().to_owned()).or_default() += 1;
        }
    }
    for digest in &answered {
        assert_eq!(released.get(digest), Some(&1), "{digest}");
    }
    // What was written down and not answered is at most what was asked and not answered.
    assert!(released.len() <= answered.len() + lost, "{} {} {lost}", released.len(), answered.len());
}

#[test]
fn a_password_is_never_an_argument() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("hgs");
    let init = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drydock"));
        command.args(["hgs", "init", "--dir"]).arg(&dir).args(arguments);
        let done = command.stdin(Stdio::null()).output().unwrap();
        assert!(!dir.exists());
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, message) = init(&["--store", "postgres://hgs:geheim@localhost/hgs"]);
    assert_eq!(code, Some(3), "{message}");
    assert!(message.contains("--store-file") && !message.contains("geheim"), "{message}");
    // Nor is it in a file that others can read.
    let file = directory.path().join("url");
    let mut open = std::fs::File::options();
    open.write(true).create_new(true).mode(0o644).open(&file).unwrap();
    let (code, message) = init(&["--store-file", file.to_str().unwrap()]);
    assert_eq!(code, Some(3), "{message}");
    let (code, message) = init(&["--store", "postgres://db.example/hgs"]);
    assert_eq!(code, Some(3), "{message}");
    assert!(message.contains("sslmode=verify-full"), "{message}");
    let (code, message) = init(&["--store", "hgs.example"]);
    assert_eq!(code, Some(4), "{message}");
}

fn head(json: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    value["result"]["head"].as_str().unwrap().to_owned()
}
