//! What a TPM says, and the firmware's event log.

use attestation::P256Key;
use attestation::tpm::{
    AkPublic, Blob, Check, Context, EventLog, Policy, QUOTED, Quote, attestation_key, measured_boot, qualifying_data,
};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use crate::Target;
use crate::world::World;

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "event_log", seeds: event_logs, run: event_log },
    Target { name: "tpm_quote", seeds: quotes, run: quote },
    Target { name: "tpm_context", seeds: contexts, run: context },
];

const NONCE: [u8; 32] = [9; 32];

/// A log in the crypto-agile format with SHA-256 alone: PCR, type, data.
fn log(events: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut log = [0_u32, 3].map(u32::to_le_bytes).concat();
    log.extend_from_slice(&[0; 20]);
    let spec = [b"Spec ID Event03\0".as_slice(), &[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 11, 0, 32, 0, 0]].concat();
    log.extend_from_slice(&(spec.len() as u32).to_le_bytes());
    log.extend_from_slice(&spec);
    for (pcr, kind, data) in events {
        log.extend_from_slice(&event(*pcr, *kind, data));
    }
    log
}

/// With one digest for each of the log's algorithms; this one has SHA-256 alone.
fn event(pcr: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut event = [pcr, kind, 1].map(u32::to_le_bytes).concat();
    event.extend_from_slice(&[11, 0]);
    event.extend_from_slice(digest(&SHA256, data).as_ref());
    event.extend_from_slice(&(data.len() as u32).to_le_bytes());
    event.extend_from_slice(data);
    event
}

fn whole_log() -> Vec<u8> {
    log(&[
        (0, 3, b"StartupLocality\0\x03"),
        (0, 8, b"version"),
        (7, 0x8000_0001, b"SecureBoot"),
        (4, 4, &[0; 4]),
        (8, 13, b"grub"),
        (14, 13, b"MokList"),
    ])
}

fn event_logs(_: &World) -> Vec<Vec<u8>> {
    vec![log(&[]), whole_log()]
}

fn event_log(_: &World, bytes: &[u8]) -> bool {
    let Ok(log) = EventLog::parse(bytes) else { return false };
    // The smallest event has 14 bytes of numbers, a digest of 32 and a length of 4.
    assert!(log.events().len() <= bytes.len() / 50);
    let before = log.replay();
    let _ = Policy { checks: Check::ALL.to_vec(), baselines: Vec::new() }.evaluate(&log);
    // One more measurement changes its PCR and no other. A log with several algorithms takes no event with one.
    let longer = [bytes, &event(5, 13, b"one more")].concat();
    if let Ok(longer) = EventLog::parse(&longer) {
        assert_eq!(longer.events().len(), log.events().len() + 1);
        for (pcr, (before, after)) in before.iter().zip(longer.replay()).enumerate() {
            assert_eq!(*before != after, pcr == 5, "PCR {pcr}");
        }
    }
    true
}

fn pair(key: &P256Key) -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.pkcs8()).unwrap()
}

/// TPM2B_PUBLIC.
pub(crate) fn ak_public(world: &World) -> Vec<u8> {
    let pair = pair(&world.ak);
    let point = pair.public_key().as_ref();
    let mut public = vec![0, 0x23, 0, 0x0b, 0, 5, 0, 0x72, 0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10];
    for number in [&point[1..33], &point[33..]] {
        public.extend_from_slice(&[0, 32]);
        public.extend_from_slice(number);
    }
    [(public.len() as u16).to_be_bytes().as_slice(), &public].concat()
}

/// TPMS_ATTEST of a quote of the PCRs to which [`whole_log`] leads.
fn attest(qualifying: &[u8]) -> Vec<u8> {
    let pcrs = EventLog::parse(&whole_log()).unwrap().replay();
    let quoted: Vec<u8> = QUOTED.iter().flat_map(|pcr| pcrs[*pcr as usize]).collect();
    let mut attest = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 2, 0, 0x0b, 0, 32];
    attest.extend_from_slice(qualifying);
    attest.extend_from_slice(&[0; 25]);
    attest.extend_from_slice(&[0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0x43, 0, 0, 32]);
    attest.extend_from_slice(digest(&SHA256, &quoted).as_ref());
    attest
}

/// TPMT_SIGNATURE.
fn signature(world: &World, message: &[u8]) -> Vec<u8> {
    let signature = pair(&world.ak).sign(&SystemRandom::new(), message).unwrap();
    let (r, s) = signature.as_ref().split_at(32);
    [&[0, 0x18, 0, 0x0b, 0, 32], r, &[0, 32], s].concat()
}

fn quotes(world: &World) -> Vec<Vec<u8>> {
    vec![attest(&qualifying_data(&NONCE, &world.identity))]
}

/// The TPM signed whatever the bytes are.
fn quote(world: &World, bytes: &[u8]) -> bool {
    let ak = AkPublic::parse(&ak_public(world)).unwrap();
    let qualifying = qualifying_data(&NONCE, &world.identity);
    let signature = signature(world, bytes);
    // The bytes as a signature: none of the honest quote.
    let _ = Quote::verify(&attest(&qualifying), bytes, &ak, &qualifying);
    let Ok(quote) = Quote::verify(bytes, &signature, &ak, &qualifying) else { return false };
    assert!(bytes.windows(32).any(|window| window == qualifying), "a quote that answers another challenge");
    let pcrs = EventLog::parse(&whole_log()).unwrap().replay();
    let honest = attest(&qualifying);
    assert_eq!(quote.is_over(&pcrs), bytes.ends_with(&honest[honest.len() - 32..]));
    let mut forged = bytes.to_vec();
    forged[0] ^= 1;
    assert!(Quote::verify(&forged, &signature, &ak, &qualifying).is_err(), "a quote that the TPM did not sign");
    assert!(Quote::verify(bytes, &signature, &ak, &[0; 32]).is_err());
    true
}

/// The last step of a host's attestation.
pub(crate) fn evidence(world: &World) -> Vec<u8> {
    let attest = attest(&qualifying_data(&NONCE, &world.identity));
    let signature = signature(world, &attest);
    let blobs = vec![
        (Blob::AttestationKey, ak_public(world)),
        (Blob::Secret, vec![7; 32]),
        (Blob::Quote, attest),
        (Blob::Signature, signature),
        (Blob::EventLog, whole_log()),
    ];
    Context::new(vec![1; 64], blobs).write().unwrap()
}

fn contexts(world: &World) -> Vec<Vec<u8>> {
    vec![Context::default().write().unwrap(), evidence(world)]
}

fn context(world: &World, bytes: &[u8]) -> bool {
    let Some(context) = Context::parse(bytes) else { return false };
    let written = context.write().unwrap();
    // All but the reserved number, which a reader ignores.
    assert!(written.len() == bytes.len() && written[..12] == bytes[..12] && written[16..] == bytes[16..]);
    let _ = attestation_key(&context);
    let ak = AkPublic::parse(&ak_public(world)).unwrap();
    if let Ok(log) = measured_boot(&context, &ak, &NONCE, &world.identity) {
        // Types and data of events are not covered by anything.
        let honest = EventLog::parse(&whole_log()).unwrap().replay();
        for pcr in QUOTED {
            assert_eq!(log.replay()[pcr as usize], honest[pcr as usize], "a log that leads elsewhere");
        }
    }
    true
}
