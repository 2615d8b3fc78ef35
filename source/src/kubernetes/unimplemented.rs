//! Counts the objects of Istio's kinds that have no effect here, so that they are not ignored in silence. Only their
//! metadata is ever fetched, and nothing waits for them.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use crds::Unimplemented;
use rand::Rng;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::catalog::Tell;
use super::definitions::Gate;
use super::follow::{Item, Outcome, Sink};
use super::slim::Slim;
use super::wire::{Error, Resource};
use crate::UnimplementedObjects;

/// At most so many are named.
const NAMED: usize = 5;
/// Nobody waits for these: after a failure they are not asked for again soon.
const PATIENCE: Duration = Duration::from_secs(20);
/// Changes in quick succession are told together.
const TOGETHER: Duration = Duration::from_secs(1);

/// Counts one kind.
pub(super) struct CountSink {
    kind: &'static Unimplemented,
    gate: Gate,
    revision: std::sync::Arc<str>,
    tells: mpsc::Sender<Tell>,
    /// The first full list of what matters has been told.
    synced: watch::Receiver<bool>,
    names: BTreeSet<String>,
    /// Those of the list that is under way.
    listed: Option<BTreeSet<String>>,
    told: UnimplementedObjects,
    /// When what is known may be told.
    due: Option<Instant>,
}

impl CountSink {
    pub(super) fn new(
        kind: &'static Unimplemented,
        gate: Gate,
        revision: std::sync::Arc<str>,
        tells: mpsc::Sender<Tell>,
        synced: watch::Receiver<bool>,
    ) -> Self {
        let told = UnimplementedObjects {
            group: kind.group.into(),
            kind: kind.kind.into(),
            count: 0,
            names: Vec::new(),
            error: None,
        };
        Self { kind, gate, revision, tells, synced, names: BTreeSet::new(), listed: None, told, due: None }
    }

    async fn tell(&mut self, error: Option<String>) {
        let objects = UnimplementedObjects {
            group: self.told.group.clone(),
            kind: self.told.kind.clone(),
            count: self.names.len(),
            names: self.names.iter().take(NAMED).cloned().collect(),
            error,
        };
        if self.told != objects {
            let _ = self.tells.send(Tell::Unimplemented(objects.clone())).await;
            self.told = objects;
        }
        // Only now: this may be dropped while it waits, and is then asked again.
        self.due = None;
    }

    fn ours(&self, slim: &Slim) -> bool {
        let labels = slim.value.pointer("/metadata/labels").and_then(Value::as_object);
        let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        crds::revision_matches(&labels.into_iter().flatten().filter_map(text).collect(), &self.revision)
    }
}

fn name(slim: &Slim) -> String {
    if slim.namespace.is_empty() {
        slim.name.to_string()
    } else {
        format!("{}/{}", slim.namespace, slim.name)
    }
}

impl Sink for CountSink {
    async fn resource(&mut self) -> Option<Resource> {
        self.synced.wait_for(|synced| *synced).await.ok()?;
        let version = loop {
            if let Ok(version) = self.gate.open().await? {
                break version;
            }
            // Without its definition there are none.
            self.names.clear();
            self.tell(None).await;
            self.gate.moved().await?;
        };
        Some(Resource {
            group: self.kind.group.into(),
            version,
            plural: self.kind.plural.into(),
            kind: self.kind.kind.into(),
            only: None,
            shape: None,
        })
    }

    async fn interrupted(&mut self) {
        match self.due {
            None => self.gate.changed().await,
            Some(due) => {
                tokio::select! {
                    () = self.gate.changed() => return,
                    () = tokio::time::sleep_until(due) => {}
                }
                self.tell(None).await;
                self.gate.changed().await;
            }
        }
    }

    async fn begin(&mut self) -> Outcome {
        self.listed = Some(BTreeSet::new());
        ControlFlow::Continue(())
    }

    async fn take(&mut self, items: Vec<Item>) -> Outcome {
        for item in items {
            let (there, slim) = match &item {
                Item::Upsert(slim) => (self.ours(slim), slim),
                Item::Delete(slim) => (false, slim),
            };
            let names = self.listed.as_mut().unwrap_or(&mut self.names);
            if there {
                names.insert(name(slim));
            } else {
                names.remove(&name(slim));
            }
        }
        if self.listed.is_none() {
            self.due.get_or_insert_with(|| Instant::now() + TOGETHER);
        }
        ControlFlow::Continue(())
    }

    async fn end(&mut self) -> Outcome {
        self.names = self.listed.take().unwrap_or_default();
        self.tell(None).await;
        ControlFlow::Continue(())
    }

    async fn live(&mut self) {}

    async fn lost(&mut self, error: &Error) {
        // A connection that is lost is told elsewhere; a right that is missing is not.
        if matches!(error, Error::Refused { code: 401 | 403, .. }) {
            self.tell(Some(error.to_string())).await;
        }
        let pause = PATIENCE.mul_f64(rand::rng().random_range(0.5..=1.0));
        tokio::time::sleep(pause).await;
    }
}
