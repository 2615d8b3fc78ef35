//! Follows the objects of one kind and reads them. A deletion of an object whose kind is defined by a
//! CustomResourceDefinition counts only if the API server says, when asked afterwards, that this definition is there and
//! stays: whoever uninstalls a definition has its objects deleted first, and means none of them.

use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::sync::Arc;

use crds::{Kind, ObjectRef};
use policy::ObjectName;
use serde_json::Value;
use tokio::sync::mpsc;

use super::catalog::{Feed, Seen, Tell};
use super::definitions::Gate;
use super::follow::{Item, Outcome, Sink, Stop};
use super::slim::{self, Shape, Slim};
use super::wire::{Error, Resource};

/// The name of a kind's resource in API paths.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::ServiceAccount => "serviceaccounts",
        Kind::Service => "services",
        Kind::Pod => "pods",
        Kind::WorkloadEntry => "workloadentries",
        Kind::Sidecar => "sidecars",
        Kind::EndpointSlice => "endpointslices",
        Kind::DestinationRule => "destinationrules",
        Kind::PeerAuthentication => "peerauthentications",
        Kind::RequestAuthentication => "requestauthentications",
        Kind::AuthorizationPolicy => "authorizationpolicies",
        Kind::Telemetry => "telemetries",
    }
}

/// Whether the kind is defined by a CustomResourceDefinition.
pub(super) fn defined(kind: Kind) -> bool {
    kind.group().ends_with("istio.io")
}

fn shape(kind: Kind) -> &'static Shape {
    match kind {
        Kind::Namespace | Kind::ServiceAccount => &slim::METADATA,
        Kind::Pod => &slim::POD,
        Kind::Service => &slim::SERVICE,
        Kind::EndpointSlice | Kind::WorkloadEntry | Kind::Sidecar | Kind::Telemetry => &slim::SPEC,
        Kind::DestinationRule
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::AuthorizationPolicy => &slim::POLICY,
    }
}

/// See the module's documentation.
pub(super) struct ObjectSink {
    pub(super) kind: Kind,
    /// For kinds that are [`defined`].
    pub(super) gate: Option<Gate>,
    pub(super) revision: Arc<str>,
    pub(super) tells: mpsc::Sender<Tell>,
    /// Digests are compared with those of this process only, and nobody outside can make two that are equal.
    pub(super) digest: RandomState,
}

impl ObjectSink {
    async fn tell(&self, tell: Tell) {
        // Without a receiver everything is being dropped.
        let _ = self.tells.send(tell).await;
    }

    /// Whether deletions count; if not, why.
    async fn deletions_count(&self) -> Result<Result<(), String>, Error> {
        match &self.gate {
            Some(gate) => gate.check().await,
            None => Ok(Ok(())),
        }
    }

    /// Nobody knows why objects are gone.
    async fn undefined(&self, reason: String) -> Outcome {
        self.tell(Tell::Undefined { kind: self.kind, reason }).await;
        ControlFlow::Break(Stop::Changed)
    }

    fn read(&self, slim: Slim) -> Seen {
        let Slim { value, namespace, name, version, resource_version: _ } = slim;
        let definition = self.gate.as_ref().and_then(Gate::uid);
        // Only Istio's own kinds have a revision.
        let ours = !defined(self.kind) || {
            let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
            let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
            let labels = labels.into_iter().flatten().filter_map(text).collect();
            crds::revision_matches(&labels, &self.revision)
        };
        Seen {
            object: self.reference(namespace, name),
            digest: self.digest.hash_one(value.to_string()),
            version,
            definition,
            ours,
            parsed: crds::parse(&value),
        }
    }

    fn reference(&self, namespace: Arc<str>, name: Arc<str>) -> ObjectRef {
        ObjectRef { kind: self.kind, id: ObjectName { namespace, name } }
    }
}

impl Sink for ObjectSink {
    async fn resource(&mut self) -> Option<Resource> {
        let kind = self.kind;
        let mut version: Arc<str> = "v1".into();
        if let Some(gate) = &mut self.gate {
            loop {
                match gate.open().await? {
                    Ok(open) => break version = open,
                    Err(reason) => drop(self.tells.send(Tell::Undefined { kind, reason }).await),
                }
                gate.moved().await?;
            }
        }
        Some(Resource {
            group: kind.group().into(),
            version,
            plural: plural(kind).into(),
            kind: kind.as_str().into(),
            only: None,
            shape: Some(shape(kind)),
        })
    }

    async fn interrupted(&mut self) {
        match &mut self.gate {
            Some(gate) => gate.changed().await,
            None => std::future::pending().await,
        }
    }

    async fn begin(&mut self) -> Outcome {
        self.tell(Tell::Begins(self.kind)).await;
        ControlFlow::Continue(())
    }

    async fn take(&mut self, items: Vec<Item>) -> Outcome {
        // One question answers for all deletions that were seen before it.
        let deletes = items.iter().any(|item| matches!(item, Item::Delete(_)));
        let verdict = if deletes { self.deletions_count().await } else { Ok(Ok(())) };
        let verdict = match verdict {
            Ok(verdict) => verdict,
            // It all comes again from the same position.
            Err(error) => return ControlFlow::Break(Stop::Failed(error)),
        };
        for item in items {
            match item {
                Item::Upsert(slim) => self.tell(Tell::Seen(Box::new(self.read(slim)))).await,
                Item::Delete(slim) if verdict.is_ok() => {
                    self.tell(Tell::Deleted(self.reference(slim.namespace, slim.name))).await;
                }
                Item::Delete(_) => {}
            }
        }
        match verdict {
            Ok(()) => ControlFlow::Continue(()),
            Err(reason) => self.undefined(reason).await,
        }
    }

    async fn end(&mut self) -> Outcome {
        // That they are not listed is as good as their deletion.
        match self.deletions_count().await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return self.undefined(reason).await,
            Err(error) => return ControlFlow::Break(Stop::Failed(error)),
        }
        let definition = self.gate.as_ref().and_then(Gate::uid);
        self.tell(Tell::Listed { kind: self.kind, definition }).await;
        ControlFlow::Continue(())
    }

    async fn live(&mut self) {
        self.tell(Tell::Live(Feed::Kind(self.kind))).await;
    }

    async fn lost(&mut self, error: &Error) {
        self.tell(Tell::Lost(Feed::Kind(self.kind), error.to_string())).await;
    }
}

#[cfg(test)]
mod tests;
