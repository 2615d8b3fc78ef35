//! The mesh configuration file: followed like the others, but what is wrong with it never takes effect. Whatever
//! happens to the file, the last good configuration stays; before the first there is none, and nothing is ready.

use std::path::{Path, PathBuf};

use crds::{Finding, Severity};
use mesh::MeshConfig;

use super::tree::{self, Reading, Stamp};
use crate::Change;

#[derive(Debug)]
pub(crate) struct MeshFile {
    /// `None`: the defaults.
    path: Option<PathBuf>,
    /// The last good one.
    config: Option<MeshConfig>,
    stamp: Option<Stamp>,
    /// As told.
    reported: Option<Finding>,
}

impl MeshFile {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self { path, config: None, stamp: None, reported: None }
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Option<&MeshConfig> {
        self.config.as_ref()
    }

    /// Reads the file, if it is not the one that was read last.
    pub(crate) fn look(&mut self) -> Vec<Change> {
        let Some(path) = &self.path else {
            if self.config.is_some() {
                return Vec::new();
            }
            return self.accept(MeshConfig::default());
        };
        let origin = path.display().to_string();
        let outcome = match tree::read(path) {
            // The next event or round will tell.
            Reading::Unstable => return Vec::new(),
            Reading::Text(stamp, _) if self.stamp == Some(stamp) => return Vec::new(),
            Reading::Text(stamp, text) => {
                self.stamp = Some(stamp);
                // An empty file means the defaults, but far more often that somebody is about to write it.
                if self.config.is_some() && text.trim().is_empty() {
                    Err(Finding::error("the file is empty; the last good configuration stays in force"))
                } else {
                    parse(&text)
                }
            }
            Reading::Failed(_, finding) => {
                self.stamp = None;
                Err(finding)
            }
            Reading::Missing => {
                self.stamp = None;
                Err(Finding::error("the file is missing"))
            }
        };
        match outcome {
            Ok(config) => {
                let mut changes = self.accept(config);
                changes.extend(self.report(&origin, None));
                changes
            }
            Err(finding) => self.report(&origin, Some(finding)),
        }
    }

    fn accept(&mut self, config: MeshConfig) -> Vec<Change> {
        if self.config.as_ref() == Some(&config) {
            return Vec::new();
        }
        self.config = Some(config.clone());
        vec![Change::Mesh(Box::new(config))]
    }

    fn report(&mut self, origin: &str, finding: Option<Finding>) -> Vec<Change> {
        if self.reported == finding {
            return Vec::new();
        }
        self.reported = finding.clone();
        let blocks_ready = finding.is_some() && self.config.is_none();
        vec![Change::Unreadable { origin: origin.to_owned(), finding, blocks_ready }]
    }
}

/// Reads a mesh configuration.
///
/// # Errors
/// The worst finding, if it is an error.
pub(crate) fn parse(text: &str) -> Result<MeshConfig, Finding> {
    match crds::mesh_config::read(text) {
        Ok((config, warnings)) => {
            for warning in &warnings {
                tracing::warn!(%warning, "mesh configuration");
            }
            Ok(config)
        }
        Err(findings) => {
            let worst = findings.iter().position(|f| f.severity == Severity::Error).unwrap_or(0);
            Err(findings.into_iter().nth(worst).unwrap_or_else(|| Finding::error("cannot be read")))
        }
    }
}
