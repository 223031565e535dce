//! A guarded host's dealings with its Host Guardian Service: which node is asked, with what the host proves itself, and
//! what a failure means.

use std::sync::atomic::{AtomicUsize, Ordering};

use attestation::HostKey;
use hgs_client::{HealthCertificate, HgsClient, Status};
use key_protector::{GuardianPublic, Protector, Rolled};
use outcome::{Context, Error, Kind, Result};
use tpm::HostTpm;

/// Why no key was released.
pub(crate) enum Unreleased {
    /// No node of the service answered.
    Unreachable(Error),
    /// The service answered, and refused.
    Denied(Error),
    /// Neither: something else answered, or the request could not be made.
    Unclear(Error),
}

impl From<Unreleased> for Error {
    fn from(unreleased: Unreleased) -> Self {
        match unreleased {
            Unreleased::Unreachable(error) | Unreleased::Denied(error) | Unreleased::Unclear(error) => error,
        }
    }
}

/// What a host proves itself with: the two modes of MS-HGSA that are spoken here.
pub enum HostProof {
    /// A key that the Host Guardian Service knows.
    Key(HostKey),
    /// A TPM that it knows, and how that TPM saw the host start.
    Tpm(HostTpm),
}

/// A guarded host's side of attestation and key protection, with one Host Guardian Service or several nodes of it.
pub struct Guarded {
    nodes: Vec<Node>,
    /// The node that answered last: asked first the next time.
    preferred: AtomicUsize,
    proof: HostProof,
    offline: bool,
}

struct Node {
    client: HgsClient,
    url: String,
}

impl Guarded {
    /// One Host Guardian Service, by the addresses of its nodes.
    ///
    /// # Errors
    /// `BadInput` for an invalid URL or CA file, or when no URL is given.
    pub fn new(urls: &[String], ca_pem: Option<&[u8]>, proof: HostProof) -> Result<Self> {
        let nodes = urls
            .iter()
            .map(|url| {
                let client = HgsClient::new(url, ca_pem)
                    .context(Kind::BadInput, || format!("cannot use the Host Guardian Service at {url}"))?;
                Ok(Node { client, url: url.clone() })
            })
            .collect::<Result<Vec<_>>>()?;
        if nodes.is_empty() {
            return Err(Error::new(Kind::BadInput, "no Host Guardian Service is named"));
        }
        Ok(Guarded { nodes, preferred: AtomicUsize::new(0), proof, offline: false })
    }

    /// Whether this host keeps keys for starts without the service, where the VM's owner allows it.
    #[must_use]
    pub fn offline(self, offline: bool) -> Self {
        Guarded { offline, ..self }
    }

    pub(crate) fn proof(&self) -> &HostProof {
        &self.proof
    }

    pub(crate) fn keeps_offline(&self) -> bool {
        self.offline
    }

    /// All nodes' addresses.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.url.as_str())
    }

    /// The fabric guardian that each node answers for, in the order of [`Guarded::urls`].
    pub async fn guardians(&self) -> Vec<Result<GuardianPublic>> {
        let mut found = Vec::new();
        for node in &self.nodes {
            found.push(
                node.client.metadata().await.map_err(|e| {
                    release_error(format!("the Host Guardian Service at {} does not answer", node.url), &e)
                }),
            );
        }
        found
    }

    /// The node that answered last.
    #[must_use]
    pub fn url(&self) -> &str {
        self.nodes.get(self.preferred.load(Ordering::Relaxed)).map_or("", |node| &node.url)
    }

    /// Attests, as every start of a VM does.
    ///
    /// # Errors
    /// `KeyRelease` with the AttestationStatus and what to do about it.
    pub async fn attest(&self) -> Result<HealthCertificate> {
        Ok(self.try_nodes(None).await?.0)
    }

    pub(crate) async fn roll(&self, protector: &Protector) -> std::result::Result<Rolled, Unreleased> {
        let (_, rolled) = self.try_nodes(Some(protector)).await?;
        rolled.ok_or_else(|| Unreleased::Unclear(Error::new(Kind::Internal, "no key was asked for")))
    }

    /// Gets a health certificate for each start: it costs one request, and a host that was removed from the HGS a minute
    /// ago gets nothing.
    async fn ask(&self, node: &Node, protector: Option<&Protector>) -> std::result::Result<Answer, Failure> {
        let health = self.attest_at(node).await?;
        let Some(protector) = protector else { return Ok((health, None)) };
        let rolled = node.client.roll_transport_key(protector, &health).await.map_err(|e| {
            Failure::new(format!("the Host Guardian Service at {} did not release the key", node.url), &e)
        })?;
        Ok((health, Some(rolled)))
    }

    async fn attest_at(&self, node: &Node) -> std::result::Result<HealthCertificate, Failure> {
        let attested = match &self.proof {
            HostProof::Key(key) => node.client.attest(key).await,
            HostProof::Tpm(tpm) => node.client.attest_tpm(tpm).await,
        };
        attested.map_err(|e| {
            let status = e.status().name();
            Failure::new(format!("the Host Guardian Service at {} did not attest this host: {status}", node.url), &e)
        })
    }

    /// Asks each node once (MS-KPS 3.2.3: as many tries as there are addresses), beginning with the one that answered
    /// last. The first node that answers decides, even if it refuses.
    async fn try_nodes(&self, protector: Option<&Protector>) -> std::result::Result<Answer, Unreleased> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut passed = Vec::new();
        for place in (0..self.nodes.len()).map(|n| (first + n) % self.nodes.len()) {
            let Some(node) = self.nodes.get(place) else { continue };
            match self.ask(node, protector).await {
                Ok(answer) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Failure { transient: true, unreachable, error, .. }) => {
                    tracing::warn!(hgs = node.url, %error, "asking the next node");
                    passed.push((unreachable, error));
                }
                Err(Failure { denied: true, error, .. }) => return Err(Unreleased::Denied(error)),
                Err(Failure { error, .. }) => return Err(Unreleased::Unclear(error)),
            }
        }
        let unreachable = passed.iter().all(|(unreachable, _)| *unreachable);
        let mut errors = passed.into_iter().map(|(_, error)| error);
        let mut error = errors.next().unwrap_or_else(|| Error::new(Kind::KeyRelease, "no node was asked"));
        error.causes.extend(errors.map(|error| error.message));
        Err(if unreachable { Unreleased::Unreachable(error) } else { Unreleased::Unclear(error) })
    }
}

/// Proof of health, and the key if one was asked for.
type Answer = (HealthCertificate, Option<Rolled>);

struct Failure {
    /// Another node may answer.
    transient: bool,
    /// This one did not answer.
    unreachable: bool,
    /// This one answered, and refused.
    denied: bool,
    error: Error,
}

impl Failure {
    fn new(message: String, cause: &hgs_client::Error) -> Self {
        Failure {
            transient: cause.status() == Status::TransientError,
            unreachable: cause.is_unreachable(),
            denied: cause.is_denied(),
            error: release_error(message, cause),
        }
    }
}

fn release_error(message: String, cause: &hgs_client::Error) -> Error {
    Error::new(Kind::KeyRelease, message).caused_by(cause).remedy(cause.remedy())
}
