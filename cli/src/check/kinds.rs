//! Objects of kinds that nothing here acts on: named, with what their absence means for access.

use crds::{Access, Unimplemented, unimplemented};
use futures::StreamExt as _;
use kube::api::{Api, ApiResource, ListParams, PartialObjectMeta};
use kube::core::DynamicObject;

use super::report::{Anchor, Group, Level};
use crate::cluster::{Cluster, code, timely};

/// Kinds asked for at once.
const AT_ONCE: usize = 8;

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("kinds-without-effect");
    let counted: Vec<(&Unimplemented, anyhow::Result<usize>)> = futures::stream::iter(unimplemented())
        .map(async |kind| (kind, count(cluster, kind).await))
        .buffered(AT_ONCE)
        .collect()
        .await;
    let present = |changes: bool| -> Vec<String> {
        let some = counted.iter().filter_map(|(kind, count)| match count {
            Ok(count) if *count > 0 && (kind.access != Access::Unchanged) == changes => Some(format!(
                "{count} {} ({}): access may be {}. {}",
                kind.kind, kind.group, kind.access, kind.meaning
            )),
            _ => None,
        });
        some.collect()
    };
    let description = "no object is ignored that could change who may call what";
    group.none(description, Level::Warning, &present(true), Anchor::Kinds);
    let harmless = present(false);
    if !harmless.is_empty() {
        group.pass(format!("{} kinds are ignored that leave access as it is", harmless.len()));
    }
    let failed = counted.iter().filter_map(|(kind, count)| {
        let error = count.as_ref().err()?;
        Some(format!("{}: {error:#}", kind.definition()))
    });
    let failed: Vec<String> = failed.collect();
    if !failed.is_empty() {
        group.none("their objects can be counted", Level::Warning, &failed, Anchor::Kinds);
    }
    group
}

/// How many there are; none if the kind is not defined.
async fn count(cluster: &Cluster, kind: &Unimplemented) -> anyhow::Result<usize> {
    for version in kind.versions {
        let resource = ApiResource {
            group: kind.group.to_owned(),
            version: (*version).to_owned(),
            api_version: format!("{}/{version}", kind.group),
            kind: kind.kind.to_owned(),
            plural: kind.plural.to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let listed = timely(api.list_metadata(&ListParams::default().limit(500))).await;
        match listed {
            Ok(listed) => {
                let rest = listed.metadata.remaining_item_count.unwrap_or(0);
                let items: &[PartialObjectMeta<DynamicObject>] = &listed.items;
                return Ok(items.len() + usize::try_from(rest).unwrap_or(0));
            }
            Err(error) if code(&error) == Some(404) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(0)
}
