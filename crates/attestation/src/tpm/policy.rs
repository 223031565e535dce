//! What a machine's measured boot must look like (MS-HGSA 2.2.2.13 names the checks).

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};

use super::event_log::EventLog;
use super::pcr::{Pcr, QUOTED};

/// Where firmware measures the state and the keys of Secure Boot.
const SECURE_BOOT_PCR: usize = 7;
/// EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c, as laid out in memory.
const GLOBAL_VARIABLE: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
const DEBUG_MODE: &[u8] = b"UEFI Debug Mode";

/// One of the checks, each with the identifier that MS-HGSA gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Firmware started with Secure Boot on.
    SecureBoot,
    /// No firmware debugger was attached.
    NoDebugMode,
    /// The Secure Boot keys (PCR 7) are those of a baseline.
    SecureBootSettings,
    /// Firmware and boot loader (all other PCRs) are those of a baseline.
    KnownGood,
}

impl Check {
    /// Every check.
    pub const ALL: [Check; 4] = [Check::SecureBoot, Check::NoDebugMode, Check::SecureBootSettings, Check::KnownGood];

    /// Name in the store and on the command line; stable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Check::SecureBoot => "secure-boot",
            Check::NoDebugMode => "no-debug-mode",
            Check::SecureBootSettings => "secure-boot-settings",
            Check::KnownGood => "known-good",
        }
    }

    /// The check with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Check::ALL.into_iter().find(|check| check.name() == name)
    }

    /// Whether it compares with baselines.
    fn is_comparison(self) -> bool {
        matches!(self, Check::SecureBootSettings | Check::KnownGood)
    }

    /// Whether it compares this PCR.
    fn compares(self, pcr: u32) -> bool {
        match self {
            Check::SecureBootSettings => pcr == SECURE_BOOT_PCR as u32,
            Check::KnownGood => pcr != SECURE_BOOT_PCR as u32,
            Check::SecureBoot | Check::NoDebugMode => false,
        }
    }

    /// The GUID of MS-HGSA 2.2.2.13, in the byte order of a Windows GUID structure.
    #[must_use]
    pub fn guid(self) -> [u8; 16] {
        let (a, b, c, rest): (u32, u16, u16, [u8; 8]) = match self {
            Check::SecureBoot => (0x6a46_0ee1, 0x62ea, 0x416f, [0xae, 0x6c, 0x04, 0xe2, 0x96, 0x34, 0x50, 0x6d]),
            Check::NoDebugMode => (0x2018_8fda, 0xd40b, 0x460d, [0xb0, 0x78, 0x2e, 0x78, 0x98, 0xa4, 0x2a, 0xe9]),
            Check::SecureBootSettings => {
                (0x756d_c455, 0x9528, 0x479a, [0xa8, 0x6a, 0xc6, 0x46, 0x41, 0x73, 0x16, 0xc9])
            }
            Check::KnownGood => (0x81f1_10ba, 0x53c5, 0x4064, [0x9d, 0x64, 0x51, 0x02, 0x9f, 0xa2, 0x4f, 0x49]),
        };
        let mut guid = [0; 16];
        guid[..4].copy_from_slice(&a.to_le_bytes());
        guid[4..6].copy_from_slice(&b.to_le_bytes());
        guid[6..8].copy_from_slice(&c.to_le_bytes());
        guid[8..].copy_from_slice(&rest);
        guid
    }

    /// What it means that it failed, as one clause.
    #[must_use]
    pub fn failure(self) -> &'static str {
        match self {
            Check::SecureBoot => "Secure Boot was off when the host started",
            Check::NoDebugMode => "the firmware was started in debug mode",
            Check::SecureBootSettings => "the Secure Boot keys (PCR 7) are in no baseline",
            Check::KnownGood => "firmware or boot loader are in no baseline",
        }
    }
}

/// Known good values of some PCRs, taken from a trusted machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// The admin's name for it.
    pub name: String,
    /// By number; all among [`QUOTED`].
    pub pcrs: BTreeMap<u32, Pcr>,
}

impl Baseline {
    /// The values that a log leads to; `None` when no PCR is named, or one that is not quoted.
    #[must_use]
    pub fn of_log(name: &str, log: &EventLog, pcrs: &[u32]) -> Option<Self> {
        if pcrs.is_empty() || !pcrs.iter().all(|pcr| QUOTED.contains(pcr)) {
            return None;
        }
        let replayed = log.replay();
        let pcrs = pcrs.iter().map(|pcr| (*pcr, replayed[*pcr as usize])).collect();
        Some(Baseline { name: name.to_owned(), pcrs })
    }

    /// Why a comparing check fails with this baseline; `None` when it passes. A baseline that says nothing about
    /// the check's PCRs passes nobody.
    fn failure(&self, check: Check, pcrs: &[Pcr; 24]) -> Option<Mismatch> {
        let mut its = self.pcrs.iter().filter(|(pcr, _)| check.compares(**pcr)).peekable();
        if its.peek().is_none() {
            return Some(Mismatch { check, pcrs: Vec::new() });
        }
        let differs = |(pcr, value): &(&u32, &Pcr)| pcrs.get(**pcr as usize) != Some(*value);
        let differing: Vec<u32> = its.filter(differs).map(|(pcr, _)| *pcr).collect();
        (!differing.is_empty()).then_some(Mismatch { check, pcrs: differing })
    }
}

/// A comparing check that fails with one baseline; without PCRs when the baseline has none of those of the check.
struct Mismatch {
    check: Check,
    pcrs: Vec<u32>,
}

impl Mismatch {
    fn describe(&self, baseline: &str) -> String {
        if self.pcrs.is_empty() {
            return format!("the nearest baseline, '{baseline}', has none of these PCRs");
        }
        let which: Vec<String> = self.pcrs.iter().map(u32::to_string).collect();
        format!("PCR {} differs from the nearest baseline, '{baseline}'", which.join(", "))
    }
}

/// The checks that are made, and the baselines that two of them compare with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The checks.
    pub checks: Vec<Check>,
    /// What the comparing ones compare with.
    pub baselines: Vec<Baseline>,
}

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluation {
    /// Which one.
    pub check: Check,
    /// For the admin: which PCRs differ from which baseline. Empty for checks that compare nothing.
    pub detail: String,
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.check.failure())?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl Policy {
    /// The checks that fail. The log must have been found to lead to the quoted PCRs.
    #[must_use]
    pub fn evaluate(&self, log: &EventLog) -> Vec<Evaluation> {
        let pcrs = log.replay();
        let comparing: Vec<Check> = self.checks.iter().copied().filter(|check| check.is_comparison()).collect();
        // One baseline must match in everything that is compared. If none does, the nearest one helps the admin most.
        let nearest = self
            .baselines
            .iter()
            .map(|baseline| {
                let failures: Vec<Mismatch> =
                    comparing.iter().filter_map(|check| baseline.failure(*check, &pcrs)).collect();
                (baseline.name.as_str(), failures)
            })
            .min_by_key(|(_, failures)| {
                (failures.len(), failures.iter().map(|failure| failure.pcrs.len()).sum::<usize>())
            });
        let compare = |check: Check| match &nearest {
            None => Some("there is no baseline".to_owned()),
            Some((name, failures)) => {
                failures.iter().find(|failure| failure.check == check).map(|failure| failure.describe(name))
            }
        };
        self.checks
            .iter()
            .filter_map(|check| {
                let detail = match check {
                    Check::SecureBoot => (!secure_boot_was_on(log)).then(String::new),
                    Check::NoDebugMode => debug_mode(log).then(String::new),
                    Check::SecureBootSettings | Check::KnownGood => compare(*check),
                };
                detail.map(|detail| Evaluation { check: *check, detail })
            })
            .collect()
    }
}

/// The first thing that firmware measures into PCR 7 is the variable SecureBoot. Only its position, being first, tells
/// it from what an operating system adds later. So nothing else is accepted: not an event's type, which the quote does
/// not cover, and not a place after some other event.
fn secure_boot_was_on(log: &EventLog) -> bool {
    let first = log.events().iter().find(|event| event.pcr == SECURE_BOOT_PCR);
    first.is_some_and(|event| event.digest == secure_boot_digest(1))
}

/// SHA-256 of UEFI_VARIABLE_DATA for SecureBoot with this value.
fn secure_boot_digest(value: u8) -> Pcr {
    let name = "SecureBoot";
    let mut data = GLOBAL_VARIABLE.to_vec();
    data.extend_from_slice(&(name.len() as u64).to_le_bytes());
    data.extend_from_slice(&1_u64.to_le_bytes());
    data.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    data.push(value);
    sha256(&data)
}

fn debug_mode(log: &EventLog) -> bool {
    let marks = [sha256(DEBUG_MODE), sha256(&[DEBUG_MODE, &[0]].concat())];
    log.events().iter().any(|event| event.pcr == SECURE_BOOT_PCR && marks.contains(&event.digest))
}

fn sha256(data: &[u8]) -> Pcr {
    let mut value = [0; 32];
    value.copy_from_slice(digest(&SHA256, data).as_ref());
    value
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The value that PCR 7's first event has on every machine with Secure Boot on, as found in published logs.
    #[test]
    fn the_digest_of_secure_boot_is_the_published_one() {
        let published = "ccfc4bb32888a345bc8aeadaba552b627d99348c767681ab3141f5b01e40a40e";
        assert_eq!(HEXLOWER.encode(&secure_boot_digest(1)), published);
        assert_ne!(HEXLOWER.encode(&secure_boot_digest(0)), published);
    }

    #[test]
    fn checks_have_names_and_the_published_identifiers() {
        for check in Check::ALL {
            assert_eq!(Check::from_name(check.name()), Some(check));
        }
        assert_eq!(Check::from_name("other"), None);
        assert_eq!(HEXLOWER.encode(&Check::SecureBoot.guid()), "e10e466aea626f41ae6c04e29634506d");
    }
}
