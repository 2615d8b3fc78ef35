//! The agent's folders and files: who may see them, and how they survive a crash. Holds no logic about certificates.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::args::AgentArgs;

/// Beside the SDS socket: Envoy's admin interface.
pub(crate) const ADMIN_SOCKET: &str = "envoy-admin.sock";
/// Join tokens are short.
const MAX_TOKEN_BYTES: u64 = 4096;

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
    /// Key and chain in one file: they are replaced together or not at all.
    credential: PathBuf,
}

impl State {
    /// Makes the folders. The one that Envoy uses belongs to `proxy_uid` if it is not our own.
    pub(crate) fn open(args: &AgentArgs, proxy_uid: Option<u32>) -> Result<Self, StateError> {
        // Absolute: an Envoy that is left behind is known by the path of its bootstrap.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let sds_socket = absolute(&args.sds_socket);
        let shared = folder_of(&sds_socket);
        private_dir(&shared, proxy_uid)?;
        let own = args.state.as_deref().map_or_else(|| shared.clone(), absolute);
        if own != shared {
            private_dir(&own, None)?;
        }
        Ok(Self {
            sds_socket,
            admin_socket: shared.join(ADMIN_SOCKET),
            bootstrap: shared.join("envoy-bootstrap.json"),
            credential: own.join("agent-svid.pem"),
        })
    }

    /// The agent's key and certificate chain as PEM, if it has enrolled before.
    pub(crate) fn credential(&self) -> Result<Option<(Zeroizing<String>, String)>, StateError> {
        let path = &self.credential;
        let text = match fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { what: "cannot read", path: path.clone(), source }),
        };
        let mode = fs::metadata(path).map(|meta| meta.mode()).unwrap_or_default();
        if mode & 0o077 != 0 {
            let reason = format!("mode {:o} lets others read the key; make it 0600", mode & 0o777);
            return Err(StateError::Unsafe { path: path.clone(), reason });
        }
        Ok(text
            .find("-----BEGIN CERTIFICATE")
            .map(|at| (Zeroizing::new(text[..at].to_owned()), text[at..].to_owned())))
    }

    /// Replaces key and chain at once: whenever the agent is killed, one whole credential is there.
    pub(crate) fn store(&self, key: &str, chain: &str) -> Result<(), StateError> {
        let both = Zeroizing::new([key, chain].concat());
        write_private(&self.credential, both.as_bytes(), None)
    }
}

/// The join token in `path`, without the white space around it. Says so if others could have read it.
pub(crate) fn join_token(path: &Path) -> Result<Zeroizing<String>, StateError> {
    let io = |source| StateError::Io { what: "cannot read the join token", path: path.to_owned(), source };
    let bad = |reason: &str| StateError::Unsafe { path: path.to_owned(), reason: reason.to_owned() };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.mode();
    if mode & 0o077 != 0 {
        tracing::warn!(file = %path.display(), mode = format!("{:o}", mode & 0o777), "others can read the join token");
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    match text.trim() {
        "" => Err(bad("it holds no join token")),
        _ if text.len() as u64 > MAX_TOKEN_BYTES => Err(bad("it is too long for a join token")),
        token => Ok(Zeroizing::new(token.to_owned())),
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

/// Writes 0600, whole or not at all, for `owner` if that is not us.
pub(crate) fn write_private(path: &Path, content: &[u8], owner: Option<u32>) -> Result<(), StateError> {
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
    if let Some(owner) = owner {
        // By descriptor: the folder may be the other user's, and a name there could lead elsewhere by now.
        std::os::unix::fs::fchown(&file, Some(owner), Some(owner)).map_err(io("cannot give to Envoy"))?;
    }
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("cannot write"))?;
    fs::rename(&scratch, path).map_err(io("cannot write"))?;
    // The new name must outlive a power cut as well; some file systems cannot sync a folder, and then do not need it.
    let _ = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
    Ok(())
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
        write_private(&file, b"one", None).expect("written");
        write_private(&file, b"two", None).expect("replaced");
        assert_eq!(fs::read(&file).expect("there"), b"two");
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o600);
    }

    #[test]
    fn a_credential_is_kept_whole_and_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State {
            sds_socket: PathBuf::new(),
            admin_socket: PathBuf::new(),
            bootstrap: PathBuf::new(),
            credential: dir.path().join("agent-svid.pem"),
        };
        assert!(state.credential().expect("nothing yet").is_none());
        let (key, chain) = ("-----BEGIN PRIVATE KEY-----\nk\n", "-----BEGIN CERTIFICATE-----\nc\n");
        state.store(key, chain).expect("stored");
        let (read_key, read_chain) = state.credential().expect("read").expect("there");
        assert_eq!((read_key.as_str(), read_chain.as_str()), (key, chain));
        fs::set_permissions(&state.credential, fs::Permissions::from_mode(0o640)).expect("set");
        assert!(matches!(state.credential(), Err(StateError::Unsafe { .. })));
    }

    #[test]
    fn join_tokens_are_trimmed_and_bounded() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("token");
        for (content, expected) in
            [(" abc\n", Some("abc")), ("", None), (" \n", None), (&"x".repeat(5000), None)]
        {
            fs::write(&file, content).expect("written");
            assert_eq!(join_token(&file).ok().as_ref().map(|token| token.as_str()), expected, "{content:.9}");
        }
        fs::write(&file, [0xff, 0xfe]).expect("written");
        assert!(join_token(&file).is_err());
        assert!(join_token(&dir.path().join("none")).is_err());
    }
}
