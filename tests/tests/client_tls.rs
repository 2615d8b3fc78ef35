//! How a sidecar calls a host that a DestinationRule speaks of, seen at the server: the first bytes, the names, the
//! certificate (semantics §3.5). Every change goes live in a running Envoy.

#[path = "client_tls/server.rs"]
mod server;

use std::net::SocketAddr;

use anyhow::Result;
use http::header::HOST;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use server::{Seen, Server};
use tests::here;
use tests::lab::{self, ALLOWED, Authority, Caller, Credential, Got, Lab, Leaf, PodSpec, get};

const NAME: &str = "server.prod.svc.cluster.local";
const FAILED: Got = Got::Status(503);
const ROOTS: &str = "/run/lab/roots.pem";
const CHAIN: &str = "/run/lab/chain.pem";
const KEY: &str = "/run/lab/key.pem";

/// A client with a sidecar and a server without, in other namespaces.
struct Bed<'l> {
    lab: &'l mut Lab,
    caller: Caller,
    server: Server,
    /// The server's own authority.
    authority: Authority,
}

impl<'l> Bed<'l> {
    /// `mesh`: the server is registered as one that speaks mTLS.
    async fn new(lab: &'l mut Lab, mesh: bool) -> Result<Self> {
        let at = lab.network.namespace("server")?;
        let (account, v4) = (if mesh { ", serviceAccount: server" } else { "" }, at.v4);
        lab.save(
            "server.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: prod}}\nspec:\n  clusterIP: \
                 10.96.9.1\n  selector: {{app: server}}\n  ports:\n  - {{name: http-a, port: 8443}}\n  - {{name: http-b, \
                 port: 8444}}\n  - {{name: other, port: 8445}}\n---\napiVersion: networking.istio.io/v1\nkind: \
                 WorkloadEntry\nmetadata: {{name: server, namespace: prod, labels: {{app: server}}}}\nspec: {{address: \
                 {v4}{account}}}\n"
            ),
        )?;
        lab.start().await?;
        let authority = Authority::new()?;
        let server = Server::start(&at, &[8443, 8444, 8445], named(&authority, NAME)?).await?;
        let client = lab.pod(PodSpec::new("web", "client")).await?;
        let caller = Caller::new(&lab[client].at, Credential::Plaintext);
        std::fs::write(ROOTS, &authority.root_pem)?;
        Ok(Self { lab, caller, server, authority })
    }

    /// The certificate of a workload of the mesh.
    fn member(&self, account: &str) -> Result<(String, String)> {
        let id = format!("spiffe://cluster.local/ns/prod/sa/{account}");
        self.lab.authority()?.mint_pem(&Leaf::new([id]))
    }

    async fn call(&self, port: u16, host: &str) -> (Got, Vec<Seen>) {
        self.server.taken();
        let mut request = get("/");
        request.headers_mut().insert(HOST, host.parse().expect("a host"));
        let got = self.caller.send(SocketAddr::from(([10, 96, 9, 1], port)), request).await.got;
        (got, self.server.taken())
    }

    /// Waits until a call of `host` at `port` ends so, and the server was spoken to so.
    async fn sees(&self, port: u16, host: &str, expected: (Got, Vec<Seen>)) -> Result<()> {
        self.lab.becomes(expected, async |_| self.call(port, host).await).await
    }

    /// A rule in `namespace` with this TLS block, and what else its spec has.
    fn rule(&self, namespace: &str, tls: &str, more: &str) -> Result<()> {
        self.lab.save(
            &format!("rule-{namespace}.yaml"),
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: server, namespace: \
                 {namespace}}}\nspec:\n  host: {NAME}\n  trafficPolicy: {{tls: {tls}}}\n{more}"
            ),
        )
    }
}

fn named(authority: &Authority, dns: &str) -> Result<(String, String)> {
    authority.mint_pem(&Leaf { dns: vec![dns.to_owned()], ..Leaf::new::<String>([]) })
}

fn plaintext() -> (Got, Vec<Seen>) {
    (ALLOWED, vec![Seen::Plaintext])
}

/// TLS as to any server outside of the mesh: Envoy offers the protocol that it is going to speak.
fn tls(sni: Option<&str>, client: Option<&CertificateDer<'static>>) -> (Got, Vec<Seen>) {
    let (sni, client) = (sni.map(str::to_owned), client.cloned());
    (ALLOWED, vec![Seen::Tls { sni, alpn: vec!["http/1.1".to_owned()], client, completed: true }])
}

/// The client gave up in the handshake, whatever it had said before.
async fn refused(bed: &Bed<'_>, port: u16, host: &str) -> Result<()> {
    bed.lab
        .becomes((FAILED, true), async |_| {
            let (got, seen) = bed.call(port, host).await;
            let given_up = |seen: &Seen| matches!(seen, Seen::Tls { completed: false, .. });
            (got, !seen.is_empty() && seen.iter().all(given_up))
        })
        .await
}

/// SIMPLE and MUTUAL against a server that the mesh does not know, and DISABLE.
#[test]
fn tls_is_originated_as_the_rule_says() {
    lab::run(here!(), async |lab| {
        let bed = Bed::new(lab, false).await?;
        bed.sees(8443, NAME, plaintext()).await?;

        bed.rule("prod", &format!("{{mode: SIMPLE, caCertificates: {ROOTS}}}"), "")?;
        bed.sees(8443, NAME, tls(Some(NAME), None)).await?;
        // A port of undeclared protocol, whose HTTP chain would offer what only the mesh knows.
        bed.sees(8445, NAME, tls(Some(NAME), None)).await?;
        // The name that is asked for must be in the certificate.
        refused(&bed, 8443, "server.prod").await?;

        bed.rule(
            "prod",
            &format!("{{mode: SIMPLE, caCertificates: {ROOTS}, sni: other, subjectAltNames: [x, {NAME}]}}"),
            "",
        )?;
        bed.sees(8443, "server.prod", tls(Some("other"), None)).await?;
        bed.rule("prod", &format!("{{mode: SIMPLE, caCertificates: {ROOTS}, subjectAltNames: [x]}}"), "")?;
        refused(&bed, 8443, NAME).await?;

        // The roots of the system do not know the server.
        bed.rule("prod", "{mode: SIMPLE}", "")?;
        refused(&bed, 8443, NAME).await?;
        bed.rule("prod", "{mode: SIMPLE, insecureSkipVerify: true}", "")?;
        bed.sees(8443, NAME, tls(Some(NAME), None)).await?;

        // The certificate is not there yet: nothing is sent, and no other way is tried.
        let mutual = format!(
            "{{mode: MUTUAL, caCertificates: {ROOTS}, clientCertificate: {CHAIN}, privateKey: {KEY}}}"
        );
        bed.rule("prod", &mutual, "")?;
        bed.sees(8443, NAME, (FAILED, Vec::new())).await?;
        let (chain, key) = named(&bed.authority, "client")?;
        std::fs::write(CHAIN, &chain)?;
        std::fs::write(KEY, &key)?;
        bed.sees(8443, NAME, tls(Some(NAME), Some(&CertificateDer::from_pem_slice(chain.as_bytes())?)))
            .await?;
        // Another certificate is taken over as it comes.
        let (chain, key) = named(&bed.authority, "client")?;
        std::fs::write(CHAIN, &chain)?;
        std::fs::write(KEY, &key)?;
        bed.sees(8443, NAME, tls(Some(NAME), Some(&CertificateDer::from_pem_slice(chain.as_bytes())?)))
            .await?;
        // Somebody else's server.
        bed.server.becomes(named(&Authority::new()?, NAME)?);
        refused(&bed, 8443, NAME).await?;

        bed.rule("prod", "{mode: SIMPLE, credentialName: secret}", "")?;
        bed.sees(8443, NAME, (FAILED, Vec::new())).await?;
        bed.rule("prod", "{mode: DISABLE}", "")?;
        bed.sees(8443, NAME, plaintext()).await?;
        Ok(())
    });
}

/// ISTIO_MUTUAL and DISABLE against a server that is registered with and without mTLS.
#[test]
fn mesh_mtls_is_as_the_rule_says() {
    lab::run(here!(), async |lab| {
        let bed = Bed::new(lab, true).await?;
        let mutual = async |port: u16, sni: &str, alpn: &[&str]| {
            let ours = |seen: &Seen| match seen {
                Seen::Tls { sni: Some(asked), alpn: offered, client: Some(client), completed: true } => {
                    let id = spiffe::Leaf::parse(client).map(|leaf| leaf.id.to_string());
                    asked == sni
                        && offered == alpn
                        && id.is_ok_and(|id| id == "spiffe://cluster.local/ns/web/sa/client")
                }
                _ => false,
            };
            bed.lab
                .becomes((ALLOWED, true), async |_| {
                    let (got, seen) = bed.call(port, NAME).await;
                    (got, seen.len() == 1 && seen.iter().all(ours))
                })
                .await
        };
        let own = format!("outbound_.8443_._.{NAME}");
        let http = ["istio-http/1.1", "istio", "http/1.1"];
        bed.server.becomes(bed.member("server")?);
        mutual(8443, &own, &http).await?;
        bed.rule("prod", "{mode: DISABLE}", "")?;
        bed.sees(8443, NAME, plaintext()).await?;
        bed.rule("prod", "{mode: ISTIO_MUTUAL, sni: other}", "")?;
        mutual(8443, "other", &http).await?;
        // Another service account of the mesh is not this service, unless the rule says so.
        bed.server.becomes(bed.member("other")?);
        refused(&bed, 8443, NAME).await?;
        bed.rule(
            "prod",
            "{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/prod/sa/other']}",
            "",
        )?;
        mutual(8443, &own, &http).await?;
        bed.server.becomes(bed.member("server")?);
        refused(&bed, 8443, NAME).await?;
        // What cannot be understood, and has no good version, is mesh mTLS.
        bed.lab.control.remove("rule-prod.yaml")?;
        mutual(8443, &own, &http).await?;
        bed.rule("web", "{mode: PLAINTEXT}", "")?;
        bed.server.becomes(bed.member("other")?);
        refused(&bed, 8443, NAME).await?;
        bed.server.becomes(bed.member("server")?);
        mutual(8443, &own, &http).await?;
        // The endpoint is one that takes no mTLS now: with the rule there is no way back to plaintext.
        bed.lab.save(
            "entry.yaml",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: prod}\nspec:\n  \
             selector: {matchLabels: {app: server}}\n  mtls: {mode: DISABLE}\n",
        )?;
        mutual(8443, &own, &http).await?;
        bed.lab.control.remove("rule-web.yaml")?;
        bed.sees(8443, NAME, plaintext()).await?;
        Ok(())
    });
}

/// A port-level entry replaces the whole block, and the client's namespace comes before the service's and the root.
#[test]
fn ports_and_namespaces() {
    lab::run(here!(), async |lab| {
        let bed = Bed::new(lab, false).await?;
        let simple = format!("{{mode: SIMPLE, caCertificates: {ROOTS}, sni: ");
        let named = |name: &str| format!("{simple}{name}, subjectAltNames: [{NAME}]}}");
        let sees = async |sni: &str| bed.sees(8443, NAME, tls(Some(sni), None)).await;
        bed.rule("istio-system", &named("root"), "")?;
        sees("root").await?;
        bed.rule("prod", &named("service"), "")?;
        sees("service").await?;
        bed.rule("web", &named("client"), "  exportTo: ['.']\n")?;
        sees("client").await?;
        // A rule that its own namespace does not see.
        bed.rule("web", &named("client"), "  exportTo: [prod]\n")?;
        sees("service").await?;
        bed.rule("web", &named("selected"), "  workloadSelector: {matchLabels: {app: client}}\n")?;
        sees("selected").await?;
        bed.rule("web", &named("selected"), "  workloadSelector: {matchLabels: {app: another}}\n")?;
        sees("service").await?;
        bed.rule("prod", &named("service"), "  exportTo: ['.']\n")?;
        sees("root").await?;

        let settings = |ports: &str| format!("{}, portLevelSettings: [{ports}]", named("wide"));
        bed.rule(
            "prod",
            &settings("{port: {number: 8444}, connectionPool: {tcp: {maxConnections: 9}}}"),
            "",
        )?;
        sees("wide").await?;
        bed.sees(8444, NAME, plaintext()).await?;
        bed.rule("prod", &settings(&format!("{{port: {{number: 8444}}, tls: {}}}", named("narrow"))), "")?;
        bed.sees(8444, NAME, tls(Some("narrow"), None)).await?;
        sees("wide").await?;
        for namespace in ["web", "prod", "istio-system"] {
            bed.lab.control.remove(&format!("rule-{namespace}.yaml"))?;
        }
        bed.sees(8443, NAME, plaintext()).await?;
        Ok(())
    });
}
