//! A protector as XML: MS-KPS 6.1 and 6.5.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use roxmltree::Node;

use super::parts::{MAX_DOCUMENT, MAX_WRAPPINGS, Parts, Wrapping};
use crate::certificate::{Certificate, check_pair};
use crate::error::{Error, Result};
use crate::signature::{KPS, Signature};
use crate::strict_xml as strict;
use crate::transport_key::HKDF_SALT;

/// The HKDF info of the key that makes the `TransportKeySignature`.
pub(super) const SIGNATURE_LABEL: &str = "transport-key-signature";

const DOCUMENT: &str = "protector";
/// Our own name space, for the one parameter that no other schema has an element for.
const DRYDOCK: &str = "urn:drydock:key-protector:1";
const OFFLINE: &str = "MaxOfflineUnwraps";

const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const XENC11: &str = "http://www.w3.org/2009/xmlenc11#";
const RSA_OAEP: &str = "http://www.w3.org/2009/xmlenc11#rsa-oaep";
const MGF1_SHA256: &str = "http://www.w3.org/2009/xmlenc11#mgf1sha256";
const SHA256: &str = "http://www.w3.org/2001/04/xmlenc#sha256";
const MORE_2021: &str = "http://www.w3.org/2021/04/xmldsig-more#";
const HKDF: &str = "http://www.w3.org/2021/04/xmldsig-more#hkdf";
const HMAC_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256";

// Writing. Everything that is inserted is base64, a number or one of the constants above, so
// nothing needs escaping. Empty elements have end tags and attributes are in canonical order,
// which makes the text its own canonical form.

impl Parts {
    pub(super) fn to_xml(&self) -> String {
        let Self { max_offline_unwraps, signer_id, .. } = self;
        let mut xml = format!("<Protector xmlns=\"{KPS}\" {OFFLINE}=\"{max_offline_unwraps}\">");
        self.write_wrappings(&mut xml, "");
        let salt = BASE64_STANDARD.encode(HKDF_SALT);
        let info = BASE64_STANDARD.encode(SIGNATURE_LABEL);
        let mac = BASE64_STANDARD.encode(&self.transport_key_signature);
        xml.push_str(&format!(
            "<TransportKeySignature><KeyDerivationMethod Algorithm=\"{HKDF}\"><Parameters>\
             <HKDFParams xmlns=\"{MORE_2021}\"><PRF Algorithm=\"{HMAC_SHA256}\"></PRF>\
             <Salt>{salt}</Salt><Info>{info}</Info></HKDFParams>\
             </Parameters></KeyDerivationMethod>\
             <Signature Algorithm=\"{HMAC_SHA256}\"><SignatureValue>{mac}</SignatureValue>\
             </Signature></TransportKeySignature>\
             <GuardianSignature WrappingId=\"{signer_id}\">"
        ));
        self.guardian_signature.write(&mut xml, "Signature");
        xml.push_str("</GuardianSignature></Protector>");
        xml
    }

    /// What both signatures are over: `Wrappings` in exclusive canonical form, UTF-8.
    pub(super) fn signed_bytes(&self) -> Result<Vec<u8>> {
        let mut xml = String::new();
        self.write_wrappings(&mut xml, &format!(" xmlns=\"{KPS}\""));
        strict::canonicalize(&xml)
    }

    fn write_wrappings(&self, xml: &mut String, namespace: &str) {
        xml.push_str(&format!("<Wrappings{namespace}>"));
        for wrapping in &self.wrappings {
            wrapping.write(xml);
        }
        xml.push_str("</Wrappings>");
    }
}

impl Wrapping {
    fn write(&self, xml: &mut String) {
        let Self { id, parent_id, .. } = self;
        let signing = BASE64_STANDARD.encode(self.signing.der());
        let encryption = BASE64_STANDARD.encode(self.encryption.der());
        let cipher = BASE64_STANDARD.encode(&self.cipher);
        xml.push_str(&format!(
            "<Wrapping><Id>{id}</Id><SigningCertificate>{signing}</SigningCertificate>\
             <SigningCertificateSignature ParentWrappingId=\"{parent_id}\">"
        ));
        self.signing_signature.write(xml, "Signature");
        xml.push_str(&format!(
            "</SigningCertificateSignature>\
             <EncryptionCertificate>{encryption}</EncryptionCertificate>\
             <EncryptionCertificateSignature>"
        ));
        self.encryption_signature.write(xml, "Signature");
        xml.push_str(&format!(
            "</EncryptionCertificateSignature><TransportKey><EncryptedData Algorithm=\"{RSA_OAEP}\">\
             <Parameters><DigestMethod xmlns=\"{DSIG}\" Algorithm=\"{SHA256}\"></DigestMethod>\
             <MGF xmlns=\"{XENC11}\" Algorithm=\"{MGF1_SHA256}\"></MGF>"
        ));
        if let Some(n) = self.offline_unwraps {
            xml.push_str(&format!("<{OFFLINE} xmlns=\"{DRYDOCK}\">{n}</{OFFLINE}>"));
        }
        xml.push_str(&format!(
            "</Parameters><CipherValue>{cipher}</CipherValue></EncryptedData></TransportKey>\
             </Wrapping>"
        ));
    }
}

// Reading.

impl Parts {
    pub(super) fn read(xml: &[u8]) -> Result<Self> {
        let document = strict::parse(DOCUMENT, xml, MAX_DOCUMENT)?;
        let root = document.root_element();
        strict::expect(root, KPS, "Protector")?;
        let [max_offline_unwraps] = strict::attributes(root, [OFFLINE])?;
        let [wrappings, transport_key_signature, guardian_signature] =
            strict::children(root, KPS, ["Wrappings", "TransportKeySignature", "GuardianSignature"])?;
        let [signer_id] = strict::attributes(guardian_signature, ["WrappingId"])?;
        let [signature] = strict::children(guardian_signature, KPS, ["Signature"])?;
        let parts = Self {
            wrappings: read_wrappings(wrappings)?,
            transport_key_signature: read_transport_key_signature(transport_key_signature)?,
            guardian_signature: Signature::read(signature)?,
            signer_id: strict::number("WrappingId", signer_id)?,
            max_offline_unwraps: strict::number(OFFLINE, max_offline_unwraps)?,
        };
        // Nothing may be in the document that is not in `parts`: comments, entities, prefixes,
        // other spellings of the same content. What is signed is then what was received.
        if parts.to_xml().as_bytes() != xml {
            return Err(Error::NotCanonical { document: DOCUMENT });
        }
        Ok(parts)
    }
}

fn read_wrappings(node: Node<'_, '_>) -> Result<Vec<Wrapping>> {
    strict::attributes(node, [])?;
    let nodes: Vec<_> = node.children().take(MAX_WRAPPINGS + 1).collect();
    if nodes.is_empty() {
        return Err(Error::NoWrapping);
    }
    if nodes.len() > MAX_WRAPPINGS {
        return Err(Error::TooManyWrappings { limit: MAX_WRAPPINGS });
    }
    nodes.into_iter().map(read_wrapping).collect()
}

fn read_wrapping(node: Node<'_, '_>) -> Result<Wrapping> {
    strict::expect(node, KPS, "Wrapping")?;
    strict::attributes(node, [])?;
    let [id, signing, signing_signature, encryption, encryption_signature, transport_key] = strict::children(
        node,
        KPS,
        [
            "Id",
            "SigningCertificate",
            "SigningCertificateSignature",
            "EncryptionCertificate",
            "EncryptionCertificateSignature",
            "TransportKey",
        ],
    )?;
    let [parent_id] = strict::attributes(signing_signature, ["ParentWrappingId"])?;
    let [signing_signature] = strict::children(signing_signature, KPS, ["Signature"])?;
    strict::attributes(encryption_signature, [])?;
    let [encryption_signature] = strict::children(encryption_signature, KPS, ["Signature"])?;
    let signing = Certificate::from_der(&strict::base64(signing)?)?;
    let encryption = Certificate::from_der(&strict::base64(encryption)?)?;
    let (offline_unwraps, cipher) = read_transport_key(transport_key)?;
    Ok(Wrapping {
        id: strict::number("Id", strict::text(id)?)?,
        parent_id: strict::number("ParentWrappingId", parent_id)?,
        role: check_pair(&signing, &encryption)?,
        signing,
        signing_signature: Signature::read(signing_signature)?,
        encryption,
        encryption_signature: Signature::read(encryption_signature)?,
        offline_unwraps,
        cipher,
    })
}

/// The bound `MaxOfflineUnwraps`, if there is one, and the encrypted key.
fn read_transport_key(node: Node<'_, '_>) -> Result<(Option<u32>, Vec<u8>)> {
    strict::attributes(node, [])?;
    let [data] = strict::children(node, KPS, ["EncryptedData"])?;
    expect_algorithm(data, RSA_OAEP)?;
    let [parameters, cipher] = strict::children(data, KPS, ["Parameters", "CipherValue"])?;
    strict::attributes(parameters, [])?;
    let mut children = parameters.children();
    let (Some(digest), Some(mask), offline, None) =
        (children.next(), children.next(), children.next(), children.next())
    else {
        return Err(strict::structure(parameters, "must have two or three children"));
    };
    strict::expect(digest, DSIG, "DigestMethod")?;
    expect_algorithm(digest, SHA256)?;
    strict::expect(mask, XENC11, "MGF")?;
    expect_algorithm(mask, MGF1_SHA256)?;
    let offline = match offline {
        Some(node) => {
            strict::expect(node, DRYDOCK, OFFLINE)?;
            Some(strict::number(OFFLINE, strict::text(node)?)?)
        }
        None => None,
    };
    Ok((offline, strict::base64(cipher)?))
}

fn read_transport_key_signature(node: Node<'_, '_>) -> Result<Vec<u8>> {
    strict::attributes(node, [])?;
    let [derivation, signature] = strict::children(node, KPS, ["KeyDerivationMethod", "Signature"])?;
    // Its parameters are constants, which the comparison of the whole document settles.
    expect_algorithm(derivation, HKDF)?;
    expect_algorithm(signature, HMAC_SHA256)?;
    let [value] = strict::children(signature, KPS, ["SignatureValue"])?;
    strict::base64(value)
}

fn expect_algorithm(node: Node<'_, '_>, expected: &str) -> Result<()> {
    let [uri] = strict::attributes(node, ["Algorithm"])?;
    if uri != expected {
        return Err(Error::Algorithm { element: strict::name(node), uri: uri.to_owned() });
    }
    Ok(())
}
