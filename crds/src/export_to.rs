//! `exportTo`: to which namespaces something is shown (semantics §1.6). Who sees what is `mesh::visibility`'s.

use std::collections::BTreeSet;

use mesh::ExportTo;

use crate::finding::Issues;
use crate::path::At;

/// The annotation of a Service.
pub(crate) const ANNOTATION: &str = "networking.istio.io/exportTo";

/// The annotation's value, names separated by commas. `None`: it says nothing. Nothing checks it before, so it is read as Istio
/// does: `~` among others hides, then `*` shows, and a namespace that does not exist is one that sees it in vain.
pub(crate) fn annotation(value: &str, at: &At<'_>, issues: &mut Issues) -> Option<ExportTo> {
    let names: Vec<&str> = value.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    for name in names.iter().filter(|name| !known(name)) {
        issues.warning(at, format!("`{name}` is neither a namespace nor `*`, `.` or `~`: it means nobody"));
    }
    of(&names)
}

/// The field of that name. `None`: it says nothing.
pub(crate) fn list(names: &[String], at: &At<'_>, issues: &mut Issues) -> Option<ExportTo> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        if !known(name) {
            issues.error(&at.index(index), format!("`{name}` is neither a namespace nor `*`, `.` or `~`"));
        }
        if !seen.insert(name) {
            issues.error(&at.index(index), format!("`{name}` is given twice"));
        }
    }
    if let Some(alone) =
        names.iter().find(|name| matches!(name.as_str(), "*" | "~")).filter(|_| names.len() > 1)
    {
        issues.error(at, format!("`{alone}` cannot be combined with others"));
    }
    of(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn of(names: &[&str]) -> Option<ExportTo> {
    if names.is_empty() {
        return None;
    }
    if names.contains(&"~") {
        return Some(ExportTo::nobody());
    }
    if names.contains(&"*") {
        return Some(ExportTo::All);
    }
    let namespaces = names.iter().filter(|name| **name != ".").map(|name| (*name).into()).collect();
    Some(ExportTo::Some { own: names.contains(&"."), namespaces })
}

fn known(name: &str) -> bool {
    matches!(name, "*" | "." | "~") || namespace(name)
}

/// RFC 1123, as Kubernetes names namespaces.
pub(crate) fn namespace(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty()
        && name.len() <= 63
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(own: bool, namespaces: &[&str]) -> Option<ExportTo> {
        Some(ExportTo::Some { own, namespaces: namespaces.iter().map(|ns| (*ns).into()).collect() })
    }

    #[test]
    fn the_annotation_of_a_service() {
        for (value, expect, warnings) in [
            ("", None, 0),
            (" , ", None, 0),
            ("*", Some(ExportTo::All), 0),
            (".", some(true, &[]), 0),
            ("~", Some(ExportTo::nobody()), 0),
            ("a", some(false, &["a"]), 0),
            (" a, .,b ", some(true, &["a", "b"]), 0),
            (".,*", Some(ExportTo::All), 0),
            ("*,~", Some(ExportTo::nobody()), 0),
            ("A", some(false, &["A"]), 1),
            ("*.a", some(false, &["*.a"]), 1),
        ] {
            let mut issues = Issues::default();
            assert_eq!(annotation(value, &At::ROOT, &mut issues), expect, "{value}");
            assert_eq!((issues.0.len(), issues.has_errors()), (warnings, false), "{value}");
        }
    }

    #[test]
    fn the_field() {
        for (names, expect, errors) in [
            (&[][..], None, 0),
            (&["*"], Some(ExportTo::All), 0),
            (&[".", "a"], some(true, &["a"]), 0),
            (&["~"], Some(ExportTo::nobody()), 0),
            (&["*", "a"], Some(ExportTo::All), 1),
            (&["~", "."], Some(ExportTo::nobody()), 1),
            (&["a", "a"], some(false, &["a"]), 1),
            (&[""], some(false, &[""]), 1),
            (&["a-"], some(false, &["a-"]), 1),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut issues = Issues::default();
            assert_eq!(list(&names, &At::ROOT, &mut issues), expect, "{names:?}");
            assert_eq!(issues.errors().count(), errors, "{names:?}");
        }
    }
}
