//! `lab referee`: judges a record again, and prints it for a person. Needs neither root nor a world.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use lab::record::Record;
use lab::referee::judge;

use super::screen::Screen;

/// Exit code 1 if two were heard who may not be.
pub fn run(path: &Path) -> Result<ExitCode> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let record = Record::from_text(&text).with_context(|| format!("{} is no record", path.display()))?;
    let judgement = judge(&record);
    Screen::default().tell(judgement.story().trim_end());
    Ok(if judgement.faults().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
