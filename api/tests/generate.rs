//! Keeps `src/gen` equal to `proto/**`: regenerates into a temporary directory and compares; `BLESS=1` writes instead.

#![allow(clippy::unwrap_used, reason = "a test: a failure here is its result")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const BLESS: &str = "BLESS=1 cargo test -p api --test generate";

#[test]
fn generated_code_equals_the_protos() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = root.join("src/gen");
    let scratch = tempfile::tempdir().unwrap();
    generate(&root.join("proto"), scratch.path());
    let (fresh, kept) = (read(scratch.path()), read(&checked_in));
    if std::env::var_os("BLESS").is_some() {
        write(&checked_in, &fresh, &kept);
        return;
    }
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&fresh), names(&kept), "src/gen holds other files than the protos give: {BLESS}");
    for (name, text) in &fresh {
        assert!(kept[name] == *text, "src/gen/{name} is not what the protos give: {BLESS}");
    }
}

fn generate(protos: &Path, out: &Path) {
    let mut files = Vec::new();
    collect(protos, &mut files);
    files.sort();
    let descriptors = protox::compile(&files, [protos]).unwrap();
    tonic_prost_build::configure()
        // HashMap has no order, and answers are compared byte for byte in tests.
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .out_dir(out)
        .compile_fds(descriptors)
        .unwrap();
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
}

/// Name → text of the Rust files in `dir`; a missing directory is an empty one.
fn read(dir: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeMap::new() };
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

fn write(dir: &Path, fresh: &BTreeMap<String, String>, kept: &BTreeMap<String, String>) {
    fs::create_dir_all(dir).unwrap();
    for name in kept.keys().filter(|name| !fresh.contains_key(*name)) {
        fs::remove_file(dir.join(name)).unwrap();
    }
    for (name, text) in fresh {
        fs::write(dir.join(name), text).unwrap();
    }
}
