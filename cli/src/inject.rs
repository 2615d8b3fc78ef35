//! `countersign inject`: what the webhook would do to pods, done to files: every workload kind, also inside of a List. Reads
//! files, prints, asks no cluster. What is no workload is printed as it came.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use controller::injection::{Context, Outcome, Settings, inject, template_of};
use serde::Deserialize as _;
use serde_json::Value;

use crate::output::text;

/// Add the sidecar to workloads in files, as the webhook does in a cluster
///
/// Prints everything that is in the file, with the workloads injected. A pod that the webhook would refuse is an error, and
/// nothing is printed. Only pods of namespaces that are in the same file are judged by the namespace's labels.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign inject -f deployment.yaml --image registry.example/countersign:1.0 | kubectl apply -f -\n  \
    kubectl get deployment web -o yaml | countersign inject -f - --injection-config injection.yaml > injected.yaml\n  \
    kubectl get configmap -n istio-system countersign-injection -o jsonpath='{.data.config}' > injection.yaml")]
pub(crate) struct InjectArgs {
    /// File; `-` is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Settings of the injection, as in the chart's ConfigMap countersign-injection
    #[arg(long, value_name = "FILE", required_unless_present = "image")]
    injection_config: Option<PathBuf>,
    /// The sidecar's image
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Namespace of what names none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Trust domain of the mesh
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Whether the cluster runs native sidecars (Kubernetes 1.29 and newer)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    native_sidecar: bool,
}

/// What a file is injected with.
struct Injection<'a> {
    args: &'a InjectArgs,
    settings: Settings,
    secret: String,
    /// Labels of the namespaces in the file.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

pub(crate) fn run(args: &InjectArgs) -> Result<ExitCode> {
    let settings = settings(args)?;
    let mut input = String::new();
    if args.file.as_os_str() == "-" {
        std::io::stdin().take(crds::MAX_FILE as u64 + 1).read_to_string(&mut input)?;
    } else {
        input = std::fs::read_to_string(&args.file).with_context(|| args.file.display().to_string())?;
    }
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&input) {
        let document = Value::deserialize(document).with_context(|| args.file.display().to_string())?;
        if !document.is_null() {
            documents.push(document);
        }
    }
    let secret = format!("{:032x}", rand::random::<u128>());
    let mut injection = Injection { args, settings, secret, namespaces: BTreeMap::new() };
    documents.iter().for_each(|document| injection.learn(document));
    let mut printed = Vec::new();
    for document in &mut documents {
        injection.object(document)?;
        printed.push(serde_yaml::to_string(document)?);
    }
    text(&printed.join("---\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &InjectArgs) -> Result<Settings> {
    let mut settings = match &args.injection_config {
        Some(path) => {
            let name = || path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(name)?;
            Settings::read(&text).map_err(anyhow::Error::msg).with_context(name)?
        }
        None => Settings::of_image(args.image.as_deref().unwrap_or_default()).map_err(anyhow::Error::msg)?,
    };
    if let Some(image) = &args.image {
        settings.image.clone_from(image);
    }
    Ok(settings)
}

impl Injection<'_> {
    fn learn(&mut self, document: &Value) {
        if let Some(items) = document["items"].as_array() {
            items.iter().for_each(|item| self.learn(item));
        }
        if let (Some("Namespace"), Some(name)) =
            (document["kind"].as_str(), document["metadata"]["name"].as_str())
        {
            let labels = document["metadata"]["labels"].as_object().into_iter().flatten();
            let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
            self.namespaces.insert(name.to_owned(), labels.collect());
        }
    }

    fn object(&self, object: &mut Value) -> Result<()> {
        if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
            return items.iter_mut().try_for_each(|item| self.object(item));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = text(&object["kind"]).unwrap_or_default();
        let name = text(&object["metadata"]["name"]).unwrap_or_default();
        let namespace = text(&object["metadata"]["namespace"]).unwrap_or_else(|| self.args.namespace.clone());
        let Some(pointer) = template_of(&kind) else { return Ok(()) };
        let what = format!("{kind} {namespace}/{name}");
        let Some(pod) = object.pointer_mut(pointer) else { bail!("{what}: it has no pod template") };
        // A template has no name; that of its owner stands for it.
        let mut named = pod.clone();
        if kind != "Pod" && named["metadata"]["name"].is_null() && named.is_object() {
            named["metadata"]["name"] = name.into();
        }
        let context = Context {
            namespace: &namespace,
            namespace_labels: self.namespaces.get(&namespace),
            trust_domain: &self.args.trust_domain,
            native: self.args.native_sidecar,
            secret: &self.secret,
        };
        match inject(&named, &context, &self.settings).with_context(|| what.clone())? {
            Outcome::Skipped(skip) => warning(&format!("{what}: {skip}")),
            Outcome::Injected { pod: mut new, warnings } => {
                warnings.iter().for_each(|why| warning(&format!("{what}: {why}")));
                if kind != "Pod"
                    && let Some(metadata) = new["metadata"].as_object_mut()
                {
                    metadata.remove("name");
                }
                *pod = *new;
            }
        }
        Ok(())
    }
}

fn warning(text: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

#[cfg(test)]
mod tests;
