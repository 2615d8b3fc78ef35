//! Auto-mTLS to each class of endpoint: what is able to speak it is never spoken to in plaintext, not by the first connection
//! and not by any later one (semantics §3.5, §10.19).

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use tests::here;
use tests::lab::{self, ALLOWED, First, Got, Lab, PodSpec, Wire, get};

use super::scene::*;

/// How the mesh knows an endpoint.
#[derive(Clone, Copy, Debug)]
enum Known {
    Pod {
        proxied: bool,
    },
    WorkloadEntry {
        account: bool,
        labels: &'static str,
    },
    /// An address in an EndpointSlice and nothing more.
    Address,
}

/// One class of endpoint.
#[derive(Debug)]
struct Class {
    name: &'static str,
    namespace: &'static str,
    known: Known,
    /// A PeerAuthentication for it alone.
    peer: Option<&'static str>,
    /// The target ports that are spoken to in plaintext.
    plaintext: &'static [u16],
}

const POD: Known = Known::Pod { proxied: true };
const NEVER: &[u16] = &[];
const ALWAYS: &[u16] = &TARGETS;

/// Namespace `off` has a PeerAuthentication of mode DISABLE; `default` has none.
const CLASSES: [Class; 13] = [
    class("proxied", "default", POD, None, NEVER),
    class("bare", "default", Known::Pod { proxied: false }, None, ALWAYS),
    class("permissive", "default", POD, Some("mtls: {mode: PERMISSIVE}"), NEVER),
    class("strict", "default", POD, Some("mtls: {mode: STRICT}"), NEVER),
    class("disabled", "default", POD, Some("mtls: {mode: DISABLE}"), ALWAYS),
    class(
        "one-port-off",
        "default",
        POD,
        Some("mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}"),
        &[8080],
    ),
    class(
        "one-port-on",
        "default",
        POD,
        Some("mtls: {mode: DISABLE}, portLevelMtls: {8082: {mode: PERMISSIVE}}"),
        &[8080, 8081, 8083],
    ),
    // 80 is the Service's port, so this says nothing.
    class("service-port", "default", POD, Some("portLevelMtls: {80: {mode: DISABLE}}"), NEVER),
    class("off", "off", POD, None, ALWAYS),
    // Callers go by the namespace's mode alone, as with Istio: what says no there is not called at all.
    class("on-again", "off", POD, Some("mtls: {mode: STRICT}"), ALWAYS),
    class("vm", "default", Known::WorkloadEntry { account: true, labels: "" }, None, NEVER),
    class("bare-vm", "default", Known::WorkloadEntry { account: false, labels: "" }, None, ALWAYS),
    class("unknown", "default", Known::Address, None, ALWAYS),
];

const fn class(
    name: &'static str,
    namespace: &'static str,
    known: Known,
    peer: Option<&'static str>,
    plaintext: &'static [u16],
) -> Class {
    Class { name, namespace, known, peer, plaintext }
}

impl Class {
    /// Everything that says it is there.
    fn objects(&self, cluster_ip: Ipv4Addr, at: Ipv4Addr) -> String {
        let Self { name, namespace, known, peer, plaintext: _ } = self;
        let mut text = service(namespace, name, cluster_ip);
        match known {
            Known::Pod { proxied } => {
                let labels = if *proxied { PROXIED } else { "" };
                text += &pod(namespace, &format!("{name}-1"), name, name, at, labels);
            }
            Known::WorkloadEntry { account, labels } => {
                let account = if *account { format!(", serviceAccount: {name}") } else { String::new() };
                text += &format!(
                    "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}-1, namespace: \
                     {namespace}, labels: {{app: {name}{labels}}}}}\nspec: {{address: {at}{account}, labels: {{app: {name}{labels}}}}}\n---\n"
                );
            }
            Known::Address => {
                text = text.replace(&format!("  selector: {{app: {name}}}\n"), "");
                text += &format!(
                    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {namespace}, \
                     labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [{at}], \
                     conditions: {{ready: true}}}}]\nports: [{{name: http, port: 8080}}, {{name: http2, port: 8081}}, {{name: \
                     tcp, port: 8082}}, {{name: any, port: 8083}}]\n---\n"
                );
            }
        }
        if let Some(spec) = peer {
            let spec = format!("{{selector: {{matchLabels: {{app: {name}}}}}, {spec}}}");
            text += &peer_authentication(namespace, name, &spec);
        }
        text
    }
}

/// The cluster IP of the n-th service.
fn cluster_ip(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 1, u8::try_from(n).expect("a few") + 1)
}

fn callee(n: usize) -> Callee<'static> {
    Callee { namespace: CLASSES[n].namespace, name: CLASSES[n].name, at: cluster_ip(n) }
}

/// A server for each class, registered before any client is there.
async fn everyone(lab: &mut Lab) -> Result<Vec<Wire>> {
    let mut wires = Vec::new();
    for (n, class) in CLASSES.iter().enumerate() {
        let at = lab.network.namespace(class.name)?;
        lab.save(&format!("{}.yaml", class.name), &class.objects(cluster_ip(n), at.v4))?;
        let identity = spiffe_id(class.namespace, class.name);
        wires.push(Wire::answering(lab, &at, &TARGETS, &identity).await?);
    }
    Ok(wires)
}

/// Asks once it is answered, and gives back what that put on the wire.
async fn heard(
    lab: &Lab,
    client: &Client,
    kind: Kind,
    callee: &Callee<'_>,
    wire: &Wire,
) -> Result<Vec<lab::Seen>> {
    let before = wire.seen().len();
    lab.becomes(answered(kind), async |_| client.ask(kind, callee).await.got).await?;
    let seen = wire.seen().split_off(before);
    ensure!(!seen.is_empty(), "{kind:?} to {} was answered over nothing", callee.name);
    Ok(seen)
}

/// Every class, over every protocol, with redirection and without.
#[test]
fn every_class_of_endpoint_has_its_wire() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        lab.save("off-namespace.yaml", &peer_authentication("off", "default", "{mtls: {mode: DISABLE}}"))?;
        let wires = everyone(lab).await?;
        let callees: Vec<Callee<'_>> = (0..CLASSES.len()).map(callee).collect();
        let clients = clients(lab, &callees).await?;
        for (client, how) in clients.iter().zip(["captured", "forwarding"]) {
            for ((class, callee), wire) in CLASSES.iter().zip(&callees).zip(&wires) {
                for kind in Kind::ALL {
                    let mtls = !class.plaintext.contains(&kind.target());
                    let expected = kind.first(mtls, kind.port(), &callee.host());
                    for seen in heard(lab, client, kind, callee, wire).await? {
                        let what = format!("{kind:?} of {how} to {}: {seen:?}", class.name);
                        ensure!(seen.first == expected, "{what}, not {expected:?}");
                        ensure!(seen.port == kind.target(), "{what}");
                        let peer = mtls.then_some(&client.id);
                        ensure!(seen.peer.as_ref() == peer, "{what}, not from {peer:?}");
                    }
                }
            }
        }
        Ok(())
    });
}

/// Two endpoints of one service, one with a proxy: each is spoken to as it can be, over a service IP and headless.
#[test]
fn mixed_and_headless_services() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let (with, without) = (lab.network.namespace("with")?, lab.network.namespace("without")?);
        let identity = spiffe_id("default", "mixed");
        let wires = [
            Wire::answering(lab, &with, &TARGETS, &identity).await?,
            Wire::answering(lab, &without, &TARGETS, &identity).await?,
        ];
        let objects = service("default", "mixed", cluster_ip(0))
            + &pod("default", "mixed-1", "mixed", "mixed", with.v4, PROXIED)
            + &pod("default", "mixed-2", "mixed", "mixed", without.v4, "");
        // A headless service's port is the endpoint's own.
        let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: default}\nspec:\n  clusterIP: None\n  \
             selector: {app: mixed}\n  ports:\n  - {name: http, port: 8080}\n  - {name: http2, port: 8081}\n  - {name: tcp, port: \
             8082}\n  - {name: any, port: 8083}\n";
        lab.save("mixed.yaml", &(objects + headless))?;
        let id = lab.pod(PodSpec::new("default", "captured")).await?;
        let client = Client::captured(lab, id);
        for kind in Kind::ALL {
            let mixed = Callee { namespace: "default", name: "mixed", at: cluster_ip(0) };
            both(lab, &client, kind, &mixed, kind.port(), &wires).await?;
            let headless = Callee { name: "headless", at: with.v4, ..mixed };
            both(lab, &client, kind, &headless, kind.target(), &wires).await?;
        }
        Ok(())
    });
}

/// Asks until both were asked, and looks at what that was.
async fn both(
    lab: &Lab,
    client: &Client,
    kind: Kind,
    callee: &Callee<'_>,
    port: u16,
    wires: &[Wire; 2],
) -> Result<()> {
    let before: Vec<usize> = wires.iter().map(|wire| wire.seen().len()).collect();
    lab.becomes(true, async |_| {
        let got = client.ask_on(kind, callee, port).await.got;
        got == answered(kind) && wires.iter().zip(&before).all(|(wire, before)| wire.seen().len() > *before)
    })
    .await?;
    for ((wire, before), mtls) in wires.iter().zip(before).zip([true, false]) {
        let expected = kind.first(mtls, port, &callee.host());
        for seen in wire.seen().split_off(before) {
            ensure!(seen.first == expected, "{kind:?} to {}: {seen:?}, not {expected:?}", callee.name);
        }
    }
    Ok(())
}

/// Where the mesh's own PeerAuthentication is DISABLE, callers speak plaintext, whatever single workloads say (semantics §3.5:
/// callers go by the namespace's mode). What takes mTLS alone refuses them.
#[test]
fn a_mesh_without_mtls_is_called_in_plaintext() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        lab.save("mesh.yaml", &peer_authentication("istio-system", "default", "{mtls: {mode: DISABLE}}"))?;
        let wires = everyone(lab).await?;
        let id = lab.pod(PodSpec::new("default", "captured")).await?;
        let client = Client::captured(lab, id);
        for (n, wire) in wires.iter().enumerate() {
            let (class, kind) = (&CLASSES[n], Kind::Tcp);
            for seen in heard(lab, &client, kind, &callee(n), wire).await? {
                let expected = kind.first(false, kind.port(), &callee(n).host());
                ensure!(seen.first == expected, "{}: {seen:?}, not {expected:?}", class.name);
            }
        }
        Ok(())
    });
}

/// Without auto-mTLS everything is as the application sends it.
#[test]
fn without_auto_mtls_nothing_is_encrypted() {
    lab::run(here!(), async |lab| {
        lab.control.mesh("enableAutoMtls: false\n")?;
        lab.start().await?;
        let wires = everyone(lab).await?;
        let callees: Vec<Callee<'_>> = (0..CLASSES.len()).map(callee).collect();
        for client in clients(lab, &callees).await? {
            for kind in Kind::ALL {
                for seen in heard(lab, &client, kind, &callee(0), &wires[0]).await? {
                    ensure!(seen.first == kind.first(false, 0, ""), "{kind:?}: {seen:?}");
                }
            }
        }
        Ok(())
    });
}

/// A host that is in no registry is reached as the application sends it; where the mesh says so, not at all.
#[test]
fn hosts_outside_the_mesh() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let at = lab.network.namespace("elsewhere")?;
        let wire =
            Wire::answering(lab, &at, &[443, 8080], "spiffe://cluster.local/ns/x/sa/elsewhere").await?;
        let id = lab.pod(PodSpec::new("default", "captured")).await?;
        let client = Client::captured(lab, id);
        let (http, tls) = ((at.v4, 8080).into(), (at.v4, 443).into());
        lab.becomes(ALLOWED, async |_| {
            client.caller.send(http, get("http://elsewhere.example:8080/")).await.got
        })
        .await?;
        ensure!(wire.seen_on(8080).iter().all(|seen| seen.first == First::Http1), "{:?}", wire.seen());
        // The application's own TLS is passed on as it is.
        let mut own = client.caller.clone();
        own.credential = lab.identity("default", "application")?;
        own.sni = "elsewhere.example".to_owned();
        own.alpn = Some(&["h2", "http/1.1"]);
        own.http1(tls).await.ok();
        let seen = wire.seen_on(443);
        let sni = "elsewhere.example".to_owned();
        let alpn = ["h2", "http/1.1"].map(str::to_owned).to_vec();
        ensure!(seen.len() == 1 && seen[0].first == First::Tls { sni, alpn }, "{seen:?}");
        lab.control.mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")?;
        lab.becomes(Got::Closed, async |_| {
            client.caller.send(http, get("http://elsewhere.example:8080/")).await.got
        })
        .await?;
        Ok(())
    });
}
