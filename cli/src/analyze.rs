//! `countersign analyze`: policies that are legal and will not do what their author may think. What admission warns of is
//! asked of the same function (`controller::offline`), what follows from a policy alone is in `rules` and `paths`, and from
//! several together in `overlap` and `tokens`. It changes nothing and refuses nothing.

mod code;
mod overlap;
mod paths;
mod rules;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use controller::offline::Offline;
use crds::{Finding, Object};
use mesh::MeshConfig;
use serde::Serialize;

use crate::authz::parties::split;
use crate::authz::world::WorldArgs;
use crate::cli::FINDING;
use crate::output::{OutputArgs, print, printable};
use crate::translate::input::Input;
use code::{Code, Severity};
use overlap::Overlaps;

/// Find policies that will not do what they look like
///
/// Exits with 0 if there is nothing at or above --failure-threshold, and with 1 if there is. Each code is explained in
/// docs/reference/analysis.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign analyze policies/ workloads.yaml\n  \
    countersign analyze -A --kubeconfig ~/.kube/config -o json\n  \
    countersign analyze -n shop policies/ --suppress CS0110 --suppress CS0101=shop/later")]
pub(crate) struct AnalyzeArgs {
    /// Files and folders; without any the cluster is asked
    #[arg(value_name = "FILE|DIR", conflicts_with_all = ["kubeconfig", "context"])]
    paths: Vec<PathBuf>,
    /// Every namespace, which is the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Only what is said of objects of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Leave out a code, or a code for one object; repeatable
    #[arg(long, value_name = "CODE[=NAMESPACE/NAME]")]
    suppress: Vec<String>,
    /// The least that makes the exit code 1
    #[arg(long, value_enum, default_value = "warning")]
    failure_threshold: Severity,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// One thing to look at. The names of the fields are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    code: Code,
    severity: Severity,
    /// Empty: it is about a file.
    kind: String,
    namespace: String,
    name: String,
    /// `FILE:LINE`, or `kubernetes`.
    origin: String,
    message: String,
    docs: String,
}

pub(crate) async fn run(args: &AnalyzeArgs) -> Result<ExitCode> {
    let suppressed = suppressed(&args.suppress)?;
    let world = WorldArgs { files: [&args.paths[..], &args.world.files].concat(), ..args.world.clone() };
    let mut input = Input::with(world.mesh_config.as_deref())?;
    input.findings = Some(Vec::new());
    world.fill(&mut input).await?;
    let mut messages = analyze(input);
    messages.retain(|message| {
        let of = format!("{}/{}", message.namespace, message.name);
        let here = args.namespace.as_ref().is_none_or(|wanted| *wanted == message.namespace);
        let code = message.code.id();
        here && !suppressed.contains(&(code.to_owned(), None))
            && !suppressed.contains(&(code.to_owned(), Some(of)))
    });
    print(args.output.output, &messages, |messages| text(messages))?;
    let failed = messages.iter().any(|message| message.severity >= args.failure_threshold);
    Ok(if failed { ExitCode::from(FINDING) } else { ExitCode::SUCCESS })
}

fn suppressed(texts: &[String]) -> Result<BTreeSet<(String, Option<String>)>> {
    let one = |text: &String| {
        let (code, of) = text.split_once('=').map_or((text.as_str(), None), |(code, of)| (code, Some(of)));
        Code::ALL
            .iter()
            .find(|known| known.id() == code)
            .with_context(|| format!("there is no code {code:?}; all are in docs/reference/analysis.md"))?;
        of.map(split).transpose()?;
        Ok((code.to_owned(), of.map(str::to_owned)))
    };
    texts.iter().map(one).collect()
}

/// Everything to be said, in the order of the objects.
fn analyze(input: Input) -> Vec<Message> {
    let Input { mesh, objects, origins, findings, understood: _ } = input;
    let mut messages: Vec<Message> =
        findings.unwrap_or_default().iter().map(|(origin, finding)| read(origin, finding)).collect();
    let mut offline = Offline::assuming_keys(mesh.clone(), objects.clone());
    // Of policies alone nobody can say that they select nothing.
    let alone = offline.workloads().is_empty();
    let mut overlaps = Overlaps::default();
    for (object, origin) in objects.iter().zip(&origins) {
        let found = of_object(&mesh, &mut offline, &mut overlaps, object);
        for (code, text) in found.into_iter().filter(|(code, _)| !alone || *code != Code::SelectsNothing) {
            messages.push(message(code, object, origin, text));
        }
    }
    messages
}

fn of_object(
    mesh: &MeshConfig,
    offline: &mut Offline,
    overlaps: &mut Overlaps,
    object: &Object,
) -> Vec<(Code, String)> {
    let advice = offline.advise(object);
    let mut all: Vec<_> = advice.into_iter().map(|advice| (Code::from(advice.code), advice.text)).collect();
    for (_, text) in all.iter_mut().filter(|(code, _)| *code == Code::SelectsNothing) {
        text.push_str(&elsewhere(offline, object).unwrap_or_default());
    }
    match object {
        Object::AuthorizationPolicy(policy) => {
            all.extend(paths::walked_around(mesh.path_normalization, policy));
            all.extend(rules::look(policy));
            all.extend(overlaps.rules(offline.policies(), policy));
        }
        Object::RequestAuthentication(policy) => all.extend(overlaps.tokens(offline.policies(), policy)),
        _ => {}
    }
    all
}

/// Where the labels of a selector are that selects nothing. Admission does not say this: whoever writes a policy need not
/// know what other namespaces run.
fn elsewhere(offline: &Offline, object: &Object) -> Option<String> {
    let attachment = match object {
        Object::PeerAuthentication(policy) => &policy.attachment,
        Object::RequestAuthentication(policy) => &policy.attachment,
        Object::AuthorizationPolicy(policy) => &policy.attachment,
        _ => return None,
    };
    let policy::Attachment::Labels(wanted) = attachment else { return None };
    let has = |labels: &BTreeMap<String, String>| wanted.iter().all(|(k, v)| labels.get(k) == Some(v));
    let found = offline.workloads().into_iter().find(|workload| has(&workload.labels))?;
    Some(format!(
        "; one of namespace {:?} has, but a policy reaches its own namespace only",
        &*found.namespace
    ))
}

fn message(code: Code, object: &Object, origin: &str, message: String) -> Message {
    let of = object.object_ref();
    Message {
        code,
        severity: code.severity(),
        kind: of.kind.to_string(),
        namespace: of.id.namespace.to_string(),
        name: of.id.name.to_string(),
        origin: origin.to_owned(),
        message,
        docs: code.docs(),
    }
}

/// What was found in reading.
fn read(origin: &str, finding: &Finding) -> Message {
    let code = match finding.severity {
        crds::Severity::Error => Code::NotUnderstood,
        crds::Severity::Warning if finding.field == "kind" => Code::Unimplemented,
        crds::Severity::Warning => Code::Reading,
    };
    let field = if finding.field.is_empty() { String::new() } else { format!("{}: ", finding.field) };
    let file = origin.rsplit_once(':').map_or(origin, |(file, _)| file);
    Message {
        code,
        severity: code.severity(),
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        origin: finding.line.map_or_else(|| origin.to_owned(), |line| format!("{file}:{line}")),
        message: format!("{field}{}", finding.message),
        docs: code.docs(),
    }
}

fn text(messages: &[Message]) -> String {
    if messages.is_empty() {
        return "nothing to look at\n".to_owned();
    }
    let line = |message: &Message| {
        let Message { code, severity, kind, namespace, name, origin, message, docs: _ } = message;
        let of = if kind.is_empty() { String::new() } else { format!("{kind} {namespace}/{name} ") };
        printable(&format!("{severity} [{}] ({of}{origin}) {message}", code.id())) + "\n"
    };
    messages.iter().map(line).collect()
}

#[cfg(test)]
mod tests;
