//! Requests without a pause while a test does something, and what came of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Request;
use tokio::task::JoinHandle;

use super::client::{Caller, Got, Http};

/// One kind of request with the only answers that may come.
#[derive(Clone, Debug)]
pub struct Flow {
    pub name: &'static str,
    pub caller: Caller,
    pub to: SocketAddr,
    pub request: Request<Bytes>,
    pub expected: Vec<Got>,
}

/// Running flows: each on a connection that stays, and each time on a new one.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<String, u64>>>,
    wrong: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<u64>>,
}

impl Traffic {
    /// From now until [`Traffic::end`].
    pub fn start(flows: impl IntoIterator<Item = Flow>) -> Self {
        let (stop, seen, wrong) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let tasks = flows
            .into_iter()
            .flat_map(|flow| [(flow.clone(), true), (flow, false)])
            .map(|(flow, stays)| {
                tokio::spawn(run(flow, stays, stop.clone(), Arc::clone(&seen), Arc::clone(&wrong)))
            })
            .collect();
        Self { stop, seen, wrong, tasks }
    }

    /// # Errors
    /// If any answer so far was not an expected one.
    pub fn fine(&self) -> Result<()> {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(wrong.is_empty(), "{} wrong answers: {:?}", wrong.len(), &wrong[..wrong.len().min(20)]);
        Ok(())
    }

    /// Ends it; how many requests there were.
    ///
    /// # Errors
    /// If any answer was not an expected one, or a flow had no answer at all.
    pub async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = 0;
        let seen = self.seen;
        for task in self.tasks {
            let sent = task.await?;
            ensure!(
                sent > 0,
                "a flow sent nothing: {:?}",
                seen.lock().unwrap_or_else(PoisonError::into_inner)
            );
            all += sent;
        }
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            wrong.is_empty(),
            "{} of {all} answers were wrong: {:?}; all: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(20)],
            seen.lock().unwrap_or_else(PoisonError::into_inner)
        );
        Ok(all)
    }
}

async fn run(
    flow: Flow,
    stays: bool,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<String, u64>>>,
    wrong: Arc<Mutex<Vec<String>>>,
) -> u64 {
    let started = std::time::Instant::now();
    let Flow { name, caller, to, request, expected } = flow;
    let (mut connection, mut sent): (Option<Http>, u64) = (None, 0);
    while !stop.load(Ordering::Relaxed) {
        let got = match &mut connection {
            Some(open) => open.send(request.clone()).await.got,
            None => match caller.http1(to).await {
                Ok(mut open) => {
                    let got = open.send(request.clone()).await.got;
                    connection = Some(open);
                    got
                }
                Err(got) => got,
            },
        };
        sent += 1;
        if !expected.contains(&got) {
            let at = started.elapsed();
            let kind = if stays { "open connection" } else { "new connection" };
            let line = format!("{name} ({kind}, {at:.1?}): {got}");
            wrong.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
        *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(format!("{name}: {got}")).or_default() +=
            1;
        // Refused callers lose their connection; nobody may count on one they were never given.
        if !stays || !connection.as_ref().is_some_and(Http::is_open) {
            connection = None;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    sent
}
