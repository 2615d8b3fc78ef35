//! Who gets which identity in a cluster: service-account tokens, their pods, the relay, and the roots, against a real API
//! server and the real `countersign ca` with the rights of its chart.

#[path = "kube_identity/ads.rs"]
mod ads;
#[path = "kube_identity/scene.rs"]
mod scene;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use authn::svid_client::{RootSource, Settings, Standing, SvidClient, TokenSource};
use authn::token::{TokenLayer, TokenReviewer};
use base64::Engine as _;
use rcgen::{CertificateParams, DnType, SanType};
use scene::{
    CA, CONTROLLER, Client, ROOT, ca_account, cacerts, handshake, id, pod_with_token, published, roots,
    start_ca,
};
use spiffe::{PrivateKey, SigningRequest, Svid, TrustBundle};
use tests::here;
use tests::lab::kube::{self, Claims, Kube, Through};
use tests::lab::{Process, programs, until};
use tonic::Code;

#[test]
fn a_token_gets_its_own_identity_and_no_other() {
    kube::own(here!(), async |kube| {
        let kubeconfig = ca_account(kube).await?;
        let mut ca = start_ca(kube, "ca", &kubeconfig, &[]).await?;
        ca.wait_ready().await?;
        let (uid, token) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        let client = Client::new(ca.address, CA, &roots(kube, "shop").await?);

        // An unmodified Istio agent's request: the chain is leaf first, root last, and no more than 24 hours.
        let (svid, chain) = client.certificate(Some(&token)).await?.expect("a certificate");
        assert_eq!(svid.leaf.id, id("shop", "orders"));
        assert_eq!((chain.len(), svid.chain.len()), (2, 1));
        assert_eq!(TrustBundle::from_pem(chain[1].as_bytes())?, client.roots);
        assert!(svid.leaf.dns_names.is_empty() && chain.iter().all(|pem| pem.ends_with("-----\n")));

        // What the request asks for beside a key is not looked at.
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::new(vec!["istiod.istio-system.svc".to_owned()])?;
        params.subject_alt_names.push(SanType::URI(CONTROLLER.try_into()?));
        params.distinguished_name.push(DnType::CommonName, "admin");
        let csr = params.serialize_request(&key)?.pem()?;
        let chain = client.call(csr, Some(&token), &[]).await?.expect("a certificate");
        let svid = Svid::from_pem(&chain.concat(), key)?;
        assert_eq!((&svid.leaf.id, svid.leaf.dns_names.len()), (&id("shop", "orders"), 0));

        // Tokens that prove nothing.
        let account = kube.service_account("shop", "orders").await?;
        let claims = Claims {
            namespace: "shop",
            account: "orders",
            uid: &account,
            audience: "istio-ca",
            pod: Some(("orders-1", &uid)),
            expires: 600,
        };
        assert!(client.certificate(Some(&kube.mint_token(&claims)?)).await?.is_ok());
        let expired = kube.mint_token(&Claims { expires: -60, ..claims.clone() })?;
        let wrong_audience = kube.token("shop", "orders", "vault", None, 3600).await?;
        let api_server = kube.token("shop", "orders", "", None, 3600).await?;
        let other_uid =
            kube.mint_token(&Claims { uid: "00000000-0000-0000-0000-000000000000", ..claims.clone() })?;
        let other_pod = kube.mint_token(&Claims { pod: Some(("orders-1", "gone")), ..claims.clone() })?;
        let (signed, signature) = token.rsplit_once('.').context("a JWT")?;
        let forged = format!("{signed}.{}", signature.chars().rev().collect::<String>());
        for (what, token) in [
            ("expired", expired.as_str()),
            ("wrong audience", &wrong_audience),
            ("for the API server", &api_server),
            ("another service account's UID", &other_uid),
            ("another pod's UID", &other_pod),
            ("forged", &forged),
            ("junk", "junk"),
            ("the administrator's", kube.admin_token()),
        ] {
            assert_eq!(client.refusal(Some(token)).await?, Code::Unauthenticated, "{what}");
        }
        assert_eq!(client.refusal(None).await?, Code::Unauthenticated);
        let two = client.call(SigningRequest::create(&PrivateKey::generate()?)?, Some("x y"), &[]).await?;
        assert_eq!(two.expect_err("no token").code(), Code::Unauthenticated);

        // A certificate renews itself, and nothing else: somebody else's token with it is not believed.
        let orders = client.svid(Some(&token)).await?;
        assert_eq!(client.with(&orders).svid(None).await?.leaf.id, id("shop", "orders"));
        assert_eq!(client.with(&orders).svid(Some(&token)).await?.leaf.id, id("shop", "orders"));
        let (_, payment) = pod_with_token(kube, "pay", "payment-1", "payment").await?;
        assert_eq!(client.with(&orders).refusal(Some(&payment)).await?, Code::PermissionDenied);
        assert_eq!(client.with(&orders).refusal(Some(&expired)).await?, Code::Unauthenticated);

        // Nobody is given the authority's own name.
        let (_, own) = pod_with_token(kube, ROOT, "countersign-ca-1", "countersign-ca").await?;
        assert_eq!(client.refusal(Some(&own)).await?, Code::PermissionDenied);

        // The pod is gone; then it is there again under the same name, and is another pod. A certificate is renewed only
        // while its service account has a pod.
        kube.delete_pod("shop", "orders-1").await?;
        assert_ne!(client.refusal(Some(&token)).await?, Code::Unavailable);
        assert_eq!(client.with(&orders).refusal(None).await?, Code::PermissionDenied);
        let (new, fresh) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        ensure!(new != uid, "a new pod has a new UID");
        assert!(matches!(
            client.refusal(Some(&token)).await?,
            Code::PermissionDenied | Code::Unauthenticated
        ));
        assert!(client.certificate(Some(&fresh)).await?.is_ok());
        assert!(client.with(&orders).certificate(None).await?.is_ok());

        // Without a pod: no better than a certificate.
        let unbound = kube.token("shop", "orders", "istio-ca", None, 3600).await?;
        assert_eq!(client.svid(Some(&unbound)).await?.leaf.id, id("shop", "orders"));
        kube.service_account("shop", "nobody").await?;
        let nobody = kube.token("shop", "nobody", "istio-ca", None, 3600).await?;
        assert_eq!(client.refusal(Some(&nobody)).await?, Code::PermissionDenied);

        let log = std::fs::read_to_string(&ca.process.log)?;
        let secrets = [&token, &fresh, &expired, &unbound].map(String::as_str);
        ensure!(!secrets.iter().any(|secret| log.contains(secret)), "a token is in the log");
        ensure!(log.contains("certificate issued") && log.contains("certificate refused"), "no audit lines");
        Ok(())
    });
}

/// Waits until every namespace that should has exactly `bundle`.
async fn everywhere(kube: &Kube, bundle: &str) -> Result<()> {
    until("every namespace has the roots", async || {
        for namespace in ["default", "kube-system", ROOT] {
            if published(kube, namespace).await?.as_deref() != Some(bundle) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

#[test]
fn the_root_is_made_once_and_is_in_every_namespace() {
    kube::own(here!(), async |kube| {
        let kubeconfig = ca_account(kube).await?;
        for namespace in ["kube-public", "kube-node-lease", "local-path-storage", "shop"] {
            kube.namespace(namespace).await?;
        }
        // Three replicas at once.
        let mut replicas = Vec::new();
        for name in ["ca-a", "ca-b", "ca-c"] {
            replicas.push(start_ca(kube, name, &kubeconfig, &[]).await?);
        }
        for ca in &mut replicas {
            ca.wait_ready().await?;
        }
        let root = roots(kube, "shop").await?;
        everywhere(kube, &root.to_pem()).await?;
        assert_eq!(root.roots().len(), 1);
        let (_, token) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        let mut held = Vec::new();
        for ca in &replicas {
            held.push(Client::new(ca.address, CA, &root).svid(Some(&token)).await?);
        }
        handshake(&held[0], &held[1], &root).await?;
        for without in ["kube-public", "kube-node-lease", "local-path-storage"] {
            assert_eq!(published(kube, without).await?, None, "{without}");
        }

        // A new namespace has it within a second; whoever changes or deletes it changes nothing.
        let started = Instant::now();
        kube.namespace("new").await?;
        assert_eq!(roots(kube, "new").await?, root);
        ensure!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        kube.kubectl(["-n", "new", "delete", "configmap", "istio-ca-root-cert"])?;
        until(
            "it is back",
            async || Ok((published(kube, "new").await? == Some(root.to_pem())).then_some(())),
        )
        .await?;
        let edit = r#"{"data":{"root-cert.pem":"evil"}}"#;
        kube.kubectl(["-n", "new", "patch", "configmap", "istio-ca-root-cert", "--type=merge", "-p", edit])?;
        until("it is right", async || {
            Ok((published(kube, "new").await? == Some(root.to_pem())).then_some(()))
        })
        .await?;

        // The Secret is deleted under them, and everything is killed and started again: the root stays.
        kube.kubectl(["-n", ROOT, "delete", "secret", "countersign-ca"])?;
        until("the Secret is back", async || kube.get("v1", "Secret", ROOT, "countersign-ca").await).await?;
        for ca in &mut replicas {
            ca.process.kill()?;
        }
        let mut again = start_ca(kube, "ca-d", &kubeconfig, &[]).await?;
        again.wait_ready().await?;
        let svid = Client::new(again.address, CA, &root).svid(Some(&token)).await?;
        handshake(&held[2], &svid, &root).await?;
        assert_eq!(roots(kube, "shop").await?, root);
        for ca in &replicas {
            let log = std::fs::read_to_string(&ca.process.log)?;
            ensure!(!log.contains("PRIVATE KEY"), "a key is in the log");
        }

        // Other keys in the Secret, by hand: they are published first, and the old ones go on signing.
        kube.namespace("elsewhere").await?;
        let admin = kube.admin_kubeconfig()?;
        let mut stranger = start_ca(kube, "ca-s", &admin, &["--namespace", "elsewhere"]).await?;
        stranger.wait_ready().await?;
        stranger.process.kill()?;
        let keys = kube.get("v1", "Secret", "elsewhere", "countersign-ca").await?.context("its keys")?;
        let patch = serde_json::json!({"data": keys["data"]}).to_string();
        kube.kubectl(["-n", ROOT, "annotate", "secret", "countersign-ca", "backup.example/by=somebody"])?;
        kube.kubectl(["-n", ROOT, "patch", "secret", "countersign-ca", "--type=merge", "-p", &patch])?;
        until("both roots are published", async || {
            Ok((roots(kube, "shop").await?.roots().len() == 2).then_some(()))
        })
        .await?;
        let svid = Client::new(again.address, CA, &root).svid(Some(&token)).await?;
        handshake(&held[2], &svid, &root).await?;
        let secret = kube.get("v1", "Secret", ROOT, "countersign-ca").await?.context("the keys")?;
        assert_eq!(secret["metadata"]["annotations"]["backup.example/by"], "somebody");

        // The mesh names another trust domain: not ready, and says why; one that starts then does not sign at all.
        let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'trustDomain: other.example'}\n";
        kube.apply(mesh).await?;
        let other = start_ca(kube, "ca-e", &kubeconfig, &[]).await?;
        for ca in [&again, &other] {
            until("it names both trust domains", async || {
                let Ok((status, reasons)) = ca.ready().await else { return Ok(None) };
                let named = reasons.contains("other.example") && reasons.contains("cluster.local");
                Ok((status == 503 && named).then_some(()))
            })
            .await?;
        }
        kube.delete(mesh).await?;
        again.wait_ready().await?;
        Ok(())
    });
}

/// The controller as it will be: its own SVID by its own token, the roots from its namespace's ConfigMap, tokens reviewed,
/// certificate requests relayed.
struct Controller {
    svids: Arc<SvidClient>,
    address: std::net::SocketAddr,
    _serving: tokio::task::JoinHandle<()>,
}

async fn controller(kube: &Kube, ca: std::net::SocketAddr) -> Result<Controller> {
    kube.service_account(ROOT, "countersign").await?;
    let client = kube.client();
    let svids = Arc::new(SvidClient::start(Settings {
        address: ca.to_string(),
        server: CA.parse()?,
        id: CONTROLLER.parse()?,
        domains: vec!["cluster.local".parse()?],
        token: TokenSource::Request {
            client: client.clone(),
            namespace: ROOT.to_owned(),
            service_account: "countersign".to_owned(),
        },
        roots: RootSource::ConfigMap { client: client.clone(), namespace: ROOT.to_owned() },
    }));
    let trust =
        tokio::time::timeout(Duration::from_secs(20), svids.ready()).await.context("no certificate")?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let config = authn::tls::server_config(svids.own(), trust);
    let incoming = authn::tls::serve(listener, config, authn::tls::Limits::default());
    let channel = {
        let svids = svids.clone();
        move || svids.channel()
    };
    let relay = ca::Relay::new(&ca.to_string(), channel, Arc::default());
    let serving = authn::tls::grpc_server()
        .layer(TokenLayer::new(TokenReviewer::of_client(client)))
        .add_service(relay.server())
        .serve_with_incoming(incoming);
    let serving = tokio::spawn(async { serving.await.expect("the server goes on") });
    Ok(Controller { svids, address, _serving: serving })
}

#[test]
fn a_hostile_controller_gets_no_foreign_identity() {
    kube::own(here!(), async |kube| {
        let kubeconfig = ca_account(kube).await?;
        let mut ca = start_ca(kube, "ca", &kubeconfig, &["--revision", "blue"]).await?;
        ca.wait_ready().await?;
        let (uid, token) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        let root = roots(kube, "shop").await?;

        // An honest controller relays for an agent that knows one address only.
        let honest = controller(kube, ca.address).await?;
        let relay = Client::new(honest.address, CONTROLLER, &root);
        let orders = relay.svid(Some(&token)).await?;
        assert_eq!(orders.leaf.id, id("shop", "orders"));
        handshake(&orders, &orders, &root).await?;
        assert_eq!(relay.refusal(None).await?, Code::Unauthenticated);
        assert_eq!(relay.refusal(Some("junk")).await?, Code::Unauthenticated);
        let wrong = kube.token("shop", "orders", "vault", None, 3600).await?;
        assert_eq!(relay.refusal(Some(&wrong)).await?, Code::Unauthenticated);
        // Renewal by certificate is the authority's own business; so the relay says.
        assert_eq!(relay.with(&orders).refusal(None).await?, Code::FailedPrecondition);
        assert_eq!(relay.with(&orders).refusal(Some(&token)).await?, Code::FailedPrecondition);

        // Its names are there for whom it serves, from the authority and not from its request.
        let account = kube.token(ROOT, "countersign", "istio-ca", None, 3600).await?;
        let direct = Client::new(ca.address, CA, &root);
        let own = direct.svid(Some(&account)).await?;
        assert_eq!(own.leaf.id, CONTROLLER.parse()?);
        let names = [
            "countersign.istio-system.svc",
            "istiod.istio-system.svc",
            "istiod-blue.istio-system.svc",
            "istio-pilot.istio-system.svc",
            "localhost",
        ];
        assert_eq!(own.leaf.dns_names, names);

        // A hostile one holds that certificate, and its token.
        let hostile = direct.with(&own);
        let csr = || anyhow::Ok(SigningRequest::create(&PrivateKey::generate()?)?);
        let says_it_relays = [("countersign-relayed-for", "10.9.9.9")];
        let no_token = hostile.call(csr()?, None, &says_it_relays).await?;
        assert_eq!(no_token.expect_err("no token, no identity").code(), Code::Unauthenticated);
        // For itself it may ask only as long as it has a pod, as everybody; it has none here.
        assert_eq!(hostile.refusal(None).await?, Code::PermissionDenied);
        // Its own token gets its own identity whatever the request and the headers say.
        let claims = [
            ("countersign-relayed-for", "10.9.9.9"),
            ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/shop/sa/orders"),
            ("identity", "spiffe://cluster.local/ns/shop/sa/orders"),
        ];
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::URI("spiffe://cluster.local/ns/shop/sa/orders".try_into()?));
        let chain = hostile.call(params.serialize_request(&key)?.pem()?, Some(&account), &claims).await?;
        let got = Svid::from_pem(&chain.expect("its own certificate").concat(), key)?;
        assert_eq!(got.leaf.id, CONTROLLER.parse()?);
        // A stolen token that has expired, or whose pod is gone, is worth nothing.
        let service_account = kube.service_account("shop", "orders").await?;
        let stolen = kube.mint_token(&Claims {
            namespace: "shop",
            account: "orders",
            uid: &service_account,
            audience: "istio-ca",
            pod: Some(("orders-1", &uid)),
            expires: -1,
        })?;
        for headers in [&says_it_relays[..], &[]] {
            let answer = hostile.call(csr()?, Some(&stolen), headers).await?;
            assert_eq!(answer.expect_err("it has expired").code(), Code::Unauthenticated);
        }
        kube.delete_pod("shop", "orders-1").await?;
        let answer = hostile.call(csr()?, Some(&token), &says_it_relays).await?;
        assert!(matches!(
            answer.expect_err("its pod is gone").code(),
            Code::PermissionDenied | Code::Unauthenticated
        ));
        assert!(matches!(relay.refusal(Some(&token)).await?, Code::PermissionDenied | Code::Unauthenticated));
        assert!(matches!(*honest.svids.standing().borrow(), Standing::With { failure: None, .. }));
        Ok(())
    });
}

/// The real controller's TLS port.
async fn start_controller(kube: &Kube, ca: std::net::SocketAddr) -> Result<(Process, std::net::SocketAddr)> {
    kube.service_account(ROOT, "countersign").await?;
    let (address, monitoring) = (scene::free_address()?, scene::free_address()?);
    let mut command = Command::new(programs::countersign());
    command
        .args(["controller", "--plaintext-addr", "off", "--webhook-addr", "off"])
        .args(["--secure-addr", &address.to_string(), "--monitoring-addr", &monitoring.to_string()])
        .args(["--ca-addr", &ca.to_string(), "--kubeconfig"])
        .arg(kube.admin_kubeconfig()?)
        .env_remove("POD_NAMESPACE");
    let mut process = Process::start("controller", kube.folder(), command)?;
    let opened = until("the TLS port is open", async || {
        ensure!(process.ended().is_none(), "the controller ended:\n{}", process.tail(20));
        Ok(tokio::net::TcpStream::connect(address).await.ok())
    })
    .await;
    opened.with_context(|| process.tail(20))?;
    Ok((process, address))
}

#[test]
fn a_proxy_speaks_for_its_own_pod_alone() {
    kube::own(here!(), async |kube| {
        let kubeconfig = ca_account(kube).await?;
        let mut ca = start_ca(kube, "ca", &kubeconfig, &[]).await?;
        ca.wait_ready().await?;
        let (uid, orders) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        pod_with_token(kube, "shop", "orders-2", "orders").await?;
        let (_, payment) = pod_with_token(kube, "pay", "payment-1", "payment").await?;
        let root = roots(kube, "shop").await?;
        let (controller, address) = start_controller(kube, ca.address).await?;
        let proxy = Client::new(address, CONTROLLER, &root);
        let svid = Client::new(ca.address, CA, &root).svid(Some(&orders)).await?;

        assert_eq!(proxy.ads(Some(&orders), "shop", "orders-1").await?, Ok(()));
        assert_eq!(proxy.with(&svid).ads(None, "shop", "orders-1").await?, Ok(()));
        // A certificate is a service account's, a token its pod's.
        assert_eq!(proxy.with(&svid).ads(None, "shop", "orders-2").await?, Ok(()));
        assert_eq!(proxy.ads(Some(&orders), "shop", "orders-2").await?, Err(Code::PermissionDenied));

        let expired = kube.mint_token(&Claims {
            namespace: "shop",
            account: "orders",
            uid: &kube.service_account("shop", "orders").await?,
            audience: "istio-ca",
            pod: Some(("orders-1", &uid)),
            expires: -60,
        })?;
        let wrong_audience = kube.token("shop", "orders", "vault", Some(("orders-1", &uid)), 3600).await?;
        let unbound = kube.token("shop", "orders", "istio-ca", None, 3600).await?;
        for (what, client, token, node, code) in [
            ("another namespace's", &proxy, Some(&payment), ("shop", "orders-1"), Code::PermissionDenied),
            ("for another namespace", &proxy, Some(&orders), ("pay", "payment-1"), Code::PermissionDenied),
            (
                "a certificate for another",
                &proxy.with(&svid),
                None,
                ("pay", "payment-1"),
                Code::PermissionDenied,
            ),
            ("unbound", &proxy, Some(&unbound), ("shop", "orders-1"), Code::PermissionDenied),
            ("expired", &proxy, Some(&expired), ("shop", "orders-1"), Code::Unauthenticated),
            ("wrong audience", &proxy, Some(&wrong_audience), ("shop", "orders-1"), Code::Unauthenticated),
            ("nothing", &proxy, None, ("shop", "orders-1"), Code::Unauthenticated),
        ] {
            let got = client.ads(token.map(String::as_str), node.0, node.1).await?;
            assert_eq!(got, Err(code), "{what}");
        }

        // The pod is deleted and made again under its name: its old token is remembered, and is another pod's.
        kube.delete_pod("shop", "orders-1").await?;
        let (new, fresh) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        ensure!(new != uid, "a new pod has a new UID");
        until("the new pod is known", async || {
            Ok((proxy.ads(Some(&fresh), "shop", "orders-1").await? == Ok(())).then_some(()))
        })
        .await?;
        let old = proxy.ads(Some(&orders), "shop", "orders-1").await?;
        assert!(matches!(old, Err(Code::PermissionDenied | Code::Unauthenticated)), "{old:?}");

        // A pod that is not registered yet: no answer until it is.
        let certified = proxy.with(&svid);
        let mut early = certified.stream(None, "shop", "orders-3").await?;
        assert!(!early.answered(Duration::from_millis(700)).await?, "served from its own word");
        pod_with_token(kube, "shop", "orders-3", "orders").await?;
        assert!(early.answered(Duration::from_secs(10)).await?, "not served when its pod was there");

        let log = std::fs::read_to_string(&controller.log)?;
        ensure!(
            ![&orders, &fresh, &unbound].iter().any(|token| log.contains(token.as_str())),
            "a token is in the log"
        );
        Ok(())
    });
}

#[test]
fn an_agent_in_a_pod_has_a_certificate_by_its_token_alone() {
    let Ok(envoy) = programs::envoy() else { return };
    kube::own(here!(), async |kube| {
        let kubeconfig = ca_account(kube).await?;
        let mut ca = start_ca(kube, "ca", &kubeconfig, &[]).await?;
        ca.wait_ready().await?;
        let (_, token) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        let (_controller, address) = start_controller(kube, ca.address).await?;
        let bundle = kube.folder().join("root-cert.pem");
        std::fs::write(&bundle, roots(kube, "shop").await?.to_pem())?;
        let token_file = kube.folder().join("istio-token");
        std::fs::write(&token_file, &token)?;
        // At the authority itself, and by way of the controller, with what Istio's template sets and nothing else.
        let mut agents = Vec::new();
        for (name, ca_address) in [("direct", Some(ca.address)), ("relayed", None)] {
            let monitoring = scene::free_address()?;
            let mut command = Command::new(programs::countersign());
            command
                .args(["agent", "--capture", "none", "--token-file"])
                .arg(&token_file)
                .arg("--trust-bundle")
                .arg(&bundle)
                .arg("--envoy")
                .arg(&envoy)
                .arg("--sds-socket")
                .arg(kube.folder().join(name).join("sds.sock"))
                .args(["--monitoring-addr", &monitoring.to_string()])
                .envs([("POD_NAME", "orders-1"), ("POD_NAMESPACE", "shop"), ("INSTANCE_IP", "127.0.77.1")])
                .env("PROXY_CONFIG", format!(r#"{{"discoveryAddress":"{address}"}}"#));
            if let Some(ca_address) = ca_address {
                command.env("CA_ADDR", ca_address.to_string());
            }
            agents.push((Process::start(name, kube.folder(), command)?, monitoring));
        }
        for (agent, monitoring) in &mut agents {
            let ready = until("the agent's Envoy is connected", async || {
                ensure!(agent.ended().is_none(), "it ended");
                let Ok((_, metrics)) = scene::http_get(*monitoring, "/metrics").await else {
                    return Ok(None);
                };
                let connected = metrics.contains("countersign_agent_xds_connected 1");
                Ok((connected && !metrics.contains("workload_svid_seconds_left 0")).then_some(()))
            });
            ready.await.with_context(|| agent.tail(30))?;
        }
        Ok(())
    });
}

#[test]
fn without_an_api_server_nobody_is_believed_and_nobody_is_sent_away_for_good() {
    kube::own(here!(), async |kube| {
        let _ = ca_account(kube).await?;
        let gate = kube.gate().await?;
        let token = kube.token(ROOT, "countersign-ca", "", None, 7200).await?;
        let kubeconfig = kube.kubeconfig_at("gated", &gate.url(), &token)?;
        // Without one from the start: not ready, says why, and goes on by itself.
        gate.set(Through::Closed);
        let mut ca = start_ca(kube, "ca", &kubeconfig, &[]).await?;
        until("it says that it is not ready", async || {
            Ok(ca.ready().await.ok().filter(|(status, _)| *status == 503).map(drop))
        })
        .await?;
        gate.set(Through::Everything);
        ca.wait_ready().await?;
        let (_, known) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        let (_, new) = pod_with_token(kube, "shop", "orders-2", "orders").await?;
        let client = Client::new(ca.address, CA, &roots(kube, "shop").await?);
        let svid = client.svid(Some(&known)).await?;
        gate.set(Through::Closed);
        assert_eq!(client.refusal(Some(&new)).await?, Code::Unavailable);
        // Remembered, but nobody can say whether the pod still lives.
        assert_eq!(client.refusal(Some(&known)).await?, Code::Unavailable);
        assert_eq!(client.with(&svid).refusal(None).await?, Code::Unavailable);
        gate.set(Through::Everything);
        until("it signs again", async || Ok(client.svid(Some(&new)).await.ok())).await?;
        Ok(())
    });
}

#[test]
fn parallel_requests_are_all_answered() {
    kube::own(here!(), async |kube| {
        let kubeconfig = ca_account(kube).await?;
        let mut ca = start_ca(kube, "ca", &kubeconfig, &[]).await?;
        ca.wait_ready().await?;
        let client = Client::new(ca.address, CA, &roots(kube, "default").await?);
        let mut tokens = Vec::new();
        for n in 0..20 {
            tokens.push(pod_with_token(kube, "shop", &format!("orders-{n}"), "orders").await?.1);
        }
        let mut asked = tokio::task::JoinSet::new();
        for n in 0..100 {
            let (client, token) = (client.clone(), tokens[n % tokens.len()].clone());
            asked.spawn(async move { client.svid(Some(&token)).await });
        }
        let mut serials = std::collections::BTreeSet::new();
        for svid in asked.join_all().await {
            serials.insert(svid?.leaf.serial);
        }
        assert_eq!(serials.len(), 100);
        Ok(())
    });
}

/// Between requests of one pod.
const PACE: Duration = Duration::from_millis(100);

/// Issues and shakes hands until told to stop. Roots are read BEFORE a certificate is asked for: what they do not trust
/// was signed too early.
async fn load(
    kube: &Kube,
    addresses: [std::net::SocketAddr; 2],
    token: &str,
    stop: &AtomicBool,
    done: &AtomicUsize,
) -> Result<()> {
    let roots_of = async || -> Result<TrustBundle> {
        let text = published(kube, "shop").await?.context("no roots")?;
        Ok(TrustBundle::from_pem(text.as_bytes())?)
    };
    let first = until("a first certificate", async || {
        let client = Client::new(addresses[0], CA, &roots_of().await?);
        Ok(client.svid(Some(token)).await.ok())
    })
    .await?;
    let mut last = first.clone();
    while !stop.load(Ordering::Relaxed) {
        let roots = roots_of().await?;
        // The CA is being restarted now and then; a refusal is an error.
        let address = addresses[done.load(Ordering::Relaxed) % 2];
        let Ok(answer) = Client::new(address, CA, &roots).certificate(Some(token)).await else {
            done.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let svid = match answer {
            Ok((svid, _)) => svid,
            // It was killed under the request.
            Err(status) if std::error::Error::source(&status).is_some() => continue,
            Err(status) => anyhow::bail!("{status:?}"),
        };
        handshake(&svid, &last, &roots).await?;
        handshake(&last, &svid, &roots).await?;
        // The oldest certificate is good until it ends, whatever signs by then.
        handshake(&first, &svid, &roots_of().await?).await?;
        last = svid;
        done.fetch_add(1, Ordering::Relaxed);
        // A caller's rate is limited; this is as fast as it may go on.
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

#[test]
fn roots_are_changed_under_load_without_a_failed_handshake() {
    kube::own(here!(), async |kube| {
        let kubeconfig = ca_account(kube).await?;
        let arguments = ["--rotation-grace", "1s"];
        let mut ca = start_ca(kube, "ca", &kubeconfig, &arguments).await?;
        let mut second_ca = start_ca(kube, "ca-second", &kubeconfig, &arguments).await?;
        ca.wait_ready().await?;
        second_ca.wait_ready().await?;
        let (_, token) = pod_with_token(kube, "shop", "orders-1", "orders").await?;
        let (_, other) = pod_with_token(kube, "shop", "orders-2", "orders").await?;
        let old = roots(kube, "shop").await?;
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let address = ca.address;
        let relay = controller(kube, address).await?;
        let steps = async {
            // By command; killed in the middle.
            let output = Command::new(programs::countersign())
                .args(["ca", "rotate", "--namespace", ROOT, "--kubeconfig"])
                .arg(kube.admin_kubeconfig()?)
                .output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            until("both roots are published", async || {
                Ok((roots(kube, "shop").await?.roots().len() == 2).then_some(()))
            })
            .await?;
            ca.process.kill()?;
            let mut command = Command::new(programs::countersign());
            command
                .args(["ca", "--addr", &address.to_string(), "--monitoring-addr", &ca.monitoring.to_string()])
                .args(arguments)
                .arg("--kubeconfig")
                .arg(&kubeconfig);
            ca.process = Process::start("ca-again", kube.folder(), command)?;
            ca.wait_ready().await?;
            signed_by_others(kube, address, &other, &old).await?;
            // By a plugged authority, put in live.
            let second = roots(kube, "shop").await?;
            kube.put(cacerts("first")?).await?;
            signed_by_others(kube, address, &other, &second).await?;
            // And by another certificate of the operator's.
            let third = roots(kube, "shop").await?;
            kube.put(cacerts("second")?).await?;
            signed_by_others(kube, address, &other, &third).await?;
            let before = done.load(Ordering::Relaxed);
            until("the load goes on", async || Ok((done.load(Ordering::Relaxed) > before + 5).then_some(())))
                .await?;
            stop.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let load = async {
            let outcome = load(kube, [address, second_ca.address], &token, &stop, &done).await;
            ensure!(stop.load(Ordering::Relaxed) || outcome.is_err(), "the load ended");
            outcome
        };
        tokio::try_join!(steps, load)?;
        // An intermediate is part of the chain; the roots are last.
        let client = Client::new(address, CA, &roots(kube, "shop").await?);
        let (svid, chain) = client.certificate(Some(&token)).await?.expect("a certificate");
        assert_eq!((svid.chain.len(), chain.len()), (2, 3));
        assert_eq!(TrustBundle::from_pem(chain[2].as_bytes())?, client.roots);
        assert_eq!(client.roots.roots().len(), 4);
        ensure!(done.load(Ordering::Relaxed) > 20, "{done:?} rounds only");
        // The controller has followed: its certificate is by the root that signs now, and it still relays.
        let secret = kube.get("v1", "Secret", ROOT, "countersign-ca").await?.context("the keys")?;
        let signing = secret["data"]["ca-root-cert.pem"].as_str().context("the signer's root")?;
        let signing = TrustBundle::from_pem(&base64::engine::general_purpose::STANDARD.decode(signing)?)?;
        let relayed = Client::new(relay.address, CONTROLLER, &signing);
        let svid =
            until("the controller has a new certificate", async || Ok(relayed.svid(Some(&other)).await.ok()))
                .await?;
        handshake(&svid, &svid, &signing).await?;
        Ok(())
    });
}

/// Waits for a certificate that `old` alone does not trust.
async fn signed_by_others(
    kube: &Kube,
    address: std::net::SocketAddr,
    token: &str,
    old: &TrustBundle,
) -> Result<()> {
    until("another root signs", async || {
        tokio::time::sleep(PACE).await;
        let client = Client::new(address, CA, &roots(kube, "shop").await?);
        let Ok(Ok((svid, _))) = client.certificate(Some(token)).await else { return Ok(None) };
        Ok(handshake(&svid, &svid, old).await.is_err().then_some(()))
    })
    .await
}
