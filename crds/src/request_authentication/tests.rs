use policy::{ClaimToHeader, Jwks, JwtHeader, Presence};

use crate::{Content, Object, Severity, parse};

/// Nobody's key: any odd number of the right size will do.
const KEY: &str = concat!(
    r#"{"keys":[{"kty":"RSA","n":""#,
    "paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWl",
    r#"","e":"AQAB"}]}"#
);

fn read(spec: &str) -> crate::Parsed {
    let text = format!(
        "{{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {{name: p}}, spec: {spec}}}"
    );
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

fn rule(rule: &str) -> crate::Parsed {
    read(&format!("{{jwtRules: [{rule}]}}"))
}

#[track_caller]
fn accepted(text: &str) -> policy::JwtRule {
    let parsed = rule(text);
    match parsed.content {
        Content::Object(object) => match *object {
            Object::RequestAuthentication(mut policy) => policy.rules.remove(0),
            other => panic!("{other:?}"),
        },
        _ => panic!("{text}: {:?}", parsed.findings),
    }
}

/// Semantics §1.4, row by row.
#[test]
fn rejections() {
    let many = vec!["a"; 65].join(",");
    let long = format!("https://a/{}", "x".repeat(2048));
    for (text, expect) in [
        ("{}".to_owned(), ": an issuer or a jwksUri is required"),
        (format!("{{jwks: '{KEY}'}}"), ": an issuer or a jwksUri is required"),
        ("{issuer: ''}".into(), ".issuer: an issuer has at least one character"),
        ("{issuer: 5}".into(), ".issuer: invalid type"),
        ("{issuer: a, audiences: ['']}".into(), ".audiences[0]: an empty value"),
        ("{jwksUri: ''}".into(), ".jwksUri: `` is not a URL"),
        ("{jwksUri: 'ftp://a'}".into(), ".jwksUri: `ftp://a` is not a URL of keys"),
        ("{jwks_uri: 'file:///etc/passwd'}".into(), ".jwksUri: "),
        ("{jwksUri: 'https://a:99999/'}".into(), ".jwksUri: "),
        (format!("{{jwksUri: '{long}'}}"), ".jwksUri: a URL has at most 2048"),
        (format!("{{issuer: a, jwksUri: 'https://a', jwks: '{KEY}'}}"), ": only one of jwksUri and jwks"),
        ("{issuer: a, jwksUri: 'https://a', jwks_uri: 'https://a'}".into(), ": only one of"),
        ("{issuer: a, jwks: ''}".into(), ".jwks: not JSON"),
        ("{issuer: a, jwks: '{}'}".into(), ".jwks: not a JWK set"),
        ("{issuer: a, jwks: {keys: []}}".into(), ".jwks: invalid type: map"),
        (r#"{issuer: a, jwks: '{"keys":[{"kty":"oct","k":"AAAA"}]}'}"#.into(), ".jwks: no usable public key"),
        ("{issuer: a, fromHeaders: [{prefix: x}]}".into(), ".fromHeaders[0].name: a header name"),
        ("{issuer: a, fromHeaders: [{name: \"a\\nb\"}]}".into(), ".fromHeaders[0].name: a header name"),
        ("{issuer: a, fromHeaders: [{name: a, value: b}]}".into(), ".fromHeaders[0].value: unknown field"),
        ("{issuer: a, fromParams: ['']}".into(), ".fromParams[0]: an empty value"),
        ("{issuer: a, fromCookies: ['']}".into(), ".fromCookies[0]: an empty value"),
        ("{issuer: a, outputPayloadToHeader: \"a\\r\"}".into(), ".outputPayloadToHeader: not a header name"),
        ("{issuer: a, forwardOriginalToken: 'yes'}".into(), ".forwardOriginalToken: invalid type"),
        ("{issuer: a, outputClaimToHeaders: [{claim: sub}]}".into(), ".outputClaimToHeaders[0].header: "),
        ("{issuer: a, outputClaimToHeaders: [{header: x}]}".into(), ".outputClaimToHeaders[0].claim: "),
        (
            "{issuer: a, outputClaimToHeaders: [{header: 'x y', claim: a}]}".into(),
            ".outputClaimToHeaders[0].header: ",
        ),
        ("{issuer: a, timeout: 0s}".into(), ".timeout: must be at least 1ms"),
        ("{issuer: a, timeout: 10us}".into(), ".timeout: must be at least 1ms"),
        ("{issuer: a, timeout: soon}".into(), ".timeout: `soon` is not a duration"),
        (format!("{{issuer: a, spaceDelimitedClaims: [{many}]}}"), ".spaceDelimitedClaims: at most 64"),
        ("{issuer: a, spaceDelimitedClaims: ['']}".into(), ".spaceDelimitedClaims[0]: an empty value"),
        ("{issuer: a, presence: required}".into(), ".presence: unknown variant"),
        ("{issuer: a, isuer: b}".into(), ".isuer: unknown field `isuer`"),
        ("{issuer: null, jwksUri: 'https://a'}".into(), ".issuer: nothing is given here"),
    ] {
        let parsed = rule(&text);
        let errors: Vec<_> = parsed
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        let expect = format!("spec.jwtRules[0]{expect}");
        assert!(errors.iter().any(|e| e.starts_with(&expect)), "{text}: {errors:?}");
        let Content::Invalid { closed: Some(closed), .. } = parsed.content else { panic!("{text}") };
        let Object::RequestAuthentication(policy) = *closed.object else { panic!("{text}") };
        assert_eq!(policy.rules.len(), 1);
        assert_eq!(policy.rules[0].jwks, Jwks::RefuseAll, "{text}");
    }
}

#[test]
fn every_field_arrives() {
    let text = "{issuer: i, audiences: [a, b], jwksUri: 'https://k', fromHeaders: [{name: x, prefix: 'P '}], fromParams: [p], fromCookies: [c], outputPayloadToHeader: o, forwardOriginalToken: true, outputClaimToHeaders: [{header: h, claim: a.b}], timeout: 2s, spaceDelimitedClaims: [s], presence: REQUIRED}";
    let expect = policy::JwtRule {
        issuer: "i".into(),
        audiences: vec!["a".into(), "b".into()],
        jwks: Jwks::Remote(Some("https://k".into())),
        from_headers: vec![JwtHeader { name: "x".into(), prefix: "P ".into() }],
        from_params: vec!["p".into()],
        from_cookies: vec!["c".into()],
        output_payload_to_header: Some("o".into()),
        forward_original_token: true,
        output_claim_to_headers: vec![ClaimToHeader { header: "h".into(), claim: "a.b".into() }],
        space_delimited_claims: vec!["s".into()],
        timeout_ms: 2000,
        presence: Presence::Required,
    };
    assert_eq!(accepted(text), expect);
}

#[test]
fn keys() {
    assert_eq!(accepted("{issuer: 'https://i'}").jwks, Jwks::Remote(None));
    assert_eq!(accepted("{jwks_uri: 'https://k'}").jwks, Jwks::Remote(Some("https://k".into())));
    let defaults = accepted("{issuer: 'https://i'}");
    assert_eq!((defaults.timeout_ms, defaults.presence), (5000, Presence::Optional));
    let Jwks::Inline(keys) = accepted(&format!("{{issuer: i, jwks: '{KEY}'}}")).jwks else { panic!() };
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&keys).unwrap(),
        serde_json::from_str::<serde_json::Value>(KEY).unwrap()
    );
    let private = KEY.replace(r#""e""#, r#""d":"c2VjcmV0","e""#);
    let parsed = rule(&format!("{{issuer: i, jwks: '{private}'}}"));
    assert!(!format!("{parsed:?}").contains("c2VjcmV0"));
    assert_eq!(parsed.findings.len(), 1);
    assert!(
        parsed.findings[0].severity == Severity::Warning && parsed.findings[0].message.contains("private")
    );
    // No way to keys: a warning, for it is what admission accepts.
    assert_eq!(rule("{issuer: me}").findings[0].severity, Severity::Warning);
}

#[test]
fn policies_as_a_whole() {
    let Content::Object(object) = read("{}").content else { panic!() };
    let Object::RequestAuthentication(policy) = *object else { panic!() };
    assert_eq!(policy.rules, []);
    assert!(matches!(read("{jwtRules: {}}").content, Content::Invalid { .. }));
    let many = format!("{{jwtRules: [{}]}}", vec!["{issuer: 'https://a'}"; 4097].join(","));
    assert!(read(&many).findings[0].message.starts_with("at most 4096"));
}
