//! Which names an object can have: a name becomes a path, a QEMU name and a journal's field.

use crate::error::{Error, Kind, Result};

/// Requires a VM's name to be 1 to 63 lower-case letters, digits and dashes, and not to start with a dash: it becomes a
/// path and a QEMU name.
///
/// # Errors
/// `BadInput` naming the rule.
pub fn check_name(name: &str) -> Result<()> {
    check_name_of("VM", name)
}

/// The same rule for the name of a `what`, such as `guardian`: it becomes a path too.
///
/// # Errors
/// `BadInput` naming the rule.
pub fn check_name_of(what: &str, name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if good {
        return Ok(());
    }
    Err(Error::new(Kind::BadInput, format!("'{}' is not a valid {what} name", name.escape_debug()))
        .remedy("use 1 to 63 of a-z, 0-9 and '-', not starting with '-'"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_would_leave_the_store_are_refused() {
        for bad in ["", "..", "a/b", "../x", "A", "-x", "a,b", "x\n", &"a".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().kind, Kind::BadInput, "{bad:?}");
        }
        assert_eq!(check_name_of("guardian", "Me").unwrap_err().message, "'Me' is not a valid guardian name");
        for good in ["a", "dvm", "vm-01", &"a".repeat(63)] {
            check_name(good).unwrap();
        }
    }
}
