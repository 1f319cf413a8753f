//! Functions on descriptors.

use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use crate::descriptors::{Descriptor, OpenFile};
use crate::disk::Disk;
use crate::errno::{Fail, settle};
use crate::layout::{Filestat, Filetype, Snapshot, element, fdflags, known_bits, rights, write_fdstat};
use crate::times::Times;
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

/// Most buffers in one call.
const IOVS_MAX: u32 = 1024;
/// Most bytes moved in one call; a guest has to expect short reads and writes anyway.
const MOVE_BYTES_MAX: u32 = 1 << 20;

impl WasiContext {
    /// Checks its arguments and does nothing else: what the guest reads soon is not worth the host's page cache.
    pub fn fd_advise(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        offset: i64,
        len: i64,
        advice: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            self.descriptors().file(fd as u32)?;
            let valid = offset >= 0 && len >= 0 && (0..=5).contains(&advice);
            if valid { Ok(()) } else { Err(Errno::Inval.into()) }
        })
    }

    /// Not supported, as in other implementations: programs fall back to writing.
    pub fn fd_allocate(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        _offset: i64,
        _len: i64,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let file = self.descriptors().file(fd as u32)?;
            if !file.granted_writable {
                return Err(Errno::RoFs.into());
            }
            Err(Errno::NotSup.into())
        })
    }

    /// Closes a descriptor.
    pub fn fd_close(&mut self, _memory: &mut GuestMemory<'_>, _streams: &mut Streams, fd: i32) -> Result<Errno, Stop> {
        settle(|| self.descriptors().close(fd as u32))
    }

    /// Describes a descriptor: kind, flags and rights.
    pub fn fd_fdstat_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        stat: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let (filetype, flags, base, inheriting) = match self.descriptors().get(fd as u32)? {
                // Not a character device, so that nobody takes a stream for a terminal.
                Descriptor::Stdin => (Filetype::Unknown, 0, rights::FD_READ, rights::FD_READ),
                Descriptor::Stdout | Descriptor::Stderr => (Filetype::Unknown, 0, rights::FD_WRITE, rights::FD_WRITE),
                Descriptor::File(file) => {
                    let mut base = rights::FILE;
                    for (has, right) in [
                        (file.readable, rights::FD_READ),
                        (file.writable, rights::FD_WRITE),
                        (file.granted_writable, rights::MUTATING),
                    ] {
                        base &= if has { u64::MAX } else { !right };
                    }
                    let append = if file.append { fdflags::APPEND } else { 0 };
                    let nonblock = if file.nonblock { fdflags::NONBLOCK } else { 0 };
                    (Filetype::RegularFile, append | nonblock, base, base)
                }
                Descriptor::Directory(directory) => {
                    let mask = if directory.writable { u64::MAX } else { !rights::MUTATING };
                    (Filetype::Directory, 0, rights::DIRECTORY & mask, (rights::DIRECTORY | rights::FILE) & mask)
                }
            };
            write_fdstat(memory, stat as u32, filetype, flags, base, inheriting)
        })
    }

    /// Sets the flags of a file: appending and not blocking.
    pub fn fd_fdstat_set_flags(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        flags: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let file = self.descriptors().file(fd as u32)?;
            let flags = known_bits(flags, fdflags::APPEND | fdflags::NONBLOCK)?;
            file.set_append(flags & fdflags::APPEND != 0)?;
            file.nonblock = flags & fdflags::NONBLOCK != 0;
            Ok(())
        })
    }

    /// Not supported: what a descriptor allows follows from its grant and how it was opened.
    pub fn fd_fdstat_set_rights(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        _base: i64,
        _inheriting: i64,
    ) -> Result<Errno, Stop> {
        settle(|| match self.descriptors().get(fd as u32)? {
            Descriptor::File(_) | Descriptor::Directory(_) => Err(Errno::NotSup.into()),
            Descriptor::Stdin | Descriptor::Stdout | Descriptor::Stderr => Err(Errno::BadF.into()),
        })
    }

    /// Describes an open file or directory.
    pub fn fd_filestat_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        stat: i32,
    ) -> Result<Errno, Stop> {
        settle(|| self.filestat(fd)?.write(memory, stat as u32, Snapshot::One))
    }

    /// [`WasiContext::fd_filestat_get`] of snapshot 0.
    pub fn unstable_fd_filestat_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        stat: i32,
    ) -> Result<Errno, Stop> {
        settle(|| self.filestat(fd)?.write(memory, stat as u32, Snapshot::Zero))
    }

    fn filestat(&mut self, fd: i32) -> Result<Filestat, Fail> {
        let clocks = self.config.clocks;
        Ok(match self.descriptors().get(fd as u32)? {
            Descriptor::Stdin | Descriptor::Stdout | Descriptor::Stderr => Filestat::STREAM,
            Descriptor::File(file) => Filestat::new(&cap_fs_ext::Metadata::from_file(&file.file)?, clocks),
            Descriptor::Directory(directory) => Filestat::new(&directory.dir.dir_metadata()?, clocks),
        })
    }

    /// Truncates or extends a file.
    pub fn fd_filestat_set_size(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        size: i64,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let (descriptors, disk) = self.descriptors_and_disk();
            let file = descriptors.file(fd as u32)?;
            if !file.granted_writable {
                return Err(Errno::RoFs.into());
            }
            if !file.host_writable {
                return Err(Errno::BadF.into());
            }
            let size_new = u64::try_from(size).map_err(|_| Errno::FBig)?;
            let size = file.size()?;
            disk.check_resize(size, size_new)?;
            file.file.set_len(size_new)?;
            disk.count(size, size_new);
            Ok(())
        })
    }

    /// Sets the times of an open file or directory.
    pub fn fd_filestat_set_times(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        atim: i64,
        mtim: i64,
        flags: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let times = Times::new(atim, mtim, flags)?;
            match self.descriptors().get(fd as u32)? {
                Descriptor::File(file) if file.granted_writable => times.set(&file.file),
                Descriptor::Directory(directory) if directory.writable => times.set(&*directory.dir),
                Descriptor::File(_) | Descriptor::Directory(_) => Err(Errno::RoFs.into()),
                Descriptor::Stdin | Descriptor::Stdout | Descriptor::Stderr => Err(Errno::BadF.into()),
            }
        })
    }

    /// Reads at an offset.
    #[expect(clippy::too_many_arguments, reason = "WASI's parameters")]
    pub fn fd_pread(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        iovs: i32,
        iovs_len: i32,
        offset: i64,
        nread: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let iovs = Iovs::new(memory, iovs, iovs_len, nread)?;
            let file = self.descriptors().seekable(fd as u32)?;
            let offset = u64::try_from(offset).map_err(|_| Errno::Inval)?;
            let read = file.read_at(memory, &iovs, offset)?;
            iovs.finish(memory, read)
        })
    }

    /// Reads from a file's position or the input.
    pub fn fd_read(
        &mut self,
        memory: &mut GuestMemory<'_>,
        streams: &mut Streams,
        fd: i32,
        iovs: i32,
        iovs_len: i32,
        nread: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let iovs = Iovs::new(memory, iovs, iovs_len, nread)?;
            let read = match self.descriptors().get(fd as u32)? {
                Descriptor::Stdin => read_input(memory, streams, &iovs)?,
                Descriptor::File(file) => {
                    let read = file.read_at(memory, &iovs, file.position)?;
                    file.position = file.position.saturating_add(u64::from(read));
                    read
                }
                Descriptor::Directory(_) | Descriptor::Stdout | Descriptor::Stderr => return Err(Errno::BadF.into()),
            };
            iovs.finish(memory, read)
        })
    }

    /// Writes at an offset. As on Linux, a file in append mode is appended to.
    #[expect(clippy::too_many_arguments, reason = "WASI's parameters")]
    pub fn fd_pwrite(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        iovs: i32,
        iovs_len: i32,
        offset: i64,
        nwritten: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let iovs = Iovs::new(memory, iovs, iovs_len, nwritten)?;
            let (descriptors, disk) = self.descriptors_and_disk();
            let file = descriptors.seekable(fd as u32)?;
            let offset = u64::try_from(offset).map_err(|_| Errno::Inval)?;
            let (written, _) = file.write_at(memory, &iovs, offset, disk)?;
            iovs.finish(memory, written)
        })
    }

    /// Writes at a file's position, or output or error text.
    ///
    /// # Errors
    ///
    /// [`Stop::Exceeded`] when the quota on output or error text runs out.
    pub fn fd_write(
        &mut self,
        memory: &mut GuestMemory<'_>,
        streams: &mut Streams,
        fd: i32,
        iovs: i32,
        iovs_len: i32,
        nwritten: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let iovs = Iovs::new(memory, iovs, iovs_len, nwritten)?;
            let (descriptors, disk) = self.descriptors_and_disk();
            let written = match descriptors.get(fd as u32)? {
                Descriptor::Stdout => iovs.each(memory, |bytes| streams.write_output(bytes))?,
                Descriptor::Stderr => iovs.each(memory, |bytes| streams.write_error(bytes))?,
                Descriptor::File(file) => {
                    let (written, end) = file.write_at(memory, &iovs, file.position, disk)?;
                    if written > 0 {
                        file.position = end;
                    }
                    written
                }
                Descriptor::Directory(_) | Descriptor::Stdin => return Err(Errno::BadF.into()),
            };
            iovs.finish(memory, written)
        })
    }

    /// Tells whether a descriptor is a granted directory, and the length of its name.
    pub fn fd_prestat_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        prestat: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let name_bytes = self.granted_name(fd, Errno::BadF)?.len() as u32;
            let mut bytes = [0; 8];
            bytes[4..].copy_from_slice(&name_bytes.to_le_bytes());
            Ok(memory.write(prestat as u32, &bytes)?)
        })
    }

    /// Writes the name of a granted directory.
    pub fn fd_prestat_dir_name(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        path: i32,
        path_len: i32,
    ) -> Result<Errno, Stop> {
        settle(|| {
            let name = self.granted_name(fd, Errno::NotDir)?;
            if name.len() > path_len as u32 as usize {
                return Err(Errno::NameTooLong.into());
            }
            Ok(memory.write(path as u32, name.as_bytes())?)
        })
    }

    fn granted_name(&mut self, fd: i32, otherwise: Errno) -> Result<&str, Fail> {
        let granted = match self.descriptors().get(fd as u32)? {
            Descriptor::Directory(directory) => directory.granted,
            _ => None,
        };
        let granted = granted.and_then(|index| self.config.directories.get(index));
        granted.map(|granted| granted.guest.as_str()).ok_or(Fail::Errno(otherwise))
    }

    /// Moves a descriptor to another number, closing what was there.
    pub fn fd_renumber(
        &mut self,
        _memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        from: i32,
        to: i32,
    ) -> Result<Errno, Stop> {
        settle(|| self.descriptors().renumber(from as u32, to as u32))
    }

    /// Moves a file's position.
    pub fn fd_seek(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        offset: i64,
        whence: i32,
        position: i32,
    ) -> Result<Errno, Stop> {
        let whence = [Whence::Set, Whence::Current, Whence::End].get(whence as u32 as usize);
        settle(|| self.seek(memory, fd, offset, whence, position))
    }

    /// [`WasiContext::fd_seek`] of snapshot 0, which numbers the origins in another order.
    pub fn unstable_fd_seek(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        offset: i64,
        whence: i32,
        position: i32,
    ) -> Result<Errno, Stop> {
        let whence = [Whence::Current, Whence::End, Whence::Set].get(whence as u32 as usize);
        settle(|| self.seek(memory, fd, offset, whence, position))
    }

    fn seek(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: i32,
        offset: i64,
        whence: Option<&Whence>,
        position: i32,
    ) -> Result<(), Fail> {
        let file = self.descriptors().seekable(fd as u32)?;
        let base = match whence.ok_or(Errno::Inval)? {
            Whence::Set => 0,
            Whence::Current => file.position,
            Whence::End => file.size()?,
        };
        let sought = base.checked_add_signed(offset).filter(|sought| i64::try_from(*sought).is_ok());
        let sought = sought.ok_or(Errno::Inval)?;
        memory.write_u64(position as u32, sought)?;
        file.position = sought;
        Ok(())
    }

    /// Tells a file's position.
    pub fn fd_tell(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        fd: i32,
        offset: i32,
    ) -> Result<Errno, Stop> {
        settle(|| Ok(memory.write_u64(offset as u32, self.descriptors().seekable(fd as u32)?.position)?))
    }
}

/// What an offset counts from.
#[derive(Debug, Clone, Copy)]
enum Whence {
    Set,
    Current,
    End,
}

impl OpenFile {
    pub(crate) fn size(&self) -> Result<u64, Fail> {
        Ok(self.file.metadata()?.len())
    }

    /// Sets append mode here and in the host, whose own flag is what keeps two writers apart.
    pub(crate) fn set_append(&mut self, append: bool) -> Result<(), Fail> {
        if append != self.append {
            let mut flags = rustix::fs::fcntl_getfl(&self.file)?;
            flags.set(OFlags::APPEND, append);
            rustix::fs::fcntl_setfl(&self.file, flags)?;
            self.append = append;
        }
        Ok(())
    }

    fn read_at(&self, memory: &mut GuestMemory<'_>, iovs: &Iovs, offset: u64) -> Result<u32, Fail> {
        if !self.readable {
            return Err(Errno::BadF.into());
        }
        let mut total = 0;
        for index in 0..iovs.len {
            let (address, len) = iovs.get(memory, index)?;
            let len = len.min(MOVE_BYTES_MAX - total);
            if len == 0 {
                continue;
            }
            let buffer = memory.slice_mut(address, len)?;
            match retry(|| self.file.read_at(buffer, offset.saturating_add(u64::from(total)))) {
                Ok(read) => {
                    total += read as u32;
                    if read < len as usize {
                        break;
                    }
                }
                // What was read before is not lost; the guest meets the error when it goes on.
                Err(_) if total > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(total)
    }

    /// How much was written, and where that ended.
    fn write_at(
        &self,
        memory: &GuestMemory<'_>,
        iovs: &Iovs,
        offset: u64,
        disk: &mut Disk,
    ) -> Result<(u32, u64), Fail> {
        if !self.writable {
            return Err(Errno::BadF.into());
        }
        let mut size = self.size()?;
        let mut at = if self.append { size } else { offset };
        let mut total = 0;
        for index in 0..iovs.len {
            let (address, len) = iovs.get(memory, index)?;
            let len = len.min(MOVE_BYTES_MAX - total);
            if len == 0 {
                continue;
            }
            let bytes = memory.slice(address, len)?;
            let written = disk.fit(size, at, bytes.len()).and_then(|fits| {
                let bytes = &bytes[..fits];
                if self.append {
                    let mut file = &self.file;
                    let written = retry(|| file.write(bytes))?;
                    // Others may have appended in between.
                    Ok((written, file.stream_position()?))
                } else {
                    let written = retry(|| self.file.write_at(bytes, at))?;
                    Ok((written, at.saturating_add(written as u64)))
                }
            });
            match written {
                Ok((written, end)) => {
                    // An append may land behind what others appended meanwhile; that growth is not this call's.
                    let size_before = if self.append { end.saturating_sub(written as u64) } else { size };
                    disk.count(size_before, end);
                    at = end;
                    size = size.max(end);
                    total += written as u32;
                    if written < len as usize {
                        break;
                    }
                }
                Err(_) if total > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok((total, at))
    }
}

fn retry<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn read_input(memory: &mut GuestMemory<'_>, streams: &mut Streams, iovs: &Iovs) -> Result<u32, Fail> {
    let mut total = 0;
    for index in 0..iovs.len {
        let (address, len) = iovs.get(memory, index)?;
        let len = len.min(MOVE_BYTES_MAX - total);
        if len == 0 {
            continue;
        }
        let input = match streams.peek_input() {
            Ok(input) => input,
            // Nothing is waited for once there is something to return.
            Err(_) if total > 0 => break,
            Err(stop) => return Err(stop.into()),
        };
        let take = input.len().min(len as usize);
        memory.write(address, &input[..take])?;
        if take == 0 && total == 0 && streams.input_failed() {
            return Err(Errno::Io.into());
        }
        streams.take_input(take);
        total += take as u32;
        if take < len as usize {
            break;
        }
    }
    Ok(total)
}

/// A guest's list of buffers, checked to lie in its memory, and where to put how much was moved.
#[derive(Debug)]
struct Iovs {
    address: u32,
    len: u32,
    moved: u32,
}

impl Iovs {
    fn new(memory: &GuestMemory<'_>, iovs: i32, iovs_len: i32, moved: i32) -> Result<Iovs, Fail> {
        let iovs = Iovs { address: iovs as u32, len: iovs_len as u32, moved: moved as u32 };
        if iovs.len > IOVS_MAX {
            return Err(Errno::Inval.into());
        }
        // All of it before anything is moved: a fault must not leave half of a write behind.
        memory.slice(iovs.moved, 4)?;
        for index in 0..iovs.len {
            let (address, len) = iovs.get(memory, index)?;
            memory.slice(address, len)?;
        }
        Ok(iovs)
    }

    fn get(&self, memory: &GuestMemory<'_>, index: u32) -> Result<(u32, u32), Fail> {
        let address = element(self.address, index, 8)?;
        Ok((memory.read_u32(address)?, memory.read_u32(element(address, 4, 1)?)?))
    }

    /// Hands the bytes to `write`, up to the bound of one call.
    fn each(&self, memory: &GuestMemory<'_>, mut write: impl FnMut(&[u8]) -> Result<(), Stop>) -> Result<u32, Fail> {
        let mut total = 0;
        for index in 0..self.len {
            let (address, len) = self.get(memory, index)?;
            let len = len.min(MOVE_BYTES_MAX - total);
            write(memory.slice(address, len)?)?;
            total += len;
        }
        Ok(total)
    }

    fn finish(&self, memory: &mut GuestMemory<'_>, moved: u32) -> Result<(), Fail> {
        Ok(memory.write_u32(self.moved, moved)?)
    }
}
