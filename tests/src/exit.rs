//! What `drydock` exits with: the code of each kind of error, under the name that tests call it by.

use outcome::Kind;

pub const INTERNAL: i32 = Kind::Internal.exit_code() as i32;
pub const REFUSED: i32 = Kind::Refused.exit_code() as i32;
pub const BAD_INPUT: i32 = Kind::BadInput.exit_code() as i32;
pub const NOT_FOUND: i32 = Kind::NotFound.exit_code() as i32;
pub const WRONG_STATE: i32 = Kind::WrongState.exit_code() as i32;
pub const KEY_RELEASE: i32 = Kind::KeyRelease.exit_code() as i32;
pub const MISSING_TOOL: i32 = Kind::MissingTool.exit_code() as i32;
pub const NO_SPACE: i32 = Kind::NoSpace.exit_code() as i32;
pub const BUSY: i32 = Kind::Busy.exit_code() as i32;
pub const UNREACHABLE: i32 = Kind::Unreachable.exit_code() as i32;
pub const INTERRUPTED: i32 = Kind::Interrupted.exit_code() as i32;

/// clap's own, for a command line that it cannot parse.
pub const USAGE: i32 = 2;
/// Rust's, for a program that panicked.
pub const PANIC: i32 = 101;

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes are stable: tests take them from the program's source, so this one holds that to its documentation.
    #[test]
    fn the_codes_are_the_documented_ones() {
        let documented: Vec<(i32, &str)> = include_str!("../../docs/exit-codes.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| "))
            .filter_map(|row| {
                let mut cells = row.split('|').map(str::trim);
                Some((cells.next()?.parse().ok()?, cells.next()?.trim_matches('`')))
            })
            .collect();
        let expected = [
            (0, ""),
            (INTERNAL, "internal"),
            (USAGE, ""),
            (REFUSED, "refused"),
            (BAD_INPUT, "bad-input"),
            (NOT_FOUND, "not-found"),
            (WRONG_STATE, "wrong-state"),
            (KEY_RELEASE, "key-release"),
            (MISSING_TOOL, "missing-tool"),
            (NO_SPACE, "no-space"),
            (BUSY, "busy"),
            (UNREACHABLE, "unreachable"),
            (INTERRUPTED, "interrupted"),
        ];
        assert_eq!(documented, expected);
    }
}
