//! How an instant is written, for people and scripts alike.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339, for example `2026-11-25T13:05:45Z`. An instant that RFC 3339 cannot express, because its year has more than
/// four digits, is written as seconds since the epoch.
#[must_use]
pub fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.unix_timestamp().to_string())
}
