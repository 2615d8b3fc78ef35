//! Streams of tools, such as `istioctl proxy-status`: `istio.io/debug/..` types, asked over ADS (semantics §6.8). Carries
//! questions and answers and limits what they cost; who may know what, and what is said, is the implementor's. A tool is
//! no proxy: its node id is not looked at, and it gets no snapshots.

use tokio::time::timeout;
use tonic::Streaming;

use super::service::Ads;
use super::stream::{Message, Sender};
use super::{Failure, Peer, Question, Refused, Snapshots};
use crate::ads::wire::Wire;

/// Names in one question.
const MAX_NAMES: usize = 64;
/// Bytes of one of them.
const MAX_NAME_BYTES: usize = 1024;
/// Bytes of a type.
const MAX_TYPE_BYTES: usize = 256;

/// Whether a request is a tool's question.
pub(super) fn is_debug(type_url: &str) -> bool {
    type_url == "istio.io/debug" || type_url.starts_with("istio.io/debug/")
}

/// Answers a tool's questions, until it ends the stream or is silent for too long.
pub(super) async fn serve<S: Snapshots, M: Message>(
    ads: &Ads<S>,
    peer: Peer,
    first: M,
    mut requests: Streaming<M>,
    tx: &Sender<M::Answer>,
) -> Result<(), Failure> {
    let mut request = first;
    // The nonces that we gave out are 1 to this one.
    let mut nonce = 0_u64;
    loop {
        if !is_debug(request.type_url()) {
            return Err(invalid("a stream that began with debug types serves nothing else"));
        }
        // Clients put anything into the nonce of a question; only ours make it an acknowledgement.
        let answered = request.nonce().parse().is_ok_and(|answered| (1..=nonce).contains(&answered));
        if !answered {
            nonce += 1;
            let answer = answer(ads, &peer, &request, nonce).await?;
            if tx.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        match timeout(ads.limits.tool_silence, requests.message()).await {
            Ok(next) => match next.map_err(Failure::Unreadable)? {
                Some(next) => request = next,
                None => return Ok(()),
            },
            Err(_) => return Ok(()),
        }
    }
}

async fn answer<S: Snapshots, M: Message>(
    ads: &Ads<S>,
    peer: &Peer,
    request: &M,
    nonce: u64,
) -> Result<M::Answer, Failure> {
    let (type_url, names) = (request.type_url(), request.names());
    let long = type_url.len() > MAX_TYPE_BYTES || names.iter().any(|name| name.len() > MAX_NAME_BYTES);
    if long || names.len() > MAX_NAMES {
        return Err(invalid("a question of too many or too long names"));
    }
    ads.admission.question()?;
    let question = Question { peer: peer.clone(), type_url: type_url.to_owned(), names: names.to_vec() };
    let facts = ads.snapshots.debug(question).await.map_err(Failure::Refused)?;
    let bytes: usize = facts.iter().map(|fact| fact.name.len() + fact.any.len()).sum();
    if bytes > ads.limits.answer_bytes {
        return Err(Failure::Busy("the answer is too long"));
    }
    Ok(M::Answer::from_facts(type_url, nonce.to_string(), facts, &ads.identifier))
}

fn invalid(what: &str) -> Failure {
    Failure::Refused(Refused::Invalid(what.to_owned()))
}
