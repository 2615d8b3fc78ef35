//! The definitions of the kinds of policy: there, established, serving what we read. An Istio may have brought them; that is
//! fine, and only their printer columns differ.

use crds::crd::{Definition, PART_OF_LABEL, definitions};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams};

use super::report::{Anchor, Group, Level};
use crate::cluster::{Cluster, timely};

/// Definitions without which there are no policies; the others are for workloads outside of Kubernetes.
fn needed(definition: &Definition) -> bool {
    definition.kind.is_policy()
}

/// All in the cluster, or why they cannot be listed.
async fn installed(cluster: &Cluster) -> anyhow::Result<Vec<CustomResourceDefinition>> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    Ok(timely(api.list(&ListParams::default())).await?.items)
}

fn of<'a>(
    definition: &Definition,
    installed: &'a [CustomResourceDefinition],
) -> Option<&'a CustomResourceDefinition> {
    let name = definition.name();
    installed.iter().find(|crd| crd.metadata.name.as_deref() == Some(&*name))
}

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("countersign-definitions");
    let installed = match installed(cluster).await {
        Ok(installed) => installed,
        Err(error) => {
            group.warn("the definitions can be looked at", format!("{error:#}"), Anchor::Definitions);
            return group;
        }
    };
    let all = definitions();
    let missing = |level: bool| -> Vec<String> {
        let absent = all.iter().filter(|d| needed(d) == level && of(d, &installed).is_none());
        absent.map(Definition::name).collect()
    };
    group.none("the kinds of policy are defined", Level::Error, &missing(true), Anchor::Definitions);
    group.none(
        "workloads outside of Kubernetes can be registered",
        Level::Warning,
        &missing(false),
        Anchor::Definitions,
    );
    let present: Vec<_> = all.iter().filter_map(|d| Some((d, of(d, &installed)?))).collect();
    if present.is_empty() {
        return group;
    }
    let troubled = |judge: fn(&Definition, &CustomResourceDefinition) -> Option<String>| -> Vec<String> {
        let found = present.iter().filter_map(|(d, crd)| Some(format!("{}: {}", d.name(), judge(d, crd)?)));
        found.collect()
    };
    let broken = troubled(|_, crd| not_established(crd));
    group.none("the definitions are established", Level::Error, &broken, Anchor::Definitions);
    group.none(
        "a version that is read here is served",
        Level::Error,
        &troubled(unserved),
        Anchor::Definitions,
    );
    group.none("a status can be written", Level::Error, &troubled(no_status), Anchor::Definitions);
    let columns = troubled(columns);
    group.none("kubectl shows what is enforced", Level::Warning, &columns, Anchor::ForeignDefinitions);
    group
}

/// Before an installation: what is there already stays.
pub(super) async fn before(cluster: &Cluster) -> Group {
    let mut group = Group::new("pre-definitions");
    match installed(cluster).await {
        Ok(installed) => {
            let foreign = |d: &Definition| {
                let crd = of(d, &installed)?;
                let (label, part) = PART_OF_LABEL;
                let ours = crd
                    .metadata
                    .labels
                    .as_ref()
                    .is_some_and(|labels| labels.get(label).is_some_and(|value| value == part));
                (!ours).then(|| format!("{} is there already and will be kept", d.name()))
            };
            let foreign: Vec<String> = definitions().iter().filter_map(foreign).collect();
            let description = "no other installation defines the kinds of policy";
            group.none(description, Level::Warning, &foreign, Anchor::ForeignDefinitions);
        }
        Err(error) => {
            group.warn("the definitions can be looked at", format!("{error:#}"), Anchor::InstallRights);
        }
    }
    group
}

fn not_established(crd: &CustomResourceDefinition) -> Option<String> {
    let conditions: Vec<_> =
        crd.status.iter().flat_map(|status| status.conditions.iter().flatten()).collect();
    if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
        return None;
    }
    let why = conditions.iter().find(|c| c.status == "False").and_then(|c| c.message.clone());
    Some(why.unwrap_or_else(|| "not established yet".to_owned()))
}

fn unserved(definition: &Definition, crd: &CustomResourceDefinition) -> Option<String> {
    let served =
        |name: &&str| crd.spec.versions.iter().any(|version| version.served && version.name == **name);
    // Older installations do not have all versions; one that we read is enough.
    if definition.kind.versions().iter().any(served) {
        return None;
    }
    Some(format!("none of {} is served", definition.kind.versions().join(", ")))
}

fn no_status(definition: &Definition, crd: &CustomResourceDefinition) -> Option<String> {
    let subresource = crd.spec.versions.iter().any(|version| {
        version.subresources.as_ref().is_some_and(|subresources| subresources.status.is_some())
    });
    (needed(definition) && !subresource).then(|| "it has no status subresource".to_owned())
}

fn columns(definition: &Definition, crd: &CustomResourceDefinition) -> Option<String> {
    let shows =
        crd.spec.versions.iter().flat_map(|version| version.additional_printer_columns.iter().flatten());
    let missing = needed(definition) && !shows.into_iter().any(|column| column.name == "Enforced");
    missing.then(|| "no column Enforced; see its status with -o yaml".to_owned())
}
