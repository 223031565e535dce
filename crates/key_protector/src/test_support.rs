//! Shared by the tests of this crate: a fixed instant, guardians that are made once, and refusals.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Mutex;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, KeyUsagePurpose};
use rustls_pki_types::PrivatePkcs8KeyDer;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use crate::{Certificate, Error, Guardian, KeyKind, Role};

/// Whether an error is of one variant: the column of a table of refusals.
pub(crate) type Is = fn(&Error) -> bool;

/// An [`Is`] for the variant of this name.
macro_rules! is {
    ($variant:ident) => {
        (|error| matches!(error, $crate::Error::$variant { .. })) as fn(&$crate::Error) -> bool
    };
}

/// Requires a result to be an error of the variant of this name.
macro_rules! assert_refused {
    ($result:expr, $variant:ident $(, $($about:tt)+)?) => {
        match $result.err() {
            Some($crate::Error::$variant { .. }) => (),
            other => {
                let about = String::new() $(+ " of " + &format!($($about)+))?;
                panic!("the outcome{about} is not {} but {other:?}", stringify!($variant))
            }
        }
    };
}

pub(crate) use {assert_refused, is};

pub(crate) const NOW: OffsetDateTime = datetime!(2026-11-20 12:00 UTC);

/// A guardian valid from yesterday for a year, or for 24 hours from now if it is a recovery
/// guardian. RSA keys take long to make, so the same name gives the same guardian.
pub(crate) fn guardian(name: &'static str, role: Role) -> &'static Guardian {
    static MADE: Mutex<BTreeMap<(&str, &str), &'static Guardian>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    made.entry((name, role.as_str())).or_insert_with(|| {
        let (from, to) = match role {
            Role::Recovery => (NOW, NOW + Duration::DAY),
            _ => (NOW - Duration::DAY, NOW + Duration::days(365)),
        };
        Box::leak(Box::new(Guardian::generate(name, role, KeyKind::Rsa2048, from, to).unwrap()))
    })
}

/// Another certificate for a guardian's encryption key, which may sign as well.
pub(crate) fn certificate_for(guardian: &Guardian, name: &str, role: Role) -> Certificate {
    let key = PrivatePkcs8KeyDer::from(guardian.encryption_pkcs8().to_vec());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_RSA_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in [
        (DnType::OrganizationName, "Drydock"),
        (DnType::OrganizationalUnitName, role.as_str()),
        (DnType::CommonName, name),
    ] {
        params.distinguished_name.push(kind, value);
    }
    params.not_before = NOW - Duration::DAY;
    params.not_after = NOW + Duration::DAY;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    Certificate::from_der(params.self_signed(&key).unwrap().der()).unwrap()
}
