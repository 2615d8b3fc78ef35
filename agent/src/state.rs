//! The agent's folders and files: who may see them, and how they survive a crash. Holds no logic about certificates.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::args::AgentArgs;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not safe: {reason}", path.display())]
    Unsafe { path: PathBuf, reason: String },
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) sds_socket: PathBuf,
    pub(crate) admin_socket: PathBuf,
    pub(crate) bootstrap: PathBuf,
    pub(crate) pid_file: PathBuf,
    key: PathBuf,
    certificate: PathBuf,
}

impl State {
    /// Makes the folders. The one that Envoy uses belongs to `proxy_uid` if it is not our own.
    pub(crate) fn open(args: &AgentArgs, proxy_uid: Option<u32>) -> Result<Self, StateError> {
        let shared = folder_of(&args.sds_socket);
        private_dir(&shared, proxy_uid)?;
        let own = args.state.clone().unwrap_or_else(|| shared.clone());
        if own != shared {
            private_dir(&own, None)?;
        }
        Ok(Self {
            sds_socket: args.sds_socket.clone(),
            admin_socket: shared.join("envoy-admin.sock"),
            bootstrap: shared.join("envoy-bootstrap.json"),
            pid_file: own.join("envoy.pid"),
            key: own.join("agent-key.pem"),
            certificate: own.join("agent-cert.pem"),
        })
    }

    /// The agent's key and certificate chain as PEM, if it has enrolled before.
    pub(crate) fn credential(&self) -> Result<Option<(String, String)>, StateError> {
        let read = |path: &Path| match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { what: "cannot read", path: path.to_owned(), source }),
        };
        if let Ok(meta) = fs::metadata(&self.key)
            && meta.mode() & 0o077 != 0
        {
            let reason = format!("mode {:o} lets others read the key; make it 0600", meta.mode() & 0o777);
            return Err(StateError::Unsafe { path: self.key.clone(), reason });
        }
        Ok(read(&self.key)?.zip(read(&self.certificate)?))
    }

    /// Replaces key and chain, each at once; a crash in between leaves a pair that does not match and is enrolled anew.
    pub(crate) fn store(&self, key: &str, chain: &str) -> Result<(), StateError> {
        write_private(&self.key, key.as_bytes())?;
        write_private(&self.certificate, chain.as_bytes())
    }
}

fn folder_of(socket: &Path) -> PathBuf {
    match socket.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A folder 0700; refuses one that somebody else owns or can enter.
fn private_dir(path: &Path, owner: Option<u32>) -> Result<(), StateError> {
    let io = |what| move |source| StateError::Io { what, path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("cannot make the folder"))?;
    let me = nix::unistd::geteuid().as_raw();
    let meta = fs::metadata(path).map_err(io("cannot look at"))?;
    if ![Some(me), owner].contains(&Some(meta.uid())) {
        let reason = format!("it belongs to user {}, not to {me}", meta.uid());
        return Err(StateError::Unsafe { path: path.to_owned(), reason });
    }
    if meta.mode() & 0o077 != 0 {
        let reason = format!("mode {:o} lets others in; make it 0700", meta.mode() & 0o777);
        return Err(StateError::Unsafe { path: path.to_owned(), reason });
    }
    if let Some(owner) = owner.filter(|owner| *owner != meta.uid()) {
        std::os::unix::fs::chown(path, Some(owner), Some(owner)).map_err(io("cannot give to Envoy"))?;
    }
    Ok(())
}

/// Writes 0600, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let io = |what| move |source| StateError::Io { what, path: path.to_owned(), source };
    let scratch = path.with_extension("new");
    // One agent owns this folder: a scratch file is a left-over of its own crash.
    let _ = fs::remove_file(&scratch);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&scratch)
        .map_err(io("cannot write"))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io("cannot write"))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("cannot write"))?;
    fs::rename(&scratch, path).map_err(io("cannot write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_others_can_enter_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = dir.path().join("open");
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("set");
        assert!(matches!(private_dir(&open, None), Err(StateError::Unsafe { .. })));
        let new = dir.path().join("a/b");
        private_dir(&new, None).expect("made");
        assert_eq!(fs::metadata(&new).expect("there").mode() & 0o777, 0o700);
    }

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key.pem");
        write_private(&file, b"one").expect("written");
        write_private(&file, b"two").expect("replaced");
        assert_eq!(fs::read(&file).expect("there"), b"two");
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o600);
    }
}
