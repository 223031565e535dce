//! A service in TPM mode and a machine with a real TPM (swtpm), and ways to send what no client sends.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use attestation::IdentityKey;
use attestation::messages::{AttestationRequest, Reply};
use attestation::tpm::{Blob, Context, QUOTED, qualifying_data};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs_client::{Error, HealthCertificate};
use reqwest::StatusCode;
use tpm::HostTpm;

use super::World;
use super::boot::{Machine, Measurement, boot, log};

pub const ATTEST: &str = "/Attestation/v2.0/attest";
pub const BASELINE_PCRS: [u32; 4] = [0, 2, 4, 7];

/// A service in TPM mode that knows one machine, and that machine.
pub struct Fabric {
    pub world: World,
    pub machine: Machine,
    pub tpm: HostTpm,
    pub identity: IdentityKey,
}

impl Fabric {
    /// The baseline is that of the good boot, whatever the machine's was.
    pub async fn with(measurements: &[Measurement]) -> Self {
        let world = World::start_tpm().await;
        let machine = Machine::start(measurements);
        let tpm = open(&machine).await;
        world.hgs.add_tpm_host("host-1", tpm.endorsement_key().der()).await.unwrap();
        world.hgs.add_baseline("good", &log(&boot(true)), &BASELINE_PCRS).await.unwrap();
        Fabric { world, machine, tpm, identity: IdentityKey::generate().unwrap() }
    }

    pub async fn attest(&self) -> Result<HealthCertificate, Error> {
        self.world.client().attest_tpm(&self.tpm).await
    }

    pub async fn send(&self, context: &Context) -> (StatusCode, Reply) {
        let ek = self.tpm.endorsement_key();
        let request = AttestationRequest::tpm(ek, self.identity.public(), &[5; 16], context).unwrap();
        let (status, body) = self.world.post(ATTEST, serde_json::to_vec(&request).unwrap()).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The service's challenge for an attestation key.
    pub async fn challenge(&self, ak: &[u8]) -> Context {
        let (_, reply) = self.send(&Context::new(Vec::new(), vec![(Blob::AttestationKey, ak.to_vec())])).await;
        let Reply::TpmContinue { context } = reply else { panic!("{reply:?}") };
        Context::parse(&STANDARD.decode(context).unwrap()).unwrap()
    }

    /// What an honest host answers.
    pub async fn evidence(&self, challenge: &Context, ak: &[u8]) -> Vec<(Blob, Vec<u8>)> {
        let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
        let secret = self.tpm.activate(challenge.blob(Blob::Credential).unwrap()).await.unwrap();
        let (quote, signature) = self.tpm.quote(&qualifying_data(&nonce, self.identity.public())).await.unwrap();
        vec![
            (Blob::AttestationKey, ak.to_vec()),
            (Blob::Secret, secret),
            (Blob::Quote, quote),
            (Blob::Signature, signature),
            (Blob::EventLog, self.tpm.event_log().unwrap()),
        ]
    }

    /// The last row says that attestation was refused, for this reason, and to whom.
    pub async fn assert_refused(&self, why: &str) {
        let (event, host, found) = self.world.last().await;
        assert_eq!((event.as_str(), host.as_str()), ("attestation-refused", "host-1"));
        assert!(found.contains(why), "{found}");
    }
}

pub async fn open(machine: &Machine) -> HostTpm {
    HostTpm::open(Some(&machine.tcti), &machine.log_file()).await.unwrap()
}

pub fn replaced(blobs: &[(Blob, Vec<u8>)], kind: Blob, bytes: Vec<u8>) -> Vec<(Blob, Vec<u8>)> {
    blobs.iter().map(|(found, old)| (*found, if *found == kind { bytes.clone() } else { old.clone() })).collect()
}

pub fn message(reply: &Reply) -> &str {
    match reply {
        Reply::RtpmError { message, .. } | Reply::TcgLogValidationError { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

pub fn all() -> String {
    format!("sha256:{}", QUOTED.map(|pcr| pcr.to_string()).join(","))
}

/// A TPM used by hand, for what the client never does.
pub struct Private<'a>(&'a Machine);

impl<'a> Private<'a> {
    pub fn new(machine: &'a Machine) -> Self {
        let private = Private(machine);
        assert!(private.tool("tpm2_createek -c e.ctx -G rsa -u e.pem -f pem"));
        assert!(private.tool("tpm2_flushcontext -t"));
        assert!(private.tool("tpm2_createak -Q -C e.ctx -c a.ctx -G ecc -g sha256 -s ecdsa -u a.pub -f tss -n a.name"));
        assert!(private.tool("tpm2_flushcontext -t"));
        private
    }

    fn tool(&self, line: &str) -> bool {
        let (tool, arguments) = line.split_once(' ').unwrap();
        self.0.tool(tool, &arguments.split(' ').collect::<Vec<_>>())
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.folder.path().join(name)).unwrap()
    }

    pub fn ak(&self) -> Vec<u8> {
        self.file("a.pub")
    }

    pub fn activate(&self, credential: &[u8]) -> Option<Vec<u8>> {
        let framed = [&[0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1], credential].concat();
        std::fs::write(self.0.folder.path().join("c"), framed).unwrap();
        assert!(self.tool("tpm2_startauthsession --policy-session -S s.ctx"));
        assert!(self.tool("tpm2_policysecret -S s.ctx -c e"));
        let done = self.tool("tpm2_activatecredential -Q -c a.ctx -C e.ctx -i c -o secret -P session:s.ctx");
        self.tool("tpm2_flushcontext s.ctx");
        assert!(self.tool("tpm2_flushcontext -t"));
        done.then(|| self.file("secret"))
    }

    pub fn quote(&self, pcrs: &str, qualifying: &[u8; 32]) -> (Vec<u8>, Vec<u8>) {
        let hex: String = qualifying.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(self.tool(&format!("tpm2_quote -Q -c a.ctx -l {pcrs} -q {hex} -m m -s g")), "{pcrs}");
        assert!(self.tool("tpm2_flushcontext -t"));
        (self.file("m"), self.file("g"))
    }
}
