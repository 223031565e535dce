//! A full or broken disk on demand, for tests of what a failed write leaves behind. Release builds contain none of it.
//!
//! The environment variable [`VARIABLE`] names a file. While that holds a number and an error's name, such as
//! `3 ENOSPC`, each write counts it down; the write that reaches zero removes the file and fails. With `KILL` the process
//! dies instead.
//!
//! Every crate that writes durable files calls [`write()`] before each of its writes. This crate depends on none of them.

#![warn(missing_docs)]

use std::io;

/// The environment variable that names the file.
pub const VARIABLE: &str = "DRYDOCK_FAULTS";

/// Called before each write that something durable depends on.
///
/// # Errors
/// The ordered error, when it is this write's turn.
#[cfg(debug_assertions)]
pub fn write() -> io::Result<()> {
    match std::env::var_os(VARIABLE) {
        Some(path) => count_down(path.as_ref()),
        None => Ok(()),
    }
}

/// Called before each write that something durable depends on.
///
/// # Errors
/// None in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn write() -> io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
fn count_down(path: &std::path::Path) -> io::Result<()> {
    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;
    let Ok(order) = std::fs::read_to_string(path) else { return Ok(()) };
    let Some((count, name)) = order.trim().split_once(' ') else { return Ok(()) };
    match count.parse::<u32>() {
        Ok(1) => {
            std::fs::remove_file(path)?;
            if name == "KILL" {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
            }
            Err(io::Error::from_raw_os_error(if name == "ENOSPC" { ENOSPC } else { EIO }))
        }
        Ok(count) => std::fs::write(path, format!("{} {name}", count.saturating_sub(1))),
        Err(_) => Ok(()),
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn the_write_whose_turn_it_is_fails_once() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let order = dir.path().join("order");
        std::fs::write(&order, "3 ENOSPC\n")?;
        count_down(&order)?;
        count_down(&order)?;
        assert_eq!(count_down(&order).map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
        assert!(!order.exists());
        count_down(&order)
    }
}
