//! One table per row of semantics §4.2 and §4.3.

use super::*;
use crate::evaluate::Request;
use crate::evaluate::token::authenticate;
use crate::model::{Jwks, JwtRule, MtlsMode, Presence};
use serde_json::json;

fn text(value: &str) -> StringMatch {
    StringMatch::parse(value)
}

#[track_caller]
fn check(atom: &Atom, request: &Request, expected: bool) {
    check_mode(atom, request, MtlsMode::Permissive, expected);
}

#[track_caller]
fn check_mode(atom: &Atom, request: &Request, mode: MtlsMode, expected: bool) {
    assert_eq!(matches(atom, &View::new(request, mode)), expected, "{atom:?} on {request:?}");
}

#[track_caller]
fn check_peer(atom: &Atom, peer: &str, expected: bool) {
    for protocol in [Request::http(80), Request::tcp(80)] {
        check(atom, &Request { peer: vec![peer.to_owned()], ..protocol }, expected);
    }
}

const A: &str = "spiffe://cluster.local/ns/foo/sa/a";

#[test]
fn principals() {
    let principal = |value: &str| Atom::Principal(text(value));
    for (value, peer, expected) in [
        ("cluster.local/ns/foo/sa/a", A, true),
        ("cluster.local/ns/foo/sa/a", "spiffe://cluster.local/ns/foo/sa/ab", false),
        ("cluster.local/ns/foo/sa/A", A, false),
        ("cluster.local/ns/foo/*", A, true),
        ("cluster.local/ns/fo*", A, true),
        ("*/sa/a", A, true),
        ("*/sa/a", "spiffe://cluster.local/ns/foo/sa/a/x", false),
        ("*/sa/.", A, false),
        ("*", A, true),
        ("*", "CN=anything at all", true),
        // A name that is no SPIFFE ID is not read as one.
        ("cluster.local/ns/foo/sa/a", "cluster.local/ns/foo/sa/a", false),
        ("*/sa/a", "https://cluster.local/ns/foo/sa/a", false),
        ("*", "spiffe://td/a\nb", false),
        ("*/b", "spiffe://td/a\n/b", false),
        ("td/*", "spiffe://td/a\nb", true),
        // With two stars the leading one wins.
        ("*/a*", "spiffe://td/a*", true),
        ("*/a*", "spiffe://td/ab", false),
    ] {
        check_peer(&principal(value), peer, expected);
    }
    let two = Request { peer: vec!["spiffe://other/x".into(), A.into()], ..Request::http(80) };
    check(&principal("cluster.local/ns/foo/sa/a"), &two, true);
}

#[test]
fn namespaces_and_service_accounts_and_trust_domains() {
    let namespace = |value: &str| Atom::Namespace(value.into());
    for (value, peer, expected) in [
        ("foo", A, true),
        ("fo", A, false),
        ("f*", A, true),
        ("*o", A, true),
        ("*o*", A, true),
        ("*", A, true),
        ("a.b", "spiffe://td/ns/a.b/sa/x", true),
        ("a.b", "spiffe://td/ns/axb/sa/x", false),
        ("foo", "spiffe://another-td/ns/foo/sa/x", true),
        // Anywhere in a longer path; a fact of the data plane, not a wish.
        ("bar", "spiffe://td/ns/evil/sa/x/ns/bar/sa/y", true),
        ("foo", "spiffe://td/ns/foo", false),
        ("*", "spiffe://td/orders", false),
        ("foo", "spiffe://td/xns/foo/sa/a", false),
        ("f*", "spiffe://td/xns/foo/sa/a", false),
        // A pattern is an expression, and a plain one is text.
        ("foo", "spiffe://td\n/ns/foo/sa/a", true),
        ("f*", "spiffe://td\n/ns/foo/sa/a", false),
    ] {
        check_peer(&namespace(value), peer, expected);
    }
    let account =
        |namespace: &str, name: &str| Atom::ServiceAccount { namespace: namespace.into(), name: name.into() };
    for (namespace, name, peer, expected) in [
        ("foo", "a", A, true),
        ("foo", "a", "spiffe://td/ns/foo/sa/ab", false),
        ("foo", "a", "spiffe://td/ns/bar/sa/a", false),
        ("foo", "a", "spiffe://td/ns/foo/x/y/sa/a", true),
        ("foo", "a", "spiffe://td/ns/foo/sa/a/x", true),
        ("foo", "a", "spiffe://td/x/y/ns/foo/sa/a", true),
        ("foo", "a", "spiffe://td/ns/foo/xsa/a", false),
        ("foo", "a", "spiffe:///ns/foo/sa/a", false),
        ("foo", "a.b", "spiffe://td/ns/foo/sa/axb", false),
        ("foo", "a", "http://td/ns/foo/sa/a", false),
        ("bar", "y", "spiffe://td/ns/evil/sa/x/ns/bar/sa/y", true),
    ] {
        check_peer(&account(namespace, name), peer, expected);
    }
    let (exact, wildcard) = (
        |td: &str| Atom::TrustDomain(TrustDomainMatch::Exact(td.into())),
        |td: &str| Atom::TrustDomain(TrustDomainMatch::Wildcard(td.into())),
    );
    check_peer(&exact("prod"), "spiffe://prod/x", true);
    check_peer(&exact("prod"), "spiffe://prod.evil/x", false);
    check_peer(&exact("prod"), "spiffe://prod", false);
    check_peer(&wildcard("*.prod"), "spiffe://eu.prod/x", true);
    check_peer(&wildcard("*.prod"), "spiffe://euxprod/x", false);
    check_peer(&wildcard("*.prod"), "spiffe://evil/a.prod/x", false);
    check_peer(&wildcard("prod*"), "spiffe://prod-2/x", true);
    check_peer(&Atom::TrustDomain(TrustDomainMatch::Any), "spiffe://any/x", true);
    check_peer(&Atom::TrustDomain(TrustDomainMatch::Any), "CN=x", false);
}

#[test]
fn nobody_has_no_identity() {
    for atom in [
        Atom::Principal(text("*")),
        Atom::Namespace("*".into()),
        Atom::ServiceAccount { namespace: "foo".into(), name: "a".into() },
        Atom::TrustDomain(TrustDomainMatch::Any),
    ] {
        check(&atom, &Request::http(80), false);
        check(&atom, &Request::tcp(80), false);
        let a = Request { peer: vec![A.to_owned()], ..Request::http(80) };
        check_mode(&atom, &a, MtlsMode::Strict, true);
        check_mode(&atom, &a, MtlsMode::Disable, false);
    }
}

#[test]
fn addresses_ports_and_sni() {
    let request = |ip: &str| {
        let ip = ip.parse().unwrap();
        Request {
            source_ip: ip,
            remote_ip: ip,
            destination_ip: ip,
            sni: "a.b.c".into(),
            ..Request::tcp(8080)
        }
    };
    for (net, ip, expected) in [
        ("10.0.0.0/8", "10.1.2.3", true),
        ("10.0.0.0/8", "11.1.2.3", false),
        ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ("10.1.2.3/32", "10.1.2.3", true),
        ("fd00::/8", "fd00::1", true),
        ("::/0", "10.1.2.3", false),
        ("0.0.0.0/0", "fd00::1", false),
    ] {
        let net: IpNet = net.parse().unwrap();
        for atom in [Atom::SourceIp(net), Atom::RemoteIp(net), Atom::DestinationIp(net)] {
            check(&atom, &request(ip), expected);
        }
    }
    let forged = Request {
        source_ip: "10.0.0.1".parse().unwrap(),
        remote_ip: "1.2.3.4".parse().unwrap(),
        ..Request::http(80)
    };
    check(&Atom::SourceIp("1.2.3.4/32".parse().unwrap()), &forged, false);
    check(&Atom::RemoteIp("1.2.3.4/32".parse().unwrap()), &forged, true);
    let mapped = Request { remote_ip: "::ffff:1.2.3.4".parse().unwrap(), ..forged };
    check(&Atom::RemoteIp("1.2.3.4/32".parse().unwrap()), &mapped, false);
    check(&Atom::Port(8080), &request("::1"), true);
    check(&Atom::Port(80), &request("::1"), false);
    check(&Atom::Sni(text("*.c")), &request("::1"), true);
    check(&Atom::Sni(text("*")), &request("::1"), true);
    check(&Atom::Sni(text("*")), &Request::tcp(80), false);
}

#[test]
fn hosts_methods_and_paths() {
    let http = |method: &str, host: &str, path: &str| Request {
        method: method.into(),
        host: host.into(),
        path: path.into(),
        ..Request::http(80)
    };
    for (value, host, expected) in [
        ("httpbin.foo", "HTTPBIN.Foo", true),
        ("HttpBin.foo", "httpbin.foo", true),
        // The port the client sent is part of it.
        ("httpbin.foo", "httpbin.foo:80", false),
        ("httpbin.foo:*", "httpbin.FOO:80", true),
        ("*.foo", "httpbin.FOO", true),
        ("*", "x", true),
        ("*", "", false),
        ("httpbin.foo", "httpbin.foo.", false),
    ] {
        check(&Atom::Host(text(value)), &http("GET", host, "/"), expected);
    }
    check(&Atom::Method(text("GET")), &http("GET", "", "/"), true);
    check(&Atom::Method(text("get")), &http("GET", "", "/"), false);
    check(&Atom::Method(text("P*")), &http("POST", "", "/"), true);
    check(&Atom::Method(text("*")), &http("POST", "", "/"), true);
    for (value, path, expected) in [
        ("/a", "/a", true),
        ("/a", "/A", false),
        ("/a", "/a?x=/b", true),
        ("/a", "/a#x", true),
        ("/a", "/a/", false),
        ("/a*", "/ab", true),
        ("/a/*", "/a", false),
        ("*/info", "/x/info?y", true),
        ("*", "/", true),
        ("/a.b", "/axb", false),
    ] {
        check(&Atom::Path(PathMatch::Plain(text(value))), &http("GET", "", path), expected);
    }
    for (template, path, expected) in [
        ("/a/{*}", "/a/b", true),
        ("/a/{*}", "/a/", false),
        ("/a/{*}", "/a", false),
        ("/a/{*}", "/a/b/c", false),
        ("/a/{*}", "/a/*", true),
        ("/a/{*}", "/a/b;x=1", true),
        ("/a/{*}", "/a/b?c=/d", true),
        ("/a/{*}", "/a/[x]", false),
        ("/a/{*}", "/A/b", false),
        ("/a/{*}/c", "/a/b/c", true),
        ("/a/{*}/c", "/a/b/c/d", false),
        ("/a/{**}", "/a/", true),
        ("/a/{**}", "/a/b/c", true),
        ("/a/{**}", "/a", false),
        ("/s/{**}/cart", "/s//cart", true),
        ("/s/{**}/cart", "/s/cart", false),
        ("/s/{**}/cart", "/s/a/b/cart", true),
        ("/{*}/x/{**}", "/a/x/b", true),
        ("/a.b/{*}", "/axb/c", false),
    ] {
        check(&Atom::Path(PathMatch::Template(template.into())), &http("GET", "", path), expected);
    }
    for atom in [Atom::Host(text("*")), Atom::Method(text("*")), Atom::Path(PathMatch::Plain(text("*")))] {
        let tcp = Request { protocol: crate::Protocol::Tcp, ..http("GET", "x", "/") };
        check(&atom, &tcp, false);
    }
}

#[test]
fn headers() {
    let request = |headers: &[(&str, &str)]| Request {
        headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        host: "h".into(),
        ..Request::http(80)
    };
    let header = |name: &str, value: &str| Atom::Header { name: name.into(), value: text(value) };
    // Tried on Envoy 1.39.3 and 1.40.0; 1.36.2 joins the values (CVE-2026-26308).
    for (value, headers, expected) in [
        ("a", &[("X", "a")][..], true),
        ("a", &[("x", "A")], false),
        ("a", &[("x", "b"), ("x", "a")], true),
        ("a", &[("x", "a"), ("x", "b")], true),
        ("a", &[("x", "a,b")], false),
        ("a,b", &[("x", "a"), ("x", "b")], false),
        ("a*", &[("x", "b"), ("x", "ab")], true),
        ("*", &[("x", "")], true),
        ("*", &[], false),
        ("a", &[], false),
        ("a", &[("y", "a")], false),
    ] {
        check(&header("x", value), &request(headers), expected);
    }
    // Envoy keeps some headers as one line, and takes others away.
    let twice = |name| request(&[(name, "a"), (name, ""), (name, "b")]);
    check(&header("accept", "a"), &twice("Accept"), false);
    check(&header("accept", "a,b"), &twice("Accept"), true);
    check(&header("accept", ""), &request(&[("accept", ""), ("accept", "")]), true);
    check(&header("x", "a"), &twice("x"), true);
    check(&header("te", "a"), &twice("te"), false);
    check(&header("x-envoy-internal", "*"), &twice("x-envoy-internal"), false);
    check(&header(":method", "GET"), &request(&[]), true);
    check(&header(":authority", "h"), &request(&[]), true);
    check(&header("host", "h"), &request(&[("host", "forged")]), true);
    let path = Request { path: "/q?x=1".into(), ..Request::http(80) };
    check(&header(":path", "/q?x=1"), &path, true);
    check(&header(":path", "/q"), &path, false);
}

fn any_issuer() -> JwtRule {
    JwtRule {
        issuer: String::new(),
        audiences: vec![],
        jwks: Jwks::Inline("{}".into()),
        from_headers: vec![],
        from_params: vec![],
        from_cookies: vec![],
        output_payload_to_header: None,
        forward_original_token: false,
        output_claim_to_headers: vec![],
        space_delimited_claims: vec!["groups".into()],
        timeout_ms: 5000,
        presence: Presence::Optional,
    }
}

#[track_caller]
fn check_claims(atom: &Atom, claims: &Value, expected: bool) {
    let request = Request { claims: claims.as_object().cloned(), ..Request::http(80) };
    let mut view = View::new(&request, MtlsMode::Permissive);
    assert!(!matches(atom, &view), "not before tokens were checked");
    view.token = authenticate(&[any_issuer()], &request).unwrap();
    assert_eq!(matches(atom, &view), expected, "{atom:?} on {claims}");
}

#[test]
fn request_principals() {
    let some = |value: &str| Some(text(value));
    let atom = |issuer, subject| Atom::RequestPrincipal(RequestPrincipal { issuer, subject });
    let token = |iss: &str, sub: &str| json!({"iss": iss, "sub": sub});
    check_claims(&atom(None, None), &token("i", "s"), true);
    check_claims(&atom(None, None), &json!({"iss": "i"}), false);
    check_claims(&atom(None, None), &token("i", ""), false);
    check_claims(&atom(None, None), &token("i", "a\nb"), false);
    check_claims(&atom(None, None), &token("i\n", "s"), false);
    check_claims(&atom(some("i"), Some(StringMatch::Prefix("a".into()))), &token("i", "a\nb"), true);
    check_claims(&atom(some("a/b"), some("c")), &token("a/b", "c"), true);
    check_claims(&atom(some("a/b"), some("c")), &token("a", "b/c"), false);
    check_claims(&atom(Some(StringMatch::Suffix("i".into())), some("s")), &token("xi", "s"), true);
    check_claims(&atom(some("i"), Some(StringMatch::Prefix("s".into()))), &token("i", "st"), true);
    check_claims(&atom(None, Some(StringMatch::Exact("p*".into()))), &token("i", "px"), false);
    check_claims(&atom(some("i"), Some(StringMatch::Exact("".into()))), &token("i", "s"), false);
}

#[test]
fn claims_are_strings_or_lists_of_strings() {
    let claim = |path: &[&str], value: &str| Atom::Claim {
        path: path.iter().map(|p| (*p).into()).collect(),
        value: text(value),
    };
    for (path, value, claims, expected) in [
        (&["a"][..], "x", json!({"a": "x"}), true),
        (&["a"], "x", json!({"a": ["w", "x"]}), true),
        (&["a"], "x", json!({"a": ["w"]}), false),
        (&["a"], "x", json!({"a": []}), false),
        (&["a"], "x*", json!({"a": ["w", "xy"]}), true),
        (&["a"], "*", json!({"a": "x"}), true),
        (&["a"], "*", json!({"a": ""}), false),
        (&["a"], "*", json!({"b": "x"}), false),
        // Tried on Envoy 1.36.2, 1.39.3 and 1.40.0.
        (&["a"], "*", json!({"a": "x\ny"}), false),
        (&["a"], "*", json!({"a": "x\n"}), false),
        (&["a"], "*", json!({"a": ["x\ny"]}), false),
        (&["a"], "*", json!({"a": "x\ry"}), true),
        (&["a"], "*", json!({"a": "x\u{85}\u{2028}\u{0}y"}), true),
        (&["a"], "x*", json!({"a": "x\ny"}), true),
        (&["a"], "x\ny", json!({"a": "x\ny"}), true),
        (&["a"], "7", json!({"a": 7}), false),
        (&["a"], "true", json!({"a": true}), false),
        (&["a"], "7", json!({"a": [7]}), false),
        (&["a"], "*", json!({"a": null}), false),
        (&["a"], "*", json!({"a": {"b": "x"}}), false),
        (&["a", "b"], "x", json!({"a": {"b": "x"}}), true),
        (&["a", "b"], "x", json!({"a": {"b": ["x"]}}), true),
        (&["a", "b"], "x", json!({"a": "x"}), false),
        (&["a", "b"], "x", json!({"a": [{"b": "x"}]}), false),
        (&["a.b"], "x", json!({"a": {"b": "x"}}), false),
        // Lists of words.
        (&["scope"], "read", json!({"scope": "read  write"}), true),
        (&["scope"], "*", json!({"scope": " "}), true),
        (&["scope"], "read write", json!({"scope": "read write"}), false),
        (&["groups"], "b", json!({"groups": "a b"}), true),
        (&["other"], "b", json!({"other": "a b"}), false),
        (&["a", "scope"], "b", json!({"a": {"scope": "a b"}}), false),
    ] {
        check_claims(&claim(path, value), &claims, expected);
    }
    check_claims(&Atom::Audience(text("x")), &json!({"aud": ["w", "x"]}), true);
    check_claims(&Atom::Audience(text("x")), &json!({"aud": "x"}), true);
    check_claims(&Atom::Presenter(text("x")), &json!({"azp": "x"}), true);
    check_claims(&Atom::Presenter(text("x")), &json!({"aud": "x"}), false);
}

#[test]
fn dynamic_metadata() {
    let metadata = |value: &str, list| Atom::Metadata {
        filter: "envoy.filters.x".into(),
        key: "k".into(),
        value: text(value),
        list,
    };
    let request = |value: Value| Request {
        metadata: [("envoy.filters.x".to_owned(), [("k".to_owned(), value)].into())].into(),
        ..Request::tcp(80)
    };
    check(&metadata("a", false), &request(json!("a")), true);
    check(&metadata("a", false), &request(json!(["a"])), false);
    check(&metadata("a", true), &request(json!(["b", "a"])), true);
    check(&metadata("a", true), &request(json!("a")), false);
    check(&metadata("*", false), &Request::tcp(80), false);
}
