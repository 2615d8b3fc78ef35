//! The file of a trail: continuing it, appending, rotating. One owner, one thread; a lock keeps other processes out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::line::{Hash, Place, encode};
use super::read::tail;
use super::{Error, Event};

/// So much of an existing file's end is checked before it is continued.
const TAIL: u64 = 1024 * 1024;
const FORMAT: u32 = 1;

/// The file that is written now.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    len: u64,
    max_bytes: u64,
    /// Number of this file's first line; its name when it is set aside.
    first: u64,
    /// Number of the next line, and the hash it must name.
    next: u64,
    head: Hash,
    /// Written since the last fsync.
    dirty: bool,
}

impl Log {
    /// Opens or begins the trail. The events tell what was found; they are not written yet.
    pub(super) fn open(path: &Path, max_bytes: u64, time: &str) -> Result<(Self, Vec<Event>), Error> {
        let io = |doing| move |source| Error::Io { path: path.to_owned(), doing, source };
        let file = open(path, false)?;
        let len = file.metadata().map_err(io("reading its length"))?.len();
        let mut log = Self {
            path: path.to_owned(),
            file,
            len,
            max_bytes,
            first: 0,
            next: 0,
            head: Hash::NONE,
            dirty: false,
        };
        let mut found = Vec::new();
        log.recover(&mut found).map_err(io("reading its end"))?;
        if log.len == 0 {
            let previous = log.predecessor().map_err(io("reading the file before it"))?;
            log.begin(time, previous).map_err(io("writing its beginning"))?;
        }
        Ok((log, found))
    }

    /// Number and hash of the last line.
    pub(super) fn head(&self) -> (u64, Hash) {
        (self.next.saturating_sub(1), self.head)
    }

    /// Writes one line. On error nothing of it stays.
    pub(super) fn append(&mut self, time: &str, event: &Event) -> io::Result<()> {
        let (kind, fields) = event.fields();
        let line = encode(self.next, time, &kind, &fields, self.head);
        // A file holds at least one line besides its beginning.
        if self.len + line.0.len() as u64 > self.max_bytes && self.next > self.first + 1 {
            self.rotate(time)?;
            let line = encode(self.next, time, &kind, &fields, self.head);
            return self.write(line);
        }
        self.write(line)
    }

    /// Makes what was written survive a loss of power.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether the file is no longer the one at its path: then a new one is begun there, which names this one's end.
    pub(super) fn replaced(&mut self, time: &str) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        let same = fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        // Somebody who empties or cuts it leaves the inode.
        if same && ours.len() == self.len {
            return Ok(false);
        }
        if same || self.path.exists() {
            let aside = free(&self.path, "broken", self.next);
            fs::rename(&self.path, aside)?;
        }
        self.renew(time, None)?;
        Ok(true)
    }

    /// Exchanges the file for one that takes nothing, and back.
    #[cfg(test)]
    pub(super) fn break_file(&mut self, broken: bool) {
        let mut options = OpenOptions::new();
        let options = if broken { options.read(true) } else { options.read(true).append(true) };
        self.file = options.open(&self.path).expect("the test's file");
    }

    fn write(&mut self, (line, hash): (String, Hash)) -> io::Result<()> {
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line in the middle would break the chain when the disk has room again.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += line.len() as u64;
        self.next += 1;
        self.head = hash;
        self.dirty = true;
        Ok(())
    }

    /// Writes a file's first line.
    fn begin(&mut self, time: &str, previous_file: Option<String>) -> io::Result<()> {
        self.first = self.next;
        let (kind, fields) = Event::Genesis { format: FORMAT, previous_file }.fields();
        self.write(encode(self.next, time, &kind, &fields, self.head))?;
        self.file.sync_all()?;
        // The name in the folder is as new as the file.
        File::open(folder(&self.path))?.sync_all()
    }

    fn rotate(&mut self, time: &str) -> io::Result<()> {
        self.sync()?;
        let aside = PathBuf::from(format!("{}.{:020}", self.path.display(), self.first));
        if aside.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", aside.display())));
        }
        fs::rename(&self.path, &aside)?;
        let renewed = self.renew(time, Some(file_name(&aside)));
        if renewed.is_err() && !self.path.exists() {
            let _ = fs::rename(&aside, &self.path);
        }
        renewed
    }

    /// Goes on in a new file at the same path.
    fn renew(&mut self, time: &str, previous_file: Option<String>) -> io::Result<()> {
        let file = open(&self.path, true).map_err(|error| match error {
            Error::Io { source, .. } => source,
            other => io::Error::other(other.to_string()),
        })?;
        let mut new = Self {
            path: self.path.clone(),
            file,
            len: 0,
            max_bytes: self.max_bytes,
            first: self.next,
            next: self.next,
            head: self.head,
            dirty: false,
        };
        if let Err(error) = new.begin(time, previous_file) {
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        *self = new;
        Ok(())
    }

    /// Checks the file's end and sets aside what cannot be continued.
    fn recover(&mut self, found: &mut Vec<Event>) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let (text, whole) = self.end()?;
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (place, fault) = if complete == 0 && !whole {
            (None, Some("a line is longer than any of an audit trail".to_owned()))
        } else if complete == 0 {
            (None, None)
        } else {
            tail(&text[..complete], whole)
        };
        if let Some(fault) = fault {
            return self.set_aside(fault, place, found);
        }
        let torn = &text[complete..];
        if !torn.is_empty() {
            let number = place.as_ref().map_or(0, |place| place.seq + 1);
            let aside = free(&self.path, "torn", number);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            file.write_all(torn)?;
            file.sync_all()?;
            found.push(Event::TornLine { bytes: torn.len() as u64, kept_in: file_name(&aside) });
            self.len -= torn.len() as u64;
            self.file.set_len(self.len)?;
        }
        if let Some(place) = place {
            self.next = place.seq + 1;
            self.head = place.hash;
            self.first = self.first_number()?;
        }
        Ok(())
    }

    /// The file does not hold together: a new one is begun, which says so.
    fn set_aside(&mut self, fault: String, last: Option<Place>, found: &mut Vec<Event>) -> io::Result<()> {
        let number = last.as_ref().map_or(0, |place| place.seq + 1);
        let aside = free(&self.path, "broken", number);
        fs::rename(&self.path, &aside)?;
        found.push(Event::ChainBroken { kept_in: file_name(&aside), fault });
        self.file = open(&self.path, true).map_err(|error| io::Error::other(error.to_string()))?;
        self.len = 0;
        if let Some(place) = last {
            self.next = place.seq + 1;
            self.head = place.hash;
        }
        Ok(())
    }

    /// The last bytes, from the beginning of a line, and whether they are all there is.
    fn end(&mut self) -> io::Result<(Vec<u8>, bool)> {
        let from = self.len.saturating_sub(TAIL);
        self.file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        (&self.file).take(TAIL).read_to_end(&mut text)?;
        if from == 0 {
            return Ok((text, true));
        }
        let begin = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1);
        text.drain(..begin);
        Ok((text, false))
    }

    fn first_number(&mut self) -> io::Result<u64> {
        use std::io::BufRead as _;
        self.file.seek(SeekFrom::Start(0))?;
        let mut line = Vec::new();
        let mut reader = io::BufReader::new((&self.file).take(TAIL));
        reader.read_until(b'\n', &mut line)?;
        let place = super::line::check(line.strip_suffix(b"\n").unwrap_or(&line));
        Ok(place.map_or(0, |place| place.seq))
    }

    /// The newest file that was set aside by rotation: where a crash between setting aside and beginning left off.
    fn predecessor(&mut self) -> io::Result<Option<String>> {
        if self.next > 0 {
            return Ok(None);
        }
        let prefix = format!("{}.", file_name(&self.path));
        let rotated = |name: &str| {
            let number = name.strip_prefix(&prefix)?;
            (number.len() == 20 && number.bytes().all(|b| b.is_ascii_digit())).then(|| name.to_owned())
        };
        let names = fs::read_dir(folder(&self.path))?.flatten();
        let newest = names.filter_map(|entry| rotated(entry.file_name().to_str()?)).max();
        let Some(newest) = newest else { return Ok(None) };
        let path = folder(&self.path).join(&newest);
        let mut file = File::open(&path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text)?;
        if len > TAIL {
            let begin = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1);
            text.drain(..begin);
        }
        if let (Some(place), _) = tail(&text, len <= TAIL) {
            self.next = place.seq + 1;
            self.head = place.hash;
        }
        Ok(Some(newest))
    }
}

/// Opens (or, if `new`, makes) a file that only its owner can read, and locks it.
fn open(path: &Path, new: bool) -> Result<File, Error> {
    let io = |doing| move |source| Error::Io { path: path.to_owned(), doing, source };
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600).create(!new).create_new(new);
    let file = options.open(path).map_err(io("opening it"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(io("locking it")(source)),
    }
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io("making it private"))?;
    Ok(file)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A name beside `path` that nothing has yet.
fn free(path: &Path, what: &str, number: u64) -> PathBuf {
    let name = |more: &str| PathBuf::from(format!("{}.{what}.{number:020}{more}", path.display()));
    let mut names = std::iter::once(name("")).chain((1..).map(|n: u32| name(&format!("-{n}"))));
    names.find(|name| !name.exists()).unwrap_or_else(|| name("-x"))
}
