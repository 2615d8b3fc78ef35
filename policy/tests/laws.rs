//! Laws of resolution and evaluation that hold for every set of policies and every request. Generated values come from a
//! small world, so that policies often meet the requests made for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const ROOT: &str = "istio-system";
const PEERS: [&str; 4] = [
    "spiffe://cluster.local/ns/foo/sa/a",
    "spiffe://cluster.local/ns/bar/sa/b",
    "spiffe://old.td/ns/foo/sa/a",
    "spiffe://cluster.local/orders",
];

fn text(value: &str) -> StringMatch {
    StringMatch::parse(value)
}

fn tcp_atoms() -> Vec<Atom> {
    let mut atoms = vec![Atom::Port(80), Atom::Port(81), Atom::Sni(text("*.local"))];
    for value in ["cluster.local/ns/foo/sa/a", "old.td/ns/foo/sa/a", "*/sa/b", "cluster.local/*", "*"] {
        atoms.push(Atom::Principal(text(value)));
    }
    atoms.extend(["foo", "b*"].map(|n| Atom::Namespace(n.into())));
    atoms.push(Atom::ServiceAccount { namespace: "foo".into(), name: "a".into() });
    atoms.push(Atom::TrustDomain(TrustDomainMatch::Exact("old.td".into())));
    for net in ["10.0.0.0/8", "10.0.0.1/32"].map(|n| n.parse().expect("a CIDR")) {
        atoms.extend([Atom::SourceIp(net), Atom::RemoteIp(net), Atom::DestinationIp(net)]);
    }
    atoms
}

fn http_atoms() -> Vec<Atom> {
    let mut atoms = vec![Atom::Method(text("GET")), Atom::Host(text("Shop*"))];
    atoms.extend(["/a", "/a*", "*"].map(|p| Atom::Path(PathMatch::Plain(text(p)))));
    atoms.push(Atom::Path(PathMatch::Template("/a/{*}".into())));
    atoms.extend(["v", "*"].map(|v| Atom::Header { name: "x".into(), value: text(v) }));
    atoms.push(Atom::RequestPrincipal(RequestPrincipal { issuer: None, subject: Some(text("s")) }));
    atoms.push(Atom::Claim { path: vec!["scope".into()], value: text("read") });
    atoms
}

/// Which side of a rule an atom of `atoms` may stand on.
fn side(atom: &Atom) -> Side {
    match atom {
        Atom::Port(_)
        | Atom::DestinationIp(_)
        | Atom::Sni(_)
        | Atom::Host(_)
        | Atom::Method(_)
        | Atom::Path(_)
        | Atom::Metadata { .. } => Side::Permission,
        _ => Side::Principal,
    }
}

/// A condition on any attribute; resolve treats fields and conditions alike once they are clauses.
fn condition(http: bool) -> impl Strategy<Value = Condition> {
    let mut atoms = tcp_atoms();
    if http {
        atoms.extend(http_atoms());
    }
    (select(atoms.clone()), vec(select(atoms), 0..3), any::<bool>(), any::<bool>()).prop_map(
        |(first, more, negative, both)| {
            let alike = |a: &Atom| std::mem::discriminant(a) == std::mem::discriminant(&first);
            let others: Vec<Atom> = more.into_iter().filter(alike).collect();
            let (any, none) = match (negative, both) {
                (false, false) => ([vec![first.clone()], others].concat(), vec![]),
                (true, false) => (vec![], [vec![first.clone()], others].concat()),
                (_, true) => (vec![first.clone()], others),
            };
            Condition { key: "key".into(), side: side(&first), values: Match { any, none } }
        },
    )
}

fn rule(http: bool) -> impl Strategy<Value = Rule> {
    let paths = select(vec!["/a", "/a/*", "/b"]);
    let principals = select(PEERS.to_vec());
    (vec(condition(http), 0..3), vec(paths, 0..3), vec(principals, 0..2), any::<bool>()).prop_map(
        move |(when, paths, principals, never)| {
            let one = |any: Vec<Atom>| Match { any, none: vec![] };
            let to = paths.iter().filter(|_| http).map(|p| Operation {
                paths: one(vec![Atom::Path(PathMatch::Plain(text(p)))]),
                ..Operation::default()
            });
            let from = principals.iter().map(|p| Source {
                principals: one(vec![Atom::Principal(text(
                    p.strip_prefix("spiffe://").expect("all are SPIFFE IDs"),
                ))]),
                ..Source::default()
            });
            Rule { from: from.collect(), to: to.collect(), when, never: never && paths.len() == 2 }
        },
    )
}

fn meta() -> impl Strategy<Value = Meta> {
    let names = (select(vec!["foo", "foo", "foo", "bar", ROOT]), select(vec!["p", "q", "r", "s"]));
    (names, 0..3i64, any::<bool>()).prop_map(|((namespace, name), created, drain_on_revoke)| Meta {
        created,
        drain_on_revoke,
        ..Meta::new(ObjectName::new(namespace, name))
    })
}

fn attachment() -> impl Strategy<Value = Attachment> {
    let labels = |pairs: &[(&str, &str)]| {
        Attachment::Labels(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    };
    select(vec![
        Attachment::Namespace,
        Attachment::Namespace,
        Attachment::Namespace,
        labels(&[("app", "a")]),
        labels(&[("app", "a")]),
        labels(&[("app", "b")]),
        labels(&[("app", "a"), ("tier", "x")]),
        Attachment::Targets(vec![]),
    ])
}

fn action() -> impl Strategy<Value = Action> {
    let custom = |provider: &str| Action::Custom { provider: provider.into() };
    select(vec![
        Action::Allow,
        Action::Allow,
        Action::Allow,
        Action::Allow,
        Action::Deny,
        Action::Deny,
        Action::Audit,
        custom("known"),
        custom("unknown"),
    ])
}

fn authorization(http: bool) -> impl Strategy<Value = AuthorizationPolicy> {
    (meta(), attachment(), action(), vec(rule(http), 0..4), 0..5u8).prop_map(
        |(mut meta, attachment, action, rules, dry)| {
            meta.dry_run = dry == 0;
            AuthorizationPolicy { meta, attachment, action, rules }
        },
    )
}

fn peer() -> impl Strategy<Value = PeerAuthentication> {
    let mode =
        || select(vec![None, Some(MtlsMode::Strict), Some(MtlsMode::Permissive), Some(MtlsMode::Disable)]);
    let ports = proptest::collection::btree_map(80..83u16, mode(), 0..3);
    (meta(), attachment(), mode(), ports).prop_map(|(meta, attachment, mode, ports)| PeerAuthentication {
        meta,
        attachment,
        mode,
        ports,
    })
}

fn request_authentication() -> impl Strategy<Value = RequestAuthentication> {
    let issuers = vec((select(vec!["", "i", "j"]), any::<bool>()), 0..3);
    (meta(), attachment(), issuers).prop_map(|(meta, attachment, issuers)| {
        let rule = |(issuer, refuse): (&str, bool)| JwtRule {
            issuer: issuer.to_owned(),
            audiences: vec![],
            jwks: if refuse { Jwks::RefuseAll } else { Jwks::Inline("{}".into()) },
            from_headers: vec![],
            from_params: vec![],
            from_cookies: vec![],
            output_payload_to_header: None,
            forward_original_token: false,
            output_claim_to_headers: vec![],
            space_delimited_claims: vec![],
            timeout_ms: 5000,
            presence: Presence::Optional,
        };
        RequestAuthentication { meta, attachment, rules: issuers.into_iter().map(rule).collect() }
    })
}

/// One object of any kind.
#[derive(Clone, Debug)]
enum Object {
    Peer(PeerAuthentication),
    Request(RequestAuthentication),
    Authorization(AuthorizationPolicy),
}

impl Object {
    /// Kind and name: what an object is known by.
    fn key(&self) -> (u8, ObjectName) {
        match self {
            Self::Peer(p) => (0, p.meta.id.clone()),
            Self::Request(p) => (1, p.meta.id.clone()),
            Self::Authorization(p) => (2, p.meta.id.clone()),
        }
    }
}

fn objects(http: bool) -> impl Strategy<Value = Vec<Object>> {
    let object = prop_oneof![
        6 => authorization(http).prop_map(Object::Authorization),
        1 => peer().prop_map(Object::Peer),
        1 => request_authentication().prop_map(Object::Request),
    ];
    vec(object, 0..12).prop_map(|objects| {
        let by_key: BTreeMap<_, _> = objects.into_iter().map(|o| (o.key(), o)).collect();
        by_key.into_values().collect()
    })
}

fn set(objects: &[Object]) -> PolicySet {
    let mut set = PolicySet::new(Scope {
        trust_domain_aliases: vec!["old.td".into()],
        providers: vec!["known".into()],
        ..Scope::default()
    });
    for object in objects {
        match object.clone() {
            Object::Peer(p) => set.put_peer(Arc::new(p)),
            Object::Request(p) => set.put_request(Arc::new(p)),
            Object::Authorization(p) => set.put_authorization(Arc::new(p)),
        }
    }
    set
}

fn workload() -> impl Strategy<Value = WorkloadKey> {
    let labels =
        select(vec![vec![("app", "a")], vec![("app", "a"), ("tier", "x")], vec![("app", "b")], vec![]]);
    (select(vec!["foo", "foo", "foo", "foo", "bar", ROOT]), labels).prop_map(|(namespace, labels)| {
        WorkloadKey {
            namespace: namespace.into(),
            labels: Arc::new(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
        }
    })
}

fn request() -> impl Strategy<Value = Request> {
    let ip = || {
        select(vec!["10.0.0.1", "10.9.9.9", "::ffff:10.0.0.1", "fd00::1"])
            .prop_map(|ip| ip.parse().expect("an address"))
    };
    let network = (subsequence(PEERS.to_vec(), 0..=2), ip(), ip(), ip(), 80..83u16);
    let token =
        select(vec![None, Some(("i", "s", "read write")), Some(("j", "t", "")), Some(("k", "s", ""))]);
    let http = (
        select(vec!["GET", "POST"]),
        select(vec!["/", "/a", "/a/b", "/b?x=/a"]),
        select(vec!["", "shop.foo", "SHOP:80"]),
        subsequence(vec!["v", "w", ""], 0..=2),
        token,
    );
    (network, http, any::<bool>()).prop_map(|(network, http, tcp)| {
        let (peer, source_ip, remote_ip, destination_ip, port) = network;
        let (method, path, host, headers, token) = http;
        let claims = token.map(|(iss, sub, scope)| {
            let claims = serde_json::json!({"iss": iss, "sub": sub, "scope": scope});
            claims.as_object().expect("an object").clone()
        });
        Request {
            protocol: if tcp { Protocol::Tcp } else { Protocol::Http },
            peer: peer.into_iter().map(str::to_owned).collect(),
            source_ip,
            remote_ip,
            destination_ip,
            sni: "outbound_.80_._.shop.local".to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            host: host.to_owned(),
            headers: headers.into_iter().map(|v| ("X".to_owned(), v.to_owned())).collect(),
            claims,
            ..Request::http(port)
        }
    })
}

/// Whether `after` admits nothing that `before` refuses.
fn not_wider(
    before: &EffectivePolicy,
    after: &EffectivePolicy,
    requests: &[Request],
) -> Result<(), TestCaseError> {
    for request in requests {
        let (old, new) = (evaluate(before, request), evaluate(after, request));
        prop_assert!(
            old.verdict == Verdict::Allow || new.verdict == Verdict::Deny,
            "{old:?}\nbecame\n{new:?}\nfor {request:?}"
        );
    }
    Ok(())
}

fn enforced_allow(object: &Object) -> bool {
    matches!(object, Object::Authorization(p) if p.action == Action::Allow && !p.meta.dry_run)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn resolve_does_not_depend_on_the_order_of_insertion(
        objects in objects(true).prop_shuffle(), workload in workload(),
    ) {
        let mut reversed = objects.clone();
        reversed.reverse();
        prop_assert_eq!(resolve(&set(&objects), &workload), resolve(&set(&reversed), &workload));
    }

    /// What is removed leaves no trace, so incremental equals from scratch.
    #[test]
    fn adding_and_removing_is_the_identity(
        objects in objects(true), extra in authorization(true), workload in workload(),
    ) {
        let before = set(&objects);
        prop_assume!(!objects.iter().any(|o| o.key() == (2, extra.meta.id.clone())));
        let mut after = before.clone();
        after.put_authorization(Arc::new(extra.clone()));
        let attached = extra.attaches_to(&after.scope, &workload);
        prop_assert!(attached || resolve(&after, &workload) == resolve(&before, &workload));
        after.remove_authorization(&extra.meta.id);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn adding_a_deny_never_widens(
        objects in objects(true), mut extra in authorization(true),
        workload in workload(), requests in vec(request(), 8),
    ) {
        extra.action = Action::Deny;
        extra.meta.id.name = "extra".into();
        let before = resolve(&set(&objects), &workload);
        let after = resolve(&set(&[objects, vec![Object::Authorization(extra)]].concat()), &workload);
        not_wider(&before, &after, &requests)?;
    }

    #[test]
    fn removing_an_allow_never_widens_while_one_remains(
        objects in objects(true), workload in workload(), requests in vec(request(), 8),
    ) {
        let all = set(&objects);
        let attached = |o: &Object| match o {
            Object::Authorization(p) => enforced_allow(o) && p.attaches_to(&all.scope, &workload),
            _ => false,
        };
        let before = resolve(&all, &workload);
        for gone in objects.iter().filter(|o| attached(o)) {
            let rest: Vec<Object> = objects.iter().filter(|o| o.key() != gone.key()).cloned().collect();
            if rest.iter().any(attached) {
                not_wider(&before, &resolve(&set(&rest), &workload), &requests)?;
            }
        }
    }

    #[test]
    fn dry_run_never_changes_enforcement(
        objects in objects(true), workload in workload(), requests in vec(request(), 8),
    ) {
        let dry = |o: &Object| matches!(o, Object::Authorization(p) if p.meta.dry_run);
        let without: Vec<Object> = objects.iter().filter(|o| !dry(o)).cloned().collect();
        let (with, without) = (resolve(&set(&objects), &workload), resolve(&set(&without), &workload));
        prop_assert_eq!(&with.drain, &without.drain);
        for request in &requests {
            let (mut with, without) = (evaluate(&with, request), evaluate(&without, request));
            with.dry_run = None;
            prop_assert_eq!(with, without);
        }
    }

    /// What a dry run of ALLOW and DENY reports is what enforcing those policies alone would do.
    #[test]
    fn dry_run_reports_what_enforcement_would_do(
        objects in objects(true), workload in workload(), requests in vec(request(), 8),
    ) {
        let policy = resolve(&set(&objects), &workload);
        let enforce = |rules: &ActionRules| ActionRules { enforced: rules.shadow.clone(), shadow: None };
        let alone =
            EffectivePolicy { deny: enforce(&policy.deny), allow: enforce(&policy.allow), ..policy.clone() };
        for request in &requests {
            if let Some(dry) = evaluate(&policy, request).dry_run {
                prop_assert_eq!(dry.verdict, evaluate(&alone, request).verdict);
            }
        }
    }

    #[test]
    fn http_and_tcp_agree_on_rules_without_http_fields(
        objects in objects(false), workload in workload(), requests in vec(request(), 8),
    ) {
        let mut policy = resolve(&set(&objects), &workload);
        // Tokens exist in HTTP only.
        policy.jwt.clear();
        for request in &requests {
            let http = evaluate(&policy, &Request { protocol: Protocol::Http, ..request.clone() });
            let tcp = evaluate(&policy, &Request { protocol: Protocol::Tcp, ..request.clone() });
            prop_assert_eq!(http, tcp);
        }
    }

    /// A peer that chooses the TCP chain gains nothing by it.
    #[test]
    fn tcp_admits_no_more_than_http(
        objects in objects(true), workload in workload(), requests in vec(request(), 8),
    ) {
        let mut policy = resolve(&set(&objects), &workload);
        policy.jwt.clear();
        for request in &requests {
            let http = evaluate(&policy, &Request { protocol: Protocol::Http, ..request.clone() });
            let tcp = evaluate(&policy, &Request { protocol: Protocol::Tcp, ..request.clone() });
            prop_assert!(http.verdict == Verdict::Allow || tcp.verdict == Verdict::Deny, "{http:?} {tcp:?}");
            for provider in &http.consulted {
                prop_assert!(tcp.consulted.contains(provider));
            }
        }
    }

    #[test]
    fn the_tcp_projection_is_idempotent(objects in objects(true), workload in workload()) {
        let tcp = resolve(&set(&objects), &workload).tcp();
        prop_assert_eq!(tcp.tcp(), tcp);
    }

    /// Everybody has a deciding rule or a stated reason, and a default deny names what was missing.
    #[test]
    fn a_near_miss_names_at_least_one_difference(
        objects in objects(true), workload in workload(), requests in vec(request(), 8),
    ) {
        let policy = resolve(&set(&objects), &workload);
        for request in &requests {
            let decision = evaluate_with_nearest(&policy, request);
            if let Some(near) = &decision.nearest {
                prop_assert_eq!(&decision.deciding, &Deciding::DefaultDeny);
                prop_assert!(!near.failed.is_empty());
                let known = policy.allow.enforced.iter().flatten().any(|rule| rule.name() == near.rule);
                prop_assert!(known);
            }
        }
    }

    /// On a STRICT port no policy admits a peer without identity, and the refusal names who made it STRICT.
    #[test]
    fn strict_never_admits_nobody(
        objects in objects(true), workload in workload(), requests in vec(request(), 8),
    ) {
        let policy = resolve(&set(&objects), &workload);
        for mut request in requests {
            request.peer.clear();
            if policy.mtls.port(request.destination_port) == MtlsMode::Strict {
                let decision = evaluate(&policy, &request);
                prop_assert_eq!(decision.verdict, Verdict::Deny);
                prop_assert!(matches!(decision.deciding, Deciding::Mtls(Some(_))));
            }
        }
    }
}
