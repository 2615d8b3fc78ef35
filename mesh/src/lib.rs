//! What the mesh consists of: workloads, services, endpoints and its configuration. Pure; no policy, no Envoy, no I/O.

pub mod config;
pub mod destination_rule;
mod path;
pub mod protocol;
pub mod service;
pub mod telemetry;
pub mod visibility;
pub mod workload;

pub use config::{
    ExtAuthz, ExtAuthzKind, ExtensionProvider, HeaderMatch, InboundMode, IncludeBody, MeshConfig,
    PathNormalization,
};
pub use destination_rule::{
    Client, ClientTls, DestinationRule, DestinationRules, Originate, Subset, TrafficPolicy,
};
pub use protocol::Protocol;
pub use service::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, SliceEndpoint, TargetPort, endpoints,
};
pub use telemetry::{AccessLogging, Log, LogFormat, LogMode, LogService, Logs, Reach, Sink, Telemetry};
pub use visibility::{
    Egress, ExportTo, HostMatch, HostRule, Ingress, IngressApp, Scope, Sidecar, sidecar, visible,
};
pub use workload::{InboundPort, Workload, WorkloadKind, inbound_ports};
