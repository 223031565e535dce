//! Limits how many refusals of untrusted peers are written down. Anyone on the network can be refused any number of
//! times; the audit log must not fill the disk because of that.

use std::time::{Duration, Instant};

const PER_WINDOW: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);

/// Counts in windows of a minute.
#[derive(Default)]
pub(crate) struct Throttle {
    window: Option<Instant>,
    written: u32,
    dropped: u64,
}

/// What to do with one refusal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Write {
        /// How many before it were not written.
        dropped: u64,
    },
    Drop,
}

impl Throttle {
    pub(crate) fn decide(&mut self, now: Instant) -> Decision {
        if self.window.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW) {
            self.window = Some(now);
            self.written = 0;
        }
        if self.written >= PER_WINDOW {
            self.dropped = self.dropped.saturating_add(1);
            return Decision::Drop;
        }
        self.written += 1;
        Decision::Write { dropped: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        for _ in 0..PER_WINDOW {
            assert_eq!(throttle.decide(start), Decision::Write { dropped: 0 });
        }
        assert_eq!(throttle.decide(start), Decision::Drop);
        assert_eq!(throttle.decide(start), Decision::Drop);
        assert_eq!(throttle.decide(start + WINDOW), Decision::Write { dropped: 2 });
        assert_eq!(throttle.decide(start + WINDOW), Decision::Write { dropped: 0 });
    }
}
