//! `countersign wait`: until the control plane is ready, or a policy is enforced everywhere it applies.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use controller::Report;
use controller::status::{Condition, ObjectStatus};

use crate::cli::FINDING;
use crate::monitoring::{MonitoringArgs, get, report};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(25);
/// So many answers in a row must say yes: a file that was saved just before is noticed within milliseconds, but not yet
/// at the first question.
const SURE: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Goal {
    /// The control plane has everything it needs
    Ready,
    /// Every proxy that the policy applies to enforces it
    Enforced,
}

/// Wait until the control plane is ready or a policy is enforced
///
/// Exits with 1 if that has not happened in time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign wait --for=ready\n  \
                        countersign wait --for=enforced authorizationpolicy/orders-policy -n shop --timeout 5s\n  \
                        countersign wait --for=enforced    # every policy that applies to somebody")]
pub(crate) struct WaitArgs {
    /// What to wait for
    #[arg(long = "for", value_enum)]
    goal: Goal,
    /// A policy, as KIND/NAME in any case (ap, pa, ra for short); without it, all that select a workload
    #[arg(value_name = "KIND/NAME", value_parser = object)]
    object: Option<(String, String)>,
    /// Namespace of the policy
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How long at most
    #[arg(long, default_value = "30s", value_parser = crate::duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    monitoring: MonitoringArgs,
}

fn object(text: &str) -> Result<(String, String), String> {
    let (kind, name) = text.split_once('/').ok_or("not KIND/NAME")?;
    let lower = kind.to_ascii_lowercase();
    let kind = match lower.strip_suffix(".security.istio.io").unwrap_or(&lower) {
        "pa" | "peerauthentication" | "peerauthentications" => "PeerAuthentication",
        "ra" | "requestauthentication" | "requestauthentications" => "RequestAuthentication",
        "ap" | "authorizationpolicy" | "authorizationpolicies" => "AuthorizationPolicy",
        _ => return Err(format!("{kind:?} is no kind of policy")),
    };
    Ok((kind.to_owned(), name.to_owned()))
}

pub(crate) async fn run(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + args.timeout;
    let mut holds = 0;
    loop {
        let missing = match args.goal {
            Goal::Ready => ready(args).await,
            Goal::Enforced => report(&args.monitoring).await.map_or_else(
                |error| Err(format!("{error:#}")),
                |report| enforced(&report, args.object.as_ref(), &args.namespace),
            ),
        };
        let Err(missing) = missing else {
            holds += 1;
            if holds == SURE {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        holds = 0;
        if Instant::now() >= deadline {
            crate::output::text(&format!("timed out: {missing}\n"))?;
            return Ok(ExitCode::from(FINDING));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ready(args: &WaitArgs) -> Result<(), String> {
    match get(args.monitoring.monitoring_addr, "/ready").await {
        Ok((http::StatusCode::OK, _)) => Ok(()),
        Ok((_, body)) => Err(body.trim().replace('\n', " ")),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// What is still missing.
fn enforced(report: &Report, object: Option<&(String, String)>, namespace: &str) -> Result<(), String> {
    let condition = |object: &ObjectStatus| -> Option<Condition> {
        object.conditions.iter().find(|condition| condition.kind == "Enforced").cloned()
    };
    let lacking = |object: &ObjectStatus, condition: &Condition| {
        format!(
            "{} {}/{}: {}: {}",
            object.kind, object.namespace, object.name, condition.reason, condition.message
        )
    };
    if let Some((kind, name)) = object {
        let named = |o: &&ObjectStatus| o.kind == *kind && o.name == *name && o.namespace == namespace;
        let found =
            report.objects.iter().find(named).ok_or(format!("{kind} {namespace}/{name} does not exist"))?;
        return match condition(found) {
            Some(condition) if condition.status == "True" => Ok(()),
            Some(condition) => Err(lacking(found, &condition)),
            None => Err(format!("{kind} has no such condition")),
        };
    }
    for object in &report.objects {
        if let Some(condition) = condition(object)
            && condition.status != "True"
            && !["SelectsNothing", "DryRun"].contains(&&*condition.reason)
        {
            return Err(lacking(object, &condition));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_short_names() {
        assert_eq!(object("ap/x").unwrap().0, "AuthorizationPolicy");
        assert_eq!(object("PeerAuthentication.security.istio.io/x").unwrap().0, "PeerAuthentication");
        assert!(object("pod/x").is_err() && object("x").is_err());
    }
}
