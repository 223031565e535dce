//! Sessions: bytes between the host and a service of the guest's, for VMs of console profile 2019.
//!
//! A session is a port of its own on the VM's virtio-serial controller, plugged in when it begins and taken out at the
//! latest before the next one. So both sides know where a byte stream without frames begins and ends, and no byte of one
//! session is ever in another: the guest is told by its udev, and a number is used again [`NUMBERS`] sessions later.
//! In QEMU the other end is one of a socket pair, as for every channel.

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::qemu::{SESSION, SESSIONS};
use crate::qmp::{Command, Event};
use crate::running::{Running, our_pair};
use crate::spec::ConsoleProfile;
use crate::{Error, Result};

/// By this name a guest knows a session.
pub const PORT_NAME: &str = "org.drydock.session.0";
/// The last port number that QEMU's controller has; 0 is the one that a guest may take for a console.
const NUMBERS: u8 = 30;

/// What there is of sessions in QEMU.
#[derive(Default)]
pub(crate) struct Sessions {
    /// The number of the last port.
    last: u8,
    plugged: bool,
}

impl Sessions {
    fn id(&self) -> String {
        format!("session-port{}", self.last)
    }
}

/// An open session.
pub struct Session {
    pub stream: UnixStream,
    /// Says when the guest's service has gone.
    pub guest: Guest,
}

/// What QEMU says of the guest's end of a session.
pub struct Guest {
    port: String,
    events: broadcast::Receiver<Event>,
}

impl Guest {
    /// Waits until the service that had opened the port closes it, or the VM ends.
    pub async fn left(&mut self) {
        loop {
            match self.events.recv().await {
                Ok(event) if event.name == "VSERPORT_CHANGE" && event.data["id"] == self.port.as_str() => {
                    if event.data["open"] == false {
                        return;
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}

impl Running {
    /// Opens a session; one that is open ends.
    ///
    /// # Errors
    /// [`Error::Policy`] when the sealed console profile has none; QEMU's refusal.
    pub async fn open_session(&self) -> Result<Session> {
        if self.subject().console_profile != ConsoleProfile::Server2019 {
            return Err(Error::Policy { what: "a session".into() });
        }
        let mut sessions = self.sessions().lock().await;
        self.unplug_session(&mut sessions).await?;
        sessions.last = sessions.last % NUMBERS + 1;
        let port = sessions.id();
        let guest = Guest { port: port.clone(), events: self.qmp().events() };
        let (stream, theirs) = our_pair()?;
        self.qmp().get_fd(SESSION, theirs.into()).await?;
        let socket = json!({"addr": {"type": "fd", "data": {"str": SESSION}}, "server": false});
        let backend = json!({"id": SESSION, "backend": {"type": "socket", "data": socket}});
        self.qmp().execute(Command::ChardevAdd, backend).await?;
        sessions.plugged = true;
        let device = json!({
            "driver": "virtserialport", "id": port, "bus": format!("{SESSIONS}.0"), "nr": sessions.last,
            "name": PORT_NAME, "chardev": SESSION,
        });
        let plugged = self.qmp().execute(Command::DeviceAdd, device).await;
        if plugged.is_err() {
            self.qmp().execute(Command::ChardevRemove, json!({"id": SESSION})).await?;
            sessions.plugged = false;
        }
        plugged.map(|_| Session { stream, guest })
    }

    /// Ends the session, if one is open.
    ///
    /// # Errors
    /// QEMU's refusal.
    pub async fn close_session(&self) -> Result<()> {
        self.unplug_session(&mut *self.sessions().lock().await).await
    }

    async fn unplug_session(&self, sessions: &mut Sessions) -> Result<()> {
        if sessions.plugged {
            self.remove_device(&sessions.id(), "the end of the session before").await?;
            self.qmp().execute(Command::ChardevRemove, json!({"id": SESSION})).await?;
            sessions.plugged = false;
        }
        Ok(())
    }
}
