//! The root certificate in every namespace: there, the same, and valid for a while.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::Pem;

use super::report::{Anchor, Group, Level};
use crate::cluster::{Cluster, timely};

/// Where workloads find the root (semantics §6.7).
const CONFIG_MAP: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// Namespaces that get none.
const WITHOUT: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
/// A root that ends sooner is to be replaced.
const SOON: Duration = Duration::days(30);

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("countersign-certificates");
    let description = "the root certificate is in the control plane's namespace";
    let maps: Api<ConfigMap> = Api::all(cluster.client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let maps = match timely(maps.list(&named)).await {
        Ok(maps) => maps.items,
        Err(error) => {
            group.warn(description, format!("{error:#}"), Anchor::RootCertificate);
            return group;
        }
    };
    let roots: BTreeMap<String, String> =
        maps.into_iter().filter_map(|map| Some((map.namespace()?, map.data?.remove(KEY)?))).collect();
    let Some(own) = roots.get(&cluster.namespace) else {
        let why = format!("there is no ConfigMap {CONFIG_MAP} with {KEY} in namespace {}", cluster.namespace);
        group.warn(description, why, Anchor::RootCertificate);
        return group;
    };
    group.pass(description);
    valid(&mut group, own, OffsetDateTime::now_utc());
    everywhere(&mut group, cluster, &roots, own).await;
    group
}

fn valid(group: &mut Group, root: &str, now: OffsetDateTime) {
    let description = "the root certificate is valid for 30 days or more";
    match ends(root) {
        Err(why) => group.fail(description, why, Anchor::RootCertificate),
        Ok(end) if end <= now => {
            group.fail(description, format!("it ended on {}", end.date()), Anchor::RootCertificate);
        }
        Ok(end) if end <= now + SOON => {
            group.warn(description, format!("it ends on {}", end.date()), Anchor::RootCertificate);
        }
        Ok(_) => group.pass(description),
    }
}

/// When the last of the certificates in `pem` ends: while roots change, the old one is still among them.
fn ends(pem: &str) -> Result<OffsetDateTime, String> {
    let mut last = None;
    for pem in Pem::iter_from_buffer(pem.as_bytes()) {
        let pem = pem.map_err(|error| format!("it cannot be read: {error}"))?;
        let certificate = pem.parse_x509().map_err(|error| format!("it cannot be read: {error}"))?;
        last = last.max(Some(certificate.validity().not_after.to_datetime()));
    }
    last.ok_or_else(|| "it holds no certificate".to_owned())
}

async fn everywhere(group: &mut Group, cluster: &Cluster, roots: &BTreeMap<String, String>, own: &str) {
    let description = "every namespace has the same root certificate";
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    match timely(namespaces.list(&ListParams::default())).await {
        Ok(namespaces) => {
            let judge = |namespace: &Namespace| {
                let name = namespace.name_any();
                let going = namespace.metadata.deletion_timestamp.is_some();
                match roots.get(&name) {
                    _ if going || WITHOUT.contains(&name.as_str()) => None,
                    Some(root) if root == own => None,
                    Some(_) => Some(format!("{name} has another one")),
                    None => Some(format!("{name} has none")),
                }
            };
            let findings: Vec<String> = namespaces.iter().filter_map(judge).collect();
            group.none(description, Level::Warning, &findings, Anchor::RootCertificate);
        }
        Err(error) => group.warn(description, format!("{error:#}"), Anchor::RootCertificate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_root_is_read_from_it() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        let end = OffsetDateTime::from_unix_timestamp(1_900_000_000).expect("a time");
        params.not_after = end;
        let pem = params.self_signed(&key).expect("a certificate").pem();
        assert_eq!(ends(&pem), Ok(end));
        assert!(ends("nonsense").is_err() && ends("").is_err());
        let at = |now: OffsetDateTime| {
            let mut group = Group::new("g");
            valid(&mut group, &pem, now);
            group
        };
        assert!(at(end - Duration::days(31)).passed() && at(end - Duration::days(1)).passed());
        assert!(!at(end + Duration::days(1)).passed());
    }
}
