//! `covers` is sound: whatever the covered rule matches, the covering one matches, on HTTP and on TCP, as `evaluate` sees it.
//! Rules and requests come from a world so small that many rules cover one another and many requests match.

use std::collections::BTreeMap;

use policy::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// One attribute, with all values that rules of this world give it.
fn family(n: usize) -> Vec<Atom> {
    let text = StringMatch::parse;
    let of = |values: &[&str], atom: &dyn Fn(StringMatch) -> Atom| -> Vec<Atom> {
        values.iter().map(|value| atom(text(value))).collect()
    };
    let nets = |atom: fn(ipnet::IpNet) -> Atom| -> Vec<Atom> {
        let nets = ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "11.0.0.0/8", "::/0", "fd00::/8"];
        nets.iter().map(|net| atom(net.parse().expect("a CIDR"))).collect()
    };
    match n {
        0 => {
            let principals = [
                "td/ns/a/sa/x",
                "td/ns/a/*",
                "td/*",
                "*/sa/x",
                "*a/sa/x",
                "*x",
                "*",
                "td/ns/a\n/sa/x",
                "*\nx",
            ];
            let mut all = of(&principals, &Atom::Principal);
            all.extend(["a", "a*", "*", "b", "*\n*"].map(|name| Atom::Namespace(name.into())));
            for (namespace, name) in [("a", "x"), ("a", "y"), ("a\n", "x")] {
                all.push(Atom::ServiceAccount { namespace: namespace.into(), name: name.into() });
            }
            let domains = [
                TrustDomainMatch::Any,
                TrustDomainMatch::Exact("td".into()),
                TrustDomainMatch::Wildcard("t*".into()),
            ];
            all.extend(domains.map(Atom::TrustDomain));
            all
        }
        1 => nets(Atom::SourceIp),
        2 => nets(Atom::RemoteIp),
        3 => of(&["v", "v*", "*v", "*", "", "vw", "\n"], &|value| Atom::Header { name: "h".into(), value }),
        4 => [("i", "s"), ("i", "*"), ("*", "s"), ("i*", "s*")]
            .map(|(issuer, subject)| {
                let part = |value: &str| (value != "*").then(|| text(value));
                Atom::RequestPrincipal(RequestPrincipal { issuer: part(issuer), subject: part(subject) })
            })
            .to_vec(),
        5 => of(&["r", "r*", "*", "rw", "*w", "\n"], &|value| Atom::Claim { path: vec!["c".into()], value }),
        6 => [8080, 8081].map(Atom::Port).to_vec(),
        7 => of(&["GET", "G*", "*", "POST", "*T"], &Atom::Method),
        8 => {
            let mut all =
                of(&["/", "/a", "/a*", "/a/b", "/*", "*/b", "*"], &|path| Atom::Path(PathMatch::Plain(path)));
            all.extend(["/a/{*}", "/{**}"].map(|path| Atom::Path(PathMatch::Template(path.into()))));
            all
        }
        9 => of(&["h.x", "H.*", "*.X", "*", "h.x:80"], &Atom::Host),
        10 => of(&["n.x", "n*", "*"], &Atom::Sni),
        _ => of(&["m", "m*", "*"], &|value| Atom::Metadata {
            filter: "f".into(),
            key: "k".into(),
            value,
            list: false,
        }),
    }
}

/// The attributes of the caller come first.
const PRINCIPALS: std::ops::Range<usize> = 0..6;
const PERMISSIONS: std::ops::Range<usize> = 6..12;

fn clause(families: std::ops::Range<usize>) -> impl Strategy<Value = Clause> {
    families.prop_flat_map(|n| {
        let atoms = || vec(select(family(n)), 0..3);
        (atoms(), atoms(), 0..3u8).prop_map(|(mut any, mut none, which)| {
            match which {
                0 => any.clear(),
                1 => none.clear(),
                _ => {}
            }
            Clause { field: "field".into(), any, none }
        })
    })
}

fn side(families: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<Clause>>> {
    vec(vec(clause(families), 0..3), 0..3)
}

fn rule() -> impl Strategy<Value = EffectiveRule> {
    (side(PERMISSIONS), side(PRINCIPALS)).prop_map(|(permissions, principals)| EffectiveRule {
        policy: ObjectName::new("a", "p"),
        index: 0,
        permissions,
        principals,
    })
}

/// The same rule with single changes, most of which make it wider or narrower.
fn kin(rule: EffectiveRule) -> impl Strategy<Value = EffectiveRule> {
    let edit = (0..6u8, any::<prop::sample::Index>(), clause(PERMISSIONS), clause(PRINCIPALS));
    vec(edit, 0..3).prop_map(move |edits| {
        let mut rule = rule.clone();
        for (what, at, permission, principal) in edits {
            let (side, new) = if what % 2 == 0 {
                (&mut rule.permissions, permission)
            } else {
                (&mut rule.principals, principal)
            };
            if side.is_empty() {
                continue;
            }
            let at = at.index(side.len());
            match what / 2 {
                0 => side[at].push(new),
                1 => drop(side[at].pop()),
                _ => drop(side.remove(at)),
            }
        }
        rule
    })
}

fn request() -> impl Strategy<Value = Request> {
    let ip = || select(vec!["10.0.0.1", "10.0.0.9", "10.9.9.9", "11.0.0.1", "fd00::1"]);
    let names = ["td/ns/a/sa/x", "td/ns/ab/sa/x", "other/ns/a/sa/y", "td/ns/a\n/sa/x", "td/ns/a/sa/\nx"];
    let peer = subsequence(names.map(|name| format!("spiffe://{name}")).to_vec(), 0..=2);
    let network = (peer, ip(), ip(), select(vec![8080, 8081]), select(vec!["", "n.x", "nn"]));
    let http = (
        select(vec!["GET", "POST", "PUT"]),
        select(vec!["/", "/a", "/a/b", "/b", "/a?x"]),
        select(vec!["", "h.x", "H.X:80", "g"]),
        subsequence(vec!["v", "vw", "wv", "", "\n"], 0..=2),
        (
            select(vec!["i", "j"]),
            select(vec!["s", "t", ""]),
            select(vec!["r", "rw", "", "\n"]),
            any::<bool>(),
        ),
        select(vec!["m", "mm", ""]),
    );
    (network, http, any::<bool>()).prop_map(|((peer, source, remote, port, sni), http, tcp)| {
        let (method, path, host, headers, (iss, sub, claim, token), metadata) = http;
        let base = if tcp { Request::tcp(port) } else { Request::http(port) };
        let claims = serde_json::json!({"iss": iss, "sub": sub, "c": claim});
        let metadata = BTreeMap::from([("k".to_owned(), metadata.into())]);
        Request {
            peer,
            source_ip: source.parse().expect("an address"),
            remote_ip: remote.parse().expect("an address"),
            sni: sni.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            host: host.to_owned(),
            headers: headers.into_iter().map(|value| ("h".to_owned(), value.to_owned())).collect(),
            claims: token.then(|| claims.as_object().expect("an object").clone()),
            metadata: BTreeMap::from([("f".to_owned(), metadata)]),
            ..base
        }
    })
}

/// Only this rule, as an ALLOW and as a DENY; tokens of every issuer are good.
fn matches(rule: &EffectiveRule, request: &Request) -> [bool; 2] {
    let any_issuer = JwtRule {
        issuer: String::new(),
        audiences: vec![],
        jwks: Jwks::Inline("{}".into()),
        from_headers: vec![],
        from_params: vec![],
        from_cookies: vec![],
        output_payload_to_header: None,
        forward_original_token: true,
        output_claim_to_headers: vec![],
        space_delimited_claims: vec![],
        timeout_ms: 1,
        presence: Presence::Optional,
    };
    let base = EffectivePolicy { jwt: vec![any_issuer], ..EffectivePolicy::default() };
    let only = || ActionRules { enforced: Some(vec![rule.clone()]), shadow: None };
    let allow = EffectivePolicy { allow: only(), ..base.clone() };
    let deny = EffectivePolicy { deny: only(), ..base };
    [evaluate(&allow, request).verdict == Verdict::Allow, evaluate(&deny, request).verdict == Verdict::Deny]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_is_covered_matches_too(
        (wide, narrow) in rule().prop_flat_map(|rule| (kin(rule.clone()), kin(rule))),
        requests in vec(request(), 12),
    ) {
        if !covers(&wide, &narrow) {
            return Ok(());
        }
        for request in requests {
            let [wide, narrow] = [&wide, &narrow].map(|rule| matches(rule, &request));
            prop_assert!(wide[0] || !narrow[0], "ALLOW: {request:?}");
            prop_assert!(wide[1] || !narrow[1], "DENY: {request:?}");
        }
    }

    /// One atom each: what a rule with several says rarely hangs on one of them.
    #[test]
    fn single_values_are_covered_only_by_wider_ones(
        (n, wide, narrow) in (0..12usize).prop_flat_map(|n| (Just(n), select(family(n)), select(family(n)))),
        not in any::<bool>(),
        requests in vec(request(), 40),
    ) {
        let only = |atom: &Atom| {
            let (any, none) = if not { (vec![], vec![atom.clone()]) } else { (vec![atom.clone()], vec![]) };
            let clauses = vec![vec![Clause { field: "field".into(), any, none }]];
            let everything = vec![vec![]];
            let (permissions, principals) =
                if PERMISSIONS.contains(&n) { (clauses, everything) } else { (everything, clauses) };
            EffectiveRule { policy: ObjectName::new("a", "p"), index: 0, permissions, principals }
        };
        let (wide, narrow) = (only(&wide), only(&narrow));
        if !covers(&wide, &narrow) {
            return Ok(());
        }
        for request in requests {
            let [wide, narrow] = [&wide, &narrow].map(|rule| matches(rule, &request));
            prop_assert!(wide[0] || !narrow[0], "ALLOW: {request:?}");
            prop_assert!(wide[1] || !narrow[1], "DENY: {request:?}");
        }
    }

    #[test]
    fn what_never_matches_never_does(
        rule in rule().prop_flat_map(kin), requests in vec(request(), 24),
    ) {
        if never_matches(&rule) {
            for request in requests.iter().filter(|request| request.protocol == Protocol::Http) {
                prop_assert_eq!(matches(&rule, request), [false; 2], "{:?}", request);
            }
        }
    }

    #[test]
    fn every_rule_that_can_match_covers_itself(rule in rule()) {
        let can = !rule.permissions.is_empty() && !rule.principals.is_empty();
        prop_assert_eq!(covers(&rule, &rule), can);
    }
}

/// A rule of these clauses: attribute, value; `!` before a value is `notX`.
fn of(clauses: &[(usize, &str)]) -> EffectiveRule {
    let clause = |(n, values): &(usize, &str)| {
        let (mut any, mut none) = (vec![], vec![]);
        for value in values.split(' ') {
            let (list, value) = match value.strip_prefix('!') {
                Some(value) => (&mut none, value),
                None => (&mut any, value),
            };
            let atom = family(*n).into_iter().find(|atom| atom.to_string() == value);
            list.push(atom.unwrap_or_else(|| panic!("{value} is none of {n}")));
        }
        Clause { field: "field".into(), any, none }
    };
    let side = |families: std::ops::Range<usize>| {
        vec![clauses.iter().filter(|(n, _)| families.contains(n)).map(clause).collect()]
    };
    EffectiveRule {
        policy: ObjectName::new("a", "p"),
        index: 0,
        permissions: side(PERMISSIONS),
        principals: side(PRINCIPALS),
    }
}

#[test]
fn contradictions_are_seen() {
    for (rule, expected) in [
        (&[(8, "/a !/a*")][..], true),
        (&[(8, "/a / !/a*")], false),
        (&[(0, "td/ns/a/sa/x !a")], true),
        (&[(0, "td/ns/a/* !a")], false),
        (&[(6, "8080"), (6, "8081")], true),
        (&[(7, "GET"), (7, "POST GET")], false),
        (&[(3, "v !*")], true),
        (&[], false),
    ] {
        assert_eq!(never_matches(&of(rule)), expected, "{rule:?}");
    }
}

/// What people write: a yes where they would say so.
#[test]
fn it_is_complete_enough() {
    for (wide, narrow, expected) in [
        (&[][..], &[(7, "GET")][..], true),
        (&[(7, "GET")], &[], false),
        (&[(7, "GET POST")], &[(7, "GET")], true),
        (&[(7, "GET")], &[(7, "GET POST")], false),
        (&[(7, "*")], &[(7, "GET"), (8, "/a")], true),
        (&[(8, "/a*")], &[(8, "/a/b"), (7, "GET")], true),
        (&[(8, "/a/{*}")], &[(8, "/a/b")], true),
        (&[(8, "/a/b")], &[(8, "/a*")], false),
        (&[(0, "td/ns/a/*")], &[(0, "td/ns/a/sa/x")], true),
        (&[(0, "a")], &[(0, "td/ns/a/sa/x")], true),
        (&[(0, "a*")], &[(0, "a/x a/y")], true),
        (&[(0, "*")], &[(0, "td/ns/a/sa/x")], true),
        (&[(1, "10.0.0.0/8")], &[(1, "10.0.0.1/32")], true),
        (&[(1, "10.0.0.1/32")], &[(1, "10.0.0.0/8")], false),
        (&[(1, "10.0.0.0/8")], &[(2, "10.0.0.1/32")], false),
        (&[(8, "!/a")], &[(8, "!/a*")], true),
        (&[(8, "!/a*")], &[(8, "!/a")], false),
        (&[(8, "!/a")], &[(8, "/a/b")], true),
        (&[(6, "!8080")], &[(6, "8081")], true),
        (&[(0, "!a")], &[(0, "td/ns/a/sa/x")], false),
        (&[(4, "i/*")], &[(4, "i/s")], true),
        (&[(9, "*.X")], &[(9, "h.x")], true),
        (&[(3, "*")], &[(3, "v*")], true),
        (&[(5, "r*")], &[(5, "rw")], true),
    ] {
        assert_eq!(covers(&of(wide), &of(narrow)), expected, "{wide:?} covers {narrow:?}");
    }
}
