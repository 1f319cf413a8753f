//! How durations and byte counts are written by people: `1.5s`, `250ms`, `64MiB`, `1_000_000`.
//!
//! Durations always need a unit, byte counts may be bare. Both are read exactly: a value that does not come out as a
//! whole number of nanoseconds or bytes is refused, never rounded.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a duration such as `2s`, `1.5s`, `250ms`, `10us`, `5m`, `1h`.
///
/// # Errors
///
/// Says what was wrong with the text and shows an example.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let unit = if unit == "µs" { "us" } else { unit };
    let Some((_, nanos)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(if unit.is_empty() {
            format!("`{text}` has no unit; write for example `{text}s` or `{text}ms`")
        } else {
            format!("`{text}` is not a duration; write a number and one of h, m, s, ms, us, ns, for example `1.5s`")
        });
    };
    scale(number, *nanos)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("`{text}` is not a duration; write a number and a unit, for example `1.5s`"))
}

/// Writes a duration so that [`parse_duration`] reads the same one back.
///
/// The largest unit that needs no fraction is used: 1500 ms becomes `1500ms`. Durations beyond 584 years are written
/// as that bound.
pub fn format_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    exact(nanos, &DURATION_UNITS, "s")
}

/// Writes a duration for people, to about three digits: `1.53 s`, `4.2 ms`, `870 ns`.
pub fn display_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos() as f64;
    for (limit, unit) in [(1e9, "s"), (1e6, "ms"), (1e3, "µs")] {
        if nanos >= limit {
            return format!("{} {unit}", three_digits(nanos / limit));
        }
    }
    format!("{nanos} ns")
}

/// Reads a byte count such as `64MiB`, `1.5GiB`, `10kB` or `4096`.
///
/// # Errors
///
/// Says what was wrong with the text and shows an example.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    // `64M` is what people type when they mean `64MiB`; SI units need their full name.
    let unit = match unit {
        "" => "B",
        "K" | "k" => "KiB",
        "M" => "MiB",
        "G" => "GiB",
        "T" => "TiB",
        "KB" => "kB",
        other => other,
    };
    BYTE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .and_then(|(_, factor)| scale(number, *factor))
        .ok_or_else(|| format!("`{text}` is not a byte count; write for example `64MiB`, `1.5GiB` or `4096`"))
}

/// Writes a byte count so that [`parse_bytes`] reads the same one back.
pub fn format_bytes(bytes: u64) -> String {
    exact(bytes, &BYTE_UNITS[..4], "B")
}

/// Writes a byte count for people, to about three digits: `64 MiB`, `1.5 GiB`, `17 B`.
pub fn display_bytes(bytes: u64) -> String {
    for (unit, factor) in &BYTE_UNITS[..4] {
        if bytes >= *factor {
            return format!("{} {unit}", three_digits(bytes as f64 / *factor as f64));
        }
    }
    format!("{bytes} B")
}

/// Writes a count for people: `1.2 G`, `34.5 M`, `120 k`, `87`.
pub fn display_count(count: u64) -> String {
    // Counts below 10 000 are short enough to be shown whole.
    for (from, factor, unit) in [(1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")] {
        if count as f64 >= from {
            return format!("{} {unit}", three_digits(count as f64 / factor));
        }
    }
    count.to_string()
}

/// Writes a count so that [`parse_count`] reads the same one back.
pub fn format_count(count: u64) -> String {
    count.to_string()
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// `number` (digits with an optional fraction and underscores) times `factor`, if that is a whole number.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let number: String = number.chars().filter(|c| *c != '_').collect();
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scaled = digits.checked_mul(u128::from(factor))?;
    let divisor = 10u128.pow(fraction.len() as u32);
    if scaled % divisor != 0 {
        return None;
    }
    u64::try_from(scaled / divisor).ok()
}

fn exact(value: u64, units: &[(&str, u64)], zero_unit: &str) -> String {
    match units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => format!("{value}{zero_unit}"),
    }
}

fn three_digits(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// serde helpers for `#[serde(with = "...")]`: durations and byte counts as people write them.
pub(crate) mod serde_optional {
    macro_rules! optional {
        ($module:ident, $type:ty, $parse:path, $format:path) => {
            pub(crate) mod $module {
                use std::fmt;

                use serde::de::{Deserializer, Error, Visitor};
                use serde::ser::Serializer;

                pub(crate) fn serialize<S: Serializer>(value: &Option<$type>, s: S) -> Result<S::Ok, S::Error> {
                    match value {
                        Some(value) => s.serialize_str(&$format(*value)),
                        None => s.serialize_str("unlimited"),
                    }
                }

                pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<$type>, D::Error> {
                    struct Text;
                    impl Visitor<'_> for Text {
                        type Value = Option<$type>;
                        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                            f.write_str("a quantity with a unit, or \"unlimited\"")
                        }
                        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                            if text == "unlimited" { Ok(None) } else { $parse(text).map(Some).map_err(E::custom) }
                        }
                        fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                            $parse(&number.to_string()).map(Some).map_err(E::custom)
                        }
                        fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                            $parse(&number.to_string()).map(Some).map_err(E::custom)
                        }
                    }
                    d.deserialize_any(Text)
                }
            }
        };
    }

    optional!(duration, std::time::Duration, crate::units::parse_duration, crate::units::format_duration);
    optional!(bytes, u64, crate::units::parse_bytes, crate::units::format_bytes);
    optional!(count, u64, crate::units::parse_count, crate::units::format_count);
}

/// serde helper for durations that must be there, as people write them.
pub(crate) mod serde_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        super::parse_duration(&text).map_err(serde::de::Error::custom)
    }
}

/// serde helper for durations in reports, read by programs: whole nanoseconds.
pub(crate) mod serde_nanos {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_nanos)
    }
}

/// Reads a count such as `1000`, `1_000_000`, `10k`, `5M` or `2G` (powers of ten).
///
/// # Errors
///
/// Says what was wrong with the text and shows an example.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let factor = match unit {
        "" => Some(1),
        "k" | "K" => Some(1_000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        _ => None,
    };
    factor
        .and_then(|factor| scale(number, factor))
        .ok_or_else(|| format!("`{text}` is not a count; write for example `1000`, `10k` or `5M`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_exactly() {
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration(" 2 h ").unwrap(), Duration::from_secs(7200));
        assert_eq!(parse_duration("10µs").unwrap(), Duration::from_micros(10));
        assert_eq!(parse_duration("0s").unwrap(), Duration::ZERO);
        for wrong in ["", "s", "1", "-1s", "1.s", ".5s", "0.5ns", "1 parsec", "99999999999999999999h", "1e3s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} was accepted");
        }
        assert!(parse_duration("5").unwrap_err().contains("`5s`"));
    }

    #[test]
    fn byte_counts_are_read_exactly() {
        assert_eq!(parse_bytes("64MiB").unwrap(), 64 << 20);
        assert_eq!(parse_bytes("1.5 GiB").unwrap(), 3 << 29);
        assert_eq!(parse_bytes("64M").unwrap(), 64 << 20);
        assert_eq!(parse_bytes("64mb").unwrap(), 64_000_000);
        assert_eq!(parse_bytes("4096").unwrap(), 4096);
        for wrong in ["", "MiB", "-1", "0.3B", "1XB", "20000000TiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn counts_are_read_exactly() {
        assert_eq!(parse_count("5M").unwrap(), 5_000_000);
        assert_eq!(parse_count("1_000").unwrap(), 1000);
        assert!(parse_count("1.5").is_err());
        assert!(parse_count("many").is_err());
    }

    #[test]
    fn people_read_three_digits() {
        assert_eq!(display_duration(Duration::from_millis(1530)), "1.53 s");
        assert_eq!(display_duration(Duration::from_nanos(870)), "870 ns");
        assert_eq!(display_bytes(64 << 20), "64 MiB");
        assert_eq!(display_bytes((3 << 29) + 1), "1.5 GiB");
        assert_eq!(display_count(120_000), "120 k");
        assert_eq!(display_count(34_500_000), "34.5 M");
        assert_eq!(display_count(9_999), "9999");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value: u64) {
            prop_assert_eq!(parse_duration(&format_duration(Duration::from_nanos(value))).unwrap(), Duration::from_nanos(value));
            prop_assert_eq!(parse_bytes(&format_bytes(value)).unwrap(), value);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (parse_duration(&text), parse_bytes(&text), parse_count(&text));
        }
    }
}
