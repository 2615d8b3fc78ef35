//! Rights in the API server: those of the controller, from the one table that its RBAC manifests are made of, and before
//! an installation those of who installs.

use futures::StreamExt as _;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use source::kubernetes::{Need, Right, Scope, rights};

use super::report::{Anchor, Group, Level};
use crate::cluster::{Cluster, code, timely};

/// The controller's.
const SERVICE_ACCOUNT: &str = "countersign";
/// Questions at once.
const AT_ONCE: usize = 8;

/// Whose rights are asked for.
#[derive(Clone, Debug)]
enum Whom {
    Myself,
    Account(Box<SubjectAccessReviewSpec>),
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    attributes: ResourceAttributes,
    required: bool,
    why: String,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ResourceAttributes { group, resource, subresource, verb, namespace, name, .. } = &self.attributes;
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        write!(f, "{} {}", text(verb), text(resource))?;
        subresource.iter().try_for_each(|subresource| write!(f, "/{subresource}"))?;
        group.iter().filter(|group| !group.is_empty()).try_for_each(|group| write!(f, ".{group}"))?;
        name.iter().try_for_each(|name| write!(f, " {name}"))?;
        namespace.iter().try_for_each(|namespace| write!(f, " in {namespace}"))?;
        if self.why.is_empty() { Ok(()) } else { write!(f, ": {}", self.why) }
    }
}

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("countersign-rights");
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let (whom, who) = match timely(accounts.get(SERVICE_ACCOUNT)).await {
        Ok(_) => {
            (account(&cluster.namespace), format!("service account {}/{SERVICE_ACCOUNT}", cluster.namespace))
        }
        Err(error) if code(&error) == Some(404) => (
            Whom::Myself,
            format!("you (there is no service account {}/{SERVICE_ACCOUNT})", cluster.namespace),
        ),
        Err(error) => {
            group.warn("the controller's rights can be asked for", format!("{error:#}"), Anchor::Rights);
            return group;
        }
    };
    match lacking(cluster, &whom, needed(&cluster.namespace)).await {
        Ok(lacking) => {
            let of = |required: bool| -> Vec<String> {
                lacking.iter().filter(|asked| asked.required == required).map(ToString::to_string).collect()
            };
            let description = format!("{who} may do what the controller has to do");
            group.none(description, Level::Error, &of(true), Anchor::Rights);
            group.none("and what it does besides", Level::Warning, &of(false), Anchor::Rights);
        }
        Err(error) => {
            let description = format!("the rights of {who} can be asked for");
            group.warn(description, format!("{error:#}"), Anchor::Rights);
        }
    }
    group
}

/// Before an installation.
pub(super) async fn before(cluster: &Cluster) -> Group {
    let mut group = Group::new("pre-rights");
    let describe = |asked: &Asked| asked.to_string();
    match lacking(cluster, &Whom::Myself, created(&cluster.namespace)).await {
        Ok(lacking) => {
            let lacking: Vec<String> = lacking.iter().map(describe).collect();
            let description = "you may create what is installed";
            group.none(description, Level::Error, &lacking, Anchor::InstallRights);
        }
        Err(error) => group.warn("your rights can be asked for", format!("{error:#}"), Anchor::InstallRights),
    }
    // Kubernetes lets nobody grant what he does not have himself, unless he may escalate.
    let escalate = asked("rbac.authorization.k8s.io", "clusterroles", "escalate", None, None);
    let escalates =
        lacking(cluster, &Whom::Myself, vec![escalate]).await.is_ok_and(|lacking| lacking.is_empty());
    let description = "you may grant the controller its rights";
    if escalates {
        group.pass(description);
        return group;
    }
    match lacking(cluster, &Whom::Myself, needed(&cluster.namespace)).await {
        Ok(lacking) => {
            let lacking: Vec<String> = lacking.iter().map(describe).collect();
            group.none(description, Level::Error, &lacking, Anchor::InstallRights);
        }
        Err(error) => group.warn(description, format!("{error:#}"), Anchor::InstallRights),
    }
    group
}

fn account(namespace: &str) -> Whom {
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    let spec = SubjectAccessReviewSpec {
        user: Some(format!("system:serviceaccount:{namespace}:{SERVICE_ACCOUNT}")),
        groups: Some(groups.into()),
        ..SubjectAccessReviewSpec::default()
    };
    Whom::Account(Box::new(spec))
}

fn asked(group: &str, resource: &str, verb: &str, namespace: Option<&str>, name: Option<&str>) -> Asked {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (resource, None),
    };
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(verb.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    Asked { attributes, required: true, why: String::new() }
}

/// Everything that the controller does.
fn needed(namespace: &str) -> Vec<Asked> {
    let mut needed = Vec::new();
    for Right { scope, api_group, resources, names, verbs, why, need } in rights() {
        let place = (scope == Scope::Namespace).then_some(namespace);
        let names: Vec<Option<String>> = match names {
            [] => vec![None],
            names => names.iter().map(|name| Some(name.replace("{namespace}", namespace))).collect(),
        };
        for resource in &resources {
            for verb in verbs {
                for name in &names {
                    let asked = asked(api_group, resource, verb, place, name.as_deref());
                    needed.push(Asked { required: need == Need::Required, why: why.to_owned(), ..asked });
                }
            }
        }
    }
    needed
}

/// Everything that an installation consists of.
fn created(namespace: &str) -> Vec<Asked> {
    let everywhere = [
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
        ("", "namespaces"),
    ];
    let here = [
        ("", "serviceaccounts"),
        ("", "services"),
        ("", "configmaps"),
        ("", "secrets"),
        ("apps", "deployments"),
        ("rbac.authorization.k8s.io", "roles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("policy", "poddisruptionbudgets"),
    ];
    let everywhere = everywhere.iter().map(|(group, resource)| asked(group, resource, "create", None, None));
    let here = here.iter().map(|(group, resource)| asked(group, resource, "create", Some(namespace), None));
    everywhere.chain(here).collect()
}

/// What is asked for and not granted.
async fn lacking(cluster: &Cluster, whom: &Whom, asked: Vec<Asked>) -> anyhow::Result<Vec<Asked>> {
    let answers: Vec<anyhow::Result<Option<Asked>>> = futures::stream::iter(asked)
        .map(async |asked| {
            let allowed = allowed(cluster, whom, asked.attributes.clone()).await?;
            Ok((!allowed).then_some(asked))
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut lacking = Vec::new();
    for answer in answers {
        lacking.extend(answer?);
    }
    Ok(lacking)
}

async fn allowed(cluster: &Cluster, whom: &Whom, attributes: ResourceAttributes) -> anyhow::Result<bool> {
    let client = cluster.client.clone();
    let params = PostParams::default();
    let resource_attributes = Some(attributes);
    let status = match whom {
        Whom::Myself => {
            let spec = SelfSubjectAccessReviewSpec { resource_attributes, ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
            timely(reviews.create(&params, &review)).await?.status
        }
        Whom::Account(account) => {
            let spec = SubjectAccessReviewSpec { resource_attributes, ..(**account).clone() };
            let review = SubjectAccessReview { spec, ..Default::default() };
            let reviews: Api<SubjectAccessReview> = Api::all(client);
            timely(reviews.create(&params, &review)).await?.status
        }
    };
    Ok(status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_named_as_rbac_names_them() {
        let question = asked("security.istio.io", "authorizationpolicies/status", "patch", None, None);
        assert_eq!(question.to_string(), "patch authorizationpolicies/status.security.istio.io");
        let question = Asked { why: "x".to_owned(), ..asked("", "secrets", "get", Some("ns"), Some("n")) };
        assert_eq!(question.to_string(), "get secrets n in ns: x");
    }

    #[test]
    fn the_whole_table_is_asked() {
        let asked = needed("istio-system");
        let rows = |right: &Right| right.resources.len() * right.verbs.len() * right.names.len().max(1);
        assert_eq!(asked.len(), rights().iter().map(rows).sum::<usize>());
        assert!(asked.iter().any(|a| a.required) && asked.iter().any(|a| !a.required));
        assert!(asked.iter().all(|a| !a.to_string().contains('{')), "a name is not filled in");
    }
}
