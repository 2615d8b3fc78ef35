use super::*;
use crate::protocol::Protocol;
use crate::service::TargetPort;
use crate::workload::tests::service;

fn rule(text: &str) -> HostRule {
    let (namespace, host) = text.split_once('/').unwrap();
    HostRule { namespace: (namespace != "*").then(|| namespace.into()), host: HostMatch::parse(host) }
}

fn egress(port: Option<u16>, hosts: &[&str]) -> Egress {
    Egress { port, hosts: hosts.iter().map(|host| rule(host)).collect() }
}

fn scope(egress: &[Egress]) -> Scope {
    Scope { egress: Some(egress.to_vec()), allow_any: None }
}

/// shop.foo.svc.cluster.local with an HTTP port 80 and a TCP port 90.
fn shop() -> Service {
    let number = TargetPort::Number;
    service("shop", 0, &[(80, number(80), Protocol::Http), (90, number(90), Protocol::Tcp)])
}

#[test]
fn hosts() {
    for (rule, host, covers) in [
        ("*", "a.b", true),
        ("*", "*.b", true),
        ("a.b", "a.b", true),
        ("a.b", "A.b", true),
        ("A.B", "a.b", true),
        ("a.b", "x.a.b", false),
        ("a.b", "*.a.b", false),
        ("*.a.b", "x.a.b", true),
        ("*.a.b", "x.y.a.b", true),
        ("*.a.b", "*.a.b", true),
        ("*.a.b", "*.x.a.b", true),
        ("*.a.b", "*.b", false),
        ("*.a.b", "a.b", false),
        ("*.a.b", ".a.b", false),
        ("*.a.b", "xa.b", false),
        ("*.a.b", "äx", false),
    ] {
        assert_eq!(HostMatch::parse(rule).covers(host), covers, "{rule} {host}");
    }
}

#[test]
fn export_to() {
    let some = |own, namespaces: &[&str]| ExportTo::Some {
        own,
        namespaces: namespaces.iter().map(|ns| (*ns).into()).collect(),
    };
    for (export_to, own, bar, baz) in [
        (ExportTo::All, true, true, true),
        (some(true, &[]), true, false, false),
        (some(false, &["bar"]), false, true, false),
        (some(true, &["bar"]), true, true, false),
        (ExportTo::nobody(), false, false, false),
    ] {
        let reached = ["foo", "bar", "baz"].map(|client| export_to.reaches("foo", client));
        assert_eq!(reached, [own, bar, baz], "{export_to:?}");
        let mut shop = shop();
        shop.export_to = Some(export_to);
        let seen = ["foo", "bar", "baz"]
            .map(|client| visible(client, &Scope::default(), &shop, &ExportTo::nobody()).is_some());
        assert_eq!(seen, reached);
    }
    assert_eq!(visible("bar", &Scope::default(), &shop(), &some(true, &[])), None, "the default counts");
    assert_eq!(visible("foo", &Scope::default(), &shop(), &some(true, &[])), Some(None));
}

#[test]
fn egress_hosts_and_ports() {
    for (entries, expect) in [
        (vec![], None),
        (vec![egress(None, &["*/*"])], Some(None)),
        (vec![egress(None, &["foo/*"])], Some(None)),
        (vec![egress(None, &["bar/*"])], None),
        (vec![egress(None, &["bar/*", "foo/shop.foo.svc.cluster.local"])], Some(None)),
        (vec![egress(None, &["*/*.foo.svc.cluster.local"])], Some(None)),
        (vec![egress(None, &["*/*.bar.svc.cluster.local"])], None),
        (vec![egress(Some(80), &["foo/*"])], Some(Some(vec![80]))),
        (vec![egress(Some(90), &["foo/*"])], Some(Some(vec![90]))),
        (vec![egress(Some(91), &["foo/*"])], None),
        (vec![egress(Some(80), &["foo/*"]), egress(None, &["foo/*"])], Some(None)),
        // HTTP hosts of one number share a listener, which the entry for the number has to itself.
        (vec![egress(Some(80), &["bar/*"]), egress(None, &["foo/*"])], Some(Some(vec![90]))),
        (vec![egress(Some(90), &["bar/*"]), egress(None, &["foo/*"])], Some(None)),
    ] {
        let seen = visible("bar", &scope(&entries), &shop(), &ExportTo::All);
        assert_eq!(seen, expect, "{entries:?}");
        assert_eq!(visible("bar", &scope(&entries), &shop(), &ExportTo::nobody()), None);
    }
    assert_eq!(visible("foo", &Scope::nothing(), &shop(), &ExportTo::All), None);
}

fn sidecar_of(namespace: &str, name: &str, created: i64, app: Option<&str>) -> Sidecar {
    Sidecar {
        namespace: namespace.into(),
        name: name.into(),
        created,
        selector: app.map(|app| [("app".to_owned(), app.to_owned())].into()),
        scope: Arc::default(),
        ingress: vec![],
    }
}

#[test]
fn the_closest_sidecar_counts_and_of_those_the_oldest() {
    let own = [
        sidecar_of("foo", "young", 5, Some("shop")),
        sidecar_of("foo", "old", 4, Some("shop")),
        sidecar_of("foo", "other", 1, Some("web")),
        sidecar_of("foo", "all-young", 3, None),
        sidecar_of("foo", "all", 2, None),
        sidecar_of("foo", "all-same-age", 2, None),
    ];
    let root = [sidecar_of("root", "selecting", 1, Some("shop")), sidecar_of("root", "mesh", 9, None)];
    let of = |labels: &[(&str, &str)], own: &[Sidecar], root: &[Sidecar]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        sidecar(&labels, own.iter(), root.iter()).map(|s| s.name.to_string())
    };
    let shop = [("app", "shop"), ("more", "labels")];
    assert_eq!(of(&shop, &own, &root).as_deref(), Some("old"));
    assert_eq!(of(&[("app", "none")], &own, &root).as_deref(), Some("all"));
    assert_eq!(of(&[], &own, &root).as_deref(), Some("all"));
    assert_eq!(
        of(&shop, &own[2..3], &root).as_deref(),
        Some("mesh"),
        "no selector reaches over from the root"
    );
    assert_eq!(of(&shop, &own[2..3], &root[..1]), None);
}

mod laws {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> impl Strategy<Value = Vec<HostRule>> {
        let namespace = prop::sample::select(vec!["*", "foo", "bar"]);
        let host = prop::sample::select(vec!["*", "*.cluster.local", "shop.foo.svc.cluster.local", "*.bar"]);
        let rule = (namespace, host).prop_map(|(namespace, host)| rule(&format!("{namespace}/{host}")));
        prop::collection::vec(rule, 0..3)
    }

    fn scopes() -> impl Strategy<Value = Scope> {
        let entry = (prop::option::of(prop::sample::select(vec![80, 90, 91])), rules());
        let entry = entry.prop_map(|(port, hosts)| Egress { port, hosts });
        prop::option::of(prop::collection::vec(entry, 0..4))
            .prop_map(|egress| Scope { egress, allow_any: None })
    }

    /// The ports that are seen.
    fn seen(scope: &Scope, export_to: &ExportTo) -> BTreeSet<u16> {
        match visible("bar", scope, &shop(), export_to) {
            None => BTreeSet::new(),
            Some(None) => shop().ports.iter().map(|port| port.port).collect(),
            Some(Some(ports)) => ports.into_iter().collect(),
        }
    }

    proptest! {
        /// A Sidecar never shows what is hidden without it, and `exportTo` never shows what a Sidecar hides.
        #[test]
        fn narrowing_never_adds(scope in scopes(), own in any::<bool>(), bar in any::<bool>()) {
            let namespaces = if bar { BTreeSet::from(["bar".into()]) } else { BTreeSet::new() };
            let export_to = ExportTo::Some { own, namespaces };
            let both = seen(&scope, &export_to);
            prop_assert!(both.is_subset(&seen(&Scope::default(), &export_to)));
            prop_assert!(both.is_subset(&seen(&scope, &ExportTo::All)));
            prop_assert!(seen(&Scope::nothing(), &ExportTo::All).is_empty());
        }

        /// Without a host, a rule shows no more than with it.
        #[test]
        fn more_hosts_never_hide(scope in scopes(), more in rules(), index in any::<prop::sample::Index>()) {
            let Some(mut egress) = scope.egress.clone().filter(|egress| !egress.is_empty()) else { return Ok(()) };
            let index = index.index(egress.len());
            egress[index].hosts.extend(more);
            let wider = Scope { egress: Some(egress), allow_any: None };
            prop_assert!(seen(&scope, &ExportTo::All).is_subset(&seen(&wider, &ExportTo::All)));
        }
    }
}
