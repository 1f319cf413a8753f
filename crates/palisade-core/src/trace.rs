//! W3C trace context: which trace a piece of work belongs to.

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Characters of a `traceparent` of version 00, which later versions may only add to.
const LEN: usize = 55;
/// Most members of a `tracestate`.
const MEMBERS_MAX: usize = 32;
/// Most bytes of a `tracestate`, and of a `traceparent` of a later version: what everybody must pass on.
const BYTES_MAX: usize = 512;

/// W3C trace context, carried from submission to the guest's host calls.
///
/// ```
/// use palisade_core::TraceContext;
///
/// let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "")?;
/// assert_eq!(trace.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
/// assert_eq!(trace.parent_span_id(), Some("b7ad6b7169203331"));
/// // What goes out while the span 7 is open.
/// let child = trace.child(7).unwrap();
/// assert_eq!(child.traceparent, "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01");
/// # Ok::<(), palisade_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header.
    pub tracestate: String,
}

impl TraceContext {
    /// A context of these two headers, where no `tracestate` is an empty one.
    ///
    /// # Errors
    ///
    /// As [`TraceContext::validate`].
    pub fn new(traceparent: impl Into<String>, tracestate: impl Into<String>) -> Result<TraceContext> {
        let trace = TraceContext { traceparent: traceparent.into(), tracestate: tracestate.into() };
        trace.validate()?;
        Ok(trace)
    }

    /// Checks both headers by the rules of W3C's recommendation. A `tracestate` has at most 512 bytes here.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`].
    pub fn validate(&self) -> Result<()> {
        let invalid = |what: &str| {
            Error::new(ErrorKind::InvalidInput, "read trace context", format!("the `{what}` is malformed"))
                .with_help("write it by the rules of W3C Trace Context, or leave it out")
        };
        if self.parse().is_none() {
            return Err(invalid("traceparent"));
        }
        if !is_tracestate(&self.tracestate) {
            return Err(invalid("tracestate"));
        }
        Ok(())
    }

    /// The trace: 32 hexadecimal digits. `None` when the `traceparent` is malformed.
    pub fn trace_id(&self) -> Option<&str> {
        self.parse().map(|(trace, _, _)| trace)
    }

    /// The span this work is a part of: 16 hexadecimal digits. `None` when the `traceparent` is malformed.
    pub fn parent_span_id(&self) -> Option<&str> {
        self.parse().map(|(_, parent, _)| parent)
    }

    /// The context of work within the span `span_id`, which must not be 0. `None` when the `traceparent` is malformed.
    pub fn child(&self, span_id: u64) -> Option<TraceContext> {
        let (trace, _, flags) = self.parse()?;
        // Of the flags, only "sampled" means the same in each version.
        let traceparent = format!("00-{trace}-{span_id:016x}-{:02x}", flags & 1);
        Some(TraceContext { traceparent, tracestate: self.tracestate.clone() })
    }

    fn parse(&self) -> Option<(&str, &str, u8)> {
        let text = &*self.traceparent;
        if text.len() > BYTES_MAX {
            return None;
        }
        let (known, more) = text.split_at_checked(LEN)?;
        let mut parts = known.split('-');
        let mut part = |len: usize| parts.next().filter(|part| part.len() == len && part.bytes().all(is_hex));
        let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let well = version != "ff"
            && (more.is_empty() || version != "00" && more.starts_with('-'))
            && [trace, parent].iter().all(|id| id.bytes().any(|digit| digit != b'0'));
        well.then_some((trace, parent, u8::from_str_radix(flags, 16).ok()?))
    }
}

/// Upper case is malformed.
fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_tracestate(text: &str) -> bool {
    let members = || text.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty());
    let mut keys: Vec<_> = members().map(|member| member.split_once('=').map_or(member, |(key, _)| key)).collect();
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    text.len() <= BYTES_MAX
        && count <= MEMBERS_MAX
        && keys.len() == count
        && members().all(|member| member.split_once('=').is_some_and(|(key, value)| is_key(key) && is_value(value)))
}

fn is_key(key: &str) -> bool {
    let rest =
        |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'));
    let lower = |text: &str| text.starts_with(|c: char| c.is_ascii_lowercase());
    let digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    match key.split_once('@') {
        None => key.len() <= 256 && lower(key) && rest(key),
        Some((tenant, system)) => {
            let tenant_is = tenant.len() <= 241 && (lower(tenant) || digit(tenant)) && rest(tenant);
            tenant_is && system.len() <= 14 && lower(system) && rest(system)
        }
    }
}

fn is_value(value: &str) -> bool {
    (1..=256).contains(&value.len()) && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn parents_are_read_strictly() {
        let valid = |text: &str| TraceContext::new(text, "").is_ok();
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        assert!(valid(&parent) && valid(&parent.replace("-01", "-ff")));
        let later = format!("cc{}", &parent[2..]);
        assert!(valid(&later) && valid(&format!("{later}-more")), "later versions may add");
        for wrong in [
            String::new(),
            format!("{parent} "),
            format!("{parent}-more"),
            format!("{later}more"),
            parent.replacen("00", "ff", 1),
            parent.replacen("00", "0", 1),
            parent.to_uppercase(),
            parent.replace(TRACE, &"0".repeat(32)),
            parent.replace("b7ad6b7169203331", &"0".repeat(16)),
            parent.replace('-', "_"),
            parent.replace("b7ad", "g7ad"),
            parent[..54].to_owned(),
            "é".repeat(40),
            format!("{later}-{}", "x".repeat(500)),
        ] {
            let error = TraceContext::new(&wrong, "").expect_err(&wrong);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn states_are_read_strictly() {
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let valid = |text: &str| TraceContext::new(&parent, text).is_ok();
        for right in ["", "a=b", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "a=1 , b=2,,", "0x/y@sys-1=v", "a=b c"] {
            assert!(valid(right), "{right:?}");
        }
        let many = (0..33).map(|number| format!("k{number}=v")).collect::<Vec<_>>();
        assert!(valid(&many[..32].join(",")));
        for wrong in ["a", "a=", "A=b", "=b", "1a=b", "a=b,a=c", "a=b=c", "a=\u{7f}", "a@=b", "a@1=b", "ä=b"] {
            assert!(!valid(wrong), "{wrong:?}");
        }
        assert!(!valid(&many.join(",")) && !valid(&format!("a={}", "b".repeat(257))));
    }
}
