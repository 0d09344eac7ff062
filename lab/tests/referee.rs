//! `lab referee`: a record from a file, judged again and printed.

use std::process::Command;

use anyhow::Result;

const SOUND: &str = "\
wirevip-record 1 hold=false detour=0.000000
0.000000 0 lease node1
0.010000 0 > 203.0.113.1:20100 initiation 148 00000001 -
0.011000 0 < 203.0.113.1:20100 response 92 00000002 00000001
0.012000 0 > 203.0.113.1:20100 data 32 - 00000002
";

/// What it prints about a file, and its exit code.
fn referee(text: &str) -> Result<(String, Option<i32>)> {
    let file = std::env::temp_dir().join(format!("lab-referee-{}-{}", std::process::id(), text.len()));
    std::fs::write(&file, text)?;
    let output = Command::new(env!("CARGO_BIN_EXE_lab")).arg("referee").arg(&file).output();
    std::fs::remove_file(&file)?;
    let output = output?;
    let said = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8_lossy(&said).into_owned(), output.status.code()))
}

#[test]
fn a_record_is_judged_again_and_the_exit_code_says_how() -> Result<()> {
    let (said, code) = referee(SOUND)?;
    assert!(said.contains("node 1: 1 initiation, 1 packet of data") && said.contains("all as it may be"), "{said}");
    assert_eq!(code, Some(0));
    let (said, code) = referee(&format!("{SOUND}0.500000 0 > 203.0.113.1:50000 initiation 148 00000003 -\n"))?;
    assert!(said.contains("! a stranger at 203.0.113.1:50000 beside node 1: 1 initiation"), "{said}");
    assert_eq!(code, Some(1));
    let (said, code) = referee("no record\n")?;
    assert!(said.contains("is no record"), "{said}");
    assert_eq!(code, Some(1));
    Ok(())
}
