//! What went wrong in the Host Guardian Service, in the kinds that a command ends with.

use hgs::Error as HgsError;
use outcome::{Error, Kind};

/// Gives an error of the service its kind, and a remedy where the message does not name one.
pub(super) fn lift(error: HgsError) -> Error {
    let kind = match &error {
        HgsError::AlreadyThere { .. }
        | HgsError::HostExists { .. }
        | HgsError::KeyExists { .. }
        | HgsError::BaselineExists { .. }
        | HgsError::PrimaryGuardian
        | HgsError::GuardianInUse { .. }
        | HgsError::ForeignStore
        | HgsError::GuardianMissing { .. }
        | HgsError::PermitKnown
        | HgsError::OtherMode { .. } => Kind::WrongState,
        HgsError::NotThere { .. }
        | HgsError::NoSuchHost { .. }
        | HgsError::NoSuchBaseline { .. }
        | HgsError::NoSuchGuardian { .. } => Kind::NotFound,
        HgsError::Exposed { .. }
        | HgsError::PlainHttpExposed { .. }
        | HgsError::StoreExposed { .. }
        | HgsError::AuditBroken { .. }
        | HgsError::AuditForged { .. }
        | HgsError::AuditShrank { .. }
        | HgsError::AuditCut { .. } => Kind::Refused,
        HgsError::BadHostName { .. }
        | HgsError::BadEndorsementKey(_)
        | HgsError::BadLog(_)
        | HgsError::BadPcrs { .. }
        | HgsError::BadHostKey(_)
        | HgsError::Damaged { .. }
        | HgsError::BadStoreUrl
        | HgsError::NotAnExport
        | HgsError::ExportSealed
        | HgsError::ShortPassphrase { .. }
        | HgsError::Permit(_)
        | HgsError::BadPermit
        | HgsError::PermitExpired { .. }
        | HgsError::OtherOwner { .. }
        | HgsError::TooLarge { .. }
        | HgsError::Certificate(_) => Kind::BadInput,
        _ => Kind::Internal,
    };
    let lifted = Error::of(kind, &error);
    match error {
        HgsError::GuardianInUse { .. } => lifted.remedy(
            "have the owners grant the new guardian (drydock protector grant --change, then drydock vm set-protector) \
             and start those VMs once; or give those VMs up with --force",
        ),
        _ => lifted,
    }
}
