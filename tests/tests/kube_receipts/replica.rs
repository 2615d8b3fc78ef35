//! A replica of the controller within the test's process: the source, the controller, receipts over mTLS, the election. And
//! simulated proxies, which acknowledge, refuse or keep silent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use authn::ClientTrust;
use ca::{Issuer, Lifetimes, ServerIdentity, Storage};
use controller::receipts::{Cluster, Dialer, lead};
use controller::{Controller, Handle};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use source::kubernetes::events::Events;
use source::kubernetes::lease::{Election, LEADER, Leadership, Timing};
use source::kubernetes::replicas::{Me, announce, follow};
use source::kubernetes::status::Writer;
use source::kubernetes::{MeshSource, Settings, client, watch};
use tests::lab::kube::{Gate, Kube, Through};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as latest};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use xds::ResourceType;
use xds::ads::node::NodeId;
use xds::ads::server::{Peer, Proxy, Snapshots, Subscription};
use xds::ads::session::Event;
use xds::build::ProxyShape;

/// Namespace of the replicas' Leases, for this test alone.
pub(crate) struct Mesh {
    pub(crate) namespace: String,
    issuer: Arc<Issuer>,
    identity: ServerIdentity,
    _state: tempfile::TempDir,
}

impl Mesh {
    pub(crate) fn new(namespace: String) -> Result<Self> {
        let state = tempfile::tempdir()?;
        let domain: spiffe::TrustDomain = "cluster.local".parse()?;
        let authority =
            Storage::open(state.path().to_owned())?.authority(&domain, time::OffsetDateTime::now_utc())?;
        let issuer = Issuer::new(domain, authority, Lifetimes::default());
        let identity =
            ServerIdentity::start(issuer.clone(), "istio-system", Arc::new(ca::Counters::default()))?;
        Ok(Self { namespace, issuer, identity, _state: state })
    }
}

pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) handle: Handle,
    pub(crate) leadership: Leadership,
    /// Between the other replicas and this one's receipts.
    pub(crate) gate: Gate,
    stop: CancellationToken,
    orderly: TaskTracker,
    /// Everything; dropping them is what SIGKILL does.
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Replica {
    pub(crate) async fn start(kube: &Kube, mesh: &Mesh, name: &str) -> Result<Self> {
        let client = client(Some(&kube.admin_kubeconfig()?)).await?;
        let mut tasks = Vec::new();
        let mut spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
        };
        let (sender, changes) = mpsc::channel(4096);
        let metrics = runtime::Metrics::new(runtime::Version::of("test"));
        let (handle, owner) = Controller::start(&metrics, changes);
        spawn(Box::pin(async {
            let _ = owner.await;
        }));
        let settings = Settings {
            client: client.clone(),
            mesh: MeshSource::ConfigMap { namespace: mesh.namespace.clone(), name: "istio".to_owned() },
            revision: "default".into(),
            counters: Arc::default(),
        };
        spawn(Box::pin(watch(settings, sender)));
        let address = serve(&handle, mesh, &mut spawn).await?;
        let gate = Gate::open_at(Ipv4Addr::LOCALHOST.into(), address).await?;

        let (stop, orderly) = (CancellationToken::new(), TaskTracker::new());
        let (election, leadership) =
            Election::new(client.clone(), &mesh.namespace, LEADER, name, Timing::default());
        spawn(Box::pin(orderly.track_future(election.run(stop.clone().cancelled_owned()))));
        let me = Me { name: name.to_owned(), address: gate.address().to_string(), pod: None };
        let (announcing, namespace) = (client.clone(), mesh.namespace.clone());
        let stopped = stop.clone().cancelled_owned();
        spawn(Box::pin(orderly.track_future(async move {
            announce(announcing, &namespace, me, stopped).await;
        })));
        let (replicas, seen) = latest::channel(Default::default());
        let (following, namespace) = (client.clone(), mesh.namespace.clone());
        spawn(Box::pin(async move { follow(following, &namespace, replicas).await }));
        let (events, sending) = Events::start(client.clone(), name);
        spawn(Box::pin(sending));
        let cluster = Cluster {
            me: name.into(),
            leadership: leadership.clone(),
            replicas: seen,
            dialer: dialer(mesh)?,
            writer: Writer::new(client),
            events,
        };
        spawn(Box::pin(lead(handle.clone(), cluster)));
        handle.wait_ready().await;
        Ok(Self { name: name.to_owned(), handle, leadership, gate, stop, orderly, _tasks: tasks })
    }

    /// As SIGTERM: says goodbye, and ends.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.orderly.close();
        self.orderly.wait().await;
    }

    /// Nothing reaches its receipts any more, and nothing is closed.
    pub(crate) fn partition(&self) {
        self.gate.set(Through::Silent);
    }

    /// A proxy of the pod `name`, connected here, that closes connections of a replaced listener at once.
    pub(crate) async fn proxy(&self, namespace: &str, name: &str) -> Result<SimulatedProxy> {
        self.draining(namespace, name, 0).await
    }

    /// The same, but it lets them live for so many seconds.
    pub(crate) async fn draining(&self, namespace: &str, name: &str, seconds: u64) -> Result<SimulatedProxy> {
        let seconds = Value { kind: Some(Kind::StringValue(seconds.to_string())) };
        let node = Node {
            id: format!("sidecar~10.1.0.1~{name}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(Struct { fields: [("COUNTERSIGN_DRAIN_SECONDS".to_owned(), seconds)].into() }),
            ..Node::default()
        };
        let proxy = Proxy {
            id: NodeId::parse(&node)?,
            shape: ProxyShape::from_node(&node).map_err(|error| anyhow::anyhow!("{error}"))?,
            peer: Peer::default(),
            envoy_version: Some((1, 39, 1)),
            node: Arc::new(node),
            delta: true,
        };
        let subscription = self.handle.subscribe(proxy).await?;
        let (answers, seen) = latest::channel(Answers::Ack);
        let task = AbortOnDropHandle::new(tokio::spawn(simulate(subscription, seen)));
        Ok(SimulatedProxy { answers, _task: task })
    }
}

async fn serve(
    handle: &Handle,
    mesh: &Mesh,
    spawn: &mut impl FnMut(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>),
) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let trust = ClientTrust::new(&mesh.issuer.bundle(), vec![mesh.issuer.trust_domain().clone()])?;
    let config = authn::tls::server_config(mesh.identity.own(), trust);
    let incoming = authn::tls::serve(listener, config, authn::tls::Limits::default());
    let service = handle.receipts_service(mesh.identity.id().clone());
    spawn(Box::pin(async move {
        let _ = authn::tls::grpc_server().add_service(service).serve_with_incoming(incoming).await;
    }));
    Ok(address)
}

fn dialer(mesh: &Mesh) -> Result<Dialer> {
    let config =
        authn::client_config(&mesh.issuer.bundle(), mesh.identity.id().clone(), mesh.identity.own())?;
    Ok(Dialer::new(move |address: String| {
        let config = config.clone();
        async move { Ok(authn::connect(&address, config, None).await?) }
    }))
}

/// A channel to a replica's receipts for somebody else.
pub(crate) async fn stranger(mesh: &Mesh, replica: &Replica) -> Result<tonic::transport::Channel> {
    let id = spiffe::SpiffeId::workload(mesh.issuer.trust_domain(), "shop", "web")?;
    let counters = Arc::new(ca::Counters::default());
    let own = ServerIdentity::start_as(mesh.issuer.clone(), id, Vec::new(), counters)?;
    let config = authn::client_config(&mesh.issuer.bundle(), mesh.identity.id().clone(), own.own())?;
    authn::connect(&replica.gate.address().to_string(), config, None)
        .await
        .context("connecting as a stranger")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    Ack,
    Nack,
    Silence,
}

/// Disconnects when dropped.
pub(crate) struct SimulatedProxy {
    answers: latest::Sender<Answers>,
    _task: AbortOnDropHandle<()>,
}

impl SimulatedProxy {
    /// From the next snapshot on, and for what is not answered yet.
    pub(crate) fn answers(&self, answers: Answers) {
        self.answers.send_replace(answers);
    }
}

async fn simulate(subscription: Subscription, mut answers: latest::Receiver<Answers>) {
    let Subscription { mut snapshots, mut events } = subscription;
    loop {
        let (answer, snapshot) = (*answers.borrow_and_update(), snapshots.borrow_and_update().clone());
        let generation = snapshot.generation;
        for kind in ResourceType::ALL {
            events.event(Event::Sent { kind, resources: 1, bytes: 1 });
            match answer {
                Answers::Ack => events.event(Event::Acked { kind, generation }),
                Answers::Nack if kind == ResourceType::Extension => {
                    let resource = Some(("inbound.rbac.deny".into(), "v".to_owned()));
                    events.event(Event::Rejected { kind, resource, message: "no such matcher".to_owned() });
                }
                Answers::Nack | Answers::Silence => {}
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = answers.changed() => if changed.is_err() { return },
        }
    }
}
