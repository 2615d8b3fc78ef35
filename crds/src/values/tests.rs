use super::*;

#[test]
fn ip_blocks() {
    for (value, expect) in [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::1", "::1/128"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.9.9.9/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/90", "::ffc0:0:0/90"),
    ] {
        assert_eq!(ip_block(value).unwrap().to_string(), expect, "{value}");
    }
    for value in
        ["", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "010.0.0.1", "fe80::1%eth0", "a.example", "10.0.0.1/-1"]
    {
        assert!(ip_block(value).is_err(), "{value}");
    }
}

#[test]
fn ports() {
    assert_eq!(port("0"), Ok(0));
    assert_eq!(port("65535"), Ok(65535));
    assert_eq!(port("080"), Ok(80));
    for value in ["", "65536", "-1", "+80", "80 ", "http", "8080-8090"] {
        assert!(port(value).is_err(), "{value}");
    }
}

#[test]
fn service_accounts() {
    let ns: Arc<str> = "mine".into();
    let atom =
        |namespace: &str, name: &str| Atom::ServiceAccount { namespace: namespace.into(), name: name.into() };
    assert_eq!(service_account("a", &ns), Ok(atom("mine", "a")));
    assert_eq!(service_account("b/a", &ns), Ok(atom("b", "a")));
    let long = "x".repeat(321);
    for value in ["a*", "*", "a/b/c", "/a", "a/", "/", &long] {
        assert!(service_account(value, &ns).is_err(), "{value}");
    }
}

#[test]
fn trust_domains() {
    let atom = Atom::TrustDomain;
    assert_eq!(trust_domain("*"), Ok(atom(TrustDomainMatch::Any)));
    assert_eq!(trust_domain("td"), Ok(atom(TrustDomainMatch::Exact("td".into()))));
    assert_eq!(trust_domain("*.example"), Ok(atom(TrustDomainMatch::Wildcard("*.example".into()))));
    assert_eq!(trust_domain("prod*"), Ok(atom(TrustDomainMatch::Wildcard("prod*".into()))));
    for value in ["a*b", "*a*", "**", "a/b", "td/ns/x"] {
        assert!(trust_domain(value).is_err(), "{value}");
    }
}

#[test]
fn request_principals() {
    use StringMatch::{Exact, Prefix, Suffix};
    let e = |s: &str| Some(Exact(s.into()));
    let p = |s: &str| Some(Prefix(s.into()));
    let s = |s: &str| Some(Suffix(s.into()));
    for (value, issuer, subject) in [
        ("*", None, None),
        ("*/sub", None, e("sub")),
        ("*/*", None, e("*")),
        ("*/p*", None, e("p*")),
        ("*.example/sub", s(".example"), e("sub")),
        ("*sub", None, s("sub")),
        ("https://i.example/*", e("https://i.example"), None),
        ("https://i.example/a*", e("https://i.example"), p("a")),
        ("iss*", p("iss"), None),
        ("iss/sub", e("iss"), e("sub")),
        ("a/b/c", e("a/b"), e("c")),
        ("iss", e("iss"), e("")),
        ("**", None, s("*")),
    ] {
        assert_eq!(request_principal(value), RequestPrincipal { issuer, subject }, "{value}");
    }
}

#[test]
fn path_templates() {
    for value in [
        "/{*}",
        "/{**}",
        "/a/{*}/b/{**}",
        "/a/{*}/{*}/{**}/c",
        "/a.b~c/%20/{*}",
        "/{*}/",
        "/{**}/",
        "/x;y=1/{*}",
    ] {
        assert_eq!(path(value), Ok(PathMatch::Template(value.into())), "{value}");
    }
    let longest = format!("/{}/{{*}}", "x".repeat(253));
    assert!(path(&longest).is_ok() && path(&longest.replace("/x", "/xx")).is_err());
    for value in [
        "/a//{*}",
        "//{*}",
        "/{**}//a",
        "/{*}//",
        "/a/{**}/{*}",
        "/{**}/{**}",
        "/{**}/x/{*}",
        "/a{*}",
        "/{*}b",
        "/{*}/b*",
        "/*/{*}",
        "/{*}/{x}",
        "/{*}/a b",
        "{*}",
        "a/{*}",
        "/a/{",
        "/a}/b",
        "/{id}",
        "/{*}?x=1",
        "/{*}/é",
    ] {
        assert!(path(value).is_err(), "{value}");
    }
    assert_eq!(path("/a/*"), Ok(PathMatch::Plain(StringMatch::Prefix("/a/".into()))));
}

#[test]
fn durations() {
    for (value, ms) in
        [("5s", 5000), ("1.5s", 1500), ("100ms", 100), ("1m30s", 90_000), ("0s", 0), ("2h", 7_200_000)]
    {
        assert_eq!(duration_ms(value), Ok(ms), "{value}");
    }
    for value in ["", "5", "s", "-5s", "5 s", "1..2s", "5x", "inf", "1e3s", "99999999999999h"] {
        assert!(duration_ms(value).is_err(), "{value}");
    }
}
