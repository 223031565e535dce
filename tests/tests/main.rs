//! The tests on whole fabrics, in one program, so that what they share is compiled and linked once. Each makes its own
//! fabric; two can run at the same time.

mod across;
mod across_checks;
mod across_faults;
mod across_nested;
mod checks;
mod consent;
mod crashes;
mod doctor;
mod documents;
mod faults;
mod formats;
mod garage_faults;
mod handback;
mod measured_boot;
mod migration;
mod offline;
mod proof;
mod protectors;
mod recovery;
mod session;
mod together;

/// A file that is no module here would be a test that never runs.
#[test]
fn every_file_is_a_module() -> anyhow::Result<()> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let module = name.trim_end_matches(".rs");
        let known = include_str!("main.rs").lines().any(|line| line == format!("mod {module};"));
        anyhow::ensure!(known || module == "main", "tests/tests/{name} is not a module of main.rs");
    }
    Ok(())
}
