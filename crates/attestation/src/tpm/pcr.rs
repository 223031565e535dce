//! Platform configuration registers.

/// The value of a PCR in the SHA-256 bank.
pub type Pcr = [u8; 32];

/// The PCRs that are quoted: those that firmware, shim and boot loader measure into and log. An operating system
/// continues to extend the others (10 by IMA, 11 and 15 by systemd), outside of the firmware's log.
pub const QUOTED: [u32; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14];
