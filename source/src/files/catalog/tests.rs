//! The pure half: files found in, changes out, in short.

use crds::Severity;

use super::*;

fn policy(name: &str, path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {{rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]}}\n---\n"
    )
}

const UNREADABLE: &str = "apiVersion: v1\nkind: Pod\n---\n";

struct Bed(Catalog);

impl Bed {
    fn new() -> Self {
        Self(Catalog::new("istio-system".into()))
    }

    fn started() -> Self {
        let mut bed = Self::new();
        bed.0.start();
        bed
    }

    fn update(&mut self, found: Vec<(&str, Found)>) -> Vec<String> {
        let found = found.into_iter().map(|(path, found)| (PathBuf::from(path), found));
        self.0.update(found).iter().map(brief).collect()
    }

    fn file(&mut self, path: &str, text: &str) -> Vec<String> {
        self.update(vec![(path, Found::Documents(crds::read(text, path)))])
    }

    #[track_caller]
    fn check(&mut self, path: &str, text: &str, expect: &[&str]) {
        assert_eq!(self.file(path, text), expect);
    }
}

fn brief(change: &Change) -> String {
    match change {
        Change::Apply { object, findings, origin, version: _ } => {
            let closed = findings.iter().any(|f| f.severity == Severity::Error);
            format!("{} {} {origin}", if closed { "close" } else { "apply" }, object.object_ref().id.name)
        }
        Change::Delete(object) => format!("delete {}", object.id.name),
        Change::Kept { object, .. } => format!("keep {}", object.id.name),
        Change::Unreadable { origin, finding, blocks_ready } => {
            let what = if finding.is_some() { "unreadable" } else { "readable" };
            format!("{what} {origin}{}", if *blocks_ready { " blocks" } else { "" })
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn only_what_is_new_is_told() {
    let mut bed = Bed::started();
    let a = policy("a", "/a");
    bed.check("1", &a, &["apply a 1:1"]);
    bed.check("1", &a, &[]);
    bed.check("1", &format!("# moved down\n{a}"), &[]);
    bed.check("1", &policy("a", "/b"), &["apply a 1:1"]);
    bed.check("1", &format!("{}{}", policy("a", "/b"), policy("b", "/b")), &["apply b 1:6"]);
    assert_eq!(bed.update(vec![("1", Found::Gone)]), ["delete a", "delete b"]);
    assert_eq!(bed.update(vec![("1", Found::Gone)]), [""; 0]);
}

#[test]
fn what_begins_is_told_before_what_ends() {
    let mut bed = Bed::started();
    bed.check("1", &policy("a", "/a"), &["apply a 1:1"]);
    bed.check("1", &policy("b", "/a"), &["apply b 1:1", "delete a"]);
    // Moved in one look: it never ends.
    let moved = Found::Documents(crds::read(&policy("b", "/a"), "2"));
    assert_eq!(bed.update(vec![("1", Found::Gone), ("2", moved)]), ["apply b 2:1"]);
}

#[test]
fn last_good_versions_live_on() {
    let mut bed = Bed::started();
    bed.check("1", &policy("a", "/a"), &["apply a 1:1"]);
    bed.check("1", &policy("a", "5"), &["keep a"]);
    bed.check("1", &policy("a", "5"), &[]);
    bed.check("1", &policy("a", "6"), &["keep a"]);
    bed.check("1", &policy("a", "/a"), &["apply a 1:1"]);
    // The file as a whole.
    let failed = || Found::Failed(Finding::error("permission denied"));
    assert_eq!(bed.update(vec![("1", failed())]), ["unreadable 1", "keep a"]);
    assert_eq!(bed.update(vec![("1", failed())]), [""; 0]);
    bed.check("1", &policy("a", "/a"), &["readable 1", "apply a 1:1"]);
    // A part of it that cannot be identified: `a` may be in there.
    bed.check("1", UNREADABLE, &["unreadable 1:1", "keep a"]);
    bed.check("1", &format!("{UNREADABLE}{}", policy("b", "/b")), &["apply b 1:4"]);
    bed.check("1", &policy("b", "/b"), &["readable 1:1", "delete a"]);
}

#[test]
fn never_good_is_closed_and_mended() {
    let mut bed = Bed::started();
    bed.check("1", &policy("a", "5"), &["close a 1:1"]);
    bed.check("1", UNREADABLE, &["unreadable 1:1", "close a 1:1"]);
    bed.check("1", &policy("a", "/a"), &["readable 1:1", "apply a 1:1"]);
    bed.check("1", &policy("a", "5"), &["keep a"]);
    // Deleted and made anew, there is no last good version any more.
    assert_eq!(bed.update(vec![("1", Found::Gone)]), ["delete a"]);
    bed.check("1", &policy("a", "5"), &["close a 1:1"]);
    // What is not policy has no closed value.
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: 5}\n";
    bed.check("2", service, &["keep s"]);
    assert_eq!(bed.update(vec![("2", Found::Gone)]), ["delete s"]);
}

#[test]
fn the_first_definition_wins() {
    let mut bed = Bed::started();
    bed.check("2", &policy("a", "/2"), &["apply a 2:1"]);
    bed.check("1", &policy("a", "/1"), &["apply a 1:1", "unreadable 2:1"]);
    bed.check("3", &policy("a", "/3"), &["unreadable 3:1"]);
    // The first breaks: what is in force stays, the others do not take over.
    bed.check("1", &policy("a", "5"), &["keep a"]);
    assert_eq!(bed.update(vec![("1", Found::Gone)]), ["apply a 2:1", "unreadable 3:1", "readable 2:1"]);
    assert_eq!(bed.update(vec![("2", Found::Gone)]), ["apply a 3:1", "readable 3:1"]);
    assert_eq!(bed.update(vec![("3", Found::Gone)]), ["delete a"]);
    // In one file.
    bed.check(
        "1",
        &format!("{}{}", policy("a", "/1"), policy("a", "/2")),
        &["apply a 1:1", "unreadable 1:6"],
    );
    bed.check("1", &policy("a", "/2"), &["apply a 1:1", "readable 1:6"]);
}

#[test]
fn both_locations_are_named() {
    let mut catalog = Catalog::new("istio-system".into());
    let found = |path: &str| (PathBuf::from(path), Found::Documents(crds::read(&policy("a", "/a"), path)));
    let changes = catalog.update([found("1"), found("2")]);
    let Some(Change::Unreadable { origin, finding: Some(finding), blocks_ready: false }) = changes.last()
    else {
        panic!("{changes:?}")
    };
    assert!(origin == "2:1" && finding.message.contains("1:1"), "{finding}");
}

#[test]
fn unreadable_at_start_blocks_until_it_is_mended() {
    let mut bed = Bed::new();
    bed.check("1", UNREADABLE, &["unreadable 1:1 blocks"]);
    bed.check("2", "apiVersion: apps/v1\nkind: Deployment\n", &["unreadable 2:1"]);
    bed.0.start();
    // Moved within the file, it is the same trouble.
    bed.check("1", &format!("\n{UNREADABLE}"), &["unreadable 1:2 blocks", "readable 1:1"]);
    bed.check("1", &policy("a", "/a"), &["readable 1:2", "apply a 1:1"]);
    bed.check("1", UNREADABLE, &["unreadable 1:1", "keep a"]);
}

#[test]
fn unknown_scope_in_the_root_namespace_blocks() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: istio-system}\nspec: {selector: 5}\n";
    let mut bed = Bed::started();
    bed.check("1", text, &["close a 1:1", "unreadable 1:1 blocks"]);
    // It was another namespace all along.
    let told: Vec<String> = bed.0.set_root_namespace(&"root".into()).iter().map(brief).collect();
    assert_eq!(told, ["readable 1:1"]);
    let told: Vec<String> = bed.0.set_root_namespace(&"istio-system".into()).iter().map(brief).collect();
    assert_eq!(told, ["unreadable 1:1 blocks"]);
    // With a good version it is that which holds.
    bed.check("1", &text.replace("5", "{matchLabels: {a: b}}"), &["apply a 1:1", "readable 1:1"]);
    bed.check("1", text, &["keep a"]);
}
