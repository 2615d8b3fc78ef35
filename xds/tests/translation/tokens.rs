//! RequestAuthentication in front of a real Envoy (semantics §5.1, §10.11, §10.12).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use policy::{Atom, EffectivePolicy, Jwks, JwtRule, Presence, RequestPrincipal, StringMatch};
use serde_json::json;

use super::accepted::jwt;
use super::bed::{Bed, HTTP};
use super::fixtures;

/// An issuer with its key, made at run time.
struct Issuer {
    key: rcgen::KeyPair,
    name: &'static str,
}

impl Issuer {
    fn new(name: &'static str) -> Self {
        Self { key: rcgen::KeyPair::generate().unwrap(), name }
    }

    fn rule(&self) -> JwtRule {
        let point = self.key.public_key_raw();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..65]));
        let keys =
            json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "k", "x": x, "y": y}]});
        jwt(self.name, Jwks::Inline(keys.to_string().into()))
    }

    fn token(&self, claims: &serde_json::Value) -> String {
        let mut all = json!({"iss": self.name, "sub": "alice", "exp": 4_000_000_000_u64});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let header = Header { kid: Some("k".into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &all, &EncodingKey::from_ec_der(&self.key.serialize_der())).unwrap()
    }
}

async fn ask(bed: &Bed, headers: &str) -> u16 {
    bed.http_with(HTTP, Some(&bed.client), "/", headers).await.unwrap().0
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn missing_valid_and_bad_tokens() {
    let Some(bed) = Bed::new().await else { return };
    let (a, b, stranger) = (Issuer::new("https://a"), Issuer::new("https://b"), Issuer::new("https://a"));
    let good = bearer(&a.token(&json!({})));
    let expired = bearer(&a.token(&json!({"exp": 1})));
    let forged = bearer(&stranger.token(&json!({})));
    let unknown = bearer(&Issuer::new("https://c").token(&json!({})));
    for rules in [vec![a.rule()], vec![a.rule(), b.rule()]] {
        let both = rules.len() == 2;
        bed.enforce(&EffectivePolicy { jwt: rules, ..Default::default() }).await;
        assert_eq!(ask(&bed, "").await, 200);
        assert_eq!(ask(&bed, &good).await, 200);
        assert_eq!(ask(&bed, &bearer(&b.token(&json!({})))).await, if both { 200 } else { 401 });
        for bad in [&expired, &forged, &unknown, &bearer("garbage")] {
            assert_eq!(ask(&bed, bad).await, 401, "{bad}");
        }
    }
}

/// One of the audiences is enough; none in the rule asks for none.
#[tokio::test]
async fn audiences() {
    let Some(bed) = Bed::new().await else { return };
    let a = Issuer::new("https://a");
    let rule = JwtRule { audiences: vec!["shop".into(), "api".into()], ..a.rule() };
    bed.enforce(&EffectivePolicy { jwt: vec![rule], ..Default::default() }).await;
    for (audience, expected) in
        [(json!("shop"), 200), (json!(["x", "api"]), 200), (json!("other"), 403), (json!([]), 403)]
    {
        assert_eq!(ask(&bed, &bearer(&a.token(&json!({ "aud": audience })))).await, expected, "{audience}");
    }
}

/// Nothing can be signed for a key that is no point; the absent token stays absent.
#[tokio::test]
async fn a_rule_without_keys_refuses_every_token_of_its_issuer() {
    let Some(bed) = Bed::new().await else { return };
    let (a, b) = (Issuer::new("https://a"), Issuer::new("https://b"));
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let header = Header { kid: Some("refuse-all".into()), ..Header::new(Algorithm::EdDSA) };
    let claims = json!({"iss": "https://a", "sub": "alice", "exp": 4_000_000_000_u64});
    let key = EncodingKey::from_ed_der(&ed25519.serialize_der());
    let edwards = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    // A signature of zeros verifies under a degenerate key of other constructions.
    let (signed, _) = edwards.rsplit_once('.').unwrap();
    let zeros = format!("{signed}.{}", BASE64.encode([0; 64]));
    for keys in [Jwks::RefuseAll, Jwks::Remote(Some("https://a/keys".into()))] {
        let rules = vec![jwt("https://a", keys), b.rule()];
        bed.enforce(&EffectivePolicy { jwt: rules, ..Default::default() }).await;
        assert_eq!(ask(&bed, "").await, 200);
        assert_eq!(ask(&bed, &bearer(&b.token(&json!({})))).await, 200);
        for token in [a.token(&json!({})), edwards.clone(), zeros.clone()] {
            assert_eq!(ask(&bed, &bearer(&token)).await, 401);
        }
    }
}

#[tokio::test]
async fn required_tokens() {
    let Some(bed) = Bed::new().await else { return };
    let (a, b) = (Issuer::new("https://a"), Issuer::new("https://b"));
    let required = |rule: JwtRule| JwtRule { presence: Presence::Required, ..rule };
    let elsewhere = JwtRule {
        from_headers: vec![policy::JwtHeader { name: "x-b".into(), prefix: String::new() }],
        ..b.rule()
    };
    let (of_a, of_b) = (bearer(&a.token(&json!({}))), format!("x-b: {}\r\n", b.token(&json!({}))));
    bed.enforce(&EffectivePolicy { jwt: vec![required(a.rule()), elsewhere.clone()], ..Default::default() })
        .await;
    for (headers, status) in
        [("".to_owned(), 401), (of_a.clone(), 200), (of_b.clone(), 401), (of_a.clone() + &of_b, 200)]
    {
        assert_eq!(ask(&bed, &headers).await, status, "{headers}");
    }
    bed.enforce(&EffectivePolicy {
        jwt: vec![required(a.rule()), required(elsewhere)],
        ..Default::default()
    })
    .await;
    for (headers, status) in
        [("".to_owned(), 401), (of_a.clone(), 401), (of_b.clone(), 401), (of_a.clone() + &of_b, 200)]
    {
        assert_eq!(ask(&bed, &headers).await, status, "{headers}");
    }
}

#[tokio::test]
async fn rules_read_verified_claims() {
    let Some(bed) = Bed::new().await else { return };
    let a = Issuer::new("https://a/x");
    let allow = |atom: Atom| {
        let mut policy = EffectivePolicy { jwt: vec![a.rule()], ..Default::default() };
        policy.allow.enforced = Some(vec![fixtures::rule("claims", &[], &[atom])]);
        policy
    };
    let exact = |text: &str| StringMatch::parse(text);
    let principal = |issuer: Option<&str>, subject: Option<&str>| {
        Atom::RequestPrincipal(RequestPrincipal { issuer: issuer.map(exact), subject: subject.map(exact) })
    };
    let claim = |path: &[&str], value: &str| Atom::Claim {
        path: path.iter().map(|p| (*p).into()).collect(),
        value: exact(value),
    };
    for (atom, claims, status) in [
        (principal(Some("https://a/x"), Some("alice")), json!({}), 200),
        (principal(Some("https://a"), Some("x/alice")), json!({}), 403),
        (principal(None, None), json!({}), 200),
        (principal(None, None), json!({"sub": ""}), 403),
        (principal(None, Some("al*")), json!({}), 200),
        (Atom::Audience(exact("api")), json!({"aud": "api"}), 200),
        (Atom::Audience(exact("api")), json!({"aud": ["x", "api"]}), 200),
        (Atom::Audience(exact("api")), json!({"aud": ["x"]}), 403),
        (Atom::Presenter(exact("cli")), json!({"azp": "cli"}), 200),
        (claim(&["scope"], "read"), json!({"scope": "write read"}), 200),
        (claim(&["scope"], "read"), json!({"scope": "write reader"}), 403),
        (claim(&["a", "b"], "c*"), json!({"a": {"b": ["x", "cd"]}}), 200),
        (claim(&["level"], "5"), json!({"level": 5}), 403),
    ] {
        bed.enforce(&allow(atom.clone())).await;
        assert_eq!(ask(&bed, &bearer(&a.token(&claims))).await, status, "{atom:?} {claims}");
        assert_eq!(ask(&bed, "").await, 403, "{atom:?}");
    }
}
