//! How many keys per second the Host Guardian Service rolls and how many hosts it attests, compared with the speed of
//! the private-key operations that this requires, measured in the same run with `openssl speed`.
//!
//! The service runs in a process of its own, over HTTPS, with its store and its audit log on disk as always. This
//! process sends requests over connections that stay open and reads the processor time of the service's process:
//! requests per second of *its* processor time are requests per second per core, whatever else the machine does
//! meanwhile.
//!
//! ```text
//! cargo bench -p hgs --bench hgs -- [SECONDS [OUT.json]]
//! ```

#[path = "../peak.rs"]
mod peak;

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::messages::AttestationRequest;
use attestation::{HostKey, IdentityKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs::server::{self, Transport};
use hgs::{Hgs, InitOptions};
use hgs_client::HgsClient;
use key_protector::{Guardian, KeyKind, Protector, Role};
use serde_json::{Value, json};
use time::OffsetDateTime;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROLL: &str = "/keyprotection/service/v2.0/rolltransportkey";
const ATTEST: &str = "/attestation/v2.0/hostkeyattest";
/// Enough to keep every core of a small machine busy and the audit log's writer too.
const CONNECTIONS: usize = 8;
const WARM_UP: Duration = Duration::from_millis(500);
/// The unit of processor time in proc(5), in ticks per second, on every architecture of Linux.
const TICKS: f64 = 100.0;

fn main() -> ExitCode {
    // Cargo passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", dir] => runtime.block_on(serve(Path::new(dir))),
        [] => runtime.block_on(measure(10, None)),
        [seconds] => seconds.parse().map_or_else(|e| Err(Box::from(e)), |s| runtime.block_on(measure(s, None))),
        [seconds, out, ..] => {
            seconds.parse().map_or_else(|e| Err(Box::from(e)), |s| runtime.block_on(measure(s, Some(Path::new(out)))))
        }
    };
    outcome.map_or_else(|error| fail(error.as_ref()), |()| ExitCode::SUCCESS)
}

fn fail(error: &dyn Error) -> ExitCode {
    eprintln!("bench: {error}");
    ExitCode::FAILURE
}

/// The service's process: until its standard input ends, which it does when the other process does.
async fn serve(dir: &Path) -> Result<()> {
    let hgs = Arc::new(Hgs::open(dir).await?);
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let shutdown = async {
        let _ = end.await;
    };
    let serving = server::serve(hgs, ([127, 0, 0, 1], 0).into(), Transport::Https, shutdown).await?;
    println!("{}", serving.local_addr());
    serving.wait().await?;
    Ok(())
}

async fn measure(seconds: u64, out: Option<&Path>) -> Result<()> {
    let duration = Duration::from_secs(seconds.max(1));
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("hgs");
    let hgs = Hgs::init(&dir, InitOptions::default()).await?;
    let host_key = HostKey::generate()?;
    hgs.add_host("bench", host_key.public_pem().as_bytes()).await?;
    let mut service = Service::start(&dir)?;
    let ca = hgs.ca_pem().as_bytes().to_vec();

    let (now, day) = (OffsetDateTime::now_utc(), time::Duration::DAY);
    let owner = Guardian::generate("tenant", Role::Owner, KeyKind::Rsa3072, now - day, now + day)?;
    let (protector, _) = Protector::new(&owner, &[hgs.guardian()], now)?;
    let health = HgsClient::new(&service.url, Some(&ca))?.attest(&host_key).await?;
    let roll = roll_request(&protector.to_xml(), health.der());
    let identity = IdentityKey::generate()?;
    let attest = serde_json::to_vec(&AttestationRequest::host_key(&host_key, identity.public(), &[0; 16])?)?;

    let before = openssl_speed()?;
    let rolled = service.load(ROLL, &ca, roll.into_bytes(), duration).await?;
    let attested = service.load(ATTEST, &ca, attest, duration).await?;
    let after = openssl_speed()?;
    let rss_mib = service.peak_mib()?;
    service.stop()?;
    // What was measured is what an operator gets: every one of these answers has its row.
    let (rows, _) = hgs.verify_audit_since(None).await?;
    let answered = rolled.count + attested.count;
    if (rows as u64) < answered {
        return Err(format!("{answered} requests were answered and only {rows} rows written").into());
    }

    // The two runs of openssl frame ours: the machine may have become slower or faster in between.
    let rsa = f64::midpoint(before.rsa, after.rsa);
    let ecdsa = f64::midpoint(before.ecdsa, after.ecdsa);
    // A roll unwraps with RSA and signs the egress protector; an attestation signs a certificate.
    let roll_bound = 1.0 / (1.0 / rsa + 1.0 / ecdsa);
    let value = json!({
        "roll_fraction_of_bound": round(rolled.per_core_second / roll_bound),
        "roll_per_s_per_core": round(rolled.per_core_second),
        "roll_per_s": round(rolled.per_second),
        "roll_p50_ms": round(rolled.p50_ms),
        "roll_p99_ms": round(rolled.p99_ms),
        "attest_per_s_per_core": round(attested.per_core_second),
        "attest_per_s": round(attested.per_second),
        "attest_p50_ms": round(attested.p50_ms),
        "attest_p99_ms": round(attested.p99_ms),
        "openssl_rsa3072_private_per_s": round(rsa),
        "openssl_ecdsa_p256_sign_per_s": round(ecdsa),
        "rss_mib": round(rss_mib),
        "connections": CONNECTIONS,
        "seconds": duration.as_secs(),
    });
    report(&value, out)
}

fn report(value: &Value, out: Option<&Path>) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    print!("{text}");
    if let Some(out) = out {
        if let Some(parent) = out.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(out, text)?;
    }
    Ok(())
}

struct Service {
    process: Child,
    url: String,
}

struct Load {
    count: u64,
    per_second: f64,
    /// Per second of the service's processor time.
    per_core_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Service {
    fn start(dir: &Path) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = process.stdout.take().ok_or("no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim();
        if address.is_empty() {
            return Err("the service did not start".into());
        }
        let url = format!("https://{address}");
        Ok(Service { process, url })
    }

    /// Asks the same over and over, on several connections at once, until the time is over.
    async fn load(&self, path: &str, ca: &[u8], body: Vec<u8>, duration: Duration) -> Result<Load> {
        let authority = reqwest::Certificate::from_pem(ca)?;
        let url = format!("{}{path}", self.url);
        let start = Instant::now() + WARM_UP;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = reqwest::Client::builder().tls_certs_only([authority.clone()]).no_proxy().build()?;
            let (url, body) = (url.clone(), body.clone());
            clients.push(tokio::spawn(async move {
                let mut latencies = Vec::new();
                loop {
                    let asked = Instant::now();
                    let answer = client.post(&url).body(body.clone()).send().await?;
                    let status = answer.status();
                    answer.bytes().await?;
                    if status != reqwest::StatusCode::OK {
                        return Err(Box::<dyn Error + Send + Sync>::from(format!("answered {status}")));
                    }
                    if asked >= start + duration {
                        return Ok(latencies);
                    }
                    if asked >= start {
                        latencies.push(asked.elapsed());
                    }
                }
            }));
        }
        tokio::time::sleep_until(start.into()).await;
        let before = self.processor_seconds()?;
        tokio::time::sleep_until((start + duration).into()).await;
        let processor = self.processor_seconds()? - before;
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await?.map_err(|error| error.to_string())?);
        }
        latencies.sort_unstable();
        let count = latencies.len() as f64;
        Ok(Load {
            count: latencies.len() as u64,
            per_second: count / duration.as_secs_f64(),
            per_core_second: count / processor,
            p50_ms: percentile(&latencies, 50),
            p99_ms: percentile(&latencies, 99),
        })
    }

    /// User and system time, all threads (fields 14 and 15 of proc(5) stat; the name before them is in brackets).
    fn processor_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("no stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut next = || -> Result<f64> { Ok(fields.next().ok_or("no processor time")?.parse()?) };
        Ok((next()? + next()?) / TICKS)
    }

    fn peak_mib(&self) -> Result<f64> {
        let kib = peak::peak_kib(self.process.id()).ok_or("the service has ended")?;
        Ok(kib as f64 / 1024.0)
    }

    fn stop(&mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Speed {
    rsa: f64,
    ecdsa: f64,
}

/// Private-key operations a second of one core, as OpenSSL does them.
fn openssl_speed() -> Result<Speed> {
    let output = Command::new("openssl").args(["speed", "-mr", "-seconds", "2", "rsa3072", "ecdsap256"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    // +F2:index:bits:private per second:public per second, and +F4 for ECDSA.
    let find = |mark: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(mark)).ok_or("openssl speed says something else")?;
        Ok(line.split(':').nth(2).ok_or("openssl speed says something else")?.parse()?)
    };
    Ok(Speed { rsa: find("+F2:")?, ecdsa: find("+F4:")? })
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
}

fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn roll_request(protector: &[u8], health_certificate: &[u8]) -> String {
    let aes = "http://www.w3.org/2009/xmlenc11#aes256-gcm";
    format!(
        "<RollTransportKeyRequest xmlns=\"http://schemas.microsoft.com/kps/2014/07/service\">\
         <IngressProtector>{}</IngressProtector><HealthCertificate>{}</HealthCertificate>\
         <TransferKeyEncryptionAlgorithm>http://www.w3.org/2009/xmlenc11#rsa-oaep</TransferKeyEncryptionAlgorithm>\
         <WrappingKeyEncryptionAlgorithm>{aes}</WrappingKeyEncryptionAlgorithm>\
         <TransportKeysEncryptionAlgorithm>{aes}</TransportKeysEncryptionAlgorithm></RollTransportKeyRequest>",
        STANDARD.encode(protector),
        STANDARD.encode(health_certificate),
    )
}
