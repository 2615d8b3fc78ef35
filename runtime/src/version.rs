//! What this build is called.

use serde::Serialize;

/// The answer of `/version` and of `countersign version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    pub component: &'static str,
    pub version: &'static str,
    /// Revision of the source, `unknown` if the build was not told (`COUNTERSIGN_REVISION` at compile time).
    pub revision: &'static str,
}

impl Version {
    pub const fn of(component: &'static str) -> Self {
        let revision = match option_env!("COUNTERSIGN_REVISION") {
            Some(revision) => revision,
            None => "unknown",
        };
        Self { component, version: env!("CARGO_PKG_VERSION"), revision }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({})", self.component, self.version, self.revision)
    }
}
