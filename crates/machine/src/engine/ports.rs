//! The PCIe root ports. Every disk and network card sits behind a port of its own, so that each can be unplugged.

use serde_json::{Value, json};

/// How many disks can be attached to a running VM at the same time: an RG disk, and the overlays of one VM.
pub const HOT_PORTS: usize = 8;
/// Eight root ports share a PCI slot, from this slot on; slot 1 has the random number device.
const FIRST_SLOT: usize = 2;
const PORTS_PER_SLOT: usize = 8;

/// What is plugged into the port names it as its bus.
pub(crate) fn bus(port: usize) -> String {
    format!("port{port}")
}

/// QEMU's description of a root port.
pub(crate) fn root_port(port: usize) -> Value {
    let (slot, function) = (FIRST_SLOT + port / PORTS_PER_SLOT, port % PORTS_PER_SLOT);
    json!({
        "driver": "pcie-root-port",
        "id": bus(port),
        "bus": "pcie.0",
        "addr": format!("{slot:#x}.{function:#x}"),
        "multifunction": function == 0,
        "chassis": port + 1,
        "io-reserve": 0,
    })
}
