//! Where the daemon of this user is, and a client of it.

use std::path::{Path, PathBuf};

use clap::Args;
use palisade::{Error, ErrorKind, Result};
use palisade_rpc::{Address, Client};

/// How a command finds the daemon.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Socket of the daemon [default: beside its data, `palisade/daemon/socket` in the data directory of this user]
    #[arg(long, value_name = "PATH", env = "PALISADE_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
}

impl Connection {
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(Address::Unix(match &self.socket {
            Some(path) => path.clone(),
            None => socket_in(&data_directory()?),
        })))
    }
}

/// Where a daemon keeps its data unless it is told otherwise.
pub(crate) fn data_directory() -> Result<PathBuf> {
    crate::home_directory("XDG_DATA_HOME", ".local/share").map(|data| data.join("palisade/daemon")).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "open", "this user has no home directory")
            .with_help("name one with `--data`, or the socket with `--socket`")
    })
}

/// The socket of the daemon with this data.
pub(crate) fn socket_in(data: &Path) -> PathBuf {
    data.join("socket")
}
