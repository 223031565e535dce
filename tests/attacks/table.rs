//! docs/threat-model.md and the tests that it names are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::suite::{Row, Suite};

const ROWS: &[Row<Vec<&'static str>>] = &[Row {
    name: "the_table_names_every_test_and_every_test_it_names_exists",
    attacker: "time",
    holds: "docs/threat-model.md",
    tries: "a link to a test that was renamed or is gone; a row of this suite without a line there",
    must: "each link leads to a test, each row has a link",
    control: "a link to a test that does not exist is noticed",
    run: compare,
}];

pub(crate) fn run(suite: &mut Suite) {
    let names = suite.names();
    suite.group("table", ROWS, || Ok(names), |_| Ok(()));
}

fn compare(rows: &mut Vec<&'static str>) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = root.join("docs/threat-model.md");
    let links = links(&fs::read_to_string(&file).with_context(|| file.display().to_string())?);
    ensure!(links.len() > rows.len(), "too few links are found in {}", file.display());
    let docs = root.join("docs");
    for (test, target) in &links {
        exists(&docs, test, target)?;
    }
    for row in rows {
        let target = links.get(*row).with_context(|| format!("docs/threat-model.md has no line for {row}"))?;
        ensure!(target.starts_with("../tests/attacks/"), "{row} is linked to {target}");
    }
    ensure!(exists(&docs, "no_such_test", "../tests/attacks/table.rs").is_err(), "the control");
    Ok(())
}

/// Markdown links to Rust files: the text, which is a test's name, and the target.
fn links(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for part in text.split('[').skip(1) {
        if let Some((name, rest)) = part.split_once("](")
            && let Some((target, _)) = rest.split_once(')')
            && target.ends_with(".rs")
        {
            found.insert(name.to_owned(), target.to_owned());
        }
    }
    found
}

/// That a file has a test of this name: a function, or a row of this suite.
fn exists(docs: &Path, test: &str, target: &str) -> Result<()> {
    let file: PathBuf = docs.join(target);
    let code = fs::read_to_string(&file).with_context(|| format!("docs/threat-model.md leads to {target}"))?;
    let row = target.starts_with("../tests/attacks/") && code.contains(&format!("name: \"{test}\""));
    let lines: Vec<&str> = code.lines().collect();
    let function = lines.iter().enumerate().any(|(number, line)| {
        line.trim_start().trim_start_matches("async ").starts_with(&format!("fn {test}("))
            // Its attribute is above it, over a doc comment or further attributes.
            && lines[..number].iter().rev().take(4).any(|above| above.contains("test]") || above.contains("proptest!"))
    });
    ensure!(row || function, "docs/threat-model.md names {test}, which {target} does not have");
    Ok(())
}
