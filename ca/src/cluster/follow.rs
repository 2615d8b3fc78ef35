//! A watch that never ends: errors are logged once a series and waited out, at most two seconds.

use std::{fmt::Debug, pin::Pin, time::Duration};

use aws_lc_rs::rand;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Config, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt as _};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

type Events<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, watcher::Error>> + Send>>;

pub(super) struct Following<K: 'static> {
    events: Events<K>,
    what: &'static str,
    failures: u32,
    /// Not before. Kept here, so that a caller that asks again sooner does not shorten it.
    next: Instant,
}

impl<K> Following<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Everything of `api` that `fields` selects; `what` names it in the log.
    pub(super) fn new(api: Api<K>, fields: &str, what: &'static str) -> Self {
        let mut config = Config::default();
        if !fields.is_empty() {
            config = config.fields(fields);
        }
        Self { events: Box::pin(watcher(api, config)), what, failures: 0, next: Instant::now() }
    }

    /// The next event. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Event<K> {
        loop {
            tokio::time::sleep_until(self.next).await;
            match self.events.next().await {
                Some(Ok(event)) => {
                    // `Init` says only that a list is about to be asked for.
                    if !matches!(event, Event::Init) {
                        self.failures = 0;
                    }
                    return event;
                }
                Some(Err(error)) => {
                    self.failures = self.failures.saturating_add(1);
                    if self.failures == 1 {
                        tracing::warn!(%error, what = self.what, "cannot watch; what was known stays");
                    }
                    self.next = Instant::now() + pause(self.failures);
                }
                // The stream has no end.
                None => std::future::pending().await,
            }
        }
    }
}

/// Doubling, capped, less up to half by chance.
pub(super) fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    let mut chance = [0];
    // Without randomness all wait the same, which is no harm worth an error.
    let _ = rand::fill(&mut chance);
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 - f64::from(chance[0]) / 512.0)
}
