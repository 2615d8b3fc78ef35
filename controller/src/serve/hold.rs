//! Verified streams whose workload the registry does not know yet: they wait, without a response, for its registration. So
//! many of one identity and of all, and so long, then the proxy is told to come again. Decides nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use policy::ObjectName;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use xds::ads::server::Refused;

use crate::actor::Registry;
use crate::metrics::Metrics;

/// What may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Streams, of all identities together.
    pub(crate) streams: usize,
    /// Streams of one identity: as many as pods of one Deployment may start before the watch tells of them.
    pub(crate) of_one_identity: usize,
    /// How long one may wait.
    pub(crate) time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 2048, of_one_identity: 256, time: Duration::from_secs(30) }
    }
}

/// The streams that wait now. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    limits: Limits,
    metrics: Metrics,
    waiting: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

/// One waiting stream; gives its place back when dropped, also when its stream ends while it waits.
#[derive(Debug)]
pub(crate) struct Place {
    holding: Holding,
    identity: Arc<str>,
    until: Instant,
}

impl Holding {
    pub(crate) fn new(limits: Limits, metrics: Metrics) -> Self {
        Self { limits, metrics, waiting: Arc::default() }
    }

    /// A place to wait.
    pub(crate) fn enter(&self, identity: &Arc<str>) -> Result<Place, Refused> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own = waiting.get(identity).copied().unwrap_or(0);
        let all: usize = waiting.values().sum();
        if own >= self.limits.of_one_identity || all >= self.limits.streams {
            self.metrics.refused.inc();
            return Err(Refused::Busy("too many streams wait for their registration; try again"));
        }
        waiting.insert(identity.clone(), own + 1);
        self.metrics.held.inc();
        let until = Instant::now() + self.limits.time;
        Ok(Place { holding: self.clone(), identity: identity.clone(), until })
    }
}

impl Place {
    /// Waits until `workload` is registered.
    ///
    /// # Errors
    /// When the time is over, or the control plane stops.
    pub(crate) async fn registered(
        self,
        mut registry: watch::Receiver<Arc<Registry>>,
        workload: &ObjectName,
    ) -> Result<Self, Refused> {
        let known = registry.wait_for(|registry| registry.workloads.contains_key(workload));
        match timeout_at(self.until, known).await {
            Ok(Ok(_)) => Ok(self),
            Ok(Err(_)) => Err(super::stopping()),
            Err(_) => {
                self.holding.metrics.refused.inc();
                Err(Refused::NotReady(format!("no workload {workload} is registered")))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.holding.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.holding.metrics.held.dec();
        if let Some(count) = waiting.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.identity);
            }
        }
    }
}
