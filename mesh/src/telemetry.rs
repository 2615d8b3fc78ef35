//! Which access logs a workload's proxy writes: Telemetry objects over the defaults of the mesh (semantics §1.6). It does
//! not know how a log is written; that is translation's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::MeshConfig;

/// The provider that every mesh has, unless its configuration gives the name to another: standard output.
pub const ENVOY: &str = "envoy";
/// A workload that carries this label is a Kubernetes Gateway API gateway, named by the value.
const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// A Telemetry object, as far as it is about access logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Seconds since the epoch: of several that select the same, the oldest counts.
    pub created: i64,
    pub reach: Reach,
    pub access_logging: Vec<AccessLogging>,
}

/// What a Telemetry object is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Its namespace; in the root namespace, the mesh.
    Namespace,
    /// Workloads of its namespace that have all these labels.
    Labels(BTreeMap<String, String>),
    /// These gateways of its namespace. References to anything else reach nobody: those are for waypoints.
    Gateways(Vec<String>),
}

/// `accessLogging[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogging {
    pub mode: LogMode,
    /// None: those that are in force already.
    pub providers: Vec<Arc<str>>,
    pub disabled: bool,
    /// An expression in CEL that Envoy can compile.
    pub filter: Option<Arc<str>>,
}

/// `match.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// What the workload calls.
    Client,
    /// What it is called with.
    Server,
    Both,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sink {
    File {
        path: String,
        format: LogFormat,
    },
    /// An access log service.
    Service {
        kind: LogService,
        /// `[NAMESPACE/]HOST`.
        service: String,
        port: u16,
        /// What the service is told of whose log it is.
        log_name: String,
        /// OpenTelemetry only: the body of a record.
        body: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogService {
    Http,
    Tcp,
    OpenTelemetry,
}

/// How a line is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// Empty: the default line.
    Text(String),
    /// A JSON object of names and formats; empty: the default one.
    Json(String),
}

/// One access log in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    pub sink: Sink,
    pub filter: Option<Arc<str>>,
}

/// All that one workload's proxy writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Logs {
    /// Of inbound listeners.
    pub server: Arc<[Log]>,
    /// Of outbound listeners.
    pub client: Arc<[Log]>,
}

impl Telemetry {
    /// Whether it is about a workload of its own namespace with these labels; the mesh's is also about others.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        match &self.reach {
            Reach::Namespace => true,
            Reach::Labels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
            Reach::Gateways(names) => labels.get(GATEWAY_LABEL).is_some_and(|name| names.contains(name)),
        }
    }
}

/// What applies to a workload, widest first: of the mesh, of the namespace, of the workload itself. In each only the
/// oldest counts. `root` and `own` are the objects of those namespaces; `own` is empty where they are the same.
pub fn layers<'t>(
    root: impl Iterator<Item = &'t Telemetry>,
    own: impl Iterator<Item = &'t Telemetry>,
    in_root: bool,
    labels: &BTreeMap<String, String>,
) -> Vec<&'t Telemetry> {
    let sorted = |mut all: Vec<&'t Telemetry>| {
        all.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        all
    };
    let (root, own) = (sorted(root.collect()), sorted(own.collect()));
    let wide = |t: &&&'t Telemetry| t.reach == Reach::Namespace;
    let mine = |t: &&&'t Telemetry| t.reach != Reach::Namespace && t.selects(labels);
    let workload = if in_root { &root } else { &own };
    [root.iter().find(wide), own.iter().find(wide), workload.iter().find(mine)]
        .into_iter()
        .flatten()
        .copied()
        .collect()
}

impl MeshConfig {
    /// The sink that providers of that name write to.
    pub fn sink(&self, provider: &str) -> Option<Sink> {
        match self.log_providers.get(provider) {
            Some(sink) => Some(sink.clone()),
            None if provider == ENVOY => Some(Sink::stdout()),
            None => None,
        }
    }

    /// What is written where no Telemetry says anything: the default providers, or else `accessLogFile`.
    fn default_logs(&self) -> BTreeMap<Arc<str>, Current> {
        let named = self.default_log_providers.iter();
        let named = named.filter_map(|name| Some((name.clone(), Current::of(self.sink(name)?))));
        let mut all: BTreeMap<_, _> = named.collect();
        if all.is_empty() && !self.access_log_file.is_empty() {
            let format = self.access_log_format.clone();
            let format = if self.access_log_json { LogFormat::Json(format) } else { LogFormat::Text(format) };
            let file = Sink::File { path: self.access_log_file.clone(), format };
            // No provider can have an empty name.
            all.insert("".into(), Current::of(file));
        }
        all
    }
}

impl Sink {
    fn stdout() -> Self {
        Self::File { path: "/dev/stdout".to_owned(), format: LogFormat::Text(String::new()) }
    }
}

/// A provider in force, or one that was and is switched off.
#[derive(Clone, Debug)]
struct Current {
    sink: Sink,
    filter: Option<Arc<str>>,
    on: bool,
}

impl Current {
    fn of(sink: Sink) -> Self {
        Self { sink, filter: None, on: true }
    }
}

impl Logs {
    /// What is written where no Telemetry says anything; services of logs are taken to exist.
    pub fn of_mesh(mesh: &MeshConfig) -> Self {
        Self::resolve(mesh, &[], |_| true)
    }

    /// What `layers` make of the mesh's defaults. A provider that is not known, or not `usable`, is as if it was not
    /// named, and an entry that names only such is as if it was not there: so a mistake loses no line.
    pub fn resolve(mesh: &MeshConfig, layers: &[&Telemetry], usable: impl Fn(&Sink) -> bool) -> Self {
        let sink = |name: &Arc<str>| mesh.sink(name).filter(&usable);
        let mut defaults = mesh.default_logs();
        defaults.retain(|_, current| usable(&current.sink));
        let side = |mode: LogMode| {
            let mut all = defaults.clone();
            for layer in layers {
                overlay(&mut all, layer, mode, &sink);
            }
            all.into_values().filter(|c| c.on).map(|c| Log { sink: c.sink, filter: c.filter }).collect()
        };
        Self { server: side(LogMode::Server), client: side(LogMode::Client) }
    }
}

fn overlay(
    all: &mut BTreeMap<Arc<str>, Current>,
    layer: &Telemetry,
    mode: LogMode,
    sink: &impl Fn(&Arc<str>) -> Option<Sink>,
) {
    let entries =
        layer.access_logging.iter().filter(|entry| entry.mode == mode || entry.mode == LogMode::Both);
    let known = |entry: &AccessLogging| -> Vec<(Arc<str>, Sink)> {
        entry.providers.iter().filter_map(|name| Some((name.clone(), sink(name)?))).collect()
    };
    let entries: Vec<_> = entries
        .map(|entry| (entry, known(entry)))
        .filter(|(entry, known)| entry.providers.is_empty() || !known.is_empty())
        .collect();
    let named: BTreeSet<Arc<str>> =
        entries.iter().flat_map(|(_, known)| known.iter().map(|(name, _)| name.clone())).collect();
    let inherited: Vec<Arc<str>> = all.keys().cloned().collect();
    if !named.is_empty() {
        // Whoever names providers says which there are.
        all.retain(|name, _| named.contains(name));
    }
    for (AccessLogging { mode: _, providers, disabled, filter }, known) in entries {
        if providers.is_empty() {
            for (_, current) in all.iter_mut().filter(|(name, _)| inherited.contains(name)) {
                current.on = !disabled;
                current.filter = filter.clone().or(current.filter.take());
            }
        }
        for (name, sink) in known {
            all.insert(name, Current { sink, filter: filter.clone(), on: !disabled });
        }
    }
}

#[cfg(test)]
mod tests;
