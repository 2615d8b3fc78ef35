//! Follows one resource: lists it, watches it, and begins again as often as needed. It knows nothing of what the objects
//! mean, and never says that something is gone because it could not be read.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use rand::Rng;
use tokio::time::Instant;

use super::counters::Counters;
use super::slim::{Event, Slim};
use super::wire::{self, Error, Lines, Resource, Start};

/// How long a watch runs before it is renewed, where a dead connection must be noticed soon.
pub(super) const ATTENTIVE: Duration = Duration::from_secs(12);
/// The same where it need not.
pub(super) const RELAXED: Duration = Duration::from_secs(240);
/// How much later than announced the server may end a watch.
const SLACK: Duration = Duration::from_secs(3);
/// The first pause after a failure, and the longest.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// Over so long new lists are spread, when positions have become too old.
const SPREAD: Duration = Duration::from_millis(500);
/// A watch that ended sooner than this is not renewed at once.
const SHORT: Duration = Duration::from_secs(1);
/// A streamed list is given up after this, however much of it has come.
const STREAM: Duration = Duration::from_secs(120);

/// Where what is followed goes.
pub(super) trait Sink: Send {
    /// What to follow; waits until it is there. `None` ends it all.
    fn resource(&mut self) -> impl Future<Output = Option<Resource>> + Send;

    /// Ends when what is followed must be asked anew.
    fn interrupted(&mut self) -> impl Future<Output = ()> + Send;

    /// A full list begins.
    fn begin(&mut self) -> impl Future<Output = Outcome> + Send;

    /// Some objects came or went, in this order.
    fn take(&mut self, items: Vec<Item>) -> impl Future<Output = Outcome> + Send;

    /// The full list is complete.
    fn end(&mut self) -> impl Future<Output = Outcome> + Send;

    /// The watch stands.
    fn live(&mut self) -> impl Future<Output = ()> + Send;

    /// The watch is lost.
    fn lost(&mut self, error: &Error) -> impl Future<Output = ()> + Send;
}

/// One object that came or went.
#[derive(Debug)]
pub(super) enum Item {
    Upsert(Slim),
    Delete(Slim),
}

/// What a sink makes of what it was given; broken off if it cannot take it.
pub(super) type Outcome = ControlFlow<Stop>;

/// Why following is broken off.
#[derive(Debug)]
pub(super) enum Stop {
    /// A failure: to be tried again from where it was.
    Failed(Error),
    /// The position is too old: to be listed again.
    Expired,
    /// Not there any more, or another one: to be asked anew.
    Changed,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        if error.expired() { Self::Expired } else { Self::Failed(error) }
    }
}

/// Pauses that grow with every failure. Several processes and kinds do not retry in step.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    fn reset(&mut self) {
        self.0 = FIRST;
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(LONGEST);
        pause
    }
}

/// Follows what `sink` names until it names nothing more.
pub(super) async fn follow<S: Sink>(client: Client, sink: S, period: Duration, counters: Arc<Counters>) {
    let mut follower = Follower {
        client,
        sink,
        period,
        counters,
        streams: true,
        listed: false,
        failing: false,
        expired: false,
    };
    let mut backoff = Backoff::new();
    while let Some(resource) = follower.sink.resource().await {
        follower.session(&resource, &mut backoff).await;
        tokio::time::sleep(backoff.next()).await;
    }
}

struct Follower<S> {
    client: Client,
    sink: S,
    period: Duration,
    counters: Arc<Counters>,
    /// Whether the server streams lists, until it says that it does not.
    streams: bool,
    /// There has been a full list, so that the next is another one.
    listed: bool,
    /// It has not stood since the last failure.
    failing: bool,
    /// Its last position was too old, and no watch has lasted since.
    expired: bool,
}

impl<S: Sink> Follower<S> {
    /// Follows until what is followed has changed.
    async fn session(&mut self, resource: &Resource, backoff: &mut Backoff) {
        let mut position = None;
        loop {
            let begun = Instant::now();
            let Err(stop) = self.round(resource, &mut position, backoff).await else {
                // The end that was announced; or a server that is going away.
                if begun.elapsed() < SHORT {
                    tokio::time::sleep(backoff.next()).await;
                }
                continue;
            };
            match stop {
                Stop::Changed => return,
                Stop::Expired => {
                    tracing::info!(kind = %resource.kind, "the watch's position is too old; listing again");
                    position = None;
                    // What was missed must come soon after an outage; not from all kinds and replicas at one moment.
                    if !std::mem::replace(&mut self.expired, true) {
                        let pause = SPREAD.mul_f64(rand::rng().random_range(0.0..=1.0));
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                }
                Stop::Failed(error) => {
                    self.counters.watch_errors.inc();
                    // The first of a series; what lasts is told where it can be seen.
                    if std::mem::replace(&mut self.failing, true) {
                        tracing::debug!(kind = %resource.kind, %error, "watch");
                    } else {
                        tracing::info!(kind = %resource.kind, %error, "the watch broke; trying again");
                    }
                    self.sink.lost(&error).await;
                    // The served version may be another one.
                    if matches!(error, Error::Refused { code: 404, .. }) {
                        return;
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// One list, where there is no position yet, and one watch.
    async fn round(
        &mut self,
        resource: &Resource,
        position: &mut Option<String>,
        backoff: &mut Backoff,
    ) -> Result<(), Stop> {
        let from = match position.take() {
            Some(from) => from,
            None => {
                // One more attempt at the first list is no other list.
                if self.listed {
                    self.counters.relists.inc();
                }
                let version = self.list(resource).await?;
                self.listed = true;
                version
            }
        };
        let from = position.insert(from);
        // Not all kinds at the same moment.
        let period = self.period.mul_f64(rand::rng().random_range(0.8..=1.2));
        let lines = wire::watch(&self.client, resource, Start::After(from), period).await?;
        self.failing = false;
        self.sink.live().await;
        let opened = Instant::now();
        // A bookmark comes before the end: a watch that is silent for longer is dead.
        let watched = self.watch(lines, position, opened + period + SLACK).await;
        if opened.elapsed() > SHORT {
            backoff.reset();
            self.expired = false;
        }
        watched
    }

    /// A full list; its version.
    async fn list(&mut self, resource: &Resource) -> Result<String, Stop> {
        if self.streams {
            match wire::watch(&self.client, resource, Start::Everything, STREAM).await {
                Ok(lines) => return self.stream(lines).await,
                Err(error) if error.invalid() => {
                    tracing::debug!(kind = %resource.kind, %error, "lists are not streamed");
                    self.streams = false;
                }
                Err(error) => return Err(error.into()),
            }
        }
        broken_off(self.sink.begin().await)?;
        let mut next = String::new();
        loop {
            let page = wire::page(&self.client, resource, &next).await?;
            broken_off(self.sink.take(page.items.into_iter().map(Item::Upsert).collect()).await)?;
            if page.next.is_empty() {
                broken_off(self.sink.end().await)?;
                return Ok(page.resource_version);
            }
            next = page.next;
        }
    }

    /// Reads a streamed list to its end.
    async fn stream(&mut self, mut lines: Lines) -> Result<String, Stop> {
        broken_off(self.sink.begin().await)?;
        loop {
            let Some(events) = lines.next(Lines::pause()).await? else {
                return Err(Error::Unreachable("the list ended before it was complete".to_owned()).into());
            };
            let mut items = Vec::with_capacity(events.len());
            for event in events {
                match event {
                    Event::Upsert(object) => items.push(Item::Upsert(object)),
                    Event::Delete(object) => items.push(Item::Delete(object)),
                    // What comes after it is what the watch from there begins with.
                    Event::Bookmark(bookmark) if bookmark.ends_list() => {
                        broken_off(self.sink.take(items).await)?;
                        broken_off(self.sink.end().await)?;
                        return Ok(bookmark.resource_version);
                    }
                    Event::Bookmark(_) => {}
                    Event::Error(failure) => return Err(Error::from(failure).into()),
                }
            }
            broken_off(self.sink.take(items).await)?;
        }
    }

    /// Watches until the server ends it, and moves `position` along. Fails if nothing comes until `until`, and at that
    /// moment.
    async fn watch(
        &mut self,
        mut lines: Lines,
        position: &mut Option<String>,
        until: Instant,
    ) -> Result<(), Stop> {
        loop {
            let events = tokio::select! {
                events = lines.next(until) => events,
                () = self.sink.interrupted() => return Err(Stop::Changed),
            };
            let Some(events) = events? else { return Ok(()) };
            let mut latest = None;
            let mut items = Vec::with_capacity(events.len());
            for event in events {
                let item = match event {
                    Event::Error(failure) => {
                        broken_off(self.sink.take(items).await)?;
                        return Err(Error::from(failure).into());
                    }
                    Event::Bookmark(slim) => {
                        latest = Some(slim.resource_version);
                        continue;
                    }
                    Event::Upsert(slim) => Item::Upsert(slim),
                    Event::Delete(slim) => Item::Delete(slim),
                };
                latest = Some(item.resource_version().to_owned());
                items.push(item);
            }
            if !items.is_empty() {
                broken_off(self.sink.take(items).await)?;
            }
            if latest.as_ref().is_some_and(|version| !version.is_empty()) {
                *position = latest;
            }
        }
    }
}

impl Item {
    fn resource_version(&self) -> &str {
        match self {
            Self::Upsert(slim) | Self::Delete(slim) => &slim.resource_version,
        }
    }
}

fn broken_off(outcome: Outcome) -> Result<(), Stop> {
    match outcome {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(stop) => Err(stop),
    }
}

#[cfg(test)]
mod tests;
