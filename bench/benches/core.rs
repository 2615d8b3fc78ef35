//! Resolving one workload among 10 to 10,000 policies, where the work per change must not grow with the mesh; and deciding
//! about one request by 5 policies with 20 rules.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policy::model::Side;
use policy::{
    Action, Atom, Attachment, AuthorizationPolicy, Condition, EffectivePolicy, Match, Meta, ObjectName,
    Operation, PathMatch, PolicySet, Request, Rule, Scope, Source, StringMatch, Verdict, WorkloadKey,
    evaluate, resolve,
};

/// Five ALLOW policies that select the workload, and `count` that do not: half of them in its own namespace, for other
/// applications, a tenth of them in the root namespace, the rest elsewhere.
fn policies(count: usize) -> PolicySet {
    let mut set = PolicySet::new(Scope::default());
    let mut put = |namespace: &str, name: String, app: String| {
        let any = |atom| Match { any: vec![atom], none: vec![] };
        let principal = StringMatch::parse(&format!("cluster.local/ns/{namespace}/sa/{name}"));
        let rule = Rule {
            from: vec![Source { principals: any(Atom::Principal(principal)), ..Source::default() }],
            to: vec![Operation {
                methods: any(Atom::Method(StringMatch::parse("GET"))),
                paths: any(Atom::Path(PathMatch::Plain(StringMatch::parse(&format!("/{name}/*"))))),
                ..Operation::default()
            }],
            ..Rule::default()
        };
        set.put_authorization(Arc::new(AuthorizationPolicy {
            meta: Meta::new(ObjectName::new(namespace, name)),
            attachment: Attachment::Labels([("app".to_owned(), app)].into()),
            action: Action::Allow,
            rules: vec![rule],
        }));
    };
    for n in 0..5 {
        put("shop", format!("own-{n}"), "orders".to_owned());
    }
    for n in 0..count {
        let namespace = match n % 10 {
            0..5 => "shop".to_owned(),
            5 => "istio-system".to_owned(),
            _ => format!("ns-{}", n % 100),
        };
        put(&namespace, format!("policy-{n}"), format!("app-{}", n / 10));
    }
    set
}

fn core(criterion: &mut Criterion) {
    let labels = [("app", "orders"), ("version", "v1"), ("pod-template-hash", "5d4f8")];
    let labels: BTreeMap<String, String> = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let key = WorkloadKey { namespace: "shop".into(), labels: Arc::new(labels) };
    let mut group = criterion.benchmark_group("resolve");
    for count in [10, 100, 1_000, 10_000] {
        let set = policies(count);
        assert_eq!(resolve(&set, &key).allow.enforced.map(|rules| rules.len()), Some(5));
        group.bench_with_input(BenchmarkId::from_parameter(count), &set, |bencher, set| {
            bencher.iter(|| resolve(black_box(set), black_box(&key)));
        });
    }
    group.finish();
}

fn matching(values: &[&str], atom: impl Fn(&str) -> Atom) -> Match {
    Match { any: values.iter().map(|value| atom(value)).collect(), none: vec![] }
}

fn text(make: impl Fn(StringMatch) -> Atom) -> impl Fn(&str) -> Atom {
    move |value| make(StringMatch::parse(value))
}

/// The four rules of policy `p`: by identity and path, by namespace and host, by template and header, by address and port.
fn rules(p: usize) -> Vec<Rule> {
    let path = |value: &str| match value.contains('{') {
        true => Atom::Path(PathMatch::Template(value.into())),
        false => Atom::Path(PathMatch::Plain(StringMatch::parse(value))),
    };
    let methods = || matching(&["GET", "HEAD"], text(Atom::Method));
    let rule = |source: Source, operation: Operation, when: Vec<Condition>| Rule {
        from: vec![source],
        to: vec![operation],
        when,
        ..Rule::default()
    };
    let (web, api) = (format!("cluster.local/ns/shop/sa/web-{p}"), format!("/api/v{p}/*"));
    let header = |value: StringMatch| Atom::Header { name: "x-tenant".into(), value };
    let tenant = format!("tenant-{p}");
    vec![
        rule(
            Source {
                principals: matching(&[&web, "cluster.local/ns/ops/*"], text(Atom::Principal)),
                ..Source::default()
            },
            Operation {
                methods: methods(),
                paths: matching(&[&api, "/health"], path),
                ..Operation::default()
            },
            vec![],
        ),
        rule(
            Source {
                namespaces: matching(&[&format!("team-{p}"), "ops"], |ns| Atom::Namespace(ns.into())),
                ..Source::default()
            },
            Operation {
                hosts: matching(&["*.shop.example"], text(Atom::Host)),
                methods: methods(),
                ..Operation::default()
            },
            vec![],
        ),
        rule(
            Source::default(),
            Operation {
                paths: matching(&[&format!("/orders/{p}/{{*}}/items")], path),
                ..Operation::default()
            },
            vec![Condition {
                key: "request.headers[x-tenant]".into(),
                side: Side::Principal,
                values: matching(&[&tenant], text(header)),
            }],
        ),
        rule(
            Source {
                ip_blocks: matching(&[&format!("10.{p}.0.0/16")], |net| {
                    Atom::SourceIp(net.parse().expect("a block"))
                }),
                ..Source::default()
            },
            Operation {
                ports: matching(&["8080"], |port| Atom::Port(port.parse().expect("a port"))),
                ..Operation::default()
            },
            vec![],
        ),
    ]
}

/// Five policies with four rules each: one DENY, four ALLOW.
fn effective() -> EffectivePolicy {
    let mut set = PolicySet::new(Scope::default());
    for p in 0..5 {
        set.put_authorization(Arc::new(AuthorizationPolicy {
            meta: Meta::new(ObjectName::new("shop", format!("policy-{p}"))),
            attachment: Attachment::Namespace,
            action: if p == 0 { Action::Deny } else { Action::Allow },
            rules: rules(p),
        }));
    }
    resolve(&set, &WorkloadKey { namespace: "shop".into(), labels: Arc::default() })
}

fn decisions(criterion: &mut Criterion) {
    let policy = effective();
    let base = Request {
        peer: vec!["spiffe://cluster.local/ns/shop/sa/web-4".to_owned()],
        method: "GET".to_owned(),
        host: "orders.shop.svc.cluster.local".to_owned(),
        path: "/api/v4/orders?page=2".to_owned(),
        headers: ["accept", "user-agent", "x-request-id", "x-tenant"]
            .map(|n| (n.to_owned(), "some".to_owned()))
            .into(),
        source_ip: [192, 0, 2, 7].into(),
        ..Request::http(8080)
    };
    let nobody = vec!["spiffe://cluster.local/ns/shop/sa/nobody".to_owned()];
    let denied = Request {
        path: "/api/v0/x".to_owned(),
        peer: vec!["spiffe://cluster.local/ns/shop/sa/web-0".to_owned()],
        ..base.clone()
    };
    let mut group = criterion.benchmark_group("evaluate");
    for (name, request, verdict) in [
        ("allowed by the last policy", base.clone(), Verdict::Allow),
        ("denied by a DENY", denied, Verdict::Deny),
        ("denied by default", Request { peer: nobody, ..base.clone() }, Verdict::Deny),
        (
            "TCP",
            Request { peer: base.peer, source_ip: [10, 3, 0, 1].into(), ..Request::tcp(8080) },
            Verdict::Deny,
        ),
    ] {
        assert_eq!(evaluate(&policy, &request).verdict, verdict, "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| evaluate(black_box(&policy), black_box(&request)));
        });
    }
    group.finish();
}

criterion_group!(benches, core, decisions);
criterion_main!(benches);
