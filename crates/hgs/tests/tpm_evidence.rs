//! The evidence of TPM mode against real TPMs: challenge, attestation key, credential and quote.

#![allow(clippy::unwrap_used)]

mod support;

use attestation::IdentityKey;
use attestation::messages::Reply;
use attestation::tpm::{Blob, Context, qualifying_data};
use reqwest::StatusCode;
use support::boot::{Machine, boot, log};
use support::fabric::{Fabric, Private, all, message, replaced};
use time::Duration;
use tpm::TpmError;

#[tokio::test]
async fn nothing_is_answered_twice_or_late_or_for_another_key() {
    let mut fabric = Fabric::with(&boot(true)).await;
    let ak = fabric.tpm.make_attestation_key().await.unwrap();
    let first = fabric.challenge(&ak).await;
    let evidence = fabric.evidence(&first, &ak).await;
    let answer = Context::new(first.state.clone(), evidence.clone());

    // Another identity key: what somebody in between would like to have certified.
    let honest = std::mem::replace(&mut fabric.identity, IdentityKey::generate().unwrap());
    let (status, reply) = fabric.send(&answer).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(message(&reply).contains("not made by this service for these keys"), "{reply:?}");
    fabric.identity = honest;

    let (status, reply) = fabric.send(&answer).await;
    assert_eq!(status, StatusCode::OK, "{reply:?}");
    // Replayed as it was.
    let (status, reply) = fabric.send(&answer).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(message(&reply).contains("answered already"), "{reply:?}");
    fabric.assert_refused("answered already").await;

    // The old quote, for a new challenge that the TPM itself answered.
    let second = fabric.challenge(&ak).await;
    assert_ne!(second.blob(Blob::Nonce), first.blob(Blob::Nonce));
    let fresh = fabric.evidence(&second, &ak).await;
    let mut stale = fresh.clone();
    for kind in [Blob::Quote, Blob::Signature] {
        let old = evidence.iter().find(|(found, _)| *found == kind).unwrap().1.clone();
        stale = replaced(&stale, kind, old);
    }
    let (_, reply) = fabric.send(&Context::new(second.state.clone(), stale)).await;
    assert!(message(&reply).contains("does not answer this challenge"), "{reply:?}");
    fabric.assert_refused("does not answer this challenge").await;
    // A challenge is gone once its secret was shown, even with a good quote in a second try.
    let (_, reply) = fabric.send(&Context::new(second.state, fresh)).await;
    assert!(message(&reply).contains("answered already"), "{reply:?}");

    let third = fabric.challenge(&ak).await;
    let evidence = fabric.evidence(&third, &ak).await;
    for damaged in [0, third.state.len() / 2, third.state.len() - 1] {
        let mut state = third.state.clone();
        state[damaged] ^= 1;
        let (_, reply) = fabric.send(&Context::new(state, evidence.clone())).await;
        assert!(message(&reply).contains("not made by this service"), "{reply:?}");
    }
    fabric.world.advance(Duration::minutes(5) + Duration::seconds(1));
    let (_, reply) = fabric.send(&Context::new(third.state, evidence)).await;
    assert!(message(&reply).contains("too old"), "{reply:?}");
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn each_part_of_the_evidence_counts() {
    let fabric = Fabric::with(&boot(true)).await;
    let ak = fabric.tpm.make_attestation_key().await.unwrap();
    let flipped = |blobs: &[(Blob, Vec<u8>)], kind: Blob| {
        let mut bytes = blobs.iter().find(|(found, _)| *found == kind).unwrap().1.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        replaced(blobs, kind, bytes)
    };
    for (kind, why) in [
        (Blob::Secret, "the secret is not the one"),
        (Blob::Quote, "not signed by the attestation key"),
        (Blob::Signature, "not signed by the attestation key"),
    ] {
        let challenge = fabric.challenge(&ak).await;
        let evidence = fabric.evidence(&challenge, &ak).await;
        let (status, reply) = fabric.send(&Context::new(challenge.state, flipped(&evidence, kind))).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{kind:?}");
        assert!(matches!(&reply, Reply::RtpmError { message, .. } if message.contains(why)), "{kind:?}: {reply:?}");
        fabric.assert_refused(why).await;

        let challenge = fabric.challenge(&ak).await;
        let mut evidence = fabric.evidence(&challenge, &ak).await;
        evidence.retain(|(found, _)| *found != kind);
        let (status, _) = fabric.send(&Context::new(challenge.state, evidence)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "without {kind:?}");
    }
    // A quote by the right key over other PCRs, or over those of another bank.
    let private = Private::new(&fabric.machine);
    for (pcrs, passes) in [("sha256:0,1,2", false), ("sha1:0,1,2,3,4,5,6,7,8,9,14", false), (&all(), true)] {
        let challenge = fabric.challenge(&private.ak()).await;
        let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
        let secret = private.activate(challenge.blob(Blob::Credential).unwrap()).unwrap();
        let (quote, signature) = private.quote(pcrs, &qualifying_data(&nonce, fabric.identity.public()));
        let blobs = vec![
            (Blob::AttestationKey, private.ak()),
            (Blob::Secret, secret),
            (Blob::Quote, quote),
            (Blob::Signature, signature),
            (Blob::EventLog, fabric.tpm.event_log().unwrap()),
        ];
        let (status, reply) = fabric.send(&Context::new(challenge.state, blobs)).await;
        if passes {
            assert_eq!(status, StatusCode::OK, "{reply:?}");
        } else {
            assert!(message(&reply).contains("not over the PCRs"), "{pcrs}: {reply:?}");
        }
    }
    fabric.world.shut_down().await;
}

#[tokio::test]
async fn an_attestation_key_of_another_tpm_proves_nothing() {
    let fabric = Fabric::with(&boot(true)).await;
    // The thief has a well-started machine of their own and knows the registered endorsement key.
    let thief = Machine::start(&boot(true));
    let private = Private::new(&thief);
    let challenge = fabric.challenge(&private.ak()).await;
    let credential = challenge.blob(Blob::Credential).unwrap();
    assert!(private.activate(credential).is_none(), "the credential is for the registered TPM");
    // Nor does the registered TPM open it: that key is not in there.
    fabric.tpm.make_attestation_key().await.unwrap();
    let refused = fabric.tpm.activate(credential).await.err().unwrap();
    assert!(matches!(refused, TpmError::Failed { tool: "tpm2_activatecredential", .. }), "{refused}");

    let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
    let (quote, signature) = private.quote(&all(), &qualifying_data(&nonce, fabric.identity.public()));
    for secret in [vec![0; 32], Vec::new()] {
        let blobs = vec![
            (Blob::AttestationKey, private.ak()),
            (Blob::Secret, secret),
            (Blob::Quote, quote.clone()),
            (Blob::Signature, signature.clone()),
            (Blob::EventLog, log(&boot(true))),
        ];
        let (status, reply) = fabric.send(&Context::new(challenge.state.clone(), blobs)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(message(&reply).contains("is not in the registered TPM"), "{reply:?}");
        fabric.assert_refused("is not in the registered TPM").await;
    }

    // The registered TPM opens its credential, but the quote is by the thief's key.
    let ak = fabric.tpm.make_attestation_key().await.unwrap();
    let challenge = fabric.challenge(&ak).await;
    let evidence = fabric.evidence(&challenge, &ak).await;
    let nonce = challenge.blob(Blob::Nonce).unwrap().try_into().unwrap();
    let (quote, signature) = private.quote(&all(), &qualifying_data(&nonce, fabric.identity.public()));
    let evidence = replaced(&replaced(&evidence, Blob::Quote, quote), Blob::Signature, signature);
    let (_, reply) = fabric.send(&Context::new(challenge.state.clone(), evidence.clone())).await;
    assert!(message(&reply).contains("not signed by the attestation key"), "{reply:?}");
    // With the thief's key in its place, it is no longer the key that the challenge was for.
    let evidence = replaced(&evidence, Blob::AttestationKey, private.ak());
    let (_, reply) = fabric.send(&Context::new(challenge.state, evidence)).await;
    assert!(message(&reply).contains("not made by this service for these keys"), "{reply:?}");
    fabric.world.shut_down().await;
}

/// A key that signs whatever it is given could sign a made-up quote.
#[tokio::test]
async fn only_restricted_keys_of_the_right_kind_are_attestation_keys() {
    let fabric = Fabric::with(&boot(true)).await;
    let make = |name: &str, arguments: &str| {
        let arguments = format!("-C o -c {name}.ctx {arguments}");
        assert!(fabric.machine.tool("tpm2_createprimary", &arguments.split(' ').collect::<Vec<_>>()), "{name}");
        assert!(fabric.machine.tool("tpm2_flushcontext", &["-t"]));
        let public = format!("-c {name}.ctx -f tss -o {name}.pub");
        assert!(fabric.machine.tool("tpm2_readpublic", &public.split(' ').collect::<Vec<_>>()));
        assert!(fabric.machine.tool("tpm2_flushcontext", &["-t"]));
        std::fs::read(fabric.machine.folder.path().join(format!("{name}.pub"))).unwrap()
    };
    let base = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth";
    for (name, arguments, why) in [
        ("free", format!("-G ecc:ecdsa-sha256 -a {base}|sign"), "not a restricted signing key"),
        ("storage", format!("-G ecc -a {base}|restricted|decrypt"), "not ECDSA P-256"),
        ("rsa", format!("-G rsa2048:rsassa-sha256:null -a {base}|restricted|sign"), "not ECDSA P-256"),
        ("p384", format!("-G ecc384:ecdsa-sha256:null -a {base}|restricted|sign"), "not"),
    ] {
        let key = make(name, &arguments);
        let (status, reply) = fabric.send(&Context::new(Vec::new(), vec![(Blob::AttestationKey, key)])).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{name}");
        assert!(message(&reply).contains(why), "{name}: {reply:?}");
        fabric.assert_refused(why).await;
    }
    fabric.world.shut_down().await;
}
