//! All that this replica says, for any number of readers who want to know what changed since they last looked. One
//! writer, the owner of the state; readers take the lock for as long as it takes to copy pointers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::rows::{Delta, Key, Row};

/// So many removals are remembered; a reader who missed more is told everything anew.
const MAX_REMOVALS: usize = 4096;

/// Cheap to clone; clones are the same book.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    pages: Arc<Mutex<Pages>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Pages {
    ready: bool,
    /// The latest change; 0: none yet.
    at: u64,
    /// With when it changed last; `None`: removed.
    rows: BTreeMap<Key, (u64, Option<Arc<Row>>)>,
    /// What changed last when.
    order: BTreeMap<u64, Key>,
    removed: usize,
    /// Removals up to here are forgotten.
    forgotten: u64,
}

/// How far one reader has read.
#[derive(Debug)]
pub(crate) struct Reader {
    book: Book,
    changed: watch::Receiver<u64>,
    /// `None`: nothing yet.
    read: Option<u64>,
}

impl Default for Book {
    fn default() -> Self {
        Self { pages: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what is new of this; equal rows are nothing new. Readers see all of it or nothing.
    pub(crate) fn write(
        &self,
        ready: bool,
        set: impl IntoIterator<Item = Row>,
        gone: impl IntoIterator<Item = Key>,
    ) {
        let mut pages = self.pages();
        let before = pages.at;
        if pages.ready != ready {
            pages.ready = ready;
            pages.at += 1;
        }
        gone.into_iter().for_each(|key| pages.remove(key));
        set.into_iter().for_each(|row| pages.set(row));
        let at = pages.at;
        drop(pages);
        if at != before {
            self.changed.send_replace(at);
        }
    }

    /// The rows as they are.
    pub(crate) fn all(&self) -> Vec<Arc<Row>> {
        self.pages().present().collect()
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader { book: self.clone(), changed: self.changed.subscribe(), read: None }
    }
}

impl Pages {
    fn present(&self) -> impl Iterator<Item = Arc<Row>> + '_ {
        self.rows.values().filter_map(|(_, row)| row.clone())
    }

    fn set(&mut self, row: Row) {
        let key = row.key();
        if self.rows.get(&key).is_none_or(|(_, known)| known.as_deref() != Some(&row)) {
            self.put(key, Some(Arc::new(row)));
        }
    }

    fn remove(&mut self, key: Key) {
        if self.rows.get(&key).is_some_and(|(_, known)| known.is_some()) {
            self.put(key, None);
        }
        if self.removed > 2 * MAX_REMOVALS {
            self.forget();
        }
    }

    fn put(&mut self, key: Key, row: Option<Arc<Row>>) {
        self.at += 1;
        self.order.insert(self.at, key.clone());
        self.removed += usize::from(row.is_none());
        if let Some((at, before)) = self.rows.insert(key, (self.at, row)) {
            self.order.remove(&at);
            self.removed -= usize::from(before.is_none());
        }
    }

    /// Forgets the older half of what was removed.
    fn forget(&mut self) {
        let mut removed: Vec<(u64, Key)> = self
            .rows
            .iter()
            .filter(|(_, (_, row))| row.is_none())
            .map(|(key, (at, _))| (*at, key.clone()))
            .collect();
        removed.sort_unstable();
        removed.truncate(MAX_REMOVALS);
        for (at, key) in removed {
            self.order.remove(&at);
            self.rows.remove(&key);
            self.removed -= 1;
            self.forgotten = at;
        }
    }

    fn since(&self, read: Option<u64>) -> Delta {
        let Some(read) = read.filter(|read| *read >= self.forgotten) else {
            return Delta { reset: true, ready: self.ready, set: self.present().collect(), gone: Vec::new() };
        };
        let mut delta = Delta { ready: self.ready, ..Delta::default() };
        for key in self.order.range(read + 1..).map(|(_, key)| key) {
            match self.rows.get(key) {
                Some((_, Some(row))) => delta.set.push(row.clone()),
                Some((_, None)) | None => delta.gone.push(key.clone()),
            }
        }
        delta
    }
}

impl Reader {
    /// Waits until there is something to read; `false` if there never will be again.
    pub(crate) async fn changed(&mut self) -> bool {
        if self.read.is_none() {
            return true;
        }
        self.changed.changed().await.is_ok()
    }

    /// What is new. The first time: everything.
    pub(crate) fn read(&mut self) -> Delta {
        self.changed.mark_unchanged();
        let pages = self.book.pages();
        let delta = pages.since(self.read);
        self.read = Some(pages.at);
        delta
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use policy::ObjectName;
    use proptest::prelude::*;

    use super::super::rows::ProxyRow;
    use super::*;

    fn row(id: u64, behind: u64) -> Row {
        Row::Proxy(ProxyRow {
            id,
            workload: ObjectName::new("a", "x"),
            pod_uid: None,
            connected: UNIX_EPOCH,
            behind: Some(behind),
            draining: Vec::new(),
            concerned: 0,
            refusals: Vec::new(),
        })
    }

    fn follow(known: &mut BTreeMap<Key, Arc<Row>>, delta: Delta) {
        if delta.reset {
            known.clear();
        }
        delta.gone.iter().for_each(|key| drop(known.remove(key)));
        delta.set.into_iter().for_each(|row| drop(known.insert(row.key(), row)));
    }

    proptest! {
        /// A reader who looks now and then knows what is there.
        #[test]
        fn readers_follow(steps in proptest::collection::vec((0u64..6, 0u64..3, any::<bool>(), any::<bool>()), 0..60)) {
            let book = Book::default();
            let mut reader = book.reader();
            let mut known = BTreeMap::new();
            for (id, behind, remove, look) in steps {
                if remove {
                    book.write(true, [], [Key::Proxy(id)]);
                } else {
                    book.write(true, [row(id, behind)], []);
                }
                if look {
                    follow(&mut known, reader.read());
                    prop_assert_eq!(known.values().cloned().collect::<Vec<_>>(), book.all());
                }
            }
            follow(&mut known, reader.read());
            prop_assert_eq!(known.values().cloned().collect::<Vec<_>>(), book.all());
            prop_assert_eq!(reader.read(), Delta { ready: reader.book.pages().ready, ..Delta::default() });
        }
    }

    #[test]
    fn equal_rows_wake_nobody_and_who_missed_much_is_told_all() {
        let book = Book::default();
        let mut reader = book.reader();
        book.write(true, [row(1, 1)], []);
        assert!(reader.read().reset);
        book.write(true, [row(1, 1)], [Key::Proxy(9)]);
        assert!(!reader.changed.has_changed().unwrap());
        for id in 10..10 + 3 * MAX_REMOVALS as u64 {
            book.write(true, [row(id, 1)], []);
            book.write(true, [], [Key::Proxy(id)]);
        }
        assert!(reader.changed.has_changed().unwrap());
        let delta = reader.read();
        assert!(delta.reset && delta.set.len() == 1 && delta.gone.is_empty(), "{delta:?}");
    }
}
