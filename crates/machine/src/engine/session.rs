//! Sessions: a byte stream between the host and a service of the guest, for VMs of console profile 2019.
//!
//! A session is a port of its own on the VM's virtio-serial controller. The port is plugged in when the session begins
//! and unplugged at the latest before the next one. Both sides therefore know where a byte stream without frames begins
//! and ends, and no byte of one session is ever in another: the guest sees it through udev, and a port number is reused
//! only 30 sessions later. In QEMU the other end is one of a socket pair, as for every channel.

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::broadcast::{self, error::RecvError};

use super::channels::{SESSION, SESSION_CONTROLLER};
use super::devices::SessionPort;
use super::qmp::{Command, Event};
use super::running::RunningVm;
use crate::error::{Error, Result};
use crate::process::socket_pair;
use crate::spec::ConsoleProfile;

/// The name under which the guest finds the port of a session.
pub const PORT_NAME: &str = "org.drydock.session.0";
/// The last port number of QEMU's controller; a guest may take port 0 for a console.
const NUMBERS: u8 = 30;

/// An open session.
pub struct Session {
    /// The host's end.
    pub stream: UnixStream,
    /// Tells when the guest's service has closed its end.
    pub guest: Guest,
}

/// What QEMU says about the guest's end of a session.
pub struct Guest {
    port: String,
    events: broadcast::Receiver<Event>,
}

impl Guest {
    /// Waits until the service that opened the port closes it, or the VM ends.
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

impl RunningVm {
    /// Opens a session; an open one ends.
    ///
    /// # Errors
    /// [`Error::Policy`] when the sealed console profile has no sessions; QEMU's refusal.
    pub async fn open_session(&self) -> Result<Session> {
        if self.subject().console_profile != ConsoleProfile::Server2019 {
            return Err(Error::Policy { what: "a session".into() });
        }
        let mut port = self.session.lock().await;
        self.unplug_session(&mut port).await?;
        port.last = port.last % NUMBERS + 1;
        let id = port.id();
        let guest = Guest { port: id.clone(), events: self.qmp().events() };
        let (stream, theirs) = socket_pair()?;
        self.qmp().get_fd(SESSION, theirs.into()).await?;
        let socket = json!({"addr": {"type": "fd", "data": {"str": SESSION}}, "server": false});
        let backend = json!({"id": SESSION, "backend": {"type": "socket", "data": socket}});
        self.qmp().execute(Command::ChardevAdd, backend).await?;
        port.plugged = true;
        let device = json!({
            "driver": "virtserialport", "id": id, "bus": format!("{SESSION_CONTROLLER}.0"), "nr": port.last,
            "name": PORT_NAME, "chardev": SESSION,
        });
        let plugged = self.qmp().execute(Command::DeviceAdd, device).await;
        if plugged.is_err() {
            self.qmp().execute(Command::ChardevRemove, json!({"id": SESSION})).await?;
            port.plugged = false;
        }
        plugged.map(|_| Session { stream, guest })
    }

    /// Ends the session, if one is open.
    ///
    /// # Errors
    /// QEMU's refusal.
    pub async fn close_session(&self) -> Result<()> {
        self.unplug_session(&mut *self.session.lock().await).await
    }

    async fn unplug_session(&self, port: &mut SessionPort) -> Result<()> {
        if port.plugged {
            self.remove_device(&port.id(), "the end of the previous session").await?;
            self.qmp().execute(Command::ChardevRemove, json!({"id": SESSION})).await?;
            port.plugged = false;
        }
        Ok(())
    }
}
