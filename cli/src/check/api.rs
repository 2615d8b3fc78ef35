//! The API server: reached, new enough, and of the same time as this machine.

use std::time::{Duration, SystemTime};

use k8s_openapi::apimachinery::pkg::version::Info;
use kube::client::Body;

use super::report::{Anchor, Group};
use crate::cluster::{Cluster, timely};

/// Definitions carry validation rules in CEL, which all API servers from here on evaluate.
const MINIMUM: (u32, u32) = (1, 29);
/// Certificates and tokens are made valid a little earlier than now; more than this is no longer covered by it.
const SKEW: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("kubernetes-api");
    let reached = "the API server answers";
    let info = match timely(cluster.client.apiserver_version()).await {
        Ok(info) => info,
        Err(error) => {
            group.fail(reached, format!("{error:#}"), Anchor::ApiServer);
            return group;
        }
    };
    group.pass(reached);
    version(&mut group, &info);
    clock(&mut group, cluster).await;
    group
}

fn version(group: &mut Group, info: &Info) {
    let Info { major, minor, git_version, .. } = info;
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let (major_minimum, minor_minimum) = MINIMUM;
    let description = format!("the API server is {major_minimum}.{minor_minimum} or newer");
    match (number(major), number(minor)) {
        (Some(major), Some(minor)) if (major, minor) >= MINIMUM => group.pass(description),
        (Some(_), Some(_)) => group.fail(description, format!("it is {git_version}"), Anchor::ApiVersion),
        _ => {
            group.warn(
                description,
                format!("its version cannot be read: {git_version:?}"),
                Anchor::ApiVersion,
            );
        }
    }
}

async fn clock(group: &mut Group, cluster: &Cluster) {
    let description = "this machine's clock agrees with the API server's";
    let before = SystemTime::now();
    let said = date(cluster).await;
    let after = SystemTime::now();
    let Some(said) = said else {
        group.warn(description, "the API server does not say what time it is", Anchor::Clock);
        return;
    };
    // It says whole seconds, and may have looked at its clock at any moment between.
    let early = said.duration_since(after).unwrap_or_default();
    let late = before.duration_since(said + Duration::from_secs(1)).unwrap_or_default();
    let apart = early.max(late);
    let why = format!("they are {} s apart", apart.as_secs());
    let (warn, fail) = SKEW;
    if apart > fail {
        group.fail(description, why, Anchor::Clock);
    } else if apart > warn {
        group.warn(description, why, Anchor::Clock);
    } else {
        group.pass(description);
    }
}

/// The `Date` header of an answer.
async fn date(cluster: &Cluster) -> Option<SystemTime> {
    let request = http::Request::get("/version").body(Body::empty()).ok()?;
    let answer = timely(cluster.client.send(request)).await.ok()?;
    let date = answer.headers().get(http::header::DATE)?.to_str().ok()?;
    let date = time::OffsetDateTime::parse(date, &time::format_description::well_known::Rfc2822).ok()?;
    Some(date.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(minor: &str) -> Group {
        let info =
            Info { major: "1".into(), minor: minor.into(), git_version: "v1.x".into(), ..Info::default() };
        let mut group = Group::new("g");
        version(&mut group, &info);
        group
    }

    #[test]
    fn old_api_servers_are_found() {
        assert!(judged("36").passed() && judged("29+").passed());
        assert!(!judged("28").passed());
    }
}
