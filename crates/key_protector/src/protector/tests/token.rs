//! An owner whose keys are in a token, which answers or refuses and never gives them away.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use zeroize::Zeroizing;

use super::made::{fabric, owner, recovery};
use crate::algorithm::SignatureAlgorithm;
use crate::error::{Error, KeyError};
use crate::guardian::Guardian;
use crate::guardian_public::GuardianPublic;
use crate::private_keys::{Identified, KeyResult, Opener, Signer};
use crate::protector::document::Protector;
use crate::signed;
use crate::test_support::{NOW, assert_refused};

/// Counts what it is asked, as long as it is plugged in.
struct Token {
    public: GuardianPublic,
    inside: &'static Guardian,
    plugged_in: AtomicBool,
    signed: AtomicUsize,
    unwrapped: AtomicUsize,
}

impl Token {
    /// Its public half comes from a file, as that of a guardian on another machine does.
    fn holding(inside: &'static Guardian) -> Self {
        Token {
            public: GuardianPublic::parse(&inside.public().to_xml()).unwrap(),
            inside,
            plugged_in: AtomicBool::new(true),
            signed: AtomicUsize::new(0),
            unwrapped: AtomicUsize::new(0),
        }
    }

    fn ask(&self, count: &AtomicUsize) -> KeyResult<()> {
        if !self.plugged_in.load(Ordering::Relaxed) {
            return Err(KeyError::Unavailable { source: "CKR_DEVICE_REMOVED".into() });
        }
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Identified for Token {
    fn public(&self) -> &GuardianPublic {
        &self.public
    }
}

impl Signer for Token {
    fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> KeyResult<Vec<u8>> {
        self.ask(&self.signed)?;
        self.inside.sign(algorithm, message)
    }
}

impl Opener for Token {
    fn unwrap_key(&self, cipher: &[u8]) -> KeyResult<Zeroizing<Vec<u8>>> {
        self.ask(&self.unwrapped)?;
        self.inside.unwrap_key(cipher)
    }
}

#[test]
fn a_token_does_whatever_its_owner_does() {
    let token = Token::holding(owner());
    let (protector, key) = Protector::new(&token, &[fabric().public().clone()], NOW).unwrap();
    // The fabric's certificate and the list of wrappings.
    assert_eq!(token.signed.load(Ordering::Relaxed), 2);
    assert_eq!(protector.open(&token, NOW).unwrap().expose(), key.expose());
    let granted = protector.grant(&token, recovery().public(), NOW).unwrap();
    assert_eq!(granted.open(recovery(), NOW).unwrap().expose(), key.expose());
    let allowed = granted.allow_offline(&token, 2, NOW).unwrap();
    let (old, revoked, _) = allowed.revoke(&token, &recovery().public().signing().fingerprint(), NOW).unwrap();
    assert_eq!(old.expose(), key.expose());
    let rolled = revoked.roll(&token, revoked.wrappings(), NOW).unwrap();
    assert!(rolled.egress_protector.open(fabric(), NOW).is_ok());
    let document = signed::sign("order", b"start", &token).unwrap();
    assert_eq!(&signed::verify("order", &document).unwrap().signer, owner().public().signing());
    assert_eq!(token.unwrapped.load(Ordering::Relaxed), 5);
}

#[test]
fn a_token_that_fails_condemns_no_document() {
    let token = Token::holding(owner());
    let (protector, _) = Protector::new(&token, &[fabric().public().clone()], NOW).unwrap();
    token.plugged_in.store(false, Ordering::Relaxed);
    let refused = protector.open(&token, NOW).err().unwrap();
    assert!(
        matches!(&refused, Error::KeyOperation { guardian, source: KeyError::Unavailable { .. }, .. } if guardian == "tenant"),
        "{refused}"
    );
    assert_refused!(signed::sign("order", b"start", &token), KeyOperation);
    assert_refused!(protector.grant(&token, recovery().public(), NOW), KeyOperation);
    token.plugged_in.store(true, Ordering::Relaxed);
    assert!(protector.grant(&token, recovery().public(), NOW).is_ok());
}

#[test]
fn a_key_refuses_what_it_was_not_made_for() {
    let refused = owner().sign(SignatureAlgorithm::RsaPss, b"message");
    assert!(matches!(refused, Err(KeyError::Unsupported { algorithm: SignatureAlgorithm::RsaPss })));
    assert!(matches!(owner().unwrap_key(&[7; 256]), Err(KeyError::NotForThisKey)));
}

/// A guardian is made on a token by the signatures that only the token can give.
#[test]
fn a_public_half_needs_the_key_of_its_certificate() {
    let (signing, encryption) = (owner().public().signing(), owner().public().encryption());
    let made = |by: &'static Guardian| {
        GuardianPublic::self_signed(signing.clone(), encryption.clone(), |algorithm, message| {
            by.sign(algorithm, message)
        })
    };
    assert_eq!(made(owner()).unwrap().signing(), signing);
    assert_refused!(made(fabric()), GuardianSelf);
    let denied = GuardianPublic::self_signed(signing.clone(), encryption.clone(), |_, _| {
        Err(KeyError::Denied { source: "CKR_PIN_LOCKED".into() })
    });
    assert_refused!(denied, KeyOperation);
}
