//! The audit trail: who changed what, and every refusal, as JSON lines that are chained by their hashes, so that a line
//! that was changed, removed, added or moved later shows ([`verify`]). It has no key: whoever can write the file can make
//! a whole new chain, and cutting off the end shows only to who knows the hash that was last ([`Trail::head`]).
//!
//! ```text
//! append(event) ─► bounded queue ─► one thread: chain, write, fsync within a second ─► FILE, rotated to FILE.SEQ
//!      full? counted, and said in the trail afterwards          cannot write? loud, kept, tried again
//! ```
//! Appending never waits for the disk, and no decision depends on it.

pub(crate) mod capture;
mod event;
mod file;
mod line;
mod metrics;
mod read;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use event::{Event, PolicyState};
pub use line::Hash;
pub use read::{Fault, FileReport, Report, verify};

use event::Provoked;
use metrics::Counters;
use writer::Writer;

/// Refusals, and admission reviews, at once and per second: anybody can provoke them. More are counted, so that strangers
/// can neither fill the disk nor push what matters out of the queue.
const REFUSALS: (f64, f64) = (200.0, 20.0);
const REVIEWS: (f64, f64) = (5000.0, 50.0);
/// The same for what is only known by its words.
const LOGGED: (f64, f64) = (200.0, 20.0);

/// For the last lines to reach the disk.
const LAST: Duration = Duration::from_secs(5);

/// How a trail is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes after which a file is set aside as `FILE.SEQ` and a new one begun.
    pub max_bytes: u64,
    /// Events that may wait for the disk; further ones are dropped and counted.
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_bytes: 64 * 1024 * 1024, queue: 16 * 1024 }
    }
}

/// Why a trail cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("audit trail {path}: {doing}")]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },
    #[error("audit trail {path} is not a regular file")]
    NotAFile { path: PathBuf },
    #[error("audit trail {path} is being written by another process")]
    Locked { path: PathBuf },
}

/// Where events go. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Trail(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    counters: Counters,
    refusals: Mutex<Bucket>,
    reviews: Mutex<Bucket>,
    logged: Mutex<Bucket>,
}

impl Trail {
    /// A trail that forgets everything.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Continues the trail in `path`, or begins one there (mode 0600). What a crash left half-written is set aside as
    /// `FILE.torn.SEQ`; a file whose end was tampered with as `FILE.broken.SEQ`; both are noted in the trail.
    ///
    /// # Errors
    /// If the file cannot be read, written or locked.
    pub fn open(path: &Path, options: Options) -> Result<Self, Error> {
        let counters = Counters::default();
        let writer = Writer::start(path, options, counters.clone())?;
        let [refusals, reviews, logged] =
            [REFUSALS, REVIEWS, LOGGED].map(|rate| Mutex::new(Bucket::new(rate)));
        Ok(Self(Some(Arc::new(Inner { writer, counters, refusals, reviews, logged }))))
    }

    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Hands `event` over. Never waits: a full queue drops it, which the trail says as soon as it can.
    pub fn append(&self, event: Event) {
        let Some(inner) = &self.0 else { return };
        if !inner.may(event.provoked()) || !inner.writer.send(event) {
            inner.counters.dropped();
        }
    }

    /// Waits until everything appended so far is on the disk, at most `patience`. Whether it is.
    pub fn flush(&self, patience: Duration) -> bool {
        self.0.as_ref().is_none_or(|inner| inner.writer.flush(patience))
    }

    /// Sequence number and hash of the last line written. Kept elsewhere, it shows later whether the end was cut off.
    pub fn head(&self) -> Option<(u64, Hash)> {
        self.0.as_ref().map(|inner| inner.writer.head())
    }

    /// Makes it the trail of this process: what libraries log with the target `audit` goes into it, whatever the log filter
    /// says. The process must end with [`stopped`], or what is on its way is lost.
    pub fn install(&self) {
        capture::install(self.clone());
    }

    /// Registers what the trail counts. Call once.
    pub fn register(&self, metrics: &crate::Metrics) {
        if let Some(inner) = &self.0 {
            metrics.register(|registry| inner.counters.register(registry));
        }
    }
}

impl Inner {
    fn may(&self, provoked: Option<Provoked>) -> bool {
        let bucket = match provoked {
            None => return true,
            Some(Provoked::Refusal) => &self.refusals,
            Some(Provoked::Review) => &self.reviews,
            Some(Provoked::Logged) => &self.logged,
        };
        bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }
}

/// How many may still be written, and as of when.
#[derive(Debug)]
struct Bucket {
    burst: f64,
    per_second: f64,
    left: f64,
    since: Instant,
}

impl Bucket {
    fn new((burst, per_second): (f64, f64)) -> Self {
        Self { burst, per_second, left: burst, since: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.duration_since(self.since).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(self.burst);
        self.since = now;
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Longer only where the disk hangs, and then waiting would not help.
        self.writer.flush(LAST);
    }
}

/// Writes into the trail of this process that `component` has started.
pub fn started(component: &str, version: &crate::Version) {
    let version = version.to_string();
    capture::installed().append(Event::Started { component: component.to_owned(), version });
}

/// Writes that it stops, and why, and waits until everything is on the disk (5 seconds at most).
pub fn stopped(component: &str, reason: &str) {
    let trail = capture::installed();
    trail.append(Event::Stopped { component: component.to_owned(), reason: reason.to_owned() });
    if !trail.flush(LAST) {
        tracing::error!("the end of the audit trail could not be written");
    }
}

/// A digest of what something means, for [`Event`]s: SHA-256 in hex of `value`'s debug notation. Equal digests mean equal
/// meaning within one version of the program.
pub fn digest(value: &impl std::fmt::Debug) -> String {
    use std::io::Write as _;
    struct Sink(sha2::Sha256);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            sha2::Digest::update(&mut self.0, bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Sink(sha2::Digest::new());
    // Hashing cannot fail; a value whose notation fails is hashed as far as it got.
    let _ = write!(sink, "{value:?}");
    Hash::from(<[u8; 32]>::from(sha2::Digest::finalize(sink.0))).to_string()
}
