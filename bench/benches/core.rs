//! Resolving one workload among 10 to 10,000 policies: the work per change must not grow with the mesh.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policy::{
    Action, Atom, Attachment, AuthorizationPolicy, Match, Meta, ObjectName, Operation, PathMatch, PolicySet,
    Rule, Scope, Source, StringMatch, WorkloadKey, resolve,
};

/// `count` ALLOW policies over a hundred namespaces, each for one application.
fn policies(count: usize) -> PolicySet {
    let mut set = PolicySet::new(Scope::default());
    for n in 0..count {
        let namespace = format!("ns-{}", n % 100);
        let any = |atom| Match { any: vec![atom], none: vec![] };
        let principal = StringMatch::parse(&format!("cluster.local/ns/{namespace}/sa/caller-{n}"));
        let rule = Rule {
            from: vec![Source { principals: any(Atom::Principal(principal)), ..Source::default() }],
            to: vec![Operation {
                methods: any(Atom::Method(StringMatch::parse("GET"))),
                paths: any(Atom::Path(PathMatch::Plain(StringMatch::parse(&format!("/api/{n}/*"))))),
                ..Operation::default()
            }],
            ..Rule::default()
        };
        set.put_authorization(Arc::new(AuthorizationPolicy {
            meta: Meta::new(ObjectName::new(namespace, format!("policy-{n}"))),
            attachment: Attachment::Labels([("app".to_owned(), format!("app-{}", n / 100 % 10))].into()),
            action: Action::Allow,
            rules: vec![rule],
        }));
    }
    set
}

fn core(criterion: &mut Criterion) {
    let labels: BTreeMap<String, String> = [("app".to_owned(), "app-1".to_owned())].into();
    let key = WorkloadKey { namespace: "ns-7".into(), labels: Arc::new(labels) };
    let mut group = criterion.benchmark_group("resolve");
    for count in [10, 100, 1_000, 10_000] {
        let set = policies(count);
        group.bench_with_input(BenchmarkId::from_parameter(count), &set, |bencher, set| {
            bencher.iter(|| resolve(black_box(set), black_box(&key)));
        });
    }
    group.finish();
}

criterion_group!(benches, core);
criterion_main!(benches);
