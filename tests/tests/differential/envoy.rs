//! One Envoy whose configuration is what `xds::build` made.
//!
//! Only these things of it are changed: names, so that many workloads fit side by side, and where secrets come from (a
//! file in place of a stream). No listener is kept for a port that nobody asks.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    ConfigSource, PathConfigSource, TypedExtensionConfig, config_source::ConfigSourceSpecifier,
};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_filter,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    DownstreamTlsContext, common_tls_context::ValidationContextType,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xds::{Resource, ResourceType};

use super::ads::{Server, World};

pub(crate) struct Envoy {
    child: Child,
    dir: tempfile::TempDir,
    server: Server,
    /// Stays from load to load.
    base: World,
    next: World,
}

impl Envoy {
    /// `others` are clusters of one endpoint that listeners may name.
    pub(crate) async fn start(
        (certificate, key): (String, String),
        roots: &str,
        others: &[(String, SocketAddr)],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret = |name: &str, content: Value| {
            let mut secret = json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name});
            secret.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
            let file = json!({"resources": [secret]});
            std::fs::write(dir.path().join(format!("{name}.json")), file.to_string()).unwrap();
        };
        let inline = |text: &str| json!({ "inline_string": text });
        secret(
            "default",
            json!({"tls_certificate": {"certificate_chain": inline(&certificate), "private_key": inline(&key)}}),
        );
        secret("ROOTCA", json!({"validation_context": {"trusted_ca": inline(roots)}}));
        let bootstrap = dir.path().join("bootstrap.json");
        let server = Server::start().await;
        std::fs::write(&bootstrap, self::bootstrap(dir.path(), server.address, others).to_string()).unwrap();
        let log = std::fs::File::create(dir.path().join("envoy.log")).unwrap();
        let child = Command::new(tests::lab::programs::envoy().unwrap())
            .args(["--disable-hot-restart", "--concurrency", "1", "--drain-time-s", "1"])
            .args(["--drain-strategy", "immediate", "-l", "warning", "-c"])
            .arg(&bootstrap)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir, server, base: World::new(), next: World::new() }
    }

    /// Takes a workload's resources into the next load; `ports` are those that are asked.
    pub(crate) fn add(&mut self, name: &str, resources: &[(ResourceType, Resource)], ports: &[u16]) {
        for (kind, resource) in resources {
            let any = Any::decode(&*resource.any).unwrap();
            let (name, any) = match kind {
                ResourceType::Cluster => (resource.name.to_string(), any),
                ResourceType::Extension => {
                    let config = TypedExtensionConfig::decode(&*any.value).unwrap();
                    let config = TypedExtensionConfig { name: format!("{name}.{}", config.name), ..config };
                    let value = config.encode_to_vec();
                    (config.name, Any { type_url: any.type_url, value })
                }
                ResourceType::Listener => {
                    if !ports.iter().any(|port| *resource.name == *format!("inbound_{port}")) {
                        continue;
                    }
                    self.listener(name, &any)
                }
                ResourceType::Endpoint | ResourceType::Route => {
                    panic!("not a workload's own: {}", resource.name)
                }
            };
            let before = self.next.entry(*kind).or_default().insert(name.clone(), any.clone());
            assert!(before.is_none_or(|before| before == any), "two {name}");
        }
    }

    /// What has been added so far is part of every load.
    pub(crate) fn keep(&mut self) {
        self.base = self.next.clone();
    }

    fn listener(&self, case: &str, any: &Any) -> (String, Any) {
        let mut listener = Listener::decode(&*any.value).unwrap();
        listener.name = format!("{case}_{}", listener.name);
        for chain in &mut listener.filter_chains {
            self.secrets(chain);
            slots(case, chain);
        }
        let value = listener.encode_to_vec();
        (listener.name, Any { type_url: any.type_url.clone(), value })
    }

    fn secrets(&self, chain: &mut FilterChain) {
        use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
        let Some(socket) = &mut chain.transport_socket else { return };
        let Some(ConfigType::TypedConfig(any)) = &mut socket.config_type else { panic!("no config") };
        let mut context = DownstreamTlsContext::decode(&*any.value).unwrap();
        let common = context.common_tls_context.as_mut().unwrap();
        for secret in &mut common.tls_certificate_sds_secret_configs {
            secret.sds_config = Some(from_file(&self.dir.path().join("default.json")));
        }
        match &mut common.validation_context_type {
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                let secret = combined.validation_context_sds_secret_config.as_mut().unwrap();
                secret.sds_config = Some(from_file(&self.dir.path().join("ROOTCA.json")));
            }
            other => panic!("{other:?}"),
        }
        any.value = context.encode_to_vec();
    }

    /// Puts everything added so far in force, and gives what Envoy refused of it.
    pub(crate) async fn load(&mut self) -> Vec<String> {
        let world = std::mem::replace(&mut self.next, self.base.clone());
        self.server.publish(world).await;
        self.warm().await;
        self.server.refused()
    }

    /// Waits until nothing waits for its secrets or extension configs any more, or something was refused.
    async fn warm(&self) {
        for _ in 0..6000 {
            if !self.server.refused().is_empty() {
                return;
            }
            let stats = self.admin("/stats?filter=total_listeners_warming").await.unwrap_or_default();
            if stats.contains("total_listeners_warming: 0") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("Envoy does not open its listeners:\n{}", self.log());
    }

    async fn admin(&self, path: &str) -> std::io::Result<String> {
        let mut stream = tokio::net::UnixStream::connect(self.dir.path().join("admin")).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    pub(crate) fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("envoy.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("{}", &log[log.len().saturating_sub(4000)..]);
        }
    }
}

/// Each workload has extension configs of its own.
fn slots(case: &str, chain: &mut FilterChain) {
    for network in &mut chain.filters {
        let Some(filter::ConfigType::TypedConfig(any)) = &mut network.config_type else { continue };
        if !any.type_url.ends_with("HttpConnectionManager") {
            continue;
        }
        let mut manager = HttpConnectionManager::decode(&*any.value).unwrap();
        for filter in &mut manager.http_filters {
            if let Some(http_filter::ConfigType::ConfigDiscovery(_)) = &filter.config_type {
                filter.name = format!("{case}.{}", filter.name);
            }
        }
        any.value = manager.encode_to_vec();
    }
}

fn from_file(path: &Path) -> ConfigSource {
    let path = PathConfigSource { path: path.to_str().unwrap().to_owned(), ..Default::default() };
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(path)),
        resource_api_version: 2,
        ..Default::default()
    }
}

fn bootstrap(dir: &Path, server: SocketAddr, others: &[(String, SocketAddr)]) -> Value {
    let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    let cluster = |name: &str, server: &SocketAddr| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                {"socket_address": {"address": server.ip().to_string(), "port_value": server.port()}}}}]}]}
        })
    };
    let mut ads_cluster = cluster("ads", &server);
    ads_cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}});
    let mut clusters = vec![ads_cluster];
    clusters.extend(others.iter().map(|(name, address)| cluster(name, address)));
    json!({
        "node": {"id": "sidecar~127.0.0.1~test.foo~foo.svc.cluster.local", "cluster": "test"},
        "admin": {"address": {"pipe": {"path": dir.join("admin")}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {
            "re2.max_program_size.error_level": 32768}}]},
        "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
            "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}]}},
        "static_resources": {"clusters": clusters},
    })
}
