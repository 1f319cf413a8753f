//! Compiled code that outlives the process.
//!
//! Loading compiled code means running it, so a file is used only when this host made it: each carries a keyed hash over
//! its name and content, and the key lies outside the cache directory. The file is verified while it is copied into
//! anonymous memory that is then sealed, and the engine maps that copy: nobody can change it between check and use.
//! Whatever is wrong with a file, the answer is to compile again and to say so.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use palisade_core::{CacheOptions, Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, SealFlags};

/// First bytes of every file; a change of the format changes them.
const MAGIC: &[u8; 16] = b"palisade-cwasm-1";
const MAC_BYTES: usize = blake3::OUT_LEN;
/// Largest file that is kept or read.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Bytes copied and hashed at once: they stay in a core's own cache.
const PIECE_BYTES: usize = 256 << 10;
/// Largest sum of all files; the oldest go first.
const CACHE_BYTES_MAX: u64 = 2 << 30;

/// A directory of compiled code, and the key that proves it ours.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    key: [u8; blake3::KEY_LEN],
}

/// What a look-up found.
pub(crate) enum Lookup {
    /// The compiled code, sealed.
    Hit(File),
    /// Nothing there.
    Miss,
    /// Something there that cannot be used, and why.
    Unusable(String),
}

impl Cache {
    /// Opens the cache, making its directory and key when they do not exist.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when they cannot be made, or when somebody else can write to them.
    pub(crate) fn open(options: &CacheOptions) -> Result<Cache> {
        let failed = |path: &Path, what: &str, error: io::Error| {
            Error::new(
                ErrorKind::Io,
                "open",
                format!("cannot use the cache of compiled code: {what} {}", path.display()),
            )
            .with_help("choose another cache directory, or go without one")
            .with_source(error)
        };
        private_directory(&options.directory).map_err(|error| failed(&options.directory, "directory", error))?;
        let parent = directory_of(&options.key_file);
        private_directory(parent).map_err(|error| failed(parent, "directory of the key", error))?;
        let key = read_or_make_key(&options.key_file).map_err(|error| failed(&options.key_file, "key", error))?;
        Ok(Cache { directory: options.directory.clone(), key })
    }

    /// Looks up the compiled code called `name`.
    pub(crate) fn get(&self, name: &str) -> Lookup {
        let file = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(self.directory.join(name));
        match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Lookup::Miss,
            Err(error) => Lookup::Unusable(error.to_string()),
            Ok(file) => self.verify(name, file).map_or_else(|error| Lookup::Unusable(error.to_string()), Lookup::Hit),
        }
    }

    /// Copies a file into sealed memory, if its hash is right.
    fn verify(&self, name: &str, mut file: File) -> io::Result<File> {
        let metadata = file.metadata()?;
        let head = (MAGIC.len() + MAC_BYTES) as u64;
        if !metadata.is_file() || metadata.len() < head || metadata.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("it is not a file of compiled code"));
        }
        let mut magic = [0; MAGIC.len()];
        let mut mac = [0; MAC_BYTES];
        file.read_exact(&mut magic)?;
        file.read_exact(&mut mac)?;
        if &magic != MAGIC {
            return Err(io::Error::other("it has another format"));
        }
        let memory = rustix::fs::memfd_create("palisade-cwasm", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut memory = File::from(memory);
        let hasher = self.hasher(name);
        // What is hashed is the copy, on a thread of its own while the kernel copies on: a start waits for both.
        let (copied_to, copied) = channel();
        let hash = std::thread::scope(|scope| {
            let copy = &memory;
            let hashing = scope.spawn(move || hash_as_copied(copy, hasher, copied));
            let mut end = 0;
            loop {
                let len = rustix::fs::sendfile(&memory, &file, None, PIECE_BYTES)?;
                end += len as u64;
                if head + end > FILE_BYTES_MAX {
                    return Err(io::Error::other("it grows while it is read"));
                }
                // Fails when the thread gave up, which `join` tells.
                if len == 0 || copied_to.send(end).is_err() {
                    break;
                }
            }
            drop(copied_to);
            hashing.join().unwrap_or_else(|_| Err(io::Error::other("it could not be hashed")))
        })?;
        // `blake3::Hash` compares in constant time.
        if hash != blake3::Hash::from_bytes(mac) {
            return Err(io::Error::other("it was damaged, or not made by this host"));
        }
        rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        memory.rewind()?;
        Ok(memory)
    }

    /// Keeps `code` as `name`. Readers see the old file or the new one, never a part.
    pub(crate) fn put(&self, name: &str, code: &[u8]) -> io::Result<()> {
        if code.len() as u64 > FILE_BYTES_MAX {
            return Ok(());
        }
        let mut hasher = self.hasher(name);
        hasher.update_rayon(code);
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
        let temporary = self.directory.join(format!(".{name}.{:016x}", u64::from_le_bytes(nonce)));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(MAGIC)?;
            file.write_all(hasher.finalize().as_bytes())?;
            file.write_all(code)?;
            drop(file);
            std::fs::rename(&temporary, self.directory.join(name))
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written?;
        self.prune(name)
    }

    /// Removes the oldest files until the sum is within the bound; never `keep`.
    fn prune(&self, keep: &str) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            // A file may be gone by now: other processes publish and prune as well.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                files.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        files.sort();
        let mut sum: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if sum <= CACHE_BYTES_MAX {
                break;
            }
            if path.file_name().is_some_and(|name| name != keep) {
                // Another process may have been faster.
                let _ = std::fs::remove_file(path);
                sum -= len;
            }
        }
        Ok(())
    }

    fn hasher(&self, name: &str) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(MAGIC).update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hasher
    }
}

const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// Hashes `copy` from its start, as far as `copied` says that it is there.
fn hash_as_copied(copy: &File, mut hasher: blake3::Hasher, copied: Receiver<u64>) -> io::Result<blake3::Hash> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut hashed = 0;
    for end in copied {
        while hashed < end {
            let len = (end - hashed).min(buffer.len() as u64) as usize;
            copy.read_exact_at(&mut buffer[..len], hashed)?;
            hasher.update(&buffer[..len]);
            hashed += len as u64;
        }
    }
    Ok(hasher.finalize())
}

/// The directory that `file` is in. A name alone has an empty parent.
fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a directory that only its owner can use, or checks that it is one.
fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = std::fs::metadata(path)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it belongs to another user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("others can write to it"));
    }
    Ok(())
}

fn read_or_make_key(path: &Path) -> io::Result<[u8; blake3::KEY_LEN]> {
    let mut key = [0; blake3::KEY_LEN];
    let read = |key: &mut [u8]| {
        let mut file = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path)?;
        let metadata = file.metadata()?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
            return Err(io::Error::other("others can read it; remove it to get a new one"));
        }
        if metadata.len() != key.len() as u64 {
            return Err(io::Error::other("it has the wrong length; remove it to get a new one"));
        }
        file.read_exact(key)
    };
    match read(&mut key) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(|()| key),
    }
    getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
    // Made under another name and then linked: whoever is first wins, and nobody ever reads half a key.
    let temporary = path.with_extension(format!("{:016x}", u64::from_le_bytes(*key.first_chunk().unwrap_or(&[0; 8]))));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let linked = file.write_all(&key).and_then(|()| std::fs::hard_link(&temporary, path));
    std::fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(&mut key).map(|()| key),
        other => other.map(|()| key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            Place { directory: tempfile::tempdir().unwrap() }
        }

        fn options(&self) -> CacheOptions {
            let root = self.directory.path();
            CacheOptions { directory: root.join("cache"), key_file: root.join("data/key") }
        }

        fn cache(&self) -> Cache {
            Cache::open(&self.options()).unwrap()
        }

        fn file(&self, name: &str) -> PathBuf {
            self.options().directory.join(name)
        }
    }

    fn hit(cache: &Cache, name: &str) -> Vec<u8> {
        let Lookup::Hit(mut file) = cache.get(name) else { panic!("no hit") };
        let mut code = Vec::new();
        file.read_to_end(&mut code).unwrap();
        code
    }

    fn unusable(cache: &Cache, name: &str) -> String {
        match cache.get(name) {
            Lookup::Unusable(why) => why,
            Lookup::Hit(_) => panic!("used"),
            Lookup::Miss => panic!("missing"),
        }
    }

    #[test]
    fn what_is_put_is_got_in_this_and_the_next_process() {
        let place = Place::new();
        place.cache().put("a", b"code").unwrap();
        assert_eq!(hit(&place.cache(), "a"), b"code");
        assert!(matches!(place.cache().get("b"), Lookup::Miss));
        let names: Vec<_> = fs::read_dir(place.options().directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_noticed() {
        let place = Place::new();
        let cache = place.cache();
        cache.put("a", b"compiled code").unwrap();
        let good = fs::read(place.file("a")).unwrap();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            fs::write(place.file("a"), bad).unwrap();
            unusable(&cache, "a");
            fs::write(place.file("a"), &good[..index]).unwrap();
            unusable(&cache, "a");
        }
        fs::write(place.file("a"), &good).unwrap();
        assert_eq!(hit(&cache, "a"), b"compiled code");
    }

    #[test]
    fn a_file_under_another_name_or_of_another_host_is_refused() {
        let place = Place::new();
        let other = Place::new();
        let cache = place.cache();
        cache.put("a", b"code").unwrap();
        fs::rename(place.file("a"), place.file("b")).unwrap();
        assert!(unusable(&cache, "b").contains("not made by this host"));
        other.cache().put("a", b"code").unwrap();
        fs::copy(other.file("a"), place.file("a")).unwrap();
        assert!(unusable(&cache, "a").contains("not made by this host"));
    }

    #[test]
    fn links_and_directories_are_refused() {
        let place = Place::new();
        let cache = place.cache();
        cache.put("a", b"code").unwrap();
        std::os::unix::fs::symlink(place.file("a"), place.file("link")).unwrap();
        fs::create_dir(place.file("dir")).unwrap();
        unusable(&cache, "link");
        unusable(&cache, "dir");
    }

    #[test]
    fn a_place_others_can_write_to_is_refused() {
        let place = Place::new();
        place.cache();
        fs::set_permissions(place.options().directory, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Cache::open(&place.options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        fs::set_permissions(place.options().directory, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(place.options().key_file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Cache::open(&place.options()).is_err());
    }

    #[test]
    fn a_key_without_a_directory_lies_in_the_current_one() {
        for (file, directory) in [("key", "."), ("a/key", "a"), ("./key", "."), ("/key", "/")] {
            assert_eq!(directory_of(Path::new(file)), Path::new(directory));
        }
        // The current directory is a private one here, or is refused as such, but never missing.
        let missing = private_directory(directory_of(Path::new("key"))).err().map(|error| error.kind());
        assert_ne!(missing, Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn many_processes_can_start_at_once() {
        let place = Place::new();
        let options = place.options();
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let options = &options;
                scope.spawn(move || {
                    let cache = Cache::open(options).unwrap();
                    for round in 0..20u8 {
                        cache.put("a", &[thread, round].repeat(10_000)).unwrap();
                        let code = hit(&cache, "a");
                        assert!(code.len() == 20_000 && code.chunks(2).all(|pair| pair == &code[..2]));
                    }
                });
            }
        });
    }
}
