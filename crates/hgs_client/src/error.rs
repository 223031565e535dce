//! Why a guarded host gets no key, and what to do about it.

use std::error::Error as StdError;

use tpm::TpmError;

use crate::status::{Status, SubStatus};

/// The outcome of a conversation with the service.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a guarded host gets no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used.
    #[error("'{url}' is not the address of a Host Guardian Service")]
    BadUrl {
        /// Its address.
        url: String,
    },
    /// A service on another machine is reached over HTTPS only.
    #[error("plain HTTP is allowed to this machine only, and {url} is another one")]
    PlainHttp {
        /// Its address.
        url: String,
    },
    /// The file has no certificate in PEM.
    #[error("the CA file has no usable certificate")]
    BadCa,
    /// No connection, or none that lasted.
    #[error("the Host Guardian Service at {url} cannot be reached")]
    Unreachable {
        /// Its address.
        url: String,
        /// The reason of the transport.
        source: reqwest::Error,
    },
    /// A connection, and no complete answer.
    #[error("the Host Guardian Service at {url} did not answer in time")]
    TimedOut {
        /// Its address.
        url: String,
        /// The reason of the transport.
        source: reqwest::Error,
    },
    /// The certificate is of another authority or for another name.
    #[error("the server at {url} is not the Host Guardian Service to which the CA file belongs")]
    Impostor {
        /// Its address.
        url: String,
        /// The reason of the transport.
        source: reqwest::Error,
    },
    /// The answer cannot be read.
    #[error("the server at {url} does not answer like a Host Guardian Service (HTTP {status})")]
    NotAnAnswer {
        /// Its address.
        url: String,
        /// Status of the answer.
        status: u16,
    },
    /// The service reports a failure of its own.
    #[error("the Host Guardian Service at {url} could not decide")]
    Unavailable {
        /// Its address.
        url: String,
    },
    /// The service does not know this host.
    #[error("this host is not entitled to keys: {message}")]
    NotRegistered {
        /// The service's reason.
        message: String,
    },
    /// The service could not read the request.
    #[error("the Host Guardian Service did not understand the attestation: {message}")]
    NotUnderstood {
        /// The service's reason.
        message: String,
    },
    /// The TPM's evidence was refused.
    #[error("the Host Guardian Service does not accept the evidence of this host's TPM: {message}")]
    TpmRefused {
        /// The service's reason.
        message: String,
    },
    /// The firmware's log was refused.
    #[error("the Host Guardian Service does not accept this host's event log: {message}")]
    EventLog {
        /// The service's reason.
        message: String,
    },
    /// The measured boot was refused.
    #[error("this host was not started as the fabric's policy demands: {message}")]
    Insecure {
        /// The checks that failed.
        failed: Vec<SubStatus>,
        /// The service's reason.
        message: String,
    },
    /// The TPM cannot be used.
    #[error("this host's TPM cannot give evidence")]
    Tpm(#[from] TpmError),
    /// No request can carry it.
    #[error("this host's event log is larger than any service accepts")]
    EvidenceTooLarge,
    /// The service accepts another kind of evidence.
    #[error("the Host Guardian Service accepts another kind of attestation (mode {mode})")]
    OtherMode {
        /// Its AttestationOperationMode.
        mode: u32,
    },
    /// It has expired, or the host was removed.
    #[error("this host's health certificate was refused: {message}")]
    HealthCertificate {
        /// The service's reason.
        message: String,
    },
    /// The service refused it.
    #[error("the key protector was refused: {message}")]
    Protector {
        /// The service's reason.
        message: String,
    },
    /// The service refused it, or has no wrapping in it.
    #[error("a wrapping in the key protector was refused: {message}")]
    Wrapping {
        /// The service's reason.
        message: String,
    },
    /// It does not verify.
    #[error("the answer's key protector is not valid")]
    EgressProtector(#[source] key_protector::Error),
    /// It was replaced.
    #[error("the answer's key protector has another owner")]
    OwnerChanged,
    /// They were replaced, or belong to other protectors.
    #[error("the answer's keys do not open: they were not made for this host and this key protector")]
    NotForThisHost,
    /// The guardian's document cannot be read.
    #[error("the service's metadata document is not valid")]
    Metadata(#[source] key_protector::Error),
    /// The library refused them.
    #[error("this host's keys cannot be used")]
    Keys(#[source] attestation::Error),
}

impl Error {
    pub(crate) fn from_transport(url: &str, source: reqwest::Error) -> Self {
        let url = url.to_owned();
        // Our own message has the URL.
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
            Error::BadCa => "copy hgs-ca.pem from the service's directory again",
            Error::Unreachable { .. } | Error::TimedOut { .. } => {
                "check that `drydock hgs serve` runs there and that no firewall blocks this host"
            }
            Error::Impostor { .. } => {
                "check the address, that it is among the service's --san names, and that --hgs-ca is this service's hgs-ca.pem"
            }
            Error::NotAnAnswer { .. } => "check the address and the port: something else listens there",
            Error::Unavailable { .. } => "try again; if that does not help, its admin finds the reason in its log",
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
                "do not continue: tell the fabric admin that the service, or something in front of it, alters answers"
            }
            Error::Keys(_) => "make a new host key with `drydock host init` and have it registered",
        }
    }
}

impl Error {
    /// The AttestationStatus that this is.
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

    /// Whether no answer came: the service is out of reach, and has not decided.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::TimedOut { .. })
    }

    /// Whether the service itself denied the key: to this host, or for this key protector.
    #[must_use]
    pub fn is_denied(&self) -> bool {
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
        // An io::Error's source is not the error that it wraps, but the source of that one.
        let wrapped = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    false
}
