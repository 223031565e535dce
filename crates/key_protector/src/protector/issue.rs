//! Making protectors: new ones, and others from those that exist.

use time::OffsetDateTime;

use super::document::Protector;
use super::parts::{MAX_OFFLINE_UNWRAPS, MAX_WRAPPINGS, Parts, Recipient, Wrapping};
use super::verify;
use crate::algorithm::SignatureAlgorithm;
use crate::certificate::Role;
use crate::error::{Error, Result};
use crate::guardian_public::GuardianPublic;
use crate::key_wrap::wrap;
use crate::private_keys::{PrivateKeys, Signer, sign};
use crate::signature::Signature;
use crate::transport_key::TransportKey;

/// The outcome of rolling a protector: the key it held, and what replaces it (MS-KPS 3.1.5.1.1).
pub struct Rolled {
    /// The transport key of the protector that was rolled: it opens what is sealed today.
    pub ingress: TransportKey,
    /// The protector of the new key.
    pub egress_protector: Protector,
    /// The new transport key, under which everything has to be sealed next.
    pub egress: TransportKey,
}

impl Protector {
    /// A protector of a new transport key for `owner` and `guardians`, whose signing certificates
    /// `owner` signs. It allows no offline unwrapping; see [`Protector::allow_offline`].
    ///
    /// # Errors
    /// A guardian whose role or lifetime does not permit it, two guardians with the same key,
    /// [`Error::KeyOperation`], or a failure of the provider.
    pub fn new(owner: &dyn Signer, guardians: &[GuardianPublic], now: OffsetDateTime) -> Result<(Self, TransportKey)> {
        let public = owner.public();
        public.check_valid_at(now)?;
        let mut recipients = vec![Recipient {
            signing: public.signing.clone(),
            signing_signature: public.self_signature.clone(),
            encryption: public.encryption.clone(),
            encryption_signature: public.encryption_signature.clone(),
            parent: 0,
        }];
        for guardian in guardians {
            recipients.push(certify(owner, guardian, 0, now)?);
        }
        let key = TransportKey::generate();
        let protector = issue(&recipients, &key, (0, owner), 0, now)?;
        Ok((protector, key))
    }

    /// The same transport key, wrapped for `to` as well. Only the owner can do this.
    ///
    /// # Errors
    /// Those of [`Protector::open`]; [`Error::NotOwner`]; [`Error::DuplicateEncryptionKey`] if
    /// `to` is a recipient already; or a role or lifetime of `to` that does not permit it.
    pub fn grant(&self, owner: &dyn PrivateKeys, to: &GuardianPublic, now: OffsetDateTime) -> Result<Self> {
        self.check_owner(owner.public())?;
        let key = self.open(owner, now)?;
        let mut recipients = self.recipients(|_| true);
        recipients.push(certify(owner, to, self.owner, now)?);
        self.issue_again(&recipients, &key, (self.owner, owner), now)
    }

    /// The same transport key for the same guardians, with another `MaxOfflineUnwraps`. Only the owner can do this.
    ///
    /// # Errors
    /// [`Error::TooManyOfflineUnwraps`] above [`MAX_OFFLINE_UNWRAPS`]; those of [`Protector::open`];
    /// [`Error::NotOwner`].
    pub fn allow_offline(&self, owner: &dyn PrivateKeys, unwraps: u32, now: OffsetDateTime) -> Result<Self> {
        if unwraps > MAX_OFFLINE_UNWRAPS {
            return Err(Error::TooManyOfflineUnwraps { limit: MAX_OFFLINE_UNWRAPS });
        }
        self.check_owner(owner.public())?;
        let key = self.open(owner, now)?;
        issue(&self.recipients(|_| true), &key, (self.owner, owner), unwraps, now)
    }

    /// Removes the guardian with this certificate, together with every guardian that it has
    /// certified, and changes the transport key. Only the owner can do this.
    ///
    /// `fingerprint` is that of either of the guardian's certificates. Returned are the old key, which
    /// opens what is sealed today, the new protector, and its key, with which everything is sealed next.
    ///
    /// # Errors
    /// Those of [`Protector::open`]; [`Error::NotOwner`], [`Error::NoSuchGuardian`] or
    /// [`Error::OwnerRevoked`].
    pub fn revoke(
        &self,
        owner: &dyn PrivateKeys,
        fingerprint: &str,
        now: OffsetDateTime,
    ) -> Result<(TransportKey, Self, TransportKey)> {
        self.check_owner(owner.public())?;
        let old = self.open(owner, now)?;
        let mut wrappings = self.wrappings().iter();
        let revoked = wrappings
            .find(|w| w.signing.fingerprint() == fingerprint || w.encryption.fingerprint() == fingerprint)
            .ok_or_else(|| Error::NoSuchGuardian { fingerprint: fingerprint.chars().take(64).collect() })?;
        if revoked.id == self.owner().id {
            return Err(Error::OwnerRevoked);
        }
        let recipients = self.recipients(|w| !self.chain(w).any(|link| link.id == revoked.id));
        let new = TransportKey::generate();
        // The owner has not been removed, and is still the only one that is its own parent.
        let mut places = recipients.iter().enumerate();
        let place = places.position(|(place, recipient)| recipient.parent == place).ok_or(Error::NoOwner)?;
        let protector = self.issue_again(&recipients, &new, (place, owner), now)?;
        Ok((old, protector, new))
    }

    /// Opens the protector as `by` and makes the next one, with a new transport key, for the same
    /// owner, for `by`, and for `recipients` (MS-KPS 3.1.5.1.1). `by` signs it.
    ///
    /// `recipients` are wrappings of this protector or of an earlier one of the same owner; the
    /// guardians that certified them must be among them, or be the owner or `by`. Their encryption
    /// certificates tell wrappings apart; ids do not matter. Recovery guardians must be valid at
    /// `now`.
    ///
    /// # Errors
    /// Those of [`Protector::open`]; [`Error::ForeignRecipient`] for a recipient whose certificate
    /// no guardian in the new protector has signed.
    pub fn roll(&self, by: &dyn PrivateKeys, recipients: &[Wrapping], now: OffsetDateTime) -> Result<Rolled> {
        let ingress = self.open(by, now)?;
        let own = self.wrapping_of(by.public())?;
        let mut chosen = vec![self.owner()];
        for wrapping in std::iter::once(own).chain(recipients) {
            if chosen.iter().any(|c| c.encryption == wrapping.encryption) {
                continue;
            }
            if chosen.len() == MAX_WRAPPINGS {
                return Err(Error::TooManyWrappings { limit: MAX_WRAPPINGS });
            }
            if wrapping.role == Role::Recovery {
                wrapping.check_valid_at(now)?;
            }
            chosen.push(wrapping);
        }
        let recipients = chosen
            .iter()
            .enumerate()
            .map(|(place, wrapping)| {
                // The parent's id may come from another protector, its signature cannot.
                let parent = if place == 0 {
                    Some(0)
                } else {
                    chosen
                        .iter()
                        .enumerate()
                        .position(|(other, candidate)| other != place && certified(candidate, wrapping))
                };
                let parent = parent.ok_or_else(|| Error::ForeignRecipient { guardian: wrapping.name().to_owned() })?;
                Ok(recipient(wrapping, parent))
            })
            .collect::<Result<Vec<_>>>()?;
        let egress = TransportKey::generate();
        let mut places = chosen.iter();
        let place = places
            .position(|w| w.is_for(by.public()))
            .ok_or_else(|| Error::NotARecipient { guardian: by.public().name().to_owned() })?;
        let egress_protector = self.issue_again(&recipients, &egress, (place, by), now)?;
        Ok(Rolled { ingress, egress_protector, egress })
    }

    fn check_owner(&self, guardian: &GuardianPublic) -> Result<()> {
        if !self.owner().is_for(guardian) {
            return Err(Error::NotOwner { guardian: guardian.name().to_owned() });
        }
        Ok(())
    }

    /// The wrapping, its parent, and so on up to the owner.
    fn chain<'a>(&'a self, wrapping: &'a Wrapping) -> impl Iterator<Item = &'a Wrapping> {
        std::iter::successors(Some(wrapping), |current| {
            let mut wrappings = self.wrappings().iter();
            wrappings.find(|w| w.id == current.parent_id && w.id != current.id)
        })
    }

    /// The recipients of this protector that `keep` keeps, with their parents. Leaving one out means
    /// leaving out everything below it too.
    fn recipients(&self, keep: impl Fn(&Wrapping) -> bool) -> Vec<Recipient> {
        let kept: Vec<_> = self.wrappings().iter().filter(|w| keep(w)).collect();
        let recipients = kept.iter().filter_map(|wrapping| {
            let parent = kept.iter().position(|w| w.id == wrapping.parent_id)?;
            Some(recipient(wrapping, parent))
        });
        recipients.collect()
    }

    fn issue_again(
        &self,
        recipients: &[Recipient],
        key: &TransportKey,
        signer: (usize, &dyn Signer),
        now: OffsetDateTime,
    ) -> Result<Self> {
        issue(recipients, key, signer, self.max_offline_unwraps(), now)
    }
}

/// Whether `parent` signed `child`'s signing certificate.
fn certified(parent: &Wrapping, child: &Wrapping) -> bool {
    child.signing_signature.is_by(&parent.signing, child.signing.der())
}

fn recipient(wrapping: &Wrapping, parent: usize) -> Recipient {
    Recipient {
        signing: wrapping.signing.clone(),
        signing_signature: wrapping.signing_signature.clone(),
        encryption: wrapping.encryption.clone(),
        encryption_signature: wrapping.encryption_signature.clone(),
        parent,
    }
}

/// A recipient whose signing certificate the owner signs here.
fn certify(owner: &dyn Signer, guardian: &GuardianPublic, parent: usize, now: OffsetDateTime) -> Result<Recipient> {
    guardian.check_valid_at(now)?;
    Ok(Recipient {
        signing: guardian.signing.clone(),
        signing_signature: sign(owner, guardian.signing.der())?,
        encryption: guardian.encryption.clone(),
        encryption_signature: guardian.encryption_signature.clone(),
        parent,
    })
}

/// Wraps `key` for each recipient, signs as `signer` (a place among the recipients and its keys),
/// and verifies the outcome: a protector that others would refuse is never returned.
pub(super) fn issue(
    recipients: &[Recipient],
    key: &TransportKey,
    (signer, by): (usize, &dyn Signer),
    max_offline_unwraps: u32,
    now: OffsetDateTime,
) -> Result<Protector> {
    if recipients.len() > MAX_WRAPPINGS {
        return Err(Error::TooManyWrappings { limit: MAX_WRAPPINGS });
    }
    let id = |place: usize| u32::try_from(place + 1).unwrap_or(u32::MAX);
    let wrappings = recipients
        .iter()
        .enumerate()
        .map(|(place, recipient)| {
            Ok(Wrapping {
                id: id(place),
                parent_id: id(recipient.parent),
                role: recipient.role()?,
                signing: recipient.signing.clone(),
                signing_signature: recipient.signing_signature.clone(),
                encryption: recipient.encryption.clone(),
                encryption_signature: recipient.encryption_signature.clone(),
                offline_unwraps: (recipient.parent == place).then_some(max_offline_unwraps),
                cipher: wrap(key, &recipient.encryption)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut parts = Parts {
        wrappings,
        transport_key_signature: Vec::new(),
        guardian_signature: Signature { algorithm: SignatureAlgorithm::EcdsaP256, value: Vec::new() },
        signer_id: id(signer),
        max_offline_unwraps,
    };
    seal(&mut parts, key, by)?;
    let protector = Protector::from_parts(parts)?;
    protector.verify(now)?;
    Ok(protector)
}

/// Makes both signatures over the wrappings as they stand.
pub(super) fn seal(parts: &mut Parts, key: &TransportKey, by: &dyn Signer) -> Result<()> {
    let signed = parts.signed_bytes()?;
    parts.transport_key_signature = verify::transport_key_signature(key, &signed);
    parts.guardian_signature = sign(by, &signed)?;
    Ok(())
}
