//! What is enforced where: what each proxy has in force of what was published to it, told to whoever sums it up. Decides
//! nothing about policy, and nothing waits for it.
//!
//! ```text
//! sessions ─► journal ─► progress ─► book ─► watch (gRPC, to the other replicas)
//!                                      └───────► leader ◄─ follow (gRPC, from them)
//! store ───────────────► facts ────────────────►   └─► evaluate ─► conditions, events
//! ```

mod aggregate;
mod book;
mod evaluate;
mod facts;
mod follow;
mod journal;
mod leader;
mod progress;
mod rows;
mod schedule;
mod service;

use std::collections::BTreeSet;
use std::sync::Arc;

use crds::ObjectRef;
use tokio::sync::watch;

use crate::publish::Publisher;
use crate::status::Objects;
use crate::store::Edit;

pub use evaluate::Verdict;
pub use follow::{Dialer, Failed};
pub use leader::{Cluster, lead};
pub use service::Service;

pub(crate) use book::Book;
pub(crate) use evaluate::{Seen, Target, evaluate};
pub(crate) use facts::{Fact, conditions_of_others};
pub(crate) use journal::{Journal, Nack};
pub(crate) use progress::Progress;
pub(crate) use rows::{Key, MAX_COMMITS, PolicyRow, ProxyRow, Refusal, Row};

pub(crate) use facts::All;
use facts::Facts;

/// The receipts' part of the state.
#[derive(Debug)]
pub(crate) struct Receipts {
    pub(crate) book: Book,
    facts: Facts,
    /// Policies whose published content the next commit changes.
    edited: BTreeSet<ObjectRef>,
}

impl Receipts {
    pub(crate) fn new() -> Self {
        Self { book: Book::default(), facts: Facts::new(), edited: BTreeSet::new() }
    }

    pub(crate) fn facts(&self) -> watch::Receiver<Arc<All>> {
        self.facts.subscribe()
    }

    pub(crate) fn all_facts(&self) -> Arc<All> {
        self.facts.all()
    }

    /// A change spoke of `object`, with this effect on the store.
    pub(crate) fn touched(&mut self, object: &ObjectRef, edit: &Edit) {
        self.facts.touch(object);
        if facts::changes_policy(edit) {
            self.edited.insert(object.clone());
        }
    }

    /// Everything up to `publisher.generation` is published; `proxies` is what is new of them. Before the first list is
    /// complete nothing is (`committed` is false).
    pub(crate) fn publish(
        &mut self,
        committed: bool,
        ready: bool,
        objects: &mut Objects,
        publisher: &Publisher,
        proxies: Vec<ProxyRow>,
    ) {
        if committed {
            for object in std::mem::take(&mut self.edited) {
                self.facts.touch(&object);
                objects.committed(&object, publisher.generation);
            }
        }
        let stale = self.facts.refresh(&objects.known, &publisher.store);
        let (mut set, mut gone) = (Vec::new(), Vec::new());
        for object in stale {
            match objects.known.get(&object) {
                Some(known) => set.push(Row::Policy(PolicyRow {
                    object,
                    version: known.version.clone(),
                    commits: known.commits.clone(),
                })),
                None => gone.push(Key::Policy(object)),
            }
        }
        set.extend(proxies.into_iter().map(Row::Proxy));
        self.book.write(ready, set, gone);
    }
}

#[cfg(test)]
mod tests;
