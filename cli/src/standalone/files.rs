//! What standalone mode itself writes into its state folder: the addresses it listens on. Keys and tokens are `ca`'s.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The addresses as bound; `None` for one that is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Addresses {
    pub(crate) plaintext: Option<SocketAddr>,
    pub(crate) secure: Option<SocketAddr>,
    pub(crate) monitoring: Option<SocketAddr>,
}

/// Replaces `addresses.json`, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_addresses(state: &Path, addresses: &Addresses) -> Result<()> {
    let path = state.join("addresses.json");
    let new = state.join(format!(".addresses.json.{}", std::process::id()));
    let write = || -> Result<()> {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(addresses)?)?;
        file.sync_all()?;
        Ok(std::fs::rename(&new, &path)?)
    };
    write().with_context(|| path.display().to_string())
}
