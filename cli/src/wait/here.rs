//! Waiting for the control plane on this machine: its status is asked again and again.

use std::net::SocketAddr;
use std::time::Duration;

use controller::Report;
use controller::status::ObjectStatus;
use tokio::time::Instant;

use super::{Wanted, concerns_nobody};
use crate::monitoring::{get, report};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(25);
/// So many answers in a row must say yes: a file that was saved just before is noticed within milliseconds, but not yet
/// at the first question.
const SURE: u32 = 3;

/// # Errors
/// What is still missing when the time is over.
pub(super) async fn ready(address: SocketAddr, deadline: Instant) -> Result<(), String> {
    until(deadline, async || match get(address, "/ready").await {
        Ok((http::StatusCode::OK, _)) => Ok(()),
        Ok((_, body)) => Err(body.trim().replace('\n', " ")),
        Err(error) => Err(format!("{error:#}")),
    })
    .await
}

/// # Errors
/// What is still missing when the time is over.
pub(super) async fn condition(
    address: SocketAddr,
    wanted: &Wanted<'_>,
    deadline: Instant,
) -> Result<(), String> {
    until(deadline, async || match report(address).await {
        Ok(report) => judge(&report, wanted),
        Err(error) => Err(format!("{error:#}")),
    })
    .await
}

async fn until(deadline: Instant, mut ask: impl AsyncFnMut() -> Result<(), String>) -> Result<(), String> {
    let mut holds = 0;
    loop {
        match ask().await {
            Ok(()) => {
                holds += 1;
                if holds == SURE {
                    return Ok(());
                }
            }
            Err(missing) => {
                holds = 0;
                if Instant::now() >= deadline {
                    return Err(missing);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is still missing.
fn judge(report: &Report, wanted: &Wanted<'_>) -> Result<(), String> {
    let Wanted { named, namespace, kind, status } = wanted;
    let condition =
        |object: &ObjectStatus| object.conditions.iter().find(|condition| condition.kind == **kind).cloned();
    let here = |object: &&ObjectStatus| namespace.is_none_or(|namespace| object.namespace == *namespace);
    if let Some(named) = named {
        let is = |object: &&ObjectStatus| object.kind == named.kind.kind && object.name == named.name;
        let found = report.objects.iter().find(|object| here(object) && is(object));
        let namespace = namespace.unwrap_or_default();
        let found =
            found.ok_or_else(|| format!("{} {namespace}/{} does not exist", named.kind.kind, named.name))?;
        return match condition(found) {
            Some(condition) if condition.status == *status => Ok(()),
            Some(condition) => Err(lacking(found, &condition)),
            None => Err(format!("{} has no condition {kind}", named.kind.kind)),
        };
    }
    for object in report.objects.iter().filter(here) {
        if let Some(condition) = condition(object)
            && condition.status != *status
            && !concerns_nobody(&condition.reason)
        {
            return Err(lacking(object, &condition));
        }
    }
    Ok(())
}

fn lacking(object: &ObjectStatus, condition: &controller::status::Condition) -> String {
    let ObjectStatus { kind, namespace, name, .. } = object;
    format!("{kind} {namespace}/{name}: {}: {}", condition.reason, condition.message)
}
