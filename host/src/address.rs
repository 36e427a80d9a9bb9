//! Where the server of a state folder listens, for the commands that talk to it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;

/// The file in the state folder. A server holds a lock on it as long as it runs, so that what a killed
/// one left there is not taken for an address.
const FILE: &str = "server.address";

/// An address that commands find. It is withdrawn when this is dropped, or with the process.
#[derive(Debug)]
pub struct Published {
    _locked: File,
}

/// Publishes the address on which the server of a state folder listens.
pub fn publish(state: &Path, listening: SocketAddr) -> anyhow::Result<Published> {
    let path = state.join(FILE);
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        file.lock()?;
        file.set_len(0)?;
        write!(file, "{}", reachable(listening))?;
        std::io::Result::Ok(Published { _locked: file })
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The address of the server that runs on a state folder; none where none runs.
pub fn find(state: &Path) -> anyhow::Result<Option<SocketAddr>> {
    let path = state.join(FILE);
    let read = || {
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match file.try_lock_shared() {
            Ok(()) => return Ok(None),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // One that is just being written is not there yet.
        Ok(text.parse().ok())
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// Where this machine reaches a server: one that listens on every address is on the loopback.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_as_long_as_its_server_runs() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        assert_eq!(find(state).unwrap(), None);
        for (listening, found) in [
            ("127.0.0.1:18000", "127.0.0.1:18000"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:8000", "[::1]:8000"),
        ] {
            let published = publish(state, listening.parse().unwrap()).unwrap();
            assert_eq!(find(state).unwrap(), Some(found.parse().unwrap()));
            drop(published);
            assert_eq!(find(state).unwrap(), None, "{listening}");
        }
    }
}
