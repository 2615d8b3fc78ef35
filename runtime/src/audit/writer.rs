//! The thread that owns the file, and the queue in front of it.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::file::Log;
use super::line::Hash;
use super::metrics::Counters;
use super::{Error, Event, Options};

/// Longest time between writing and fsync, between attempts while the disk refuses, and between looks at the path.
const TICK: Duration = Duration::from_secs(1);

type Head = Arc<Mutex<(u64, Hash)>>;

#[derive(Debug)]
enum Message {
    Event {
        time: SystemTime,
        event: Event,
    },
    /// Answered when everything before it is on the disk.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
pub(super) struct Writer {
    queue: SyncSender<Message>,
    head: Head,
}

impl Writer {
    pub(super) fn start(path: &Path, options: Options, counters: Counters) -> Result<Self, Error> {
        let Options { max_bytes, queue } = options;
        let (log, found) = Log::open(path, max_bytes, &stamp(SystemTime::now()))?;
        let (queue, received) = sync_channel(queue.max(1));
        let head = Head::new(Mutex::new(log.head()));
        tracing::info!(path = %path.display(), seq = log.head().0, head = %log.head().1, "audit trail");
        for event in &found {
            tracing::error!(?event, "the audit trail was not as it was left");
        }
        let worker =
            Worker { log, received, counters, head: head.clone(), failing: false, synced: Instant::now() };
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || worker.run(found)).map_err(
            |source| Error::Io { path: path.to_owned(), doing: "starting the thread that writes it", source },
        )?;
        Ok(Self { queue, head })
    }

    /// `false` if there is no room.
    pub(super) fn send(&self, event: Event) -> bool {
        self.queue.try_send(Message::Event { time: SystemTime::now(), event }).is_ok()
    }

    pub(super) fn flush(&self, patience: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        let deadline = Instant::now() + patience;
        let mut message = Message::Flush(done);
        while let Err(error) = self.queue.try_send(message) {
            message = match error {
                std::sync::mpsc::TrySendError::Full(message) if Instant::now() < deadline => message,
                _ => return false,
            };
            std::thread::sleep(Duration::from_millis(1));
        }
        wait.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }

    pub(super) fn head(&self) -> (u64, Hash) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Worker {
    log: Log,
    received: Receiver<Message>,
    counters: Counters,
    head: Head,
    failing: bool,
    synced: Instant,
}

impl Worker {
    fn run(mut self, found: Vec<Event>) {
        for event in found {
            self.write(&stamp(SystemTime::now()), &event);
        }
        let mut looked = Instant::now();
        loop {
            match self.received.recv_timeout(TICK) {
                Ok(Message::Event { time, event }) => self.write(&stamp(time), &event),
                Ok(Message::Flush(done)) => {
                    self.tell_dropped();
                    if self.sync() {
                        // Whoever asked may have lost patience.
                        let _ = done.send(());
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.tell_dropped();
                    self.sync();
                    return;
                }
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look();
                self.tell_dropped();
            }
            if self.log.is_dirty() && self.synced.elapsed() >= TICK {
                self.sync();
            }
        }
    }

    /// Writes one line; while the disk refuses, tries again until it is written: the queue holds what comes meanwhile,
    /// and counts what it cannot hold.
    fn write(&mut self, time: &str, event: &Event) {
        loop {
            let written = self.log.append(time, event);
            let fine = written.is_ok();
            self.said("writing", written);
            if fine {
                self.counters.written.inc();
                *self.head.lock().unwrap_or_else(PoisonError::into_inner) = self.log.head();
                return;
            }
            std::thread::sleep(TICK);
            self.look();
        }
    }

    fn look(&mut self) {
        let now = stamp(SystemTime::now());
        match self.log.replaced(&now) {
            Ok(false) => {}
            Ok(true) => {
                tracing::error!("the audit trail's file was removed, replaced or cut; a new one is begun");
                let said = self.log.append(&now, &Event::FileReplaced {});
                self.said("writing", said);
            }
            Err(error) => self.said("looking at", Err(error)),
        }
    }

    fn tell_dropped(&mut self) {
        let count = self.counters.unsaid.swap(0, Ordering::Relaxed);
        if count > 0 {
            tracing::error!(count, "the audit trail lacks events: they came faster than it may take them");
            self.write(&stamp(SystemTime::now()), &Event::EventsDropped { count });
        }
    }

    fn sync(&mut self) -> bool {
        self.synced = Instant::now();
        let done = self.log.sync();
        let fine = done.is_ok();
        self.said("syncing", done);
        fine
    }

    /// Says the first failure of a series, and its end.
    fn said(&mut self, doing: &'static str, result: io::Result<()>) {
        match result {
            Ok(()) if self.failing => {
                tracing::info!("the audit trail can be written again");
                self.failing = false;
                self.counters.failing.set(0);
            }
            Ok(()) => {}
            Err(error) => {
                self.counters.failures.inc();
                if !self.failing {
                    tracing::error!(%error, doing, "the audit trail cannot be written");
                }
                self.failing = true;
                self.counters.failing.set(1);
            }
        }
    }
}

fn stamp(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}
