//! Laws of translation that need no Envoy.

use std::collections::BTreeSet;

use mesh::{ExtAuthzKind, Logs, WorkloadKind};
use policy::{MtlsMode, ObjectName};
use proptest::prelude::*;
use prost::Message;
use serde_json::Value;

use super::encode::{HttpRbac, any};
use super::pb::{Any, core};
use super::rbac::samples;
use super::*;

fn mesh_config() -> MeshConfig {
    let grpc = ExtAuthz {
        kind: ExtAuthzKind::Grpc,
        service: "ext/authz".into(),
        port: 9000,
        timeout_ms: 1500,
        fail_open: false,
        status_on_error: None,
        include_body: None,
    };
    MeshConfig {
        trust_domain_aliases: vec!["old".into()],
        access_log_file: "/dev/stdout".into(),
        extension_providers: vec![ExtensionProvider { name: "ext".into(), ext_authz: Some(grpc) }],
        ..MeshConfig::default()
    }
}

fn providers() -> BTreeMap<Arc<str>, Provider> {
    let at = Provider { cluster: "outbound|9000||authz.ext".into(), hostname: "authz.ext".into() };
    [("ext".into(), at)].into()
}

fn workload() -> Workload {
    Workload {
        namespace: "foo".into(),
        name: "test".into(),
        kind: WorkloadKind::Pod,
        labels: Arc::default(),
        service_account: "test".into(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        named_ports: BTreeMap::new(),
        mutual_tls: true,
        ready: true,
        created: 0,
        uid: None,
    }
}

fn build(policy: &EffectivePolicy, capture: Capture, inline_policy: bool) -> Vec<(ResourceType, Resource)> {
    let port = |port, protocol| InboundPort { port, protocol, app: None };
    let ports = [
        port(80, Protocol::Http),
        port(81, Protocol::Auto),
        port(82, Protocol::Tcp),
        port(83, Protocol::Http2),
    ];
    own(&Inbound {
        mesh: &mesh_config(),
        workload: &workload(),
        ports: &ports,
        policy,
        shape: &ProxyShape { capture, inline_policy, ipv6: true },
        providers: &providers(),
        logs: &Logs::of_mesh(&mesh_config()).server,
    })
}

fn none() -> Capture {
    Capture::None { apps: BTreeMap::new(), upstreams: BTreeMap::new() }
}

/// Visits every field of a JSON tree.
fn walk(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                visit(name, field);
                walk(field, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

fn check_sound(resources: &[(ResourceType, Resource)]) {
    let mut names = BTreeSet::new();
    for (kind, resource) in resources {
        assert!(names.insert((*kind, resource.name.clone())), "{} twice", resource.name);
        let tree = json::resource(resource).expect("schema.txt knows every field");
        walk(&tree, &mut |name, value| {
            if ["prefix", "suffix", "contains"].contains(&name) {
                assert_ne!(value, "", "an empty {name} matches everything, or Envoy refuses it");
            }
        });
        let chains = tree["filter_chains"].as_array().cloned().unwrap_or_default();
        let matches: BTreeSet<String> = chains.iter().map(|c| c["filter_chain_match"].to_string()).collect();
        assert_eq!(matches.len(), chains.len(), "two chains with the same match");
        let names: BTreeSet<String> = chains.iter().map(|c| c["name"].to_string()).collect();
        assert_eq!(names.len(), chains.len(), "two chains with the same name");
    }
}

fn modes() -> Vec<EffectivePolicy> {
    let all = [MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict];
    let mut policies = Vec::new();
    for mode in all {
        for port in all {
            let mut policy = EffectivePolicy::default();
            policy.mtls.mode = mode;
            policy.mtls.ports = [(80, port), (82, port), (9999, port), (0, port), (15006, port)].into();
            policies.push(policy);
        }
    }
    policies
}

#[test]
fn every_mode_gives_sound_listeners() {
    for policy in modes() {
        for inline in [false, true] {
            for capture in [Capture::Redirect, Capture::Nft, none()] {
                check_sound(&build(&policy, capture, inline));
            }
        }
    }
}

/// Semantics §10.15: no chain of a STRICT port takes plaintext, and none takes TLS without terminating it.
#[test]
fn strict_ports_have_only_terminating_chains() {
    for policy in modes() {
        for (_, listener) in
            build(&policy, Capture::Nft, false).iter().filter(|(t, _)| *t == ResourceType::Listener)
        {
            let tree = json::resource(listener).unwrap();
            for chain in tree["filter_chains"].as_array().unwrap() {
                let port = chain["filter_chain_match"]["destination_port"].as_u64();
                let port = port.map(|p| u16::try_from(p).unwrap());
                if port == Some(listener::INBOUND_PORT) {
                    continue;
                }
                let mode = port.map_or(policy.mtls.mode, |p| policy.mtls.port(p));
                let terminates = !chain["transport_socket"].is_null();
                if mode == MtlsMode::Strict {
                    assert!(terminates, "{chain}");
                }
                if mode == MtlsMode::Disable {
                    assert!(!terminates, "{chain}");
                }
                let common = &chain["transport_socket"]["typed_config"]["common_tls_context"];
                if terminates {
                    assert_eq!(chain["transport_socket"]["typed_config"]["require_client_certificate"], true);
                    let sans = common["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"].as_array().unwrap();
                    let prefixes: BTreeSet<_> =
                        sans.iter().map(|s| s["matcher"]["prefix"].as_str().unwrap()).collect();
                    assert_eq!(
                        prefixes.into_iter().collect::<Vec<_>>(),
                        ["spiffe://cluster.local/", "spiffe://old/"]
                    );
                }
            }
        }
    }
}

#[test]
fn everything_at_once() {
    for capture in [Capture::Redirect, none()] {
        for inline in [false, true] {
            check_sound(&build(&samples::everything(), capture.clone(), inline));
        }
    }
}

/// What we encode is what Envoy's own messages say, whatever the order of insertion.
#[test]
fn our_sorted_messages_are_envoys() {
    let policy = samples::everything();
    let filter = rbac::deny(&policy, |_| true).http();
    let bytes = filter.encode_to_vec();
    let theirs = envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac::decode(&*bytes).unwrap();
    let rules = theirs.rules.clone().unwrap();
    assert_eq!(rules.policies.len(), policy.deny.enforced.as_ref().unwrap().len());
    // Their encoding, in whatever order, reads back as ours and encodes to the same bytes again.
    for _ in 0..4 {
        let mut shuffled = theirs.clone();
        shuffled.rules.as_mut().unwrap().policies = rules.policies.clone().into_iter().collect();
        let again = HttpRbac::decode(&*shuffled.encode_to_vec()).unwrap();
        assert_eq!(again, filter);
        assert_eq!(again.encode_to_vec(), bytes);
    }
}

/// Design decision 3: the first DENY is a change of a slot's content, never of the listener.
#[test]
fn http_policy_never_changes_the_listener() {
    let listeners = |policy: &EffectivePolicy| {
        let all = build(policy, Capture::Nft, false);
        // TCP policy stands in TCP chains; look at HTTP chains only.
        let listener = all.into_iter().find(|(t, _)| *t == ResourceType::Listener).unwrap().1;
        let tree = json::resource(&listener).unwrap();
        let http = |c: &&Value| c["name"].as_str().unwrap().ends_with("http");
        tree["filter_chains"].as_array().unwrap().iter().filter(http).cloned().collect::<Vec<_>>()
    };
    assert_eq!(listeners(&EffectivePolicy::default()), listeners(&samples::everything()));
    let draining = EffectivePolicy { drain: vec![(ObjectName::new("foo", "a"), 1)], ..Default::default() };
    assert_ne!(listeners(&EffectivePolicy::default()), listeners(&draining));
}

fn slot(policy: &EffectivePolicy, name: &str) -> Resource {
    build(policy, Capture::Nft, false).into_iter().find(|(_, r)| &*r.name == name).unwrap().1
}

fn rule_names(slot: &Resource) -> Vec<String> {
    let tree = json::resource(slot).unwrap();
    let rules = &tree["typed_config"]["rules"];
    assert_eq!(rules["action"], "DENY");
    rules["policies"].as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_transitional_deny_slot_has_the_rules_of_both() {
    let rule = |name: &str, port| policy::EffectiveRule {
        policy: ObjectName::new("foo", name),
        index: 0,
        permissions: vec![vec![policy::Clause {
            field: "ports".into(),
            any: vec![policy::Atom::Port(port)],
            none: vec![],
        }]],
        principals: vec![vec![]],
    };
    let denying = |rules: Vec<_>| {
        let mut policy = EffectivePolicy::default();
        policy.deny.enforced = Some(rules);
        slot(&policy, rbac::DENY_SLOT)
    };
    let old = denying(vec![rule("a", 1), rule("b", 1), rule("c", 1)]);
    let new = denying(vec![rule("a", 1), rule("b", 2)]);
    let both = rbac::union(&old, &new).unwrap();
    let names = ["a]-rule[0]", "b]-rule[0]", "b]-rule[0]-before", "c]-rule[0]"]
        .map(|n| format!("ns[foo]-policy[{n}"));
    assert_eq!(rule_names(&both), names);
    assert_eq!(both.name, new.name);
    let empty = slot(&EffectivePolicy::default(), rbac::DENY_SLOT);
    assert_eq!(rbac::union(&empty, &new).unwrap(), new);
    assert_eq!(rule_names(&rbac::union(&old, &empty).unwrap()), rule_names(&old));
    assert_eq!(rbac::union(&empty, &empty).unwrap(), empty);
}

#[test]
fn the_transitional_custom_slot_asks_about_what_either_asks_about() {
    let rule = |name: &str, port| policy::EffectiveRule {
        policy: ObjectName::new("foo", name),
        index: 0,
        permissions: vec![vec![policy::Clause {
            field: "ports".into(),
            any: vec![policy::Atom::Port(port)],
            none: vec![],
        }]],
        principals: vec![vec![]],
    };
    let slot = |rules: Option<&policy::effective::ActionRules>| {
        let name = "inbound.custom.opa.rbac";
        let filter = any(&rbac::custom("opa", rules).http());
        let config = core::TypedExtensionConfig { name: name.to_owned(), typed_config: Some(filter) };
        Resource::new(name, bytes::Bytes::from(any(&config).encode_to_vec()))
    };
    let asking =
        |rules: Vec<_>| slot(Some(&policy::effective::ActionRules { enforced: Some(rules), shadow: None }));
    let idle = slot(None);
    let (old, new) = (asking(vec![rule("a", 1)]), asking(vec![rule("a", 2), rule("b", 1)]));
    let names = |slot: &Resource| {
        let config = core::TypedExtensionConfig::decode(&*Any::decode(&*slot.any).unwrap().value).unwrap();
        let filter = HttpRbac::decode(&*config.typed_config.unwrap().value).unwrap();
        assert_eq!(filter.rules, None);
        assert_eq!(filter.shadow_rules_stat_prefix, "istio_ext_authz_opa_");
        let mut names: Vec<String> = filter.shadow_rules.unwrap().policies.into_keys().collect();
        names.sort();
        names
    };
    let both = rbac::union_custom(&old, &new).unwrap();
    // ext_authz looks at how a name begins.
    let name = |rest: &str| format!("istio-ext-authz-opa-ns[foo]-policy[{rest}");
    assert_eq!(names(&both), [name("a]-rule[0]"), name("a]-rule[0]-before"), name("b]-rule[0]")]);
    assert_eq!(rbac::union_custom(&idle, &new).unwrap(), new);
    assert_eq!(rbac::union_custom(&old, &idle).unwrap(), old);
}

#[test]
fn the_strict_guard_is_named_after_the_object_that_set_it() {
    let mut policy = EffectivePolicy::default();
    policy.mtls.mode = MtlsMode::Strict;
    policy.mtls.set_by = Some(ObjectName::new("foo", "default"));
    assert_eq!(rule_names(&slot(&policy, rbac::DENY_SLOT)), ["ns[foo]-peerauthentication[default]-strict"]);
    policy.mtls.mode = MtlsMode::Permissive;
    policy.mtls.ports = [(80, MtlsMode::Strict)].into();
    policy.mtls.ports_set_by = Some(ObjectName::new("foo", "ports"));
    assert_eq!(rule_names(&slot(&policy, rbac::DENY_SLOT)), ["ns[foo]-peerauthentication[ports]-strict"]);
}

/// Semantics §4.8: a missing provider denies what the policy matches; a dry-run CUSTOM does nothing.
#[test]
fn custom_without_its_provider_denies() {
    let custom = [("gone".into(), samples::everything().deny)].into();
    let mut policy = EffectivePolicy { custom, ..Default::default() };
    let names = rule_names(&slot(&policy, rbac::DENY_SLOT));
    assert!(names.iter().all(|n| n.ends_with("-deny-due-to-bad-CUSTOM-action")));
    assert_eq!(names.len(), samples::atoms().len());
    for rules in policy.custom.values_mut() {
        rules.enforced = None;
    }
    assert_eq!(slot(&policy, rbac::DENY_SLOT), slot(&EffectivePolicy::default(), rbac::DENY_SLOT));
}

/// Semantics §10.1.
#[test]
fn allow_with_nothing_left_denies_and_dry_run_enforces_nothing() {
    let mut policy = EffectivePolicy::default();
    policy.allow.enforced = Some(Vec::new());
    let tree = json::resource(&slot(&policy, "inbound.rbac.allow")).unwrap();
    assert_eq!(tree["typed_config"]["rules"], serde_json::json!({}));
    policy.allow = policy::ActionRules { enforced: None, shadow: Some(Vec::new()) };
    let tree = json::resource(&slot(&policy, "inbound.rbac.allow")).unwrap();
    assert!(tree["typed_config"]["rules"].is_null());
    assert_eq!(tree["typed_config"]["shadow_rules_stat_prefix"], "istio_dry_run_allow_");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// CVE-2020-16844: where TCP has the attributes, both kinds of chain decide by the same rules.
    #[test]
    fn http_and_tcp_compile_alike(policy in samples::policies(false)) {
        prop_assert_eq!(&policy.tcp(), &policy);
        let both = [
            (rbac::deny(&policy, |_| true), rbac::deny(&policy.tcp(), |_| true)),
            (rbac::allow(&policy), rbac::allow(&policy.tcp())),
        ];
        for (http, tcp) in both {
            let (http, tcp) = (http.http(), tcp.network());
            prop_assert_eq!(http.rules, tcp.rules);
            prop_assert_eq!(http.shadow_rules, tcp.shadow_rules);
        }
    }

    /// Design decision 5, semantics §10.2: on TCP an ALLOW rule is whole or gone, a DENY rule is never lost.
    #[test]
    fn tcp_narrows_allow_and_widens_deny(policy in samples::policies(true)) {
        let tcp = policy.tcp();
        let rules = |r: &Option<Vec<policy::EffectiveRule>>| r.clone().unwrap_or_default();
        let (all, left) = (rules(&policy.allow.enforced), rules(&tcp.allow.enforced));
        prop_assert!(left.iter().all(|rule| all.contains(rule)));
        prop_assert_eq!(policy.allow.enforced.is_some(), tcp.allow.enforced.is_some());
        prop_assert_eq!(rules(&policy.deny.enforced).len(), rules(&tcp.deny.enforced).len());
        let atoms = tcp.deny.enforced.iter().chain(&tcp.allow.enforced).flatten()
            .flat_map(|r| r.permissions.iter().chain(&r.principals).flatten())
            .flat_map(|c| c.any.iter().chain(&c.none));
        prop_assert!(atoms.into_iter().all(|a| !a.http_only()));
    }

    #[test]
    fn every_policy_gives_sound_resources(policy in samples::policies(true), inline: bool) {
        check_sound(&build(&policy, Capture::Nft, inline));
        prop_assert_eq!(build(&policy, none(), inline), build(&policy, none(), inline));
    }
}
