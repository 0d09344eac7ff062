//! `wirevip check` as a person runs it: each example in `tests/check/` beside what it prints.
//!
//! After a change of words: in `tests/check`, `wirevip check -f good/x.yaml > good/x.yaml.out`, and read the diff.

#![allow(clippy::unwrap_used, reason = "a test's helpers are part of the test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check")
}

fn wirevip() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirevip"));
    command.current_dir(examples()).env_clear().stdin(Stdio::null());
    command
}

fn check(arguments: &[&str]) -> Output {
    wirevip().arg("check").args(arguments).output().unwrap()
}

/// Exit code and stdout for what is given on standard input.
fn check_stdin(arguments: &[&str], input: &[u8]) -> (Option<i32>, String) {
    let mut command = wirevip();
    command.arg("check").args(["-f", "-"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let written = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    written.unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// `directory/name` of each example.
fn names(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(examples().join(directory)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> = names.filter(|name| !name.ends_with(".out")).collect();
    assert!(!names.is_empty(), "no examples in {directory}");
    names.into_iter().map(|name| format!("{directory}/{name}")).collect()
}

fn each_example_prints_what_stands_beside_it(directory: &str, code: i32) {
    let mut wrong = String::new();
    for name in names(directory) {
        let expected = std::fs::read_to_string(examples().join(format!("{name}.out"))).unwrap_or_default();
        let output = check(&["-f", &name]);
        let printed = String::from_utf8(output.stdout).unwrap();
        if printed != expected || output.status.code() != Some(code) {
            let status = output.status.code();
            writeln!(wrong, "{name}: exit {status:?}\n--- printed\n{printed}--- expected\n{expected}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn each_good_example_is_sound_and_tells_who_exposes_the_api_server() {
    each_example_prints_what_stands_beside_it("good", 0);
}

#[test]
fn each_bad_example_has_exactly_the_expected_faults() {
    each_example_prints_what_stands_beside_it("bad", 2);
}

#[test]
fn json_tells_the_same_faults_as_text() {
    for name in names("bad").into_iter().chain(names("good")) {
        let output = check(&["-f", &name, "-o", "json"]);
        let faults: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut lines = String::new();
        for fault in faults.as_array().unwrap() {
            let keys: Vec<&String> = fault.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["file", "fix", "key", "line", "message", "tunnel"], "{name}");
            let text = |key: &str| fault[key].as_str();
            let place = match (text("tunnel"), text("key")) {
                (Some(tunnel), Some(key)) => format!("{tunnel}.{key}: "),
                (Some(one), None) | (None, Some(one)) => format!("{one}: "),
                (None, None) => String::new(),
            };
            let (file, message, fix) = (text("file").unwrap(), text("message").unwrap(), text("fix").unwrap());
            writeln!(lines, "{file}:{}: {place}{message}; {fix}", fault["line"]).unwrap();
        }
        let expected = std::fs::read_to_string(examples().join(format!("{name}.out"))).unwrap();
        let (expected, code) = if name.starts_with("good") { ("", 0) } else { (expected.as_str(), 2) };
        assert_eq!(lines, expected, "{name}");
        assert_eq!(output.status.code(), Some(code), "{name}");
    }
}

#[test]
fn standard_input_is_read_as_a_file_called_dash() {
    let input = std::fs::read(examples().join("bad/one-of-two.yaml")).unwrap();
    let expected = std::fs::read_to_string(examples().join("bad/one-of-two.yaml.out")).unwrap();
    assert_eq!(check_stdin(&[], &input), (Some(2), expected.replace("bad/one-of-two.yaml", "-")));
}

#[test]
fn a_document_over_one_mebibyte_is_one_fault() {
    let mut input = std::fs::read(examples().join("good/minimal.yaml")).unwrap();
    assert_eq!(check_stdin(&[], &input).0, Some(0));
    input.resize(1 << 20, b'\n');
    assert_eq!(check_stdin(&[], &input).0, Some(0));
    input.push(b'\n');
    let (code, printed) = check_stdin(&[], &input);
    assert_eq!((code, printed.lines().count()), (Some(2), 1), "{printed}");
    assert!(printed.starts_with("-:1: the document is larger than 1 MiB; "), "{printed}");
}

#[test]
fn a_file_that_is_too_large_to_be_read_is_one_fault() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("too-large.yaml");
    let name = path.to_str().unwrap();
    // Of holes: it takes no room.
    std::fs::File::create(&path).unwrap().set_len((16 << 20) + 1).unwrap();
    let outputs = [check(&["-f", name]), check(&["-f", name, "-o", "json"])];
    std::fs::remove_file(&path).unwrap();
    let [text, json] = outputs.map(|output| (output.status.code(), String::from_utf8(output.stdout).unwrap()));
    let fault = "the file is larger than 16 MiB; keep each Secret, of 1 MiB at most, in a file of its own";
    assert_eq!(text, (Some(2), format!("{name}:1: {fault}\n")));
    let faults: serde_json::Value = serde_json::from_str(&json.1).unwrap();
    assert_eq!((json.0, faults.as_array().unwrap().len(), &faults[0]["line"]), (Some(2), 1, &serde_json::json!(1)));
}

#[test]
fn a_mebibyte_of_aliases_is_one_fault() {
    // Many aliases of one value, a chain of aliases, and one of merge keys: each would grow without bound.
    let many = format!("a: &a [x, x, x, x]\nb: [{}]\n", vec!["*a"; 200_000].join(", "));
    let link = |form: fn(usize) -> String| (1..20_000).map(form).collect::<String>();
    let chain = format!("a0: &a0 [x]\n{}", link(|i| format!("a{i}: &a{i} [*a{}]\n", i - 1)));
    let merges = format!("a0: &a0 {{x: y}}\n{}", link(|i| format!("a{i}: &a{i} {{<<: *a{}}}\n", i - 1)));
    for input in [many, chain, merges] {
        let (code, printed) = check_stdin(&[], input.as_bytes());
        assert_eq!((code, printed.lines().count()), (Some(2), 1), "{printed}");
        assert!(
            printed.contains("aliases blow this document up") || printed.contains("nested too deeply"),
            "{printed}"
        );
    }
}

#[test]
fn a_secret_as_kubectl_prints_it_is_read_in_every_form() {
    let document = std::fs::read_to_string(examples().join("good/full.yaml")).unwrap();
    let long = format!("{}{document}", "# to make it longer than a simple key may be\n".repeat(100));
    let secret =
        serde_json::json!({"kind": "Secret", "apiVersion": "v1", "stringData": {"tunnels": long}, "x": [1, null]});
    let pretty = serde_json::to_string_pretty(&secret).unwrap();
    let with_tabs = |line: &str| {
        let text = line.trim_start();
        format!("{}{text}\n", "\t".repeat((line.len() - text.len()) / 2))
    };
    let tabs = pretty.lines().map(with_tabs).collect();
    for form in [secret.to_string(), tabs, format!("---\n{pretty}\n---\n")] {
        let (code, printed) = check_stdin(&[], form.as_bytes());
        assert_eq!(code, Some(0), "{form}\n{printed}");
        assert!(printed.contains("2 sound tunnels"), "{printed}");
    }
}

#[test]
fn a_document_in_a_manifest_has_its_faults_at_the_lines_of_the_manifest() {
    let header = "apiVersion: v1\nkind: Secret\nstringData:\n  tunnels: |\n";
    let mut seen = 0;
    for name in names("bad") {
        let Ok(document) = std::fs::read_to_string(examples().join(&name)) else { continue };
        if document.contains("kind: ") || document.trim().is_empty() || document.contains('\0') {
            continue;
        }
        let indented: String = document.lines().map(|line| format!("    {line}\n")).collect();
        let faults = |input: &str| -> serde_json::Value {
            serde_json::from_str(&check_stdin(&["-o", "json"], input.as_bytes()).1).unwrap()
        };
        // Lines that a message names move too: leave messages with one out.
        let places = |faults: serde_json::Value, shift: u64| -> Vec<(u64, String)> {
            let place = |fault: &serde_json::Value| {
                let message = fault["message"].as_str().filter(|message| !message.contains("line "));
                let (tunnel, key) = (&fault["tunnel"], &fault["key"]);
                (fault["line"].as_u64().unwrap() + shift, format!("{tunnel} {key} {message:?}"))
            };
            faults.as_array().unwrap().iter().map(place).collect()
        };
        assert_eq!(places(faults(&document), 4), places(faults(&format!("{header}{indented}")), 0), "{name}");
        seen += 1;
    }
    assert!(seen > 15, "only {seen} examples");
}

#[test]
fn tunnel_256_is_one_too_many() {
    let keys = std::fs::read_to_string(examples().join("good/minimal.yaml")).unwrap();
    let peer = keys.lines().nth(3).unwrap();
    let mut document = String::new();
    for number in 0..256 {
        use base64::Engine;
        let key = base64::engine::general_purpose::STANDARD.encode([number as u8, 7].repeat(16));
        writeln!(document, "t{number}:\n  vip: 10.0.1.{number}\n  privateKey: {key}\n{peer}\n  peerEndpoint: h:1")
            .unwrap();
    }
    let (code, printed) = check_stdin(&[], document.as_bytes());
    assert_eq!((code, printed.as_str()), (Some(2), "-:1276: t255: this is tunnel 256; keep at most 255\n"));
}

#[test]
fn of_very_many_faults_a_thousand_are_told_and_the_rest_is_counted() {
    let keys: String = (0..1500).map(|number| format!("  k{number}: x\n")).collect();
    let (code, printed) = check_stdin(&[], format!("wg0:\n{keys}").as_bytes());
    assert_eq!((code, printed.lines().count()), (Some(2), 1001));
    // 1,500 unknown keys and 4 missing ones.
    let last = printed.lines().last().unwrap();
    assert_eq!(last, "-:1001: wg0: 504 more faults are not shown; correct those above first");
}

#[test]
fn what_cannot_be_read_fails_and_says_which_file() {
    let output = check(&["-f", "absent.yaml"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("absent.yaml") && stderr.contains("No such file"), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_usage_exits_with_2_and_says_everything_at_once() {
    for arguments in [&["check"][..], &["check", "-f", "x", "-o", "yaml"], &["completion", "klingon"], &["fly"], &[]] {
        assert_eq!(wirevip().args(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
    let flags = ["--lease-duration=4s", "--log-level=loud", "--secret-name=No", "--pod-uid=u", "--node-name=n"];
    let output = wirevip().arg("run").args(flags).env("POD_NAME", "p").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for said in
        ["--lease-duration, --renew-deadline, --retry-period: ", "a lease of 4s", "`loud`", "`No`", "POD_NAMESPACE"]
    {
        assert!(stderr.contains(said), "{said} is not in {stderr}");
    }
    for not_said in ["POD_NAME from", "POD_UID", "NODE_NAME"] {
        assert!(!stderr.contains(not_said), "{not_said} is in {stderr}");
    }
}

#[test]
fn an_environment_variable_does_what_its_flag_does() {
    for (variable, value) in
        [("WIREVIP_LEASE_DURATION", "5"), ("WIREVIP_CONTROL_PLANE", "perhaps"), ("WIREVIP_HTTP_ADDR", ":9586")]
    {
        let output = wirevip().arg("run").env(variable, value).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&format!("'{value}'")), "{stderr}");
    }
}
