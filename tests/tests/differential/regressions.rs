//! Disagreements that were found, each made small: replayed first on every run.

use std::path::PathBuf;

use sha2::Digest;

use super::bed::Wrong;
use super::case::Case;

fn folder() -> PathBuf {
    tests::lab::programs::root().join("tests/differential/regressions")
}

/// By file name.
pub(crate) fn all() -> Vec<(String, Case)> {
    let files = std::fs::read_dir(folder()).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let case = serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path.file_stem().unwrap().to_string_lossy().into_owned(), case)
    };
    files.into_iter().map(read).collect()
}

/// Writes it down, to be given a better name by whoever repairs it.
pub(crate) fn keep(wrong: &Wrong) -> PathBuf {
    let case = &wrong.case;
    let why = format!("evaluate: {:?}; Envoy: {:?}", wrong.expected, wrong.envoy);
    let text = serde_yaml::to_string(&Case { why, ..case.clone() }).unwrap();
    let digest = sha2::Sha256::digest(serde_json::to_string(case).unwrap());
    let name: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    std::fs::create_dir_all(folder()).unwrap();
    let path = folder().join(format!("found-{name}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}
