//! Tables of encoded resources that stay the same object as long as their content does, so that "nothing changed" is a
//! comparison of pointers for every session (design decision 4). Encodes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use xds::{Resource, ResourceType, Table};

/// One table per [`ResourceType`], in its order.
pub(crate) type Tables = [Arc<Table>; 5];

/// Encoded resources with their types, as the builders return them.
pub(crate) type Encoded = Vec<(ResourceType, Resource)>;

/// Keeps one copy of each distinct content.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    known: HashMap<u64, Bytes>,
    /// Size after the last sweep.
    kept: usize,
}

impl Interner {
    /// `resource`, with bytes shared with every equal one seen before.
    pub(crate) fn share(&mut self, mut resource: Resource) -> Resource {
        let known = self.known.entry(resource.hash).or_insert_with(|| resource.any.clone());
        // Two contents of one hash keep their own bytes: only memory is lost.
        if *known == resource.any {
            resource.any = known.clone();
        }
        resource
    }

    /// Every resource of `encoded`, shared.
    pub(crate) fn share_all(&mut self, encoded: Encoded) -> Encoded {
        encoded.into_iter().map(|(kind, resource)| (kind, self.share(resource))).collect()
    }

    /// Forgets contents that nobody else holds, once there may be many of them.
    pub(crate) fn sweep(&mut self) {
        if self.known.len() > 2 * self.kept + 64 {
            self.known.retain(|_, bytes| !bytes.is_unique());
            self.kept = self.known.len();
        }
    }
}

/// Sorts resources into tables and keeps those of `old` whose content is the same.
pub(crate) fn tables<'a>(
    resources: impl IntoIterator<Item = &'a (ResourceType, Resource)>,
    old: &Tables,
) -> Tables {
    let mut new: [Table; 5] = Default::default();
    for (kind, resource) in resources {
        new[*kind as usize].insert(resource.clone());
    }
    let mut old = old.iter();
    new.map(|table| {
        let old = old.next().expect("both arrays have one entry per type");
        if **old == table { old.clone() } else { Arc::new(table) }
    })
}

/// `base` with `more` added; the tables of `old` where that changes nothing, and those of `base` where nothing is added.
pub(crate) fn overlaid(base: &Tables, more: &[(ResourceType, Resource)], old: &Tables) -> Tables {
    let mut new: [Option<Table>; 5] = Default::default();
    for (kind, resource) in more {
        let index = *kind as usize;
        new[index].get_or_insert_with(|| (*base[index]).clone()).insert(resource.clone());
    }
    let mut index = 0..5;
    new.map(|table| {
        let index = index.next().expect("both arrays have one entry per type");
        match table {
            None => base[index].clone(),
            Some(table) if *old[index] == table => old[index].clone(),
            Some(table) => Arc::new(table),
        }
    })
}

/// Replaces the tables of `current` whose content differs; whether there was one.
pub(crate) fn keep_equal(current: &mut Tables, new: Tables) -> bool {
    let mut differs = false;
    for (current, new) in current.iter_mut().zip(new) {
        if !Arc::ptr_eq(current, &new) && **current != *new {
            *current = new;
            differs = true;
        }
    }
    differs
}

/// What became of tables under the same change, so that tables that were one stay one.
#[derive(Debug)]
pub(crate) struct Memo<K>(Vec<(Arc<Table>, K, Arc<Table>)>);

impl<K> Default for Memo<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Clone + PartialEq> Memo<K> {
    /// `old` after `change`, which is named by `key`.
    pub(crate) fn remember(
        &mut self,
        old: &Arc<Table>,
        key: &K,
        change: impl FnOnce(&mut Table),
    ) -> Arc<Table> {
        let known = self.0.iter().find(|(before, named, _)| Arc::ptr_eq(before, old) && named == key);
        if let Some((_, _, new)) = known {
            return new.clone();
        }
        let mut new = (**old).clone();
        change(&mut new);
        let new = if new == **old { old.clone() } else { Arc::new(new) };
        self.0.push((old.clone(), key.clone(), new.clone()));
        new
    }
}
