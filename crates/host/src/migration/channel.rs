//! A connection between two agents: TLS 1.3, and both ends' proof that they hold the VM's transport key.
//!
//! The destination's certificate is self-signed and proves nothing. What authenticates the ends to each other is
//! HMAC-SHA256, under a key derived from the transport key, over role, migration, purpose and the exporter of this very
//! connection (RFC 8446, 7.5; RFC 9266 has the reason): an attacker who terminates TLS in the middle has two connections
//! with two exporters, and each end's proof is worthless on the other. The destination proves first; the source sends no
//! proof to a peer that has none.

use std::sync::Arc;
use std::time::Duration;

use attestation::P256Key;
use aws_lc_rs::hmac;
use key_protector::DerivedKey;
use rcgen::CertificateParams;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use uuid::Uuid;

use super::messages::{self, Hello, Message, Purpose};
use outcome::{Context, Error, Kind, Next, Result};

const NAME: &str = "drydock-migration";
const EXPORTER: &[u8] = b"EXPORTER-drydock-migration-v1";
/// Deadline of the connection, the TLS handshake, and each message that needs no work at the other end.
pub(super) const SHORT: Duration = Duration::from_secs(15);
/// A peer that sends nothing at all for so long is gone.
const SILENCE_MS: u32 = 30_000;
const RELAY_BUFFER: usize = 128 << 10;

/// An encrypted connection. Who is at the other end is not known before the proofs have been exchanged.
pub(super) struct Channel {
    tls: TlsStream<TcpStream>,
    exporter: [u8; 32],
}

impl Channel {
    /// Connects to a destination and states the purpose.
    pub(super) async fn connect(to: &str, hello: &Hello) -> Result<Self> {
        let unreachable = || format!("no agent accepts migrations at {to}");
        let connect = async {
            let tcp = TcpStream::connect(to).await.context(Kind::Unreachable, unreachable)?;
            prepare(&tcp)?;
            let name = ServerName::try_from(NAME).context(Kind::Internal, unreachable)?;
            let tls = TlsConnector::from(client()?).connect(name, tcp).await.context(Kind::Unreachable, unreachable)?;
            Self::over(tls.into())
        };
        let mut channel = within(SHORT, "the connection", connect)
            .await
            .or_next(|| "start it there: drydock host serve --migration-listen ADDRESS:PORT".into())?;
        messages::send(&mut channel.tls, hello).await?;
        Ok(channel)
    }

    /// The destination's side of [`Channel::connect`].
    pub(super) async fn accept(tcp: TcpStream, acceptor: &TlsAcceptor) -> Result<(Self, Hello)> {
        let accept = async {
            prepare(&tcp)?;
            let tls =
                acceptor.accept(tcp).await.context(Kind::BadInput, || "the peer does not speak TLS 1.3".into())?;
            let mut channel = Self::over(tls.into())?;
            let hello = messages::receive_hello(&mut channel.tls).await?;
            Ok((channel, hello))
        };
        within(SHORT, "the peer's first message", accept).await
    }

    fn over(tls: TlsStream<TcpStream>) -> Result<Self> {
        let failed = || "this connection has no exporter that distinguishes it".to_owned();
        let exporter = match &tls {
            TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; 32], EXPORTER, None),
            TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; 32], EXPORTER, None),
        };
        Ok(Channel { tls, exporter: exporter.context(Kind::Internal, failed)? })
    }

    /// The source's side of the proofs. Waits `patience` for the destination's, which may first have to ask for its key.
    ///
    /// # Errors
    /// The destination's refusal; `Refused` when what it sends proves nothing.
    pub(super) async fn prove_as_source(
        &mut self,
        key: &DerivedKey,
        migration: Uuid,
        purpose: Purpose,
        patience: Duration,
    ) -> Result<()> {
        let proof = match self.receive(patience).await? {
            Message::Proof(proof) => proof,
            other => return Err(unexpected(&other)),
        };
        self.verify(key, DESTINATION, migration, purpose, &proof)?;
        self.send(&Message::Proof(self.proof(key, SOURCE, migration, purpose))).await
    }

    /// The destination's side of the proofs.
    ///
    /// # Errors
    /// `Refused` when what the source sends proves nothing.
    pub(super) async fn prove_as_destination(
        &mut self,
        key: &DerivedKey,
        migration: Uuid,
        purpose: Purpose,
    ) -> Result<()> {
        self.send(&Message::Proof(self.proof(key, DESTINATION, migration, purpose))).await?;
        match self.receive(SHORT).await? {
            Message::Proof(proof) => self.verify(key, SOURCE, migration, purpose, &proof),
            other => Err(unexpected(&other)),
        }
    }

    fn proof(&self, key: &DerivedKey, role: u8, migration: Uuid, purpose: Purpose) -> [u8; 32] {
        let tag = hmac::sign(&mac_key(key), &self.statement(role, migration, purpose));
        let mut proof = [0; 32];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    fn verify(&self, key: &DerivedKey, role: u8, migration: Uuid, purpose: Purpose, proof: &[u8; 32]) -> Result<()> {
        hmac::verify(&mac_key(key), &self.statement(role, migration, purpose), proof).map_err(|_| {
            Error::new(Kind::Refused, "the other end of the connection does not hold the VM's key")
                .remedy("check which machine answers at that address, and whether anything intercepts the connection")
        })
    }

    /// Every part has a fixed length, so no two statements encode to the same bytes.
    fn statement(&self, role: u8, migration: Uuid, purpose: Purpose) -> Vec<u8> {
        let (what, number) = match purpose {
            Purpose::Control => (0u8, 0),
            Purpose::Disk(number) => (1, number as u64),
            Purpose::Memory => (2, 0),
            Purpose::Outcome => (3, 0),
        };
        [&[role][..], migration.as_bytes(), &[what], &number.to_be_bytes(), &self.exporter].concat()
    }

    pub(super) async fn send(&mut self, message: &Message) -> Result<()> {
        within(SHORT, "a message", messages::send(&mut self.tls, message)).await
    }

    /// The next message; a refusal is the error that it carries.
    pub(super) async fn receive(&mut self, patience: Duration) -> Result<Message> {
        within(patience, "the other host's answer", self.next()).await
    }

    /// The same without a deadline: a host that is gone is noticed.
    pub(super) async fn next(&mut self) -> Result<Message> {
        match messages::receive(&mut self.tls).await? {
            Message::Refused(error) => Err(error),
            message => Ok(message),
        }
    }

    /// Relays bytes both ways until both directions have ended.
    pub(super) async fn relay(mut self, mut local: UnixStream) {
        let passed = tokio::io::copy_bidirectional_with_sizes(&mut local, &mut self.tls, RELAY_BUFFER, RELAY_BUFFER);
        if let Err(error) = passed.await {
            tracing::debug!(%error, "a migration's connection broke");
        }
    }
}

const SOURCE: u8 = 1;
const DESTINATION: u8 = 2;

fn mac_key(key: &DerivedKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key.expose())
}

pub(super) fn unexpected(message: &Message) -> Error {
    tracing::debug!(?message, "out of turn");
    Error::new(Kind::BadInput, "the other host sent a message out of turn")
        .remedy("run the same version of drydock on both hosts")
}

pub(super) async fn within<T>(
    patience: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Unreachable, format!("{what} took longer than {} s", patience.as_secs())))
    })
}

/// Detects a peer that vanished, whether we wait for it or send to it.
fn prepare(tcp: &TcpStream) -> Result<()> {
    use rustix::net::sockopt;
    let set = || -> std::io::Result<()> {
        tcp.set_nodelay(true)?;
        sockopt::set_socket_keepalive(tcp, true)?;
        sockopt::set_tcp_keepidle(tcp, Duration::from_secs(10))?;
        sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(5))?;
        sockopt::set_tcp_user_timeout(tcp, SILENCE_MS)?;
        Ok(())
    };
    set().context(Kind::Internal, || "cannot set up a connection".into())
}

/// A key and a certificate that live as long as the agent and are never on a disk.
pub(super) fn acceptor() -> Result<TlsAcceptor> {
    let failed = || "cannot make a certificate for migrations".to_owned();
    let key = P256Key::generate().context(Kind::Internal, failed)?;
    let params = CertificateParams::new(vec![NAME.to_owned()]).context(Kind::Internal, failed)?;
    let certificate = params.self_signed(&key).context(Kind::Internal, failed)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context(Kind::Internal, failed)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .context(Kind::Internal, failed)?;
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn client() -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(default_provider());
    let any = AnyCertificate(provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context(Kind::Internal, || "cannot set up TLS".into())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(any))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The certificate does not identify a destination: the proof does, and it is bound to the connection.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not supported".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use key_protector::TransportKey;
    use tokio::net::TcpListener;

    use super::*;
    use crate::vm_lock::MIGRATION_LABEL as LABEL;

    const MIGRATION: Uuid = Uuid::from_u128(7);

    fn key(byte: u8) -> DerivedKey {
        TransportKey::from_bytes([byte; 32]).derive(LABEL)
    }

    fn hello(purpose: Purpose) -> Hello {
        Hello::Join { migration: MIGRATION, purpose }
    }

    /// What both ends conclude when the source holds one key and the destination another.
    async fn meet(source: (u8, Purpose), destination: (u8, Purpose)) -> (Result<()>, Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let there = tokio::spawn(async move {
            let tcp = listener.accept().await.unwrap().0;
            let (mut channel, _) = Channel::accept(tcp, &acceptor().unwrap()).await.unwrap();
            channel.prove_as_destination(&key(destination.0), MIGRATION, destination.1).await
        });
        let mut channel = Channel::connect(&address, &hello(source.1)).await.unwrap();
        let here = channel.prove_as_source(&key(source.0), MIGRATION, source.1, SHORT).await;
        drop(channel);
        (here, there.await.unwrap())
    }

    #[tokio::test]
    async fn who_holds_the_key_is_known_and_nobody_else() {
        let (here, there) = meet((1, Purpose::Memory), (1, Purpose::Memory)).await;
        here.unwrap();
        there.unwrap();
        for destination in [(2, Purpose::Memory), (1, Purpose::Outcome), (1, Purpose::Disk(0))] {
            let (here, there) = meet((1, Purpose::Memory), destination).await;
            assert_eq!(here.unwrap_err().kind, Kind::Refused);
            // The source sent nothing to a peer that proved nothing.
            assert_eq!(there.unwrap_err().kind, Kind::Unreachable);
        }
    }

    /// An attacker answers in the destination's place and relays everything, proofs included.
    #[tokio::test]
    async fn in_the_middle_nobody_is_believed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let destination = tokio::spawn(async move {
            let tcp = listener.accept().await.unwrap().0;
            let (mut channel, _) = Channel::accept(tcp, &acceptor().unwrap()).await.unwrap();
            channel.prove_as_destination(&key(1), MIGRATION, Purpose::Control).await
        });
        let middle = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let in_between = middle.local_addr().unwrap().to_string();
        let relay = tokio::spawn(async move {
            let tcp = middle.accept().await.unwrap().0;
            let (mut near, hello) = Channel::accept(tcp, &acceptor().unwrap()).await.unwrap();
            let mut far = Channel::connect(&address, &hello).await.unwrap();
            let copied = tokio::io::copy_bidirectional(&mut near.tls, &mut far.tls).await;
            copied.map_or(0, |(_, from_destination)| from_destination)
        });
        let mut channel = Channel::connect(&in_between, &hello(Purpose::Control)).await.unwrap();
        let here = channel.prove_as_source(&key(1), MIGRATION, Purpose::Control, SHORT).await;
        assert_eq!(here.unwrap_err().kind, Kind::Refused);
        drop(channel);
        assert!(destination.await.unwrap().is_err());
        relay.await.unwrap();
    }
}
