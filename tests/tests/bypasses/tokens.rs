//! Tokens that are wrong in every way somebody could think of, and two at once.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tests::here;
use tests::lab::{
    self, ALLOWED, Credential, DENIED, Got, Lab, PodId, PodSpec, Protocol, Signer, UNAUTHENTICATED, get,
};

const SEED: u64 = 12995;
const TRIES: usize = 3000;

async fn scene(lab: &mut Lab, signer: &Signer, from: &str) -> Result<PodId> {
    let policies = format!(
        r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: login, namespace: default}}
spec:
  jwtRules:
  - issuer: {}
    jwks: '{}'
  - issuer: https://other.example
    jwksUri: https://other.invalid/keys
    fromHeaders: [{{name: x-other}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: allow, namespace: default}}
spec:
  rules:
  - from: [{from}]
"#,
        signer.issuer,
        signer.jwks()
    );
    lab.save("policies.yaml", &policies)?;
    lab.start().await?;
    lab.pod(PodSpec::new("default", "app").port(8080, Protocol::Http)).await
}

/// Thousands of tokens that are nearly one, over connections that stay: each is refused, and the Envoy is the same one
/// afterwards (CVE-2019-12995).
#[test]
fn malformed_tokens_are_refused_and_crash_nothing() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let app = scene(lab, &signer, r#"{source: {requestPrincipals: ["*"]}}"#).await?;
        let on = lab[app].on(8080);
        let envoy = lab[app].envoy_pid().context("an Envoy")?;
        let good = signer.token(&json!({}))?;
        let caller = lab.caller(Credential::Plaintext);
        let mut random = StdRng::seed_from_u64(SEED);
        let mut open = caller.http1(on).await.map_err(|got| anyhow::anyhow!("{got}"))?;
        for n in 0..TRIES {
            let (name, value) = if n % 100 == 0 {
                ("authorization", format!("Bearer {good}").into_bytes())
            } else {
                malformed(&good, &mut random)
            };
            let Ok(header) = http::HeaderValue::from_bytes(&value) else { continue };
            let mut request = get("/");
            request.headers_mut().insert(name, header);
            if !open.is_open() {
                open = caller.http1(on).await.map_err(|got| anyhow::anyhow!("{got}"))?;
            }
            let got = open.send(request).await.got;
            let shown = value.escape_ascii().to_string();
            if n % 100 == 0 {
                assert_eq!(got, ALLOWED, "the good one");
                continue;
            }
            let refused = [UNAUTHENTICATED, DENIED, Got::Status(400), Got::Status(431)].contains(&got);
            // Envoy takes the token out of what surrounds it; then it is the good one.
            let good = got == ALLOWED && shown.contains(&good);
            assert!(refused || good, "seed {SEED}, try {n}: {got} for {name}: {shown}");
        }
        assert_eq!(lab[app].envoy_pid(), Some(envoy), "Envoy is the one it was");
        Ok(())
    });
}

/// A header that holds a token which is not `good`.
fn malformed(good: &str, random: &mut StdRng) -> (&'static str, Vec<u8>) {
    let parts: Vec<&str> = good.split('.').collect();
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let headers = [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None","kid":"lab"}"#,
        r#"{"alg":"HS256","kid":"lab"}"#,
        r#"{"alg":"ES256","kid":["lab"]}"#,
        r#"{"alg":["ES256"]}"#,
        r#"{"alg":"ES256","alg":"none"}"#,
        r#"{"alg":"ES256","kid":"lab","crit":["b64"],"b64":false}"#,
        r#"{"alg":"ES384","kid":"lab"}"#,
        "{}",
        "[]",
        "null",
        "\"ES256\"",
        "{\"alg\":",
        "\u{0}",
    ];
    let payloads = [
        r#"{"iss":"https://login.example"}"#,
        r#"{"iss":["https://login.example"],"sub":{}}"#,
        r#"{"iss":"https://login.example","exp":"never"}"#,
        r#"{"iss":"https://login.example","exp":1e400}"#,
        r#"{"iss":"https://login.example","exp":-1,"aud":[[[]]]}"#,
        "[[[[[[[[[[[[[[[[[[[[[[[[",
        "",
        "{\"iss\":\"\\ud800\"}",
    ];
    let pick = |random: &mut StdRng, from: &[&str]| from[random.random_range(0..from.len())].to_owned();
    let token = match random.random_range(0..9) {
        0 => format!("{}.{}.{}", encode(&pick(random, &headers)), parts[1], parts[2]),
        1 => format!("{}.{}.{}", parts[0], encode(&pick(random, &payloads)), parts[2]),
        2 => format!("{}.{}.", encode(&pick(random, &headers)), encode(&pick(random, &payloads))),
        3 => good[..random.random_range(0..good.len())].to_owned(),
        4 => format!("{good}{}", pick(random, &[".", "..", ".x", "AAAA", "=", " x", ",", ";"])),
        5 => format!("{}.{}.{}", parts[0], parts[1], pick(random, &["", "A", "AA", "====", "%%", "-_-_"])),
        6 => ".".repeat(random.random_range(0..2000)),
        7 => format!("{}.{}.{}", "e30".repeat(random.random_range(1..9000)), parts[1], parts[2]),
        _ => {
            let mut bytes = good.as_bytes().to_vec();
            let at = random.random_range(0..bytes.len());
            let old = bytes[at];
            // The last character of a signature has bits that mean nothing.
            let at = if at + 2 >= bytes.len() { 0 } else { at };
            bytes[at] = random.random_range(0x21..=0xff);
            if bytes[at] == old || bytes == good.as_bytes() {
                bytes[at] = b'!';
            }
            let mut value = b"Bearer ".to_vec();
            value.extend_from_slice(&bytes);
            return ("authorization", value);
        }
    };
    match random.random_range(0..4) {
        0 => ("x-other", token.into_bytes()),
        1 => ("authorization", format!("bearer {token}").into_bytes()),
        _ => ("authorization", format!("Bearer {token}").into_bytes()),
    }
}

/// Two tokens, and no keys for one of them (CVE-2025-64527, 2021-001): one that verifies is enough, as with Istio; without
/// any, nobody passes for one who has none.
#[test]
fn two_tokens_and_no_keys_for_one() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let other = Signer::new("https://other.example")?;
        let app =
            scene(lab, &signer, r#"{source: {requestPrincipals: ["https://login.example/*"]}}"#).await?;
        let on = lab[app].on(8080);
        let envoy = lab[app].envoy_pid().context("an Envoy")?;
        let caller = lab.caller(Credential::Plaintext);
        let [good, unknown] = [&signer, &other].map(|signer| signer.token(&json!({})).unwrap());
        let wrong_issuer = signer.token(&json!({"iss": "https://nobody.example"}))?;
        let (bearer, x) = ("authorization", "x-other");
        let rows: &[(&[(&str, &str)], Got)] = &[
            (&[], DENIED),
            (&[(bearer, &good)], ALLOWED),
            (&[(x, &unknown)], UNAUTHENTICATED),
            (&[(bearer, &good), (x, &unknown)], ALLOWED),
            (&[(bearer, &unknown), (x, &good)], UNAUTHENTICATED),
            (&[(bearer, "a.b.c"), (x, &unknown)], UNAUTHENTICATED),
            (&[(bearer, &good), (x, "a.b.c")], ALLOWED),
            (&[(bearer, &good), (bearer, &good)], ALLOWED),
            (&[(bearer, &wrong_issuer)], UNAUTHENTICATED),
            (&[(bearer, &wrong_issuer), (x, &unknown)], UNAUTHENTICATED),
        ];
        for _ in 0..20 {
            for (headers, expected) in rows {
                let mut request = get("/");
                for (name, token) in *headers {
                    let value = if *name == bearer { format!("Bearer {token}") } else { (*token).to_owned() };
                    request.headers_mut().append(*name, value.parse()?);
                }
                let names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
                let got = caller.send(on, request).await.got;
                // Envoy takes one Authorization header; several are no token it could verify.
                let twice = names == [&bearer, &bearer] && got == UNAUTHENTICATED;
                assert!(got == *expected || twice, "{names:?}: {got}");
            }
        }
        assert_eq!(lab[app].envoy_pid(), Some(envoy), "Envoy is the one it was");
        Ok(())
    });
}

/// A token does not replace a certificate, nor a certificate a token (GO-2024-2704).
#[test]
fn token_and_identity_are_both_asked_for() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let both =
            r#"{source: {principals: ["cluster.local/ns/default/sa/client"], requestPrincipals: ["*"]}}"#;
        let app = scene(lab, &signer, both).await?;
        let on = lab[app].on(8080);
        let token = format!("Bearer {}", signer.token(&json!({}))?);
        let [client, other] = ["client", "other"].map(|name| lab.identity("default", name).unwrap());
        for (name, credential, token, expected) in [
            ("both", &client, Some(&token), ALLOWED),
            ("no token", &client, None, DENIED),
            ("another certificate", &other, Some(&token), DENIED),
            ("no certificate", &Credential::Plaintext, Some(&token), DENIED),
            ("neither", &Credential::Plaintext, None, DENIED),
        ] {
            let mut request = get("/");
            if let Some(token) = token {
                request.headers_mut().insert("authorization", token.parse()?);
            }
            assert_eq!(lab.caller(credential.clone()).send(on, request).await.got, expected, "{name}");
        }
        Ok(())
    });
}

/// `*` is `.+` to Envoy, and its dot takes no line feed (ADR 9): so it is for ALLOW, for DENY, and for our evaluator.
#[test]
fn a_line_feed_is_no_star() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let source = r#"{source: {requestPrincipals: ["https://login.example/*"]}}"#;
        let app = scene(lab, &signer, source).await?;
        lab.save(
            "star.yaml",
            r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: star, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/star]}}]
    when: [{key: "request.auth.claims[team]", values: ["*"]}]
  - to: [{operation: {paths: [/absent]}}]
    when: [{key: "request.auth.claims[team]", notValues: ["*"]}]
"#,
        )?;
        let (on, caller) = (lab[app].on(8080), lab.caller(Credential::Plaintext));
        let ask = async |claims: serde_json::Value, path: &str| {
            let mut request = get(path);
            let token = signer.token(&claims).unwrap();
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            caller.send(on, request).await.got
        };
        lab.becomes(DENIED, async |_| ask(json!({"team": "x"}), "/star").await).await?;
        for (claims, star, absent) in [
            (json!({}), ALLOWED, DENIED),
            (json!({"team": "x"}), DENIED, ALLOWED),
            (json!({"team": ["x", "y"]}), DENIED, ALLOWED),
            (json!({"team": "x\ny"}), ALLOWED, DENIED),
            (json!({"team": ["x\ny"]}), ALLOWED, DENIED),
            (json!({"team": ["x\ny", "z"]}), DENIED, ALLOWED),
            (json!({"team": 7}), ALLOWED, DENIED),
        ] {
            assert_eq!(ask(claims.clone(), "/star").await, star, "{claims} on /star");
            assert_eq!(ask(claims.clone(), "/absent").await, absent, "{claims} on /absent");
        }
        // A subject with one is no request principal, so nothing is allowed to it.
        assert_eq!(ask(json!({"sub": "a\nb"}), "/").await, DENIED);
        Ok(())
    });
}
