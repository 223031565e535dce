//! Protectors that no honest guardian makes: parts can be changed one at a time, and every signature that is not
//! meant to be wrong is made again over what was changed. The layout is that of `key_protector::protector`.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use key_protector::{Guardian, TransportKey};
use roxmltree::{Document, Node};

const KPS: &str = "http://schemas.microsoft.com/kps/2014/07";
const ECDSA: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256";
const HMAC: &str = "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256";

/// A protector taken apart.
pub struct Forge {
    pub wrappings: Vec<Piece>,
    pub signer_id: u32,
    /// Bytes that are signed instead of the wrappings.
    pub guardian_signs: Option<Vec<u8>>,
    /// The key of the `TransportKeySignature`.
    pub transport_key: [u8; 32],
    pub offline: u32,
}

pub struct Piece {
    pub id: u32,
    pub parent: u32,
    pub signing: Vec<u8>,
    pub signing_signature: Vec<u8>,
    pub encryption: Vec<u8>,
    pub encryption_signature: Vec<u8>,
    /// The element as it stands, with its name spaces.
    pub transport_key: String,
}

impl Forge {
    pub fn of(xml: &[u8], transport_key: &TransportKey) -> Self {
        let text = std::str::from_utf8(xml).unwrap();
        let document = Document::parse(text).unwrap();
        let wrappings = document
            .descendants()
            .filter(|node| node.has_tag_name((KPS, "Wrapping")))
            .map(|node| Piece {
                id: child(node, "Id").text().unwrap().parse().unwrap(),
                parent: child(node, "SigningCertificateSignature")
                    .attribute("ParentWrappingId")
                    .unwrap()
                    .parse()
                    .unwrap(),
                signing: bytes(child(node, "SigningCertificate")),
                signing_signature: signature(child(node, "SigningCertificateSignature")),
                encryption: bytes(child(node, "EncryptionCertificate")),
                encryption_signature: signature(child(node, "EncryptionCertificateSignature")),
                transport_key: text[child(node, "TransportKey").range()].to_owned(),
            })
            .collect();
        let signer = child(document.root_element(), "GuardianSignature").attribute("WrappingId").unwrap();
        Forge {
            wrappings,
            signer_id: signer.parse().unwrap(),
            guardian_signs: None,
            transport_key: *transport_key.expose(),
            offline: document.root_element().attribute("MaxOfflineUnwraps").unwrap().parse().unwrap(),
        }
    }

    /// The document, its two signatures made by `signer` and with `transport_key`.
    pub fn seal(&self, signer: &Guardian) -> Vec<u8> {
        let pieces: String = self.wrappings.iter().map(Piece::xml).collect();
        let signed = format!("<Wrappings xmlns=\"{KPS}\">{pieces}</Wrappings>");
        let derived = TransportKey::from_bytes(self.transport_key).derive("transport-key-signature");
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, derived.expose()), signed.as_bytes());
        let signature = sign(signer, self.guardian_signs.as_deref().unwrap_or(signed.as_bytes()));
        format!(
            "<Protector xmlns=\"{KPS}\" MaxOfflineUnwraps=\"{}\"><Wrappings>{pieces}</Wrappings>\
             <TransportKeySignature><KeyDerivationMethod Algorithm=\"http://www.w3.org/2021/04/xmldsig-more#hkdf\">\
             <Parameters><HKDFParams xmlns=\"http://www.w3.org/2021/04/xmldsig-more#\"><PRF Algorithm=\"{HMAC}\"></PRF>\
             <Salt>{}</Salt><Info>{}</Info></HKDFParams></Parameters></KeyDerivationMethod>\
             <Signature Algorithm=\"{HMAC}\"><SignatureValue>{}</SignatureValue></Signature></TransportKeySignature>\
             <GuardianSignature WrappingId=\"{}\">{}</GuardianSignature></Protector>",
            self.offline,
            STANDARD.encode("drydock"),
            STANDARD.encode("transport-key-signature"),
            STANDARD.encode(mac.as_ref()),
            self.signer_id,
            signature_xml(&signature),
        )
        .into_bytes()
    }
}

impl Piece {
    fn xml(&self) -> String {
        format!(
            "<Wrapping><Id>{}</Id><SigningCertificate>{}</SigningCertificate>\
             <SigningCertificateSignature ParentWrappingId=\"{}\">{}</SigningCertificateSignature>\
             <EncryptionCertificate>{}</EncryptionCertificate>\
             <EncryptionCertificateSignature>{}</EncryptionCertificateSignature>{}</Wrapping>",
            self.id,
            STANDARD.encode(&self.signing),
            self.parent,
            signature_xml(&self.signing_signature),
            STANDARD.encode(&self.encryption),
            signature_xml(&self.encryption_signature),
            self.transport_key,
        )
    }
}

/// ECDSA P-256 with SHA-256, r and s, with the guardian's signing key.
pub fn sign(guardian: &Guardian, message: &[u8]) -> Vec<u8> {
    let pem = guardian.to_pem();
    let body = pem.split("-----BEGIN PRIVATE KEY-----").nth(1).unwrap().split("-----END").next().unwrap();
    let der = STANDARD.decode(body.split_whitespace().collect::<String>()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap();
    pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

fn signature_xml(value: &[u8]) -> String {
    format!("<Signature Algorithm=\"{ECDSA}\"><SignatureValue>{}</SignatureValue></Signature>", STANDARD.encode(value))
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Node<'a, 'input> {
    node.children().find(|child| child.has_tag_name((KPS, name))).unwrap()
}

fn bytes(node: Node<'_, '_>) -> Vec<u8> {
    STANDARD.decode(node.text().unwrap()).unwrap()
}

fn signature(node: Node<'_, '_>) -> Vec<u8> {
    bytes(child(child(node, "Signature"), "SignatureValue"))
}
