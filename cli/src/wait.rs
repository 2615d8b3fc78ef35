//! `countersign wait`: until the control plane is ready, or a policy is enforced everywhere it applies. With a cluster the
//! policy's own `status.conditions` are waited for, as `kubectl wait` does, but only as far as they speak of the policy's
//! current generation; otherwise the status of the control plane on this machine.

mod cluster;
mod here;

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::FINDING;
use crate::monitoring::{MonitoringArgs, Target};

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    /// The control plane has everything it needs.
    Ready,
    Condition {
        /// As in `status.conditions[].type`, in any case of letters.
        kind: String,
        status: String,
    },
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("ready") {
            return Ok(Self::Ready);
        }
        let (kind, status) = match text.strip_prefix("condition=") {
            Some(condition) => condition.split_once('=').unwrap_or((condition, "True")),
            None => (text, "True"),
        };
        let known = ["Enforced", "Programmed", "Accepted", "Conflicted", "ResolvedRefs"];
        let Some(kind) = known.into_iter().find(|known| known.eq_ignore_ascii_case(kind)) else {
            return Err(format!("not ready, condition=NAME[=STATUS] or one of {}", known.join(", ")));
        };
        let status =
            ["True", "False", "Unknown"].into_iter().find(|known| known.eq_ignore_ascii_case(status));
        let status = status.ok_or("a condition is True, False or Unknown")?;
        Ok(Self::Condition { kind: kind.to_owned(), status: status.to_owned() })
    }
}

/// A kind of policy that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PolicyKind {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
}

const KINDS: [PolicyKind; 3] = [
    PolicyKind { kind: "AuthorizationPolicy", plural: "authorizationpolicies", short: "ap" },
    PolicyKind { kind: "PeerAuthentication", plural: "peerauthentications", short: "pa" },
    PolicyKind { kind: "RequestAuthentication", plural: "requestauthentications", short: "ra" },
];

/// A policy by name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    kind: PolicyKind,
    name: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').ok_or("not KIND/NAME")?;
        let lower = kind.to_ascii_lowercase();
        // As kubectl takes them: PLURAL, PLURAL.GROUP, PLURAL.VERSION.GROUP.
        let bare = lower.strip_suffix(".security.istio.io").unwrap_or(&lower);
        let bare = bare.strip_suffix(".v1").or(bare.strip_suffix(".v1beta1")).unwrap_or(bare);
        let is = |known: &&PolicyKind| {
            [known.short, known.plural].contains(&bare) || bare.eq_ignore_ascii_case(known.kind)
        };
        let kind = *KINDS.iter().find(is).ok_or_else(|| format!("{kind:?} is no kind of policy"))?;
        Ok(Self { kind, name: name.to_owned() })
    }
}

/// Wait until the control plane is ready or a policy is enforced
///
/// Exits with 1 if that has not happened in time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign wait --for=ready\n  \
                        countersign wait --for=enforced authorizationpolicy/orders-policy -n shop --timeout 5s\n  \
                        countersign wait --for=enforced    # every policy that applies to somebody\n  \
                        countersign wait --for=condition=Accepted ap/orders-policy -n shop --context prod")]
pub(crate) struct WaitArgs {
    /// What to wait for: ready, a condition (enforced, programmed, accepted), or condition=NAME[=STATUS]
    #[arg(long = "for", value_name = "GOAL")]
    goal: Goal,
    /// A policy, as KIND/NAME in any case (ap, pa, ra for short); without it, all that select a workload
    #[arg(value_name = "KIND/NAME")]
    object: Option<Named>,
    /// Namespace of the policy [default: default; without a policy, all namespaces]
    #[arg(short, long)]
    namespace: Option<String>,
    /// How long at most
    #[arg(long, default_value = "30s", value_parser = crate::duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    monitoring: MonitoringArgs,
}

/// Which policies are meant.
#[derive(Debug)]
struct Wanted<'a> {
    named: Option<&'a Named>,
    namespace: Option<&'a str>,
    kind: &'a str,
    status: &'a str,
}

/// Reasons for which a policy is enforced nowhere and nobody needs to wait for it.
fn concerns_nobody(reason: &str) -> bool {
    ["SelectsNothing", "NoTargets", "DryRun"].contains(&reason)
}

pub(crate) async fn run(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let WaitArgs { goal, object, namespace, timeout, monitoring } = args;
    let deadline = Instant::now() + *timeout;
    let missing = match (goal, monitoring.here()) {
        // Nothing may listen there yet.
        (Goal::Ready, Some(address)) => here::ready(address, deadline).await,
        (Goal::Ready, None) => {
            let cluster = monitoring.cluster.connect(&monitoring.control_plane_namespace).await?;
            cluster::ready(&cluster, deadline).await
        }
        (Goal::Condition { kind, status }, _) => {
            let namespace = namespace.as_deref().or(object.as_ref().map(|_| "default"));
            let wanted = Wanted { named: object.as_ref(), namespace, kind, status };
            match monitoring.target().await? {
                Target::Here(address) => here::condition(address, &wanted, deadline).await,
                Target::Cluster(cluster) => cluster::condition(&cluster, &wanted, deadline).await,
            }
        }
    };
    let Err(missing) = missing else { return Ok(ExitCode::SUCCESS) };
    crate::output::text(&format!("timed out: {}\n", crate::output::printable(&missing)))?;
    Ok(ExitCode::from(FINDING))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_short_names() {
        let kind = |text: &str| text.parse::<Named>().map(|named| named.kind.kind);
        assert_eq!(kind("ap/x"), Ok("AuthorizationPolicy"));
        assert_eq!(kind("PeerAuthentication.security.istio.io/x"), Ok("PeerAuthentication"));
        assert_eq!(kind("requestauthentications.v1.security.istio.io/x"), Ok("RequestAuthentication"));
        assert!(kind("pod/x").is_err() && kind("x").is_err());
    }

    #[test]
    fn goals_are_named_as_kubectl_names_them() {
        let condition = |kind: &str, status: &str| {
            Ok(Goal::Condition { kind: kind.to_owned(), status: status.to_owned() })
        };
        assert_eq!("ready".parse(), Ok(Goal::Ready));
        assert_eq!("enforced".parse(), condition("Enforced", "True"));
        assert_eq!("condition=Enforced".parse(), condition("Enforced", "True"));
        assert_eq!("condition=accepted=false".parse(), condition("Accepted", "False"));
        for wrong in ["", "gone", "condition=", "condition=Enforced=maybe", "delete"] {
            assert!(wrong.parse::<Goal>().is_err(), "{wrong}");
        }
    }
}
