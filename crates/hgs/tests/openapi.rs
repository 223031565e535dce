//! `docs/openapi.json` against the running service: every route is in it, and every status it names is answered so,
//! with a body that its schema takes.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use attestation::messages::AttestationRequest;
use attestation::tpm::{Blob, Context, EkPublic};
use attestation::{HostKey, IdentityKey};
use hgs::server::{Transport, routes};
use hgs_client::HealthCertificate;
use key_protector::{Protector, Role};
use reqwest::Method;
use serde_json::{Value, json};
use support::schema::validate;
use support::{HOST, World, guardian, now, roll_request};
use time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer, X509Certificate};

const HOST_KEY_ATTEST: &str = "/attestation/v2.0/hostkeyattest";
const ATTEST: &str = "/attestation/{version}/attest";
const DOMAIN_ATTEST: &str = "/attestation/{version}/domainattest";
const ROLL: &str = "/keyprotection/service/{version}/rolltransportkey";

/// Method, path as in the document, status.
type Answer = (String, String, String);

struct Api {
    document: Value,
    seen: BTreeSet<Answer>,
}

impl Api {
    fn read() -> Self {
        let document = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
        Api { document, seen: BTreeSet::new() }
    }

    fn operations(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .iter()
                .map(move |(method, operation)| (method.as_str(), path.as_str(), operation))
        })
    }

    /// Every answer that the document promises.
    fn promised(&self) -> BTreeSet<Answer> {
        self.operations()
            .flat_map(|(method, path, operation)| {
                let statuses = operation["responses"].as_object().unwrap().keys();
                statuses.map(move |status| (method.to_owned(), path.to_owned(), status.clone()))
            })
            .collect()
    }

    /// Why JSON does not follow a schema of the document, which may refer to others in it.
    fn judge(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        validator.validate(value).map_err(|error| error.to_string())
    }

    /// Sends a request, checks the answer against the document, and remembers that it was given.
    async fn ask(&mut self, world: &World, method: &str, path: &str, version: &str, body: &[u8], expected: u16) {
        let url = format!("{}{}", world.url, path.replace("{version}", version));
        let request = world.raw().request(method.to_uppercase().parse::<Method>().unwrap(), url).body(body.to_vec());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let bytes = answer.bytes().await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(status, expected, "{method} {path}: {text}");
        let described = &self.document["paths"][path][method]["responses"][status.to_string()];
        assert!(described.is_object(), "{method} {path} answers {status}, which the document does not have");
        if let Some(content) = described["content"].as_object() {
            let kind = kind.unwrap();
            let kind = kind.split(';').next().unwrap();
            let schema = &content.get(kind).unwrap_or_else(|| panic!("{method} {path} {status} is {kind}"))["schema"];
            match kind {
                "application/json" => {
                    let value = serde_json::from_slice(&bytes).unwrap();
                    self.judge(schema, &value).unwrap_or_else(|why| panic!("{method} {path} {status}: {why}: {text}"));
                }
                "application/xml" => validate(schema["x-xsd"].as_str().unwrap(), &bytes).unwrap(),
                "application/pkcs7-mime" => assert_eq!(bytes[0], 0x30),
                other => panic!("{other}"),
            }
        }
        self.saw(method, path, status);
    }

    fn saw(&mut self, method: &str, path: &str, status: u16) {
        self.seen.insert((method.to_owned(), path.to_owned(), status.to_string()));
    }
}

/// From now on the service cannot decide requests for which it needs its store.
async fn break_store(world: &World) {
    sqlx::query("DROP TABLE hosts").execute(&mut world.store().await).await.unwrap();
}

/// A host's request, which the document's schema takes too.
fn request(api: &Api, request: &AttestationRequest) -> Vec<u8> {
    let value = serde_json::to_value(request).unwrap();
    api.judge(&json!({ "$ref": "#/components/schemas/AttestationRequest" }), &value).unwrap();
    value.to_string().into_bytes()
}

fn roll(protector: &Protector, health: &HealthCertificate) -> Vec<u8> {
    let body = roll_request(&protector.to_xml(), health.der()).into_bytes();
    validate("rolltransportkey-request.xsd", &body).unwrap();
    body
}

#[test]
fn the_document_has_every_route_and_no_other_and_is_whole() {
    let api = Api::read();
    let served: BTreeSet<_> = routes().collect();
    let described: BTreeSet<_> = api.operations().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(served, described);
    let ids: BTreeSet<_> = api.operations().map(|(.., operation)| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), served.len());
    for (method, path, operation) in api.operations() {
        let named: Vec<_> = operation["parameters"].as_array().into_iter().flatten().map(|p| &p["name"]).collect();
        assert_eq!(!named.is_empty(), path.contains("{version}"), "{path}");
        assert_eq!(operation["requestBody"].is_object(), method == "post", "{path}");
    }
    for (name, schema) in api.document["components"]["schemas"].as_object().unwrap() {
        jsonschema::draft202012::meta::validate(schema).unwrap_or_else(|why| panic!("{name}: {why}"));
        // None takes anything at all.
        assert!(api.judge(&json!({ "$ref": format!("#/components/schemas/{name}") }), &json!({})).is_err(), "{name}");
    }
}

#[tokio::test]
async fn every_answer_that_is_described_is_given_and_no_other() {
    let mut api = Api::read();
    let stalled = tokio::spawn(answers_to_stalled_requests());
    with_host_keys(&mut api).await;
    with_tpms(&mut api).await;
    for (path, status) in stalled.await.unwrap() {
        api.saw("post", path, status);
    }
    assert_eq!(api.seen, api.promised());
}

async fn with_host_keys(api: &mut Api) {
    let world = World::start().await;
    let large = vec![b' '; (1 << 20) + 1];
    for path in ["/attestation/getinfo", "/attestation/v2.0/getinfo"] {
        api.ask(&world, "get", path, "", b"", 200).await;
    }
    for path in ["/attestation/signingcertificates", "/attestation/v2.0/signingcertificates"] {
        api.ask(&world, "get", path, "", b"", 200).await;
    }
    api.ask(&world, "get", "/keyprotection/service/metadata/2014-07/metadata.xml", "", b"", 200).await;

    let identity = IdentityKey::generate().unwrap();
    let ours = AttestationRequest::host_key(&world.host_key, identity.public(), &[1; 16]).unwrap();
    let ours = request(api, &ours);
    let stranger = HostKey::generate().unwrap();
    let theirs = AttestationRequest::host_key(&stranger, identity.public(), &[1; 16]).unwrap();
    let theirs = request(api, &theirs);
    api.ask(&world, "post", HOST_KEY_ATTEST, "", &ours, 200).await;
    api.ask(&world, "post", HOST_KEY_ATTEST, "", b"{}", 400).await;
    api.ask(&world, "post", HOST_KEY_ATTEST, "", &theirs, 403).await;
    api.ask(&world, "post", HOST_KEY_ATTEST, "", &large, 413).await;
    // Of another mode.
    api.ask(&world, "post", ATTEST, "v2.0", &ours, 400).await;
    for version in ["v1.0", "v2.0"] {
        api.ask(&world, "post", DOMAIN_ATTEST, version, &ours, 400).await;
    }
    api.ask(&world, "post", DOMAIN_ATTEST, "v2.0", &large, 413).await;

    let client = world.client();
    let health = client.attest(&world.host_key).await.unwrap();
    let (protector, _) = world.protector(&[]);
    let good = roll(&protector, &health);
    api.ask(&world, "post", ROLL, "v1.0", &good, 200).await;
    api.ask(&world, "post", ROLL, "v2.0", &good, 200).await;
    api.ask(&world, "post", ROLL, "v3.0", &good, 404).await;
    api.ask(&world, "post", ROLL, "v2.0", b"<x/>", 400).await;
    api.ask(&world, "post", ROLL, "v2.0", &large, 413).await;
    let partner = guardian("partner", Role::Fabric, Duration::days(1));
    let not_ours = Protector::new(&world.owner, &[partner.public().clone()], now()).unwrap().0;
    api.ask(&world, "post", ROLL, "v2.0", &roll(&not_ours, &health), 400).await;
    world.advance(Duration::hours(9));
    api.ask(&world, "post", ROLL, "v2.0", &good, 403).await;
    let health = client.attest(&world.host_key).await.unwrap();
    break_store(&world).await;
    api.ask(&world, "post", ROLL, "v2.0", &roll(&protector, &health), 503).await;
    api.ask(&world, "post", HOST_KEY_ATTEST, "", &ours, 503).await;
    world.shut_down().await;
}

/// The first half of an exchange needs no TPM, only its key's public half; `tpm_mode.rs` has the rest.
async fn with_tpms(api: &mut Api) {
    let world = World::start_tpm().await;
    let keys = ["registered", "stranger"].map(|name| {
        let rsa = guardian(name, Role::Fabric, Duration::days(1));
        let (_, certificate) = X509Certificate::from_der(rsa.public().encryption().der()).unwrap();
        EkPublic::from_der(certificate.public_key().raw).unwrap()
    });
    world.hgs.add_tpm_host(HOST, keys[0].der()).await.unwrap();
    let identity = IdentityKey::generate().unwrap();
    let ask =
        |key: &EkPublic, context: &Context| AttestationRequest::tpm(key, identity.public(), &[1; 16], context).unwrap();
    let empty = Context::default();
    let ours = request(api, &ask(&keys[0], &empty));
    let theirs = request(api, &ask(&keys[1], &empty));
    let no_key = request(api, &ask(&keys[0], &Context::new(Vec::new(), vec![(Blob::AttestationKey, vec![0; 40])])));
    api.ask(&world, "post", ATTEST, "v2.0", &ours, 200).await;
    api.ask(&world, "post", ATTEST, "v1.0", &ours, 400).await;
    api.ask(&world, "post", ATTEST, "v2.0", b"[]", 400).await;
    api.ask(&world, "post", ATTEST, "v2.0", &theirs, 403).await;
    api.ask(&world, "post", ATTEST, "v2.0", &no_key, 403).await;
    api.ask(&world, "post", ATTEST, "v2.0", &vec![b' '; (1 << 20) + 1], 413).await;
    api.ask(&world, "post", HOST_KEY_ATTEST, "", &ours, 400).await;
    break_store(&world).await;
    api.ask(&world, "post", ATTEST, "v2.0", &ours, 503).await;
    world.shut_down().await;
}

/// Bodies that never come: half a minute, for all paths at once that read them.
async fn answers_to_stalled_requests() -> Vec<(&'static str, u16)> {
    let world = World::over(Transport::PlainHttp { force: false }).await;
    let mut waiting = Vec::new();
    for path in [HOST_KEY_ATTEST, ATTEST, ROLL] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let real = path.replace("{version}", "v2.0");
        let head = format!("POST {real} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.unwrap();
        waiting.push((path, stream));
    }
    let mut answers = Vec::new();
    for (path, mut stream) in waiting {
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.unwrap();
        let line = String::from_utf8_lossy(&line).into_owned();
        answers.push((path, line.strip_prefix("HTTP/1.1 ").unwrap().parse().unwrap()));
    }
    world.shut_down().await;
    answers
}
