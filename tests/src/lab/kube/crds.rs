//! Installing and removing the CRDs.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Kube;
use crate::lab::programs::root;

/// Kinds without a schema: what is stored with them was checked by nobody. Some are kinds that we do not ship.
const PERMISSIVE: &str = include_str!("crds.yaml");

/// Istio's kinds as the lab knows them: (plural, group, version).
const SERVED: [(&str, &str, &str); 3] = [
    ("authorizationpolicies", "security.istio.io", "v1"),
    ("peerauthentications", "security.istio.io", "v1"),
    ("requestauthentications", "security.istio.io", "v1"),
];

impl Kube {
    /// Applies every CRD we ship and waits until they are served.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn install_crds(&self) -> Result<()> {
        for text in texts()? {
            self.apply(&text).await?;
        }
        self.served().await
    }

    /// Replaces them by definitions that accept anything, and adds ServiceEntry, WorkloadEntry, DestinationRule and Sidecar.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn install_permissive_crds(&self) -> Result<()> {
        self.apply(PERMISSIVE).await?;
        self.served().await
    }

    async fn served(&self) -> Result<()> {
        for (plural, group, version) in SERVED {
            super::super::until(&format!("{plural} are served"), async || {
                let path = format!("/apis/{group}/{version}/{plural}?limit=1");
                let request = http::Request::get(path).body(Vec::new())?;
                Ok(self.client.request::<Value>(request).await.is_ok().then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Deletes every CRD we ship, and with them all their objects.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn uninstall_crds(&self) -> Result<()> {
        for text in texts()? {
            self.delete(&text).await?;
        }
        Ok(())
    }
}

/// The files the chart ships.
fn texts() -> Result<Vec<String>> {
    let folder = root().join("charts/countersign-crds/files");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
        .iter()
        .map(|path| std::fs::read_to_string(path).with_context(|| path.display().to_string()))
        .collect()
}
