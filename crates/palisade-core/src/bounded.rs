//! Reading lists of bounded length: a text of a megabyte may name a million empty entries, each of which costs far more than
//! the byte it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Reads at most `MAX` elements; more are an error before they are read. For `#[serde(deserialize_with)]`.
///
/// # Errors
///
/// The deserializer's, and that there are too many.
pub fn list<'de, const MAX: usize, T, C, D>(deserializer: D) -> Result<C, D::Error>
where
    T: Deserialize<'de>,
    C: Default + Extend<T>,
    D: Deserializer<'de>,
{
    struct List<const MAX: usize, T, C>(PhantomData<(T, C)>);
    impl<'de, const MAX: usize, T: Deserialize<'de>, C: Default + Extend<T>> Visitor<'de> for List<MAX, T, C> {
        type Value = C;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<C, A::Error> {
            let mut all = C::default();
            for _ in 0..MAX {
                match elements.next_element()? {
                    Some(element) => all.extend([element]),
                    None => return Ok(all),
                }
            }
            match elements.next_element::<serde::de::IgnoredAny>()? {
                None => Ok(all),
                Some(_) => Err(A::Error::custom(format_args!("a list has at most {MAX} elements"))),
            }
        }
    }
    deserializer.deserialize_seq(List::<MAX, T, C>(PhantomData))
}

/// A `Vec` of at most `MAX` elements.
///
/// # Errors
///
/// As [`list`].
pub fn vec<'de, const MAX: usize, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list::<MAX, T, Vec<T>, D>(deserializer)
}

/// A `BTreeSet` of at most `MAX` elements.
///
/// # Errors
///
/// As [`list`].
pub fn set<'de, const MAX: usize, T: Deserialize<'de> + Ord, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeSet<T>, D::Error> {
    list::<MAX, T, BTreeSet<T>, D>(deserializer)
}

/// A `BTreeMap` of at most `MAX` entries.
///
/// # Errors
///
/// As [`list`].
pub fn map<'de, const MAX: usize, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Map<const MAX: usize, K, V>(PhantomData<(K, V)>);
    impl<'de, const MAX: usize, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Map<MAX, K, V> {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a map of at most {MAX} entries")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            // Each counts, also one that replaces another.
            for _ in 0..MAX {
                match entries.next_entry()? {
                    Some((key, value)) => drop(all.insert(key, value)),
                    None => return Ok(all),
                }
            }
            match entries.next_key::<serde::de::IgnoredAny>()? {
                None => Ok(all),
                Some(_) => Err(A::Error::custom(format_args!("a map has at most {MAX} entries"))),
            }
        }
    }
    deserializer.deserialize_map(Map::<MAX, K, V>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Lists {
        #[serde(default, deserialize_with = "vec::<3, _, _>")]
        vec: Vec<String>,
        #[serde(default, deserialize_with = "set::<3, _, _>")]
        set: BTreeSet<u8>,
        #[serde(default, deserialize_with = "map::<3, _, _, _>")]
        map: BTreeMap<String, u8>,
    }

    #[test]
    fn as_many_as_allowed_and_not_one_more() {
        let read = |json: &str| serde_json::from_str::<Lists>(json);
        assert_eq!(read(r#"{"vec":["","",""]}"#).unwrap().vec.len(), 3);
        assert!(read(r#"{"vec":["","","",""]}"#).unwrap_err().to_string().contains("at most 3"));
        assert_eq!(read(r#"{"set":[1,2,3]}"#).unwrap().set.len(), 3);
        assert!(read(r#"{"set":[1,1,1,1]}"#).is_err());
        assert_eq!(read(r#"{"map":{"a":1,"b":2,"c":3}}"#).unwrap().map.len(), 3);
        assert!(read(r#"{"map":{"a":1,"a":1,"a":1,"a":1}}"#).is_err());
        assert!(read(r#"{"vec":{}}"#).is_err() && read(r#"{"map":[]}"#).is_err());
    }
}
