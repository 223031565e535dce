//! libFuzzer with every target in it. The target is named by `DRYDOCK_FUZZ`, because libFuzzer has the arguments;
//! `seeds` writes the seeds of all targets and prints their names. `fuzz/run` is what people call.

#![no_main]
// A mistake in the environment ends the process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::OnceLock;

use drydock_fuzz::{Target, World, target, write_seeds};

#[cfg(not(debug_assertions))]
compile_error!("fuzz with debug assertions and overflow checks: build in the dev profile");

/// The target, and what it needs; none where seeds were all that was wanted.
static CHOSEN: OnceLock<Option<(&'static Target, World)>> = OnceLock::new();

fn choose() -> Option<(&'static Target, World)> {
    let variable = |name| std::env::var(name).expect("DRYDOCK_FUZZ and DRYDOCK_FUZZ_DIR say what to fuzz and where");
    let (name, folder) = (variable("DRYDOCK_FUZZ"), PathBuf::from(variable("DRYDOCK_FUZZ_DIR")));
    let world = World::open(&folder.join("keys")).expect("keys can be kept in DRYDOCK_FUZZ_DIR");
    if name == "seeds" {
        let names = write_seeds(&world, &folder.join("corpus")).expect("seeds can be written to DRYDOCK_FUZZ_DIR");
        println!("{}", names.join("\n"));
        return None;
    }
    Some((target(&name).expect("DRYDOCK_FUZZ names a target"), world))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((target, world)) = CHOSEN.get_or_init(choose) {
        // libFuzzer keeps what finds something new, accepted or not.
        let _ = (target.run)(world, bytes);
    }
});
