//! Each kind of atom against requests that should and should not match it, as Envoy decides (semantics §4.2, §4.3).

use policy::{Atom, Clause, EffectivePolicy, PathMatch, StringMatch, TrustDomainMatch};

use super::bed::{Bed, HTTP, MESH_HTTP, TCP};
use super::{fixtures, net, samples};

fn plain(text: &str) -> StringMatch {
    StringMatch::parse(text)
}

fn path(text: &str) -> Atom {
    if text.contains('{') {
        Atom::Path(PathMatch::Template(text.into()))
    } else {
        Atom::Path(PathMatch::Plain(plain(text)))
    }
}

fn header(name: &str, value: &str) -> Atom {
    Atom::Header { name: name.into(), value: plain(value) }
}

/// Lets only what `atom` matches pass.
fn only(atom: &Atom) -> EffectivePolicy {
    let one = std::slice::from_ref(atom);
    let rule = match samples::side(atom) {
        policy::model::Side::Permission => fixtures::rule("only", one, &[]),
        policy::model::Side::Principal => fixtures::rule("only", &[], one),
    };
    let mut policy = EffectivePolicy::default();
    policy.allow.enforced = Some(vec![rule]);
    policy
}

/// A request by its path, host and further headers.
type Request = (&'static str, &'static str, &'static str);

#[tokio::test]
async fn http_attributes() {
    let Some(bed) = Bed::new().await else { return };
    let cases: Vec<(Atom, Vec<Request>, Vec<Request>)> = vec![
        (
            path("/a"),
            vec![("/a", "h", ""), ("/a?x=/b", "h", "")],
            vec![("/a/", "h", ""), ("/A", "h", ""), ("/b?/a", "h", "")],
        ),
        (
            path("/a/*"),
            vec![("/a/", "h", ""), ("/a/b/c?d", "h", ""), ("/x/../a/b", "h", "")],
            vec![("/a", "h", ""), ("/a/../b", "h", "")],
        ),
        (
            path("*.txt"),
            vec![("/a.txt", "h", "")],
            vec![("/a.txt/b", "h", ""), ("/atxt", "h", ""), ("/a?.txt", "h", "")],
        ),
        (path("*"), vec![("/", "h", "")], vec![]),
        (
            path("/a/{*}/c"),
            vec![("/a/b/c", "h", "")],
            vec![("/a/c", "h", ""), ("/a//c", "h", ""), ("/a/b/b/c", "h", "")],
        ),
        (path("/a/{**}"), vec![("/a/", "h", ""), ("/a/b/c", "h", "")], vec![("/a", "h", "")]),
        (Atom::Method(plain("GET")), vec![("/", "h", "")], vec![]),
        (Atom::Method(plain("get")), vec![], vec![("/", "h", "")]),
        (
            Atom::Host(plain("a.com")),
            vec![("/", "a.com", ""), ("/", "A.COM", "")],
            vec![("/", "a.com:80", ""), ("/", "xa.com", "")],
        ),
        (
            Atom::Host(plain("*.com")),
            vec![("/", "a.b.Com", "")],
            vec![("/", "acom", ""), ("/", "a.com:80", "")],
        ),
        (Atom::Host(plain("a.com:*")), vec![("/", "a.com:80", "")], vec![("/", "a.com", "")]),
        (
            header("x-a", "v"),
            vec![("/", "h", "X-A: v\r\n")],
            vec![("/", "h", ""), ("/", "h", "x-a: V\r\n"), ("/", "h", "x-a: v, w\r\n")],
        ),
        (
            header("x-a", "*"),
            vec![("/", "h", "x-a: \r\n"), ("/", "h", "x-a: v\r\n")],
            vec![("/", "h", "x-ab: v\r\n")],
        ),
        (header("x-a", "v*"), vec![("/", "h", "x-a: vw\r\n")], vec![("/", "h", "x-a: wv\r\n")]),
        (header("x-a", "*v"), vec![("/", "h", "x-a: wv\r\n")], vec![("/", "h", "x-a: vw\r\n")]),
        (header("x-a", "a.b"), vec![("/", "h", "x-a: a.b\r\n")], vec![("/", "h", "x-a: axb\r\n")]),
    ];
    for (atom, matching, others) in cases {
        bed.enforce(&only(&atom)).await;
        let mut stream = net::tls(bed.at(HTTP), Some(&bed.client), &MESH_HTTP).await.unwrap();
        let requests = matching.into_iter().map(|r| (r, 200)).chain(others.into_iter().map(|r| (r, 403)));
        for ((path, host, headers), status) in requests {
            let got = net::http_to(&mut stream, host, "GET", path, headers).await.unwrap().0;
            assert_eq!(got, status, "{atom:?}: {path} {host} {headers}");
        }
    }
}

/// Names with metacharacters match only themselves, on HTTP and TCP alike (semantics §10.7, CVE-2020-16844).
#[tokio::test]
async fn identities() {
    let Some(mut bed) = Bed::new().await else { return };
    // Strangers would not come past TLS.
    bed.mesh.trust_domain_aliases = vec!["cluster.local.evil".into(), "clusterxlocal".into()];
    let principal = |text: &str| Atom::Principal(plain(text));
    let namespace = |text: &str| Atom::Namespace(text.into());
    let account = |ns: &str, name: &str| Atom::ServiceAccount { namespace: ns.into(), name: name.into() };
    let domain = |text: &str| {
        Atom::TrustDomain(match text {
            "*" => TrustDomainMatch::Any,
            text if text.contains('*') => TrustDomainMatch::Wildcard(text.into()),
            text => TrustDomainMatch::Exact(text.into()),
        })
    };
    let (ab, axb) = ("cluster.local/ns/a.b/sa/c.d", "cluster.local/ns/axb/sa/cxd");
    for (atom, matching, others) in [
        (principal(ab), vec![ab], vec![axb]),
        (principal("cluster.local/ns/a.b/*"), vec![ab], vec![axb]),
        (principal("*/sa/c.d"), vec![ab], vec![axb]),
        (principal("*"), vec![ab, axb], vec![]),
        (namespace("a.b"), vec![ab], vec![axb, "cluster.local/ns/a.b.c/sa/x"]),
        (namespace("a*b"), vec![ab, axb], vec!["cluster.local/ns/b/sa/a"]),
        (namespace("*"), vec![ab], vec!["cluster.local/orders"]),
        (
            account("a.b", "c.d"),
            vec![ab, "cluster.local/ns/a.b/x/sa/c.d"],
            vec![axb, "cluster.local/ns/a.b/sa/c.d2"],
        ),
        (domain("cluster.local"), vec![ab], vec!["cluster.local.evil/ns/a.b/sa/c.d"]),
        (domain("cluster.*"), vec![ab, "cluster.local.evil/ns/a.b/sa/c.d"], vec!["clusterxlocal/ns/a/sa/b"]),
        (domain("*.evil"), vec!["cluster.local.evil/ns/a.b/sa/c.d"], vec![ab]),
        (domain("*"), vec![ab], vec![]),
    ] {
        bed.enforce(&only(&atom)).await;
        let asked = matching.into_iter().map(|id| (id, true)).chain(others.into_iter().map(|id| (id, false)));
        for (id, allowed) in asked {
            let peer = bed.ca.issue(&[&format!("spiffe://{id}")]);
            let status = bed.http(HTTP, Some(&peer), "/").await;
            assert_eq!(status, Ok(if allowed { 200 } else { 403 }), "{atom:?}: {id}");
            assert_eq!(bed.tcp(TCP, Some(&peer)).await, allowed, "{atom:?}: {id} over TCP");
        }
        let anonymous = bed.http(HTTP, None, "/").await;
        assert_eq!(anonymous, Ok(403), "{atom:?}: without a certificate");
        assert!(!bed.tcp(TCP, None).await, "{atom:?}: without a certificate, TCP");
    }
}

#[tokio::test]
async fn addresses_and_ports() {
    let Some(bed) = Bed::new().await else { return };
    let net = |text: &str| text.parse().unwrap();
    let own = format!("{}/32", bed.address);
    for (atom, http, tcp) in [
        (Atom::SourceIp(net("127.0.0.1/32")), true, true),
        (Atom::SourceIp(net("10.0.0.0/8")), false, false),
        (Atom::RemoteIp(net("127.0.0.1/32")), true, true),
        (Atom::DestinationIp(net(&own)), true, true),
        (Atom::DestinationIp(net("10.0.0.0/8")), false, false),
        (Atom::Port(HTTP), true, false),
        (Atom::Port(TCP), false, true),
        (Atom::Sni(plain("*.test")), true, true),
        (Atom::Sni(plain("test")), false, false),
    ] {
        bed.enforce(&only(&atom)).await;
        let status = bed.http(HTTP, Some(&bed.client), "/").await;
        assert_eq!(status, Ok(if http { 200 } else { 403 }), "{atom:?}");
        assert_eq!(bed.tcp(TCP, Some(&bed.client)).await, tcp, "{atom:?}");
    }
    // X-Forwarded-For is believed at a sidecar (semantics §12.5): remote, not source.
    for (atom, expected) in [
        (Atom::RemoteIp(net("10.0.0.0/8")), 200),
        (Atom::SourceIp(net("10.0.0.0/8")), 403),
        (Atom::RemoteIp(net("127.0.0.1/32")), 403),
        (Atom::SourceIp(net("127.0.0.1/32")), 200),
    ] {
        bed.enforce(&only(&atom)).await;
        let forwarded =
            bed.http_with(HTTP, Some(&bed.client), "/", "x-forwarded-for: 1.1.1.1, 10.0.0.1\r\n").await;
        assert_eq!(forwarded.unwrap().0, expected, "{atom:?}");
    }
}

/// `notX`: none of its values may match, alone and beside values of which one must; on both sides of a rule.
#[tokio::test]
async fn negations() {
    let Some(bed) = Bed::new().await else { return };
    let without = |any: &[Atom], none: &[Atom]| {
        let clause = Clause { field: "".into(), any: any.to_vec(), none: none.to_vec() };
        let mut rule = fixtures::rule("only", &[], &[]);
        match samples::side(&none[0]) {
            policy::model::Side::Permission => rule.permissions = vec![vec![clause]],
            policy::model::Side::Principal => rule.principals = vec![vec![clause]],
        }
        let mut policy = EffectivePolicy::default();
        policy.allow.enforced = Some(vec![rule]);
        policy
    };
    let paths = [path("/a"), path("/b*")];
    let headers = [header("x", "1"), header("y", "*")];
    // Path, headers, and whether it is admitted.
    type Requests = &'static [(&'static str, &'static str, bool)];
    let cases: [(EffectivePolicy, Requests); 4] = [
        (without(&[], &paths), &[("/a", "", false), ("/bc", "", false), ("/c", "", true)]),
        (without(&[path("/*")], &paths), &[("/a", "", false), ("/b", "", false), ("/c", "", true)]),
        (
            without(&[], &headers),
            &[("/", "x: 1\r\n", false), ("/", "y: 2\r\n", false), ("/", "x: 2\r\n", true), ("/", "", true)],
        ),
        (
            without(&[header("x", "*")], &headers),
            &[
                ("/", "x: 1\r\n", false),
                ("/", "x: 2\r\ny: 2\r\n", false),
                ("/", "x: 2\r\n", true),
                ("/", "", false),
            ],
        ),
    ];
    for (policy, requests) in cases {
        bed.enforce(&policy).await;
        for (path, headers, admitted) in requests {
            let (status, _) = bed.http_with(HTTP, Some(&bed.client), path, headers).await.unwrap();
            assert_eq!(status, if *admitted { 200 } else { 403 }, "{path} {headers} by {policy:?}");
        }
    }
}

/// The counters that Istio documents, and nothing enforced (semantics §4.5).
#[tokio::test]
async fn dry_run_only_counts() {
    let Some(bed) = Bed::new().await else { return };
    let mut policy = only(&path("/a"));
    policy.allow = policy::ActionRules { enforced: None, shadow: policy.allow.enforced };
    policy.deny = policy.allow.clone();
    bed.enforce(&policy).await;
    for path in ["/a", "/b", "/c"] {
        assert_eq!(bed.http(HTTP, Some(&bed.client), path).await, Ok(200));
    }
    let stats = bed.envoy.admin("/stats?filter=istio_dry_run").await;
    for counter in [
        "istio_dry_run_allow_.shadow_allowed: 1",
        "istio_dry_run_allow_.shadow_denied: 2",
        "istio_dry_run_deny_.shadow_allowed: 2",
        "istio_dry_run_deny_.shadow_denied: 1",
    ] {
        assert!(stats.contains(counter), "{counter} is not in {stats}");
    }
}
