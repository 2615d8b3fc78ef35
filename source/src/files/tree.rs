//! Listing the directory and reading its files: all of the file source's reading from disk. It judges no content.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crds::Finding;

use super::hints::{is_candidate, is_ignored};

/// More files than this are not policy; the directory is the wrong one.
const MAX_FILES: usize = 20_000;
const MAX_DEPTH: usize = 32;

/// Tells versions of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The same file, whatever its content.
    pub(super) fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether it was last written at least `age` ago, as far as the clock can be believed.
    pub(super) fn older_than(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanoseconds) = self.modified;
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else {
            return true;
        };
        now.checked_sub(Duration::new(seconds, nanoseconds)).is_some_and(|passed| passed >= age)
    }
}

/// Tells one directory from another that has taken its place. Inode numbers alone do not: they are used again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    device: u64,
    inode: u64,
    /// Where the file system knows it.
    born: Option<SystemTime>,
}

impl Root {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), born: metadata.created().ok() }
    }

    /// The directory at `dir`, links followed.
    pub(super) fn at(dir: &Path) -> Option<Self> {
        fs::metadata(dir).ok().map(|metadata| Self::of(&metadata))
    }
}

/// The directory at one moment.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) root: Root,
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    /// Directories that could not be listed, and why: what was in them is still there for all we know.
    pub(super) lost: Vec<(PathBuf, io::Error)>,
}

/// Lists the files to read below `dir`, links followed, `except` left out.
///
/// # Errors
/// The directory is not there or cannot be read.
pub(super) fn list(dir: &Path, except: Option<&Path>) -> io::Result<Listing> {
    let root = fs::metadata(dir)?;
    let except = except.and_then(|path| fs::metadata(path).ok()).map(|metadata| Stamp::of(&metadata));
    let mut parents = vec![(root.dev(), root.ino())];
    let mut listing = Listing { root: Root::of(&root), files: BTreeMap::new(), lost: Vec::new() };
    let mut walk = Walk { dir, except, listing: &mut listing, parents: &mut parents };
    walk.directory(dir)?;
    Ok(listing)
}

struct Walk<'w> {
    dir: &'w Path,
    except: Option<Stamp>,
    listing: &'w mut Listing,
    /// Device and inode of the directories above, so that a link to one of them ends.
    parents: &'w mut Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if is_ignored(&path, self.dir) {
                continue;
            }
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => self.below(&path, &metadata),
                Ok(metadata) if metadata.is_file() && is_candidate(&path, self.dir) => {
                    let stamp = Stamp::of(&metadata);
                    if !self.except.is_some_and(|except| except.same_file(&stamp)) {
                        self.listing.files.insert(path, stamp);
                    }
                }
                Ok(_) => {}
                // Removed meanwhile, or a link to nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.listing.lost.push((path, error)),
            }
            if self.listing.files.len() > MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files")));
            }
        }
        Ok(())
    }

    fn below(&mut self, path: &Path, metadata: &Metadata) {
        let id = (metadata.dev(), metadata.ino());
        if self.parents.contains(&id) {
            return;
        }
        if self.parents.len() > MAX_DEPTH {
            self.listing.lost.push((path.to_owned(), io::Error::other("too deep")));
            return;
        }
        self.parents.push(id);
        match self.directory(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.listing.lost.push((path.to_owned(), error)),
        }
        self.parents.pop();
    }
}

/// One reading of a file.
#[derive(Debug)]
pub(super) enum Reading {
    Text(Stamp, String),
    /// It is there, and its content cannot be had.
    Failed(Option<Stamp>, Finding),
    /// It changed while it was being read.
    Unstable,
    Missing,
}

/// Reads a file whole, unless it is larger than `crds` would take.
pub(super) fn read(path: &Path) -> Reading {
    let fail = |stamp, error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Reading::Missing,
        _ => Reading::Failed(stamp, Finding::error(error.to_string())),
    };
    let before = match fs::metadata(path) {
        // Opening a pipe or a device could block.
        Ok(metadata) if !metadata.is_file() => return Reading::Missing,
        Ok(metadata) => Stamp::of(&metadata),
        Err(error) => return fail(None, error),
    };
    let mut bytes = Vec::new();
    let stamp = File::open(path).and_then(|file| {
        (&file).take(crds::MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
        file.metadata()
    });
    let stamp = match stamp {
        Ok(metadata) => Stamp::of(&metadata),
        Err(error) => return fail(Some(before), error),
    };
    if stamp != before {
        return Reading::Unstable;
    }
    if bytes.len() > crds::MAX_FILE {
        let message = format!("the file has {} bytes; at most {} are read", stamp.size, crds::MAX_FILE);
        return Reading::Failed(Some(stamp), Finding::error(message));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Reading::Text(stamp, text),
        Err(error) => {
            let line =
                error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count()
                    + 1;
            let finding = Finding::error("not UTF-8 text");
            Reading::Failed(Some(stamp), Finding { line: Some(line), ..finding })
        }
    }
}
