//! What is compared: policies and requests, as they are written down in a regression file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crds::{Content, Object};
use mesh::{ExtAuthz, ExtAuthzKind, ExtensionProvider, InboundPort, MeshConfig, PathNormalization, Protocol};
use policy::{EffectivePolicy, PolicySet, Scope, WorkloadKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use xds::build::Provider;

use super::coverage::{PATH_HEADER, features};

pub(crate) const HTTP: u16 = 8080;
pub(crate) const AUTO: u16 = 8081;
pub(crate) const TCP: u16 = 9000;

/// Stands in a policy for the workload's own address, which is another one in every run; `{dest+1}` is its neighbour.
pub(crate) const DESTINATION: &str = "{dest}";
pub(crate) const NEIGHBOUR: &str = "{dest+1}";
/// Providers of CUSTOM policies, by what their authorizer answers: nothing else answers 418.
pub(crate) const AUTHORIZERS: [(&str, u16); 2] = [("no", 418), ("yes", 200)];
/// Stands for the keys of the tokens, which are made in every run.
pub(crate) const KEYS: &str = "{jwks}";

/// What the placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'p> {
    pub(crate) address: Ipv4Addr,
    pub(crate) jwks: &'p str,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Case {
    /// What was wrong, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
    pub(crate) mesh: Mesh,
    pub(crate) policies: Vec<Value>,
    pub(crate) requests: Vec<Wire>,
    /// What the case was generated for: row, operator, polarity.
    #[serde(skip)]
    pub(crate) focus: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mesh {
    pub(crate) aliases: Vec<String>,
    pub(crate) normalization: String,
    /// HTTP policy by extension configs instead of inlined.
    pub(crate) ecds: bool,
}

impl Default for Mesh {
    fn default() -> Self {
        Self { aliases: Vec::new(), normalization: "BASE".to_owned(), ecds: false }
    }
}

/// A request as it is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Wire {
    /// Some bytes that are no HTTP.
    pub(crate) tcp: bool,
    pub(crate) http2: bool,
    pub(crate) port: u16,
    /// URI SANs of the certificate; none is plaintext.
    pub(crate) peer: Vec<String>,
    pub(crate) source: Ipv4Addr,
    pub(crate) sni: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) token: Option<Token>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            tcp: false,
            http2: false,
            port: HTTP,
            peer: Vec::new(),
            source: Ipv4Addr::LOCALHOST,
            sni: String::new(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: "h".to_owned(),
            headers: Vec::new(),
            token: None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Token {
    pub(crate) claims: Map<String, Value>,
    pub(crate) place: Place,
    pub(crate) fault: Fault,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    #[default]
    Bearer,
    Header(String, String),
    Param(String),
    Cookie(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    #[default]
    None,
    Expired,
    Forged,
    Garbage,
}

/// A case with everything worked out that needs no Envoy.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) address: Ipv4Addr,
    pub(crate) mesh: MeshConfig,
    pub(crate) policy: EffectivePolicy,
    pub(crate) ecds: bool,
}

pub(crate) fn ports() -> Vec<InboundPort> {
    [(HTTP, Protocol::Http), (AUTO, Protocol::Auto), (TCP, Protocol::Tcp)]
        .map(|(port, protocol)| InboundPort { port, protocol, app: None })
        .into()
}

fn authorizer(name: &str) -> ExtensionProvider {
    let kind = ExtAuthzKind::Http {
        path_prefix: String::new(),
        include_headers: Vec::new(),
        additional_headers: BTreeMap::new(),
        upstream_on_allow: Vec::new(),
        downstream_on_deny: Vec::new(),
        downstream_on_allow: Vec::new(),
    };
    let ext_authz = ExtAuthz {
        kind,
        service: name.to_owned(),
        port: 1,
        timeout_ms: 30_000,
        fail_open: false,
        status_on_error: None,
        include_body: None,
    };
    ExtensionProvider { name: name.into(), ext_authz: Some(ext_authz) }
}

pub(crate) fn cluster(provider: &str) -> String {
    format!("outbound|1||{provider}")
}

pub(crate) fn providers() -> BTreeMap<Arc<str>, Provider> {
    let provider = |name: &str| Provider { cluster: cluster(name).into(), hostname: name.into() };
    AUTHORIZERS.iter().map(|(name, _)| ((*name).into(), provider(name))).collect()
}

impl Mesh {
    pub(crate) fn config(&self) -> MeshConfig {
        let path_normalization = match self.normalization.as_str() {
            "NONE" => PathNormalization::None,
            "BASE" => PathNormalization::Base,
            "MERGE_SLASHES" => PathNormalization::MergeSlashes,
            "DECODE_AND_MERGE_SLASHES" => PathNormalization::DecodeAndMergeSlashes,
            other => panic!("no normalization {other}"),
        };
        MeshConfig {
            trust_domain_aliases: self.aliases.iter().map(|a| a.as_str().into()).collect(),
            path_normalization,
            extension_providers: AUTHORIZERS.iter().map(|(name, _)| authorizer(name)).collect(),
            ..MeshConfig::default()
        }
    }
}

impl Case {
    /// `Err` says which object admission refuses.
    pub(crate) fn ready(&self, run: Run<'_>) -> Result<Ready, String> {
        self.read(run, admitted)
    }

    /// What admission would refuse is enforced as its closed value, as where there is no webhook.
    pub(crate) fn closed(&self, run: Run<'_>) -> Ready {
        let closed = |object: &Value, run: Run<'_>| match parsed(object, run).content {
            Content::Object(object) => Ok(*object),
            Content::Invalid { closed: Some(closed), .. } => Ok(*closed.object),
            other => Err(format!("{other:?} has no closed value")),
        };
        self.read(run, closed).unwrap_or_else(|why| panic!("{why}: {self:#?}"))
    }

    fn read(
        &self,
        run: Run<'_>,
        read: impl Fn(&Value, Run<'_>) -> Result<Object, String>,
    ) -> Result<Ready, String> {
        let mesh = self.mesh.config();
        let set = self.policies(&mesh, |object| read(object, run))?;
        let policy = policy::resolve(&set, &workload());
        Ok(Ready { address: run.address, mesh, policy, ecds: self.mesh.ecds })
    }

    fn policies(
        &self,
        mesh: &MeshConfig,
        read: impl Fn(&Value) -> Result<Object, String>,
    ) -> Result<PolicySet, String> {
        let mut set = PolicySet::new(scope(mesh));
        for object in &self.policies {
            match read(object)? {
                Object::PeerAuthentication(policy) => set.put_peer(Arc::new(policy)),
                Object::RequestAuthentication(policy) => set.put_request(Arc::new(policy)),
                Object::AuthorizationPolicy(policy) => set.put_authorization(Arc::new(policy)),
                other => return Err(format!("{:?} is no policy", other.object_ref())),
            }
        }
        Ok(set)
    }
}

/// What admission finds in an object.
pub(crate) fn parsed(object: &Value, run: Run<'_>) -> crds::Parsed {
    crds::parse(&placed(object, run))
}

/// The object, if admission takes it.
pub(crate) fn admitted(object: &Value, run: Run<'_>) -> Result<Object, String> {
    let parsed = parsed(object, run);
    match parsed.content {
        Content::Object(object) => Ok(*object),
        other => Err(format!("{other:?}: {:?}", parsed.findings)),
    }
}

fn placed(object: &Value, run: Run<'_>) -> Value {
    let next = Ipv4Addr::from(u32::from(run.address) + 1);
    match object {
        Value::String(text) => text
            .replace(KEYS, run.jwks)
            .replace(DESTINATION, &run.address.to_string())
            .replace(NEIGHBOUR, &next.to_string())
            .into(),
        Value::Array(items) => items.iter().map(|item| placed(item, run)).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), placed(v, run))).collect(),
        other => other.clone(),
    }
}

pub(crate) fn scope(mesh: &MeshConfig) -> Scope {
    Scope {
        root_namespace: mesh.root_namespace.clone(),
        trust_domain: mesh.trust_domain.clone(),
        trust_domain_aliases: mesh.trust_domain_aliases.clone(),
        providers: AUTHORIZERS.iter().map(|(name, _)| (*name).into()).collect(),
    }
}

/// Who the policies are about.
pub(crate) fn workload() -> WorkloadKey {
    let labels = [("app", "a"), ("version", "v1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    WorkloadKey { namespace: "foo".into(), labels: Arc::new(labels.into()) }
}

impl Token {
    /// Header lines and path that carry `jwt`.
    fn put(&self, jwt: &str, path: &mut String, headers: &mut Vec<(String, String)>) {
        match &self.place {
            Place::Bearer => headers.push(("authorization".to_owned(), format!("Bearer {jwt}"))),
            Place::Header(name, prefix) => headers.push((name.clone(), format!("{prefix}{jwt}"))),
            Place::Param(name) => {
                let sign = if path.contains('?') { '&' } else { '?' };
                path.push_str(&format!("{sign}{name}={jwt}"));
            }
            Place::Cookie(name) => headers.push(("cookie".to_owned(), format!("{name}={jwt}"))),
        }
    }

    /// Whether `rule` looks where this is; `None` if it finds something else there.
    fn found_by(&self, rule: &policy::JwtRule) -> Option<bool> {
        let default =
            rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty();
        let header = |name: &str, prefix: &str| {
            let named = |h: &&policy::JwtHeader| h.name.eq_ignore_ascii_case(name);
            rule.from_headers.iter().find(named).map_or(Some(false), |h| (h.prefix == prefix).then_some(true))
        };
        match &self.place {
            Place::Bearer if default => Some(true),
            Place::Bearer => header("authorization", "Bearer "),
            Place::Header(name, prefix) => header(name, prefix),
            Place::Param(name) => {
                Some(rule.from_params.contains(name) || (default && name == "access_token"))
            }
            Place::Cookie(name) => Some(rule.from_cookies.contains(name)),
        }
    }
}

/// In HTTP/2 several cookie fields are one that was taken apart (RFC 9113 §8.2.3).
fn one_cookie(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let (cookies, mut all): (Vec<_>, Vec<_>) = headers.into_iter().partition(|(name, _)| name == "cookie");
    let mut whole = String::new();
    for (_, value) in cookies {
        if !whole.is_empty() {
            whole.push_str("; ");
        }
        whole.push_str(&value);
    }
    if !whole.is_empty() {
        all.push(("cookie".to_owned(), whole));
    }
    all
}

/// Whether `rule` looks for tokens in this header.
fn looks_at(rule: &policy::JwtRule, header: &str) -> bool {
    let policy::JwtRule { from_headers, from_params, from_cookies, .. } = rule;
    let default = from_headers.is_empty() && from_params.is_empty() && from_cookies.is_empty();
    (default && header.eq_ignore_ascii_case("authorization"))
        || (!from_cookies.is_empty() && header.eq_ignore_ascii_case("cookie"))
        || from_headers.iter().any(|h| h.name.eq_ignore_ascii_case(header))
}

/// What should happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Decision(Box<policy::Decision>),
    /// A token that does not verify, and somebody looks at it.
    BadToken,
    /// The authorizer says no.
    Custom,
}

/// What a client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Status(u16),
    Echoed,
    Closed,
}

impl Expected {
    /// Of the outcomes that agree, the likeliest.
    pub(crate) fn outcome(&self, tcp: bool) -> Outcome {
        use policy::{Deciding, Verdict};
        let decision = match self {
            Self::Decision(decision) => decision,
            Self::BadToken => return Outcome::Status(401),
            Self::Custom => return Outcome::Status(418),
        };
        match (decision.verdict, &decision.deciding) {
            (Verdict::Allow, _) if tcp => Outcome::Echoed,
            (Verdict::Allow, _) => Outcome::Status(200),
            (Verdict::Deny, Deciding::Mtls(_)) => Outcome::Closed,
            (Verdict::Deny, _) if tcp => Outcome::Closed,
            (Verdict::Deny, Deciding::Token(refusal)) => Outcome::Status(refusal.status()),
            (Verdict::Deny, _) => Outcome::Status(403),
        }
    }

    pub(crate) fn agrees(&self, envoy: Outcome, tcp: bool) -> bool {
        // Envoy may look at the audience first.
        let bad = *self == Self::BadToken && envoy == Outcome::Status(403);
        bad || envoy == self.outcome(tcp)
    }
}

impl Wire {
    /// Path and header lines as sent, with the token that `jwt` makes.
    pub(crate) fn sent(&self, jwt: impl Fn(&Token) -> String) -> (String, Vec<(String, String)>) {
        let (mut path, mut headers) = (self.path.clone(), self.headers.clone());
        if let Some(token) = &self.token {
            token.put(&jwt(token), &mut path, &mut headers);
        }
        (path, headers)
    }

    /// What the evaluator says; `None` if it has no words for this request. `path` is [`Self::path`] normalised.
    pub(crate) fn expected(
        &self,
        ready: &Ready,
        path: &str,
        headers: Vec<(String, String)>,
    ) -> Option<Expected> {
        let rules = &ready.policy.jwt;
        // A token that is a parameter is in `:path`, and goes.
        let in_path = self.token.as_ref().is_some_and(|token| matches!(token.place, Place::Param(_)));
        if in_path && features(&ready.policy).contains(PATH_HEADER) {
            return None;
        }
        // What stands where a token is looked for is one.
        if rules.iter().any(|rule| self.headers.iter().any(|(name, _)| looks_at(rule, name))) {
            return None;
        }
        // Keys that somebody would have to fetch first.
        if rules.iter().any(|rule| !matches!(rule.jwks, policy::Jwks::Inline(_))) {
            return None;
        }
        let found = self.token.as_ref().map(|t| {
            let found: Option<Vec<bool>> = rules.iter().map(|rule| t.found_by(rule)).collect();
            found.map(|found| found.into_iter().filter(|found| *found).count())
        });
        let token = match found {
            None => None,
            // Some rule finds something that is not this token.
            Some(None) => return None,
            Some(Some(0)) => None,
            Some(Some(n)) if n == rules.len() => self.token.as_ref(),
            // Found by some rules and not by others.
            Some(Some(_)) => return None,
        };
        let good = token.filter(|t| t.fault == Fault::None);
        let decision = policy::evaluate(&ready.policy, &self.described(ready, path, headers, good));
        let mtls = matches!(decision.deciding, policy::Deciding::Mtls(_));
        // Of HTTP type, so that TCP passes them by.
        if !mtls && !self.tcp && decision.consulted.iter().any(|provider| **provider == *"no") {
            return Some(Expected::Custom);
        }
        let bad = token.is_some_and(|t| t.fault != Fault::None) && !self.tcp;
        if !bad || mtls {
            return Some(Expected::Decision(Box::new(decision)));
        }
        // A preflight passes with any token.
        (self.method != "OPTIONS").then_some(Expected::BadToken)
    }

    fn described(
        &self,
        ready: &Ready,
        path: &str,
        headers: Vec<(String, String)>,
        token: Option<&Token>,
    ) -> policy::Request {
        let source = IpAddr::V4(self.source);
        let remote = self.forwarded().unwrap_or(source);
        let base = if self.tcp { policy::Request::tcp(self.port) } else { policy::Request::http(self.port) };
        let base = policy::Request {
            peer: self.peer.clone(),
            source_ip: source,
            remote_ip: if self.tcp { source } else { remote },
            destination_ip: IpAddr::V4(ready.address),
            sni: if self.peer.is_empty() { String::new() } else { self.sni.clone() },
            ..base
        };
        if self.tcp {
            return base;
        }
        policy::Request {
            method: self.method.clone(),
            path: path.to_owned(),
            host: self.host.clone(),
            headers: if self.http2 { one_cookie(headers) } else { headers },
            claims: token.map(|t| t.claims.clone()),
            ..base
        }
    }

    /// The last entry of X-Forwarded-For.
    fn forwarded(&self) -> Option<IpAddr> {
        // Envoy adds no empty line.
        let lines =
            self.headers.iter().filter(|(name, value)| name == "x-forwarded-for" && !value.is_empty());
        let all: Vec<&str> = lines.map(|(_, value)| value.as_str()).collect();
        all.join(",").rsplit(',').next()?.trim().parse().ok()
    }
}
