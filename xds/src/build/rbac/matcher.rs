//! One policy atom as Envoy's matchers (semantics §4.2, §4.3). Does not know actions, rules or chains.
//!
//! User text enters a regular expression only through [`quote`]; RE2 matches the whole value here.

use ipnet::IpNet;
use policy::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};

use crate::build::encode::any;
use crate::build::pb::matcher::string_matcher::MatchPattern;
use crate::build::pb::matcher::{list_matcher, metadata_matcher, path_matcher, value_matcher};
use crate::build::pb::{core, matcher, rbac, route, string, u32_value};

/// The metadata namespace and key under which Envoy's jwt_authn puts a verified payload (semantics §5.4).
pub(crate) const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
pub(crate) const JWT_PAYLOAD: &str = "payload";

const SPIFFE: &str = "spiffe://";
/// A string of at least one character.
const SOMETHING: &str = ".+";

/// What Envoy can test, before it is decided whether as a permission or as a principal.
#[derive(Clone, Debug)]
enum Test {
    Identity(matcher::StringMatcher),
    DirectIp(core::CidrRange),
    RemoteIp(core::CidrRange),
    Metadata(matcher::MetadataMatcher),
    Header(route::HeaderMatcher),
    Path(matcher::PathMatcher),
    Template(core::TypedExtensionConfig),
    Port(u32),
    DestinationIp(core::CidrRange),
    Sni(matcher::StringMatcher),
    Both(Box<Test>, Box<Test>),
}

/// `None` if Envoy cannot test this attribute on the side of the operation.
pub(super) fn permission(atom: &Atom) -> Option<rbac::Permission> {
    as_permission(test(atom))
}

/// `None` if Envoy cannot test this attribute on the side of the caller.
pub(super) fn principal(atom: &Atom) -> Option<rbac::Principal> {
    as_principal(test(atom))
}

fn as_permission(test: Test) -> Option<rbac::Permission> {
    use rbac::permission::{Rule, Set};
    let rule = match test {
        Test::Metadata(matcher) => Rule::SourcedMetadata(sourced(matcher)),
        Test::Header(matcher) => Rule::Header(matcher),
        Test::Path(matcher) => Rule::UrlPath(matcher),
        Test::Template(template) => Rule::UriTemplate(template),
        Test::Port(port) => Rule::DestinationPort(port),
        Test::DestinationIp(range) => Rule::DestinationIp(range),
        Test::Sni(matcher) => Rule::RequestedServerName(matcher),
        Test::Both(a, b) => Rule::AndRules(Set { rules: vec![as_permission(*a)?, as_permission(*b)?] }),
        Test::Identity(_) | Test::DirectIp(_) | Test::RemoteIp(_) => return None,
    };
    Some(rbac::Permission { rule: Some(rule) })
}

fn as_principal(test: Test) -> Option<rbac::Principal> {
    use rbac::principal::{Authenticated, Identifier, Set};
    let identifier = match test {
        Test::Identity(matcher) => Identifier::Authenticated(Authenticated { principal_name: Some(matcher) }),
        Test::DirectIp(range) => Identifier::DirectRemoteIp(range),
        Test::RemoteIp(range) => Identifier::RemoteIp(range),
        Test::Metadata(matcher) => Identifier::SourcedMetadata(sourced(matcher)),
        Test::Header(matcher) => Identifier::Header(matcher),
        Test::Path(matcher) => Identifier::UrlPath(matcher),
        Test::Both(a, b) => Identifier::AndIds(Set { ids: vec![as_principal(*a)?, as_principal(*b)?] }),
        Test::Template(_) | Test::Port(_) | Test::DestinationIp(_) | Test::Sni(_) => return None,
    };
    Some(rbac::Principal { identifier: Some(identifier) })
}

fn test(atom: &Atom) -> Test {
    match atom {
        Atom::Principal(value) => Test::Identity(identity(value)),
        Atom::Namespace(glob) => Test::Identity(namespace(glob)),
        Atom::ServiceAccount { namespace, name } => {
            let (ns, sa) = (quote(namespace), quote(name));
            Test::Identity(regex(format!("{SPIFFE}.+/ns/{ns}/(.+/)?sa/{sa}(/.+)?")))
        }
        Atom::TrustDomain(value) => Test::Identity(trust_domain(value)),
        Atom::SourceIp(net) => Test::DirectIp(cidr(net)),
        Atom::RemoteIp(net) => Test::RemoteIp(cidr(net)),
        Atom::RequestPrincipal(RequestPrincipal { issuer, subject }) => {
            let claim = |name: &str, value: &Option<StringMatch>| {
                let value = value.as_ref().map_or_else(|| regex(SOMETHING.to_owned()), text);
                Box::new(Test::Metadata(metadata(JWT_FILTER, &[JWT_PAYLOAD, name], string_value(value))))
            };
            Test::Both(claim("iss", issuer), claim("sub", subject))
        }
        Atom::Audience(value) => claim(&["aud"], value),
        Atom::Presenter(value) => claim(&["azp"], value),
        Atom::Claim { path, value } => claim(&path.iter().map(|p| &**p).collect::<Vec<_>>(), value),
        Atom::Header { name, value } => Test::Header(header(name, value, false)),
        Atom::Host(value) => Test::Header(header(":authority", value, true)),
        Atom::Method(value) => Test::Header(header(":method", value, false)),
        Atom::Path(path) => path_test(path),
        Atom::Port(port) => Test::Port((*port).into()),
        Atom::DestinationIp(net) => Test::DestinationIp(cidr(net)),
        Atom::Sni(value) => Test::Sni(text(value)),
        Atom::Metadata { filter, key, value, list } => {
            let value = string_value(text(value));
            Test::Metadata(metadata(filter, &[key], if *list { one_of(value) } else { value }))
        }
    }
}

fn path_test(path: &PathMatch) -> Test {
    use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
    match path {
        PathMatch::Plain(value) => {
            Test::Path(matcher::PathMatcher { rule: Some(path_matcher::Rule::Path(text(value))) })
        }
        PathMatch::Template(template) => {
            let path_template = template.replace("{**}", "**").replace("{*}", "*");
            Test::Template(core::TypedExtensionConfig {
                name: "envoy.path.match.uri_template.uri_template_matcher".to_owned(),
                typed_config: Some(any(&UriTemplateMatchConfig { path_template })),
            })
        }
    }
}

/// A principal: the values of semantics §4.2, right column.
fn identity(value: &StringMatch) -> matcher::StringMatcher {
    match value {
        StringMatch::Exact(id) => string(MatchPattern::Exact(format!("{SPIFFE}{id}"))),
        StringMatch::Prefix(id) => string(MatchPattern::Prefix(format!("{SPIFFE}{id}"))),
        StringMatch::Suffix(id) => regex(format!("{SPIFFE}.*{}", quote(id))),
        StringMatch::Present => regex(SOMETHING.to_owned()),
    }
}

fn namespace(glob: &str) -> matcher::StringMatcher {
    if glob.contains('*') {
        let quoted: Vec<String> = glob.split('*').map(quote).collect();
        regex(format!(".*/ns/{}/.*", quoted.join(".*")))
    } else {
        string(MatchPattern::Contains(format!("/ns/{glob}/")))
    }
}

fn trust_domain(value: &TrustDomainMatch) -> matcher::StringMatcher {
    match value {
        TrustDomainMatch::Any => string(MatchPattern::Prefix(SPIFFE.to_owned())),
        TrustDomainMatch::Exact(td) => string(MatchPattern::Prefix(format!("{SPIFFE}{td}/"))),
        TrustDomainMatch::Wildcard(glob) => {
            let quoted: Vec<String> = glob.split('*').map(quote).collect();
            regex(format!("{SPIFFE}{}/.*", quoted.join("[^/]*")))
        }
    }
}

fn text(value: &StringMatch) -> matcher::StringMatcher {
    string(match value {
        StringMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchPattern::Suffix(text.to_string()),
        StringMatch::Present => return regex(SOMETHING.to_owned()),
    })
}

fn header(name: &str, value: &StringMatch, ignore_case: bool) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier;
    let specifier = match value {
        StringMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
        _ => HeaderMatchSpecifier::StringMatch(matcher::StringMatcher { ignore_case, ..text(value) }),
    };
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

/// A claim may be a string or a list of strings (semantics §5.4).
fn claim(path: &[&str], value: &StringMatch) -> Test {
    let path: Vec<&str> = std::iter::once(JWT_PAYLOAD).chain(path.iter().copied()).collect();
    let value = string_value(text(value));
    let either = matcher::OrMatcher { value_matchers: vec![one_of(value.clone()), value] };
    let either = matcher::ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::OrMatch(either)) };
    Test::Metadata(metadata(JWT_FILTER, &path, either))
}

pub(crate) fn metadata(
    filter: &str,
    path: &[&str],
    value: matcher::ValueMatcher,
) -> matcher::MetadataMatcher {
    let segment = |key: &&str| metadata_matcher::PathSegment {
        segment: Some(metadata_matcher::path_segment::Segment::Key((*key).to_owned())),
    };
    matcher::MetadataMatcher {
        filter: filter.to_owned(),
        path: path.iter().map(segment).collect(),
        value: Some(value),
        invert: false,
    }
}

pub(crate) fn string_value(matcher: matcher::StringMatcher) -> matcher::ValueMatcher {
    matcher::ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::StringMatch(matcher)) }
}

fn one_of(value: matcher::ValueMatcher) -> matcher::ValueMatcher {
    let list =
        matcher::ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(value))) };
    matcher::ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::ListMatch(Box::new(list))) }
}

fn sourced(metadata_matcher: matcher::MetadataMatcher) -> rbac::SourcedMetadata {
    rbac::SourcedMetadata {
        metadata_matcher: Some(metadata_matcher),
        metadata_source: rbac::MetadataSource::Dynamic as i32,
    }
}

fn cidr(net: &IpNet) -> core::CidrRange {
    core::CidrRange { address_prefix: net.addr().to_string(), prefix_len: u32_value(net.prefix_len().into()) }
}

pub(crate) fn regex(regex: String) -> matcher::StringMatcher {
    string(MatchPattern::SafeRegex(matcher::RegexMatcher { regex, ..Default::default() }))
}

/// `text` as an RE2 expression that matches exactly `text` (RE2's own QuoteMeta: everything that is not a letter,
/// digit, underscore or non-ASCII is escaped).
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\0' => quoted.push_str("\\x00"),
            c if c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii() => quoted.push(c),
            c => {
                quoted.push('\\');
                quoted.push(c);
            }
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_leaves_no_metacharacter() {
        assert_eq!(quote("a.b-c_[d]*\0é"), "a\\.b\\-c_\\[d\\]\\*\\x00é");
    }

    #[test]
    fn every_atom_has_at_least_one_side() {
        for atom in crate::build::rbac::samples::atoms() {
            assert!(permission(&atom).is_some() || principal(&atom).is_some(), "{atom:?}");
        }
    }
}
