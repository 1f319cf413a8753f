//! Functions on paths.
//!
//! `cap-std` keeps every look-up inside its directory. On top of it this module refuses changes below read-only grants
//! and everything on special file systems, which may be mounted below a granted directory, and takes trailing slashes off
//! before `cap-std` sees a path, deciding about them itself.
#![expect(clippy::too_many_arguments, reason = "WASI's parameters")]

use std::sync::Arc;

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt, OpenOptionsMaybeDirExt};
use cap_std::fs::{Dir, File, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use palisade_filesystems::{Fuse, special, special_directory};
use rustix::fs::OFlags;

use crate::descriptors::{Descriptor, OpenDirectory, OpenFile};
use crate::errno::{Fail, settle};
use crate::layout::{Filestat, Snapshot, fdflags, known_bits, oflags, rights};
use crate::times::Times;
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

/// Longest path, as on Linux.
const PATH_BYTES_MAX: u32 = 4095;
/// Most symbolic links on the way to a file that is created, as on Linux.
const LINKS_MAX: usize = 40;
/// Bits of `lookupflags`.
const FOLLOW: u32 = 1;

impl WasiContext {
    /// Creates a directory.
    pub fn path_create_directory(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        path: i32,
        path_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let base = self.base(fd)?.writable()?;
            let path = GuestPath::read(memory, path, path_len)?;
            let place = base.place(&path.text)?;
            self.disk.check_entry(place.name)?;
            place.dir.create_dir(place.name)?;
            self.disk.count_entry(place.name);
            Ok(())
        })
    }

    /// Describes what a path names.
    pub fn path_filestat_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        lookup: i32,
        path: i32,
        path_len: i32,
        stat: i32,
    ) -> Result<Errno, Stop> {
        settle(|| self.path_filestat(memory, fd, lookup, path, path_len)?.write(memory, stat as u32, Snapshot::One))
    }

    /// [`WasiContext::path_filestat_get`] of snapshot 0.
    pub fn unstable_path_filestat_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        lookup: i32,
        path: i32,
        path_len: i32,
        stat: i32,
    ) -> Result<Errno, Stop> {
        settle(|| self.path_filestat(memory, fd, lookup, path, path_len)?.write(memory, stat as u32, Snapshot::Zero))
    }

    fn path_filestat(
        &mut self,
        memory: &GuestMemory<'_>,
        fd: i32,
        lookup: i32,
        path: i32,
        path_len: i32,
    ) -> Result<Filestat, Fail> {
        let base = self.base(fd)?;
        let path = GuestPath::read(memory, path, path_len)?;
        let follow = path.follow(lookup)?;
        let metadata = path.metadata(&base, follow)?;
        if path.slash && !metadata.is_dir() {
            return Err(Errno::NotDir.into());
        }
        Ok(Filestat::new(&metadata, self.config.clocks))
    }

    /// Sets the times of what a path names.
    pub fn path_filestat_set_times(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        lookup: i32,
        path: i32,
        path_len: i32,
        atim: i64,
        mtim: i64,
        flags: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let times = Times::new(atim, mtim, flags)?;
            let base = self.base(fd)?.writable()?;
            let path = GuestPath::read(memory, path, path_len)?;
            if path.follow(lookup)? {
                // Not through cap-std, which opens the file to write to it first: a FIFO would block the host.
                let metadata = path.metadata(&base, true)?;
                if path.slash && !metadata.is_dir() {
                    return Err(Errno::NotDir.into());
                }
                check_openable(&metadata)?;
                let mut options = OpenOptions::new();
                guard(&mut options).follow(FollowSymlinks::Yes);
                let file = match base.dir.open_with(&path.text, options.clone().read(true)).map_err(Errno::from) {
                    Err(Errno::Acces) => base.dir.open_with(&path.text, options.write(true))?,
                    result => result?,
                };
                let metadata = file.metadata()?;
                base.check(&file, &metadata)?;
                check_openable(&metadata)?;
                times.set(&file)
            } else {
                let (access, modification) = times.specs();
                let place = base.place(&path.text)?;
                Ok(place.dir.set_symlink_times(place.name, access, modification)?)
            }
        })
    }

    /// Creates a hard link. Both directories have to be writable, or a guest could write to a read-only file through a
    /// link of its own.
    pub fn path_link(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        old_fd: i32,
        old_lookup: i32,
        old_path: i32,
        old_path_len: i32,
        new_fd: i32,
        new_path: i32,
        new_path_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let (old_base, new_base) = (self.base(old_fd)?.writable()?, self.base(new_fd)?.writable()?);
            let old_path = GuestPath::read(memory, old_path, old_path_len)?;
            let new_path = GuestPath::read(memory, new_path, new_path_len)?;
            if known_bits(old_lookup, FOLLOW)? != 0 {
                return Err(Errno::Inval.into());
            }
            old_path.check_slash(&old_base)?;
            new_path.refuse_slash(&new_base)?;
            let (from, to) = (old_base.place(&old_path.text)?, new_base.place(&new_path.text)?);
            self.disk.check_entry(to.name)?;
            from.dir.hard_link(from.name, &to.dir, to.name)?;
            self.disk.count_entry(to.name);
            Ok(())
        })
    }

    /// Opens a file or directory.
    pub fn path_open(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        lookup: i32,
        path: i32,
        path_len: i32,
        open_flags: i32,
        rights_base: i64,
        _rights_inheriting: i64,
        fd_flags: i32,
        opened: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let open = Open::new(open_flags, rights_base, fd_flags)?;
            let base = self.base(fd)?;
            let path = GuestPath::read(memory, path, path_len)?;
            let follow = path.follow(lookup)?;
            memory.slice(opened as u32, 4)?;
            if open.needs_write() && !base.writable {
                return Err(Errno::RoFs.into());
            }
            if open.create && path.slash {
                return Err(Errno::IsDir.into());
            }
            self.descriptors().check_room()?;

            // Opening a FIFO or a device can have effects of its own, so that its kind is looked at first.
            let creates = match path.metadata(&base, follow) {
                Ok(_) if open.exclusive => return Err(Errno::Exist.into()),
                Ok(metadata) if metadata.is_symlink() => false,
                Ok(metadata) => {
                    check_openable(&metadata)?;
                    if (open.directory || path.slash) && !metadata.is_dir() {
                        return Err(Errno::NotDir.into());
                    }
                    false
                }
                Err(Fail::Errno(Errno::NoEnt)) if open.create => true,
                Err(fail) => return Err(fail),
            };
            let file = if creates {
                let text = base.end_of_links(&path.text, follow && !open.exclusive)?;
                let place = base.place(&text)?;
                self.disk.check_entry(place.name)?;
                let file = place.dir.open_with(place.name, &open.options(false, true))?;
                self.disk.count_entry(place.name);
                file
            } else {
                base.dir.open_with(&path.text, &open.options(follow, false))?
            };
            let metadata = file.metadata()?;
            base.check(&file, &metadata)?;
            check_openable(&metadata)?;
            if (open.directory || path.slash) && !metadata.is_dir() {
                return Err(Errno::NotDir.into());
            }
            let descriptor = open.descriptor(file, &metadata, base.writable)?;
            let number = self.descriptors().insert(descriptor)?;
            Ok(memory.write_u32(opened as u32, number)?)
        })
    }

    /// Reads a symbolic link.
    pub fn path_readlink(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        path: i32,
        path_len: i32,
        buf: i32,
        buf_len: i32,
        bufused: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let base = self.base(fd)?;
            let path = GuestPath::read(memory, path, path_len)?;
            path.check_slash(&base)?;
            let place = base.place(&path.text)?;
            // Refuses absolute targets, which would tell about the host.
            let target = place.dir.read_link(place.name)?;
            let target = target.to_str().ok_or(Errno::IlSeq)?.as_bytes();
            let target = &target[..target.len().min(buf_len as u32 as usize)];
            memory.slice(bufused as u32, 4)?;
            memory.write(buf as u32, target)?;
            Ok(memory.write_u32(bufused as u32, target.len() as u32)?)
        })
    }

    /// Removes an empty directory.
    pub fn path_remove_directory(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        path: i32,
        path_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let base = self.base(fd)?.writable()?;
            let path = GuestPath::read(memory, path, path_len)?;
            let place = base.place(&path.text)?;
            Ok(place.dir.remove_dir(place.name)?)
        })
    }

    /// Renames a file or directory.
    pub fn path_rename(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        old_fd: i32,
        old_path: i32,
        old_path_len: i32,
        new_fd: i32,
        new_path: i32,
        new_path_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let (old_base, new_base) = (self.base(old_fd)?.writable()?, self.base(new_fd)?.writable()?);
            let old_path = GuestPath::read(memory, old_path, old_path_len)?;
            let new_path = GuestPath::read(memory, new_path, new_path_len)?;
            if (old_path.slash || new_path.slash) && !old_path.metadata(&old_base, false)?.is_dir() {
                return Err(Errno::NotDir.into());
            }
            let (from, to) = (old_base.place(&old_path.text)?, new_base.place(&new_path.text)?);
            self.disk.check_entry(to.name)?;
            from.dir.rename(from.name, &to.dir, to.name)?;
            self.disk.count_entry(to.name);
            Ok(())
        })
    }

    /// Creates a symbolic link. An absolute target is refused: it would mean nothing here, and could lead a program of
    /// the host astray.
    pub fn path_symlink(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        target: i32,
        target_len: i32,
        fd: i32,
        path: i32,
        path_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let base = self.base(fd)?.writable()?;
            let target = read_text(memory, target, target_len)?;
            let path = GuestPath::read(memory, path, path_len)?;
            path.refuse_slash(&base)?;
            let place = base.place(&path.text)?;
            self.disk.check_entry(place.name)?;
            place.dir.symlink(target, place.name)?;
            self.disk.count_entry(place.name);
            Ok(())
        })
    }

    /// Removes a file or a symbolic link.
    pub fn path_unlink_file(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        path: i32,
        path_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let base = self.base(fd)?.writable()?;
            let path = GuestPath::read(memory, path, path_len)?;
            path.check_slash(&base)?;
            let place = base.place(&path.text)?;
            Ok(place.dir.remove_file(place.name)?)
        })
    }

    fn base(&mut self, fd: i32) -> Result<Base, Fail> {
        let fuse = self.config.fuse;
        let directory = self.descriptors().directory(fd as u32)?;
        Ok(Base { dir: Arc::clone(&directory.dir), device: directory.device, writable: directory.writable, fuse })
    }
}

/// The directory a path is looked up in.
struct Base {
    dir: Arc<Dir>,
    /// What the directory lies on, which was looked at when it was opened.
    device: u64,
    writable: bool,
    fuse: Fuse,
}

/// Where an entry of a directory is, or is to be: its directory, and its name.
struct Place<'a> {
    dir: Arc<Dir>,
    name: &'a str,
}

impl Base {
    /// The directory, if its grant allows changes.
    fn writable(self) -> Result<Base, Fail> {
        if self.writable { Ok(self) } else { Err(Errno::RoFs.into()) }
    }

    /// Refuses what lies on a special file system. Another device is another file system, or the same one in parts.
    fn check(&self, file: &File, metadata: &Metadata) -> Result<(), Fail> {
        if metadata.dev() == self.device {
            return Ok(());
        }
        let special = if metadata.is_dir() { special_directory(file, self.fuse)? } else { special(file, self.fuse)? };
        if special.is_some() { Err(Errno::Perm.into()) } else { Ok(()) }
    }

    /// Where the last component of `text` is, which is not followed if it is a link. What is done there is done in the very
    /// directory that was looked at, whatever becomes of the path meanwhile.
    fn place<'a>(&self, text: &'a str) -> Result<Place<'a>, Fail> {
        let (parent, name) = match text.rsplit_once('/') {
            None => return Ok(Place { dir: Arc::clone(&self.dir), name: text }),
            // They are no names but directories.
            Some((_, "." | "..")) => (text, "."),
            Some((parent, name)) => (parent, name),
        };
        let directory = self.open_path(parent, true, OFlags::DIRECTORY)?;
        self.check(&directory, &directory.metadata()?)?;
        Ok(Place { dir: Arc::new(Dir::from_std_file(directory.into_std())), name })
    }

    /// The path by which what `text` names can be created: where the links at its end lead to, if they are followed.
    fn end_of_links(&self, text: &str, follow: bool) -> Result<String, Fail> {
        let mut text = text.to_owned();
        for _ in 0..LINKS_MAX {
            let place = self.place(&text)?;
            if !follow || !place.dir.symlink_metadata(place.name).is_ok_and(|metadata| metadata.is_symlink()) {
                return Ok(text);
            }
            let target = place.dir.read_link(place.name)?;
            let target = target.to_str().ok_or(Errno::IlSeq)?;
            text = match text.rsplit_once('/') {
                Some((parent, _)) => format!("{parent}/{target}"),
                None => target.to_owned(),
            };
            if text.len() > PATH_BYTES_MAX as usize {
                return Err(Errno::NameTooLong.into());
            }
        }
        Err(Errno::Loop.into())
    }

    /// Opens what `text` names to look at it only.
    fn open_path(&self, text: &str, follow: bool, flags: OFlags) -> std::io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .follow(if follow { FollowSymlinks::Yes } else { FollowSymlinks::No })
            .custom_flags((OFlags::PATH | flags).bits() as i32);
        self.dir.open_with(text, &options)
    }
}

/// A relative path from a guest.
struct GuestPath {
    /// Without trailing slashes.
    text: String,
    /// Whether there was one, which asks for a directory.
    slash: bool,
}

impl GuestPath {
    fn read(memory: &GuestMemory<'_>, path: i32, path_len: i32) -> Result<GuestPath, Fail> {
        let mut text = read_text(memory, path, path_len)?;
        let len = text.trim_end_matches('/').len();
        let slash = len < text.len();
        text.truncate(len);
        Ok(GuestPath { text, slash })
    }

    /// Whether a link at the end is followed: also one with a slash behind it.
    fn follow(&self, lookup: i32) -> Result<bool, Fail> {
        Ok(known_bits(lookup, FOLLOW)? != 0 || self.slash)
    }

    fn metadata(&self, base: &Base, follow: bool) -> Result<Metadata, Fail> {
        let metadata = if follow { base.dir.metadata(&self.text)? } else { base.dir.symlink_metadata(&self.text)? };
        if metadata.dev() == base.device {
            return Ok(metadata);
        }
        let file = base.open_path(&self.text, follow, OFlags::empty())?;
        let metadata = file.metadata()?;
        base.check(&file, &metadata)?;
        Ok(metadata)
    }

    /// Refuses a trailing slash behind anything but a directory.
    fn check_slash(&self, base: &Base) -> Result<(), Fail> {
        if self.slash && !self.metadata(base, false)?.is_dir() { Err(Errno::NotDir.into()) } else { Ok(()) }
    }

    /// Refuses a trailing slash where something other than a directory is to be created.
    fn refuse_slash(&self, base: &Base) -> Result<(), Fail> {
        self.check_slash(base)?;
        if self.slash { Err(Errno::Exist.into()) } else { Ok(()) }
    }
}

/// The text of a path or a link's target.
fn read_text(memory: &GuestMemory<'_>, address: i32, len: i32) -> Result<String, Fail> {
    if len as u32 > PATH_BYTES_MAX {
        return Err(Errno::NameTooLong.into());
    }
    let text = std::str::from_utf8(memory.slice(address as u32, len as u32)?).map_err(|_| Errno::IlSeq)?;
    if text.is_empty() {
        Err(Errno::NoEnt.into())
    } else if text.contains('\0') {
        Err(Errno::Inval.into())
    } else if text.starts_with('/') {
        Err(Errno::Perm.into())
    } else {
        Ok(text.to_owned())
    }
}

/// Refuses what is neither a file nor a directory: a FIFO can block, and a device is not the directory's content.
fn check_openable(metadata: &Metadata) -> Result<(), Fail> {
    if metadata.is_file() || metadata.is_dir() { Ok(()) } else { Err(Errno::NotSup.into()) }
}

/// Options so that opening never waits, should the name have come to stand for something else since it was looked at.
fn guard(options: &mut OpenOptions) -> &mut OpenOptions {
    options.maybe_dir(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
}

/// How a guest wants something opened.
struct Open {
    create: bool,
    directory: bool,
    exclusive: bool,
    truncate: bool,
    read: bool,
    write: bool,
    append: bool,
    nonblock: bool,
}

impl Open {
    fn new(open_flags: i32, rights_base: i64, fd_flags: i32) -> Result<Open, Fail> {
        let open_flags = known_bits(open_flags, oflags::ALL)?;
        let fd_flags = known_bits(fd_flags, fdflags::ALL)?;
        if fd_flags & fdflags::SYNCS != 0 {
            return Err(Errno::NotSup.into());
        }
        let rights_base = rights_base as u64;
        let open = Open {
            create: open_flags & oflags::CREATE != 0,
            directory: open_flags & oflags::DIRECTORY != 0,
            exclusive: open_flags & oflags::CREATE != 0 && open_flags & oflags::EXCLUSIVE != 0,
            truncate: open_flags & oflags::TRUNCATE != 0,
            read: rights_base & rights::FD_READ != 0,
            write: rights_base & rights::FD_WRITE != 0,
            append: fd_flags & fdflags::APPEND != 0,
            nonblock: fd_flags & fdflags::NONBLOCK != 0,
        };
        let changes = oflags::CREATE | oflags::EXCLUSIVE | oflags::TRUNCATE;
        if open.directory && open_flags & changes != 0 {
            return Err(Errno::Inval.into());
        }
        Ok(open)
    }

    /// Whether the host has to open for writing: also to create or truncate only.
    fn needs_write(&self) -> bool {
        self.write || self.create || self.truncate
    }

    /// Whether the host has to open for reading: also when nothing was asked for, since it has to be something.
    fn needs_read(&self) -> bool {
        self.read || !self.needs_write()
    }

    fn options(&self, follow: bool, creates: bool) -> OpenOptions {
        let mut options = OpenOptions::new();
        guard(&mut options)
            .follow(if follow { FollowSymlinks::Yes } else { FollowSymlinks::No })
            .read(self.needs_read())
            .write(self.needs_write())
            .create(creates && !self.exclusive)
            .create_new(creates && self.exclusive)
            .truncate(self.truncate);
        options
    }

    fn descriptor(&self, file: File, metadata: &Metadata, granted_writable: bool) -> Result<Descriptor, Fail> {
        if metadata.is_dir() {
            return Ok(Descriptor::Directory(OpenDirectory {
                dir: Arc::new(Dir::from_std_file(file.into_std())),
                device: metadata.dev(),
                writable: granted_writable,
                granted: None,
                listing: None,
            }));
        }
        let mut file = OpenFile {
            file: file.into_std(),
            position: 0,
            append: false,
            nonblock: self.nonblock,
            readable: self.read,
            writable: self.write,
            host_writable: self.needs_write(),
            granted_writable,
        };
        file.set_append(self.append)?;
        Ok(Descriptor::File(file))
    }
}
