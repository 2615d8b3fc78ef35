//! Join tokens: one-time secrets with which an agent gets its first identity.
//!
//! `join-tokens/<SHA-256 of the token>` (0600) holds the workload and the end of validity, never the token. Redeeming moves
//! the file into `used/`; the file system lets exactly one mover win, also across processes. A directory listing tells the
//! hashes, and 256 random bits cannot be found from their hash.
//!
//! Comparing in constant time would add nothing: what is looked up is the hash, and an attacker who varies a token cannot
//! steer how much of its hash agrees with one that is stored.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::{WorkloadName, files};

/// Validity of a token unless asked otherwise.
pub const DEFAULT_TTL: Duration = Duration::minutes(10);
/// Longest validity: a token lies in a file or a clipboard until it is used.
pub const MAX_TTL: Duration = Duration::days(7);
const TOKEN_BYTES: usize = 32;
/// 32 bytes in base64 without padding.
const TOKEN_CHARACTERS: usize = 43;
/// Longest record in bytes that is read.
const MAX_RECORD: u64 = 4096;

/// Why a token could not be made or redeemed. [`TokenError::Refused`] does not say more, so that nobody can learn which
/// tokens exist or existed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the join token is not valid")]
    Refused,
    #[error("a join token lives between one second and seven days")]
    Ttl,
    #[error("there is no randomness for a token")]
    Random,
    #[error("{path}: {doing} failed")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    workload: WorkloadName,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
}

/// The directory of join tokens.
#[derive(Clone, Debug)]
pub struct JoinTokens {
    dir: PathBuf,
}

impl JoinTokens {
    /// Tokens in `dir`, which is made (0700) with the first token.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn used(&self) -> PathBuf {
        self.dir.join("used")
    }

    /// Makes a token for `workload`, valid for `ttl` from `now`. The answer is the only copy.
    pub fn create(
        &self,
        workload: &WorkloadName,
        ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<Zeroizing<String>, TokenError> {
        if ttl < Duration::SECOND || ttl > MAX_TTL {
            return Err(TokenError::Ttl);
        }
        let used = self.used();
        for dir in [&self.dir, &used] {
            files::create_dir(dir, 0o700).map_err(|source| failed(dir, "making the directory", source))?;
        }
        self.purge(now)?;
        let mut random = Zeroizing::new([0; TOKEN_BYTES]);
        aws_lc_rs::rand::fill(&mut *random).map_err(|_| TokenError::Random)?;
        let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(*random));
        let record = Record { workload: workload.clone(), expires: now + ttl };
        let record = serde_json::to_vec(&record).expect("a name and a time are JSON");
        let path = self.dir.join(hash(&token));
        files::create_new(&path, &record, 0o600)
            .map_err(|source| failed(&path, "creating the file", source))?;
        Ok(token)
    }

    /// Whether `token` could be redeemed for `workload` now. Changes nothing.
    pub fn check(&self, token: &str, workload: &WorkloadName, now: OffsetDateTime) -> Result<(), TokenError> {
        let path = self.path(token)?;
        let record = read(&path)?.ok_or(TokenError::Refused)?;
        if now >= record.expires || record.workload != *workload { Err(TokenError::Refused) } else { Ok(()) }
    }

    /// Redeems `token` for `workload`: of any number of callers, one gets `Ok`, ever.
    ///
    /// A wrong workload does not use the token up. The token is gone when this returns `Ok`, also if power fails. Tokens
    /// whose time has passed are removed on the way.
    pub fn redeem(
        &self,
        token: &str,
        workload: &WorkloadName,
        now: OffsetDateTime,
    ) -> Result<(), TokenError> {
        self.check(token, workload, now)?;
        let (from, used) = (self.path(token)?, self.used());
        let to = used.join(hash(token));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TokenError::Refused),
            Err(source) => return Err(failed(&from, "moving the file", source)),
        }
        for dir in [&used, &self.dir] {
            files::sync_dir(dir).map_err(|source| failed(dir, "syncing the directory", source))?;
        }
        // The token is redeemed whether or not there was rubbish to clear away.
        if let Err(error) = self.purge(now) {
            tracing::warn!(%error, "ended join tokens cannot be removed");
        }
        Ok(())
    }

    /// Removes tokens whose time has passed, used or not; how many. A record that cannot be read stays and is named in
    /// the log: it opens nothing.
    pub fn purge(&self, now: OffsetDateTime) -> Result<usize, TokenError> {
        Ok(purge_dir(&self.dir, now)? + purge_dir(&self.used(), now)?)
    }

    /// The size and alphabet come first, so that no caller makes us hash megabytes or name a path.
    fn path(&self, token: &str) -> Result<PathBuf, TokenError> {
        let alphabet = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if token.len() != TOKEN_CHARACTERS || !token.bytes().all(alphabet) {
            return Err(TokenError::Refused);
        }
        Ok(self.dir.join(hash(token)))
    }
}

fn hash(token: &str) -> String {
    format!("{:x}", Sha256::digest(token.as_bytes()))
}

fn failed(path: &Path, doing: &'static str, source: io::Error) -> TokenError {
    TokenError::Io { path: path.to_owned(), doing, source }
}

/// The record at `path`; `None` if there is no file. One that cannot be understood is refused like none.
fn read(path: &Path) -> Result<Option<Record>, TokenError> {
    let content = fs::File::open(path).and_then(|file| {
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD), &mut content)?;
        Ok(content)
    });
    match content {
        Ok(content) => match serde_json::from_slice(&content) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "join token record cannot be read");
                Err(TokenError::Refused)
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(path, "reading the file", source)),
    }
}

fn purge_dir(dir: &Path, now: OffsetDateTime) -> Result<usize, TokenError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(failed(dir, "listing the directory", source)),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|source| failed(dir, "listing the directory", source))?.path();
        let named_by_hash = path.file_name().is_some_and(|name| name.len() == 64);
        // Somebody else may purge or redeem at the same time: a file that is gone is as good as removed.
        if named_by_hash
            && let Ok(Some(record)) = read(&path)
            && now >= record.expires
            && fs::remove_file(&path).is_ok()
        {
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
