//! Resources of one type by name. A table is cheap to change and to compare: its resources lie in shards, a changed table
//! shares every shard that did not change, and a shard that two tables share is not looked into. So one changed resource
//! among thousands costs the publisher one shard, and each session a look at as many pointers as there are shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::resource::Resource;

type Shard = BTreeMap<Arc<str>, Resource>;

/// Resources per shard, about.
const SHARD: usize = 8;

/// Immutable once shared. Equal content has equal form, whatever the table was made from.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// As many as [`shards`] says; which one a name is in depends on its hash.
    shards: Vec<Arc<Shard>>,
    len: usize,
}

impl Table {
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.shards.get(self.place(name))?.get(name)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    /// Sets one resource, by its name.
    pub fn insert(&mut self, resource: Resource) {
        match self.get(&resource.name) {
            Some(old) if *old == resource => return,
            Some(_) => {}
            None => self.resize(self.len + 1),
        }
        let place = self.place(&resource.name);
        Arc::make_mut(&mut self.shards[place]).insert(resource.name.clone(), resource);
    }

    /// Takes one resource out, if it is there.
    pub fn remove(&mut self, name: &str) {
        if self.contains(name) {
            let place = self.place(name);
            Arc::make_mut(&mut self.shards[place]).remove(name);
            self.resize(self.len - 1);
        }
    }

    /// Calls `differs` with every name under which `self` and `other` do not hold the same.
    pub fn compare<'a>(&'a self, other: &'a Self, mut differs: impl FnMut(&'a Arc<str>)) {
        if self.shards.len() == other.shards.len() {
            for (mine, theirs) in self.shards.iter().zip(&other.shards) {
                if !Arc::ptr_eq(mine, theirs) {
                    let changed = theirs.iter().filter(|(name, resource)| mine.get(*name) != Some(*resource));
                    changed.for_each(|(name, _)| differs(name));
                    mine.keys().filter(|name| !theirs.contains_key(*name)).for_each(&mut differs);
                }
            }
        } else {
            let changed = other.iter().filter(|resource| self.get(&resource.name) != Some(*resource));
            changed.for_each(|resource| differs(&resource.name));
            let gone = self.iter().filter(|resource| !other.contains(&resource.name));
            gone.for_each(|resource| differs(&resource.name));
        }
    }

    fn place(&self, name: &str) -> usize {
        // The number of shards is a power of two.
        twox_hash::XxHash3_64::oneshot(name.as_bytes()) as usize & self.shards.len().wrapping_sub(1)
    }

    fn resize(&mut self, len: usize) {
        self.len = len;
        if shards(len) != self.shards.len() {
            let all: Vec<Resource> = self.iter().cloned().collect();
            self.shards = vec![Arc::default(); shards(len)];
            for resource in all {
                let place = self.place(&resource.name);
                Arc::make_mut(&mut self.shards[place]).insert(resource.name.clone(), resource);
            }
        }
    }
}

/// How many shards a table of `len` resources has.
fn shards(len: usize) -> usize {
    if len == 0 { 0 } else { len.div_ceil(SHARD).next_power_of_two() }
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        let same = |(mine, theirs): (&Arc<Shard>, &Arc<Shard>)| Arc::ptr_eq(mine, theirs) || mine == theirs;
        self.len == other.len && self.shards.iter().zip(&other.shards).all(same)
    }
}

impl FromIterator<Resource> for Table {
    /// Of several resources of one name the last one counts.
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let all: Shard = resources.into_iter().map(|r| (r.name.clone(), r)).collect();
        let mut table = Self::default();
        table.resize(all.len());
        for (name, resource) in all {
            let place = table.place(&name);
            Arc::make_mut(&mut table.shards[place]).insert(name, resource);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn resource(name: u8, content: u8) -> Resource {
        Resource::new(format!("r{name}"), vec![content].into())
    }

    fn built(from: &BTreeMap<u8, u8>) -> Table {
        from.iter().map(|(name, content)| resource(*name, *content)).collect()
    }

    fn differences(old: &Table, new: &Table) -> BTreeSet<String> {
        let mut names = Vec::new();
        old.compare(new, |name| names.push(name.to_string()));
        let distinct: BTreeSet<String> = names.iter().cloned().collect();
        assert_eq!(distinct.len(), names.len(), "each name once");
        distinct
    }

    proptest! {
        /// A table that was changed equals one made anew, and a comparison finds exactly what differs.
        #[test]
        fn changed_is_as_good_as_new(
            before in proptest::collection::btree_map(any::<u8>(), 0u8..3, 0..60),
            changes in proptest::collection::vec((any::<u8>(), proptest::option::of(0u8..3)), 0..60),
        ) {
            let old = built(&before);
            let (mut after, mut table) = (before.clone(), old.clone());
            for (name, content) in changes {
                match content {
                    Some(content) => {
                        after.insert(name, content);
                        table.insert(resource(name, content));
                    }
                    None => {
                        after.remove(&name);
                        table.remove(&format!("r{name}"));
                    }
                }
            }
            prop_assert_eq!(&table, &built(&after));
            prop_assert_eq!(table.shards.len(), built(&after).shards.len());
            prop_assert_eq!(table.len(), after.len());
            prop_assert_eq!(table.iter().count(), after.len());
            for name in 0..=u8::MAX {
                let here = table.get(&format!("r{name}")).cloned();
                prop_assert_eq!(here, after.get(&name).map(|content| resource(name, *content)));
            }
            let expected: BTreeSet<String> =
                (0..=u8::MAX).filter(|n| before.get(n) != after.get(n)).map(|n| format!("r{n}")).collect();
            prop_assert_eq!(differences(&old, &table), expected);
            prop_assert_eq!(old == table, before == after);
        }
    }

    #[test]
    fn one_change_copies_one_shard() {
        let old: Table = (0..=255).map(|name| resource(name, 0)).collect();
        let mut new = old.clone();
        new.insert(resource(7, 1));
        let copied = old.shards.iter().zip(&new.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!((copied, old.shards.len()), (1, 32));
        new.insert(resource(7, 1));
        assert_eq!(differences(&old, &new), BTreeSet::from(["r7".to_owned()]));
    }
}
