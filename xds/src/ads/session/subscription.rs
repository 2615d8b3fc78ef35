//! Which resources of one type a proxy asked for (xDS protocol, "How the client specifies what resources to return").
//! Names only; what is held of them is [`super::held`]'s.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Asks for everything, where the type knows that.
const WILDCARD: &str = "*";

#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// Some request of this type came.
    pub(super) active: bool,
    pub(super) wildcard: bool,
    /// Some request named something. From then on an empty list means nothing, no longer everything.
    explicit: bool,
    /// Shared with the tables where the resource exists.
    names: BTreeSet<Arc<str>>,
}

/// What a list of names changes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Turn {
    /// Everything is asked for that was not before.
    pub(super) everything: bool,
    /// With whether it was asked for already.
    pub(super) added: Vec<(Arc<str>, bool)>,
    pub(super) dropped: Vec<Arc<str>>,
}

impl Subscription {
    pub(super) fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The first request of a type that knows the wildcard and names nothing asks for everything.
    pub(super) fn begin(&mut self, wildcard: bool, names_something: bool) -> bool {
        let first = !self.active;
        self.active = true;
        self.wildcard |= first && wildcard && !names_something;
        first
    }

    /// Delta. A name that is subscribed to already is added once more: the proxy may have forgotten it.
    pub(super) fn change(
        &mut self,
        wildcard: bool,
        add: impl Iterator<Item = Arc<str>>,
        drop: impl Iterator<Item = Arc<str>>,
    ) -> Turn {
        let mut turn = Turn::default();
        for name in add {
            self.explicit = true;
            if wildcard && *name == *WILDCARD {
                turn.everything = true;
                self.wildcard = true;
            } else {
                let known = self.covers(&name);
                self.names.insert(name.clone());
                turn.added.push((name, known));
            }
        }
        for name in drop {
            if wildcard && *name == *WILDCARD {
                self.wildcard = false;
            } else if self.names.remove(&name) {
                turn.dropped.push(name);
            }
        }
        turn
    }

    /// SotW: `names` takes the place of what was asked for before.
    pub(super) fn replace(&mut self, wildcard: bool, names: impl Iterator<Item = Arc<str>>) -> Turn {
        let mut wanted: BTreeSet<Arc<str>> = names.collect();
        let before = std::mem::take(&mut self.names);
        let had_everything = self.wildcard;
        if !wanted.is_empty() {
            self.explicit = true;
        }
        let named = wildcard && wanted.remove(WILDCARD);
        self.wildcard = wildcard && (named || !self.explicit);
        let added = wanted.difference(&before).map(|name| (name.clone(), had_everything)).collect();
        let dropped = before.difference(&wanted).cloned().collect();
        self.names = wanted;
        Turn { everything: self.wildcard && !had_everything, added, dropped }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arcs<'a>(names: &'a [&str]) -> impl Iterator<Item = Arc<str>> + use<'a> {
        names.iter().map(|name| Arc::from(*name))
    }

    type Names<'a> = &'a [&'a str];

    fn covered(subscription: &Subscription) -> (bool, Vec<&str>) {
        (subscription.wildcard, subscription.names().map(|n| &**n).collect())
    }

    /// The example of the xDS protocol's text.
    #[test]
    fn an_empty_list_means_everything_only_until_something_was_named() {
        let mut sotw = Subscription::default();
        let steps: [(Names<'_>, bool, Names<'_>); 5] = [
            (&[], true, &[]),
            (&["*", "A"], true, &["A"]),
            (&["A"], false, &["A"]),
            (&[], false, &[]),
            (&[], false, &[]),
        ];
        for (names, wildcard, left) in steps {
            sotw.begin(true, !names.is_empty());
            sotw.replace(true, arcs(names));
            assert_eq!(covered(&sotw), (wildcard, left.to_vec()), "{names:?}");
        }
        let mut delta = Subscription::default();
        let steps: [(Names<'_>, Names<'_>, bool, Names<'_>); 4] = [
            (&[], &[], true, &[]),
            (&["A"], &[], true, &["A"]),
            (&[], &["*"], false, &["A"]),
            (&[], &["A"], false, &[]),
        ];
        for (add, drop, wildcard, left) in steps {
            delta.begin(true, !add.is_empty());
            delta.change(true, arcs(add), arcs(drop));
            assert_eq!(covered(&delta), (wildcard, left.to_vec()), "+{add:?} -{drop:?}");
        }
    }

    #[test]
    fn types_without_wildcard_take_the_star_for_a_name() {
        let mut endpoints = Subscription::default();
        endpoints.begin(false, false);
        assert_eq!(covered(&endpoints), (false, vec![]));
        endpoints.change(false, arcs(&["*"]), arcs(&[]));
        assert_eq!(covered(&endpoints), (false, vec!["*"]));
    }
}
