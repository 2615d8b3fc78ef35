//! A controller in the test's process: the API server's objects in, xDS over TLS out, callers by certificate or token.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use authn::token::{TokenIdentity, TokenLayer, TokenReviewer};
use authn::{ClientTrust, ConnectionInfo};
use ca::{Issuer, Lifetimes, ServerIdentity, Storage};
use controller::{Controller, Handle};
use serde_json::json;
use source::kubernetes::{MeshSource, Settings, client, watch};
use spiffe::{SpiffeId, TrustBundle, TrustDomain};
use tests::lab::kube::Kube;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use xds::ads::server::{Ads, Limits, Peer, PodBinding};

/// A controller that follows the API server, and its TLS port.
pub(crate) struct Plane {
    pub(crate) handle: Handle,
    pub(crate) address: SocketAddr,
    pub(crate) roots: TrustBundle,
    pub(crate) id: SpiffeId,
    issuer: Arc<Issuer>,
    _state: tempfile::TempDir,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Who calls: by certificate or token.
fn caller(extensions: &http::Extensions) -> Peer {
    let connection = extensions.get::<ConnectionInfo>();
    let certificate = connection.and_then(|connection| connection.identity.as_ref());
    let token = extensions.get::<Arc<TokenIdentity>>();
    let domain: TrustDomain = "cluster.local".parse().expect("a domain");
    let by_token =
        token.map(|t| SpiffeId::workload(&domain, &t.namespace, &t.service_account).expect("an ID"));
    let pod = token.and_then(|token| token.pod.as_ref());
    Peer {
        identity: certificate.map(|certificate| certificate.id.clone()).or(by_token),
        token: certificate.is_none() && token.is_some(),
        pod: pod.map(|pod| PodBinding { name: pod.name.clone(), uid: pod.uid.clone() }),
        address: connection.map(|connection| connection.peer),
        secure: true,
    }
}

pub(crate) async fn plane(kube: &Kube) -> Result<Plane> {
    let client = client(Some(&kube.admin_kubeconfig()?)).await?;
    let metrics = runtime::Metrics::new(runtime::Version::of("test"));
    let (sender, changes) = mpsc::channel(4096);
    let (handle, owner) = Controller::start(&metrics, changes);
    let settings = Settings {
        client: client.clone(),
        mesh: MeshSource::ConfigMap { namespace: "istio-system".to_owned(), name: "istio".to_owned() },
        revision: "default".into(),
        counters: Arc::default(),
    };
    let state = tempfile::tempdir()?;
    let domain: TrustDomain = "cluster.local".parse()?;
    let authority =
        Storage::open(state.path().to_owned())?.authority(&domain, time::OffsetDateTime::now_utc())?;
    let issuer = Issuer::new(domain.clone(), authority, Lifetimes::default());
    let identity = ServerIdentity::start(issuer.clone(), "istio-system", Arc::default())?;
    let id = identity.id().clone();
    let trust = ClientTrust::new(&issuer.bundle(), vec![domain])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let config = authn::tls::server_config(identity.own(), trust);
    let incoming = authn::tls::serve(listener, config, authn::tls::Limits::default());
    let name = json!({"Component": "istiod", "ID": "countersign-1", "Info": {"version": "0.1"}}).to_string();
    let ads = Ads::new(Arc::new(handle.clone()), Limits::default(), &name, caller);
    let serving = async move {
        let _identity = identity;
        let mut server = authn::tls::grpc_server().layer(TokenLayer::new(TokenReviewer::of_client(client)));
        let _ = server.add_service(ads).serve_with_incoming(incoming).await;
    };
    let spawn =
        |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| AbortOnDropHandle::new(tokio::spawn(task));
    let tasks = vec![
        spawn(Box::pin(async {
            let _ = owner.await;
        })),
        spawn(Box::pin(watch(settings, sender))),
        spawn(Box::pin(serving)),
    ];
    handle.wait_ready().await;
    Ok(Plane { handle, address, roots: issuer.bundle(), id, issuer, _state: state, _tasks: tasks })
}

impl Plane {
    /// A certificate of this mesh.
    pub(crate) fn certificate(&self, namespace: &str, account: &str) -> Result<ServerIdentity> {
        let id = SpiffeId::workload(self.issuer.trust_domain(), namespace, account)?;
        Ok(ServerIdentity::start_as(self.issuer.clone(), id, Vec::new(), Arc::default())?)
    }
}
