//! The mesh configuration as it stands. What cannot be read never takes effect, and one that has been in force is not
//! taken back: a deleted ConfigMap would turn the root namespace, and with it mesh-wide policies, into another one.

use std::sync::Arc;

use crds::Finding;
use mesh::MeshConfig;

use crate::Change;

/// Key of the ConfigMap.
const KEY: &str = "mesh";

/// What there is.
#[derive(Debug)]
pub(in crate::kubernetes) enum MeshText {
    /// No such ConfigMap.
    Absent,
    /// A ConfigMap, and its value under the key `mesh`.
    Text(Option<String>),
    /// What became of a file, which has its own rules.
    File(Vec<Change>),
}

#[derive(Debug)]
pub(super) struct MeshConfigState {
    origin: String,
    /// The one in force.
    config: Option<MeshConfig>,
    /// It was read, so that it is not the defaults for want of any.
    given: bool,
    /// As told.
    reported: Option<Finding>,
    root_namespace: Arc<str>,
}

impl MeshConfigState {
    pub(super) fn new(origin: String) -> Self {
        let root_namespace = MeshConfig::default().root_namespace;
        Self { origin, config: None, given: false, reported: None, root_namespace }
    }

    pub(super) fn root_namespace(&self) -> &Arc<str> {
        &self.root_namespace
    }

    /// There is one in force.
    pub(super) fn known(&self) -> bool {
        self.config.is_some()
    }

    pub(super) fn take(&mut self, text: MeshText) -> Vec<Change> {
        let outcome = match text {
            MeshText::File(changes) => {
                for change in &changes {
                    if let Change::Mesh(config) = change {
                        self.accept(config);
                    }
                }
                return changes;
            }
            MeshText::Absent if !self.given => Ok(MeshConfig::default()),
            MeshText::Absent => Err(Finding::error(
                "it was deleted; the last good configuration stays in force until there is one again or this process \
                 restarts",
            )),
            MeshText::Text(None) => Err(Finding::error(format!("it has no key `{KEY}`"))),
            MeshText::Text(Some(text)) => crate::files::mesh::parse(&text).inspect(|_| self.given = true),
        };
        let mut changes = Vec::new();
        let finding = match outcome {
            Ok(config) => {
                if self.config.as_ref() != Some(&config) {
                    self.accept(&config);
                    changes.push(Change::Mesh(Box::new(config)));
                }
                None
            }
            Err(finding) => Some(finding),
        };
        if self.reported != finding {
            self.reported.clone_from(&finding);
            let blocks_ready = finding.is_some() && self.config.is_none();
            changes.push(Change::Unreadable { origin: self.origin.clone(), finding, blocks_ready });
        }
        changes
    }

    fn accept(&mut self, config: &MeshConfig) {
        self.root_namespace = config.root_namespace.clone();
        self.config = Some(config.clone());
    }
}
