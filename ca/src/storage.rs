//! The CA's root on disk: `ca-key.pem` and `root-cert.pem` in the state directory.
//!
//! Made once; afterwards only read. Whatever does not fit together is refused and left as it is, since a new root in the
//! place of the old one would cut off every workload. Replacing a root on purpose is not done here.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use spiffe::{Authority, AuthorityError, KeyError, PrivateKey, TrustDomain};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::{JoinTokens, files};

/// Validity of a root made here.
pub const ROOT_LIFETIME: Duration = Duration::days(3650);
const KEY: &str = "ca-key.pem";
const ROOT: &str = "root-cert.pem";
const LOCK: &str = ".ca.lock";
/// Longest key or certificate file in bytes that is read.
const MAX_BYTES: u64 = 64 * 1024;

/// Why the state directory cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("{path}: {doing} failed")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{0} can be written by everybody; take that right away (chmod o-w)")]
    WritableDirectory(PathBuf),
    #[error("{path} has mode {mode:04o}; a private key must be readable by its owner alone (chmod 600)")]
    KeyMode { path: PathBuf, mode: u32 },
    #[error("{path} belongs to user {owner}, not to the user {user} that this process runs as")]
    KeyOwner { path: PathBuf, owner: u32, user: u32 },
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
    #[error("{0} is too large for what it should hold")]
    TooLarge(PathBuf),
    #[error(
        "{present} is there but {missing} is not: restore it from a backup, or, if this CA has never signed, remove {present}"
    )]
    Half { present: PathBuf, missing: PathBuf },
    #[error("{path} holds no usable private key")]
    Key { path: PathBuf, source: KeyError },
    #[error("{path} is no root certificate for {KEY} beside it")]
    Root { path: PathBuf, source: AuthorityError },
    #[error("a new root could not be made")]
    Create(#[source] AuthorityError),
    #[error("{path} is for {found}, but the trust domain is {expected}")]
    TrustDomain { path: PathBuf, found: String, expected: TrustDomain },
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct Storage {
    dir: PathBuf,
}

impl Storage {
    /// Takes `dir`, making it (0755: agents read the root certificate in it) if it is not there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let dir = dir.into();
        files::create_dir(&dir, 0o755).map_err(|source| io_error(&dir, "making the directory", source))?;
        let metadata =
            fs::metadata(&dir).map_err(|source| io_error(&dir, "reading the directory", source))?;
        if metadata.permissions().mode() & 0o002 != 0 {
            return Err(StorageError::WritableDirectory(dir));
        }
        Ok(Self { dir })
    }

    /// The public root certificate, for `--trust-bundle`.
    pub fn root_path(&self) -> PathBuf {
        self.dir.join(ROOT)
    }

    fn key_path(&self) -> PathBuf {
        self.dir.join(KEY)
    }

    /// The join tokens kept beside the root.
    pub fn join_tokens(&self) -> JoinTokens {
        JoinTokens::new(self.dir.join("join-tokens"))
    }

    /// The root for `domain`: the one that is there, or a new one if there is none.
    ///
    /// Safe against another process doing the same at the same time: both get the same root. An expired root is loaded
    /// too (it says so when it should sign), because making another is not ours to decide.
    pub fn authority(&self, domain: &TrustDomain, now: OffsetDateTime) -> Result<Authority, StorageError> {
        // Held until the end of the function; the kernel lets go of it if we die.
        let _lock = self.lock()?;
        let (key, root) = (self.key_path(), self.root_path());
        let there =
            |path: &Path| fs::exists(path).map_err(|source| io_error(path, "looking for the file", source));
        match (there(&key)?, there(&root)?) {
            (true, true) => self.load(domain),
            (false, false) => self.create(domain, now),
            (true, false) => Err(StorageError::Half { present: key, missing: root }),
            (false, true) => Err(StorageError::Half { present: root, missing: key }),
        }
    }

    fn lock(&self) -> Result<File, StorageError> {
        let path = self.dir.join(LOCK);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|source| io_error(&path, "opening the lock", source))?;
        file.lock().map_err(|source| io_error(&path, "locking", source))?;
        Ok(file)
    }

    fn load(&self, domain: &TrustDomain) -> Result<Authority, StorageError> {
        let (key_path, path) = (self.key_path(), self.root_path());
        let key = read(&key_path, check_private)?;
        let source = |source| StorageError::Key { path: key_path.clone(), source };
        let text = std::str::from_utf8(&key).map_err(|_| source(KeyError::Pem))?;
        let key = PrivateKey::from_pem(text).map_err(source)?;
        let root = read(&path, |_, _| Ok(()))?;
        let authority = Authority::load(&root, key)
            .map_err(|source| StorageError::Root { path: path.clone(), source })?;
        match authority.trust_domain() {
            Some(found) if found == *domain => Ok(authority),
            found => {
                let found = found.map_or_else(|| "no trust domain".to_owned(), |found| found.to_string());
                Err(StorageError::TrustDomain { path, found, expected: domain.clone() })
            }
        }
    }

    fn create(&self, domain: &TrustDomain, now: OffsetDateTime) -> Result<Authority, StorageError> {
        let authority = Authority::create(domain, now, ROOT_LIFETIME).map_err(StorageError::Create)?;
        let (key, root) = (self.key_path(), self.root_path());
        // The key first: a certificate that is published while its key is lost could never be used.
        files::create_new(&key, authority.key().to_pem().as_bytes(), 0o600)
            .map_err(|source| io_error(&key, "creating the file", source))?;
        files::create_new(&root, authority.root().to_pem().as_bytes(), 0o644)
            .map_err(|source| io_error(&root, "creating the file", source))?;
        tracing::info!(root = %root.display(), trust_domain = %domain, "made a new root");
        Ok(authority)
    }
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> StorageError {
    StorageError::Io { path: path.to_owned(), doing, source }
}

/// Reads a small regular file after `check`, which looks at the file that is read, not at its name.
fn read(
    path: &Path,
    check: impl FnOnce(&Path, &fs::Metadata) -> Result<(), StorageError>,
) -> Result<Zeroizing<Vec<u8>>, StorageError> {
    let failed = |source| io_error(path, "reading the file", source);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(StorageError::NotAFile(path.to_owned()));
    }
    check(path, &metadata)?;
    if metadata.len() > MAX_BYTES {
        return Err(StorageError::TooLarge(path.to_owned()));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize));
    file.take(MAX_BYTES).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), StorageError> {
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StorageError::KeyMode { path: path.to_owned(), mode });
    }
    let (owner, user) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    if owner != user {
        return Err(StorageError::KeyOwner { path: path.to_owned(), owner, user });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
