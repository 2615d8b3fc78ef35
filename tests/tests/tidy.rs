//! Holds the house budgets: file and function sizes, inherited lints, module docs, no reasonless `allow`.
//! Function length is clippy's `too_many_lines`; this checks what clippy cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines before a file's tests: more is refused.
const HARD: usize = 800;
/// Files over the soft limit, which must shrink, not grow: path and the most it may have.
const OVER_SOFT: &[(&str, usize)] = &[];
const SOFT: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn tracked(suffix: &str) -> Vec<(String, String)> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git");
    let names = String::from_utf8(out.stdout).expect("file names are UTF-8");
    let read = |name: &str| fs::read_to_string(root().join(name)).ok().map(|text| (name.to_owned(), text));
    names.lines().filter(|name| name.ends_with(suffix)).filter_map(read).collect()
}

fn rust_files() -> Vec<(String, String)> {
    let files: Vec<_> = tracked(".rs").into_iter().filter(|(name, _)| !name.contains("/gen/")).collect();
    assert!(files.len() > 20, "only {} Rust files found: is this the right folder?", files.len());
    files
}

fn production_lines(text: &str) -> usize {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count()
}

#[test]
fn files_keep_their_size_budget() {
    let mut wrong = Vec::new();
    for (name, text) in rust_files() {
        let lines = production_lines(&text);
        let allowed = OVER_SOFT.iter().find(|(n, _)| *n == name).map_or(SOFT, |(_, most)| *most);
        assert!(allowed <= HARD, "{name}: nothing may be allowed more than {HARD} lines");
        // Test files are data and steps: only the hard budget.
        let budget = if name.contains("/tests/") || name.starts_with("tests/") { HARD } else { allowed };
        if lines > budget {
            wrong.push(format!("{name}: {lines} lines, at most {budget}"));
        }
    }
    assert!(wrong.is_empty(), "split these by meaning:\n{}", wrong.join("\n"));
}

#[test]
fn members_inherit_lints_and_package_fields() {
    let manifests: Vec<_> =
        tracked("Cargo.toml").into_iter().filter(|(name, _)| name != "Cargo.toml").collect();
    assert!(manifests.len() >= 15);
    for (name, text) in manifests {
        assert!(text.contains("[lints]\nworkspace = true"), "{name} does not inherit the workspace lints");
        assert!(text.contains("publish.workspace = true"), "{name} does not inherit publish = false");
        assert!(!text.contains("[features]"), "{name}: no features in internal crates");
        let own = text.lines().find(|line| line.contains("version = \""));
        assert_eq!(own, None, "{name}: versions live in the workspace");
    }
}

#[test]
fn every_allow_has_a_reason_and_every_crate_says_what_it_does() {
    for (name, text) in rust_files() {
        for line in text
            .lines()
            .filter(|line| line.trim_start().starts_with("#[allow(") || line.contains("#![allow("))
        {
            assert!(line.contains("reason") || text.contains("reason ="), "{name}: {line}");
        }
        if name.ends_with("src/lib.rs") || name.ends_with("src/main.rs") {
            assert!(text.starts_with("//!"), "{name} does not begin with module documentation");
        }
        assert!(
            !text.contains(concat!("deny(", "warnings)")),
            "{name}: warnings are denied in CI, not in source"
        );
        for line in text.lines().filter(|line| line.trim_start().starts_with(concat!("#[", "ignore"))) {
            // The body of another test, run by it in a process of its own; that test must exist.
            let runs = |word: &str| !word.is_empty() && text.contains(&format!("fn {word}("));
            let named = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(runs);
            // Or one that only takes its time: a target of its own runs it.
            let stem = Path::new(&name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let long = line.contains("scripts/test long")
                && fs::read_to_string(root().join("scripts/test"))
                    .is_ok_and(|script| script.contains(&format!("--test {stem} -- --ignored")));
            assert!(
                named || long,
                "{name}: an ignored test is no test, unless its reason names what runs it: {line}"
            );
        }
    }
}

#[test]
fn crates_depend_one_way() {
    // design: crds → policy, mesh → spiffe; xds → policy, mesh; processes → libraries, never each other.
    let allowed: &[(&str, &[&str])] = &[
        ("spiffe", &[]),
        ("policy", &["spiffe"]),
        ("mesh", &["spiffe"]),
        ("api", &[]),
        ("crds", &["policy", "mesh", "spiffe"]),
        ("source", &["crds", "policy", "mesh"]),
        ("authn", &["api", "spiffe"]),
        ("xds", &["policy", "mesh", "spiffe"]),
        ("runtime", &[]),
        ("controller", &["authn", "api", "crds", "mesh", "policy", "runtime", "source", "spiffe", "xds"]),
        ("ca", &["api", "authn", "runtime", "spiffe"]),
        ("agent", &["api", "authn", "runtime", "spiffe"]),
    ];
    for (name, text) in tracked("Cargo.toml") {
        let Some(krate) = name.strip_suffix("/Cargo.toml") else { continue };
        let Some((_, may)) = allowed.iter().find(|(k, _)| *k == krate) else { continue };
        let production = text.split("[dev-dependencies]").next().unwrap_or_default();
        for (other, _) in allowed.iter().filter(|(other, _)| *other != krate) {
            let uses = production.lines().any(|l| l.starts_with(&format!("{other}.workspace")));
            assert!(!uses || may.contains(other), "{krate} must not depend on {other} (ARCHITECTURE.md)");
        }
    }
}

#[test]
fn no_key_material_and_no_foreign_place_in_the_tree() {
    let marker = concat!("BEGIN ", "PRIVATE KEY");
    let ec = concat!("BEGIN EC ", "PRIVATE KEY");
    for (name, text) in tracked("") {
        let pem = text.contains(marker) || text.contains(ec);
        assert!(!pem || name.ends_with(".rs"), "{name} holds a private key");
        for host in ["pypi.org", "crates.io/api", "proxy.golang.org", "deb.debian.org", "registry.npmjs.org"]
        {
            assert!(
                !text.contains(host) || name == "tests/tests/tidy.rs" || name == "Cargo.lock",
                "{name} names {host}"
            );
        }
    }
}
