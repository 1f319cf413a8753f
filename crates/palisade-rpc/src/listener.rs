//! Where requests come in: a Unix socket or a TCP port.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use palisade_core::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::Token;

/// Where requests come in.
pub struct Listener(pub(crate) Kind);

pub(crate) enum Kind {
    Unix { listener: UnixListener, place: Place },
    Tcp { listener: TcpListener, token: Token },
}

/// A socket of ours at a path, and the lock that keeps other daemons from replacing it. Both are gone with it.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// Device and inode of the socket.
    id: Option<(u64, u64)>,
    _lock: fs::File,
}

impl Place {
    fn id(path: &Path) -> Option<(u64, u64)> {
        fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Gone already when somebody tidied up; another's when somebody replaced it all the same.
        if self.id.is_some() && Place::id(&self.path) == self.id {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Listener {
    /// Listens on a Unix socket that only its owner can use. What a daemon left there that ended is replaced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when another daemon listens there, [`ErrorKind::InvalidInput`] when something else lies
    /// there, else [`ErrorKind::Io`].
    pub async fn unix(path: impl Into<PathBuf>) -> Result<Listener> {
        let path = path.into();
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, "listen", format!("cannot listen on {}", path.display())).with_source(error)
        };
        let in_use = || {
            let message = format!("another daemon listens on {}", path.display());
            Error::new(ErrorKind::Exhausted, "listen", message).with_help("stop it, or choose another path")
        };
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let len = path.as_os_str().len();
            let message = format!("the path of the socket has {len} bytes; the kernel takes {SOCKET_PATH_BYTES_MAX}");
            return Err(Error::new(ErrorKind::InvalidInput, "listen", message)
                .with_context("path", path.display())
                .with_help("name a shorter one (`--socket /run/user/1000/palisade`)"));
        }
        // Between looking and taking the place another daemon could do the same: one at a time.
        let mut name = path.clone().into_os_string();
        name.push(".lock");
        let lock =
            fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(&name).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(in_use()),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        match fs::symlink_metadata(&path) {
            Ok(there) if !there.file_type().is_socket() => {
                let message = format!("{} exists and is not a socket", path.display());
                return Err(Error::new(ErrorKind::InvalidInput, "listen", message).with_help("choose another path"));
            }
            Ok(_) if UnixStream::connect(&path).await.is_ok() => return Err(in_use()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = bind_private(&path).map_err(failed)?;
        let place = Place { id: Place::id(&path), path, _lock: lock };
        Ok(Listener(Kind::Unix { listener, place }))
    }

    /// Listens on TCP, for clients that show `token`. Nothing is encrypted: beyond this machine that is for a trusted
    /// network only, or for a proxy that encrypts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub async fn tcp(address: SocketAddr, token: Token) -> Result<Listener> {
        let failed =
            |error| Error::new(ErrorKind::Io, "listen", format!("cannot listen on {address}")).with_source(error);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Listener(Kind::Tcp { listener, token }))
    }

    /// Where it listens, for people: a path, or an address with the port that was given.
    pub fn name(&self) -> String {
        match &self.0 {
            Kind::Unix { place, .. } => place.path.display().to_string(),
            Kind::Tcp { listener, .. } => {
                listener.local_addr().map_or_else(|_| "a TCP port".to_owned(), |address| format!("http://{address}"))
            }
        }
    }
}

/// Longest path of a socket, in bytes: `sun_path` without the zero at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Binds where nobody else can reach, and moves the socket to its place when its rights are set: at no time may others
/// connect.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let private = parent.join(format!(".{}", std::process::id()));
    let made = private.join("s");
    // Left by a daemon that was killed right here; in a container the same number comes again.
    let _ = fs::remove_file(&made);
    let _ = fs::remove_dir(&private);
    fs::DirBuilder::new().mode(0o700).create(&private)?;
    // Its own path may be longer than the one it is moved to; then it is named from the directory, which is open.
    let directory = fs::File::open(&private)?;
    let named = match made.as_os_str().len() {
        0..=SOCKET_PATH_BYTES_MAX => made.clone(),
        _ => PathBuf::from(format!("/proc/self/fd/{}/s", directory.as_raw_fd())),
    };
    let bound = UnixListener::bind(&named).and_then(|listener| {
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
        fs::rename(&made, path)?;
        Ok(listener)
    });
    let _ = fs::remove_file(&made);
    let _ = fs::remove_dir(&private);
    bound
}
