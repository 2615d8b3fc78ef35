//! Requests on the edges of given policies: one that a rule asks for, then the same with one thing nearly so.

use std::net::Ipv4Addr;

use policy::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};
use policy::{Clause, EffectivePolicy, EffectiveRule, MtlsMode};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::case::{AUTO, Case, Fault, HTTP, Outcome, Place, Ready, Run, TCP, Token, Wire};
use super::words::{self, chance, near, pick};

/// Of HTTP and of TCP.
const REQUESTS: [usize; 2] = [22, 8];
/// The fuzzer has seen most policies, and a further request costs less than a further policy.
const FUZZ_REQUESTS: [usize; 2] = [48, 12];
/// Callers of a case: each costs a connection.
const CALLERS: usize = 5;
const SPIFFE: &str = "spiffe://";

/// For generation the workload's address may be any.
pub(crate) const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

pub(crate) fn requests(rng: &mut StdRng, case: &Case, run: Run<'_>, place: Option<&Place>) -> Vec<Wire> {
    let ready = case.ready(run).expect("only what admission accepts is generated");
    let maker = Maker { ready: &ready, accepted: accepted(case), place };
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        callers.push(maker.candidate(rng));
    }
    let fuzz = std::env::var_os("FUZZ_SECONDS").is_some();
    let [of_http, of_tcp] = if fuzz { FUZZ_REQUESTS } else { REQUESTS };
    let http: Vec<Wire> = (0..of_http * 4).map(|_| maker.http(rng, &callers)).collect();
    let tcp: Vec<Wire> = (0..of_tcp * 3).map(|_| maker.tcp(rng)).collect();
    let mut all = balanced(http, &ready, of_http);
    all.extend(balanced(tcp, &ready, of_tcp));
    all
}

fn accepted(case: &Case) -> Vec<String> {
    std::iter::once("cluster.local".to_owned()).chain(case.mesh.aliases.iter().cloned()).collect()
}

/// As many admitted as refused, where there are.
fn balanced(candidates: Vec<Wire>, ready: &Ready, wanted: usize) -> Vec<Wire> {
    let mut by_verdict = [Vec::new(), Vec::new()];
    for wire in candidates {
        let (_, headers) = wire.sent(|_| "token".to_owned());
        let Some(expected) = wire.expected(ready, &wire.path, headers) else { continue };
        let admitted = matches!(expected.outcome(wire.tcp), Outcome::Status(200) | Outcome::Echoed);
        let group = &mut by_verdict[usize::from(admitted)];
        if !group.contains(&wire) {
            group.push(wire);
        }
    }
    let [refused, admitted] = by_verdict;
    let half = wanted / 2;
    let of_admitted = admitted.len().min(wanted - half.min(refused.len()));
    let of_refused = refused.len().min(wanted - of_admitted);
    admitted.into_iter().take(of_admitted).chain(refused.into_iter().take(of_refused)).collect()
}

struct Maker<'m> {
    ready: &'m Ready,
    /// Trust domains that pass the handshake.
    accepted: Vec<String>,
    place: Option<&'m Place>,
}

impl Maker<'_> {
    fn policy(&self) -> &EffectivePolicy {
        &self.ready.policy
    }

    /// Anything at all that has something to do with the policies.
    fn candidate(&self, rng: &mut StdRng) -> Wire {
        let mut wire = Wire {
            port: *[HTTP, HTTP, AUTO].choose(rng).unwrap(),
            source: pick(rng, words::SOURCES).parse().unwrap(),
            method: pick(rng, words::METHODS).to_owned(),
            path: pick(rng, words::PATHS).to_owned(),
            host: pick(rng, words::HOSTS).to_owned(),
            ..Wire::default()
        };
        if chance(rng, 70) {
            let name = pick(rng, words::IDENTITIES);
            self.identify(rng, &mut wire, name);
            wire.sni = pick(rng, words::SNIS).to_owned();
        }
        if !self.policy().jwt.is_empty() && chance(rng, 75) {
            wire.token = Some(self.token(rng));
        }
        let policy = self.policy();
        let actions = [&policy.deny, &policy.allow, &policy.audit].into_iter().chain(policy.custom.values());
        let rules: Vec<&EffectiveRule> =
            actions.flat_map(|a| a.enforced.iter().chain(&a.shadow)).flatten().collect();
        if let Some(rule) = rules.choose(rng) {
            for branches in [&rule.permissions, &rule.principals] {
                for clause in branches.choose(rng).into_iter().flatten() {
                    self.satisfy(rng, clause, &mut wire);
                }
            }
        }
        wire
    }

    fn satisfy(&self, rng: &mut StdRng, clause: &Clause, wire: &mut Wire) {
        if let Some(atom) = clause.any.choose(rng) {
            self.meet(rng, atom, wire);
        } else if let Some(atom) = clause.none.choose(rng)
            && chance(rng, 50)
        {
            self.meet(rng, atom, wire);
            if chance(rng, 60) {
                self.miss(rng, atom, wire);
            }
        }
    }

    fn http(&self, rng: &mut StdRng, callers: &[Wire]) -> Wire {
        let mut wire = self.candidate(rng);
        // Few connections: most requests come from one of a few callers.
        if chance(rng, 80) {
            let caller = callers.choose(rng).unwrap();
            wire = Wire {
                port: caller.port,
                peer: caller.peer.clone(),
                source: caller.source,
                sni: caller.sni.clone(),
                ..wire
            };
        }
        if chance(rng, 65) {
            self.disturb(rng, &mut wire);
        }
        let atoms = self.atoms();
        if let Some(atom) = atoms.choose(rng)
            && chance(rng, 50)
        {
            self.miss(rng, atom, &mut wire);
        }
        wire.http2 = wire.port == HTTP && wire.headers.iter().all(|(n, _)| n.to_lowercase() == *n) && {
            // A caller keeps to one version.
            (wire.peer.len() + usize::from(wire.source.octets()[3])).is_multiple_of(4)
        };
        self.possible(&mut wire);
        wire
    }

    fn tcp(&self, rng: &mut StdRng) -> Wire {
        let mut wire = self.candidate(rng);
        let atoms = self.atoms();
        if let Some(atom) = atoms.choose(rng)
            && chance(rng, 50)
        {
            self.miss(rng, atom, &mut wire);
        }
        let port = *[TCP, TCP, AUTO].choose(rng).unwrap();
        let Wire { peer, source, sni, .. } = wire;
        let mut wire = Wire { tcp: true, port, peer, source, sni, ..Wire::default() };
        self.possible(&mut wire);
        wire
    }

    fn atoms(&self) -> Vec<&Atom> {
        let actions = [&self.policy().deny, &self.policy().allow];
        let rules = actions.into_iter().filter_map(|a| a.enforced.as_ref()).flatten();
        let clauses = rules.flat_map(|rule| rule.permissions.iter().chain(&rule.principals)).flatten();
        clauses.flat_map(|clause| clause.any.iter().chain(&clause.none)).collect()
    }

    /// Nobody shows a certificate where nobody asks for one.
    fn possible(&self, wire: &mut Wire) {
        if self.policy().mtls.port(wire.port) == MtlsMode::Disable {
            wire.peer.clear();
        }
        if wire.peer.is_empty() {
            wire.sni.clear();
        }
    }

    /// A name that the handshake would refuse comes second.
    fn identify(&self, rng: &mut StdRng, wire: &mut Wire, name: &str) {
        let valid = name.is_ascii() && !name.chars().any(|c| c.is_ascii_control() || c == ' ');
        if !valid || !name.starts_with(SPIFFE) {
            return;
        }
        let domain = name[SPIFFE.len()..].split_once('/').map(|(domain, _)| domain);
        let known = domain.is_some_and(|d| self.accepted.iter().any(|accepted| accepted == d));
        wire.peer = if known {
            vec![name.to_owned()]
        } else {
            vec!["spiffe://cluster.local/ns/none/sa/none".to_owned(), name.to_owned()]
        };
        if known && chance(rng, 5) {
            wire.peer.insert(0, "spiffe://foreign.example/ns/none/sa/none".to_owned());
        }
    }

    fn token(&self, rng: &mut StdRng) -> Token {
        let rule = self.policy().jwt.choose(rng).expect("there is a rule");
        let issuer = if rule.issuer.is_empty() { pick(rng, words::ISSUERS) } else { &rule.issuer };
        let mut claims = json!({ "iss": issuer, "sub": pick(rng, words::SUBJECTS) });
        if let Some(audience) = rule.audiences.choose(rng).filter(|_| chance(rng, 80)) {
            claims["aud"] = audience.as_str().into();
        } else {
            claims["aud"] = listed(rng, words::AUDIENCES);
            // Such a token is none.
            if chance(rng, 95)
                && let Some(list) = claims["aud"].as_array_mut()
            {
                list.retain(Value::is_string);
            }
        }
        if chance(rng, 70) {
            claims["azp"] = pick(rng, words::PRESENTERS).into();
        }
        if chance(rng, 70) {
            claims["groups"] = listed(rng, words::GROUPS);
        }
        if chance(rng, 50) {
            claims["scope"] = format!("{} {}", pick(rng, words::GROUPS), pick(rng, words::GROUPS)).into();
        }
        if chance(rng, 60) {
            claims["realm"] = json!({ "roles": listed(rng, words::GROUPS), "x": pick(rng, words::GROUPS) });
        }
        let place = self.place.cloned().unwrap_or_default();
        let claims = claims.as_object().cloned().unwrap_or_default();
        Token { claims, place, fault: Fault::None }
    }

    /// Makes what `atom` asks for true, as far as that can be.
    fn meet(&self, rng: &mut StdRng, atom: &Atom, wire: &mut Wire) {
        match atom {
            Atom::Principal(value) => {
                let name = format!("{SPIFFE}{}", self.sample(rng, value, words::IDENTITIES));
                self.identify(rng, wire, &name.replace("spiffe://spiffe://", SPIFFE));
            }
            Atom::Namespace(glob) => {
                let name = format!("spiffe://cluster.local/ns/{}/sa/a", glob.replace('*', "o"));
                self.identify(rng, wire, &name);
            }
            Atom::ServiceAccount { namespace, name } => {
                self.identify(rng, wire, &format!("spiffe://cluster.local/ns/{namespace}/sa/{name}"));
            }
            Atom::TrustDomain(TrustDomainMatch::Any) => {}
            Atom::TrustDomain(TrustDomainMatch::Exact(domain) | TrustDomainMatch::Wildcard(domain)) => {
                self.identify(rng, wire, &format!("{SPIFFE}{}/ns/foo/sa/a", domain.replace('*', "x")));
            }
            Atom::SourceIp(net) => set_source(wire, inside(rng, *net)),
            Atom::RemoteIp(net) => {
                let address = inside(rng, *net).to_string();
                forward(rng, wire, &address);
            }
            Atom::RequestPrincipal(RequestPrincipal { issuer, subject }) => {
                let subject = subject.as_ref().map(|s| self.sample(rng, s, words::SUBJECTS));
                let issuer = issuer.as_ref().map(|i| self.sample(rng, i, words::ISSUERS));
                if let Some(token) = &mut wire.token {
                    issuer.map(|issuer| token.claims.insert("iss".into(), issuer.into()));
                    subject.map(|subject| token.claims.insert("sub".into(), subject.into()));
                }
            }
            Atom::Audience(value) => self.claim(rng, wire, &["aud"], value, words::AUDIENCES),
            Atom::Presenter(value) => self.claim(rng, wire, &["azp"], value, words::PRESENTERS),
            Atom::Claim { path, value } => {
                let path: Vec<&str> = path.iter().map(|step| &**step).collect();
                self.claim(rng, wire, &path, value, words::GROUPS);
            }
            Atom::Header { name, value } => {
                let value = self.sample(rng, value, words::VALUES);
                set_header(rng, wire, name, &value);
            }
            Atom::Host(value) => {
                let host = self.sample(rng, value, words::HOSTS);
                set_host(wire, host);
            }
            Atom::Method(value) => {
                let method = self.sample(rng, value, words::METHODS);
                set_method(wire, &method);
            }
            Atom::Path(PathMatch::Plain(value)) => {
                let path = self.sample(rng, value, words::PATHS);
                set_path(wire, path);
            }
            Atom::Path(PathMatch::Template(template)) => {
                let deep = pick(rng, &["", "x", "x/y", "x/", "/"]);
                set_path(wire, template.replace("{**}", deep).replace("{*}", pick(rng, &["x", "b", ""])));
            }
            Atom::Port(port) => {
                if [HTTP, AUTO].contains(port) {
                    wire.port = *port;
                }
            }
            Atom::Sni(value) => wire.sni = dns(&self.sample(rng, value, words::SNIS)),
            Atom::DestinationIp(_) | Atom::Metadata { .. } => {}
        }
    }

    /// A value that `wanted` matches: preferably one of `words`.
    fn sample(&self, rng: &mut StdRng, wanted: &StringMatch, words: &[&str]) -> String {
        let fitting: Vec<&str> =
            words.iter().copied().filter(|word| wanted.matches(word.trim_start_matches(SPIFFE))).collect();
        if let Some(word) = fitting.choose(rng).filter(|_| chance(rng, 60)) {
            return (*word).to_owned();
        }
        match wanted {
            StringMatch::Exact(text) => text.to_string(),
            StringMatch::Prefix(text) if chance(rng, 40) => text.to_string(),
            StringMatch::Prefix(text) => format!("{text}y"),
            StringMatch::Suffix(text) if chance(rng, 40) => text.to_string(),
            StringMatch::Suffix(text) => format!("/y{text}"),
            StringMatch::Present => pick(rng, words).to_owned(),
        }
    }

    fn claim(&self, rng: &mut StdRng, wire: &mut Wire, path: &[&str], wanted: &StringMatch, words: &[&str]) {
        let value = self.sample(rng, wanted, words);
        let Some(token) = &mut wire.token else { return };
        let value = match rng.random_range(0..4) {
            0 => json!([pick(rng, words), value]),
            1 => json!([value]),
            _ => value.into(),
        };
        set_claim(&mut token.claims, path, value);
    }

    /// Makes what `atom` asks for nearly true.
    fn miss(&self, rng: &mut StdRng, atom: &Atom, wire: &mut Wire) {
        match atom {
            Atom::Principal(_) | Atom::Namespace(_) | Atom::ServiceAccount { .. } | Atom::TrustDomain(_) => {
                if chance(rng, 25) {
                    wire.peer.clear();
                } else if let Some(last) = wire.peer.last().cloned() {
                    let name = near_identity(rng, &last);
                    self.identify(rng, wire, &name);
                }
            }
            Atom::SourceIp(net) => set_source(wire, outside(rng, *net)),
            Atom::RemoteIp(net) => {
                let address = outside(rng, *net).to_string();
                forward(rng, wire, &address);
            }
            Atom::RequestPrincipal(_) => {
                let name = pick(rng, &["iss", "sub"]);
                self.near_claim(rng, wire, name);
            }
            Atom::Audience(_) => self.near_claim(rng, wire, "aud"),
            Atom::Presenter(_) => self.near_claim(rng, wire, "azp"),
            Atom::Claim { path, .. } => self.near_claim(rng, wire, &path[0]),
            Atom::Header { name, .. } => {
                let had = wire.headers.iter_mut().find(|(n, _)| n.eq_ignore_ascii_case(name));
                if let Some((_, value)) = had {
                    *value = near(rng, value).trim().to_owned();
                }
            }
            Atom::Host(_) => {
                let host = near(rng, &wire.host);
                set_host(wire, host);
            }
            Atom::Method(_) => wire.method = pick(rng, words::METHODS).to_owned(),
            Atom::Path(_) => {
                let path = near_path(rng, &wire.path);
                set_path(wire, path);
            }
            Atom::Port(_) => wire.port = if wire.port == HTTP { AUTO } else { HTTP },
            Atom::Sni(_) => wire.sni = dns(&near(rng, &wire.sni)),
            Atom::DestinationIp(_) | Atom::Metadata { .. } => {}
        }
    }

    fn near_claim(&self, rng: &mut StdRng, wire: &mut Wire, name: &str) {
        let Some(token) = &mut wire.token else { return };
        match token.claims.get_mut(name) {
            Some(Value::String(text)) => *text = near(rng, text),
            Some(Value::Array(list)) if !list.is_empty() => drop(list.pop()),
            Some(other) if chance(rng, 50) => *other = json!(7),
            _ => drop(token.claims.remove(name)),
        }
    }

    /// Anything else that may go wrong.
    fn disturb(&self, rng: &mut StdRng, wire: &mut Wire) {
        match rng.random_range(0..13) {
            0 => wire.peer.clear(),
            1 => wire.path.push_str(pick(rng, &["?x=/b", "?", "/", "?a/b", "//"])),
            2 => set_path(wire, pick(rng, words::PATHS).to_owned()),
            3 => drop(wire.token.take()),
            4 => {
                if let Some(token) = &mut wire.token {
                    token.fault = *[Fault::Expired, Fault::Forged, Fault::Garbage].choose(rng).unwrap();
                }
            }
            5 => {
                if let Some(token) = &mut wire.token {
                    token.claims.insert("iss".into(), pick(rng, words::ISSUERS).into());
                }
            }
            6 => {
                if let Some(token) = &mut wire.token {
                    token.place = Place::Header("x-elsewhere".into(), String::new());
                }
            }
            7 => {
                if let Some((name, value)) = wire.headers.choose(rng).cloned() {
                    wire.headers.push((name, near(rng, &value).trim().to_owned()));
                }
            }
            8 => {
                let name = pick(rng, words::HEADERS);
                let value = pick(rng, words::VALUES);
                set_header(rng, wire, name, value);
            }
            9 => {
                let address = pick(rng, words::REMOTES).to_owned();
                forward(rng, wire, &address);
            }
            10 => drop(wire.headers.pop()),
            11 => wire.host = pick(rng, words::HOSTS).to_owned(),
            _ => {
                wire.headers.push(("origin".into(), "http://h".into()));
                wire.headers.push(("access-control-request-method".into(), "GET".into()));
                if chance(rng, 60) {
                    wire.method = "OPTIONS".into();
                }
            }
        }
    }
}

fn near_identity(rng: &mut StdRng, name: &str) -> String {
    let (head, tail) = name.rsplit_once('/').unwrap_or((SPIFFE, name));
    match rng.random_range(0..4) {
        0 => pick(rng, words::IDENTITIES).to_owned(),
        1 => name.replacen("/ns/", "/ns/x", 1),
        _ => format!("{head}/{}", near(rng, tail)),
    }
}

fn near_path(rng: &mut StdRng, path: &str) -> String {
    match rng.random_range(0..7) {
        0 => format!("/{path}"),
        1 => format!("{path}/"),
        2 => path.replacen('a', "%61", 1),
        3 => path.replacen("/a", "/./a", 1),
        4 => format!("{path};x=1"),
        5 => format!("{path}/../x"),
        _ => near(rng, path),
    }
}

fn listed(rng: &mut StdRng, words: &[&str]) -> Value {
    match rng.random_range(0..6) {
        0 => json!([]),
        1 => json!([pick(rng, words)]),
        2 => json!([pick(rng, words), pick(rng, words), 3]),
        3 => json!(format!("{} {}", pick(rng, words), pick(rng, words))),
        _ => json!(pick(rng, words)),
    }
}

fn set_claim(claims: &mut serde_json::Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => drop(claims.insert((*last).to_owned(), value)),
        [first, rest @ ..] => {
            let inner = claims.entry(*first).or_insert_with(|| json!({}));
            if !inner.is_object() {
                *inner = json!({});
            }
            set_claim(inner.as_object_mut().expect("just made one"), rest, value);
        }
    }
}

/// What can stand in a request line.
fn set_path(wire: &mut Wire, path: String) {
    let fine = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if fine {
        wire.path = path;
    }
}

fn set_host(wire: &mut Wire, host: String) {
    let fine = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b));
    let port =
        host.split_once(':').is_none_or(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
    if fine && port {
        wire.host = host;
    }
}

fn set_method(wire: &mut Wire, method: &str) {
    if words::METHODS.contains(&method) {
        wire.method = method.to_owned();
    }
}

fn set_header(rng: &mut StdRng, wire: &mut Wire, name: &str, value: &str) {
    if value.chars().any(char::is_control) || value.trim() != value || name.starts_with(':') || name == "host"
    {
        return;
    }
    if chance(rng, 80) {
        wire.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }
    wire.headers.push((name.to_owned(), value.to_owned()));
}

fn forward(rng: &mut StdRng, wire: &mut Wire, address: &str) {
    wire.headers.retain(|(name, _)| name != "x-forwarded-for");
    let value = match rng.random_range(0..6) {
        0 => format!("{}, {address}", pick(rng, words::REMOTES)),
        1 => format!("{address},{}", pick(rng, words::REMOTES)),
        _ => address.to_owned(),
    };
    wire.headers.push(("x-forwarded-for".to_owned(), value));
}

/// Only loopback addresses can be a client's own.
fn set_source(wire: &mut Wire, address: std::net::IpAddr) {
    if let std::net::IpAddr::V4(v4) = address
        && v4.is_loopback()
        && v4.octets() != [127, 0, 0, 0]
        && v4.octets() != [127, 255, 255, 255]
    {
        wire.source = v4;
    }
}

/// The first, the last or the one in between.
fn inside(rng: &mut StdRng, net: ipnet::IpNet) -> std::net::IpAddr {
    match rng.random_range(0..3) {
        0 => net.network(),
        1 => net.broadcast(),
        _ => net.addr(),
    }
}

/// The one before the first or after the last.
fn outside(rng: &mut StdRng, net: ipnet::IpNet) -> std::net::IpAddr {
    let shift = |address: std::net::IpAddr, by: i8| match address {
        std::net::IpAddr::V4(v4) => {
            let number = u32::from(v4);
            Ipv4Addr::from(if by > 0 { number.wrapping_add(1) } else { number.wrapping_sub(1) }).into()
        }
        std::net::IpAddr::V6(v6) => {
            let number = u128::from(v6);
            let next = if by > 0 { number.wrapping_add(1) } else { number.wrapping_sub(1) };
            std::net::IpAddr::V6(next.into())
        }
    };
    if chance(rng, 50) { shift(net.network(), -1) } else { shift(net.broadcast(), 1) }
}

/// A server name, or none: letters, digits, `_`, `-` and single dots.
fn dns(text: &str) -> String {
    let text = text.to_lowercase();
    let text = text.trim_matches(|c| c == '.' || c == '/');
    if rustls::pki_types::DnsName::try_from(text.to_owned()).is_ok() {
        text.to_owned()
    } else {
        String::new()
    }
}
