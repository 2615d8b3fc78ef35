//! Policies: each case is made around one row of the table of keys (semantics §4.3), one operator and one polarity.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::case::{Case, DESTINATION, KEYS, Mesh, NEIGHBOUR, Place, Run, admitted};
use super::edges;
use super::words::{self, chance, pick};

/// How a value stands for what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Exact,
    Prefix,
    Suffix,
    Present,
    /// `*` somewhere inside.
    Inner,
    Block,
    Template,
    Deep,
    List,
    /// `ISSUER/*`, `*/SUBJECT`.
    Left,
    Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    RequestPrincipal,
    Audience,
    Presenter,
    Claim,
    Nested,
    Header,
    Host,
    Method,
    Path,
    Port,
    DestinationIp,
    Sni,
    Metadata,
}

use Op::{Block, Deep, Exact, Inner, Left, List, Prefix, Present, Right, Suffix, Template};
use Row::{
    Audience, Claim, DestinationIp, Header, Host, Metadata, Method, Namespace, Nested, Path, Port, Presenter,
    Principal, RemoteIp, RequestPrincipal, ServiceAccount, Sni, SourceIp, TrustDomain,
};

const TEXT: &[Op] = &[Exact, Prefix, Suffix, Present];

const TABLE: &[(Row, &[Op])] = &[
    (Principal, TEXT),
    (Namespace, &[Exact, Prefix, Suffix, Inner, Present]),
    (ServiceAccount, &[Exact]),
    (TrustDomain, TEXT),
    (SourceIp, &[Exact, Block]),
    (RemoteIp, &[Exact, Block]),
    (RequestPrincipal, &[Exact, Prefix, Suffix, Present, Left, Right]),
    (Audience, TEXT),
    (Presenter, TEXT),
    (Claim, TEXT),
    (Nested, TEXT),
    (Header, TEXT),
    (Host, TEXT),
    (Method, TEXT),
    (Path, &[Exact, Prefix, Suffix, Present, Template, Deep]),
    (Port, &[Exact]),
    (DestinationIp, &[Exact, Block]),
    (Sni, TEXT),
    (Metadata, &[Exact, List]),
];

#[derive(Clone, Copy, Debug)]
struct Focus {
    row: Row,
    op: Op,
    negative: bool,
}

fn foci() -> impl Iterator<Item = Focus> {
    TABLE.iter().flat_map(|(row, ops)| {
        ops.iter().flat_map(|op| [false, true].map(|negative| Focus { row: *row, op: *op, negative }))
    })
}

/// The case of a seed.
pub(crate) fn case(seed: u64, jwks: &str) -> Case {
    let all: Vec<Focus> = foci().collect();
    let focus = all[usize::try_from(seed).unwrap() % all.len()];
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..100 {
        if let Some(case) = attempt(&mut rng, focus, jwks) {
            return case;
        }
    }
    panic!("nothing that admission accepts for {focus:?}");
}

fn attempt(rng: &mut StdRng, focus: Focus, jwks: &str) -> Option<Case> {
    let mesh = Mesh {
        aliases: if chance(rng, 60) { vec!["td2".into(), "td.3".into()] } else { vec!["td2".into()] },
        normalization: pick(rng, &["BASE", "BASE", "NONE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"])
            .into(),
        ecds: chance(rng, 15),
    };
    let tokens = focus.row.of_token() || chance(rng, 25);
    let mut policies = vec![focused(rng, focus)];
    let more = [0, 0, 0, 1, 1, 2][rng.random_range(0..6)];
    policies.extend((0..more).map(|i| further(rng, i, tokens)));
    let place = place(rng);
    if tokens {
        policies.push(request_authentication(rng, "ra", &place));
        if chance(rng, 20) {
            policies.push(request_authentication(rng, "ra2", &place));
        }
    }
    if chance(rng, 45) {
        policies.push(peer_authentication(rng));
    }
    // Duplicate names would replace each other.
    let run = Run { address: edges::SOMEWHERE, jwks };
    if policies.iter().any(|policy| admitted(policy, run).is_err()) {
        return None;
    }
    let mut case = Case { mesh, policies, ..Case::default() };
    case.focus = format!("{focus:?}");
    case.requests = edges::requests(rng, &case, run, place.as_ref());
    (!case.requests.is_empty()).then_some(case)
}

fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": { "name": name, "namespace": namespace }, "spec": spec })
}

/// The policy that the case is about: enforced on the workload.
fn focused(rng: &mut StdRng, focus: Focus) -> Value {
    let deny = chance(rng, 40);
    let mut rules = vec![rule(rng, focus)];
    if chance(rng, 20) {
        let other = any_focus(rng, true);
        rules.push(rule(rng, other));
    }
    let namespace = if chance(rng, 80) { "foo" } else { "istio-system" };
    let mut spec = json!({ "rules": rules });
    if deny {
        spec["action"] = "DENY".into();
    }
    if chance(rng, 30) {
        spec["selector"] = json!({ "matchLabels": { "app": "a" } });
    }
    object("AuthorizationPolicy", namespace, "main", &spec)
}

/// One that may or may not apply, may be a dry run, ...
fn further(rng: &mut StdRng, i: usize, tokens: bool) -> Value {
    let action = pick(rng, &["ALLOW", "ALLOW", "DENY", "AUDIT", "CUSTOM", "CUSTOM", "DENY"]);
    let namespace = pick(rng, &["foo", "foo", "foo", "istio-system", "bar"]);
    let rules: Vec<Value> = match rng.random_range(0..8) {
        0 if action == "ALLOW" => vec![],
        1 => vec![json!({})],
        _ => {
            let focus = any_focus(rng, tokens && action != "CUSTOM");
            vec![rule(rng, focus)]
        }
    };
    let mut spec = json!({ "action": action, "rules": rules });
    if action == "CUSTOM" {
        spec["provider"] = json!({ "name": pick(rng, &["nobody", "no", "no", "yes"]) });
    }
    match rng.random_range(0..10) {
        0 => spec["selector"] = json!({ "matchLabels": { "app": "b" } }),
        1 | 2 => spec["selector"] = json!({ "matchLabels": { "app": "a", "version": "v1" } }),
        3 => {
            spec["targetRefs"] =
                json!([{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "a" }]);
        }
        _ => {}
    }
    let mut object = object("AuthorizationPolicy", namespace, &format!("more-{i}"), &spec);
    if matches!(action, "ALLOW" | "DENY") && chance(rng, 25) {
        object["metadata"]["annotations"] = json!({ "istio.io/dry-run": "true" });
    }
    object
}

fn peer_authentication(rng: &mut StdRng) -> Value {
    let modes = ["STRICT", "STRICT", "PERMISSIVE", "DISABLE", "UNSET"];
    let mut spec = json!({ "mtls": { "mode": pick(rng, &modes) } });
    let namespace = pick(rng, &["foo", "foo", "istio-system"]);
    if namespace == "foo" && chance(rng, 50) {
        spec["selector"] = json!({ "matchLabels": { "app": "a" } });
        let port = pick(rng, &["8080", "8081", "9000"]);
        spec["portLevelMtls"] = json!({ port: { "mode": pick(rng, &modes) } });
    }
    object("PeerAuthentication", namespace, "pa", &spec)
}

/// Where tokens of the whole case are; `None` is the default place.
fn place(rng: &mut StdRng) -> Option<Place> {
    match rng.random_range(0..10) {
        0 => Some(Place::Header("x-jwt".into(), String::new())),
        1 => Some(Place::Header("X-Token".into(), "Token ".into())),
        2 => Some(Place::Param("token".into())),
        3 => Some(Place::Cookie("session".into())),
        _ => None,
    }
}

fn request_authentication(rng: &mut StdRng, name: &str, place: &Option<Place>) -> Value {
    let count = if chance(rng, 70) { 1 } else { 2 };
    let rules: Vec<Value> = (0..count)
        .map(|_| {
            let mut rule = json!({ "issuer": pick(rng, words::ISSUERS), "jwks": KEYS });
            match place {
                Some(Place::Header(name, prefix)) => {
                    rule["fromHeaders"] = json!([{ "name": name, "prefix": prefix }]);
                }
                Some(Place::Param(name)) => rule["fromParams"] = json!([name]),
                Some(Place::Cookie(name)) => rule["fromCookies"] = json!([name]),
                Some(Place::Bearer) | None => {}
            }
            if chance(rng, 25) {
                rule["audiences"] = json!([pick(rng, words::AUDIENCES), pick(rng, words::AUDIENCES)]);
            }
            if chance(rng, 30) {
                rule["forwardOriginalToken"] = true.into();
            }
            if chance(rng, 30) {
                rule["spaceDelimitedClaims"] = json!(["groups"]);
            }
            if chance(rng, 8) {
                rule["presence"] = "REQUIRED".into();
            }
            rule
        })
        .collect();
    let namespace = pick(rng, &["foo", "foo", "istio-system"]);
    object("RequestAuthentication", namespace, name, &json!({ "jwtRules": rules }))
}

fn any_focus(rng: &mut StdRng, tokens: bool) -> Focus {
    loop {
        let (row, ops) = TABLE[rng.random_range(0..TABLE.len())];
        if tokens || !row.of_token() {
            return Focus { row, op: ops[rng.random_range(0..ops.len())], negative: chance(rng, 35) };
        }
    }
}

/// A rule that asks for the focus, and often for something else.
fn rule(rng: &mut StdRng, focus: Focus) -> Value {
    let mut rule = Parts::default();
    let twice = chance(rng, 15);
    rule.add(rng, focus, None);
    if twice {
        rule.add(rng, Focus { negative: !focus.negative, ..focus }, None);
    }
    for _ in 0..[0, 0, 1, 1, 2][rng.random_range(0..5)] {
        let other = any_focus(rng, focus.row.of_token());
        rule.add(rng, other, None);
    }
    rule.json(rng)
}

#[derive(Default)]
struct Parts {
    source: Map<String, Value>,
    operation: Map<String, Value>,
    when: Vec<Value>,
}

impl Parts {
    fn add(&mut self, rng: &mut StdRng, focus: Focus, condition: Option<bool>) {
        let Focus { row, op, negative } = focus;
        let count = [1, 1, 1, 2, 3][rng.random_range(0..5)];
        let mut values: Vec<String> = (0..count).map(|_| value(rng, row, op)).collect();
        values.dedup();
        let field = row.field();
        let condition = condition.unwrap_or_else(|| chance(rng, 35));
        match (field, row.key(rng)) {
            (Some((of_source, name)), key) if !condition || key.is_none() => {
                let name = if negative {
                    let mut letters = name.chars();
                    let first = letters.next().unwrap().to_ascii_uppercase();
                    format!("not{first}{}", letters.as_str())
                } else {
                    name.to_owned()
                };
                let into = if of_source { &mut self.source } else { &mut self.operation };
                into.insert(name, json!(values));
            }
            (_, Some(key)) => {
                let name = if negative { "notValues" } else { "values" };
                let mut condition = json!({ "key": key, name: values });
                if chance(rng, 10) {
                    let other = if negative { "values" } else { "notValues" };
                    condition[other] = json!([value(rng, row, op)]);
                }
                self.when.push(condition);
            }
            (None, None) | (Some(_), None) => unreachable!("every row has a field or a key"),
        }
    }

    fn json(self, rng: &mut StdRng) -> Value {
        let Self { source, operation, when } = self;
        let mut rule = Map::new();
        if !source.is_empty() {
            let mut from = vec![json!({ "source": source })];
            if chance(rng, 10) {
                from.push(json!({ "source": { "namespaces": [pick(rng, words::NAMESPACES)] } }));
            }
            rule.insert("from".into(), from.into());
        }
        if !operation.is_empty() {
            let mut to = vec![json!({ "operation": operation })];
            if chance(rng, 10) {
                to.push(json!({ "operation": { "paths": [pick(rng, words::PATHS)] } }));
            }
            rule.insert("to".into(), to.into());
        }
        if !when.is_empty() {
            rule.insert("when".into(), when.into());
        }
        rule.into()
    }
}

impl Row {
    /// Whether it needs a verified token.
    fn of_token(self) -> bool {
        matches!(self, RequestPrincipal | Audience | Presenter | Claim | Nested)
    }

    /// Whether a field of `source` (or else of `operation`), and which.
    fn field(self) -> Option<(bool, &'static str)> {
        Some(match self {
            Principal => (true, "principals"),
            Namespace => (true, "namespaces"),
            ServiceAccount => (true, "serviceAccounts"),
            TrustDomain => (true, "trustDomains"),
            SourceIp => (true, "ipBlocks"),
            RemoteIp => (true, "remoteIpBlocks"),
            RequestPrincipal => (true, "requestPrincipals"),
            Host => (false, "hosts"),
            Method => (false, "methods"),
            Path => (false, "paths"),
            Port => (false, "ports"),
            Audience | Presenter | Claim | Nested | Header | DestinationIp | Sni | Metadata => return None,
        })
    }

    fn key(self, rng: &mut StdRng) -> Option<String> {
        let key = match self {
            Principal => "source.principal",
            Namespace => "source.namespace",
            ServiceAccount => "source.serviceAccount",
            TrustDomain => "source.trustDomain",
            SourceIp => "source.ip",
            RemoteIp => "remote.ip",
            RequestPrincipal => "request.auth.principal",
            Audience => "request.auth.audiences",
            Presenter => "request.auth.presenter",
            Claim => pick(
                rng,
                &["request.auth.claims[groups]", "request.auth.claims[scope]", "request.auth.claims[iss]"],
            ),
            Nested => pick(rng, &["request.auth.claims[realm][roles]", "request.auth.claims[realm][x]"]),
            Header => return Some(format!("request.headers[{}]", pick(rng, words::HEADERS))),
            Port => "destination.port",
            DestinationIp => "destination.ip",
            Sni => "connection.sni",
            Metadata => pick(
                rng,
                &[
                    "experimental.envoy.filters.http.jwt_authn[payload]",
                    "experimental.envoy.filters.network.x[k]",
                ],
            ),
            Host | Method | Path => return None,
        };
        Some(key.to_owned())
    }

    fn words(self) -> &'static [&'static str] {
        match self {
            Principal => words::IDENTITIES,
            Namespace => words::NAMESPACES,
            ServiceAccount => words::ACCOUNTS,
            TrustDomain => words::DOMAINS,
            SourceIp => words::SOURCES,
            RemoteIp => words::REMOTES,
            RequestPrincipal => words::SUBJECTS,
            Audience => words::AUDIENCES,
            Presenter => words::PRESENTERS,
            Claim | Nested | Metadata => words::GROUPS,
            Header => words::VALUES,
            Host => words::HOSTS,
            Method => words::METHODS,
            Path => words::PATHS,
            Port => words::PORTS,
            DestinationIp => &[DESTINATION, DESTINATION, NEIGHBOUR, "127.0.0.1"],
            Sni => words::SNIS,
        }
    }
}

fn value(rng: &mut StdRng, row: Row, op: Op) -> String {
    let mut base = pick(rng, row.words()).trim_start_matches("spiffe://").to_owned();
    if row == RequestPrincipal {
        return request_principal(rng, &base, op);
    }
    if row == Claim && chance(rng, 10) {
        base = pick(rng, words::ISSUERS).to_owned();
    }
    if row == Principal && chance(rng, 15) {
        let (_, rest) = base.split_once('/').expect("an identity has a path");
        base = format!("{}/{rest}", pick(rng, words::DOMAINS));
    }
    match (row, op) {
        (SourceIp | RemoteIp | DestinationIp, Block) => block(rng, &base),
        (Path, Template) => pick(rng, words::TEMPLATES).to_owned(),
        (Path, Deep) => pick(rng, words::DEEP_TEMPLATES).to_owned(),
        (Metadata, List) => format!("[{base}]"),
        (Port | ServiceAccount | SourceIp | RemoteIp | DestinationIp | Metadata, _) => base,
        _ => spell(rng, &base, op),
    }
}

/// `base` as a pattern that matches it.
fn spell(rng: &mut StdRng, base: &str, op: Op) -> String {
    let cut = base.char_indices().map(|(i, _)| i).filter(|i| *i > 0).collect::<Vec<_>>();
    let at = if cut.is_empty() { base.len() } else { cut[rng.random_range(0..cut.len())] };
    match op {
        Prefix => format!("{}*", &base[..at]),
        Suffix if at == base.len() => format!("*{base}"),
        Suffix => format!("*{}", &base[at..]),
        Inner => format!("{}*{}", &base[..at], &base[at..]),
        Present => "*".to_owned(),
        _ => base.to_owned(),
    }
}

fn block(rng: &mut StdRng, base: &str) -> String {
    let most: u8 = if base.contains(':') { 128 } else { 32 };
    let bits = match rng.random_range(0..6) {
        0 => 0,
        1 => 8,
        2 => most / 2,
        _ => rng.random_range(most - 9..most),
    };
    format!("{base}/{bits}")
}

fn request_principal(rng: &mut StdRng, subject: &str, op: Op) -> String {
    let issuer = pick(rng, words::ISSUERS);
    match op {
        Present => "*".to_owned(),
        Left => format!("{issuer}/*"),
        Right => format!("*/{subject}"),
        Suffix if chance(rng, 50) => {
            let issuer = spell(rng, issuer, Suffix);
            format!("{issuer}/{subject}")
        }
        Suffix => spell(rng, subject, Suffix),
        Prefix if chance(rng, 50) => spell(rng, issuer, Prefix),
        Prefix => {
            let subject = spell(rng, subject, Prefix);
            format!("{issuer}/{subject}")
        }
        _ => format!("{issuer}/{subject}"),
    }
}
