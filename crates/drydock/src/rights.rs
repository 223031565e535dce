//! What the agent may do: root's capabilities without those that it does not need, and no way to regain one. Everything
//! that it starts inherits these, and gives up more.

use outcome::{Context, Error, Kind, Next, Result};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    no_new_privs, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What every agent keeps. docs/hardening.md says what each is for; the units in contrib/systemd have the same list.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_ADMIN);
/// What an agent in a garage keeps too: it installs packages on request.
const INSTALLS: CapabilitySet = CapabilitySet::FOWNER.union(CapabilitySet::FSETID);

/// Gives up all capabilities but those that the agent needs, and names what is left. Call it before a second thread
/// exists: each thread has its own.
///
/// # Errors
/// `Internal` when something is left that should not be: the agent must not continue then.
pub(crate) fn reduce(local: bool) -> Result<String> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    if threads.context(Kind::Internal, || "cannot count the agent's threads".into())? != 1 {
        return Err(Error::new(Kind::Internal, "other threads would keep their capabilities"));
    }
    let kept = kept(local);
    give_up(kept)
        .context(Kind::Internal, || "the agent cannot give up capabilities that it does not need".into())
        .or_next(|| {
            "start it as root with all capabilities, or with CapabilityBoundingSet= as in contrib/systemd".into()
        })?;
    let unknown = || "cannot read the agent's capabilities".to_owned();
    let left = capabilities(None).context(Kind::Internal, unknown)?;
    let bounding = bounding().context(Kind::Internal, unknown)?;
    let gains = !no_new_privs().context(Kind::Internal, unknown)?;
    let over = (left.effective | left.permitted | left.inheritable | bounding) - kept;
    // A user other than root has no capability to give up, cannot shrink the bounding set, and gains none.
    if gains || !left.inheritable.is_empty() || (!over.is_empty() && rustix::process::geteuid().is_root()) {
        return Err(Error::new(
            Kind::Internal,
            format!("the kernel leaves the agent capabilities that it must not have: {}", names(over)),
        ));
    }
    Ok(names(left.effective))
}

fn kept(local: bool) -> CapabilitySet {
    if local { KEPT | INSTALLS } else { KEPT }
}

fn give_up(kept: CapabilitySet) -> rustix::io::Result<()> {
    let now = capabilities(None)?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in each(bounding()? - kept) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    clear_ambient_capability_set()?;
    let permitted = now.permitted & kept;
    set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() })?;
    set_no_new_privs(true)
}

/// The bounding set, including capabilities that are newer than this program.
fn bounding() -> rustix::io::Result<CapabilitySet> {
    let mut found = CapabilitySet::empty();
    for capability in each(CapabilitySet::from_bits_retain(u64::MAX)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) => found |= capability,
            Ok(false) => {}
            // The kernel has no capability above this one.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// One by one, including those without a name here.
fn each(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)).filter(move |one| set.contains(*one))
}

/// As capabilities(7) names them.
fn names(set: CapabilitySet) -> String {
    let name = |one: CapabilitySet| match one.iter_names().next() {
        Some((name, _)) => format!("CAP_{name}"),
        None => format!("capability {}", one.bits().trailing_zeros()),
    };
    let all: Vec<String> = each(set).map(name).collect();
    if all.is_empty() { "none".into() } else { all.join(" ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_units_leave_the_agent_what_it_keeps() {
        let host = include_str!("../../../contrib/systemd/drydock-host.service");
        let garage = include_str!("../../../contrib/systemd/drydock-garage.service");
        for (unit, local) in [(host, false), (garage, true)] {
            let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
            let sorted = |text: &str| {
                let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
                words.sort();
                words
            };
            assert_eq!(sorted(line), sorted(&names(kept(local))));
        }
    }

    #[test]
    fn names_are_the_systems() {
        assert_eq!(names(CapabilitySet::CHOWN | CapabilitySet::from_bits_retain(1 << 60)), "CAP_CHOWN capability 60");
        assert_eq!(names(CapabilitySet::empty()), "none");
        let bounding = bounding().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
        assert_eq!(bounding.bits(), u64::from_str_radix(line.trim(), 16).unwrap());
    }
}
