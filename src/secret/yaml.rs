//! YAML text in, a tree of nodes with their lines out.
//!
//! What must hold: duplicate keys and the way a scalar was written stay visible, so that the reader above can report
//! them; aliases share their target instead of copying it, so that no document grows beyond its bounds; no message
//! quotes the document, since it holds keys.

use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};
use zeroize::Zeroizing;

/// Nodes that aliases may add to a document, as if each were written out.
const ALIASED_NODES: usize = 20_000;

/// Collections within collections, aliases counted. Also bounds every recursion over a tree.
const DEPTH: usize = 64;

/// One value, with the line (from 1) where it starts.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
    /// Nodes in this tree, aliases written out.
    weight: usize,
    /// Collections within each other, this one counted.
    depth: usize,
}

/// A key and its value, in the order of the document.
pub(crate) type Entry = (Rc<Node>, Rc<Node>);

#[derive(Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
    /// Anything under a tag outside the core schema (`!vault`, `!!binary`).
    Tagged,
}

/// Text and how it was written.
pub(crate) struct Scalar {
    pub(crate) text: Zeroizing<String>,
    pub(crate) style: Style,
}

impl std::fmt::Debug for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scalar({:?}, …)", self.style)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    /// Its type follows from its text.
    Plain,
    /// Text, whatever it looks like.
    Quoted,
    /// A block scalar (`|`): each line of it is a line of the document; `line` is its first one that is not empty.
    Literal,
    /// A folded block scalar (`>`): some lines of the document may have become one; `line` is as for `Literal`.
    Folded,
}

/// What a plain scalar is by the YAML 1.2 core schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    /// `None`: larger than any number we take.
    Integer(Option<i64>),
    Float,
    Text,
}

impl Scalar {
    pub(crate) fn kind(&self) -> Kind {
        if self.style != Style::Plain {
            return Kind::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
            "true" | "True" | "TRUE" => return Kind::Bool(true),
            "false" | "False" | "FALSE" => return Kind::Bool(false),
            ".nan" | ".NaN" | ".NAN" => return Kind::Float,
            _ => {}
        }
        for (prefix, radix) in [("0o", 8), ("0x", 16)] {
            if let Some(digits) = self.text.strip_prefix(prefix)
                && !digits.is_empty()
                && digits.chars().all(|digit| digit.is_digit(radix))
            {
                return Kind::Integer(i64::from_str_radix(digits, radix).ok());
            }
        }
        let unsigned = self.text.strip_prefix(['-', '+']).unwrap_or(&self.text);
        if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
            return Kind::Integer(self.text.parse().ok());
        }
        if matches!(unsigned, ".inf" | ".Inf" | ".INF") || is_float(unsigned) { Kind::Float } else { Kind::Text }
    }
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?` (YAML 1.2.2, 10.3.2), without its sign.
fn is_float(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let sound_exponent = exponent.is_none_or(|text| digits(text.strip_prefix(['-', '+']).unwrap_or(text)));
    let sound_mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    sound_exponent && sound_mantissa
}

/// Why a text is no YAML that we take. Quotes nothing of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Trouble {
    pub(crate) line: usize,
    pub(crate) message: String,
    pub(crate) fix: String,
}

impl Trouble {
    fn new(line: usize, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { line, message: message.into(), fix: fix.into() }
    }
}

/// The bytes as text, if they are text.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Trouble> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        Trouble::new(line, "this is not UTF-8 text", "save the document as UTF-8")
    })?;
    let mut line = 1;
    for character in text.chars() {
        match character {
            '\n' => line += 1,
            '\t' | '\r' => {}
            _ if character.is_control() => {
                return Err(Trouble::new(line, "this is binary data, not text", "give a YAML document"));
            }
            _ => {}
        }
    }
    Ok(text)
}

/// The tree of each YAML document in `text`. `before`: lines that stand before it where lines are counted.
pub(crate) fn read(text: &str, before: usize) -> Result<Vec<Rc<Node>>, Trouble> {
    // The limits are below the parser's own, so that a hostile document ends here and early.
    let mut options = granit_parser::options! { block_nesting_limit: DEPTH, flow_nesting_limit: DEPTH };
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| explain(&error, before))?;
        builder.take(event, before + span.start.line())?;
    }
    Ok(builder.documents)
}

/// A collection that is still being read.
struct Open {
    line: usize,
    anchor: usize,
    tagged: bool,
    is_map: bool,
    children: Vec<Rc<Node>>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    documents: Vec<Rc<Node>>,
    anchors: std::collections::BTreeMap<usize, Rc<Node>>,
    aliased: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), Trouble> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text = Zeroizing::new(text.into_owned());
                let style = match (style, &tag) {
                    (ScalarStyle::Literal, _) => Style::Literal,
                    (ScalarStyle::Plain, None) => Style::Plain,
                    (ScalarStyle::Plain, Some(tag)) if !is_text_tag(tag) => Style::Plain,
                    (_, Some(tag)) if tag.is_yaml_core_schema() && !is_text_tag(tag) => Style::Plain,
                    (ScalarStyle::Folded, _) => Style::Folded,
                    _ => Style::Quoted,
                };
                let known = tag.is_none_or(|tag| is_text_tag(&tag) || tag.is_yaml_core_schema());
                let value = if known { Value::Scalar(Scalar { text, style }) } else { Value::Tagged };
                self.place(Rc::new(Node { line, value, weight: 1, depth: 0 }), anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                let tagged = tag.is_some_and(|tag| !tag.is_yaml_core_schema());
                self.open.push(Open { line, anchor, tagged, is_map: false, children: Vec::new() });
                Ok(())
            }
            Event::MappingStart(_, anchor, tag) => {
                let tagged = tag.is_some_and(|tag| !tag.is_yaml_core_schema());
                self.open.push(Open { line, anchor, tagged, is_map: true, children: Vec::new() });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).cloned() else {
                    return Err(Trouble::new(line, "this alias stands inside its own anchor", "write the value out"));
                };
                self.aliased = self.aliased.saturating_add(target.weight);
                if self.aliased > ALIASED_NODES {
                    let message = format!("aliases blow this document up beyond {ALIASED_NODES} values");
                    return Err(Trouble::new(line, message, "write the values out"));
                }
                self.place(target, 0)
            }
            _ => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), Trouble> {
        let Some(Open { line, anchor, tagged, is_map, children }) = self.open.pop() else { return Ok(()) };
        let weight = children.iter().fold(1usize, |sum, child| sum.saturating_add(child.weight));
        let depth = 1 + children.iter().map(|child| child.depth).max().unwrap_or(0);
        if depth > DEPTH {
            return Err(too_deep(line));
        }
        let value = if tagged {
            Value::Tagged
        } else if is_map {
            let mut nodes = children.into_iter();
            Value::Map(std::iter::from_fn(|| Some((nodes.next()?, nodes.next()?))).collect())
        } else {
            Value::List(children)
        };
        self.place(Rc::new(Node { line, value, weight, depth }), anchor)
    }

    fn place(&mut self, node: Rc<Node>, anchor: usize) -> Result<(), Trouble> {
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.documents.push(node),
        }
        Ok(())
    }
}

/// `!!str` and the bare `!` make a scalar text whatever it looks like (YAML 1.2.2, 6.9.1).
fn is_text_tag(tag: &granit_parser::Tag) -> bool {
    tag.is_yaml_core_schema_tag("str") || (tag.handle().is_empty() && tag.suffix() == "!")
}

fn too_deep(line: usize) -> Trouble {
    Trouble::new(line, "this is nested too deeply", "write tunnel names, and under each its settings")
}

/// The parser's error in our words, where we have better ones. Its own texts quote at most one character, and that
/// one is left out: it may belong to a key.
fn explain(error: &ScanError, before: usize) -> Trouble {
    let line = before + error.marker().line().max(1);
    let trouble = |message: &str, fix: &str| Trouble::new(line, message, fix);
    match error.kind() {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => trouble("a tab where YAML wants spaces", "indent with spaces"),
        ErrorKind::RecursionLimitExceeded => too_deep(line),
        ErrorKind::UnknownAnchor => trouble("an alias (*name) without its anchor (&name)", "write the value out"),
        ErrorKind::UnexpectedCharacter { .. } => {
            trouble("this is no YAML: a character that may not begin a value", "put the value in quotes")
        }
        ErrorKind::InvalidIndentation | ErrorKind::ExpectedBlockMappingKey => trouble(
            "this is no YAML: the indentation does not fit the lines above",
            "align the keys of one map with spaces",
        ),
        ErrorKind::MappingValueNotAllowed => trouble(
            "this is no YAML: a `key: value` where none may stand",
            "check the indentation, and put values that contain `: ` in quotes",
        ),
        ErrorKind::UnclosedQuotedScalar | ErrorKind::InvalidQuotedScalarIndent => {
            trouble("this is no YAML: a quoted text does not end before this line", "close the quote")
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            trouble("this is no YAML: a key without its colon", "write `key: value`, with a space after the colon")
        }
        kind => Trouble::new(line, format!("this is no YAML: {kind}"), "correct the YAML"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_what_the_core_schema_says() {
        let number = |value| Kind::Integer(Some(value));
        for (text, kind) in [
            ("", Kind::Null),
            ("~", Kind::Null),
            ("nUll", Kind::Text),
            ("true", Kind::Bool(true)),
            ("FALSE", Kind::Bool(false)),
            ("yes", Kind::Text),
            ("on", Kind::Text),
            ("7", number(7)),
            ("-7", number(-7)),
            ("+7", number(7)),
            ("017", number(17)),
            ("0o17", number(15)),
            ("0x1F", number(31)),
            ("0o8", Kind::Text),
            ("0x", Kind::Text),
            ("0b1", Kind::Text),
            ("1_000", Kind::Text),
            ("99999999999999999999", Kind::Integer(None)),
            ("1.", Kind::Float),
            (".5", Kind::Float),
            ("1e3", Kind::Float),
            ("-1.5E-3", Kind::Float),
            (".", Kind::Text),
            ("e3", Kind::Text),
            ("1e", Kind::Text),
            ("-.inf", Kind::Float),
            (".nan", Kind::Float),
            ("1.2.3", Kind::Text),
            ("22:22", Kind::Text),
            ("-", Kind::Text),
        ] {
            let scalar = |style| Scalar { text: Zeroizing::new(text.to_owned()), style };
            assert_eq!(scalar(Style::Plain).kind(), kind, "{text:?}");
            assert_eq!(scalar(Style::Quoted).kind(), Kind::Text, "quoted {text:?}");
        }
    }

    #[test]
    fn tags_of_the_core_schema_decide_over_quotes() {
        for (text, kind) in [
            ("!!str 7", Kind::Text),
            ("! 7", Kind::Text),
            ("!!int '7'", Kind::Integer(Some(7))),
            ("!!bool \"true\"", Kind::Bool(true)),
            ("'7'", Kind::Text),
        ] {
            let documents = read(text, 0).unwrap();
            let kind_read = match &documents[0].value {
                Value::Scalar(scalar) => Some(scalar.kind()),
                _ => None,
            };
            assert_eq!(kind_read, Some(kind), "{text}");
        }
        for text in ["!vault x", "!!binary eA==", "!vault [x]", "!vault {x: y}"] {
            assert!(matches!(read(text, 0).unwrap()[0].value, Value::Tagged), "{text}");
        }
    }

    #[test]
    fn lines_count_from_one_with_any_line_break() {
        for (text, key, value) in [
            ("a: 1\nb: c\n", 12, 12),
            ("a: 1\r\nb:\r\n  c\r\n", 12, 13),
            ("\u{feff}a: 1\n\n# b\nb: |\n\n  c\n", 14, 16),
        ] {
            let documents = read(text, 10).unwrap();
            let lines = match &documents[0].value {
                Value::Map(entries) => entries.iter().map(|(key, value)| (key.line, value.line)).collect(),
                _ => vec![],
            };
            assert_eq!(lines, [(11, 11), (key, value)], "{text:?}");
        }
    }
}
