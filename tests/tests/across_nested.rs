//! A whole recovery with a real nested guest, with the damaged VM on one host and its garage, which runs, on another: the RG
//! disk is carried there and back as a file.

use anyhow::Result;
use drydock_tests::story::Recovery;

#[test]
fn a_whole_recovery_across_two_hosts() -> Result<()> {
    let mut recovery = Recovery::prepare_across()?;
    let told = recovery.run();
    recovery.conclude(told)
}
