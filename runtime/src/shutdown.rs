//! The tasks of a process and its end: one task ending ends the process with an error, a signal drains it with a
//! deadline. Starts no task itself and knows nothing of what they do.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// An error of a task, whatever its crate calls it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("{task} failed")]
    Failed { task: &'static str, source: BoxError },
    #[error("{task} panicked")]
    Panicked { task: &'static str },
    /// A server or watcher came to its end although nobody asked it to.
    #[error("{task} ended unexpectedly")]
    Ended { task: &'static str },
    #[error("still running {deadline:?} after the request to stop: {}", tasks.join(", "))]
    Deadline { deadline: Duration, tasks: Vec<&'static str> },
}

/// SIGTERM and SIGINT. Create it before starting work, so that no signal is missed.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next signal's name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The tasks of a process. Dropping it aborts them.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process is to drain. Every task watches it and returns `Ok` soon after; cancelling it ends
    /// the process in an orderly way.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts `future` as a task called `name`.
    pub fn spawn<E: Into<BoxError>>(
        &mut self,
        name: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.running.spawn(async move { future.await.map_err(Into::into) });
        self.names.insert(handle.id(), name);
    }

    /// Waits until a signal arrives, [`Tasks::stop`] is cancelled or a task ends; then asks the others to stop and
    /// gives them `drain` before aborting them. A second signal aborts at once.
    ///
    /// # Errors
    /// [`TaskError`] of the task that ended the process, or of the ones that would not stop in time.
    pub async fn run(mut self, mut signals: Signals, drain: Duration) -> Result<(), TaskError> {
        let first = tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, ?drain, "stopping");
                Ok(())
            }
            () = self.stop.cancelled() => Ok(()),
            ended = self.running.join_next_with_id() => match ended {
                Some(ended) => Err(self.failure(ended)),
                None => Ok(()),
            },
        };
        self.stop.cancel();
        let rest = tokio::select! {
            rest = self.drain(drain) => rest,
            name = signals.next() => {
                tracing::warn!(signal = name, "second signal: not waiting any longer");
                Ok(())
            }
        };
        first.and(rest)
    }

    async fn drain(&mut self, deadline: Duration) -> Result<(), TaskError> {
        let mut failed = Ok(());
        let all = async {
            while let Some(ended) = self.running.join_next_with_id().await {
                let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
                if !matches!(ended, Ok((_, Ok(())))) {
                    failed = Err(failure(&self.names, ended));
                }
                self.names.remove(&id);
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            let mut tasks: Vec<_> = self.names.values().copied().collect();
            tasks.sort_unstable();
            return Err(TaskError::Deadline { deadline, tasks });
        }
        failed
    }

    fn failure(&mut self, ended: Result<(Id, Result<(), BoxError>), JoinError>) -> TaskError {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let failure = failure(&self.names, ended);
        self.names.remove(&id);
        failure
    }
}

fn failure(
    names: &HashMap<Id, &'static str>,
    ended: Result<(Id, Result<(), BoxError>), JoinError>,
) -> TaskError {
    let name = |id: Id| names.get(&id).copied().unwrap_or("a task");
    match ended {
        Ok((id, Ok(()))) => TaskError::Ended { task: name(id) },
        Ok((id, Err(source))) => TaskError::Failed { task: name(id), source },
        Err(error) => TaskError::Panicked { task: name(error.id()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Infallible = Result<(), std::convert::Infallible>;

    async fn until(stop: CancellationToken) -> Infallible {
        stop.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_task_that_ends_ends_the_process_with_its_name() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("watcher", async { Err::<(), _>("the folder is gone") });
        tasks.spawn("server", until(stop));
        let error = tasks.run(Signals::new().unwrap(), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, TaskError::Failed { task: "watcher", .. }), "{error}");
    }

    #[tokio::test]
    async fn a_panic_and_a_quiet_end_are_failures_too() {
        let mut tasks = Tasks::new();
        tasks.spawn("worker", async {
            assert!(std::hint::black_box(false), "on purpose");
            Infallible::Ok(())
        });
        let error = tasks.run(Signals::new().unwrap(), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, TaskError::Panicked { task: "worker" }), "{error}");
        let mut tasks = Tasks::new();
        tasks.spawn("worker", async { Infallible::Ok(()) });
        let error = tasks.run(Signals::new().unwrap(), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, TaskError::Ended { task: "worker" }), "{error}");
    }

    #[tokio::test]
    async fn a_request_to_stop_drains_everybody() {
        let mut tasks = Tasks::new();
        tasks.spawn("a", until(tasks.stop()));
        tasks.spawn("b", until(tasks.stop()));
        tasks.stop().cancel();
        tasks.run(Signals::new().unwrap(), Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn the_deadline_names_who_would_not_stop() {
        let mut tasks = Tasks::new();
        tasks.spawn("stubborn", async {
            std::future::pending::<()>().await;
            Infallible::Ok(())
        });
        tasks.stop().cancel();
        let error = tasks.run(Signals::new().unwrap(), Duration::from_millis(10)).await.unwrap_err();
        assert!(error.to_string().ends_with("stubborn"), "{error}");
    }
}
