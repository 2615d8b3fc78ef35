//! Requests that meet ALLOW rules in everything but who asks, for "may it do anything at all?". They are tried, so what is
//! found is true; a rule with exceptions that rule out every request tried here can be missed.

use policy::{
    Atom, Clause, EffectivePolicy, EffectiveRule, JwtRule, PathMatch, Presence, Protocol, Request,
    RequestPrincipal, StringMatch,
};
use serde_json::{Map, Value, json};

/// Requests that are tried of one policy on one port.
const TRIES: usize = 200;
/// Where a rule names what it does not want, one of these may be left.
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "PATCH"];

/// `base`, and for each alternative of each ALLOW rule a request like `base` that meets it.
pub(super) fn requests(policy: &EffectivePolicy, base: &Request) -> Vec<Request> {
    let mut all = vec![base.clone()];
    let mut asked = base.clone();
    // Where every request needs a token, nothing can be said of one without.
    for rule in policy.jwt.iter().filter(|rule| rule.presence == Presence::Required) {
        claim(&mut asked, &["iss"], rule.issuer.clone());
        admit(&mut asked, &policy.jwt);
    }
    all.extend((asked != *base).then_some(asked));
    for rule in policy.allow.enforced.iter().flatten() {
        let EffectiveRule { policy: _, index: _, permissions, principals } = rule;
        for to in permissions {
            for from in principals {
                let mut request = meeting(base, to.iter().chain(from));
                admit(&mut request, &policy.jwt);
                if !all.contains(&request) && all.len() < TRIES {
                    all.push(request);
                }
            }
        }
    }
    all
}

/// Makes the token one that is accepted, if it can be.
fn admit(request: &mut Request, rules: &[JwtRule]) {
    let Some(claims) = &mut request.claims else { return };
    let issuer = claims.get("iss").and_then(Value::as_str).map(str::to_owned);
    let fits = |rule: &&JwtRule| {
        issuer.as_ref().is_none_or(|issuer| rule.issuer.is_empty() || rule.issuer == *issuer)
    };
    let Some(rule) = rules.iter().find(fits).or(rules.first()) else { return };
    if !rule.issuer.is_empty() && issuer.is_none_or(|issuer| issuer == "x") {
        claims.insert("iss".to_owned(), Value::from(rule.issuer.clone()));
    }
    if let Some(audience) = rule.audiences.first() {
        claims.entry("aud").or_insert_with(|| Value::from(audience.clone()));
    }
}

fn meeting<'c>(base: &Request, clauses: impl Iterator<Item = &'c Clause>) -> Request {
    let mut request = base.clone();
    for Clause { field: _, any, none } in clauses {
        match any.first() {
            Some(atom) => meet(&mut request, atom),
            None => none.iter().for_each(|atom| avoid(&mut request, atom, none)),
        }
    }
    request
}

fn meet(request: &mut Request, atom: &Atom) {
    let http = request.protocol == Protocol::Http;
    match atom {
        Atom::Method(value) if http => request.method = example(value, "GET"),
        Atom::Path(PathMatch::Plain(value)) if http => request.path = example(value, "/"),
        Atom::Path(PathMatch::Template(template)) if http => {
            request.path = template.replace("{**}", "x").replace("{*}", "x");
        }
        Atom::Host(value) if http => request.host = example(value, "host"),
        Atom::Header { name, value } if http => request.headers.push((name.to_string(), example(value, "x"))),
        Atom::RequestPrincipal(RequestPrincipal { issuer, subject }) if http => {
            let part = |part: &Option<StringMatch>| part.as_ref().map_or("x".to_owned(), |v| example(v, "x"));
            claim(request, &["iss"], part(issuer));
            claim(request, &["sub"], part(subject));
        }
        Atom::Audience(value) if http => claim(request, &["aud"], example(value, "x")),
        Atom::Presenter(value) if http => claim(request, &["azp"], example(value, "x")),
        Atom::Claim { path, value } if http => {
            let path: Vec<&str> = path.iter().map(|name| &**name).collect();
            claim(request, &path, example(value, "x"));
        }
        Atom::Sni(value) => request.sni = example(value, "x"),
        Atom::RemoteIp(net) => request.remote_ip = net.addr(),
        // Who asks, where it is, and on which port, is not the request's to choose.
        _ => {}
    }
}

/// Something that is none of what is not wanted, as far as there is such a thing.
fn avoid(request: &mut Request, atom: &Atom, none: &[Atom]) {
    match atom {
        Atom::Method(_) => {
            let unwanted =
                |method: &str| none.iter().any(|a| matches!(a, Atom::Method(v) if v.matches(method)));
            if let Some(method) = METHODS.into_iter().find(|method| !unwanted(method)) {
                method.clone_into(&mut request.method);
            }
        }
        Atom::Path(_) => {
            let unwanted = |path: &str| {
                none.iter().any(|a| matches!(a, Atom::Path(PathMatch::Plain(v)) if v.matches(path)))
            };
            if let Some(path) = ["/", "/x", "/y/z"].into_iter().find(|path| !unwanted(path)) {
                path.clone_into(&mut request.path);
            }
        }
        _ => {}
    }
}

/// A value that matches.
fn example(value: &StringMatch, any: &str) -> String {
    match value {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(prefix) => format!("{prefix}x"),
        StringMatch::Suffix(suffix) if suffix.starts_with('/') => suffix.to_string(),
        StringMatch::Suffix(suffix) if any == "/" => format!("/{suffix}"),
        StringMatch::Suffix(suffix) => format!("x{suffix}"),
        StringMatch::Present => any.to_owned(),
    }
}

fn claim(request: &mut Request, path: &[&str], value: String) {
    let mut at = request.claims.get_or_insert_with(Map::new);
    let Some((last, before)) = path.split_last() else { return };
    for name in before {
        let inner = at.entry((*name).to_owned()).or_insert_with(|| json!({}));
        match inner {
            Value::Object(inner) => at = inner,
            // Another condition wants a value here; the two cannot be met together.
            _ => return,
        }
    }
    at.insert((*last).to_owned(), Value::from(value));
}
