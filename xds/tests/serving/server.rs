//! A control plane with one snapshot for everybody, which writes down what its sessions report.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use xds::ads::Event;
use xds::ads::server::{Ads, Events, Fact, Limits, Peer, Proxy, Question, Refused, Snapshots, Subscription};
use xds::{Layers, Resource, ResourceType, Snapshot};

pub(crate) type Resources = Vec<(ResourceType, Resource)>;

/// What happened, in order.
#[derive(Default)]
pub(crate) struct Journal {
    events: Mutex<Vec<Event>>,
    changed: Notify,
}

impl Journal {
    /// The first event that `pick` takes.
    pub(crate) fn find<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> Option<T> {
        self.events.lock().unwrap().iter().find_map(pick)
    }

    /// Waits for it.
    pub(crate) async fn next<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> T {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(picked) = self.find(&pick) {
                    return picked;
                }
                changed.await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        found.unwrap_or_else(|_| panic!("not among {:#?}", self.all()))
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

struct Writer(Arc<Journal>);

impl Events for Writer {
    fn event(&mut self, event: Event) {
        self.0.events.lock().unwrap().push(event);
        self.0.changed.notify_one();
    }
}

pub(crate) struct Plane {
    /// `None`: nobody is served any more.
    snapshots: Mutex<Option<watch::Sender<Arc<Snapshot>>>>,
    journal: Arc<Journal>,
    /// The last proxy that came.
    proxy: Mutex<Option<Proxy>>,
    refuse: Mutex<Option<Refused>>,
    /// Streams that wait for an answer; only while `hold`.
    held: watch::Sender<usize>,
    hold: AtomicBool,
}

struct Held<'a>(&'a watch::Sender<usize>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

impl Snapshots for Plane {
    async fn subscribe(&self, proxy: Proxy) -> Result<Subscription, Refused> {
        *self.proxy.lock().unwrap() = Some(proxy);
        if self.hold.load(Ordering::Relaxed) {
            self.held.send_modify(|held| *held += 1);
            let _held = Held(&self.held);
            std::future::pending::<()>().await;
        }
        if let Some(refused) = self.refuse.lock().unwrap().clone() {
            return Err(refused);
        }
        let snapshots = self.snapshots.lock().unwrap().as_ref().map(watch::Sender::subscribe);
        let snapshots = snapshots.ok_or_else(|| Refused::NotReady("stopping".to_owned()))?;
        Ok(Subscription { snapshots, events: Box::new(Writer(self.journal.clone())) })
    }

    /// Says back what was asked.
    async fn debug(&self, question: Question) -> Result<Vec<Fact>, Refused> {
        if let Some(refused) = self.refuse.lock().unwrap().clone() {
            return Err(refused);
        }
        let Question { peer: _, type_url, names } = question;
        let fact = |name: String| {
            let any = Any { type_url: type_url.clone(), value: name.as_bytes().to_vec() };
            Fact { name, any: any.encode_to_vec().into() }
        };
        Ok(["fact".to_owned()].into_iter().chain(names).map(fact).collect())
    }
}

/// A running server; stops when dropped, and cuts its connections.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) journal: Arc<Journal>,
    plane: Arc<Plane>,
    generation: u64,
    runtime: Option<Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.runtime.take().expect("until now").shutdown_background();
    }
}

impl Server {
    pub(crate) async fn start(limits: Limits, resources: &Resources) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), limits, resources).await
    }

    /// Waits until `address` is free.
    pub(crate) async fn start_at(address: SocketAddr, limits: Limits, resources: &Resources) -> Self {
        let listener = loop {
            match tokio::net::TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let journal = Arc::new(Journal::default());
        let plane = Arc::new(Plane {
            snapshots: Mutex::new(Some(watch::channel(Arc::new(snapshot(1, resources))).0)),
            journal: journal.clone(),
            proxy: Mutex::default(),
            refuse: Mutex::default(),
            held: watch::Sender::new(0),
            hold: AtomicBool::new(false),
        });
        let identify = |extensions: &tonic::codegen::http::Extensions| {
            let info = extensions.get::<tonic::transport::server::TcpConnectInfo>();
            Peer { address: info.and_then(|i| i.remote_addr()), ..Peer::default() }
        };
        let ads = Ads::new(plane.clone(), limits, "test", identify);
        // A runtime of its own, so that its connections end with it.
        let runtime = Runtime::new().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(ads).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, journal, plane, generation: 1, runtime: Some(runtime) }
    }

    /// Returns the generation.
    pub(crate) fn publish(&mut self, resources: &Resources) -> u64 {
        self.generation += 1;
        let snapshots = self.plane.snapshots.lock().unwrap();
        snapshots.as_ref().unwrap().send_replace(Arc::new(snapshot(self.generation, resources)));
        self.generation
    }

    pub(crate) fn refuse(&self, refused: Refused) {
        *self.plane.refuse.lock().unwrap() = Some(refused);
    }

    /// From now on streams get no answer.
    pub(crate) fn hold(&self) {
        self.plane.hold.store(true, Ordering::Relaxed);
    }

    /// Waits until so many streams wait for an answer.
    pub(crate) async fn held(&self, streams: usize) {
        let mut held = self.plane.held.subscribe();
        let held = tokio::time::timeout(Duration::from_secs(20), held.wait_for(|held| *held == streams));
        held.await.expect("in time").expect("the plane lives");
    }

    /// Ends what sessions follow.
    pub(crate) fn end(&self) {
        self.plane.snapshots.lock().unwrap().take();
    }

    pub(crate) fn proxy(&self) -> Proxy {
        self.plane.proxy.lock().unwrap().clone().expect("a proxy came")
    }

    /// Waits until `generation` of `kind` is acknowledged.
    pub(crate) async fn acked(&self, kind: ResourceType, generation: u64) {
        self.journal.next(|event| acked(event, kind, generation)).await;
    }

    pub(crate) fn has_acked(&self, kind: ResourceType, generation: u64) -> bool {
        self.journal.find(|event| acked(event, kind, generation)).is_some()
    }
}

fn acked(event: &Event, kind: ResourceType, generation: u64) -> Option<()> {
    let acked = matches!(event, Event::Acked { kind: k, generation: g } if *k == kind && *g >= generation);
    acked.then_some(())
}

fn snapshot(generation: u64, resources: &Resources) -> Snapshot {
    let mut snapshot = Snapshot::new(generation);
    for kind in ResourceType::ALL {
        let table = resources.iter().filter(|(k, _)| *k == kind).map(|(_, r)| r.clone()).collect();
        *snapshot.of_mut(kind) = Layers { own: Arc::new(table), ..Layers::default() };
    }
    snapshot
}
