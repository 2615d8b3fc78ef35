//! What the watches saw in, changes out, in short.

use std::time::Duration;

use policy::ObjectName;
use serde_json::json;

use super::*;

struct Bed {
    catalog: Catalog,
    now: Instant,
    counters: Arc<Counters>,
}

fn reference(kind: Kind, name: &str) -> ObjectRef {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectRef { kind, id: ObjectName { namespace: namespace.into(), name: name.into() } }
}

fn said(change: &Change) -> String {
    match change {
        Change::Apply { object, findings, .. } => {
            let closed = findings.iter().any(|f| f.severity == crds::Severity::Error);
            format!("{} {}", if closed { "close" } else { "apply" }, object.object_ref())
        }
        Change::Delete(object) => format!("delete {object}"),
        Change::Kept { object, .. } => format!("keep {object}"),
        Change::Unreadable { origin, finding: Some(_), blocks_ready } => {
            format!("unreadable {origin}{}", if *blocks_ready { " (blocks)" } else { "" })
        }
        Change::Unreadable { origin, finding: None, .. } => format!("readable {origin}"),
        Change::Mesh(mesh) => format!("mesh {}", mesh.root_namespace),
        Change::Synced => "synced".to_owned(),
        Change::Frozen(Some(reason)) => format!("frozen: {reason}"),
        Change::Frozen(None) => "thawed".to_owned(),
        Change::Unimplemented(objects) => format!("unimplemented {} {}", objects.kind, objects.count),
    }
}

const GOOD: &str = "DENY";
/// A version with an error.
const BAD: &str = "NOPE";

impl Bed {
    fn new() -> Self {
        let counters = Arc::new(Counters::default());
        let catalog = Catalog::new("ConfigMap istio-system/istio".to_owned(), counters.clone());
        Self { catalog, now: Instant::now(), counters }
    }

    /// With a complete first list, AuthorizationPolicies defined by `d1`.
    fn started() -> Self {
        let mut bed = Self::new();
        bed.tell(Tell::Complete(Feed::Definitions));
        bed.tell(Tell::Mesh(MeshText::Absent));
        for kind in Kind::ALL {
            let definition = kind.is_policy().then(|| "d1".into());
            bed.tell(Tell::Begins(kind));
            let said = bed.tell(Tell::Listed { kind, definition });
            assert_eq!(said.contains(&"synced".to_owned()), Kind::ALL.last() == Some(&kind), "{kind}");
        }
        bed
    }

    fn tell(&mut self, tell: Tell) -> Vec<String> {
        let mut changes = Vec::new();
        self.catalog.take(tell, self.now, &mut changes);
        changes.iter().map(said).collect()
    }

    fn after(&mut self, seconds: u64) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        let mut changes = Vec::new();
        self.catalog.tick(self.now, &mut changes);
        changes.iter().map(said).collect()
    }

    fn seen_as(&mut self, name: &str, action: &str, definition: &str, ours: bool) -> Vec<String> {
        let object = reference(Kind::AuthorizationPolicy, name);
        let value = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": &*object.id.namespace, "name": &*object.id.name},
            "spec": {"action": action, "rules": [{}]},
        });
        self.value(object, &value, definition, ours)
    }

    fn value(
        &mut self,
        object: ObjectRef,
        value: &serde_json::Value,
        definition: &str,
        ours: bool,
    ) -> Vec<String> {
        self.version(object, value, definition, ours, None)
    }

    fn version(
        &mut self,
        object: ObjectRef,
        value: &serde_json::Value,
        definition: &str,
        ours: bool,
        uid: Option<&str>,
    ) -> Vec<String> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        value.to_string().hash(&mut hasher);
        self.tell(Tell::Seen(Box::new(Seen {
            object,
            digest: hasher.finish(),
            version: uid.map(|uid| Version { uid: uid.into(), generation: 1, manager: None }),
            definition: Some(definition.into()),
            ours,
            parsed: crds::parse(value),
        })))
    }

    fn seen(&mut self, name: &str, action: &str) -> Vec<String> {
        self.seen_as(name, action, "d1", true)
    }

    fn begins(&mut self) {
        assert_eq!(self.tell(Tell::Begins(Kind::AuthorizationPolicy)), [""; 0]);
    }

    fn listed(&mut self, definition: &str) -> Vec<String> {
        self.tell(Tell::Listed { kind: Kind::AuthorizationPolicy, definition: Some(definition.into()) })
    }

    fn undefined(&mut self) -> Vec<String> {
        self.tell(Tell::Undefined { kind: Kind::AuthorizationPolicy, reason: "gone".to_owned() })
    }
}

const NONE: [&str; 0] = [];

#[test]
fn synced_is_said_once_and_after_everything() {
    let mut bed = Bed::started();
    bed.begins();
    assert_eq!(bed.listed("d1"), NONE);
}

#[test]
fn last_good_versions_and_closed_values() {
    let mut bed = Bed::started();
    assert_eq!(bed.seen("n/a", BAD), ["close AuthorizationPolicy n/a"]);
    assert_eq!(bed.seen("n/a", BAD), NONE);
    assert_eq!(bed.seen("n/a", GOOD), ["apply AuthorizationPolicy n/a"]);
    assert_eq!(bed.seen("n/a", BAD), ["keep AuthorizationPolicy n/a"]);
    assert_eq!(bed.seen("n/a", GOOD), ["apply AuthorizationPolicy n/a"]);
    let object = reference(Kind::AuthorizationPolicy, "n/a");
    assert_eq!(bed.tell(Tell::Deleted(object.clone())), ["delete AuthorizationPolicy n/a"]);
    assert_eq!(bed.tell(Tell::Deleted(object)), NONE);
    // The good version went with it.
    assert_eq!(bed.seen("n/a", BAD), ["close AuthorizationPolicy n/a"]);
    let counts = bed.counters.events().filter(|(kind, ..)| *kind == Kind::AuthorizationPolicy);
    assert_eq!(counts.map(|(.., count)| count).collect::<Vec<_>>(), [2, 3, 1]);
}

/// An object of the same name that was created anew has no last good version.
#[test]
fn another_object_of_the_same_name() {
    let mut bed = Bed::started();
    let value = |action: &str| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "n", "name": "a"}, "spec": {"action": action, "rules": [{}]},
        })
    };
    for (uid, action, expect) in [
        ("1", GOOD, Some("apply")),
        ("1", GOOD, None),
        ("1", BAD, Some("keep")),
        ("2", BAD, Some("close")),
        ("2", GOOD, Some("apply")),
        ("3", GOOD, Some("apply")),
        ("3", BAD, Some("keep")),
    ] {
        let object = reference(Kind::AuthorizationPolicy, "n/a");
        let said = bed.version(object, &value(action), "d1", true, Some(uid));
        let expect: Vec<_> =
            expect.map(|what| format!("{what} AuthorizationPolicy n/a")).into_iter().collect();
        assert_eq!(said, expect, "{uid} {action}");
    }
}

#[test]
fn a_full_list_deletes_what_it_lacks_and_a_broken_one_does_not() {
    let mut bed = Bed::started();
    bed.seen("n/a", GOOD);
    bed.seen("n/b", GOOD);
    bed.begins();
    bed.seen("n/b", GOOD);
    let lost = Tell::Lost(Feed::Kind(Kind::AuthorizationPolicy), "reset".to_owned());
    assert_eq!(bed.tell(lost), NONE);
    // An end without a beginning says nothing.
    assert_eq!(bed.listed("d1"), NONE);
    bed.begins();
    bed.seen("n/b", GOOD);
    // Seen and deleted within the list.
    bed.seen("n/c", GOOD);
    let deleted = Tell::Deleted(reference(Kind::AuthorizationPolicy, "n/c"));
    assert_eq!(bed.tell(deleted), ["delete AuthorizationPolicy n/c"]);
    assert_eq!(bed.listed("d1"), ["delete AuthorizationPolicy n/a"]);
}

#[test]
fn other_revisions_are_not_there() {
    let mut bed = Bed::started();
    assert_eq!(bed.seen_as("n/a", GOOD, "d1", false), NONE);
    assert_eq!(bed.seen_as("n/a", GOOD, "d1", true), ["apply AuthorizationPolicy n/a"]);
    assert_eq!(bed.seen_as("n/a", GOOD, "d1", false), ["delete AuthorizationPolicy n/a"]);
}

#[test]
fn a_definition_that_goes_takes_nothing_along() {
    let mut bed = Bed::started();
    bed.seen("n/a", GOOD);
    bed.seen("n/b", BAD);
    let said = bed.undefined();
    assert_eq!(
        said,
        [
            "keep AuthorizationPolicy n/a",
            "keep AuthorizationPolicy n/b",
            "frozen: AuthorizationPolicy cannot be watched: gone",
        ]
    );
    assert_eq!((bed.undefined(), bed.counters.orphans.get()), (Vec::new(), 2));
    // A live watch does not say that it is back; a full list does.
    assert_eq!(bed.tell(Tell::Live(Feed::Kind(Kind::AuthorizationPolicy))), NONE);
    bed.begins();
    assert_eq!(bed.seen_as("n/a", GOOD, "d2", true), ["apply AuthorizationPolicy n/a"]);
    assert_eq!(bed.listed("d2"), ["thawed"]);
    // What did not come back stays, whatever is listed.
    bed.begins();
    assert_eq!(bed.listed("d2"), ["delete AuthorizationPolicy n/a"]);
    assert_eq!(bed.counters.orphans.get(), 1);
    assert_eq!(bed.seen_as("n/b", GOOD, "d2", true), ["apply AuthorizationPolicy n/b"]);
    assert_eq!(bed.counters.orphans.get(), 0);
    let deleted = Tell::Deleted(reference(Kind::AuthorizationPolicy, "n/b"));
    assert_eq!(bed.tell(deleted), ["delete AuthorizationPolicy n/b"]);
}

#[test]
fn a_definition_that_was_replaced_unseen_takes_nothing_along() {
    let mut bed = Bed::started();
    bed.seen("n/a", GOOD);
    bed.begins();
    assert_eq!(bed.listed("d2"), ["keep AuthorizationPolicy n/a"]);
    // The same object again is told again, for it is no orphan any more.
    assert_eq!(bed.seen_as("n/a", GOOD, "d2", true), ["apply AuthorizationPolicy n/a"]);
}

#[test]
fn workload_entries_need_no_definition() {
    let mut bed = Bed::started();
    let undefined = || Tell::Undefined { kind: Kind::WorkloadEntry, reason: "gone".to_owned() };
    assert_eq!(bed.tell(undefined()), NONE);
    let value = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"namespace": "n", "name": "vm"}, "spec": {"address": "10.0.0.1"},
    });
    let said = bed.value(reference(Kind::WorkloadEntry, "n/vm"), &value, "w1", true);
    assert_eq!(said, ["apply WorkloadEntry n/vm"]);
    assert_eq!(bed.tell(undefined()), ["keep WorkloadEntry n/vm"]);
}

/// An unreadable scope in the root namespace blocks, wherever the root namespace moves to.
#[test]
fn an_unknown_scope_blocks_in_the_root_namespace() {
    let mut bed = Bed::started();
    let value = |selector: serde_json::Value| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "root", "name": "a"},
            "spec": {"action": "DENY", "selector": selector, "rules": [{}]},
        })
    };
    let object = || reference(Kind::AuthorizationPolicy, "root/a");
    let bad = value(json!(5));
    assert_eq!(bed.value(object(), &bad, "d1", true), ["close AuthorizationPolicy root/a"]);
    let root = |name: &str| Tell::Mesh(MeshText::Text(Some(format!("rootNamespace: {name}"))));
    assert_eq!(
        bed.tell(root("root")),
        ["mesh root", "unreadable kubernetes: AuthorizationPolicy root/a (blocks)"]
    );
    assert_eq!(bed.tell(root("other")), ["mesh other", "readable kubernetes: AuthorizationPolicy root/a"]);
    bed.tell(root("root"));
    let good = value(json!({"matchLabels": {"a": "b"}}));
    assert_eq!(
        bed.value(object(), &good, "d1", true),
        ["readable kubernetes: AuthorizationPolicy root/a", "apply AuthorizationPolicy root/a"]
    );
    assert_eq!(bed.value(object(), &bad, "d1", true), ["keep AuthorizationPolicy root/a"]);
}

#[test]
fn the_mesh_configuration() {
    let origin = "ConfigMap istio-system/istio";
    let text = |text: &str| Tell::Mesh(MeshText::Text(Some(text.to_owned())));
    let mut bed = Bed::new();
    assert_eq!(bed.tell(Tell::Mesh(MeshText::Text(None))), [format!("unreadable {origin} (blocks)")]);
    assert_eq!(bed.tell(text("rootNamespace: [")), [format!("unreadable {origin} (blocks)")]);
    // Nothing of it was ever in force.
    let said = bed.tell(Tell::Mesh(MeshText::Absent));
    assert_eq!(said, ["mesh istio-system".to_owned(), format!("readable {origin}")]);
    assert_eq!(bed.tell(text("rootNamespace: a")), ["mesh a"]);
    assert_eq!(bed.tell(text("rootNamespace: [")), [format!("unreadable {origin}")]);
    assert_eq!(bed.tell(text("rootNamespace: a")), [format!("readable {origin}")]);
    assert_eq!(bed.tell(Tell::Mesh(MeshText::Absent)), [format!("unreadable {origin}")]);
    assert_eq!(bed.tell(Tell::Mesh(MeshText::Absent)), NONE);
    let said = bed.tell(text("rootNamespace: b"));
    assert_eq!(said, ["mesh b".to_owned(), format!("readable {origin}")]);
}

#[test]
fn a_lost_watch_is_told_after_a_grace() {
    let mut bed = Bed::started();
    let feed = |kind| Feed::Kind(kind);
    let lost = |kind, why: &str| Tell::Lost(Feed::Kind(kind), why.to_owned());
    assert_eq!(bed.tell(lost(Kind::Pod, "reset")), NONE);
    assert_eq!(bed.after(1), NONE);
    assert_eq!(bed.tell(Tell::Live(feed(Kind::Pod))), NONE);
    assert_eq!(bed.after(60), NONE);
    assert_eq!(bed.catalog.due(), None);

    bed.tell(lost(Kind::Pod, "reset"));
    assert_eq!(bed.catalog.due(), Some(bed.now + Duration::from_secs(2)));
    // A second failure does not prolong the grace, and its reason is the one that is told.
    bed.after(1);
    assert_eq!(bed.tell(lost(Kind::Pod, "403")), NONE);
    assert_eq!(bed.after(1), ["frozen: Pod cannot be watched: 403"]);
    // Another reason is told when this one has stood for a while.
    bed.tell(lost(Kind::Service, "403"));
    assert_eq!(bed.after(3), NONE);
    assert_eq!(bed.after(2), ["frozen: Service, Pod cannot be watched: 403"]);
    assert_eq!(bed.tell(Tell::Live(feed(Kind::Pod))), NONE);
    assert_eq!(bed.tell(Tell::Live(feed(Kind::Service))), ["thawed"]);
}

#[test]
fn a_lost_server_is_one_reason() {
    let mut bed = Bed::started();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::WorkloadEntry) {
        bed.tell(Tell::Lost(Feed::Kind(kind), "refused".to_owned()));
    }
    bed.tell(Tell::Lost(Feed::Definitions, "refused".to_owned()));
    assert_eq!(bed.after(2), ["frozen: the API server cannot be watched: refused"]);
    for kind in Kind::ALL {
        assert_eq!(bed.tell(Tell::Live(Feed::Kind(kind))), NONE, "{kind}");
    }
    assert_eq!(bed.tell(Tell::Live(Feed::Definitions)), ["thawed"]);
}
