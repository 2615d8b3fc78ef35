//! Hosts that only a ServiceEntry knows, called through real Envoys: who is believed to be them, what is encrypted, and
//! that nothing else becomes reachable.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::here;
use tests::lab::{self, ALLOWED, Caller, Credential, First, Got, Lab, PodId, PodSpec, Wire, get};

/// Nobody is there who could be believed, or nobody at all.
const NOBODY: Got = Got::Status(503);
/// The host is not known.
const UNKNOWN: Got = Got::Status(502);
const AT: Ipv4Addr = Ipv4Addr::new(10, 96, 9, 1);

fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n---\n"
    )
}

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

/// A client with redirection and one without.
async fn clients(lab: &mut Lab) -> Result<[PodId; 2]> {
    let pods =
        lab.pods([PodSpec::new("shop", "web"), PodSpec::new("shop", "local").without_capture()]).await?;
    Ok([pods[0], pods[1]])
}

/// Asks for `http://HOST/` at `at`, or through the proxy that is addressed.
async fn call(lab: &Lab, client: PodId, at: Ipv4Addr, host: &str) -> Got {
    let caller = Caller::new(&lab[client].at, Credential::Plaintext);
    let to = match lab[client].spec.capture {
        lab::Capture::None => lab[client].on(15001),
        _ => SocketAddr::from((at, 80)),
    };
    caller.send(to, get(&format!("http://{host}/"))).await.got
}

const PORTS: &str = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";

#[test]
fn only_the_accounts_of_an_internal_entry_are_believed() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let at = lab.network.namespace("vm")?;
        let wire = Wire::answering(lab, &at, &[8080], &identity("intruder")).await?;
        let clients = clients(lab).await?;
        let spec = |more: &str| {
            entry(
                "orders",
                &format!(
                    "{{hosts: [orders.example], addresses: [{AT}], location: MESH_INTERNAL, resolution: STATIC, {PORTS}, {more}}}"
                ),
            )
        };
        let inline = format!("endpoints: [{{address: {}, serviceAccount: orders}}]", at.v4);
        lab.save("orders.yaml", &spec(&inline))?;
        for client in clients {
            let ask = async |lab: &Lab| call(lab, client, AT, "orders.example").await;
            wire.becomes(lab, &identity("intruder"))?;
            lab.becomes(true, async |lab| {
                ask(lab).await == NOBODY && wire.seen().iter().any(|s| s.first.is_tls())
            })
            .await?;
            wire.becomes(lab, &identity("orders"))?;
            lab.becomes(ALLOWED, ask).await?;
        }
        let tls = |seen: &lab::Seen| match &seen.first {
            First::Tls { sni, .. } => sni == "outbound_.80_._.orders.example",
            _ => false,
        };
        ensure!(wire.seen().iter().all(tls), "{:?}", wire.seen());
        // Another name that the entry gives is believed as well.
        lab.save("orders.yaml", &spec(&format!("subjectAltNames: ['{}'], {inline}", identity("intruder"))))?;
        wire.becomes(lab, &identity("intruder"))?;
        lab.becomes(ALLOWED, async |lab| call(lab, clients[0], AT, "orders.example").await).await?;
        // Its endpoints are WorkloadEntries, which come and go.
        let vm = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop}}\nspec: {{address: {}, \
             labels: {{app: vm}}, serviceAccount: vm, ports: {{http: 8080}}}}\n",
            at.v4
        );
        lab.save("orders.yaml", &spec("workloadSelector: {labels: {app: vm}}"))?;
        wire.becomes(lab, &identity("vm"))?;
        for (there, expected) in [("", NOBODY), (&*vm, ALLOWED), ("", NOBODY), (&*vm, ALLOWED)] {
            lab.save("vm.yaml", there)?;
            for client in clients {
                lab.becomes(expected, async |lab| call(lab, client, AT, "orders.example").await).await?;
            }
        }
        wire.becomes(lab, &identity("orders"))?;
        lab.becomes(NOBODY, async |lab| call(lab, clients[0], AT, "orders.example").await).await?;
        ensure!(wire.seen().iter().all(|seen| !seen.first.is_plaintext()), "{:?}", wire.seen());
        Ok(())
    });
}

/// Outside of the mesh nobody is offered what only the mesh knows.
#[test]
fn an_external_entry_gets_no_mtls() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let at = lab.network.namespace("outside-server")?;
        let wire = Wire::answering(lab, &at, &[8080], &identity("orders")).await?;
        hosts(lab, &format!("127.0.0.1 localhost\n{} named.example\n", at.v4))?;
        let endpoint = format!("endpoints: [{{address: {}, serviceAccount: orders}}]", at.v4);
        for (name, spec) in [
            ("static", format!("resolution: STATIC, location: MESH_EXTERNAL, {endpoint}")),
            ("named", "resolution: DNS, location: MESH_EXTERNAL".to_owned()),
            ("alias", "resolution: DNS, endpoints: [{address: named.example}]".to_owned()),
        ] {
            let text = format!("{{hosts: [{name}.example], addresses: [{AT}], {PORTS}, {spec}}}");
            lab.save(&format!("{name}.yaml"), &entry(name, &text))?;
        }
        let clients = clients(lab).await?;
        for client in clients {
            for host in ["static.example", "named.example", "alias.example"] {
                let asked = async |lab: &Lab| call(lab, client, AT, host).await;
                lab.becomes(ALLOWED, asked).await.with_context(|| host.to_owned())?;
            }
        }
        ensure!(wire.seen().iter().all(|seen| seen.first == First::Http1), "{:?}", wire.seen());
        Ok(())
    });
}

/// Names for everybody in this sandbox, as a name server would give them.
fn hosts(lab: &Lab, text: &str) -> Result<()> {
    let path = lab.logs.join("hosts");
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    let status = Command::new("mount").arg("--bind").arg(&path).arg("/etc/hosts").status()?;
    ensure!(status.success(), "mount: {status}");
    Ok(())
}

/// Under REGISTRY_ONLY a host that an entry names is called where the client wanted to go, and no other.
#[test]
fn what_an_entry_names_is_let_out_and_nothing_else() {
    lab::run(here!(), async |lab| {
        lab.control.mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")?;
        lab.start().await?;
        let at = lab.network.namespace("outside-server")?;
        let wire = Wire::answering(lab, &at, &[80, 443], &identity("orders")).await?;
        let web = lab.pod(PodSpec::new("shop", "web")).await?;
        let ports =
            "ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]";
        lab.save("api.yaml", &entry("api", &format!("{{hosts: [api.example, '*.wild.example'], {ports}}}")))?;
        for (host, expected) in [
            ("api.example", ALLOWED),
            ("x.wild.example", ALLOWED),
            ("wild.example", UNKNOWN),
            ("other.example", UNKNOWN),
        ] {
            lab.becomes(expected, async |lab| call(lab, web, at.v4, host).await)
                .await
                .with_context(|| host.to_owned())?;
        }
        let caller = Caller::new(&lab[web].at, Credential::Plaintext);
        let arrived = |host: &str| {
            wire.seen_on(443)
                .iter()
                .filter(|s| matches!(&s.first, First::Tls { sni, .. } if sni == host))
                .count()
        };
        for host in ["other.example", "wild.example", "api.example", "x.wild.example"] {
            let known = !matches!(host, "other.example" | "wild.example");
            let answer =
                caller.raw(SocketAddr::from((at.v4, 443)), &hello(host)?, Duration::from_secs(1)).await;
            ensure!((arrived(host) > 0) == known && answer.is_empty() != known, "{host}: {answer:?}");
        }
        Ok(())
    });
}

/// The first bytes of a TLS client that asks for `host`.
fn hello(host: &str) -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), host.to_owned().try_into()?)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}
