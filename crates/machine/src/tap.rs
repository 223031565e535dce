//! A VM's ports on bridges: each is a tap interface, enslaved to a Linux bridge (Hyper-V calls it a virtual switch).

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::process::{IP, Program};
use crate::spec::{VmSpec, check_switch_name};
use crate::user::User;

const DEADLINE: Duration = Duration::from_secs(10);

/// Checks that `name` is a bridge of this machine.
///
/// # Errors
/// [`Error::Switch`] when the interface is missing or is not a bridge; [`Error::Spec`] for an invalid name.
pub fn check_switch(name: &str) -> Result<()> {
    check_switch_name(name)?;
    let interface = Path::new("/sys/class/net").join(name);
    let reason = if !interface.exists() {
        "does not exist on this machine"
    } else if !interface.join("bridge").is_dir() {
        "is a network interface, but not a bridge"
    } else {
        return Ok(());
    };
    Err(Error::Switch { name: name.into(), reason: reason.into() })
}

/// The name of the tap interface of a VM's `index`th network card. It is the same every time, so that a tap which a
/// crash left behind is found again.
pub fn tap_name(vm: Uuid, index: usize) -> String {
    let hex = vm.simple().to_string();
    format!("dd{}{index:02x}", &hex[..10])
}

/// The taps that exist because of one running VM.
#[derive(Default)]
pub(crate) struct Taps(Vec<String>);

impl Taps {
    /// Creates one tap for each network card. After an error, [`Taps::remove`] those that were created before it.
    pub(crate) async fn create(&mut self, spec: &VmSpec, user: User) -> Result<()> {
        for (index, nic) in spec.nics.iter().enumerate() {
            let name = tap_name(spec.id, index);
            create(&name, &nic.switch, user).await?;
            self.0.push(name);
        }
        Ok(())
    }

    /// In the order of the network cards.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    pub(crate) async fn remove(self) {
        for name in &self.0 {
            remove(name).await;
        }
    }
}

/// Creates a tap for `user` on the bridge `switch`.
async fn create(name: &str, switch: &str, user: User) -> Result<()> {
    check_switch(switch)?;
    if Path::new("/sys/class/net").join(name).exists() {
        // Left by a crash. If a VM still uses it, this fails, as it should.
        ip(&["tuntap", "del", "dev", name, "mode", "tap"]).await?;
    }
    // Without an owner, any user of this machine could open the tap.
    let owner = user.uid().to_string();
    ip(&["tuntap", "add", "dev", name, "mode", "tap", "user", &owner]).await?;
    let plugged = ip(&["link", "set", "dev", name, "master", switch, "up"]).await;
    if plugged.is_err() {
        remove(name).await;
    }
    plugged
}

/// Removes a tap, if it exists.
async fn remove(name: &str) {
    if let Err(error) = ip(&["link", "del", "dev", name]).await {
        tracing::warn!(name, %error, "cannot remove a VM's network port");
    }
}

async fn ip(args: &[&str]) -> Result<()> {
    Program { name: IP, rights: None, args: args.iter().map(Into::into).collect(), fds: Vec::new(), log: None }
        .spawn()?
        .finish(DEADLINE)
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_not_a_bridge_is_refused_with_a_reason() {
        let reason = |name: &str| check_switch(name).unwrap_err().to_string();
        assert!(reason("dd-none").contains("does not exist"));
        assert!(reason("lo").contains("not a bridge"));
        assert!(reason("../lo").contains("must be"));
    }

    #[test]
    fn tap_names_fit_and_differ() {
        let vm = Uuid::from_u128(u128::MAX);
        assert!(tap_name(vm, 7).len() <= 15);
        assert_ne!(tap_name(vm, 0), tap_name(vm, 1));
    }

    #[tokio::test]
    async fn a_tap_comes_and_goes_even_after_a_crash() {
        let (bridge, tap) = ("ddtest-br", "ddtest-tap");
        ip(&["link", "add", bridge, "type", "bridge"]).await.unwrap();
        let made = async {
            create(tap, bridge, User::Own).await?;
            create(tap, bridge, User::Own).await
        }
        .await;
        let plugged = Path::new("/sys/class/net/ddtest-br/brif/ddtest-tap").exists();
        remove(tap).await;
        let gone = !Path::new("/sys/class/net/ddtest-tap").exists();
        ip(&["link", "del", bridge]).await.unwrap();
        made.unwrap();
        assert!(plugged && gone);
    }
}
