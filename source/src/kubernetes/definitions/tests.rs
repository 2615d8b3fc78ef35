use serde_json::json;

use super::*;

fn definition(uid: &str, terminating: bool, established: &str, versions: &[(&str, bool)]) -> Definition {
    let versions: Vec<_> =
        versions.iter().map(|(name, served)| json!({"name": name, "served": served})).collect();
    let deletion = terminating.then_some("2026-01-01T00:00:00Z");
    serde_json::from_value(json!({
        "metadata": {"uid": uid, "deletionTimestamp": deletion, "name": "x.y", "generation": 1},
        "spec": {"group": "y", "versions": versions, "scope": "Namespaced"},
        "status": {"conditions": [{"type": "NamesAccepted", "status": "True"}, {"type": "Established", "status": established}]},
    }))
    .unwrap()
}

#[test]
fn standings() {
    let standing = |definition: Option<Definition>, complete| {
        let known = definition.map(|definition| ("x.y".into(), Arc::new(definition))).into_iter().collect();
        Definitions { complete, known }.standing("x.y", &["v1", "v1beta1"])
    };
    let usable = |version: &str| Standing::Usable { uid: "u".into(), version: version.into() };
    let unusable = |why: &str| Standing::Unusable(format!("the definition x.y {why}"));
    let both: &[_] = &[("v1alpha1", true), ("v1beta1", true), ("v1", true)];
    for (found, complete, expect) in [
        (None, false, Standing::Unknown),
        (None, true, unusable("is not installed")),
        (Some(definition("u", false, "True", both)), false, usable("v1")),
        (Some(definition("u", false, "True", &[("v1", false), ("v1beta1", true)])), true, usable("v1beta1")),
        (Some(definition("u", false, "True", &[("v1", false), ("v2", true)])), true, usable("v2")),
        (Some(definition("u", false, "True", &[("v1", false)])), true, unusable("serves no version")),
        (Some(definition("u", false, "False", both)), true, unusable("is not established")),
        (Some(definition("u", true, "True", both)), true, unusable("is being uninstalled")),
    ] {
        assert_eq!(standing(found.clone(), complete), expect, "{found:?} {complete}");
    }
    // Only metadata was asked for.
    let partial: Definition = serde_json::from_value(json!({"metadata": {"uid": "u"}})).unwrap();
    assert!(!partial.terminating() && &**partial.uid() == "u");
}
