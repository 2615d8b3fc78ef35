//! The law of closed values, on random policies with one random mistake: whatever the mistake, an ALLOW admits nothing
//! that the policy without it would not, and a DENY denies all that it would.

use policy::{Action, Attachment, AuthorizationPolicy, Match, Operation, Rule, Source};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree as _;
use serde_json::{Map, Value, json};

use crate::{Content, Object, Severity, parse, read};

fn list(values: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop::sample::subsequence(values, 1..=values.len()).prop_map(|values| json!(values))
}

/// Some of the fields, at least one.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> impl Strategy<Value = Value> {
    let names: Vec<&'static str> = fields.iter().map(|(name, _)| *name).collect();
    let values: Vec<_> = fields.into_iter().map(|(_, value)| value).collect();
    let count = names.len();
    (values, prop::collection::vec(any::<bool>(), count), 0..count).prop_map(
        move |(values, mut keep, one)| {
            keep[one] = true;
            let kept = names.iter().zip(values).zip(keep).filter(|(_, keep)| *keep);
            Value::Object(kept.map(|((name, value), _)| ((*name).to_owned(), value)).collect())
        },
    )
}

fn source() -> impl Strategy<Value = Value> {
    object(vec![
        ("principals", list(&["td/ns/a/sa/x", "td/ns/b/*", "*"]).boxed()),
        ("notPrincipals", list(&["td/ns/c/sa/x"]).boxed()),
        ("namespaces", list(&["a", "b*"]).boxed()),
        ("ipBlocks", list(&["10.0.0.0/8", "10.0.0.1"]).boxed()),
        ("notIpBlocks", list(&["10.1.0.0/16", "10.2.0.0/16"]).boxed()),
        ("requestPrincipals", list(&["iss/*", "*"]).boxed()),
    ])
    .prop_map(|source| json!({ "source": source }))
}

fn operation() -> impl Strategy<Value = Value> {
    object(vec![
        ("ports", list(&["80", "8080"]).boxed()),
        ("notPorts", list(&["81", "82"]).boxed()),
        ("methods", list(&["GET", "POST"]).boxed()),
        ("paths", list(&["/a", "/b/*", "/c/{*}"]).boxed()),
        ("notPaths", list(&["/b/secret"]).boxed()),
    ])
    .prop_map(|operation| json!({ "operation": operation }))
}

fn condition() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec!["source.ip", "remote.ip"]);
    let values = object(vec![
        ("values", list(&["10.0.0.1", "10.0.0.2"]).boxed()),
        ("notValues", list(&["10.0.0.3", "10.0.0.4"]).boxed()),
    ]);
    (key, values).prop_map(|(key, mut values)| {
        values.as_object_mut().unwrap().insert("key".into(), key.into());
        values
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let many =
        |entry: BoxedStrategy<Value>| prop::collection::vec(entry, 1..3).prop_map(Value::Array).boxed();
    object(vec![
        ("from", many(source().boxed())),
        ("to", many(operation().boxed())),
        ("when", many(condition().boxed())),
    ])
}

fn spec() -> impl Strategy<Value = Value> {
    let action = prop::sample::select(vec!["ALLOW", "DENY"]);
    (action, any::<bool>(), prop::collection::vec(rule(), 1..4)).prop_map(|(action, selected, rules)| {
        let mut spec = json!({ "action": action, "rules": rules });
        if selected {
            spec["selector"] = json!({ "matchLabels": { "app": "x" } });
        }
        spec
    })
}

/// One mistake, made somewhere.
#[derive(Clone, Debug)]
enum Mistake {
    /// The value is something else.
    Replace(Value),
    /// The key has another name.
    Rename(String),
    /// There is one key too many.
    Insert(String, Value),
}

fn mistake() -> impl Strategy<Value = Mistake> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(json!(5)),
        Just(json!("")),
        Just(json!("nonsense")),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[]])),
        Just(json!([null])),
        Just(json!([""])),
        Just(json!(["a", 5])),
        Just(json!({"a": 5})),
    ];
    prop_oneof![
        value.clone().prop_map(Mistake::Replace),
        "[a-zA-Z]{1,10}".prop_map(Mistake::Rename),
        ("[a-zA-Z]{1,10}", value).prop_map(|(key, value)| Mistake::Insert(key, value)),
    ]
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum::<usize>(),
        Value::Object(map) => map.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Makes the mistake at the `at`-th value, counting from the outside.
fn make(value: &mut Value, at: &mut usize, mistake: &Mistake) {
    if *at == 0 {
        *at = usize::MAX;
        match (mistake, &mut *value) {
            (Mistake::Replace(other), _) => *value = other.clone(),
            (Mistake::Insert(key, other), Value::Object(map)) => drop(map.insert(key.clone(), other.clone())),
            (Mistake::Rename(name), Value::Object(map)) => {
                if let Some(first) = map.keys().next().cloned() {
                    let moved = map.remove(&first).unwrap();
                    map.insert(name.clone(), moved);
                }
            }
            (Mistake::Insert(..) | Mistake::Rename(_), _) => *value = json!(7),
        }
        return;
    }
    let children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    for child in children {
        if *at == usize::MAX {
            return;
        }
        *at -= 1;
        make(child, at, mistake);
    }
}

fn manifest(spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "ns" },
        "spec": spec,
    })
}

fn policy(content: Content) -> Option<(AuthorizationPolicy, bool)> {
    let (object, closed) = match content {
        Content::Object(object) => (object, false),
        Content::Invalid { closed, .. } => (closed.expect("every policy has a closed value").object, true),
        Content::Unreadable | Content::Unsupported => return None,
    };
    match *object {
        Object::AuthorizationPolicy(policy) => Some((policy, closed)),
        other => panic!("{other:?}"),
    }
}

/// `wide` matches whatever `narrow` matches; `false` only means that this is not plain to see.
fn covers(wide: &Match, narrow: &Match) -> bool {
    let any =
        wide.any.is_empty() || (!narrow.any.is_empty() && narrow.any.iter().all(|a| wide.any.contains(a)));
    any && wide.none.iter().all(|a| narrow.none.contains(a))
}

fn covers_source(wide: &Source, narrow: &Source) -> bool {
    let Source {
        principals,
        request_principals,
        namespaces,
        service_accounts,
        trust_domains,
        ip_blocks,
        remote_ip_blocks,
    } = narrow;
    covers(&wide.principals, principals)
        && covers(&wide.request_principals, request_principals)
        && covers(&wide.namespaces, namespaces)
        && covers(&wide.service_accounts, service_accounts)
        && covers(&wide.trust_domains, trust_domains)
        && covers(&wide.ip_blocks, ip_blocks)
        && covers(&wide.remote_ip_blocks, remote_ip_blocks)
}

fn covers_operation(wide: &Operation, narrow: &Operation) -> bool {
    let Operation { hosts, ports, methods, paths } = narrow;
    covers(&wide.hosts, hosts)
        && covers(&wide.ports, ports)
        && covers(&wide.methods, methods)
        && covers(&wide.paths, paths)
}

fn covers_rule(wide: &Rule, narrow: &Rule) -> bool {
    let from = wide.from.is_empty()
        || (!narrow.from.is_empty()
            && narrow.from.iter().all(|n| wide.from.iter().any(|w| covers_source(w, n))));
    let to = wide.to.is_empty()
        || (!narrow.to.is_empty()
            && narrow.to.iter().all(|n| wide.to.iter().any(|w| covers_operation(w, n))));
    let when = wide.when.iter().all(|w| {
        narrow.when.iter().any(|n| (w.key == n.key || w.values.is_empty()) && covers(&w.values, &n.values))
    });
    from && to && when && (!wide.never || narrow.never)
}

/// Denies everything it selects by itself: an ALLOW that allows nothing.
fn closed_allow(policy: &AuthorizationPolicy) -> bool {
    policy.action == Action::Allow && policy.rules.iter().all(|rule| rule.never)
}

fn check(before: &AuthorizationPolicy, after: &AuthorizationPolicy) -> Result<(), TestCaseError> {
    let reaches = after.attachment == Attachment::Namespace || after.attachment == before.attachment;
    prop_assert!(reaches, "{:?} instead of {:?}", after.attachment, before.attachment);
    if closed_allow(after) {
        return Ok(());
    }
    match (&before.action, &after.action) {
        (Action::Allow, Action::Allow) => {
            prop_assert_eq!(&after.attachment, &before.attachment);
            prop_assert!(after.rules.len() <= before.rules.len());
            for rule in after.rules.iter().filter(|rule| !rule.never) {
                prop_assert!(before.rules.contains(rule), "new: {:?}", rule);
            }
        }
        (Action::Allow, Action::Deny) => {
            // Denying all it selects.
            prop_assert!(after.rules.contains(&Rule::default()));
        }
        (Action::Deny, Action::Deny) => {
            for rule in &before.rules {
                prop_assert!(
                    after.rules.iter().any(|wide| covers_rule(wide, rule)),
                    "lost: {:?} in {:?}",
                    rule,
                    after.rules
                );
            }
        }
        (before, after) => prop_assert!(false, "{before:?} became {after:?}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_mistake_never_opens(spec in spec(), at in any::<Index>(), mistake in mistake()) {
        let Some((before, false)) = policy(parse(&manifest(&spec)).content) else {
            return Err(TestCaseError::fail("the policy itself is refused"));
        };
        let mut mistaken = spec.clone();
        make(&mut mistaken, &mut at.index(count(&spec)), &mistake);
        let parsed = parse(&manifest(&mistaken));
        // A mistake that makes another valid policy is nobody's to see.
        if let Some((after, true)) = policy(parsed.content) {
            prop_assert!(parsed.findings.iter().any(|f| f.severity == Severity::Error));
            check(&before, &after)?;
        }
    }

    /// Rules of a DENY and a selector that were cut off cannot be known, and are left out here: that a file is cut is for
    /// its source to prevent.
    #[test]
    fn a_cut_never_opens(mut spec in spec(), cut in any::<Index>()) {
        spec["action"] = "ALLOW".into();
        spec.as_object_mut().unwrap().remove("selector");
        let manifest = manifest(&spec);
        let (before, _) = policy(parse(&manifest).content).unwrap();
        let text = serde_yaml::to_string(&manifest).unwrap();
        let cut = cut.index(text.len());
        for document in read(&text[..cut], "f") {
            // At the end of a line what is left may be a policy of its own.
            if let Some((after, true)) = policy(document.content) {
                check(&before, &after)?;
            }
        }
    }
}

#[test]
fn the_generators_make_policies() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..50 {
        let spec = spec().new_tree(&mut runner).unwrap().current();
        let parsed = parse(&manifest(&spec));
        assert!(matches!(parsed.content, Content::Object(_)), "{spec}: {:?}", parsed.findings);
        assert!(spec.as_object().is_some_and(|spec: &Map<String, Value>| !spec.is_empty()));
    }
}
