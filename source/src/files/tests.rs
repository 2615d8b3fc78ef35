//! Real directories, real notifications. Every wait is for something on the channel.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn allow(name: &str, path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules:\n  - to:\n    - operation:\n        paths: [\"{path}\"]\n"
    )
}

struct Bed {
    /// Holds the watched directory `d` and, beside it, whatever a test needs.
    temp: TempDir,
    dir: PathBuf,
    changes: mpsc::Receiver<Change>,
    task: JoinHandle<()>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bed {
    /// Starts over `files`, and takes the first list, which is returned.
    async fn start(files: &[(&str, &str)]) -> (Self, Vec<String>) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("d");
        fs::create_dir(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        let mut bed = Self::watch(temp, None);
        let first = bed.until("synced").await;
        (bed, first)
    }

    fn watch(temp: TempDir, mesh_config: Option<PathBuf>) -> Self {
        let dir = temp.path().join("d");
        let (sender, changes) = mpsc::channel(64);
        let task = tokio::spawn(watch(dir.clone(), mesh_config, sender));
        Self { temp, dir, changes, task }
    }

    async fn next(&mut self) -> String {
        let change =
            timeout(LIMIT, self.changes.recv()).await.expect("a change in time").expect("the watch goes on");
        self.describe(&change)
    }

    /// Everything up to and including `last`.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|l| l != last) {
            seen.push(self.next().await);
        }
        seen
    }

    /// Writes beside and renames over, as a careful editor does.
    fn replace(&self, name: &str, text: &str) {
        let temp = self.dir.join(".tmp");
        fs::write(&temp, text).unwrap();
        fs::rename(temp, self.dir.join(name)).unwrap();
    }

    /// Changes an object of its own and waits for it: what was heard before has been dealt with by then.
    async fn barrier(&mut self, number: usize) -> Vec<String> {
        let name = format!("barrier-{number}");
        self.replace(&format!("zz-{name}.yaml"), &allow(&name, "/"));
        let mut seen = self.until(&format!("apply AuthorizationPolicy default/{name}")).await;
        seen.pop();
        seen
    }

    fn describe(&self, change: &Change) -> String {
        let short = |origin: &str| {
            let dir = format!("{}/", self.dir.display());
            origin.strip_prefix(&dir).unwrap_or(origin).to_owned()
        };
        match change {
            Change::Apply { object, findings, .. } => {
                let closed = if findings.iter().any(|f| f.severity == crds::Severity::Error) {
                    "close"
                } else {
                    "apply"
                };
                format!("{closed} {}", object.object_ref())
            }
            Change::Delete(object) => format!("delete {object}"),
            Change::Kept { object, .. } => format!("keep {object}"),
            Change::Unreadable { origin, finding: Some(_), blocks_ready } => {
                format!("unreadable {}{}", short(origin), if *blocks_ready { " (blocks)" } else { "" })
            }
            Change::Unreadable { origin, finding: None, .. } => format!("readable {}", short(origin)),
            Change::Mesh(mesh) => format!("mesh {}", mesh.trust_domain),
            Change::Synced => "synced".into(),
            Change::Frozen(Some(_)) => "frozen".into(),
            Change::Frozen(None) => "thawed".into(),
            Change::Unimplemented(objects) => panic!("{objects:?}: files have none"),
        }
    }
}

#[tokio::test]
async fn first_list_then_changes() {
    let (mut bed, first) =
        Bed::start(&[("a.yaml", &allow("a", "/a")), ("notes.txt", "x"), (".b.yaml", "x: [")]).await;
    assert_eq!(first, ["mesh cluster.local", "apply AuthorizationPolicy default/a", "synced"]);
    bed.replace("a.yaml", &allow("a", "/b"));
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
    fs::write(bed.dir.join("b.yml"), allow("b", "/b")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/b");
    fs::create_dir_all(bed.dir.join("x/y")).unwrap();
    fs::write(bed.dir.join("x/y/c.yaml"), allow("c", "/c")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/c");
    fs::write(bed.dir.join("x/y/c.yaml"), allow("c", "/d")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/c");
    fs::remove_file(bed.dir.join("a.yaml")).unwrap();
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/a");
    fs::remove_dir_all(bed.dir.join("x")).unwrap();
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/c");
}

#[tokio::test]
async fn equal_content_sends_nothing() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a"))]).await;
    bed.replace("a.yaml", &allow("a", "/a"));
    bed.replace("a.yaml", &format!("# a comment\n---\n{}", allow("a", "/a")));
    bed.replace(
        "a.yaml",
        &allow("a", "/a").replace("{name: a}", "{name: a, labels: {x: y}, annotations: {z: w}}"),
    );
    assert_eq!(bed.barrier(1).await, [""; 0]);
}

#[tokio::test]
async fn a_moved_object_is_never_gone() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a"))]).await;
    fs::rename(bed.dir.join("a.yaml"), bed.dir.join("b.yaml")).unwrap();
    // Until it is sure that the old file is gone, there are two.
    let seen = bed.until("readable b.yaml:1").await;
    assert_eq!(seen, ["unreadable b.yaml:1", "apply AuthorizationPolicy default/a", "readable b.yaml:1"]);
    fs::remove_file(bed.dir.join("b.yaml")).unwrap();
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/a");
}

#[tokio::test]
async fn broken_then_fixed() {
    let both = format!("{}---\n{}", allow("a", "/a"), allow("b", "/b"));
    let (mut bed, _) = Bed::start(&[("a.yaml", &both)]).await;
    // Truncated in the second document: both stay, and what was cut off is reported.
    bed.replace("a.yaml", &both[..both.len() - 5]);
    assert_eq!(bed.next().await, "keep AuthorizationPolicy default/b");
    // Truncated in the first: the second is not seen to be gone.
    bed.replace("a.yaml", &both[..20]);
    let mut seen = [bed.next().await, bed.next().await, bed.next().await];
    seen.sort();
    assert_eq!(
        seen,
        ["keep AuthorizationPolicy default/a", "keep AuthorizationPolicy default/b", "unreadable a.yaml:1"]
    );
    bed.replace("a.yaml", &both);
    let mut seen = [bed.next().await, bed.next().await, bed.next().await];
    seen.sort();
    assert_eq!(
        seen,
        ["apply AuthorizationPolicy default/a", "apply AuthorizationPolicy default/b", "readable a.yaml:1"]
    );
    // Now the second is taken out on purpose.
    bed.replace("a.yaml", &allow("a", "/a"));
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/b");
}

#[tokio::test]
async fn never_good_is_closed() {
    let misspelt = allow("a", "/a").replace("paths", "path");
    let unnamed = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nspec: {}\n";
    let (mut bed, first) = Bed::start(&[("a.yaml", &misspelt), ("b.yaml", unnamed)]).await;
    assert_eq!(
        first,
        [
            "mesh cluster.local",
            "unreadable b.yaml:1 (blocks)",
            "close AuthorizationPolicy default/a",
            "synced"
        ]
    );
    bed.replace("a.yaml", &allow("a", "/a"));
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
    bed.replace("a.yaml", &misspelt);
    assert_eq!(bed.next().await, "keep AuthorizationPolicy default/a");
    bed.replace("b.yaml", &allow("b", "/b"));
    assert_eq!(bed.next().await, "readable b.yaml:1");
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/b");
    // After the start something unreadable is named, and blocks nothing: it was never in force.
    bed.replace("c.yaml", unnamed);
    assert_eq!(bed.next().await, "unreadable c.yaml:1");
}

#[tokio::test]
async fn half_written_is_not_read() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a"))]).await;
    let text = allow("a", "/b");
    let (head, tail) = text.split_at(text.find("  - to").unwrap());
    let mut file = fs::File::create(bed.dir.join("a.yaml")).unwrap();
    file.write_all(head.as_bytes()).unwrap();
    file.sync_all().unwrap();
    assert_eq!(bed.barrier(1).await, [""; 0]);
    file.write_all(tail.as_bytes()).unwrap();
    assert_eq!(bed.barrier(2).await, [""; 0]);
    drop(file);
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
}

#[tokio::test]
async fn emptied_is_looked_at_twice() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a"))]).await;
    fs::write(bed.dir.join("a.yaml"), "").unwrap();
    fs::write(bed.dir.join("a.yaml"), allow("a", "/b")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
    fs::write(bed.dir.join("a.yaml"), "# nothing any more\n").unwrap();
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/a");
}

#[tokio::test]
async fn a_vanished_directory_loses_nothing() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a")), ("b.yaml", &allow("b", "/b"))]).await;
    let aside = bed.temp.path().join("aside");
    fs::rename(&bed.dir, &aside).unwrap();
    assert_eq!(bed.next().await, "frozen");
    fs::write(aside.join("b.yaml"), allow("b", "/c")).unwrap();
    fs::rename(&aside, &bed.dir).unwrap();
    let mut seen = [bed.next().await, bed.next().await];
    seen.sort();
    assert_eq!(seen, ["apply AuthorizationPolicy default/b", "thawed"]);
    // It is followed again.
    bed.replace("a.yaml", &allow("a", "/b"));
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
}

#[tokio::test]
async fn a_deleted_directory_loses_nothing() {
    let files: Vec<(String, String)> =
        (0..100).map(|i| (format!("{i}.yaml"), allow(&format!("p{i}"), "/a"))).collect();
    let borrowed: Vec<(&str, &str)> = files.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    let (mut bed, _) = Bed::start(&borrowed).await;
    fs::remove_dir_all(&bed.dir).unwrap();
    assert_eq!(bed.next().await, "frozen");
    // An empty one in its place is not believed either.
    fs::create_dir(&bed.dir).unwrap();
    assert_eq!(bed.next().await, "frozen");
    for (name, text) in &files[1..] {
        fs::write(bed.dir.join(name), text).unwrap();
    }
    assert_eq!(bed.next().await, "thawed");
    // Only now, and after some time, is the one that did not come back deleted.
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/p0");
    bed.replace("1.yaml", &allow("p1", "/b"));
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/p1");
}

#[tokio::test]
async fn missing_at_start() {
    let temp = tempfile::tempdir().unwrap();
    let mut bed = Bed::watch(temp, None);
    assert_eq!(bed.until("frozen").await, ["mesh cluster.local", "frozen"]);
    let other = bed.temp.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.yaml"), allow("a", "/a")).unwrap();
    fs::rename(&other, &bed.dir).unwrap();
    assert_eq!(bed.until("synced").await.last().unwrap(), "synced");
}

#[tokio::test]
async fn config_map_swap() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("d");
    let version = |name: &str, files: &[(&str, &str)]| {
        fs::create_dir(dir.join(name)).unwrap();
        for (file, path) in files {
            fs::write(dir.join(name).join(format!("{file}.yaml")), allow(file, path)).unwrap();
        }
    };
    fs::create_dir(&dir).unwrap();
    version("..1", &[("a", "/a"), ("b", "/b")]);
    symlink("..1", dir.join("..data")).unwrap();
    for file in ["a.yaml", "b.yaml"] {
        symlink(format!("..data/{file}"), dir.join(file)).unwrap();
    }
    let mut bed = Bed::watch(temp, None);
    let first = bed.until("synced").await;
    assert_eq!(first[1..3], ["apply AuthorizationPolicy default/a", "apply AuthorizationPolicy default/b"]);
    version("..2", &[("a", "/changed"), ("b", "/b")]);
    symlink("..2", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
    fs::remove_dir_all(dir.join("..1")).unwrap();
    // A key taken out of the map.
    version("..3", &[("a", "/changed")]);
    symlink("..3", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    fs::remove_file(dir.join("b.yaml")).unwrap();
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/b");
}

#[tokio::test]
async fn a_linked_directory_is_swapped() {
    let temp = tempfile::tempdir().unwrap();
    for (version, path) in [("v1", "/a"), ("v2", "/b")] {
        fs::create_dir(temp.path().join(version)).unwrap();
        fs::write(temp.path().join(version).join("a.yaml"), allow("a", path)).unwrap();
    }
    symlink("v1", temp.path().join("d")).unwrap();
    let mut bed = Bed::watch(temp, None);
    bed.until("synced").await;
    symlink("v2", bed.temp.path().join("tmp")).unwrap();
    fs::rename(bed.temp.path().join("tmp"), &bed.dir).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
    bed.replace("a.yaml", &allow("a", "/c"));
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
}

#[tokio::test]
async fn mesh_config_keeps_the_last_good_one() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("d")).unwrap();
    // Inside the directory: it is no object, and not read as one.
    let mesh = temp.path().join("d/mesh.yaml");
    fs::write(&mesh, "trustDomain: one\n").unwrap();
    let mut bed = Bed::watch(temp, Some(mesh.clone()));
    assert_eq!(bed.until("synced").await, ["mesh one", "synced"]);
    for broken in ["trustDomain: [", "trustDomain: 5", "", "trustDomain: One"] {
        fs::write(&mesh, broken).unwrap();
        assert_eq!(bed.next().await, "unreadable mesh.yaml", "{broken}");
    }
    fs::write(&mesh, "trustDomain: two\n").unwrap();
    assert_eq!(bed.next().await, "mesh two");
    assert_eq!(bed.next().await, "readable mesh.yaml");
    fs::remove_file(&mesh).unwrap();
    assert_eq!(bed.next().await, "unreadable mesh.yaml");
}

#[tokio::test]
async fn without_mesh_config_nothing_is_complete() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("d")).unwrap();
    fs::write(temp.path().join("d/a.yaml"), allow("a", "/a")).unwrap();
    let mesh = temp.path().join("mesh.yaml");
    let mut bed = Bed::watch(temp, Some(mesh.clone()));
    let origin = mesh.display().to_string();
    assert_eq!(bed.next().await, format!("unreadable {origin} (blocks)"));
    fs::write(&mesh, "{}").unwrap();
    let seen = bed.until("synced").await;
    assert!(
        seen.contains(&"mesh cluster.local".to_owned()) && seen.contains(&format!("readable {origin}")),
        "{seen:?}"
    );
}

#[tokio::test]
async fn defined_twice_the_first_wins() {
    let (mut bed, first) = Bed::start(&[("a.yaml", &allow("x", "/a")), ("b.yaml", &allow("x", "/b"))]).await;
    assert_eq!(
        first,
        ["mesh cluster.local", "apply AuthorizationPolicy default/x", "unreadable b.yaml:1", "synced"]
    );
    bed.replace("b.yaml", &allow("x", "/c"));
    assert_eq!(bed.barrier(1).await, [""; 0]);
    fs::remove_file(bed.dir.join("a.yaml")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/x");
    assert_eq!(bed.next().await, "readable b.yaml:1");
}

#[tokio::test]
async fn a_change_is_sent_within_milliseconds() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a"))]).await;
    let mut times = Vec::new();
    for i in 0..20 {
        let temp = bed.dir.join(".tmp");
        fs::write(&temp, allow("a", &format!("/{i}"))).unwrap();
        fs::rename(temp, bed.dir.join("a.yaml")).unwrap();
        let start = Instant::now();
        assert_eq!(bed.next().await, "apply AuthorizationPolicy default/a");
        times.push(start.elapsed());
    }
    times.sort();
    // Typically 4 ms; the bound allows for a machine that is busy with other tests.
    assert!(times[10] < Duration::from_millis(50), "{times:?}");
}

#[tokio::test]
async fn links_and_directories() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a"))]).await;
    let outside = bed.temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["b", "c", "d"] {
        fs::write(outside.join(format!("{name}.yaml")), allow(name, "/")).unwrap();
    }
    // A link in either sense appears without ever being written.
    fs::hard_link(outside.join("b.yaml"), bed.dir.join("b.yaml")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/b");
    symlink(outside.join("c.yaml"), bed.dir.join("c.yaml")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/c");
    // Round and round.
    symlink(&bed.dir, bed.dir.join("loop")).unwrap();
    symlink("nowhere", bed.dir.join("nowhere.yaml")).unwrap();
    assert_eq!(bed.barrier(1).await, [""; 0]);
    // A directory moved in and out.
    let inside = bed.temp.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::rename(outside.join("d.yaml"), inside.join("d.yaml")).unwrap();
    fs::rename(&inside, bed.dir.join("sub")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/d");
    fs::write(bed.dir.join("sub/d.yaml"), allow("d", "/changed")).unwrap();
    assert_eq!(bed.next().await, "apply AuthorizationPolicy default/d");
    fs::rename(bed.dir.join("sub"), &inside).unwrap();
    assert_eq!(bed.next().await, "delete AuthorizationPolicy default/d");
}

#[tokio::test]
async fn files_that_cannot_be_read_lose_nothing() {
    let (mut bed, _) = Bed::start(&[("a.yaml", &allow("a", "/a"))]).await;
    let good = allow("a", "/a");
    let huge = format!("{good}---\n# {}\n", "x".repeat(10 << 20));
    let contents: [&[u8]; 4] = [huge.as_bytes(), b"a: \xff\n", b"\0\0\0", b"a: &a [*a]\n"];
    for (i, content) in contents.into_iter().enumerate() {
        let temp = bed.dir.join(".tmp");
        fs::write(&temp, content).unwrap();
        fs::rename(temp, bed.dir.join("a.yaml")).unwrap();
        let mut seen = [bed.next().await, bed.next().await];
        seen.sort();
        assert_eq!(seen[0], "keep AuthorizationPolicy default/a", "{i}");
        assert!(seen[1].starts_with("unreadable a.yaml"), "{i}: {seen:?}");
        bed.replace("a.yaml", &good);
        let mut seen = [bed.next().await, bed.next().await];
        seen.sort();
        assert_eq!(seen[0], "apply AuthorizationPolicy default/a", "{i}");
        assert!(seen[1].starts_with("readable a.yaml"), "{i}: {seen:?}");
    }
    assert_eq!(bed.barrier(1).await, [""; 0]);
}

#[test]
fn load_is_the_first_list() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("a.yaml"), allow("a", "/a")).unwrap();
    let changes = load(temp.path(), None);
    assert!(
        matches!(changes.as_slice(), [Change::Mesh(_), Change::Apply { .. }, Change::Synced]),
        "{changes:?}"
    );
    let missing = load(&temp.path().join("missing"), None);
    assert!(matches!(missing.as_slice(), [Change::Mesh(_), Change::Frozen(Some(_))]), "{missing:?}");
}

#[tokio::test]
async fn ends_with_its_receiver() {
    let (mut bed, _) = Bed::start(&[]).await;
    bed.changes.close();
    timeout(LIMIT, &mut bed.task).await.expect("in time").expect("without a panic");
}
