//! The agent's settings. Parsing only; what they lead to is decided by the modules that use them.

mod istio;
mod rules;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Where Istio's injection template mounts the ConfigMap istio-ca-root-cert.
const PROJECTED_ROOTS: &str = "/var/run/secrets/istio/root-cert.pem";

/// Runs beside one workload: its certificates, its Envoy, its traffic.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    # A workload in its own network namespace; all its TCP traffic goes through Envoy\n  \
    countersign agent --server 10.0.0.1:15012 --trust-bundle root-cert.pem --join-token-file token \\\n    \
        --workload shop/orders --capture nft --sds-socket /run/countersign/sds.sock\n\n  \
    # In a Kubernetes pod (POD_NAME, POD_NAMESPACE, INSTANCE_IP are set): by its service-account token\n  \
    countersign agent --server countersign.istio-system.svc:15012 --token-file /var/run/secrets/tokens/istio-token\n\n  \
    # Without capture: Envoy serves 127.0.10.3:8080 in front of an application on a Unix socket\n  \
    countersign agent --server 127.0.0.1:15012 --trust-bundle root-cert.pem --join-token-file token \\\n    \
        --workload shop/orders --capture none --address 127.0.10.3 --app 8080=unix:/run/orders.sock \\\n    \
        --upstream database.shop:5432=15432 --sds-socket /run/orders/sds.sock")]
pub struct AgentArgs {
    /// Control plane's secure address, HOST:PORT
    #[arg(
        long,
        env = "COUNTERSIGN_SERVER",
        value_name = "HOST:PORT",
        default_value = istio::discovery_address().unwrap_or("127.0.0.1:15012"),
        value_parser = host_and_port
    )]
    pub server: String,
    /// Root certificates that the control plane and all peers must chain to, PEM. Read again when it changes
    /// [default with --token-file: /var/run/secrets/istio/root-cert.pem]
    #[arg(
        long,
        env = "COUNTERSIGN_TRUST_BUNDLE",
        value_name = "FILE",
        required_unless_present = "token_file"
    )]
    pub trust_bundle: Option<PathBuf>,
    /// SPIFFE ID of the control plane [default: spiffe://TRUST-DOMAIN/ns/istio-system/sa/countersign]
    #[arg(long, env = "COUNTERSIGN_SERVER_ID", value_name = "SPIFFE-ID")]
    pub server_id: Option<spiffe::SpiffeId>,
    /// Single-use token from `countersign join-token create`; only needed at the first start
    #[arg(long, env = "COUNTERSIGN_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// In a Kubernetes pod: its service-account token for the audience istio-ca, instead of joining. Read again at each
    /// renewal, as the kubelet replaces it
    #[arg(long, env = "COUNTERSIGN_TOKEN_FILE", value_name = "FILE", conflicts_with = "join_token_file")]
    pub token_file: Option<PathBuf>,
    /// Certificate authority that the token is shown to [default: $CA_ADDR, else --server, which relays]
    #[arg(
        long,
        env = "COUNTERSIGN_CA_ADDR",
        value_name = "HOST:PORT",
        default_value = istio::ca_address(),
        hide_default_value = true,
        value_parser = host_and_port
    )]
    pub ca_addr: Option<String>,
    /// SPIFFE ID of the certificate authority at --ca-addr [default: the control plane's if --ca-addr is --server, else
    /// spiffe://TRUST-DOMAIN/ns/istio-system/sa/countersign-ca]
    #[arg(long, env = "COUNTERSIGN_CA_ID", value_name = "SPIFFE-ID")]
    pub ca_id: Option<spiffe::SpiffeId>,
    /// The Pod or WorkloadEntry that this agent stands beside [default: $POD_NAMESPACE/$POD_NAME]
    #[arg(
        long,
        env = "COUNTERSIGN_WORKLOAD",
        value_name = "NAMESPACE/NAME",
        default_value = istio::pod(),
        hide_default_value = true
    )]
    pub workload: WorkloadRef,
    /// The workload's address; needed without capture [default: $INSTANCE_IP; else, under `nft`, the first that is not a
    /// loopback address]
    #[arg(
        long,
        env = "COUNTERSIGN_ADDRESS",
        value_name = "IP",
        default_value = istio::instance_ip(),
        hide_default_value = true
    )]
    pub address: Option<IpAddr>,
    /// How traffic gets to Envoy: `nft` redirects all TCP of this network namespace; `external` trusts that `countersign
    /// capture` has done so, and makes sure of it; `none` lets Envoy listen on the workload's own ports
    #[arg(long, env = "COUNTERSIGN_CAPTURE", value_enum, default_value = "nft")]
    pub capture: CaptureMode,
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Leave no redirection behind on a clean stop (without it, traffic stays refused while no Envoy runs)
    #[arg(long, env = "COUNTERSIGN_CLEANUP_CAPTURE")]
    pub cleanup_capture: bool,
    /// Where an application listens, capture `none` only; repeatable, or by commas [default for a port: 127.0.0.1:PORT]
    #[arg(long, env = "COUNTERSIGN_APP", value_name = "PORT=unix:PATH|HOST:PORT", value_delimiter = ',')]
    pub app: Vec<App>,
    /// A local port for a TCP service, capture `none` only; repeatable, or by commas
    #[arg(
        long,
        env = "COUNTERSIGN_UPSTREAM",
        value_name = "SERVICE:PORT=[ADDRESS:]PORT",
        value_delimiter = ','
    )]
    pub upstream: Vec<ServiceUpstream>,
    /// Socket on which Envoy asks for certificates; its folder is made 0700
    #[arg(
        long,
        env = "COUNTERSIGN_SDS_SOCKET",
        value_name = "PATH",
        default_value = "/run/countersign/sds.sock"
    )]
    pub sds_socket: PathBuf,
    /// Folder of the agent's own key and certificate, kept 0700 [default: the folder of --sds-socket]
    #[arg(long, alias = "state-dir", env = "COUNTERSIGN_AGENT_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Envoy's executable [default: $ENVOY, then `envoy` on PATH]
    #[arg(long, env = "ENVOY", value_name = "PATH")]
    pub envoy: Option<PathBuf>,
    /// File for Envoy's output [default: the agent's stderr]
    #[arg(long, env = "COUNTERSIGN_ENVOY_LOG", value_name = "FILE")]
    pub envoy_log: Option<PathBuf>,
    /// Envoy's worker threads
    #[arg(long, env = "COUNTERSIGN_ENVOY_CONCURRENCY", value_name = "N", default_value_t = 2)]
    pub concurrency: u32,
    /// Seconds that connections of a replaced or stopping listener may finish in
    #[arg(long, env = "COUNTERSIGN_DRAIN_TIME", value_name = "SECONDS", default_value_t = 2)]
    pub drain_time: u64,
    /// Envoy's own log: trace, debug, info, warning, error, critical or off
    #[arg(
        long,
        env = "COUNTERSIGN_ENVOY_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "warning",
        value_parser = ["trace", "debug", "info", "warning", "error", "critical", "off"]
    )]
    pub envoy_log_level: String,
    /// User that Envoy runs as under capture `nft` and `external`; its traffic is not redirected
    #[arg(long, env = "COUNTERSIGN_PROXY_UID", value_name = "UID", default_value_t = 1337)]
    pub proxy_uid: u32,
    /// Variant of xDS that Envoy speaks
    #[arg(long, env = "COUNTERSIGN_XDS_PROTOCOL", value_enum, default_value = "delta")]
    pub xds_protocol: XdsProtocol,
    /// Ask for policy inside the listener instead of as extension configs (for tools that read listener dumps)
    #[arg(long, env = "COUNTERSIGN_INLINE_POLICY")]
    pub inline_policy: bool,
    /// Address of /ready, /metrics, /stats/prometheus (with Envoy's and the application's numbers) and the application's
    /// probes; under capture `nft` others reach it on port 15020 or 15021 only [default: none]
    #[arg(long, env = "COUNTERSIGN_AGENT_MONITORING_ADDR", value_name = "HOST:PORT")]
    pub monitoring_addr: Option<SocketAddr>,
    /// Address of /healthz/ready alone [default: none]
    #[arg(long, env = "COUNTERSIGN_AGENT_HEALTH_ADDR", value_name = "HOST:PORT")]
    pub health_addr: Option<SocketAddr>,
    /// Where the application's own metrics are, to be shown with ours
    #[arg(long, env = "COUNTERSIGN_APP_METRICS", value_name = "PORT/PATH")]
    pub app_metrics: Option<AppMetrics>,
    /// What the kubelet asks of the application through us, as the injection writes it (JSON: path by question)
    #[arg(long, env = "COUNTERSIGN_APP_PROBES", value_name = "JSON")]
    pub app_probes: Option<Questions>,
    /// File that exists as long as the workload is ready
    #[arg(long, env = "COUNTERSIGN_READY_FILE", value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

pub(crate) use istio::trust_domain;
pub use rules::{CaptureArgs, Networks, PortSet, Ports, RuleArgs};

pub use crate::status::{AppMetrics, Questions};

impl AgentArgs {
    /// Where the root certificates are.
    pub fn bundle_path(&self) -> PathBuf {
        self.trust_bundle.clone().unwrap_or_else(|| PathBuf::from(PROJECTED_ROOTS))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CaptureMode {
    Nft,
    External,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdsProtocol {
    Delta,
    Sotw,
}

/// `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadRef {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A value that cannot be read; says what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct Expected(pub(crate) &'static str);

fn host_and_port(text: &str) -> Result<String, Expected> {
    let whole = text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    // An IPv6 address without brackets would lose its last part to the port.
    let clear =
        whole.is_some_and(|(host, _)| !host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
    if clear { Ok(text.to_owned()) } else { Err(Expected("HOST:PORT")) }
}

impl FromStr for WorkloadRef {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let error = Expected("NAMESPACE/NAME");
        let plain = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        };
        match text.split_once('/') {
            Some((namespace, name)) if plain(namespace) && plain(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(error),
        }
    }
}

/// Where the application of one port listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub port: u16,
    pub address: AppAddress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppAddress {
    Unix(String),
    Tcp(String),
}

impl FromStr for App {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let error = || Expected("PORT=unix:PATH or PORT=HOST:PORT");
        let (port, address) = text.split_once('=').ok_or_else(error)?;
        let address = match address.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => AppAddress::Unix(path.to_owned()),
            Some(_) => return Err(Expected("an absolute path after unix:")),
            None if address
                .rsplit_once(':')
                .is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok()) =>
            {
                AppAddress::Tcp(address.to_owned())
            }
            None => return Err(error()),
        };
        Ok(Self { port: port.parse().map_err(|_| error())?, address })
    }
}

/// A TCP service and the local address that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUpstream {
    /// `HOST:PORT` of the service.
    pub service: String,
    /// `None`: the workload's own address.
    pub host: Option<IpAddr>,
    pub port: u16,
}

impl FromStr for ServiceUpstream {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let error = || Expected("SERVICE:PORT=PORT or SERVICE:PORT=ADDRESS:PORT");
        let (service, local) = text.split_once('=').ok_or_else(error)?;
        let (host, port) = service.rsplit_once(':').ok_or_else(error)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(error());
        }
        let service = service.to_owned();
        if let Ok(port) = local.parse() {
            return Ok(Self { service, host: None, port });
        }
        let local: SocketAddr = local.parse().map_err(|_| error())?;
        Ok(Self { service, host: Some(local.ip()), port: local.port() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        assert_eq!("8080=unix:/a".parse::<App>().map(|a| a.address), Ok(AppAddress::Unix("/a".to_owned())));
        assert_eq!("80=1.2.3.4:5".parse::<App>().map(|a| a.port), Ok(80));
        for bad in ["", "80", "80=", "80=unix:rel", "80=host", "x=1.2.3.4:5", "99999=1.2.3.4:5", "80=:5"] {
            assert!(bad.parse::<App>().is_err(), "{bad}");
        }
        let upstream: ServiceUpstream = "db.shop:5432=127.0.0.9:1".parse().expect("valid");
        assert_eq!((upstream.service.as_str(), upstream.port), ("db.shop:5432", 1));
        assert_eq!("db:1=2".parse::<ServiceUpstream>().map(|u| u.host), Ok(None));
        for bad in ["", "db=1", "db:x=1", ":1=2", "db:1=", "db:1=x"] {
            assert!(bad.parse::<ServiceUpstream>().is_err(), "{bad}");
        }
        for good in ["a:1", "10.0.0.1:15012", "[fd00::1]:15012", "cp.istio-system.svc:15012"] {
            assert!(host_and_port(good).is_ok(), "{good}");
        }
        for bad in ["", "a", ":1", "a:", "a:x", "a:70000", "fd00::1:15012"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
        for bad in ["", "a", "a/", "/a", "a/b/c", "a/../b", "A/b", "a/b c"] {
            assert!(bad.parse::<WorkloadRef>().is_err(), "{bad}");
        }
    }
}
