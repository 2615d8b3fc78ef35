//! The connected proxies, by every replica's word: which have not what is published, and which run an Envoy with known
//! ways around policy.

use controller::status::ProxyStatus;

use super::report::{Anchor, Group, Level};
use crate::cluster::Cluster;

/// What a control plane says of an Envoy that is too old or of unknown version.
const BYPASSES: [&str; 2] = ["known policy bypasses", "unknown version"];

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("countersign-data-plane");
    let reports = match cluster.reports().await {
        Ok(reports) => reports,
        Err(error) => {
            group.warn("the control plane says which proxies it has", format!("{error:#}"), Anchor::NotTold);
            return group;
        }
    };
    let proxies: Vec<ProxyStatus> = reports.into_iter().flat_map(|(_, report)| report.proxies).collect();
    group.pass(format!("the control plane says which proxies it has ({})", proxies.len()));
    judge(&mut group, &proxies);
    group
}

fn judge(group: &mut Group, proxies: &[ProxyStatus]) {
    let findings = |judge: fn(&ProxyStatus) -> Option<String>| -> Vec<String> {
        let of = |proxy: &ProxyStatus| Some(format!("{}/{}: {}", proxy.namespace, proxy.name, judge(proxy)?));
        proxies.iter().filter_map(of).collect()
    };
    let old = |proxy: &ProxyStatus| {
        proxy.warnings.iter().find(|warning| BYPASSES.iter().any(|b| warning.contains(b))).cloned()
    };
    group.none("no Envoy has known policy bypasses", Level::Warning, &findings(old), Anchor::EnvoyFloor);
    let refused = |proxy: &ProxyStatus| {
        let first = proxy.types.iter().flat_map(|kind| &kind.rejected).next()?;
        Some(format!("{}: {}", first.resource.as_deref().unwrap_or("something"), first.error))
    };
    let description = "no proxy refused anything";
    group.none(description, Level::Error, &findings(refused), Anchor::ProxyBehind);
    let behind = |proxy: &ProxyStatus| {
        let refused = proxy.types.iter().any(|kind| !kind.rejected.is_empty());
        (!proxy.synced && !refused).then(|| "has not acknowledged everything yet".to_owned())
    };
    let description = "every proxy has what is published";
    group.none(description, Level::Warning, &findings(behind), Anchor::NotEnforced);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn old_and_refusing_proxies_are_named() {
        let proxy = |synced: bool, warnings: &[&str], rejected: serde_json::Value| -> ProxyStatus {
            serde_json::from_value(json!({
                "node": "n", "namespace": "shop", "name": "web-1", "peer": "", "secure": true, "identity": null,
                "envoyVersion": null, "connected": "", "registered": true, "synced": synced, "warnings": warnings,
                "types": [{"type": "lds", "published": 1, "acked": 1, "resources": 1, "rejected": rejected}],
            }))
            .expect("a status")
        };
        let judged = |proxy: ProxyStatus| {
            let mut group = Group::new("g");
            judge(&mut group, &[proxy]);
            serde_json::to_value(group).expect("JSON")["checks"].clone()
        };
        let result = |checks: &serde_json::Value, index: usize| checks[index]["result"].clone();
        let old =
            judged(proxy(true, &["Envoy 1.36.2 has known policy bypasses; use 1.39.1 or newer"], json!([])));
        assert_eq!((result(&old, 0), result(&old, 1)), (json!("warning"), json!("success")));
        let nack = judged(proxy(false, &[], json!([{"resource": "virtualInbound", "error": "no"}])));
        assert_eq!((result(&nack, 1), result(&nack, 2)), (json!("error"), json!("success")));
        assert_eq!(nack[1]["error"], "shop/web-1: virtualInbound: no");
        let behind = judged(proxy(false, &[], json!([])));
        assert_eq!(result(&behind, 2), json!("warning"));
    }
}
