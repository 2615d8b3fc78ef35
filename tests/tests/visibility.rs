//! What a proxy may call: `exportTo` and Sidecars, on real Envoys. That they narrow what a client reaches, and that a
//! Sidecar's `ingress` opens nothing.

use std::net::SocketAddr;

use anyhow::Result;
use tests::here;
use tests::lab::{self, ALLOWED, Caller, Credential, DENIED, Got, Lab, PodId, PodSpec, Protocol, get};

/// What a client is told of a host that it may not call, where others share the port.
const UNKNOWN: Got = Got::Status(502);

fn sidecar(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// Calls a service by its address, as an application that resolved its name does.
async fn call(lab: &Lab, from: PodId, to: PodId) -> Got {
    let caller = Caller::new(&lab[from].at, Credential::Plaintext);
    let spec = &lab[to].spec;
    let at = SocketAddr::from((lab[to].cluster_ip, 8080));
    caller
        .send(at, get(&format!("http://{}.{}.svc.cluster.local:8080/", spec.name, spec.namespace)))
        .await
        .got
}

#[test]
fn egress_hosts_narrow_what_a_client_reaches() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let server = |namespace, name| PodSpec::new(namespace, name).port(8080, Protocol::Http);
        let client = PodSpec::new("shop", "web");
        let pods = lab.pods([server("shop", "orders"), server("stock", "stock"), client]).await?;
        let [orders, stock, web] = pods[..] else { anyhow::bail!("three pods") };
        let both = async |lab: &Lab| (call(lab, web, orders).await, call(lab, web, stock).await);
        lab.becomes((ALLOWED, ALLOWED), both).await?;
        let narrow = "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['./*']}]}";
        lab.save("sidecar.yaml", &sidecar("shop", "default", narrow))?;
        lab.becomes((ALLOWED, UNKNOWN), both).await?;
        // The one that selects the workload counts before that of the namespace.
        let other = "{workloadSelector: {labels: {app: web}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['stock/*']}]}";
        lab.save("web.yaml", &sidecar("shop", "web", other))?;
        lab.becomes((UNKNOWN, ALLOWED), both).await?;
        // One that cannot be read keeps its last good version.
        lab.save("web.yaml", &sidecar("shop", "web", "{egress: [{hosts: [everything]}]}"))?;
        // Something that is read after it tells when it has been looked at.
        lab.save("sidecar.yaml", &sidecar("shop", "default", "{egress: [{hosts: ['*/*']}]}"))?;
        lab.becomes(ALLOWED, async |lab| call(lab, orders, stock).await).await?;
        lab.becomes((UNKNOWN, ALLOWED), both).await?;
        lab.save("web.yaml", "")?;
        lab.becomes((ALLOWED, ALLOWED), both).await
    });
}

/// A Sidecar that never could be read leaves nothing to call.
#[test]
fn an_unreadable_sidecar_closes() {
    lab::run(here!(), async |lab| {
        lab.save("sidecar.yaml", &sidecar("shop", "default", "{egress: [{hosts: [everything]}]}"))?;
        lab.start().await?;
        let server = PodSpec::new("shop", "orders").port(8080, Protocol::Http);
        let pods = lab.pods([server, PodSpec::new("shop", "web"), PodSpec::new("other", "far")]).await?;
        lab.becomes(ALLOWED, async |lab| call(lab, pods[2], pods[0]).await).await?;
        lab.becomes(Got::Closed, async |lab| call(lab, pods[1], pods[0]).await).await?;
        lab.save("sidecar.yaml", &sidecar("shop", "default", "{egress: [{hosts: ['shop/*']}]}"))?;
        lab.becomes(ALLOWED, async |lab| call(lab, pods[1], pods[0]).await).await
    });
}

#[test]
fn export_to_hides_a_service() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        // Of the same port as the hidden one, so that somebody answers for it.
        let server = |namespace, name| PodSpec::new(namespace, name).port(8080, Protocol::Http);
        let pods =
            lab.pods([server("shop", "orders"), PodSpec::new("shop", "web"), server("other", "far")]).await?;
        let [orders, near, far] = pods[..] else { anyhow::bail!("three pods") };
        lab.save("all.yaml", &sidecar("other", "default", "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"))?;
        let both = async |lab: &Lab| (call(lab, near, orders).await, call(lab, far, orders).await);
        lab.becomes((ALLOWED, ALLOWED), both).await?;
        for (export_to, expected) in [
            (".", (ALLOWED, UNKNOWN)),
            ("*", (ALLOWED, ALLOWED)),
            ("elsewhere, shop", (ALLOWED, UNKNOWN)),
            ("., other", (ALLOWED, ALLOWED)),
        ] {
            exported(lab, orders, export_to)?;
            lab.becomes(expected, both).await?;
        }
        Ok(())
    });
}

/// Puts the annotation on the Service of a pod.
fn exported(lab: &Lab, pod: PodId, to: &str) -> Result<()> {
    let (spec, address) = (&lab[pod].spec, lab[pod].cluster_ip);
    let (name, namespace) = (&spec.name, &spec.namespace);
    // The first definition by path counts.
    lab.save(
        "0-service.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  annotations: \
             {{networking.istio.io/exportTo: \"{to}\"}}\nspec:\n  clusterIP: {address}\n  selector: {{app: {name}}}\n  ports: \
             [{{name: http, port: 8080}}]\n"
        ),
    )
}

/// Its ports take what PeerAuthentication and policies say, like every other.
#[test]
fn ingress_opens_nothing() {
    lab::run(here!(), async |lab| {
        let ingress = "{workloadSelector: {labels: {app: orders}}, ingress: [{port: {number: 9000, protocol: HTTP}, defaultEndpoint: '0.0.0.0:8080'}]}";
        lab.save("sidecar.yaml", &sidecar("shop", "orders", ingress))?;
        lab.start().await?;
        let orders = lab.pod(PodSpec::new("shop", "orders").port(8080, Protocol::Http)).await?;
        let friend = lab.caller_to(orders, lab.identity("shop", "web")?);
        let nobody = lab.caller_to(orders, Credential::Plaintext);
        let (new, old) = (lab[orders].on(9000), lab[orders].on(8080));
        let ask = async |at| (friend.get(at, "/").await.got, nobody.get(at, "/").await.got);
        lab.becomes((ALLOWED, ALLOWED), async |_| ask(new).await).await?;
        // Its own port is now one of the others, and served as those are.
        lab.becomes((ALLOWED, ALLOWED), async |_| ask(old).await).await?;
        let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
        lab.save("strict.yaml", strict)?;
        for at in [new, old] {
            lab.becomes((ALLOWED, Got::Closed), async |_| ask(at).await).await?;
        }
        let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {ports: ['9000']}}]}]}\n";
        lab.save("deny.yaml", deny)?;
        lab.becomes((DENIED, Got::Closed), async |_| ask(new).await).await?;
        lab.becomes((ALLOWED, Got::Closed), async |_| ask(old).await).await
    });
}
