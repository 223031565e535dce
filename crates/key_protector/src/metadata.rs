//! A guardian's public half as a document: the `Metadata` of MS-KPS 6.4.
//!
//! ```text
//! <Metadata Version="1">
//!   <GuardianInformation>
//!     <Version>1</Version>
//!     <EncryptionCertificate/> <SigningCertificate/>
//!     <EncryptionCertificateSignature/> <SigningCertificateSelfSignature/>
//!   </GuardianInformation>
//!   <ds:Signature/>
//! </Metadata>
//! ```
//!
//! The `ds:Signature` is enveloped: one reference to the whole document without the signature,
//! exclusive canonicalisation, SHA-256, signed by the guardian's signing key. It carries no key
//! information, since the key is in the document. There is exactly one accepted serialisation,
//! without white space between elements.

use aws_lc_rs::digest::{SHA256, digest};
use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::certificate::Certificate;
use crate::error::Result;
use crate::signature::{KPS, Signature, algorithm_of};
use crate::strict_xml as strict;

pub(crate) const DOCUMENT: &str = "guardian metadata document";
const MAX_DOCUMENT: usize = 64 * 1024;
const VERSION: &str = "1";

const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const EXC_C14N: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
const SHA256_URI: &str = "http://www.w3.org/2001/04/xmlenc#sha256";

/// A document as it was read, before its signatures are checked.
pub(crate) struct Document {
    pub(crate) signing: Certificate,
    pub(crate) encryption: Certificate,
    pub(crate) encryption_signature: Signature,
    pub(crate) self_signature: Signature,
    /// Over the whole document.
    pub(crate) metadata_signature: Signature,
}

/// Reads a document of at most 64 KiB. What has only one accepted value is not looked at here:
/// compare the document with what is written from it.
pub(crate) fn read(xml: &[u8]) -> Result<Document> {
    let document = strict::parse(DOCUMENT, xml, MAX_DOCUMENT)?;
    let root = document.root_element();
    strict::expect(root, KPS, "Metadata")?;
    strict::attributes(root, ["Version"])?;
    let mut parts = root.children();
    let (Some(information), Some(signature), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(strict::structure(root, "must have two children"));
    };
    strict::expect(information, KPS, "GuardianInformation")?;
    strict::expect(signature, DSIG, "Signature")?;
    let [_, encryption, signing, encryption_signature, self_signature] = strict::children(
        information,
        KPS,
        [
            "Version",
            "EncryptionCertificate",
            "SigningCertificate",
            "EncryptionCertificateSignature",
            "SigningCertificateSelfSignature",
        ],
    )?;
    let [_, value] = strict::children(signature, DSIG, ["SignedInfo", "SignatureValue"])?;
    let signing = Certificate::from_der(&strict::base64(signing)?)?;
    let metadata_signature = Signature { algorithm: algorithm_of(&signing), value: strict::base64(value)? };
    Ok(Document {
        encryption: Certificate::from_der(&strict::base64(encryption)?)?,
        encryption_signature: Signature::read(encryption_signature)?,
        self_signature: Signature::read(self_signature)?,
        signing,
        metadata_signature,
    })
}

/// What is signed in the document, and the document made of it.
pub(crate) struct Body<'a> {
    pub(crate) signing: &'a Certificate,
    pub(crate) encryption: &'a Certificate,
    pub(crate) encryption_signature: &'a Signature,
    pub(crate) self_signature: &'a Signature,
}

impl Body<'_> {
    /// The canonical `SignedInfo`.
    pub(crate) fn to_be_signed(&self) -> Result<Vec<u8>> {
        let namespace = format!(" xmlns=\"{DSIG}\"");
        strict::canonicalize(&self.signed_info(&namespace)?)
    }

    /// The whole document with this signature in it.
    pub(crate) fn signed_by(&self, signature: &Signature) -> Result<String> {
        // Here the name space is inherited from Signature.
        let info = self.signed_info("")?;
        let value = BASE64_STANDARD.encode(&signature.value);
        Ok(self.document(&format!(
            "<Signature xmlns=\"{DSIG}\">{info}<SignatureValue>{value}</SignatureValue></Signature>"
        )))
    }

    fn signed_info(&self, namespace: &str) -> Result<String> {
        // The enveloped-signature transform takes the signature out before the digest.
        let unsigned = strict::canonicalize(&self.document(""))?;
        let digest = BASE64_STANDARD.encode(digest(&SHA256, &unsigned));
        let method = algorithm_of(self.signing).uri();
        Ok(format!(
            "<SignedInfo{namespace}>\
             <CanonicalizationMethod Algorithm=\"{EXC_C14N}\"></CanonicalizationMethod>\
             <SignatureMethod Algorithm=\"{method}\"></SignatureMethod>\
             <Reference URI=\"\"><Transforms><Transform Algorithm=\"{ENVELOPED}\"></Transform>\
             <Transform Algorithm=\"{EXC_C14N}\"></Transform></Transforms>\
             <DigestMethod Algorithm=\"{SHA256_URI}\"></DigestMethod>\
             <DigestValue>{digest}</DigestValue></Reference></SignedInfo>"
        ))
    }

    /// The document with this signature element, or without one.
    fn document(&self, signature: &str) -> String {
        let mut xml = format!(
            "<Metadata xmlns=\"{KPS}\" Version=\"{VERSION}\"><GuardianInformation>\
             <Version>{VERSION}</Version>\
             <EncryptionCertificate>{}</EncryptionCertificate>\
             <SigningCertificate>{}</SigningCertificate>",
            BASE64_STANDARD.encode(self.encryption.der()),
            BASE64_STANDARD.encode(self.signing.der()),
        );
        self.encryption_signature.write(&mut xml, "EncryptionCertificateSignature");
        self.self_signature.write(&mut xml, "SigningCertificateSelfSignature");
        xml.push_str("</GuardianInformation>");
        xml.push_str(signature);
        xml.push_str("</Metadata>");
        xml
    }
}
