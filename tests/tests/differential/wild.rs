//! Objects such as nobody should write: every field of the three kinds with values that are fine, nearly so, or nothing of
//! the kind. About half of them are what admission accepts.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::case::KEYS;
use super::words::{self, chance, pick};

/// Bits that mean something to somebody on the way: to our notation, to regular expressions, to JSON, headers, URLs, paths.
const BITS: &[&str] = &[
    "*",
    "**",
    "{*}",
    "{**}",
    "{",
    "}",
    "\\",
    "\\Q",
    "\\E",
    "[",
    "]",
    "[^]",
    "(",
    ")",
    "(?i)",
    "|",
    "^",
    "$",
    ".",
    ".*",
    "+",
    "?",
    "é",
    "日本",
    "\u{202e}",
    "\u{0}",
    "\n",
    "\r\n",
    "\t",
    " ",
    "/",
    "//",
    "/../",
    "%2F",
    "%",
    "%00",
    "\"",
    "'",
    ":",
    ";",
    ",",
    "-",
    "_",
    "0",
    "a",
    "A",
    "#",
    "&",
    "=",
    "@",
    "~",
    "<",
    "\u{feff}",
    "\u{1f600}",
    "spiffe://",
    "x{1000}",
];

/// The object of a seed, of the namespace that the workload is in.
pub(crate) fn object(seed: u64) -> Value {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x0057_494c_4400);
    let rng = &mut rng;
    let (kind, spec) = match seed % 4 {
        0 => ("PeerAuthentication", peer_authentication(rng)),
        1 => ("RequestAuthentication", request_authentication(rng)),
        _ => ("AuthorizationPolicy", authorization_policy(rng)),
    };
    let mut metadata = json!({ "name": format!("w{seed}"), "namespace": "foo" });
    match rng.random_range(0..40) {
        0 => metadata["name"] = text(rng).into(),
        1 => metadata["annotations"] = json!({ text(rng): text(rng) }),
        2 => metadata["annotations"] = json!({ "countersign.io/on-revoke": text(rng) }),
        3 => metadata["labels"] = json!({ text(rng): text(rng) }),
        4 => metadata["creationTimestamp"] = text(rng).into(),
        5..8 => {
            metadata["annotations"] =
                json!({ "istio.io/dry-run": pick(rng, &["true", "false", "T", "yes"]) });
        }
        _ => {}
    }
    let version = pick(rng, &["security.istio.io/v1", "security.istio.io/v1", "security.istio.io/v1beta1"]);
    let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec });
    // One mistake of form somewhere.
    if chance(rng, 8) {
        malform(rng, &mut object["spec"]);
    }
    object
}

/// Any text: a few bits, seldom very many.
fn text(rng: &mut StdRng) -> String {
    let mut text = String::new();
    for _ in 0..rng.random_range(0..7) {
        text.push_str(pick(rng, BITS));
    }
    match rng.random_range(0..60) {
        0 => text.repeat(rng.random_range(1..60)),
        1 => {
            let bit = pick(rng, BITS);
            format!("{text}{}", bit.repeat(rng.random_range(1..3000)))
        }
        2 => format!("{text}{}", "x".repeat(rng.random_range(1..40_000))),
        _ => text,
    }
}

/// One of `words`, that with something odd about it, or nothing of the kind.
fn odd(rng: &mut StdRng, words: &[&str]) -> String {
    let word = pick(rng, words);
    match rng.random_range(0..24) {
        0 => text(rng),
        1 => format!("{word}{}", pick(rng, BITS)),
        2 => format!("{}{word}", pick(rng, BITS)),
        3..6 => format!("*{word}"),
        6..9 => format!("{word}*"),
        9 => "*".to_owned(),
        _ => word.to_owned(),
    }
}

fn list(rng: &mut StdRng, mut one: impl FnMut(&mut StdRng) -> String) -> Value {
    let count = match rng.random_range(0..40) {
        0 => 0,
        1 => rng.random_range(10..80),
        _ => rng.random_range(1..4),
    };
    (0..count).map(|_| Value::from(one(rng))).collect()
}

/// A block that is one more often than not.
fn block(rng: &mut StdRng, words: &[&str]) -> String {
    let address = pick(rng, words);
    match rng.random_range(0..20) {
        0 => odd(rng, words),
        1 => format!("{address}/{}", rng.random_range(0..140)),
        2 => pick(
            rng,
            &["::/0", "0.0.0.0/0", "::ffff:10.0.0.0/104", "::1%eth0", "10.0.0.0/8/8", "[::1]", "0x7f.1"],
        )
        .to_owned(),
        3..9 => format!("{address}/{}", rng.random_range(0..33)),
        _ => address.to_owned(),
    }
}

fn port(rng: &mut StdRng) -> String {
    match rng.random_range(0..30) {
        0 => text(rng),
        1 => pick(rng, &["65536", "-1", "+80", "080", " 80", "8e1", "http", "４", "99999999999999999999"])
            .to_owned(),
        _ => rng.random_range(0..=u16::MAX).to_string(),
    }
}

fn account(rng: &mut StdRng) -> String {
    match rng.random_range(0..20) {
        0 => text(rng),
        1 => format!("{}/{}", pick(rng, words::NAMESPACES), "s".repeat(rng.random_range(300..330))),
        _ => pick(rng, words::ACCOUNTS).to_owned(),
    }
}

fn domain(rng: &mut StdRng) -> String {
    match rng.random_range(0..12) {
        0 => odd(rng, words::DOMAINS),
        1 => format!("*{}", pick(rng, words::DOMAINS)),
        2 => format!("{}*", pick(rng, words::DOMAINS)),
        3 => "*".to_owned(),
        _ => pick(rng, words::DOMAINS).to_owned(),
    }
}

fn path(rng: &mut StdRng) -> String {
    let segment = |rng: &mut StdRng| match rng.random_range(0..20) {
        0 => text(rng),
        1 => String::new(),
        2..8 => "{*}".to_owned(),
        8..10 => "{**}".to_owned(),
        10 => "*".to_owned(),
        _ => pick(rng, &["a", "b.c", "~", "%41", "a;b=1", "x!$&'()+,:@", "-_"]).to_owned(),
    };
    match rng.random_range(0..6) {
        0 => odd(rng, words::PATHS),
        1 => pick(rng, words::TEMPLATES).to_owned(),
        2 => {
            let count = if chance(rng, 5) { rng.random_range(20..120) } else { rng.random_range(0..6) };
            (0..count).map(|_| format!("/{}", segment(rng))).collect()
        }
        _ => pick(rng, words::PATHS).to_owned(),
    }
}

/// The brackets of a `when` key.
fn bracketed(rng: &mut StdRng, attribute: &str) -> String {
    let names =
        ["x-a", "sub", "a.b", "https://a.example/roles", ":path", "a b", "日本", "a][b", "a][b][c", "x[y]z"];
    match rng.random_range(0..16) {
        0 => format!("{attribute}[{}]", text(rng)),
        1 => format!(
            "{attribute}[{}",
            pick(rng, &["", "]", "[]", "a", "a]]", "[a]]", "a]b", "a] ", "a][]", "[a"])
        ),
        2 => format!("{attribute}{}", pick(rng, &["", ".a", "(a)", "[a][b]", "[ a ]", "[a]["])),
        _ => format!("{attribute}[{}]", pick(rng, &names)),
    }
}

fn condition(rng: &mut StdRng) -> Value {
    let key = match rng.random_range(0..20) {
        0 => text(rng),
        1 => {
            pick(rng, &["destination.user", "source.user", "request.auth", "source.IP", "experimental.x[a]"])
                .to_owned()
        }
        2..5 => bracketed(rng, "request.headers"),
        5..8 => bracketed(rng, "request.auth.claims"),
        8 => bracketed(rng, "experimental.envoy.filters.http.jwt_authn"),
        9 => bracketed(rng, "experimental.envoy.filters.network.日本"),
        _ => pick(rng, &KEYS_OF_WHEN).to_owned(),
    };
    let mut condition = json!({ "key": key });
    let name = if chance(rng, 35) { "notValues" } else { "values" };
    condition[name] = list(rng, |rng| match &*key {
        "source.ip" | "remote.ip" | "destination.ip" => block(rng, words::REMOTES),
        "destination.port" => port(rng),
        "source.serviceAccount" => account(rng),
        "source.trustDomain" => domain(rng),
        "request.auth.principal" => format!("{}/{}", odd(rng, words::ISSUERS), odd(rng, words::SUBJECTS)),
        "connection.sni" => odd(rng, words::SNIS),
        _ if key.starts_with("experimental") && chance(rng, 50) => format!("[{}]", odd(rng, words::GROUPS)),
        _ => odd(rng, words::VALUES),
    });
    condition
}

const KEYS_OF_WHEN: [&str; 14] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.headers[x-a]",
    "request.auth.claims[groups]",
];

fn insert(rng: &mut StdRng, into: &mut Map<String, Value>, name: &str, one: fn(&mut StdRng) -> String) {
    let name = if chance(rng, 30) {
        let (first, rest) = name.split_at(1);
        format!("not{}{rest}", first.to_uppercase())
    } else {
        name.to_owned()
    };
    let values = list(rng, one);
    into.insert(name, values);
}

fn source(rng: &mut StdRng) -> Value {
    let mut source = Map::new();
    for _ in 0..[1, 1, 1, 2, 3, 0][rng.random_range(0..6)] {
        match rng.random_range(0..7) {
            0 => insert(rng, &mut source, "principals", |rng| {
                odd(rng, words::IDENTITIES)
                    .replace("spiffe://", if chance(rng, 5) { "spiffe://" } else { "" })
            }),
            1 => insert(rng, &mut source, "requestPrincipals", |rng| {
                format!("{}/{}", odd(rng, words::ISSUERS), odd(rng, words::SUBJECTS))
            }),
            2 => insert(rng, &mut source, "namespaces", |rng| odd(rng, words::NAMESPACES)),
            3 => insert(rng, &mut source, "serviceAccounts", account),
            4 => insert(rng, &mut source, "ipBlocks", |rng| block(rng, words::SOURCES)),
            5 => insert(rng, &mut source, "remoteIpBlocks", |rng| block(rng, words::REMOTES)),
            _ => insert(rng, &mut source, "trustDomains", domain),
        }
    }
    json!({ "source": source })
}

fn operation(rng: &mut StdRng) -> Value {
    let mut operation = Map::new();
    for _ in 0..[1, 1, 1, 2, 3, 0][rng.random_range(0..6)] {
        match rng.random_range(0..5) {
            0 => insert(rng, &mut operation, "hosts", |rng| odd(rng, words::HOSTS)),
            1 => insert(rng, &mut operation, "ports", port),
            2 => insert(rng, &mut operation, "methods", |rng| odd(rng, words::METHODS)),
            _ => insert(rng, &mut operation, "paths", path),
        }
    }
    json!({ "operation": operation })
}

fn rule(rng: &mut StdRng) -> Value {
    let mut rule = Map::new();
    let mut some = |rng: &mut StdRng, name: &str, one: fn(&mut StdRng) -> Value| {
        if chance(rng, 45) {
            let count = if chance(rng, 2) { 30 } else { rng.random_range(1..3) };
            rule.insert(name.to_owned(), (0..count).map(|_| one(rng)).collect());
        }
    };
    some(rng, "from", source);
    some(rng, "to", operation);
    some(rng, "when", condition);
    rule.into()
}

fn authorization_policy(rng: &mut StdRng) -> Value {
    let count = match rng.random_range(0..60) {
        0 => 0,
        1 => rng.random_range(50..520),
        _ => rng.random_range(1..3),
    };
    // Many rules are all alike: else one of them would be refused for certain.
    let rules: Vec<Value> = if count > 10 {
        let rule = rule(rng);
        vec![rule; count]
    } else {
        (0..count).map(|_| rule(rng)).collect()
    };
    let mut spec = json!({ "rules": rules });
    let action = pick(rng, &["", "ALLOW", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM"]);
    if !action.is_empty() {
        spec["action"] = action.into();
    }
    if action == "CUSTOM" || chance(rng, 1) {
        let wild = text(rng);
        spec["provider"] = json!({ "name": pick(rng, &["no", "yes", "nobody", &wild]) });
    }
    select(rng, &mut spec);
    spec
}

fn select(rng: &mut StdRng, spec: &mut Value) {
    match rng.random_range(0..24) {
        0 => spec["selector"] = json!({ "matchLabels": { text(rng): text(rng) } }),
        1 => spec["selector"] = json!({}),
        2..6 => spec["selector"] = json!({ "matchLabels": { "app": "a" } }),
        6 => {
            let name = odd(rng, words::NAMESPACES);
            spec["targetRefs"] =
                json!([{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name }]);
        }
        _ => {}
    }
}

fn peer_authentication(rng: &mut StdRng) -> Value {
    let modes =
        ["STRICT", "PERMISSIVE", "DISABLE", "UNSET", "STRICT", "STRICT", "PERMISSIVE", "strict", "MUTUAL"];
    let mut mode = || json!({ "mode": pick(rng, &modes) });
    let mut spec = json!({ "mtls": mode() });
    let modes: Vec<Value> = (0..4).map(|_| mode()).collect();
    if chance(rng, 50) {
        spec["selector"] = json!({ "matchLabels": { "app": "a" } });
    } else {
        select(rng, &mut spec);
    }
    if chance(rng, 50) {
        let ports = modes.into_iter().take(rng.random_range(0..5)).map(|mode| {
            let number =
                if chance(rng, 60) { pick(rng, &["8080", "8081", "9000"]).to_owned() } else { port(rng) };
            (number, mode)
        });
        spec["portLevelMtls"] = ports.collect::<Map<_, _>>().into();
    }
    spec
}

/// A key set, often with keys in it that are none.
fn jwks(rng: &mut StdRng) -> Value {
    let keys = [
        json!({ "kty": "RSA", "n": text(rng), "e": "AQAB" }),
        json!({ "kty": "RSA", "n": "_w".repeat(64), "e": "AQAB", "alg": text(rng), "kid": text(rng) }),
        json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": text(rng) }),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": "A".repeat(43), "kid": 7 }),
        json!({ "kty": "oct", "k": "c2VjcmV0" }),
        json!({ "kty": text(rng) }),
        json!(7),
    ];
    match rng.random_range(0..8) {
        0 => text(rng).into(),
        1 => json!({ "keys": [] }).to_string().into(),
        2..4 => {
            let some: Vec<&Value> = (0..2).map(|_| &keys[rng.random_range(0..keys.len())]).collect();
            json!({ "keys": some, "x": text(rng) }).to_string().into()
        }
        _ => KEYS.into(),
    }
}

fn jwt_rule(rng: &mut StdRng) -> Value {
    let mut rule = json!({ "issuer": odd(rng, words::ISSUERS) });
    match rng.random_range(0..10) {
        0 => {
            rule["jwksUri"] =
                odd(rng, &["https://a.example/keys", "http://[::1]:80/", "ftp://a/", "https://a b/"]).into();
        }
        1 => {}
        _ => rule["jwks"] = jwks(rng),
    }
    let header =
        |rng: &mut StdRng| odd(rng, &["x-jwt", "X-Token", "authorization", ":path", "a b", "host", "cookie"]);
    match rng.random_range(0..9) {
        0 => {
            rule["fromHeaders"] =
                json!([{ "name": header(rng), "prefix": text(rng) }, { "name": header(rng) }]);
        }
        1 => rule["fromParams"] = list(rng, |rng| odd(rng, &["token", "a b", "&", "t"])),
        2 => rule["fromCookies"] = list(rng, |rng| odd(rng, &["session", "a=b", ";", "t"])),
        _ => {}
    }
    match rng.random_range(0..9) {
        0 => {
            rule["outputClaimToHeaders"] =
                json!([{ "header": header(rng), "claim": odd(rng, &["sub", "a.b", "a[b]"]) }]);
        }
        1 => rule["outputPayloadToHeader"] = header(rng).into(),
        2 => rule["spaceDelimitedClaims"] = list(rng, |rng| odd(rng, &["groups", "scope", "a.b"])),
        3 => rule["timeout"] = odd(rng, &["5s", "1.5s", "1m30s", "0s", "999999h", "1ns", "-1s"]).into(),
        4 => rule["presence"] = pick(rng, &["REQUIRED", "OPTIONAL", "required"]).into(),
        5 => rule["forwardOriginalToken"] = chance(rng, 50).into(),
        _ => {}
    }
    if chance(rng, 30) {
        rule["audiences"] = list(rng, |rng| odd(rng, words::AUDIENCES));
    }
    rule
}

fn request_authentication(rng: &mut StdRng) -> Value {
    let count = if chance(rng, 2) { rng.random_range(20..200) } else { rng.random_range(0..3) };
    let rules: Vec<Value> = if count > 10 {
        let rule = jwt_rule(rng);
        // Each with an issuer of its own.
        let numbered = |i: usize| {
            let mut rule = rule.clone();
            rule["issuer"] = format!("{}{i}", rule["issuer"].as_str().unwrap_or_default()).into();
            rule
        };
        (0..count).map(numbered).collect()
    } else {
        (0..count).map(|_| jwt_rule(rng)).collect()
    };
    let mut spec = json!({ "jwtRules": rules });
    select(rng, &mut spec);
    spec
}

/// Somewhere in `value`: a field that does not exist, or a value of another type.
fn malform(rng: &mut StdRng, value: &mut Value) {
    let deeper = chance(rng, 75);
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = rng.random_range(0..map.len());
            malform(rng, map.values_mut().nth(at).expect("within the map"));
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = rng.random_range(0..items.len());
            malform(rng, &mut items[at]);
        }
        Value::Object(map) if chance(rng, 70) => {
            let name = if chance(rng, 50) { text(rng) } else { "unknown".to_owned() };
            map.insert(name, text(rng).into());
        }
        other => {
            *other = match rng.random_range(0..5) {
                0 => Value::Null,
                1 => json!(7),
                2 => json!([text(rng)]),
                3 => json!({ text(rng): true }),
                _ => text(rng).into(),
            }
        }
    }
}
