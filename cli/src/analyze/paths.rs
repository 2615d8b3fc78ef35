//! Paths that are refused and can be walked around: written otherwise, they are another path to Envoy and may be the same
//! to the server behind it (semantics §12.9). Whether they are, only the server knows.

use mesh::PathNormalization;
use policy::{
    Action, ActionRules, Atom, AuthorizationPolicy, Clause, EffectivePolicy, EffectiveRule, Operation,
    PathMatch, Request, StringMatch, Verdict, evaluate,
};

use super::code::Code;

/// Rules that are looked at.
const RULES: usize = 64;

pub(super) fn walked_around(
    level: PathNormalization,
    policy: &AuthorizationPolicy,
) -> impl Iterator<Item = (Code, String)> {
    policy.rules.iter().enumerate().take(RULES).flat_map(move |(index, rule)| {
        let one = move |operation: &Operation| {
            let (field, refused) = refused(&policy.action, operation)?;
            let around = around(level, policy, refused)?;
            Some((Code::WalkedAround, format!("rules[{index}] {field}: {around}")))
        };
        rule.to.iter().filter_map(one).collect::<Vec<_>>()
    })
}

/// The paths that an operation is meant to keep out.
fn refused<'p>(action: &Action, operation: &'p Operation) -> Option<(&'static str, &'p [Atom])> {
    let paths = &operation.paths;
    match action {
        Action::Deny if !paths.any.is_empty() => Some(("paths", &paths.any)),
        Action::Allow if !paths.none.is_empty() => Some(("notPaths", &paths.none)),
        _ => None,
    }
}

fn around(level: PathNormalization, policy: &AuthorizationPolicy, refused: &[Atom]) -> Option<String> {
    let every =
        policy.rules.iter().flat_map(|rule| &rule.to).filter_map(|to| self::refused(&policy.action, to));
    let judge = matching(every.flat_map(|(_, atoms)| atoms).cloned().collect());
    let path = refused.iter().find_map(plain)?;
    let ways = [
        format!("/{path}"),
        format!("/%2F{}", &path[1..]),
        format!("{path};x"),
        format!("/\\{}", &path[1..]),
    ];
    let passes = |way: &String| level.apply(way).is_some_and(|seen| seen != path && !matches(&judge, &seen));
    let ways: Vec<String> = ways.into_iter().filter(passes).collect();
    let first = ways.first()?;
    Some(format!(
        "{path} can be written as {}, if the server takes them for the same: try curl --path-as-is 'http://HOST{first}'",
        ways.join(", ")
    ))
}

/// A path that `atom` matches, without query.
fn plain(atom: &Atom) -> Option<String> {
    let path = match atom {
        Atom::Path(PathMatch::Plain(StringMatch::Exact(path))) => path.to_string(),
        Atom::Path(PathMatch::Plain(StringMatch::Prefix(path))) => path.to_string(),
        Atom::Path(PathMatch::Plain(StringMatch::Suffix(path))) if path.starts_with('/') => path.to_string(),
        Atom::Path(PathMatch::Plain(StringMatch::Suffix(path))) => format!("/x{path}"),
        Atom::Path(PathMatch::Template(path)) => path.replace("{**}", "x").replace("{*}", "x"),
        _ => return None,
    };
    (path.len() > 1 && path.starts_with('/')).then_some(path)
}

/// A policy that denies these paths, and nothing else.
fn matching(paths: Vec<Atom>) -> EffectivePolicy {
    let rule = EffectiveRule {
        policy: policy::ObjectName::new("", ""),
        index: 0,
        permissions: vec![vec![Clause { field: "paths".into(), any: paths, none: Vec::new() }]],
        principals: vec![Vec::new()],
    };
    let deny = ActionRules { enforced: Some(vec![rule]), shadow: None };
    EffectivePolicy { deny, ..EffectivePolicy::default() }
}

fn matches(policy: &EffectivePolicy, path: &str) -> bool {
    let request = Request { path: path.to_owned(), ..Request::http(80) };
    evaluate(policy, &request).verdict == Verdict::Deny
}
