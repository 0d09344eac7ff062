//! What must hold of whatever comes from outside holds of the examples that the fuzzers begin with.

#![expect(clippy::expect_used, reason = "a test")]
#![expect(clippy::print_stderr, reason = "which example it is that breaks")]

use std::path::Path;

fn each(folder: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut examples = 0;
    for file in std::fs::read_dir(&folder).expect("the folder is there") {
        let file = file.expect("it can be listed").path();
        eprintln!("{}", file.display());
        holds(&std::fs::read(&file).expect("it can be read"));
        examples += 1;
    }
    assert!(examples > 0, "no examples in {}", folder.display());
}

#[test]
fn any_secret_is_read_without_harm() {
    each("corpus/secret", fuzz::secret::holds);
    each("../check/good", fuzz::secret::holds);
    each("../check/bad", fuzz::secret::holds);
}

#[test]
fn any_services_are_translated_alike_in_any_order() {
    each("corpus/services", fuzz::services::holds);
}

#[test]
fn any_answers_of_the_api_are_survived() {
    each("corpus/api", fuzz::api::holds);
}
