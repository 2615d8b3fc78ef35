//! Which CustomResourceDefinitions there are: those of the kinds that matter here, followed. Only what is needed to
//! watch their objects is kept; schemas never are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::StreamExt;
use kube::Client;
use tokio::sync::{mpsc, watch};

use super::catalog::{Feed, Tell};
use super::follow::{Item, Outcome, Sink, Stop};
use super::wire::{self, Definition, Error, Resource};

/// Definitions fetched at the same time.
const AT_ONCE: usize = 4;

/// What is known of the definitions.
#[derive(Clone, Debug, Default)]
pub(super) struct Definitions {
    /// The first list is complete, so that one that is not here does not exist.
    complete: bool,
    known: BTreeMap<Arc<str>, Arc<Definition>>,
}

/// Where one definition stands.
#[derive(Debug, PartialEq)]
pub(super) enum Standing {
    /// Nobody knows yet.
    Unknown,
    /// Its objects can be watched, in that version.
    Usable { uid: Arc<str>, version: Arc<str> },
    /// They cannot: why.
    Unusable(String),
}

impl Definitions {
    /// One usable definition.
    #[cfg(test)]
    pub(super) fn of(name: &str, definition: Definition) -> Self {
        Self { complete: true, known: [(name.into(), Arc::new(definition))].into() }
    }

    /// `preferred`: versions, the best first; any other that is served comes last.
    pub(super) fn standing(&self, name: &str, preferred: &[&str]) -> Standing {
        let Some(definition) = self.known.get(name) else {
            return match self.complete {
                true => Standing::Unusable(format!("the definition {name} is not installed")),
                false => Standing::Unknown,
            };
        };
        if definition.terminating() {
            return Standing::Unusable(format!("the definition {name} is being uninstalled"));
        }
        if !definition.established() {
            return Standing::Unusable(format!("the definition {name} is not established"));
        }
        let served: Vec<&Arc<str>> = definition.served().collect();
        let best = preferred.iter().find_map(|want| served.iter().find(|version| ****version == **want));
        match best.or(served.first()) {
            Some(version) => Standing::Usable { uid: definition.uid().clone(), version: (*version).clone() },
            None => Standing::Unusable(format!("the definition {name} serves no version")),
        }
    }
}

/// The definition that one kind depends on.
pub(super) struct Gate {
    name: String,
    preferred: &'static [&'static str],
    definitions: watch::Receiver<Definitions>,
    client: Client,
    /// The one under which objects are being followed.
    open: Option<(Arc<str>, Arc<str>)>,
}

impl Gate {
    pub(super) fn new(
        name: String,
        preferred: &'static [&'static str],
        definitions: watch::Receiver<Definitions>,
        client: Client,
    ) -> Self {
        Self { name, preferred, definitions, client, open: None }
    }

    /// The version in which its objects can be watched, or why they cannot; waits while nobody knows. `None` at the end of
    /// all.
    pub(super) async fn open(&mut self) -> Option<Result<Arc<str>, String>> {
        loop {
            match self.definitions.borrow_and_update().standing(&self.name, self.preferred) {
                Standing::Usable { uid, version } => {
                    self.open = Some((uid, version.clone()));
                    return Some(Ok(version));
                }
                Standing::Unusable(reason) => return Some(Err(reason)),
                Standing::Unknown => {}
            }
            self.moved().await?;
        }
    }

    /// Waits until some definition has changed since [`open`](Self::open) looked. `None` at the end of all.
    pub(super) async fn moved(&mut self) -> Option<()> {
        self.definitions.changed().await.ok()
    }

    /// Ends when it is not the definition any more under which it was opened.
    pub(super) async fn changed(&mut self) {
        loop {
            let standing = self.definitions.borrow_and_update().standing(&self.name, self.preferred);
            match (standing, &self.open) {
                (Standing::Usable { uid, version }, Some(open)) if (&uid, &version) == (&open.0, &open.1) => {
                }
                _ => return,
            }
            if self.definitions.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The UID of the definition under which objects are being followed.
    pub(super) fn uid(&self) -> Option<Arc<str>> {
        self.open.as_ref().map(|(uid, _)| uid.clone())
    }

    /// Asks the API server whether the definition is still the one under which objects are being followed, and stays.
    /// Otherwise why not: then nobody knows why an object is gone.
    ///
    /// # Errors
    /// If the API server does not say.
    pub(super) async fn check(&self) -> Result<Result<(), String>, Error> {
        let name = &self.name;
        let Some((uid, _)) = &self.open else { return Ok(Err(format!("the definition {name} is unknown"))) };
        Ok(match wire::definition_metadata(&self.client, name).await? {
            None => Err(format!("the definition {name} is not installed")),
            Some(now) if now.terminating() => Err(format!("the definition {name} is being uninstalled")),
            Some(now) if now.uid() != uid => Err(format!("the definition {name} was installed anew")),
            Some(_) => Ok(()),
        })
    }
}

/// Follows the definitions that matter.
pub(super) struct DefinitionSink {
    pub(super) client: Client,
    /// By name; `true` for those that something waits for, which come first.
    pub(super) wanted: BTreeMap<String, bool>,
    pub(super) definitions: watch::Sender<Definitions>,
    pub(super) tells: mpsc::Sender<Tell>,
    /// Those of the list that is under way.
    pub(super) listed: BTreeSet<Arc<str>>,
}

impl DefinitionSink {
    /// Fetches these and publishes what has become of them.
    async fn fetch(&self, names: BTreeSet<Arc<str>>) -> Result<(), Error> {
        let fetch = async |name: Arc<str>| {
            let definition = wire::definition(&self.client, &name).await?;
            Ok::<_, Error>((name, definition))
        };
        let (first, others): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| self.wanted.get(&**name) == Some(&true));
        let mut fetched =
            futures::stream::iter(first.into_iter().chain(others)).map(fetch).buffer_unordered(AT_ONCE);
        while let Some(outcome) = fetched.next().await {
            let (name, definition) = outcome?;
            self.set(name, definition);
        }
        Ok(())
    }

    fn set(&self, name: Arc<str>, definition: Option<Definition>) {
        self.definitions.send_if_modified(|all| match definition {
            Some(new) if all.known.get(&name).is_some_and(|old| **old == new) => false,
            Some(new) => {
                all.known.insert(name, Arc::new(new));
                true
            }
            None => all.known.remove(&name).is_some(),
        });
    }
}

impl Sink for DefinitionSink {
    async fn resource(&mut self) -> Option<Resource> {
        Some(Resource {
            group: "apiextensions.k8s.io".into(),
            version: "v1".into(),
            plural: "customresourcedefinitions".into(),
            kind: "CustomResourceDefinition".into(),
            only: None,
            shape: None,
        })
    }

    async fn interrupted(&mut self) {
        std::future::pending::<()>().await;
    }

    async fn begin(&mut self) -> Outcome {
        self.listed.clear();
        ControlFlow::Continue(())
    }

    async fn take(&mut self, items: Vec<Item>) -> Outcome {
        let mut fetch = BTreeSet::new();
        for item in items {
            match item {
                Item::Upsert(slim) if self.wanted.contains_key(&*slim.name) => {
                    self.listed.insert(slim.name.clone());
                    fetch.insert(slim.name);
                }
                Item::Delete(slim) if self.wanted.contains_key(&*slim.name) => {
                    self.listed.remove(&slim.name);
                    fetch.remove(&slim.name);
                    self.set(slim.name, None);
                }
                Item::Upsert(_) | Item::Delete(_) => {}
            }
        }
        match self.fetch(fetch).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Stop::Failed(error)),
        }
    }

    async fn end(&mut self) -> Outcome {
        let listed = std::mem::take(&mut self.listed);
        self.definitions.send_modify(|all| {
            all.known.retain(|name, _| listed.contains(name));
            all.complete = true;
        });
        let _ = self.tells.send(Tell::Complete(Feed::Definitions)).await;
        ControlFlow::Continue(())
    }

    async fn live(&mut self) {
        let _ = self.tells.send(Tell::Live(Feed::Definitions)).await;
    }

    async fn lost(&mut self, error: &Error) {
        let _ = self.tells.send(Tell::Lost(Feed::Definitions, error.to_string())).await;
    }
}

#[cfg(test)]
mod tests;
