//! A wire-tap between a client and a service: what was sent, byte for byte, in both directions.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Default)]
pub struct Tap {
    sent: Arc<Mutex<Vec<u8>>>,
    answered: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    /// Listens in front of `service`, until the test ends.
    pub async fn before(service: SocketAddr) -> (Self, SocketAddr) {
        let tap = Tap::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sent, answered) = (Arc::clone(&tap.sent), Arc::clone(&tap.answered));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (from_client, to_client) = client.into_split();
                let (from_service, to_service) = TcpStream::connect(service).await.unwrap().into_split();
                tokio::spawn(copy(from_client, to_service, Arc::clone(&sent)));
                tokio::spawn(copy(from_service, to_client, Arc::clone(&answered)));
            }
        });
        (tap, address)
    }

    /// The last XML document that the client sent, from its declaration to the end of element `name`.
    pub fn sent(&self, name: &str) -> Vec<u8> {
        document(&self.sent.lock().unwrap(), name)
    }

    /// The last one that the service answered with.
    pub fn answered(&self, name: &str) -> Vec<u8> {
        document(&self.answered.lock().unwrap(), name)
    }
}

fn document(bytes: &[u8], name: &str) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    let end = format!("</{name}>");
    let end = text.rfind(&end).unwrap_or_else(|| panic!("no {name} in {text}")) + end.len();
    let start = text[..end].rfind("\r\n\r\n").unwrap() + 4;
    bytes[start..end].to_vec()
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, log: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 {
            break;
        }
        log.lock().unwrap().extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
