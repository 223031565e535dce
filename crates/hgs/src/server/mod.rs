//! The service on the network: listening, TLS, limits, shutting down.

mod routes;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::admin::Hgs;
use crate::error::{Error, Result};

pub use routes::routes;

/// For the TLS handshake, and for the head of each request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection is closed after this, however busy: a peer that reads or writes a byte a minute blocks nothing.
const CONNECTION: Duration = Duration::from_secs(300);
/// How long requests that are in progress at shutdown may take.
const GRACE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 256;

/// How hosts reach the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// With a certificate of the service's own authority (`hgs-ca.pem`).
    Https,
    /// In the clear. Transport keys are still encrypted to the attested host, but hosts cannot tell the service from an
    /// impostor.
    PlainHttp {
        /// Also on addresses that other machines can reach.
        force: bool,
    },
}

/// A running service.
pub struct Serving {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Serving {
    /// Where it listens, with the real port even if port 0 was requested.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the shutdown that was passed to [`serve`] is complete.
    ///
    /// # Errors
    /// `Stopped` if the service ended for another reason.
    pub async fn wait(self) -> Result<()> {
        self.task.await.map_err(|_| Error::Stopped)
    }
}

/// Listens on `address` and serves in the background until `shutdown` completes.
///
/// # Errors
/// `GuardianMissing`, `PlainHttpExposed`, `Bind`, `Certificate`, `Tls`, `Store`.
pub async fn serve(
    hgs: Arc<Hgs>,
    address: SocketAddr,
    transport: Transport,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Serving> {
    let tls = match transport {
        Transport::Https => Some(TlsAcceptor::from(hgs.keys.tls_ca.server_config(&hgs.keys.settings.server_names)?)),
        Transport::PlainHttp { force } if force || address.ip().is_loopback() => None,
        Transport::PlainHttp { .. } => return Err(Error::PlainHttpExposed { address }),
    };
    hgs.check_guardians().await?;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })?;
    let address = listener.local_addr().map_err(|source| Error::Bind { address, source })?;
    let router = routes::router(hgs);
    let task = tokio::spawn(accept(listener, tls, router, shutdown));
    tracing::info!(%address, "listening");
    Ok(Serving { address, task })
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, shutdown: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        // Removes connections that have ended.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = async {
                // The semaphore is never closed.
                let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
                Some((listener.accept().await, slot))
            } => accepted,
        };
        let Some((accepted, slot)) = accepted else { break };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                // Out of file descriptors, most likely: do not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router, stopping) = (tls.clone(), router.clone(), stopping.clone());
        connections.spawn(async move {
            let _slot = slot;
            if tokio::time::timeout(CONNECTION, connection(stream, tls, router, stopping)).await.is_err() {
                tracing::debug!("connection closed: too old");
            }
        });
    }
    drop(listener);
    // An error means that no connection is left.
    let _ = stop.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, drained).await.is_err() {
        tracing::warn!("connections were cut at shutdown");
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router, stopping: watch::Receiver<bool>) {
    match tls {
        None => http(stream, router, stopping).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => http(stream, router, stopping).await,
            Ok(Err(error)) => tracing::debug!("TLS handshake failed: {error}"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        },
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .serve_connection(TokioIo::new(stream), service_fn(move |request| service.call(lower_case(request))));
    tokio::pin!(connection);
    let stop = async {
        // An error means that the accept loop is gone: stop as well.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = done {
        tracing::debug!("connection ended: {error}");
    }
}

/// Windows hosts write these paths in several ways (`/Attestation/Getinfo`): their case is not significant.
fn lower_case(mut request: Request<Incoming>) -> Request<Incoming> {
    let lower = request.uri().path().to_ascii_lowercase();
    // Queries have no meaning here and are dropped. A path that was valid is valid in lower case.
    if let Ok(uri) = lower.parse() {
        *request.uri_mut() = uri;
    }
    request
}
