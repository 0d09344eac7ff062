//! What a person sees: a story, line by line, and below it, on a terminal, a table that is drawn over and over.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

/// The story and the table, on stdout.
#[derive(Default)]
pub struct Screen {
    drawn: Mutex<Drawn>,
}

#[derive(Default)]
struct Drawn {
    table: Vec<String>,
    key: String,
}

impl Screen {
    /// Adds a line to the story.
    pub fn tell(&self, line: &str) {
        let Ok(drawn) = self.drawn.lock() else { return };
        erase(drawn.table.len());
        put(&format!("{line}\n"));
        put(&text(&drawn.table));
    }

    /// Draws the table. Without a terminal its lines join the story, whenever `key` has changed.
    pub fn table(&self, lines: Vec<String>, key: String) {
        let Ok(mut drawn) = self.drawn.lock() else { return };
        if std::io::stdout().is_terminal() {
            erase(drawn.table.len());
            put(&text(&lines));
            drawn.table = lines;
        } else if drawn.key != key {
            put(&text(&lines));
            drawn.key = key;
        }
    }

    /// Leaves the last table as it stands.
    pub fn let_go(&self) {
        if let Ok(mut drawn) = self.drawn.lock() {
            drawn.table.clear();
        }
    }
}

/// A line on stderr.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "lab: {line}");
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn erase(lines: usize) {
    if lines > 0 {
        put(&format!("\x1b[{lines}A\x1b[J"));
    }
}

/// Nobody reads any more (a closed pipe): the show goes on, the measurements still decide the exit code.
fn put(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
