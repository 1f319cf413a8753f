//! The memory of an agent: keys and values that outlive its instances, and that no other agent sees.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_core::{Bytes, Error, ErrorKind, HostFunctionError, HostFunctions, Result};
use serde::{Deserialize, Serialize};

use crate::private;

/// Bounds of an agent's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct MemoryLimits {
    /// Entries. Default 1000.
    pub entries_max: usize,
    /// Bytes of all keys and values together. Default 1 MiB.
    pub bytes_max: usize,
    /// Bytes of one key. Default 256.
    pub key_bytes_max: usize,
    /// What happens when something new does not fit.
    pub eviction: Eviction,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        MemoryLimits { entries_max: 1000, bytes_max: 1 << 20, key_bytes_max: 256, eviction: Eviction::Refuse }
    }
}

/// What happens when something new does not fit into an agent's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// The guest gets an error.
    #[default]
    Refuse,
    /// What was used longest ago goes.
    LeastRecentlyUsed,
}

/// The memory of an agent. Clones are the same memory.
///
/// Guests reach it through host functions, which must be granted like any other:
///
/// | name | takes | gives |
/// |---|---|---|
/// | `kv.get` | the key | byte 1 and the value, or byte 0 |
/// | `kv.set` | the key's length (u32, little-endian), the key, the value | nothing |
/// | `kv.delete` | the key | byte 1 when it was there, else byte 0 |
///
/// ```
/// use palisade_fabric::{AgentMemory, MemoryLimits};
///
/// let memory = AgentMemory::new(MemoryLimits::default());
/// memory.set(b"key", b"value"[..].into())?;
/// assert_eq!(memory.get(b"key").as_deref(), Some(&b"value"[..]));
/// # Ok::<(), palisade_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct AgentMemory {
    limits: MemoryLimits,
    entries: Arc<Mutex<Entries>>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: BTreeMap<Bytes, Entry>,
    /// Keys by when they were last used.
    by_age: BTreeMap<u64, Bytes>,
    bytes: usize,
    age: u64,
}

#[derive(Debug)]
struct Entry {
    value: Bytes,
    age: u64,
}

impl AgentMemory {
    /// An empty memory.
    pub fn new(limits: MemoryLimits) -> AgentMemory {
        AgentMemory { limits, entries: Arc::default() }
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.lock().touch(key)
    }

    /// The value of `key`, for somebody who only looks: it does not count as use.
    pub fn peek(&self, key: &[u8]) -> Option<Bytes> {
        self.lock().by_key.get(key).map(|entry| entry.value.clone())
    }

    /// Keys in their order, each with the bytes of its value: those after `after` only, at most `entries_max`. Does not
    /// count as use.
    pub fn list(&self, after: Option<&[u8]>, entries_max: usize) -> Vec<(Bytes, usize)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let entries = self.lock();
        let range = entries.by_key.range::<[u8], _>((after.map_or(Unbounded, Excluded), Unbounded));
        range.take(entries_max).map(|(key, entry)| (key.clone(), entry.value.len())).collect()
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for an empty or too long key, and for an entry larger than the whole memory;
    /// [`ErrorKind::Exhausted`] when it does not fit and nothing may go. Then nothing has changed.
    pub fn set(&self, key: &[u8], value: Bytes) -> Result<()> {
        let limits = self.limits;
        let size = key.len() + value.len();
        if key.is_empty() || key.len() > limits.key_bytes_max {
            let message = format!("a key has 1 to {} bytes, not {}", limits.key_bytes_max, key.len());
            return Err(Error::new(ErrorKind::InvalidInput, "kv.set", message));
        }
        if size > limits.bytes_max || limits.entries_max == 0 {
            let message = format!("an entry of {size} bytes is larger than the whole memory of {}", limits.bytes_max);
            return Err(Error::new(ErrorKind::InvalidInput, "kv.set", message));
        }
        let mut entries = self.lock();
        let earlier = entries.by_key.get(key).map(|entry| key.len() + entry.value.len());
        let fits = |entries: &Entries, earlier: Option<usize>| {
            entries.bytes - earlier.unwrap_or(0) + size <= limits.bytes_max
                && entries.by_key.len() + usize::from(earlier.is_none()) <= limits.entries_max
        };
        if !fits(&entries, earlier) && limits.eviction == Eviction::Refuse {
            return Err(Error::new(ErrorKind::Exhausted, "kv.set", "the agent's memory is full")
                .with_context("entries_max", limits.entries_max)
                .with_context("bytes_max", limits.bytes_max)
                .with_help("delete what is not needed any more"));
        }
        entries.remove(key);
        while !fits(&entries, None) {
            let Some(oldest) = entries.by_age.values().next().cloned() else { break };
            entries.remove(&oldest);
        }
        entries.insert(Bytes::copy_from_slice(key), value);
        Ok(())
    }

    /// Removes `key`, and says whether it was there.
    pub fn delete(&self, key: &[u8]) -> bool {
        self.lock().remove(key)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Writes everything to `path`, in place of what was there: as a whole or not at all. The file is its owner's only (0600).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed = |what, error: std::io::Error| {
            Error::new(ErrorKind::Io, "save", what).with_context("file", path.display()).with_source(error)
        };
        let saved = {
            let entries = self.lock();
            let in_order = entries
                .by_age
                .values()
                .filter_map(|key| entries.by_key.get(key).map(|entry| (key.clone(), entry.value.clone())));
            in_order.collect::<Vec<_>>()
        };
        let body = rmp_serde::to_vec(&saved).map_err(|error| failed("cannot encode", std::io::Error::other(error)))?;
        let mut next = path.as_os_str().to_owned();
        next.push(".new");
        let next = Path::new(&next);
        let write = || {
            let mut file = private::open(next)?;
            file.set_len(0)?;
            file.write_all(&crc32fast::hash(&body).to_le_bytes())?;
            file.write_all(&body)?;
            file.sync_all()?;
            fs::rename(next, path)?;
            private::sync_name(path)
        };
        write().map_err(|error| failed("cannot write the agent's memory", error))
    }

    /// Reads what [`AgentMemory::save`] wrote; nothing when there is no such file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when it is something else, [`ErrorKind::Exhausted`] when it does not fit into `limits`,
    /// [`ErrorKind::InvalidInput`] when others may read or change it, [`ErrorKind::Io`].
    pub fn load(limits: MemoryLimits, path: &Path) -> Result<AgentMemory> {
        private::check(path, "load")?;
        let memory = AgentMemory::new(limits);
        let corrupt = || {
            Error::new(ErrorKind::Corrupt, "load", "the agent's memory is damaged").with_context("file", path.display())
        };
        let file = match fs::read(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(memory),
            Err(error) => {
                return Err(Error::new(ErrorKind::Io, "load", "cannot read the agent's memory")
                    .with_context("file", path.display())
                    .with_source(error));
            }
        };
        let (crc, body) = file.split_first_chunk::<4>().ok_or_else(corrupt)?;
        if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
            return Err(corrupt());
        }
        let saved: Vec<(Bytes, Bytes)> = rmp_serde::from_slice(body).map_err(|_| corrupt())?;
        for (key, value) in saved {
            memory.set(&key, value)?;
        }
        Ok(memory)
    }

    /// `host` with the functions of this memory.
    pub fn add_to(&self, host: HostFunctions) -> HostFunctions {
        let guest_error = |error: Error| HostFunctionError::from(error.to_string());
        let (get, set, delete) = (self.clone(), self.clone(), self.clone());
        host.add("kv.get", move |call| {
            let found = get.get(&call.input);
            async move {
                Ok(match found {
                    Some(value) => [&[1], &value[..]].concat().into(),
                    None => Bytes::from_static(&[0]),
                })
            }
        })
        .add("kv.set", move |call| {
            let result = split(&call.input)
                .ok_or_else(|| HostFunctionError::from("kv.set takes a key's length, the key and the value"))
                .and_then(|(key, value)| set.set(key, Bytes::copy_from_slice(value)).map_err(guest_error));
            async move { result.map(|()| Bytes::new()) }
        })
        .add("kv.delete", move |call| {
            let was_there = delete.delete(&call.input);
            async move { Ok(Bytes::copy_from_slice(&[u8::from(was_there)])) }
        })
    }

    // Each statement under the lock leaves it whole but for a panic of the allocator.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key and a value as `kv.set` takes them.
fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = input.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

impl Entries {
    fn touch(&mut self, key: &[u8]) -> Option<Bytes> {
        self.age += 1;
        let entry = self.by_key.get_mut(key)?;
        if let Some(key) = self.by_age.remove(&entry.age) {
            self.by_age.insert(self.age, key);
        }
        entry.age = self.age;
        Some(entry.value.clone())
    }

    fn insert(&mut self, key: Bytes, value: Bytes) {
        self.age += 1;
        self.bytes += key.len() + value.len();
        self.by_age.insert(self.age, key.clone());
        self.by_key.insert(key, Entry { value, age: self.age });
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let Some(entry) = self.by_key.remove(key) else { return false };
        self.by_age.remove(&entry.age);
        self.bytes -= key.len() + entry.value.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::block_on;

    use super::*;

    fn memory(entries_max: usize, bytes_max: usize, eviction: Eviction) -> AgentMemory {
        AgentMemory::new(MemoryLimits { entries_max, bytes_max, key_bytes_max: 4, eviction })
    }

    fn kind(result: Result<()>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn quotas_allow_their_number_and_refuse_one_more() {
        let memory = memory(3, 20, Eviction::Refuse);
        let set = |key: &[u8], len: usize| kind(memory.set(key, vec![7; len].into()));
        assert_eq!(set(b"abcd", 16), None, "exactly all bytes");
        assert_eq!(set(b"b", 0), Some(ErrorKind::Exhausted));
        assert_eq!(set(b"abcd", 15), None, "less of the same key");
        assert_eq!(set(b"b", 0), None);
        assert_eq!(memory.bytes(), 20);
        assert_eq!(set(b"b", 0), None, "the same again takes nothing more, and costs no other its place");
        assert_eq!((memory.bytes(), memory.len()), (20, 2));
        assert_eq!(set(b"abcd", 16), Some(ErrorKind::Exhausted));
        assert_eq!(memory.get(b"abcd").unwrap().len(), 15, "a refused change changes nothing");
        assert!(memory.delete(b"abcd") && !memory.delete(b"abcd"));
        assert_eq!((set(b"c", 0), set(b"d", 0), set(b"e", 0)), (None, None, Some(ErrorKind::Exhausted)));
        assert_eq!((set(b"abcde", 0), set(b"", 0)), (Some(ErrorKind::InvalidInput), Some(ErrorKind::InvalidInput)));
        assert_eq!(set(b"d", 20), Some(ErrorKind::InvalidInput));
        assert_eq!((memory.len(), memory.bytes()), (3, 3));
    }

    #[test]
    fn what_was_used_longest_ago_goes() {
        let memory = memory(3, 100, Eviction::LeastRecentlyUsed);
        for key in [b"a", b"b", b"c"] {
            memory.set(key, Bytes::from_static(b"x")).unwrap();
        }
        memory.get(b"a");
        memory.set(b"d", Bytes::from_static(b"x")).unwrap();
        let there = [b"a", b"b", b"c", b"d"].map(|key| memory.get(key).is_some());
        assert_eq!(there, [true, false, true, true]);
        memory.set(b"e", vec![0; 98].into()).unwrap();
        assert_eq!((memory.len(), memory.bytes()), (1, 99), "as many go as must");
        assert_eq!(kind(memory.set(b"f", vec![0; 100].into())), Some(ErrorKind::InvalidInput));
        assert_eq!(memory.len(), 1);
    }

    #[test]
    fn saved_memory_comes_back_in_its_order_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let limits = MemoryLimits { entries_max: 3, eviction: Eviction::LeastRecentlyUsed, ..MemoryLimits::default() };
        let memory = AgentMemory::load(limits, &path).unwrap();
        assert!(memory.is_empty());
        for key in [b"a", b"b", b"c"] {
            memory.set(key, Bytes::copy_from_slice(key)).unwrap();
        }
        memory.get(b"a");
        memory.save(&path).unwrap();
        let again = AgentMemory::load(limits, &path).unwrap();
        again.set(b"d", Bytes::new()).unwrap();
        assert_eq!((again.get(b"a").as_deref(), again.get(b"b")), (Some(&b"a"[..]), None));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(AgentMemory::load(limits, &path).unwrap_err().kind(), ErrorKind::Corrupt);
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(AgentMemory::load(limits, &path).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn saved_memory_is_its_owners_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let memory = AgentMemory::new(MemoryLimits::default());
        memory.save(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = AgentMemory::load(MemoryLimits::default(), &path).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("chmod 600"), "{error}");
        memory.save(&path).unwrap();
        assert_eq!(mode(&path), 0o600, "what is written anew is private again");
    }

    #[test]
    fn looking_changes_nothing_and_lists_go_on_where_they_ended() {
        let memory = memory(3, 100, Eviction::LeastRecentlyUsed);
        for (key, len) in [(b"c", 3), (b"a", 1), (b"b", 2)] {
            memory.set(key, vec![7; len].into()).unwrap();
        }
        let list = |after: Option<&[u8]>, max| {
            memory.list(after, max).into_iter().map(|(key, len)| (key[0], len)).collect::<Vec<_>>()
        };
        assert_eq!(list(None, 2), [(b'a', 1), (b'b', 2)]);
        assert_eq!(list(Some(b"b"), 2), [(b'c', 3)]);
        assert_eq!((list(Some(b"c"), 2), list(None, 0)), (vec![], vec![]));
        assert_eq!((memory.peek(b"c").map(|value| value.len()), memory.peek(b"x")), (Some(3), None));
        memory.set(b"d", Bytes::new()).unwrap();
        assert_eq!(memory.peek(b"c"), None, "looked at, but used longest ago");
    }

    #[test]
    fn guests_reach_it_by_host_functions() {
        let memory = memory(2, 100, Eviction::Refuse);
        let host = memory.add_to(HostFunctions::new());
        let call = |name: &str, input: &[u8]| {
            let invocation = host.invoke(name, Bytes::copy_from_slice(input), None).unwrap();
            block_on(invocation).unwrap().map(|bytes| bytes.to_vec())
        };
        assert_eq!(call("kv.get", b"a"), Ok(vec![0]));
        assert_eq!(call("kv.set", b"\x01\0\0\0avalue"), Ok(vec![]));
        assert_eq!(call("kv.get", b"a"), Ok(b"\x01value".to_vec()));
        assert_eq!(call("kv.delete", b"a"), Ok(vec![1]));
        assert_eq!(call("kv.delete", b"a"), Ok(vec![0]));
        assert!(call("kv.set", b"\x09\0\0\0avalue").is_err() && call("kv.set", b"\x01\0").is_err());
        assert!(call("kv.set", b"\xff\xff\xff\xffa").is_err());
        assert!(call("kv.set", b"\x05\0\0\0abcdevalue").unwrap_err().to_string().contains("1 to 4 bytes"));
    }
}
