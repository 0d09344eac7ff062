//! Looks for keys where none may be (I8). Pure.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// The names of those keys (in WireGuard's base64) that stand in a text, in whatever form: base64 of either alphabet, hex
/// of either case, or a list of numbers.
pub fn found<'a>(text: &str, keys: &[(&'a str, &str)]) -> Vec<&'a str> {
    keys.iter().filter(|(_, key)| forms(key).iter().any(|form| text.contains(form))).map(|(name, _)| *name).collect()
}

fn forms(key: &str) -> Vec<String> {
    let Ok(bytes) = STANDARD.decode(key) else { return vec![key.to_owned()] };
    let mut hex = String::new();
    for byte in &bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    vec![
        STANDARD_NO_PAD.encode(&bytes),
        URL_SAFE_NO_PAD.encode(&bytes),
        hex.to_uppercase(),
        hex,
        numbers.join(", "),
        numbers.join(","),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyPair;

    #[test]
    fn a_key_is_found_in_every_form_and_another_is_not() -> anyhow::Result<()> {
        let (key, other) = (KeyPair::generate().private, KeyPair::generate().private);
        let bytes = STANDARD.decode(&key)?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for text in [key.clone(), hex.clone(), hex.to_uppercase(), format!("{bytes:?}"), key.replace('=', "")] {
            assert_eq!(found(&format!("a line\nkey={text}."), &[("own", &key), ("other", &other)]), ["own"], "{text}");
        }
        assert_eq!(found("nothing here", &[("own", &key)]), Vec::<&str>::new());
        Ok(())
    }
}
