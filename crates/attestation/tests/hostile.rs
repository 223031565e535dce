//! Bytes that nobody honest sends: nothing panics, and what is accepted is what was meant. The number of cases is
//! bounded; `PROPTEST_CASES` raises it.

#![allow(clippy::unwrap_used)]

use attestation::messages::{AttestationRequest, Tuple};
use attestation::tpm::{
    AkPublic, Baseline, Blob, Check, Context, EkPublic, EventLog, LogError, MAX_LOG, Policy, Quote, QuoteError,
    TpmClaim,
};
use attestation::{
    Claim, HealthCa, HostIdentity, HostKey, HostKeyClaim, HostKind, HostPublicKey, IdentityKey, IdentityPublic,
};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

/// A log of events in PCR, type, data; SHA-256 alone.
fn log(events: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = [0_u32, 3].map(u32::to_le_bytes).concat();
    bytes.extend_from_slice(&[0; 20]);
    let spec = [b"Spec ID Event03\0".as_slice(), &[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 11, 0, 32, 0, 0]].concat();
    bytes.extend_from_slice(&u32::try_from(spec.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(&spec);
    for (pcr, kind, data) in events {
        bytes.extend_from_slice(&[*pcr, *kind, 1].map(u32::to_le_bytes).concat());
        bytes.extend_from_slice(&[11, 0]);
        bytes.extend_from_slice(digest(&SHA256, data).as_ref());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(data);
    }
    bytes
}

/// An attestation key made in software: its TPM2B_PUBLIC, and the pair.
fn attestation_key() -> (Vec<u8>, EcdsaKeyPair) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = pair.public_key().as_ref();
    let mut public = vec![0x00, 0x23, 0x00, 0x0b, 0x00, 0x05, 0x00, 0x72, 0x00, 0x00, 0x00, 0x10, 0x00, 0x18];
    public.extend_from_slice(&[0x00, 0x0b, 0x00, 0x03, 0x00, 0x10]);
    for number in [&point[1..33], &point[33..]] {
        public.extend_from_slice(&[0, 32]);
        public.extend_from_slice(number);
    }
    let sized = [u16::try_from(public.len()).unwrap().to_be_bytes().as_slice(), &public].concat();
    (sized, pair)
}

/// A TPMS_ATTEST of a quote over the right PCRs.
fn attest(extra: &[u8], pcr_digest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0x00, 0x02, 0x00, 0x0b];
    for part in [extra, pcr_digest] {
        bytes.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(part);
        if std::ptr::eq(part, extra) {
            bytes.extend_from_slice(&[0; 25]);
            bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0x43, 0]);
        }
    }
    bytes
}

fn sign(pair: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    let signature = pair.sign(&SystemRandom::new(), message).unwrap();
    let (r, s) = signature.as_ref().split_at(32);
    [&[0, 0x18, 0, 0x0b, 0, 32], r, &[0, 32], s].concat()
}

/// So many cases unless `PROPTEST_CASES` says otherwise.
fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = EventLog::parse(&bytes);
        let _ = AkPublic::parse(&bytes);
        let _ = EkPublic::from_file(&bytes);
        let _ = HostPublicKey::from_file(&bytes);
        let _ = IdentityPublic::from_der(&bytes);
        for kind in [HostKind::HostKey, HostKind::Tpm] {
            let _ = HostIdentity::from_der(kind, &bytes);
        }
        if let Some(context) = Context::parse(&bytes) {
            prop_assert_eq!(Context::parse(&context.write().unwrap()), Some(context));
        }
        if let Ok(request) = serde_json::from_slice::<AttestationRequest>(&bytes) {
            let _ = HostKeyClaim::from_request(&request);
        }
    }

    /// Behind a right header there is more to get wrong.
    #[test]
    fn any_bytes_may_follow_a_logs_header(tail in proptest::collection::vec(any::<u8>(), 1..400)) {
        let bytes = [log(&[]), tail].concat();
        if let Ok(log) = EventLog::parse(&bytes) {
            let _ = log.replay();
            let _ = Policy { checks: Check::ALL.to_vec(), baselines: Vec::new() }.evaluate(&log);
        }
    }

    #[test]
    fn a_log_reads_as_it_was_written_and_no_part_of_it_does(
        events in proptest::collection::vec((0..24_u32, 4..20_u32, proptest::collection::vec(any::<u8>(), 0..40)), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = log(&events);
        let parsed = EventLog::parse(&bytes).unwrap();
        prop_assert_eq!(parsed.events().len(), events.len());
        for (found, (pcr, kind, data)) in parsed.events().iter().zip(&events) {
            prop_assert_eq!((found.pcr, found.kind), (usize::try_from(*pcr).unwrap(), *kind));
            let expected = digest(&SHA256, data);
            prop_assert_eq!(found.digest.as_slice(), expected.as_ref());
        }
        // Cut anywhere, it is fewer whole events or no log; never the same PCRs.
        let cut = cut.index(bytes.len());
        if let Ok(shorter) = EventLog::parse(&bytes[..cut]) {
            prop_assert!(shorter.events().len() < events.len());
            prop_assert_ne!(shorter.replay(), parsed.replay());
        }
    }

    #[test]
    fn a_changed_byte_of_a_digest_changes_the_pcrs(byte in 0..32_usize, bit in 0..8_u8) {
        let good = log(&[(7, 4, vec![0; 4])]);
        let digest_at = good.len() - 4 - 4 - 32;
        let mut bad = good.clone();
        bad[digest_at + byte] ^= 1 << bit;
        prop_assert_ne!(EventLog::parse(&bad).unwrap().replay(), EventLog::parse(&good).unwrap().replay());
    }

    /// The signature is over all of a quote; nothing that is read differs unnoticed.
    #[test]
    fn no_changed_quote_and_no_changed_signature_verifies(
        at in any::<prop::sample::Index>(), bit in 0..8_u8, in_signature: bool,
    ) {
        let (public, pair) = attestation_key();
        let ak = AkPublic::parse(&public).unwrap();
        let mut quote = attest(&[9; 32], &[7; 32]);
        let mut signature = sign(&pair, &quote);
        Quote::verify(&quote, &signature, &ak, &[9; 32]).unwrap();
        let target = if in_signature { &mut signature } else { &mut quote };
        let at = at.index(target.len());
        target[at] ^= 1 << bit;
        prop_assert!(Quote::verify(&quote, &signature, &ak, &[9; 32]).is_err());
    }

    /// What the key really signed, but a TPM never says.
    #[test]
    fn signed_nonsense_is_no_quote(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..120_usize) {
        let (public, pair) = attestation_key();
        let ak = AkPublic::parse(&public).unwrap();
        let good = attest(&[9; 32], &[7; 32]);
        let cut = cut.min(good.len() - 1);
        for quote in [bytes.clone(), good[..cut].to_vec(), [good.as_slice(), &[0]].concat()] {
            let verified = Quote::verify(&quote, &sign(&pair, &quote), &ak, &[9; 32]);
            prop_assert!(verified.is_err(), "{quote:?}");
        }
    }

    #[test]
    fn contexts_come_back_as_they_were_written(
        state in proptest::collection::vec(any::<u8>(), 0..200),
        nonce in proptest::collection::vec(any::<u8>(), 0..64),
        log in proptest::collection::vec(any::<u8>(), 0..300),
        cut in any::<prop::sample::Index>(),
    ) {
        let context = Context::new(state, vec![(Blob::Nonce, nonce), (Blob::EventLog, log)]);
        let bytes = context.write().unwrap();
        prop_assert_eq!(Context::parse(&bytes), Some(context));
        prop_assert_eq!(Context::parse(&bytes[..cut.index(bytes.len())]), None);
        prop_assert_eq!(Context::parse(&[bytes.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn requests_of_any_items_are_read_or_refused(
        requested in proptest::collection::vec(any::<u32>(), 0..4),
        items in proptest::collection::vec((0..12_u32, ".{0,40}"), 0..20),
    ) {
        let provided = items.iter().map(|(kind, content)| Tuple { kind: *kind, content: content.clone() }).collect();
        let request = AttestationRequest { session_id: String::new(), requested, provided };
        prop_assert!(HostKeyClaim::from_request(&request).is_err());
        prop_assert!(TpmClaim::from_request(&request).is_err());
    }
}

proptest! {
    #![proptest_config(config(128))]

    #[test]
    fn no_damaged_health_certificate_verifies(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut: bool) {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (ca, good) = certificate(now);
        ca.verify(&good, now).unwrap();
        let mut bad = good.clone();
        let at = at.index(bad.len());
        if cut { bad.truncate(at) } else { bad[at] ^= 1 << bit }
        prop_assert!(ca.verify(&bad, now).is_err());
    }
}

/// Every bit, since a spelling that means the same is found by no luck.
#[test]
fn no_flipped_bit_leaves_a_health_certificate_valid() {
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    let (ca, good) = certificate(now);
    let mut accepted = Vec::new();
    for at in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[at / 8] ^= 1 << (at % 8);
        if ca.verify(&bad, now).is_ok() {
            accepted.push(format!("bit {} of byte {} ({:#x})", at % 8, at / 8, good[at / 8]));
        }
    }
    assert!(accepted.is_empty(), "{} bytes: {accepted:?}", good.len());
}

/// One certificate for all cases: RSA takes long.
fn certificate(now: OffsetDateTime) -> (&'static HealthCa, Vec<u8>) {
    static MADE: std::sync::OnceLock<(HealthCa, Vec<u8>)> = std::sync::OnceLock::new();
    let (ca, der) = MADE.get_or_init(|| {
        let ca = HealthCa::generate("fabric", now, Duration::days(1)).unwrap();
        let host = HostKey::generate().unwrap().public().unwrap().into();
        let identity = IdentityKey::generate().unwrap();
        let der = ca.issue("host", &host, identity.public(), now, Duration::hours(8)).unwrap();
        (ca, der)
    });
    (ca, der.clone())
}

#[test]
fn logs_are_bounded_and_their_errors_say_where() {
    assert_eq!(EventLog::parse(&vec![0; MAX_LOG + 1]), Err(LogError::TooLarge));
    assert_eq!(EventLog::parse(&[]), Err(LogError::Header));
    let many = vec![(0, 13, Vec::new()); 8193];
    assert_eq!(EventLog::parse(&log(&many)), Err(LogError::TooMany));
    assert_eq!(EventLog::parse(&log(&[(0, 13, vec![]), (24, 13, vec![])])), Err(LogError::NoSuchPcr(2, 24)));
    // An event's length beyond the end of the log, up to the largest number.
    for length in [1_u32, 0x7fff_ffff, u32::MAX] {
        let mut bytes = log(&[(0, 13, vec![])]);
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&length.to_le_bytes());
        assert_eq!(EventLog::parse(&bytes), Err(LogError::Event(1)));
    }
    // The header's number of algorithms.
    for count in [0_u32, 9, u32::MAX] {
        let mut bytes = log(&[]);
        let at = 8 + 20 + 4 + 24;
        bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
        assert_eq!(EventLog::parse(&bytes), Err(LogError::Header));
    }
}

#[test]
fn a_startup_locality_is_where_pcr_0_starts() {
    let locality = |value: &[u8]| (0, 3, [b"StartupLocality\0".as_slice(), value].concat());
    let measured = (0, 8, b"crtm".to_vec());
    let plain = EventLog::parse(&log(std::slice::from_ref(&measured))).unwrap().replay();
    let third = EventLog::parse(&log(&[locality(&[3]), measured.clone()])).unwrap().replay();
    assert_ne!(plain[0], third[0]);
    assert_eq!(plain[1..], third[1..]);
    let mut start = [0; 32];
    start[31] = 3;
    let expected = digest(&SHA256, &[start.as_slice(), digest(&SHA256, b"crtm").as_ref()].concat());
    assert_eq!(third[0], expected.as_ref());
    for late in [
        vec![measured.clone(), locality(&[3])],
        vec![locality(&[3]), locality(&[4])],
        vec![locality(&[5])],
        vec![locality(&[])],
        vec![locality(&[3, 0])],
    ] {
        assert!(matches!(EventLog::parse(&log(&late)), Err(LogError::StartupLocality(_))));
    }
}

#[test]
fn a_quote_is_over_the_pcrs_that_were_asked_for() {
    let (public, pair) = attestation_key();
    let ak = AkPublic::parse(&public).unwrap();
    let good = attest(&[9; 32], &[7; 32]);
    // The bitmap, behind the number of selections, the bank and the bitmap's length.
    let bitmap = good.windows(3).position(|bytes| bytes == [0xff, 0x43, 0]).unwrap();
    for (at, value) in [(bitmap, 0xfe), (bitmap + 1, 0x47), (bitmap + 2, 1), (bitmap - 2, 0x04), (bitmap - 4, 2)] {
        let mut bad = good.clone();
        bad[at] = value;
        let verified = Quote::verify(&bad, &sign(&pair, &bad), &ak, &[9; 32]);
        assert_eq!(verified, Err(QuoteError::Selection), "byte {at}");
    }
    assert_eq!(Quote::verify(&good, &sign(&pair, &good), &ak, &[8; 32]), Err(QuoteError::Nonce));
    let quote = Quote::verify(&good, &sign(&pair, &good), &ak, &[9; 32]).unwrap();
    assert!(!quote.is_over(&[[0; 32]; 24]));
    let zeros = digest(&SHA256, &[0; 32 * 11]);
    let good = attest(&[9; 32], zeros.as_ref());
    assert!(Quote::verify(&good, &sign(&pair, &good), &ak, &[9; 32]).unwrap().is_over(&[[0; 32]; 24]));
}

#[test]
fn one_baseline_must_fit_in_all_that_is_compared() {
    let machine =
        |firmware: &str, keys: &str| EventLog::parse(&log(&[(0, 8, firmware.into()), (7, 8, keys.into())])).unwrap();
    let baseline = |name: &str, log: &EventLog, pcrs: &[u32]| Baseline::of_log(name, log, pcrs).unwrap();
    let failing = |checks: &[Check], baselines: &[Baseline], log: &EventLog| -> Vec<Check> {
        let policy = Policy { checks: checks.to_vec(), baselines: baselines.to_vec() };
        policy.evaluate(log).iter().map(|evaluation| evaluation.check).collect()
    };
    let both = [Check::SecureBootSettings, Check::KnownGood];
    let (old, new) = (machine("old", "old"), machine("new", "new"));
    let known = [baseline("old", &old, &[0, 7]), baseline("new", &new, &[0, 7])];
    assert!(failing(&both, &known, &old).is_empty());
    assert!(failing(&both, &known, &new).is_empty());
    // Half of one and half of the other is neither.
    let mixed = machine("old", "new");
    assert_eq!(failing(&both, &known, &mixed).len(), 1);
    // What is not compared does not count against a baseline.
    assert!(failing(&[Check::KnownGood], &known, &mixed).is_empty());
    assert!(failing(&[Check::SecureBootSettings], &known, &mixed).is_empty());
    assert!(failing(&[Check::KnownGood], &known, &machine("new", "old")).is_empty());
    // A baseline that says nothing about a check's PCRs passes nobody.
    assert_eq!(failing(&both, &[baseline("keys", &old, &[7])], &old), [Check::KnownGood]);
    assert_eq!(failing(&both, &[baseline("firmware", &old, &[0])], &old), [Check::SecureBootSettings]);
    assert_eq!(failing(&both, &[], &old), both);
    assert!(failing(&[], &[], &old).is_empty());
}
