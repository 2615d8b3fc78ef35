//! A small ADS client in Envoy's place, on the plaintext port.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use xds::ResourceType;

use super::*;

const SHOP: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: orders-1, namespace: shop}
spec: {address: 10.0.0.1, serviceAccount: orders, labels: {app: orders}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: payment-1, namespace: shop}
spec: {address: 10.0.0.2, serviceAccount: payment, labels: {app: payment}}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

fn policy(path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: orders, namespace: shop}}\n\
         spec:\n  selector: {{matchLabels: {{app: orders}}}}\n  rules:\n  - to: [{{operation: {{paths: [{path}]}}}}]\n"
    )
}

/// One delta stream.
struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: tonic::Streaming<DeltaDiscoveryResponse>,
    /// What it holds, by type and name.
    held: HashMap<ResourceType, BTreeMap<String, String>>,
}

impl Client {
    async fn open(plane: &Plane, workload: &str) -> Result<Self, tonic::Status> {
        let addr = plane.running.addresses.plaintext.unwrap();
        let endpoint = tonic::transport::Endpoint::new(format!("http://{addr}")).unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(endpoint.connect().await.unwrap());
        let (requests, receiver) = mpsc::channel(64);
        let node =
            Node { id: format!("sidecar~10.0.0.1~{workload}~shop.svc.cluster.local"), ..Node::default() };
        let url = |kind: ResourceType| kind.type_url().to_owned();
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: url(ResourceType::Cluster),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let listeners = DeltaDiscoveryRequest { type_url: url(ResourceType::Listener), ..Default::default() };
        requests.send(listeners).await.unwrap();
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, responses, held: HashMap::new() })
    }

    async fn subscribe(&self, kind: ResourceType, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, answered; names of what it holds.
    async fn next(&mut self, refuse: Option<&str>) -> Result<(ResourceType, Vec<String>), tonic::Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
        let response = message.expect("a response in time")?.ok_or(tonic::Status::cancelled("ended"))?;
        let kind = ResourceType::from_type_url(&response.type_url).unwrap();
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: refuse.map(|message| Status { message: message.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
        let held = self.held.entry(kind).or_default();
        let mut names = Vec::new();
        for resource in response.resources {
            held.insert(resource.name.clone(), resource.version);
            names.push(resource.name);
        }
        Ok((kind, names))
    }

    /// Responses until these types came.
    async fn until(&mut self, kinds: &[ResourceType]) {
        let mut missing = kinds.to_vec();
        while !missing.is_empty() {
            let (kind, _) = self.next(None).await.unwrap();
            missing.retain(|other| *other != kind);
        }
    }
}

const SLOTS: [&str; 4] =
    ["inbound.jwt_authn", "inbound.rbac.audit", "inbound.rbac.deny", "inbound.rbac.allow"];

async fn connected(plane: &Plane, workload: &str) -> Client {
    let mut client = Client::open(plane, workload).await.unwrap();
    client.until(&[ResourceType::Cluster, ResourceType::Listener]).await;
    client.subscribe(ResourceType::Extension, &SLOTS).await;
    client.until(&[ResourceType::Extension]).await;
    client
}

async fn ready(plane: &Plane) {
    until("ready", async || (plane.page("/ready").await.0 == 200).then_some(())).await;
}

/// A proxy comes and gets its configuration.
pub(super) async fn serves(plane: &Plane) {
    connected(plane, "somebody.shop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_policy_pushes_exactly_its_slot_to_whom_it_selects() {
    let plane = Plane::start(&[("shop.yaml", SHOP), ("policy.yaml", &policy("/orders"))]).await;
    ready(&plane).await;
    let mut orders = connected(&plane, "orders-1.shop").await;
    let mut payment = connected(&plane, "payment-1.shop").await;
    assert_eq!(orders.held[&ResourceType::Extension].len(), SLOTS.len());
    assert!(orders.held[&ResourceType::Cluster].contains_key("inbound|8080||"));
    let enforced = || async {
        let report = plane.report().await;
        let policy = report.objects.iter().find(|o| o.kind == "AuthorizationPolicy").unwrap().clone();
        policy.conditions.into_iter().find(|c| c.kind == "Enforced").unwrap()
    };
    until("enforced", async || (enforced().await.status == "True").then_some(())).await;

    plane.save("policy.yaml", &policy("/refunds"));
    let (kind, names) = orders.next(None).await.unwrap();
    assert_eq!((kind, names), (ResourceType::Extension, vec!["inbound.rbac.allow".to_owned()]));

    // The others hear of it only when it concerns them: the next thing they are told is the next thing that does.
    plane.save(
        "more.yaml",
        &policy("/more").replace("name: orders", "name: all").replace("{app: orders}", "{}"),
    );
    let (kind, names) = payment.next(None).await.unwrap();
    assert!(kind == ResourceType::Extension && names == ["inbound.rbac.allow"], "{kind:?} {names:?}");
    let text = plane.page("/metrics").await.1;
    assert!(text.contains("pilot_xds{version=\"unknown\"} 2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_shown_on_the_policy_and_the_proxy_until_it_heals() {
    let plane = Plane::start(&[("shop.yaml", SHOP), ("policy.yaml", &policy("/orders"))]).await;
    ready(&plane).await;
    let mut orders = connected(&plane, "orders-1.shop").await;
    let _payment = connected(&plane, "payment-1.shop").await;
    plane.save("policy.yaml", &policy("/refunds"));
    orders.next(Some("bad rule")).await.unwrap();
    let condition = |report: &controller::Report, kind: &str| {
        let policy = report.objects.iter().find(|o| o.kind == "AuthorizationPolicy").unwrap();
        policy.conditions.iter().find(|c| c.kind == kind).unwrap().clone()
    };
    let report = until("the refusal", async || {
        let report = plane.report().await;
        (condition(&report, "Programmed").reason == "Rejected").then_some(report)
    })
    .await;
    let message = condition(&report, "Programmed").message;
    let told = "0/1 proxies; shop/orders-1 refuses ecds inbound.rbac.allow since 2";
    assert!(message.starts_with(told) && message.ends_with(": bad rule"), "{message}");
    assert_eq!(condition(&report, "Enforced").status, "False");
    let proxy = report.proxies.iter().find(|p| p.name == "orders-1").unwrap();
    let rejected = proxy.types.iter().flat_map(|t| &t.rejected).next().unwrap();
    assert_eq!(rejected.resource.as_deref(), Some("inbound.rbac.allow"));
    plane.save("policy.yaml", &policy("/fine"));
    orders.next(None).await.unwrap();
    until("healed", async || (condition(&plane.report().await, "Enforced").status == "True").then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_before_everything_is_known() {
    let plane = Plane::start(&[("shop.yaml", SHOP), ("broken.yaml", "kind: [")]).await;
    until("the finding", async || (!plane.report().await.unreadable.is_empty()).then_some(())).await;
    let mut client = Client::open(&plane, "orders-1.shop").await.unwrap();
    let refused = client.next(None).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().contains("broken.yaml"), "{refused}");
    plane.save("broken.yaml", "");
    ready(&plane).await;
    connected(&plane, "orders-1.shop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_vanishes_changes_nothing_for_the_proxies() {
    let plane = Plane::start(&[("shop.yaml", SHOP), ("policy.yaml", &policy("/orders"))]).await;
    ready(&plane).await;
    let mut orders = connected(&plane, "orders-1.shop").await;
    let dir = plane.folder.path().join("files");
    let away = plane.folder.path().join("away");
    std::fs::rename(&dir, &away).unwrap();
    until("frozen", async || (plane.page("/ready").await.0 == 503).then_some(())).await;
    // Who comes now gets what is in force.
    connected(&plane, "payment-1.shop").await;
    std::fs::rename(&away, &dir).unwrap();
    ready(&plane).await;
    // The first thing that the proxy hears of is the next real change.
    plane.save("policy.yaml", &policy("/refunds"));
    let (kind, names) = orders.next(None).await.unwrap();
    assert_eq!((kind, names), (ResourceType::Extension, vec!["inbound.rbac.allow".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_is_deleted_loses_its_stream_and_not_its_policy() {
    let plane = Plane::start(&[("shop.yaml", SHOP), ("policy.yaml", &policy("/orders"))]).await;
    ready(&plane).await;
    let mut orders = connected(&plane, "orders-1.shop").await;
    plane.save("shop.yaml", SHOP.split_once("---").unwrap().1);
    // On the plaintext port the node becomes a stranger, which admits nobody: the listener changes.
    let mut kinds = Vec::new();
    while !kinds.contains(&ResourceType::Listener) {
        kinds.push(orders.next(None).await.unwrap().0);
    }
    let proxy = plane.report().await.proxies.pop().unwrap();
    assert!(!proxy.registered && !proxy.warnings.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_in_time_with_streams_open_and_ends_them() {
    let plane = Plane::start(&[("shop.yaml", SHOP)]).await;
    ready(&plane).await;
    let mut orders = connected(&plane, "orders-1.shop").await;
    let idle = tokio::net::TcpStream::connect(plane.running.addresses.secure.unwrap()).await.unwrap();
    let Plane { folder: _folder, running } = plane;
    running.tasks.stop().cancel();
    let start = Instant::now();
    running.tasks.run(runtime::Signals::new().unwrap(), Duration::from_secs(10)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    while orders.next(None).await.is_ok() {}
    drop(idle);
}
