//! Key protection over HTTP: what the service reads from a host, and a host from the service.

use kps::Document;

use crate::Target;
use crate::world::World;

pub(crate) const TARGETS: &[Target] = &[Target { name: "kps_document", seeds: documents, run: document }];

fn documents(world: &World) -> Vec<Vec<u8>> {
    const START: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>";
    const NAMESPACE: &str = "http://schemas.microsoft.com/kps/2014/07/service";
    const OAEP: &str = "http://www.w3.org/2009/xmlenc11#rsa-oaep";
    const GCM: &str = "http://www.w3.org/2009/xmlenc11#aes256-gcm";
    // Hexadecimal reads as base64, too.
    let protector = world.protector.digest();
    let request = format!(
        "{START}<RollTransportKeyRequest xmlns=\"{NAMESPACE}\"><IngressProtector>{protector}</IngressProtector>\
         <HealthCertificate>{protector}</HealthCertificate>\
         <TransferKeyEncryptionAlgorithm>{OAEP}</TransferKeyEncryptionAlgorithm>\
         <WrappingKeyEncryptionAlgorithm>{GCM}</WrappingKeyEncryptionAlgorithm>\
         <TransportKeysEncryptionAlgorithm>{GCM}</TransportKeysEncryptionAlgorithm></RollTransportKeyRequest>"
    );
    let response = format!(
        "{START}<RollTransportKeyResponse xmlns=\"{NAMESPACE}\"><EgressProtector>{protector}</EgressProtector>\
         <EncryptedTransferKey>AQID</EncryptedTransferKey><EncryptedWrappingKey>AQID</EncryptedWrappingKey>\
         <EncryptedTransportKeys>AQID</EncryptedTransportKeys></RollTransportKeyResponse>"
    );
    let error =
        format!("{START}<Error xmlns=\"{NAMESPACE}\"><Code>ServiceException</Code><Message>a &lt; b</Message></Error>");
    let payload = |size: u32, version: u32| {
        let mut payload = [size, version, 2, 32].map(u32::to_le_bytes).concat();
        payload.resize(size as usize, 0);
        payload
    };
    vec![request.into(), response.into(), error.into(), payload(80, 1), payload(84, 2)]
}

fn document(_: &World, bytes: &[u8]) -> bool {
    let mut kinds = 0;
    for kind in Document::ALL {
        let Some(once) = kind.respell(bytes) else { continue };
        kinds += 1;
        let twice = kind.respell(&once);
        assert!(twice.as_deref() == Some(&*once), "{kind:?} reads as something else once it was written");
        if matches!(kind, Document::PayloadV1 | Document::PayloadV2) {
            assert!(*once == bytes, "a second spelling was accepted");
        }
    }
    assert!(kinds <= 1, "one document, two meanings");
    kinds == 1
}
