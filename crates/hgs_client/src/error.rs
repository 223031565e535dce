//! What a guarded host is told when it gets no key: what happened, and who does what about it.

use std::error::Error as StdError;

use tpm::TpmError;

use crate::status::{Status, SubStatus};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("'{url}' is not the address of a Host Guardian Service")]
    BadUrl { url: String },
    #[error("plain HTTP is used to this machine only, and {url} is another")]
    PlainHttp { url: String },
    #[error("the CA file holds no usable certificate")]
    BadCa,
    #[error("the Host Guardian Service at {url} cannot be reached")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("the Host Guardian Service at {url} did not answer in time")]
    TimedOut { url: String, source: reqwest::Error },
    #[error("what answers at {url} is not the Host Guardian Service that the CA file is of")]
    Impostor { url: String, source: reqwest::Error },
    #[error("what answers at {url} does not speak as a Host Guardian Service (HTTP {status})")]
    NotAnAnswer { url: String, status: u16 },
    #[error("the Host Guardian Service at {url} could not decide")]
    Unavailable { url: String },
    #[error("this host may not have keys: {message}")]
    NotRegistered { message: String },
    #[error("the Host Guardian Service did not understand the attestation: {message}")]
    NotUnderstood { message: String },
    #[error("the Host Guardian Service does not believe this host's TPM: {message}")]
    TpmRefused { message: String },
    #[error("the Host Guardian Service does not believe this host's event log: {message}")]
    EventLog { message: String },
    #[error("this host was not started as the fabric's policy wants: {message}")]
    Insecure { failed: Vec<SubStatus>, message: String },
    #[error("this host's TPM gives no evidence")]
    Tpm(#[from] TpmError),
    #[error("this host's event log is larger than any service takes")]
    EvidenceTooLarge,
    #[error("the Host Guardian Service wants another kind of attestation (mode {mode})")]
    OtherMode { mode: u32 },
    #[error("this host's health certificate was refused: {message}")]
    HealthCertificate { message: String },
    #[error("the key protector was refused: {message}")]
    Protector { message: String },
    #[error("a wrapping in the key protector was refused: {message}")]
    Wrapping { message: String },
    #[error("the answer's key protector is not valid")]
    EgressProtector(#[source] key_protector::Error),
    #[error("the answer's key protector has another owner")]
    OwnerChanged,
    #[error("the answer's keys do not open: they were not made for this host and this key protector")]
    NotForThisHost,
    #[error("the service's metadata document is not valid")]
    Metadata(#[source] key_protector::Error),
    #[error("this host's keys cannot be used")]
    Keys(#[source] attestation::Error),
}

impl Error {
    pub(crate) fn from_transport(url: &str, source: reqwest::Error) -> Self {
        let url = url.to_owned();
        // The URL is in our own message.
        let source = source.without_url();
        if is_certificate(&source) {
            Error::Impostor { url, source }
        } else if source.is_timeout() {
            Error::TimedOut { url, source }
        } else {
            Error::Unreachable { url, source }
        }
    }

    /// What to do about it, as one sentence.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::BadUrl { .. } => "give its address as https://NAME:PORT",
            Error::PlainHttp { .. } => "use https:// and the service's hgs-ca.pem (--hgs-ca)",
            Error::BadCa => "copy hgs-ca.pem from the service's folder again",
            Error::Unreachable { .. } | Error::TimedOut { .. } => {
                "check that `drydock hgs serve` runs there and that the network lets this host through"
            }
            Error::Impostor { .. } => {
                "check the address, that it is among the service's --san names, and that --hgs-ca is this service's hgs-ca.pem"
            }
            Error::NotAnAnswer { .. } => "check the address and the port: something else listens there",
            Error::Unavailable { .. } => "try again; if it stays so, its admin finds the reason in its log",
            Error::NotRegistered { .. } => {
                "ask the fabric admin to run `drydock hgs add-host NAME KEY` with the key file from `drydock host init`"
            }
            Error::NotUnderstood { .. } => "use the same version of drydock on this host and on the service",
            Error::OtherMode { .. } => {
                "the service attests hosts by their TPM (mode 1) or by their key (mode 3): have this host do the same"
            }
            Error::TpmRefused { .. } | Error::Tpm(_) => Status::TpmError.remedy(),
            Error::EventLog { .. } | Error::EvidenceTooLarge => Status::TcgLogValidation.remedy(),
            Error::Insecure { failed, .. } => failed.first().map_or(SubStatus::Other, |first| *first).remedy(),
            Error::HealthCertificate { .. } => {
                "attest again; if the host was removed, ask the fabric admin to run `drydock hgs add-host`; check both clocks"
            }
            Error::Protector { .. } => "put the VM's last good key protector back, or ask its owner for a new one",
            Error::Wrapping { .. } => "ask the VM's owner to grant the service's guardian (`drydock protector grant`)",
            Error::EgressProtector(_) | Error::OwnerChanged | Error::NotForThisHost | Error::Metadata(_) => {
                "do not go on: tell the fabric admin that the service, or something before it, changes answers"
            }
            Error::Keys(_) => "make this host's key anew with `drydock host init` and have it registered",
        }
    }
}

impl Error {
    /// The outcome's name (AttestationStatus).
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Error::BadUrl { .. } | Error::PlainHttp { .. } | Error::BadCa | Error::Keys(_) => Status::NotConfigured,
            Error::Unreachable { .. } | Error::TimedOut { .. } | Error::Unavailable { .. } => Status::TransientError,
            Error::NotRegistered { .. } => Status::UnauthorizedHost,
            Error::Insecure { .. } => Status::InsecureHostConfiguration,
            Error::TpmRefused { .. } | Error::Tpm(_) => Status::TpmError,
            Error::EventLog { .. } | Error::EvidenceTooLarge => Status::TcgLogValidation,
            Error::HealthCertificate { .. } => Status::Expired,
            _ => Status::AttestationFailed,
        }
    }

    /// Nothing came back: what is asked is out of reach, and has decided nothing.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::TimedOut { .. })
    }

    /// The service itself said no: to this host, or to this key protector.
    #[must_use]
    pub fn is_verdict(&self) -> bool {
        matches!(
            self,
            Error::NotRegistered { .. }
                | Error::Insecure { .. }
                | Error::TpmRefused { .. }
                | Error::EventLog { .. }
                | Error::HealthCertificate { .. }
                | Error::Protector { .. }
                | Error::Wrapping { .. }
        )
    }

    /// Which checks failed (AttestationSubStatus).
    #[must_use]
    pub fn sub_statuses(&self) -> &[SubStatus] {
        match self {
            Error::Insecure { failed, .. } => failed,
            _ => &[],
        }
    }
}

fn is_certificate(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(current) = cause {
        if current.is::<rustls::Error>() {
            return true;
        }
        // An io::Error does not name what it wraps as its source, but that one's source.
        let wrapped = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    false
}
