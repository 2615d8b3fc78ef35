//! Many sidecars at once: each a task that connects, follows its [`Proxy`], and says when it is served and when a change has
//! arrived. Chooses nothing about the load.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::connect::{Dial, Stream, Target};
use super::measure::Counters;
use super::proxy::{Probe, Proxy, Variant};
use super::wire::Memo;

/// How long a sidecar waits before it connects again, at first and at most; as istio-agents do, but without jitter.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// How a sidecar behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manners {
    #[default]
    Good,
    /// Asks for everything, but never acknowledges.
    NeverAcks,
    /// Asks once, and reads nothing.
    NeverReads,
}

/// Something a sidecar has seen.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Number of the stream.
    pub stream: usize,
    pub at: Instant,
    pub what: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The stream is open.
    Open,
    /// All that it asked for is there.
    Served,
    /// The probe of that number is met.
    Arrived(u64),
}

/// A probe and its number.
#[derive(Debug, Default)]
struct Watched {
    number: u64,
    probe: Probe,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    memo: Memo,
    counters: Counters,
    watched: RwLock<Arc<Watched>>,
    marks: mpsc::UnboundedSender<Mark>,
    /// Messages of stream 0 until it was served, if they are to be kept.
    record: Option<Mutex<Vec<Bytes>>>,
    /// The last error that ended a stream.
    error: Mutex<Option<String>>,
}

/// One sidecar, and what it is like.
#[derive(Clone, Debug)]
pub struct Member {
    pub proxy: Arc<Mutex<Proxy>>,
    pub dial: Dial,
    pub manners: Manners,
}

impl Member {
    pub fn new(variant: Variant, node: Bytes, dial: Dial) -> Self {
        Self { proxy: Arc::new(Mutex::new(Proxy::new(variant, node))), dial, manners: Manners::Good }
    }

    pub fn lock(&self) -> MutexGuard<'_, Proxy> {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sidecars, by number.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    members: Vec<(Member, JoinHandle<()>)>,
    marks: mpsc::UnboundedReceiver<Mark>,
    probes: u64,
}

impl Fleet {
    /// Without any yet; with `record`, what stream 0 is sent at first is kept.
    pub fn new(target: Target, record: bool) -> Self {
        let (sender, marks) = mpsc::unbounded_channel();
        let shared = Shared {
            target,
            memo: Memo::default(),
            counters: Counters::default(),
            watched: RwLock::default(),
            marks: sender,
            record: record.then(Mutex::default),
            error: Mutex::default(),
        };
        Self { shared: Arc::new(shared), members: Vec::new(), marks, probes: 0 }
    }

    /// One more; its number.
    pub fn add(&mut self, member: Member) -> usize {
        let number = self.members.len();
        let task = tokio::spawn(live(self.shared.clone(), number, member.clone()));
        self.members.push((member, task));
        number
    }

    /// Another in the place of `number`, whose stream ends.
    pub fn replace(&mut self, number: usize, member: Member) {
        let (old, task) = &mut self.members[number];
        task.abort();
        *task = tokio::spawn(live(self.shared.clone(), number, member.clone()));
        *old = member;
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn member(&self, number: usize) -> &Member {
        &self.members[number].0
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// What stream 0 was sent at first.
    pub fn recorded(&self) -> Vec<Bytes> {
        let record = self.shared.record.as_ref();
        record.map(|r| r.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// From now on this is looked for; its number.
    pub fn watch(&mut self, probe: Probe) -> u64 {
        self.probes += 1;
        let watched = Arc::new(Watched { number: self.probes, probe });
        *self.shared.watched.write().unwrap_or_else(PoisonError::into_inner) = watched;
        self.probes
    }

    /// Waits until each of `streams` has seen `what`; when each did.
    ///
    /// # Errors
    /// If they have not all within `patience`, naming one that has not.
    pub async fn wait(
        &mut self,
        what: Seen,
        streams: impl IntoIterator<Item = usize>,
        patience: Duration,
    ) -> Result<Vec<Instant>> {
        let mut left: HashSet<usize> = streams.into_iter().collect();
        let mut seen = Vec::with_capacity(left.len());
        let deadline = tokio::time::Instant::now() + patience;
        while !left.is_empty() {
            let mark = tokio::time::timeout_at(deadline, self.marks.recv()).await;
            let mark = mark.map_err(|_| anyhow::anyhow!("{}", self.overdue(what, &left)))?;
            let mark = mark.context("the streams' tasks have ended")?;
            if mark.what == what && left.remove(&mark.stream) {
                seen.push(mark.at);
            }
        }
        Ok(seen)
    }

    fn overdue(&self, what: Seen, left: &HashSet<usize>) -> String {
        let error = self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let example = left.iter().min().map(|number| {
            let missing = self.member(*number).lock().missing();
            format!("stream {number} lacks {} names, such as {:?}", missing.len(), missing.first())
        });
        let example = example.unwrap_or_default();
        let error = error.map(|error| format!("; last error: {error}")).unwrap_or_default();
        format!("{what:?}: {} streams are overdue; {example}{error}", left.len())
    }

    /// Forgets marks that nobody waits for any more.
    pub fn forget(&mut self) {
        while self.marks.try_recv().is_ok() {}
    }

    /// Waits until nothing has come for `quiet`; how much had come until then, and when the last did.
    pub async fn settled(&self, quiet: Duration) -> Instant {
        let (mut last, mut since) = (self.counters().read(), Instant::now());
        while since.elapsed() < quiet {
            tokio::time::sleep(quiet / 10).await;
            let now = self.counters().read();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        since
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.members.iter().for_each(|(_, task)| task.abort());
    }
}

/// Connects, for ever.
async fn live(shared: Arc<Shared>, number: usize, member: Member) {
    let mut pause = FIRST_RETRY;
    loop {
        let opened = Instant::now();
        if let Err(error) = stream(&shared, number, &member).await {
            *shared.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
        }
        shared.counters.retries.fetch_add(1, Ordering::Relaxed);
        if opened.elapsed() > LAST_RETRY {
            pause = FIRST_RETRY;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

/// One stream, until it ends.
async fn stream(shared: &Shared, number: usize, member: &Member) -> Result<()> {
    let variant = member.lock().variant();
    let mut stream = Stream::open(&shared.target, &member.dial, variant).await?;
    let requests = member.lock().open();
    for request in requests {
        stream.send(&request)?;
    }
    // Nobody waits any more once the fleet is gone.
    let mark =
        |what| shared.marks.send(Mark { stream: number, at: Instant::now(), what }).unwrap_or_default();
    mark(Seen::Open);
    if member.manners == Manners::NeverReads {
        return std::future::pending().await;
    }
    let (mut arrived, mut served) = (0, false);
    while let Some(message) = stream.next().await? {
        let counters = &shared.counters;
        counters.responses.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        if let (Some(record), 0, false) = (&shared.record, number, served) {
            record.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
        }
        let watched = shared.watched.read().unwrap_or_else(PoisonError::into_inner).clone();
        let done = watched.number == arrived;
        let (taken, complete) = {
            let mut proxy = member.lock();
            let probe = if done { &Probe::Nothing } else { &watched.probe };
            let taken = proxy.take(message, &shared.memo, probe);
            let taken =
                taken.map_err(|error| anyhow::anyhow!("a response that cannot be read: {}", error.0))?;
            (taken, !served && proxy.served())
        };
        counters.resources.fetch_add(taken.resources as u64, Ordering::Relaxed);
        counters.resource_bytes.fetch_add(taken.resource_bytes as u64, Ordering::Relaxed);
        if taken.matched {
            arrived = watched.number;
            mark(Seen::Arrived(arrived));
        }
        if complete {
            served = true;
            mark(Seen::Served);
        }
        // The acknowledgement is the first.
        let left_out = usize::from(member.manners == Manners::NeverAcks);
        for request in taken.send.into_iter().skip(left_out) {
            stream.send(&request)?;
        }
    }
    Ok(())
}
