//! A real service on a port of its own, a registered host, an owner, and ways to send what no client sends.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../../../tpm/tests/support/boot.rs"]
pub mod boot;
pub mod fabric;
pub mod forge;
pub mod postgres;
pub mod schema;
pub mod tap;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use attestation::{HostKey, HostKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs::server::{self, Serving, Transport};
use hgs::{Hgs, InitOptions, StoreUrl};
use hgs_client::HgsClient;
use key_protector::{Guardian, GuardianPublic, KeyKind, Protector, Role, TransportKey};
use reqwest::StatusCode;
use sqlx::{AnyConnection, Connection};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

pub const HOST: &str = "host-1";
const RSA_OAEP: &str = "http://www.w3.org/2009/xmlenc11#rsa-oaep";
const AES_GCM: &str = "http://www.w3.org/2009/xmlenc11#aes256-gcm";

pub struct World {
    pub hgs: Arc<Hgs>,
    pub host_key: HostKey,
    pub owner: Guardian,
    pub url: String,
    pub address: SocketAddr,
    /// Seconds that the service's clock is ahead.
    ahead: Arc<AtomicI64>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<Serving>,
    folder: TempDir,
    pub store: Option<StoreUrl>,
}

/// Which store the services of this program have: `postgres.rs` compiles the tests a second time, and `nodes.rs` is
/// about several nodes.
async fn store() -> Option<StoreUrl> {
    let on_postgres = ["postgres::", "nodes::", "killed::"].iter().any(|name| module_path!().starts_with(name));
    if on_postgres { Some(postgres::database().await) } else { None }
}

pub fn passphrase() -> Zeroizing<String> {
    Zeroizing::new("correct horse battery".to_owned())
}

pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub fn guardian(name: &str, role: Role, lifetime: Duration) -> Guardian {
    Guardian::generate(name, role, KeyKind::Rsa2048, now() - Duration::hours(1), now() + lifetime).unwrap()
}

impl World {
    pub async fn start() -> Self {
        Self::over(Transport::Https).await
    }

    /// A service that attests hosts by their TPM. Nothing is registered with it.
    pub async fn start_tpm() -> Self {
        Self::with(Transport::Https, HostKind::Tpm).await
    }

    pub async fn over(transport: Transport) -> Self {
        Self::with(transport, HostKind::HostKey).await
    }

    async fn with(transport: Transport, mode: HostKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ahead = Arc::new(AtomicI64::new(0));
        let clock = Arc::clone(&ahead);
        let store = store().await;
        let options = InitOptions { mode, store: store.clone(), ..InitOptions::default() };
        let hgs = Hgs::init(&folder.path().join("hgs"), options)
            .await
            .unwrap()
            .with_clock(move || now() + Duration::seconds(clock.load(Ordering::SeqCst)));
        let hgs = Arc::new(hgs);
        let host_key = HostKey::generate().unwrap();
        if mode == HostKind::HostKey {
            hgs.add_host(HOST, host_key.public_pem().as_bytes()).await.unwrap();
        }
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let serving =
            server::serve(Arc::clone(&hgs), "127.0.0.1:0".parse().unwrap(), transport, shutdown).await.unwrap();
        let address = serving.local_addr();
        let scheme = if transport == Transport::Https { "https" } else { "http" };
        World {
            hgs,
            host_key,
            owner: guardian("tenant", Role::Owner, Duration::days(30)),
            url: format!("{scheme}://127.0.0.1:{}", address.port()),
            address,
            ahead,
            stop: Some(stop),
            serving: Some(serving),
            folder,
            store,
        }
    }

    pub fn client(&self) -> HgsClient {
        let ca = self.url.starts_with("https").then(|| self.hgs.ca_pem().as_bytes());
        HgsClient::new(&self.url, ca).unwrap()
    }

    /// A protector of our owner for the service and these other guardians.
    pub fn protector(&self, others: &[GuardianPublic]) -> (Protector, TransportKey) {
        let guardians: Vec<GuardianPublic> =
            std::iter::once(self.hgs.guardian()).chain(others.iter().cloned()).collect();
        Protector::new(&self.owner, &guardians, now()).unwrap()
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("hgs")
    }

    /// A connection to the service's store, behind its back: what somebody has who can write the database.
    pub async fn store(&self) -> AnyConnection {
        let url = match &self.store {
            Some(_) => std::fs::read_to_string(self.dir().join("store.url")).unwrap(),
            None => format!("sqlite://{}", self.dir().join("hgs.sqlite").display()),
        };
        sqlx::any::install_default_drivers();
        AnyConnection::connect(&url).await.unwrap()
    }

    /// One statement behind the service's back.
    pub async fn meddle(&self, statement: &'static str) {
        let done = sqlx::query(statement).execute(&mut self.store().await).await.unwrap();
        assert!(done.rows_affected() > 0, "{statement}");
    }

    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(by.whole_seconds(), Ordering::SeqCst);
    }

    pub async fn shut_down(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.serving.take().unwrap().wait().await.unwrap();
    }

    pub async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> (StatusCode, String) {
        self.post_to(&self.url, path, body).await
    }

    /// At any node of this service.
    pub async fn post_to(&self, url: &str, path: &str, body: impl Into<Vec<u8>>) -> (StatusCode, String) {
        let answer = self.raw().post(format!("{url}{path}")).body(body.into()).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Vec<u8>) {
        let answer = self.raw().get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap().to_vec())
    }

    pub fn raw(&self) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(self.hgs.ca_pem().as_bytes()).unwrap();
        reqwest::Client::builder().tls_certs_only([ca]).no_proxy().build().unwrap()
    }

    /// The last row of the audit log: event, host, why.
    pub async fn last(&self) -> (String, String, String) {
        let entry = self.hgs.audit(1).await.unwrap().remove(0);
        (entry.event, entry.host, entry.why)
    }
}

/// MS-KPS 2.2.2.1, written by hand.
pub fn roll_request(protector: &[u8], health_certificate: &[u8]) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
         <RollTransportKeyRequest xmlns=\"http://schemas.microsoft.com/kps/2014/07/service\">\n\
         <IngressProtector>{}</IngressProtector>\n\
         <HealthCertificate>{}</HealthCertificate>\n\
         <TransferKeyEncryptionAlgorithm>{RSA_OAEP}</TransferKeyEncryptionAlgorithm>\n\
         <WrappingKeyEncryptionAlgorithm>{AES_GCM}</WrappingKeyEncryptionAlgorithm>\n\
         <TransportKeysEncryptionAlgorithm>{AES_GCM}</TransportKeysEncryptionAlgorithm>\n\
         </RollTransportKeyRequest>\n",
        STANDARD.encode(protector),
        STANDARD.encode(health_certificate),
    )
}
