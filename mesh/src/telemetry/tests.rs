use super::*;

fn object(name: &str, created: i64, reach: Reach, access_logging: Vec<AccessLogging>) -> Telemetry {
    Telemetry { namespace: "a".into(), name: name.into(), created, reach, access_logging }
}

fn entry(mode: LogMode, providers: &[&str]) -> AccessLogging {
    let providers = providers.iter().map(|p| (*p).into()).collect();
    AccessLogging { mode, providers, disabled: false, filter: None }
}

fn off(mode: LogMode, providers: &[&str]) -> AccessLogging {
    AccessLogging { disabled: true, ..entry(mode, providers) }
}

fn only(filter: &str, entry: AccessLogging) -> AccessLogging {
    AccessLogging { filter: Some(filter.into()), ..entry }
}

fn file(path: &str) -> Sink {
    Sink::File { path: path.to_owned(), format: LogFormat::Text(String::new()) }
}

fn mesh() -> MeshConfig {
    MeshConfig {
        access_log_file: "/mesh".to_owned(),
        log_providers: [("one".into(), file("/one")), ("two".into(), file("/two"))].into(),
        ..MeshConfig::default()
    }
}

/// The paths that are written to, each with its filter: `server | client`.
fn told(mesh: &MeshConfig, layers: &[Vec<AccessLogging>]) -> String {
    let layers: Vec<_> =
        layers.iter().map(|entries| object("t", 0, Reach::Namespace, entries.clone())).collect();
    let layers: Vec<_> = layers.iter().collect();
    let logs = Logs::resolve(mesh, &layers, |sink| *sink != file("/unusable"));
    let side = |logs: &[Log]| {
        let one = |log: &Log| {
            let Sink::File { path, .. } = &log.sink else { panic!("a file") };
            let filter = log.filter.as_ref().map(|f| format!(" if {f}")).unwrap_or_default();
            format!("{path}{filter}")
        };
        logs.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    format!("{} | {}", side(&logs.server), side(&logs.client))
}

#[test]
fn layers_decide_who_writes_what() {
    use LogMode::{Both, Client, Server};
    let mesh = mesh();
    for (layers, expect) in [
        (vec![], "/mesh | /mesh"),
        (vec![vec![]], "/mesh | /mesh"),
        // No provider named: what is in force.
        (vec![vec![off(Both, &[])]], " | "),
        (vec![vec![off(Client, &[])]], "/mesh | "),
        (vec![vec![only("x", entry(Server, &[]))]], "/mesh if x | /mesh"),
        (vec![vec![off(Both, &[])], vec![entry(Both, &[])]], "/mesh | /mesh"),
        // A provider named takes the place of the default.
        (vec![vec![entry(Both, &["one"])]], "/one | /one"),
        (vec![vec![entry(Server, &["one"]), entry(Client, &["two"])]], "/one | /two"),
        (vec![vec![entry(Server, &["one"])]], "/one | /mesh"),
        (vec![vec![entry(Both, &["one", "two"])], vec![entry(Both, &["two"])]], "/two | /two"),
        (vec![vec![entry(Both, &["one", "two"])], vec![off(Both, &["two"])]], " | "),
        (vec![vec![entry(Both, &["one"]), off(Client, &["one"])]], "/one | "),
        (vec![vec![entry(Both, &["one"])], vec![off(Server, &[])]], " | /one"),
        (vec![vec![off(Both, &["one"])], vec![entry(Both, &["one"])]], "/one | /one"),
        (vec![vec![entry(Both, &["envoy"])]], "/dev/stdout | /dev/stdout"),
        // Filters: who names the provider decides, who does not narrows or leaves it.
        (vec![vec![only("x", entry(Both, &["one"]))], vec![entry(Both, &["one"])]], "/one | /one"),
        (vec![vec![only("x", entry(Both, &["one"]))], vec![entry(Both, &[])]], "/one if x | /one if x"),
        (
            vec![vec![only("x", entry(Both, &["one"]))], vec![only("y", entry(Client, &[]))]],
            "/one if x | /one if y",
        ),
        // What cannot be written to is as if it was not named.
        (vec![vec![entry(Both, &["nobody"])]], "/mesh | /mesh"),
        (vec![vec![off(Both, &["nobody"])]], "/mesh | /mesh"),
        (vec![vec![entry(Both, &["nobody", "one"])]], "/one | /one"),
    ] {
        assert_eq!(told(&mesh, &layers), expect, "{layers:?}");
    }
}

#[test]
fn default_providers_come_before_the_file() {
    let mut mesh = MeshConfig { default_log_providers: vec!["two".into(), "nobody".into()], ..mesh() };
    assert_eq!(told(&mesh, &[]), "/two | /two");
    assert_eq!(told(&mesh, &[vec![off(LogMode::Both, &["two"])]]), " | ");
    mesh.default_log_providers = vec!["nobody".into()];
    assert_eq!(told(&mesh, &[]), "/mesh | /mesh");
    mesh.log_providers.insert("envoy".into(), file("/mine"));
    assert_eq!(told(&mesh, &[vec![entry(LogMode::Both, &["envoy"])]]), "/mine | /mine");
    mesh.log_providers.insert("one".into(), file("/unusable"));
    assert_eq!(told(&mesh, &[vec![entry(LogMode::Both, &["one"])]]), "/mesh | /mesh");
}

#[test]
fn the_oldest_of_each_width_counts() {
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let wide = |name, created| object(name, created, Reach::Namespace, vec![]);
    let app = |name, created, app| object(name, created, Reach::Labels(labels(&[("app", app)])), vec![]);
    let gateway = |name| object(name, 0, Reach::Gateways(vec!["g".to_owned()]), vec![]);
    let root = [wide("root-new", 2), wide("root-old", 1), app("root-x", 0, "x")];
    let own = [wide("own", 1), app("x-new", 2, "x"), app("x-b", 1, "x"), app("x-a", 1, "x"), gateway("gate")];
    let names = |in_root, wanted: &BTreeMap<String, String>| {
        let own = if in_root { &own[..0] } else { &own[..] };
        let layers = layers(root.iter(), own.iter(), in_root, wanted);
        layers.iter().map(|t| t.name.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(false, &labels(&[("app", "x"), ("more", "")])), "root-old own x-a");
    assert_eq!(names(false, &labels(&[("app", "y")])), "root-old own");
    assert_eq!(names(false, &labels(&[(GATEWAY_LABEL, "g")])), "root-old own gate");
    // A selector in the root namespace is about workloads there.
    assert_eq!(names(true, &labels(&[("app", "x")])), "root-old root-x");
}
