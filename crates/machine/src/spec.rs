//! What a VM is made of. All of it comes from a file or a request, and [`VmSpec::validate`] checks it before any of it
//! reaches a command line.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use image::{Format, Source};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};

/// The security policy: what those who run the host may see of a VM. The owner chooses it, and it is sealed with the
/// VM's state (see [`crate::record`]), so that nobody else can change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// No console, no serial port, no keyboard, no debugger.
    Shielded,
    /// The state is encrypted in the same way, but a console is allowed.
    EncryptionSupported,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shielded => "shielded",
            Self::EncryptionSupported => "encryption-supported",
        })
    }
}

/// What reaches a VM other than through its network, named after the Windows Server release whose shielded VMs allow the
/// same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleProfile {
    /// Nothing beyond what the policy allows.
    #[default]
    #[serde(rename = "2016")]
    Server2016,
    /// Sessions: a byte stream between a client of the agent and the guest, which decides whom it lets in.
    #[serde(rename = "2019")]
    Server2019,
}

impl ConsoleProfile {
    /// Whether files omit it: a file without the field is of the profile that existed before the field did.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for ConsoleProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Server2016 => "2016",
            Self::Server2019 => "2019",
        })
    }
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Identifies the VM; names can be reused.
    pub id: Uuid,
    /// `[a-z0-9][a-z0-9-]{0,62}`.
    pub name: String,
    /// MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// The guest can run virtual machines of its own.
    pub nested: bool,
    /// Its security policy; believed only if the sealed record agrees.
    pub policy: Policy,
    /// Whether sessions are possible; believed only if the sealed record agrees.
    #[serde(default, skip_serializing_if = "ConsoleProfile::is_default")]
    pub console_profile: ConsoleProfile,
    /// The guest boots from the first one.
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order in which the guest sees them.
    pub nics: Vec<NicSpec>,
    /// What the guest boots with.
    pub firmware: Firmware,
}

/// A disk: an image and how the guest sees it. In JSON the image's `path` and `format` are fields of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "DiskFields", into = "DiskFields")]
pub struct DiskSpec {
    /// The image, by an absolute path.
    pub source: Source,
    /// `[A-Za-z0-9-]{1,36}`. A guest sees the first [`DiskSpec::SERIAL_SEEN`] characters.
    pub serial: String,
    /// Size that the guest sees, in bytes.
    pub size: u64,
    /// The image that is read where `source`, an overlay, holds nothing. It is only read, until the overlay is merged
    /// into it. The overlay's own header names no file.
    pub backing: Option<Source>,
    /// The guest finds no partitions on it: the disk has blocks of [`DiskSpec::OPAQUE_BLOCK`] bytes, among which a GPT
    /// for blocks of 512 bytes is not recognized. For a disk that carries another machine's partitions, including their
    /// names.
    pub opaque: bool,
}

/// A [`DiskSpec`] as `vm.json` has it. Serde cannot both flatten a field and refuse unknown ones.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskFields {
    path: PathBuf,
    format: Format,
    serial: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backing: Option<Source>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    opaque: bool,
}

impl From<DiskFields> for DiskSpec {
    fn from(fields: DiskFields) -> Self {
        let DiskFields { path, format, serial, size, backing, opaque } = fields;
        Self { source: Source::new(path, format), serial, size, backing, opaque }
    }
}

impl From<DiskSpec> for DiskFields {
    fn from(disk: DiskSpec) -> Self {
        let DiskSpec { source, serial, size, backing, opaque } = disk;
        Self { path: source.path().to_owned(), format: source.format(), serial, size, backing, opaque }
    }
}

impl DiskSpec {
    /// How much of a serial number virtio-blk shows (`VIRTIO_BLK_ID_BYTES`).
    pub const SERIAL_SEEN: usize = 20;
    /// Bytes in a block of an opaque disk.
    pub const OPAQUE_BLOCK: u64 = 4096;

    /// A disk of `size` bytes on an image of its own.
    #[must_use]
    pub fn new(source: Source, serial: impl Into<String>, size: u64) -> Self {
        Self { source, serial: serial.into(), size, backing: None, opaque: false }
    }

    /// The same disk with its image as an overlay on `backing`.
    #[must_use]
    pub fn over(self, backing: Source) -> Self {
        Self { backing: Some(backing), ..self }
    }
}

/// A network card on a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Name of a Linux bridge.
    pub switch: String,
    /// `xx:xx:xx:xx:xx:xx` in lower case, unicast.
    pub mac: String,
}

/// OVMF, the build with Secure Boot and SMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    /// The firmware itself.
    pub code: PathBuf,
    /// The variables that a new VM starts with, with Secure Boot keys enrolled.
    pub vars_template: PathBuf,
}

impl Firmware {
    /// The distribution's OVMF with Secure Boot, SMM and Microsoft's keys.
    ///
    /// # Errors
    /// [`Error::Firmware`] when none is installed.
    pub fn find() -> Result<Self> {
        Self::known().find(|f| f.code.is_file() && f.vars_template.is_file()).ok_or(Error::Firmware)
    }

    /// Whether it is a distribution's. The vTPM believes whatever the firmware measures: a file that `vm.json` names could
    /// claim any boot at all, and would get the guest's disk key.
    #[must_use]
    pub fn is_known(&self) -> bool {
        Self::known().any(|known| known == *self)
    }

    fn known() -> impl Iterator<Item = Self> {
        FIRMWARE.iter().map(|(code, vars)| Self { code: code.into(), vars_template: vars.into() })
    }
}

/// Code and variables: where Debian's and Fedora's packages install them.
const FIRMWARE: [(&str, &str); 3] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"),
];

const MEMORY_MIB: std::ops::RangeInclusive<u32> = 64..=1024 * 1024;
const VCPUS: std::ops::RangeInclusive<u32> = 1..=255;
const MAX_DISKS: usize = 64;
const MAX_NICS: usize = 8;
/// The largest disk in bytes: 64 TiB, the limit of VHDX.
const MAX_DISK_SIZE: u64 = 64 << 40;
const SECTOR: u64 = 512;

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Result<T> {
    Err(Error::Spec { field, reason: reason.into() })
}

impl VmSpec {
    /// Checks every rule that the docs of the fields state.
    ///
    /// # Errors
    /// [`Error::Spec`] with the first field that breaks one.
    pub fn validate(&self) -> Result<()> {
        check_name(&self.name)?;
        if !MEMORY_MIB.contains(&self.memory_mib) {
            return refuse("memory_mib", "is outside 64 MiB to 1 TiB");
        }
        if !VCPUS.contains(&self.vcpus) {
            return refuse("vcpus", "is outside 1 to 255");
        }
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return refuse("disks", "must be 1 to 64");
        }
        if self.nics.len() > MAX_NICS {
            return refuse("nics", "must be at most 8");
        }
        let mut seen = HashSet::new();
        for disk in &self.disks {
            disk.validate()?;
            if !seen.insert(disk.serial_seen()) {
                return refuse("disks", "have two serial numbers that look the same to a guest");
            }
        }
        let mut macs = HashSet::new();
        for nic in &self.nics {
            nic.validate()?;
            if !macs.insert(nic.mac.as_str()) {
                return refuse("nics", "have the same MAC address twice");
            }
        }
        check_path("firmware.code", &self.firmware.code)?;
        check_path("firmware.vars_template", &self.firmware.vars_template)
    }
}

impl DiskSpec {
    /// Checks every rule that the docs of the fields state.
    ///
    /// # Errors
    /// [`Error::Spec`] with the first field that breaks one.
    pub fn validate(&self) -> Result<()> {
        check_path("disk path", self.source.path())?;
        if let Some(backing) = &self.backing {
            check_path("disk backing", backing.path())?;
            if self.source.format() != Format::Qcow2 {
                return refuse("disk backing", "is for an overlay, which must be qcow2");
            }
        }
        let serial = self.serial.as_bytes();
        if !(1..=36).contains(&serial.len()) || !serial.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-') {
            return refuse("disk serial", "must be 1 to 36 of A-Z a-z 0-9 and -");
        }
        if self.size == 0 || self.size > MAX_DISK_SIZE || !self.size.is_multiple_of(SECTOR) {
            return refuse("disk size", "must be whole sectors, 512 bytes to 64 TiB");
        }
        if self.opaque && !self.size.is_multiple_of(Self::OPAQUE_BLOCK) {
            return refuse("disk size", "must be whole blocks of 4096 bytes for an opaque disk");
        }
        Ok(())
    }

    /// The part of the serial number that a guest sees.
    pub fn serial_seen(&self) -> &str {
        // ASCII, by `validate`; before that check, a caller may get the whole.
        self.serial.get(..Self::SERIAL_SEEN).unwrap_or(&self.serial)
    }
}

impl NicSpec {
    /// Checks every rule that the docs of the fields state.
    ///
    /// # Errors
    /// [`Error::Spec`] with the first field that breaks one.
    pub fn validate(&self) -> Result<()> {
        check_switch_name(&self.switch)?;
        let octets: Vec<&str> = self.mac.split(':').collect();
        let well_formed = octets.len() == 6
            && octets.iter().all(|o| o.len() == 2 && o.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')));
        if !well_formed {
            return refuse("nic mac", "must be six lower-case hex octets, xx:xx:xx:xx:xx:xx");
        }
        let first = u8::from_str_radix(octets[0], 16).unwrap_or(1);
        if first & 1 == 1 || self.mac == "00:00:00:00:00:00" {
            return refuse("nic mac", "must be a unicast address");
        }
        Ok(())
    }
}

/// Checks a VM's name, which is also the name of a directory: `[a-z0-9][a-z0-9-]{0,62}`.
///
/// # Errors
/// [`Error::Spec`].
pub fn check_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    let ok = (1..=63).contains(&bytes.len())
        && bytes[0] != b'-'
        && bytes.iter().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !ok {
        return refuse("name", "must be 1 to 63 of a-z, 0-9 and -, not starting with -");
    }
    Ok(())
}

/// Checks the name of a bridge: the name of a network interface, which is also a path component.
///
/// # Errors
/// [`Error::Spec`].
pub fn check_switch_name(name: &str) -> Result<()> {
    let ok = (1..=15).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'));
    if !ok {
        return refuse("switch", "must be 1 to 15 of A-Z a-z 0-9 _ . and -, not starting with . or -");
    }
    Ok(())
}

/// Paths go to QEMU inside JSON, so they must be text. They must be absolute, so that QEMU takes none for a protocol
/// (`nbd:...`) or an option.
fn check_path(field: &'static str, path: &Path) -> Result<()> {
    let Some(text) = path.to_str() else {
        return refuse(field, "is not UTF-8");
    };
    if !path.is_absolute() {
        return refuse(field, "is not absolute");
    }
    if text.len() > 4096 || text.chars().any(char::is_control) {
        return refuse(field, "is too long or has control characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            id: Uuid::from_u128(7),
            name: "db-1".into(),
            memory_mib: 512,
            vcpus: 1,
            nested: false,
            policy: Policy::Shielded,
            console_profile: ConsoleProfile::default(),
            disks: vec![DiskSpec::new(Source::new("/vm/a.qcow2", Format::Qcow2), "root", 1 << 30)],
            nics: vec![NicSpec { switch: "br0".into(), mac: "52:54:00:00:00:01".into() }],
            firmware: Firmware { code: "/fw/code".into(), vars_template: "/fw/vars".into() },
        }
    }

    fn raw(path: &str) -> Source {
        Source::new(path, Format::Raw)
    }

    /// As a store has it that an earlier release wrote, and as this one writes it.
    #[test]
    fn disks_in_vm_json_stay_as_they_are() {
        let plain = r#"{"path":"/vm/a.qcow2","format":"qcow2","serial":"root","size":1073741824}"#;
        let overlay = r#"{"path":"/vm/o.qcow2","format":"qcow2","serial":"dd-0","size":4096,"backing":{"path":"/vm/b","format":"vhdx"},"opaque":true}"#;
        let disk = DiskSpec::new(Source::new("/vm/a.qcow2", Format::Qcow2), "root", 1 << 30);
        let mut over = DiskSpec::new(Source::new("/vm/o.qcow2", Format::Qcow2), "dd-0", 4096)
            .over(Source::new("/vm/b", Format::Vhdx));
        over.opaque = true;
        for (text, disk) in [(plain, disk), (overlay, over)] {
            assert_eq!(serde_json::from_str::<DiskSpec>(text).unwrap(), disk);
            assert_eq!(serde_json::to_string(&disk).unwrap(), text);
        }
        for (from, to) in [("\"serial\"", "\"bus\""), ("{\"path\"", "{\"x\":1,\"path\""), ("vhdx", "vmdk")] {
            assert!(serde_json::from_str::<DiskSpec>(&overlay.replace(from, to)).is_err(), "{to}");
        }
        let vm = r#"{"id":"00000000-0000-0000-0000-000000000007","name":"db-1","memory_mib":512,"vcpus":1,
            "nested":false,"policy":"shielded","disks":[{"path":"/vm/a.qcow2","format":"qcow2","serial":"root",
            "size":1073741824}],"nics":[{"switch":"br0","mac":"52:54:00:00:00:01"}],
            "firmware":{"code":"/fw/code","vars_template":"/fw/vars"}}"#;
        assert_eq!(serde_json::from_str::<VmSpec>(vm).unwrap(), spec());
    }

    #[test]
    fn a_good_spec_passes_and_survives_json() {
        let spec = spec();
        spec.validate().unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<VmSpec>(&text).unwrap(), spec);
        assert!(text.contains("\"shielded\""));
    }

    #[test]
    fn a_spec_without_a_console_profile_is_of_2016_and_stays_so() {
        let mut spec = spec();
        let text = serde_json::to_string(&spec).unwrap();
        assert!(!text.contains("console_profile"), "{text}");
        assert_eq!(serde_json::from_str::<VmSpec>(&text).unwrap().console_profile, ConsoleProfile::Server2016);
        spec.console_profile = ConsoleProfile::Server2019;
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains("\"console_profile\":\"2019\""), "{text}");
        assert_eq!(serde_json::from_str::<VmSpec>(&text).unwrap(), spec);
        assert!(serde_json::from_str::<VmSpec>(&text.replace("2019", "2022")).is_err());
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut value = serde_json::to_value(spec()).unwrap();
        value["vnc"] = true.into();
        assert!(serde_json::from_value::<VmSpec>(value).is_err());
    }

    #[test]
    fn every_rule_has_a_breaker() {
        type Break = fn(&mut VmSpec);
        let cases: &[(&str, Break)] = &[
            ("name", |s| s.name = "-x".into()),
            ("name", |s| s.name = "X".into()),
            ("name", |s| s.name = String::new()),
            ("name", |s| s.name = "a".repeat(64)),
            ("memory_mib", |s| s.memory_mib = 63),
            ("memory_mib", |s| s.memory_mib = 1024 * 1024 + 1),
            ("vcpus", |s| s.vcpus = 0),
            ("disks", |s| s.disks.clear()),
            ("disks", |s| {
                let mut twin = s.disks[0].clone();
                s.disks[0].serial = "a".repeat(20) + "1";
                twin.serial = "a".repeat(20) + "2";
                s.disks.push(twin);
            }),
            ("disks", |s| s.disks = vec![s.disks[0].clone(); 65]),
            ("disk serial", |s| s.disks[0].serial = "a,b".into()),
            ("disk serial", |s| s.disks[0].serial = String::new()),
            ("disk serial", |s| s.disks[0].serial = "a".repeat(37)),
            ("disk size", |s| s.disks[0].size = 0),
            ("disk size", |s| s.disks[0].size = 513),
            ("disk size", |s| s.disks[0].size = u64::MAX),
            ("disk path", |s| s.disks[0].source = raw("nbd:host")),
            ("disk backing", |s| s.disks[0].backing = Some(raw("nbd:host"))),
            ("disk backing", |s| {
                s.disks[0].backing = Some(raw("/vm/base.raw"));
                s.disks[0].source = raw("/vm/a.raw");
            }),
            ("disk size", |s| {
                s.disks[0].opaque = true;
                s.disks[0].size += 512;
            }),
            ("disk path", |s| s.disks[0].source = raw("/a\nb")),
            ("switch", |s| s.nics[0].switch = "../../etc".into()),
            ("switch", |s| s.nics[0].switch = "a".repeat(16)),
            ("switch", |s| s.nics[0].switch = "br0,x".into()),
            ("nic mac", |s| s.nics[0].mac = "01:00:5e:00:00:01".into()),
            ("nic mac", |s| s.nics[0].mac = "52:54:00:00:00".into()),
            ("nic mac", |s| s.nics[0].mac = "52:54:00:00:00:0G".into()),
            ("nics", |s| s.nics.push(s.nics[0].clone())),
            ("firmware.code", |s| s.firmware.code = "code".into()),
        ];
        for (field, break_it) in cases {
            let mut broken = spec();
            break_it(&mut broken);
            match broken.validate() {
                Err(Error::Spec { field: f, .. }) => assert_eq!(f, *field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
