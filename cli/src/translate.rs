//! `countersign translate`: what policies mean for a workload, without a control plane: resolved, as the resources its
//! Envoy would get, or as a whole Envoy configuration. Reads files, prints, starts nothing.

pub(crate) mod input;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use controller::offline::{Offline, describe};
use mesh::{Protocol, Workload};
use serde_json::{Map, Value, json};
use xds::build::{Capture, ProxyShape, Static, StaticPort, TlsFiles, envoy_static, json::resource};

use crate::cli::FINDING;
use crate::output::text;

/// Show what policies mean for a workload: resolved, or as Envoy configuration
///
/// Without a workload, every one in the files is shown; if there is none, a workload without labels in --namespace.
/// Exits with 1 if something could not be understood; that is then read as closed, as the control plane does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign translate -f policies/ --workload shop/orders -o effective\n  \
    countersign translate -f policy.yaml --labels app=orders -n shop -o envoy\n  \
    countersign translate -f policy.yaml -o envoy-static --port 0.0.0.0:8080=127.0.0.1:9000 > envoy.yaml")]
pub(crate) struct TranslateArgs {
    /// File or folder; `-` is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR")]
    file: PathBuf,
    /// MeshConfig file [default: Istio's defaults]
    #[arg(long, env = "COUNTERSIGN_MESH_CONFIG", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// A workload that the files register
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "labels")]
    workload: Option<String>,
    /// Labels of a workload that they do not
    #[arg(long, value_name = "KEY=VALUE,..", value_delimiter = ',')]
    labels: Vec<String>,
    /// Namespace of that workload
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// What to print
    #[arg(short, long, value_enum, default_value = "effective")]
    output: Form,
    /// For `envoy`: how traffic reaches the proxy
    #[arg(long, value_enum, default_value = "nft")]
    capture: CaptureArg,
    /// For `envoy-static`: a port to serve and the application behind it; repeatable
    #[arg(long = "port", value_name = "LISTEN=APP", value_parser = port, default_value = "0.0.0.0:8080=127.0.0.1:8081")]
    ports: Vec<(SocketAddr, SocketAddr)>,
    /// For `envoy-static`: what those ports speak
    #[arg(long, value_enum, default_value = "http")]
    protocol: ProtocolArg,
    /// For `envoy-static`: the server's certificate, its key, and the roots of clients; without them there is only
    /// plaintext, and no caller has an identity
    #[arg(long, num_args = 3, value_names = ["CERTIFICATE", "KEY", "ROOTS"])]
    tls: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// The effective policy
    Effective,
    /// The resources that an Envoy would get over xDS
    Envoy,
    /// A whole configuration for an Envoy without control plane
    EnvoyStatic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CaptureArg {
    Redirect,
    Nft,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProtocolArg {
    Http,
    Http2,
    Tcp,
    Auto,
}

fn port(text: &str) -> Result<(SocketAddr, SocketAddr), String> {
    let (listen, app) = text.split_once('=').ok_or("not LISTEN=APP")?;
    let address = |text: &str| text.parse().map_err(|_| format!("{text:?} is not ADDRESS:PORT"));
    Ok((address(listen)?, address(app)?))
}

pub(crate) fn run(args: &TranslateArgs) -> Result<ExitCode> {
    let input = input::read(&args.file, args.mesh_config.as_deref())?;
    let input::Input { mesh, objects, origins: _, findings: _, understood } = input;
    let mut offline = Offline::new(mesh, objects);
    let workloads = workloads(args, &mut offline)?;
    match args.output {
        Form::Effective => text(&documents(&workloads, |workload| effective(&mut offline, workload))?)?,
        Form::Envoy => text(&documents(&workloads, |workload| envoy(args, &mut offline, workload))?)?,
        Form::EnvoyStatic => {
            let [workload] = &workloads[..] else {
                bail!("choose one of {} workloads with --workload", workloads.len());
            };
            text(&whole(args, &mut offline, workload)?)?;
        }
    }
    Ok(if understood { ExitCode::SUCCESS } else { ExitCode::from(FINDING) })
}

/// The workloads to translate for.
fn workloads(args: &TranslateArgs, offline: &mut Offline) -> Result<Vec<Arc<Workload>>> {
    let registered = offline.workloads();
    if let Some(name) = &args.workload {
        let of_name =
            |workload: &&Arc<Workload>| format!("{}/{}", workload.namespace, workload.name) == *name;
        let found = registered.iter().find(of_name);
        return Ok(vec![found.with_context(|| format!("the files register no workload {name}"))?.clone()]);
    }
    if args.labels.is_empty() && !registered.is_empty() {
        return Ok(registered);
    }
    let mut labels = BTreeMap::new();
    for label in &args.labels {
        let (key, value) = label.split_once('=').with_context(|| format!("{label:?} is not KEY=VALUE"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(vec![offline.register(&args.namespace, labels)])
}

/// One YAML document per workload.
fn documents(workloads: &[Arc<Workload>], mut one: impl FnMut(&Workload) -> Result<Value>) -> Result<String> {
    let mut documents = Vec::new();
    for workload in workloads {
        documents.push(serde_yaml::to_string(&one(workload)?)?);
    }
    Ok(documents.join("---\n"))
}

fn effective(offline: &mut Offline, workload: &Workload) -> Result<Value> {
    let policy = offline.effective(workload)?;
    Ok(json!({
        "workload": format!("{}/{}", workload.namespace, workload.name),
        "labels": &*workload.labels,
        "policy": describe(&policy),
    }))
}

fn envoy(args: &TranslateArgs, offline: &mut Offline, workload: &Workload) -> Result<Value> {
    let capture = match args.capture {
        CaptureArg::Redirect => Capture::Redirect,
        CaptureArg::Nft => Capture::Nft,
        CaptureArg::None => Capture::None { apps: BTreeMap::new(), upstreams: BTreeMap::new() },
    };
    let ipv6 = workload.addresses.iter().any(std::net::IpAddr::is_ipv6);
    let mut types = Map::new();
    for (kind, one) in offline.resources(workload, ProxyShape { capture, inline_policy: false, ipv6 })? {
        let all = types.entry(kind.short()).or_insert_with(|| json!([]));
        all.as_array_mut().context("made as an array above")?.push(resource(&one)?);
    }
    types.insert("workload".to_owned(), json!(format!("{}/{}", workload.namespace, workload.name)));
    Ok(Value::Object(types))
}

fn whole(args: &TranslateArgs, offline: &mut Offline, workload: &Workload) -> Result<String> {
    let policy = offline.effective(workload)?;
    let protocol = match args.protocol {
        ProtocolArg::Http => Protocol::Http,
        ProtocolArg::Http2 => Protocol::Http2,
        ProtocolArg::Tcp => Protocol::Tcp,
        ProtocolArg::Auto => Protocol::Auto,
    };
    let ports: Vec<_> =
        args.ports.iter().map(|(listen, app)| StaticPort { listen: *listen, app: *app, protocol }).collect();
    let tls = match &args.tls[..] {
        [] => None,
        [certificate, key, roots] => {
            Some(TlsFiles { certificate: certificate.clone(), key: key.clone(), roots: roots.clone() })
        }
        _ => bail!("--tls takes a certificate, a key and roots"),
    };
    ensure!(!ports.is_empty(), "--port is missing");
    let mesh = offline.mesh();
    Ok(envoy_static(&Static { mesh, policy: &policy, ports: &ports, tls: tls.as_ref() })?)
}

#[cfg(test)]
mod tests;
