//! Listens to another replica's receipts, again and again. Says nothing of what they mean.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::countersign::receipts::v1::WatchRequest;
use api::countersign::receipts::v1::receipts_client::ReceiptsClient;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::rows::Delta;
use super::service::HEARTBEAT;

/// A replica that says nothing for so long cannot be reached.
const SILENCE: Duration = Duration::from_millis(3 * HEARTBEAT.as_millis() as u64);
/// To connect, and for the first message.
const FIRST: Duration = Duration::from_secs(3);
/// Between attempts: the first, and the longest.
const RETRY: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// Bytes of one message; the first holds a row for each proxy and policy.
const MESSAGE: usize = 64 << 20;

/// Anything that went wrong on the way.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;
type Connecting = Pin<Box<dyn Future<Output = Result<Channel, Failed>> + Send>>;

/// How to reach the secure port of a replica, proving both identities.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn(String) -> Connecting + Send + Sync>);

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl Dialer {
    /// `dial` is given `HOST:PORT`, and must accept nobody there but the controller.
    pub fn new<F>(dial: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Channel, Failed>> + Send + 'static,
    {
        Self(Arc::new(move |address| Box::pin(dial(address))))
    }
}

/// What is heard of a replica.
#[derive(Debug)]
pub(super) enum Heard {
    Said(Delta),
    Lost,
}

/// Follows the replica `name` at `address` until nobody listens any more.
pub(super) async fn follow(
    dialer: Dialer,
    me: Arc<str>,
    name: Arc<str>,
    address: String,
    heard: mpsc::Sender<(Arc<str>, Heard)>,
) {
    let mut wait = RETRY;
    loop {
        let listening = listen(&dialer, &me, &name, &address, &heard);
        let error = tokio::select! {
            outcome = listening => match outcome {
                Ok(()) => return,
                Err(Stopped { error, heard_something }) => {
                    if heard_something {
                        wait = RETRY;
                    }
                    error
                }
            },
            () = heard.closed() => return,
        };
        if heard.send((name.clone(), Heard::Lost)).await.is_err() {
            return;
        }
        if wait == RETRY {
            tracing::warn!(replica = ?name, ?address, %error, "a replica's receipts cannot be heard");
        }
        tokio::time::sleep(wait.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
        wait = (wait * 2).min(LONGEST);
    }
}

struct Stopped {
    error: Failed,
    heard_something: bool,
}

/// `Ok` when nobody listens any more.
async fn listen(
    dialer: &Dialer,
    me: &str,
    name: &Arc<str>,
    address: &str,
    heard: &mpsc::Sender<(Arc<str>, Heard)>,
) -> Result<(), Stopped> {
    let at_first = |error: Failed| Stopped { error, heard_something: false };
    let later = |error: Failed| Stopped { error, heard_something: true };
    let open = async {
        let channel = (dialer.0)(address.to_owned()).await?;
        let mut client = ReceiptsClient::new(channel).max_decoding_message_size(MESSAGE);
        let stream = client.watch(WatchRequest { replica: me.to_owned() }).await?.into_inner();
        Ok::<_, Failed>(stream)
    };
    let mut stream = timeout(FIRST, open).await.map_err(|late| at_first(late.into()))?.map_err(at_first)?;
    let mut limit = FIRST;
    loop {
        let stopped = if limit == FIRST { at_first } else { later };
        let message = timeout(limit, stream.message()).await.map_err(|late| stopped(late.into()))?;
        let message = message.map_err(|error| stopped(error.into()))?;
        let message = message.ok_or_else(|| stopped("it stopped telling".into()))?;
        let delta = Delta::try_from(message).map_err(|error| stopped(error.into()))?;
        limit = SILENCE;
        if heard.send((name.clone(), Heard::Said(delta))).await.is_err() {
            return Ok(());
        }
    }
}
