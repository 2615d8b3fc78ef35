//! The format of a policy test. Unknown fields are errors: an expectation that is misspelt would hold always.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use policy::Verdict;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::authz::World;
use crate::authz::parties::split;
use crate::authz::question::Described;
use crate::translate::input::Input;

const API_VERSION: &str = "countersign.io/v1";
const KIND: &str = "PolicyTest";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    /// For people.
    #[serde(default, rename = "metadata")]
    _metadata: Option<Value>,
    /// Files and folders, from where the test is.
    #[serde(default)]
    files: Vec<PathBuf>,
    /// A file, from where the test is.
    mesh_config: Option<PathBuf>,
    /// Objects in place.
    #[serde(default)]
    objects: Vec<Value>,
    /// Workloads that the files do not register.
    #[serde(default)]
    workloads: Vec<Registered>,
    tests: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Registered {
    /// `NAMESPACE/NAME`.
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// `default` where none is given.
    service_account: Option<String>,
    /// Ports by name, for services whose target port is a name.
    #[serde(default)]
    ports: BTreeMap<String, u16>,
}

/// One request, and what is to become of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Case {
    name: Option<String>,
    pub(super) from: String,
    pub(super) to: String,
    #[serde(default)]
    pub(super) request: Described,
    pub(super) expect: Expect,
    /// Stage, policy, or policy and rule.
    pub(super) by: Option<String>,
    /// The verdict if no policy were a dry run any more.
    #[serde(default, deserialize_with = "verdict")]
    pub(super) if_enforced: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Allow,
    Deny,
    /// Denied without an answer: the connection is closed.
    Closed,
    /// Denied with this HTTP status.
    Status(u16),
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny => f.write_str("deny"),
            Self::Closed => f.write_str("closed"),
            Self::Status(status) => write!(f, "{status}"),
        }
    }
}

impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(word) if word == "allow" => Ok(Self::Allow),
            Value::String(word) if word == "deny" => Ok(Self::Deny),
            Value::String(word) if word == "closed" => Ok(Self::Closed),
            Value::Number(status) if status.as_u64() == Some(401) => Ok(Self::Status(401)),
            Value::Number(status) if status.as_u64() == Some(403) => Ok(Self::Status(403)),
            other => Err(serde::de::Error::custom(format!(
                "expect is allow, deny, closed, 401 or 403, not {other}"
            ))),
        }
    }
}

fn verdict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Verdict>, D::Error> {
    match Expect::deserialize(deserializer)? {
        Expect::Allow => Ok(Some(Verdict::Allow)),
        Expect::Deny => Ok(Some(Verdict::Deny)),
        _ => Err(serde::de::Error::custom("ifEnforced is allow or deny")),
    }
}

impl Case {
    pub(super) fn title(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("tests[{index}]: {} -> {}", self.from, self.to))
    }
}

/// The world that a test speaks of, and its cases.
///
/// # Errors
/// If the test or something it names cannot be read, or has an error: then what is tested is not what was written.
pub(super) fn read(path: &Path) -> Result<(World, Vec<Case>)> {
    let size = std::fs::metadata(path).context("cannot be read")?.len();
    ensure!(size <= crds::MAX_FILE as u64, "{size} bytes are too many");
    let text = std::fs::read_to_string(path).context("cannot be read")?;
    let file: File = serde_yaml::from_str(&text).context("is no policy test")?;
    let File { api_version, kind, _metadata: _, files, mesh_config, objects, workloads, tests } = file;
    if api_version != API_VERSION || kind != KIND {
        bail!("is a {kind} of {api_version}, not a {KIND} of {API_VERSION}");
    }
    ensure!(!tests.is_empty(), "has no tests");
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut input = Input::with(mesh_config.map(|file| folder.join(file)).as_deref())?;
    for file in &files {
        input.add(&folder.join(file))?;
    }
    for (index, object) in objects.iter().enumerate() {
        input.text(&serde_json::to_string(object)?, &format!("{}: objects[{index}]", path.display()));
    }
    ensure!(input.understood, "the policies have errors");
    let mut world = World::of(input);
    for Registered { name, labels, service_account, ports } in workloads {
        let (namespace, name) = split(&name)?;
        let account = service_account.as_deref().unwrap_or("default");
        world.register(namespace, name, account, labels, &ports);
    }
    Ok((world, tests))
}
