//! The secret that clients on TCP show.

use std::fmt;

use palisade_core::{Error, ErrorKind, Result};
use subtle::ConstantTimeEq;

/// Shortest and longest token, in bytes.
const LENGTH: std::ops::RangeInclusive<usize> = 16..=512;

/// A bearer token. Compared in constant time, and never printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token of 16 to 512 visible ASCII characters; white space around it is left out.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for anything else.
    pub fn new(text: &str) -> Result<Token> {
        let text = text.trim();
        if !LENGTH.contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = "a token has 16 to 512 visible ASCII characters";
            return Err(Error::new(ErrorKind::InvalidInput, "read token", message)
                .with_help("make one, for example with `openssl rand -hex 32`"));
        }
        Ok(Token(text.to_owned()))
    }

    /// Whether an `Authorization` header shows this token. Takes the same time for every token of the same length.
    pub(crate) fn admits(&self, header: Option<&[u8]>) -> bool {
        let shown = header.and_then(|header| header.split_at_checked("Bearer ".len()));
        shown.is_some_and(|(scheme, shown)| {
            scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(self.0.as_bytes().ct_eq(shown))
        })
    }

    /// The value of an `Authorization` header that shows it.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_admitted() {
        let token = Token::new(" 0123456789abcdef\n").unwrap();
        assert!(token.admits(Some(token.header().as_bytes())));
        assert!(token.admits(Some(b"bearer 0123456789abcdef")));
        for wrong in ["", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdeF", "Bearer 0123456789abcdef0"] {
            assert!(!token.admits(Some(wrong.as_bytes())), "{wrong:?}");
        }
        assert!(!token.admits(Some(b"Basic  0123456789abcdef")) && !token.admits(None));
        assert!(!format!("{token:?}").contains("0123"));
        for weak in ["", "short", &"x".repeat(513), "0123456789 abcdef"] {
            assert!(Token::new(weak).is_err(), "{weak:?}");
        }
    }
}
