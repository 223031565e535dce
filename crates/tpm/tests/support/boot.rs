//! A machine's TPM: swtpm, started by the test, with a boot measured into it and the log of that boot.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use tempfile::TempDir;

const EV_S_CRTM_VERSION: u32 = 8;
const EV_SEPARATOR: u32 = 4;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_EFI_ACTION: u32 = 0x8000_0007;

/// What firmware measures, in order: PCR, type, data.
pub type Measurement = (u32, u32, Vec<u8>);

/// A boot with Secure Boot on or off.
pub fn boot(secure_boot: bool) -> Vec<Measurement> {
    let variable = |name: &str, data: &[u8]| {
        let guid = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
        let mut event = guid.to_vec();
        event.extend_from_slice(&(name.len() as u64).to_le_bytes());
        event.extend_from_slice(&(data.len() as u64).to_le_bytes());
        event.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
        event.extend_from_slice(data);
        (7, EV_EFI_VARIABLE_DRIVER_CONFIG, event)
    };
    let mut events = vec![
        (0, EV_S_CRTM_VERSION, b"1\0.\x000\0\0\0".to_vec()),
        variable("SecureBoot", &[u8::from(secure_boot)]),
        variable("PK", b"the platform's key"),
        variable("KEK", b"the keys' keys"),
    ];
    events.extend((0..8).map(|pcr| (pcr, EV_SEPARATOR, vec![0; 4])));
    events.push((4, EV_EFI_ACTION, b"Calling EFI Application from Boot Option".to_vec()));
    events.push((8, 13, b"grub_cmd: linux".to_vec()));
    events
}

pub fn debug_mode() -> Measurement {
    (7, EV_EFI_ACTION, b"UEFI Debug Mode".to_vec())
}

/// The log of these measurements, in the crypto-agile format with SHA-1 and SHA-256.
pub fn log(measurements: &[Measurement]) -> Vec<u8> {
    let mut log = Vec::new();
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
    spec.extend_from_slice(&2_u32.to_le_bytes());
    for (algorithm, size) in [(4_u16, 20_u16), (11, 32)] {
        spec.extend_from_slice(&algorithm.to_le_bytes());
        spec.extend_from_slice(&size.to_le_bytes());
    }
    spec.push(0);
    log.extend_from_slice(&[0, 0, 0, 0, 3, 0, 0, 0]);
    log.extend_from_slice(&[0; 20]);
    log.extend_from_slice(&(spec.len() as u32).to_le_bytes());
    log.extend_from_slice(&spec);
    for (pcr, kind, data) in measurements {
        for number in [*pcr, *kind, 2] {
            log.extend_from_slice(&number.to_le_bytes());
        }
        log.extend_from_slice(&4_u16.to_le_bytes());
        log.extend_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, data).as_ref());
        log.extend_from_slice(&11_u16.to_le_bytes());
        log.extend_from_slice(digest(&SHA256, data).as_ref());
        log.extend_from_slice(&(data.len() as u32).to_le_bytes());
        log.extend_from_slice(data);
    }
    log
}

/// A running swtpm. It ends with this value.
pub struct Machine {
    process: Child,
    pub tcti: String,
    pub folder: TempDir,
}

impl Machine {
    /// A TPM of its own, with `measurements` in its PCRs and their log in a file.
    pub fn start(measurements: &[Measurement]) -> Self {
        // swtpm takes no port 0, and its control port is the next one: try until both were free.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let Some(control) = port.checked_add(1) else { continue };
            let folder = tempfile::tempdir().unwrap();
            let state = folder.path().join("state");
            fs::create_dir(&state).unwrap();
            let process = Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
                .arg(format!("dir={}", state.display()))
                .args(["--server", &format!("type=tcp,bindaddr=127.0.0.1,port={port}")])
                .args(["--ctrl", &format!("type=tcp,bindaddr=127.0.0.1,port={control}")])
                .stderr(Stdio::null())
                .spawn()
                .expect("swtpm is among the packages that scripts/bootstrap installs");
            let mut machine = Machine { process, tcti: format!("swtpm:host=127.0.0.1,port={port}"), folder };
            if machine.answers() {
                for (pcr, _, data) in measurements {
                    machine.extend(*pcr, data);
                }
                fs::write(machine.log_file(), log(measurements)).unwrap();
                return machine;
            }
        }
        panic!("swtpm found no free ports");
    }

    /// Measures one more thing, which is not in the log.
    pub fn extend(&self, pcr: u32, data: &[u8]) {
        let value: String = digest(&SHA256, data).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let sha1: String =
            digest(&SHA1_FOR_LEGACY_USE_ONLY, data).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(self.tool("tpm2_pcrextend", &[&format!("{pcr}:sha1={sha1},sha256={value}")]));
    }

    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("binary_bios_measurements")
    }

    /// Runs one of tpm2-tools against this TPM, in its directory.
    pub fn tool(&self, tool: &str, arguments: &[&str]) -> bool {
        Command::new(tool)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", &self.tcti)
            .env("TSS2_LOG", "all+NONE")
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("tpm2-tools is a package of Debian")
            .success()
    }

    /// The output of one of them.
    pub fn says(&self, tool: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(tool);
        command.args(arguments).env("TPM2TOOLS_TCTI", &self.tcti).env("TSS2_LOG", "all+NONE");
        let output = command.output().expect("tpm2-tools is a package of Debian");
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if self.tool("tpm2_getrandom", &["4"]) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
