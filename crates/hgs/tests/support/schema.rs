//! What goes over the network, judged by libxml2's `xmllint` with the schemas of MS-KPS.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// Ours, and those that describe what `key_protector` makes.
const FOLDERS: [&str; 2] = ["schemas", "../key_protector/schemas"];

/// The reason when the document does not follow the schema.
pub fn validate(schema: &str, xml: &[u8]) -> Result<(), String> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = FOLDERS.map(|folder| crate_folder.join(folder).join(schema)).into_iter().find(|file| file.exists());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(xml).unwrap();
    let output = Command::new("xmllint")
        .args(["--nonet", "--noout", "--schema"])
        .arg(schema.expect("the schema is among the crate's"))
        .arg(file.path())
        .output()
        .expect("xmllint is in Debian's libxml2-utils");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

pub fn assert_valid(schema: &str, xml: &[u8]) {
    if let Err(reason) = validate(schema, xml) {
        panic!("{reason}\n{}", String::from_utf8_lossy(xml));
    }
}
