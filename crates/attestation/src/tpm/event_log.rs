//! The firmware's event log in the crypto-agile format (TCG PC Client Platform Firmware Profile, section 10), and
//! the PCRs it leads to.
//!
//! The only protection of a log is that it must lead to the PCRs that a TPM quotes. That covers an event's PCR and
//! digest, not its type or its data. Judgments are therefore made on digests.

use aws_lc_rs::digest::{Context, SHA256};

use super::keys::ALG_SHA256;
use super::pcr::Pcr;
use super::reader::Reader;

/// Largest log accepted, in bytes. Real ones are 20 to 60 KiB.
pub const MAX_LOG: usize = 512 << 10;
const MAX_EVENTS: usize = 8192;
const MAX_ALGORITHMS: usize = 8;
const MAX_DIGEST: usize = 64;
const PCRS: usize = 24;

const EV_NO_ACTION: u32 = 3;
const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Why a log is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Longer than [`MAX_LOG`].
    #[error("the event log is larger than {MAX_LOG} bytes")]
    TooLarge,
    /// It begins in another way.
    #[error("the event log does not begin with the header of the crypto-agile format")]
    Header,
    /// Its header announces no SHA-256 bank.
    #[error("the event log has no SHA-256 digests")]
    NoSha256,
    /// The event with this number, counted from 1, is malformed.
    #[error("event {0} of the event log ends too early or has other digests than its header announces")]
    Event(usize),
    /// The event with this number extends this PCR.
    #[error("event {0} of the event log extends PCR {1}, which does not exist")]
    NoSuchPcr(usize, u32),
    /// The event with this number cannot set the locality.
    #[error("event {0} of the event log sets a startup locality that is unknown or comes too late")]
    StartupLocality(usize),
    /// More events than any firmware logs.
    #[error("the event log has more than {MAX_EVENTS} events")]
    TooMany,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Below 24.
    pub pcr: usize,
    /// As the log has it; not protected against changes.
    pub kind: u32,
    /// In the SHA-256 bank.
    pub digest: Pcr,
}

/// The measurements, in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    events: Vec<Event>,
    startup_locality: u8,
}

impl EventLog {
    /// Reads what Linux has in `/sys/kernel/security/tpm0/binary_bios_measurements`.
    ///
    /// # Errors
    /// The rule that is broken; bytes after the last event break one too.
    pub fn parse(bytes: &[u8]) -> Result<Self, LogError> {
        if bytes.len() > MAX_LOG {
            return Err(LogError::TooLarge);
        }
        let mut reader = Reader::new(bytes);
        let algorithms = header(&mut reader).ok_or(LogError::Header)?;
        if !algorithms.contains(&(ALG_SHA256, 32)) {
            return Err(LogError::NoSha256);
        }
        let mut log = EventLog { events: Vec::new(), startup_locality: 0 };
        let mut number = 0;
        while !reader.is_empty() {
            number += 1;
            if number > MAX_EVENTS {
                return Err(LogError::TooMany);
            }
            let event = event(&mut reader, &algorithms).ok_or(LogError::Event(number))?;
            log.add(number, &event)?;
        }
        Ok(log)
    }

    /// The events that extend a PCR, in the order in which they were measured.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The PCRs after all events, if nothing else extended them.
    #[must_use]
    pub fn replay(&self) -> [Pcr; PCRS] {
        let mut pcrs = [[0; 32]; PCRS];
        // The PCRs of a dynamic launch start with ones.
        for pcr in &mut pcrs[17..=22] {
            *pcr = [0xff; 32];
        }
        pcrs[0][31] = self.startup_locality;
        for event in &self.events {
            let mut context = Context::new(&SHA256);
            context.update(&pcrs[event.pcr]);
            context.update(&event.digest);
            pcrs[event.pcr].copy_from_slice(context.finish().as_ref());
        }
        pcrs
    }

    fn add(&mut self, number: usize, raw: &Raw<'_>) -> Result<(), LogError> {
        if raw.kind == EV_NO_ACTION {
            if let Some(locality) = raw.data.strip_prefix(STARTUP_LOCALITY) {
                // It is the initial value of PCR 0, so it comes before anything is measured into it.
                let first = !self.events.iter().any(|event| event.pcr == 0) && self.startup_locality == 0;
                self.startup_locality = match locality {
                    [locality @ (0 | 3 | 4)] if first => *locality,
                    _ => return Err(LogError::StartupLocality(number)),
                };
            }
            return Ok(());
        }
        let pcr = usize::try_from(raw.pcr).ok().filter(|pcr| *pcr < PCRS);
        let pcr = pcr.ok_or(LogError::NoSuchPcr(number, raw.pcr))?;
        self.events.push(Event { pcr, kind: raw.kind, digest: raw.digest });
        Ok(())
    }
}

struct Raw<'a> {
    pcr: u32,
    kind: u32,
    digest: Pcr,
    data: &'a [u8],
}

/// TCG_PCClientPCREvent with TCG_EfiSpecIDEventStruct: the algorithms and the sizes of their digests.
fn header(reader: &mut Reader<'_>) -> Option<Vec<(u16, usize)>> {
    let (pcr, kind) = (reader.le32()?, reader.le32()?);
    let digest = reader.bytes(20)?;
    let length = usize::try_from(reader.le32()?).ok()?;
    let mut body = Reader::new(reader.bytes(length)?);
    if (pcr, kind) != (0, EV_NO_ACTION) || digest != [0; 20] || body.bytes(16)? != SPEC_ID {
        return None;
    }
    // platformClass, then minor version, major version, errata, size of an integer.
    body.bytes(8)?;
    let count = usize::try_from(body.le32()?).ok().filter(|count| (1..=MAX_ALGORITHMS).contains(count))?;
    let mut algorithms: Vec<(u16, usize)> = Vec::with_capacity(count);
    for _ in 0..count {
        let (algorithm, size) = (body.le16()?, usize::from(body.le16()?));
        if !(1..=MAX_DIGEST).contains(&size) || algorithms.iter().any(|(known, _)| *known == algorithm) {
            return None;
        }
        algorithms.push((algorithm, size));
    }
    let vendor = body.u8()?;
    body.bytes(usize::from(vendor))?;
    body.end()?;
    Some(algorithms)
}

/// TCG_PCR_EVENT2, with one digest for each algorithm of the header.
fn event<'a>(reader: &mut Reader<'a>, algorithms: &[(u16, usize)]) -> Option<Raw<'a>> {
    let (pcr, kind) = (reader.le32()?, reader.le32()?);
    if usize::try_from(reader.le32()?).ok()? != algorithms.len() {
        return None;
    }
    let mut seen = Vec::with_capacity(algorithms.len());
    let mut sha256 = None;
    for _ in algorithms {
        let algorithm = reader.le16()?;
        let (_, size) = algorithms.iter().find(|(known, _)| *known == algorithm)?;
        let digest = reader.bytes(*size)?;
        if seen.contains(&algorithm) {
            return None;
        }
        seen.push(algorithm);
        if algorithm == ALG_SHA256 {
            sha256 = Some(digest.try_into().ok()?);
        }
    }
    let length = usize::try_from(reader.le32()?).ok()?;
    Some(Raw { pcr, kind, digest: sha256?, data: reader.bytes(length)? })
}
