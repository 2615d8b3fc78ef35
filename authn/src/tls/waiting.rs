//! Connections that have not shown yet that they are worth a place. When there are too many, the oldest gives way, but only
//! after a grace: many that come at once are no idle ones. Accepts nothing itself.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Until then a connection gives way to no other.
const GRACE: Duration = Duration::from_millis(100);

/// The tasks of such connections, oldest first.
#[derive(Debug)]
pub struct Waiting {
    most: usize,
    tasks: VecDeque<(Instant, AbortHandle)>,
}

impl Waiting {
    /// Room for `most` of them, for one at least.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), tasks: VecDeque::new() }
    }

    /// Whether no further one may come; tasks that have ended do not count.
    pub fn is_full(&mut self) -> bool {
        self.tasks.retain(|(_, task)| !task.is_finished());
        self.tasks.len() >= self.most
    }

    pub fn push(&mut self, task: AbortHandle) {
        self.tasks.push_back((Instant::now(), task));
    }

    /// Waits until the oldest has had its grace; for ever if there is none.
    pub async fn oldest_is_due(&self) {
        match self.tasks.front() {
            Some((since, _)) => tokio::time::sleep_until(*since + GRACE).await,
            None => std::future::pending().await,
        }
    }

    /// Ends the oldest; whether there was one.
    pub fn displace(&mut self) -> bool {
        let oldest = self.tasks.pop_front();
        oldest.inspect(|(_, task)| task.abort()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_after_its_grace() {
        let mut waiting = Waiting::new(2);
        let tasks: Vec<_> = (0..2).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        assert!(!waiting.displace(), "nobody is there");
        let start = Instant::now();
        for task in &tasks {
            assert!(!waiting.is_full());
            waiting.push(task.abort_handle());
        }
        assert!(waiting.is_full());
        waiting.oldest_is_due().await;
        assert!(start.elapsed() >= GRACE);
        assert!(waiting.displace() && !waiting.is_full());
        let mut tasks = tasks.into_iter();
        assert!(tasks.next().expect("the oldest").await.is_err_and(|error| error.is_cancelled()));
        let other = tasks.next().expect("the other one");
        assert!(!other.is_finished());
        other.abort();
    }

    #[tokio::test]
    async fn what_has_ended_takes_no_place() {
        let mut waiting = Waiting::new(0);
        let task = tokio::spawn(async {});
        waiting.push(task.abort_handle());
        task.await.expect("it ends");
        assert!(!waiting.is_full());
    }
}
