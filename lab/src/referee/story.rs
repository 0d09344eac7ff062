//! A judgement for a person: a line for each turn and for each time that two were heard, in order.

use std::fmt;
use std::time::Duration;

use super::{Count, Judgement, Return, Together, Turn};
use crate::record::seconds;

/// For people.
pub(super) fn milliseconds(length: Duration) -> String {
    format!("{:.1} ms", length.as_secs_f64() * 1000.0)
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { initiations, responses, data } = *self;
        let many = |count: usize, one: &str, many: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            _ => Some(format!("{count} {many}")),
        };
        let parts = [
            many(initiations, "initiation", "initiations"),
            many(responses, "response", "responses"),
            many(data, "packet of data", "packets of data"),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// A line of the story, and when its interval began and ended.
struct Line {
    tunnel: usize,
    from: Duration,
    to: Duration,
    text: String,
}

impl Judgement {
    /// The whole story, tunnel by tunnel: from, to, how long, who. What may not be is marked with `!`.
    pub fn story(&self) -> String {
        let mut lines = Vec::new();
        for Turn { tunnel, who, from, to, packets } in &self.turns {
            lines.push(Line { tunnel: *tunnel, from: *from, to: *to, text: format!("  {who}: {packets}") });
        }
        for Together { tunnel, turn, beside, from, to, packets, fault } in &self.together {
            let text = format!("{} {beside} beside {turn}: {packets}{}", mark(*fault), because(*fault));
            lines.push(Line { tunnel: *tunnel, from: *from, to: *to, text });
        }
        for Return { tunnel, turn, back, from, to, packets, fault } in &self.returns {
            let text =
                format!("{} the hub back at {back}, not at {turn}: {packets} packets{}", mark(*fault), because(*fault));
            lines.push(Line { tunnel: *tunnel, from: *from, to: *to, text });
        }
        lines.sort_by_key(|line| (line.tunnel, line.from));
        let mut story = String::new();
        let mut tunnel = None;
        for line in lines {
            if tunnel.replace(line.tunnel) != Some(line.tunnel) {
                story += &format!("tunnel {}\n{:>12} {:>12} {:>12}\n", line.tunnel, "from", "to", "for (s)");
            }
            let times = [line.from, line.to, line.to - line.from].map(seconds);
            story += &format!("{:>12} {:>12} {:>12} {}\n", times[0], times[1], times[2], line.text);
        }
        let faults = self.faults().len();
        story
            + &format!(
                "{} turns; two heard together {} times; the hub went back {} times; {}\n",
                self.turns.len(),
                self.together.len(),
                self.returns.len(),
                if faults == 0 { "all as it may be".to_owned() } else { format!("{faults} against the rules (!)") }
            )
    }
}

fn mark(fault: Option<&str>) -> char {
    if fault.is_some() { '!' } else { ' ' }
}

fn because(fault: Option<&str>) -> String {
    fault.map_or_else(String::new, |fault| format!(" ({fault})"))
}
