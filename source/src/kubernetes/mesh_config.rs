//! Follows the mesh configuration: a ConfigMap, which may appear later, or a file. What it means is the catalog's.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;

use super::catalog::{Feed, MeshText, Tell};
use super::follow::{Item, Outcome, Sink};
use super::slim::{self, Slim};
use super::wire::{Error, Resource};
use crate::files::mesh::MeshFile;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Follows one ConfigMap.
#[derive(Debug)]
pub(super) struct ConfigMapSink {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) tells: mpsc::Sender<Tell>,
    /// The list that is under way holds it.
    pub(super) listed: bool,
}

impl ConfigMapSink {
    async fn tell(&self, tell: Tell) {
        let _ = self.tells.send(tell).await;
    }
}

fn text(slim: &Slim) -> MeshText {
    MeshText::Text(slim.value.pointer("/data/mesh").and_then(Value::as_str).map(str::to_owned))
}

impl Sink for ConfigMapSink {
    async fn resource(&mut self) -> Option<Resource> {
        Some(Resource {
            group: "".into(),
            version: "v1".into(),
            plural: "configmaps".into(),
            kind: "ConfigMap".into(),
            only: Some((self.namespace.clone(), self.name.clone())),
            shape: Some(&slim::CONFIG_MAP),
        })
    }

    async fn interrupted(&mut self) {
        std::future::pending::<()>().await;
    }

    async fn begin(&mut self) -> Outcome {
        self.listed = false;
        ControlFlow::Continue(())
    }

    async fn take(&mut self, items: Vec<Item>) -> Outcome {
        for item in items {
            let found = match &item {
                Item::Upsert(slim) if slim.name == self.name => text(slim),
                Item::Delete(slim) if slim.name == self.name => MeshText::Absent,
                Item::Upsert(_) | Item::Delete(_) => continue,
            };
            self.listed = matches!(found, MeshText::Text(_));
            self.tell(Tell::Mesh(found)).await;
        }
        ControlFlow::Continue(())
    }

    async fn end(&mut self) -> Outcome {
        if !self.listed {
            self.tell(Tell::Mesh(MeshText::Absent)).await;
        }
        ControlFlow::Continue(())
    }

    async fn live(&mut self) {
        self.tell(Tell::Live(Feed::Mesh)).await;
    }

    async fn lost(&mut self, error: &Error) {
        self.tell(Tell::Lost(Feed::Mesh, error.to_string())).await;
    }
}

/// Follows a file, as standalone does.
pub(super) async fn follow_file(path: PathBuf, tells: mpsc::Sender<Tell>) {
    let mut file = MeshFile::new(Some(path));
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let changes = file.look();
            (file, changes)
        });
        // It ends with the runtime only.
        let Ok((back, changes)) = looked.await else { return };
        file = back;
        if !changes.is_empty() && tells.send(Tell::Mesh(MeshText::File(changes))).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
