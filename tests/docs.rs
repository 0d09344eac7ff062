//! What the documentation says is there, is there.

#![expect(clippy::expect_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Documents that name tests, each as `` `its_name` ``.
const NAMING: [&str; 2] = ["docs/invariants.md", "docs/peers.md"];

/// All names of functions in the Rust files below `folder`.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("it can be read");
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let after = text.split("fn ").skip(1);
            names.extend(after.map(|rest| rest.chars().take_while(|c| word(*c)).collect::<String>()));
        }
    }
}

/// Words in backticks that can only be a test's name: lower case, of three words or more.
fn tests_named_in(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.split('_').count() > 2 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let no_metric = |word: &&str| !word.starts_with("wirevip_");
    text.split('`').skip(1).step_by(2).filter(is_name).filter(no_metric).collect()
}

#[test]
fn every_test_that_the_documentation_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    for folder in ["src", "tests", "lab/src", "lab/tests"] {
        functions(&root.join(folder), &mut known);
    }
    for document in NAMING {
        let text = fs::read_to_string(root.join(document)).expect("it can be read");
        let named = tests_named_in(&text);
        assert!(named.len() > 10, "{document} names {} tests", named.len());
        let missing: Vec<&str> = named.into_iter().filter(|name| !known.contains(*name)).collect();
        assert!(missing.is_empty(), "{document} names tests that are not there: {missing:#?}");
    }
}

#[test]
fn each_of_the_24_points_names_a_test() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/peers.md")).expect("it is there");
    for point in 1..=24 {
        let start = format!("| {point} |");
        let line = text.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no point {point}"));
        assert!(!tests_named_in(line).is_empty(), "point {point} names no test");
    }
}
