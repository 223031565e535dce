//! The service's own certificate authority, and the server certificate that it issues at every start.

use std::sync::Arc;

use attestation::P256Key;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::error::Result;

/// Certifies one server. Guarded hosts trust this authority and no other.
pub(crate) struct TlsCa {
    key: P256Key,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl TlsCa {
    pub(crate) fn generate(name: &str, not_before: OffsetDateTime, not_after: OffsetDateTime) -> Result<Self> {
        let key = P256Key::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("{name} TLS"));
        params.not_before = not_before;
        params.not_after = not_after;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?;
        Ok(TlsCa { key, pem: certificate.pem(), certificate: certificate.der().clone() })
    }

    /// Certificate and private key, for a file of mode 0600.
    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        let key = self.key.to_pem();
        let mut both = Zeroizing::new(String::with_capacity(self.pem.len() + key.len()));
        both.push_str(&self.pem);
        both.push_str(&key);
        both
    }

    pub(crate) fn from_pem(text: &str) -> Result<Self> {
        let key = P256Key::from_pem(text)?;
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| attestation::Error::NotPem)?;
        let end = "-----END CERTIFICATE-----\n";
        let pem = text.split_inclusive(end).next().unwrap_or_default().to_owned();
        Ok(TlsCa { key, certificate, pem })
    }

    /// The certificate: the file for `--hgs-ca`.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// A fresh server key and certificate for these names, never written to disk.
    pub(crate) fn server_config(&self, names: &[String]) -> Result<Arc<ServerConfig>> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let key = P256Key::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = subject("Host Guardian Service");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // rcgen's default validity is unlimited; the end of the authority's certificate bounds the chain.
        let certificate = params.signed_by(&key, &issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Drydock");
    subject.push(DnType::CommonName, name);
    subject
}
