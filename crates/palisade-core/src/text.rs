//! Text from guests and clients, as it may be shown and logged.

use std::fmt::Write;

/// Whether `c` does something to a terminal, or to the order in which text is read, instead of being text: controls of C0
/// and C1, DELETE, and the marks, embeddings, overrides and isolates of bidirectional text (Unicode UAX #9, and
/// CVE-2021-42574), separators of lines, and tags that are seen by programs only.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// `text` on one line, with what [is no text](is_unprintable) replaced: whoever chose it must not move cursors, nor turn a
/// line around.
///
/// ```
/// assert_eq!(palisade_core::text::printable("a\u{9b}2Jb\u{202e}c"), "a\u{fffd}2Jb\u{fffd}c");
/// ```
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unprintable(c) { '\u{fffd}' } else { c }).collect()
}

/// `text` with what [is no text](is_unprintable) written as `\u…`, except the ends of lines. In JSON, where such characters
/// occur in strings only, the result is the same JSON.
///
/// ```
/// assert_eq!(palisade_core::text::escaped("\"\u{7f}\"\n"), "\"\\u007f\"\n");
/// ```
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units = [0; 2];
    for c in text.chars() {
        if c == '\n' || !is_unprintable(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut units) {
            // Writing to a string does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in ["", "plain", "größer 日本語 עברית العربية", "🦀 👩‍👩‍👧"] {
            assert_eq!((printable(text), escaped(text)), (text.to_owned(), text.to_owned()));
        }
        assert_eq!(escaped("a\nb"), "a\nb");
    }

    #[test]
    fn json_means_the_same_when_it_is_escaped() {
        let hostile: String = (0..=0xffffu32).chain(0xe0000..=0xe0100).filter_map(char::from_u32).collect();
        let json = serde_json::to_string(&hostile).unwrap();
        let escaped = escaped(&json);
        assert!(!escaped.chars().any(is_unprintable));
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), hostile);
    }
}
