//! Keeps what is made from this crate equal to it: the chart's definitions, and the table of kinds without effect in
//! `docs/compatibility.md`. `BLESS=1` writes instead.

#![allow(clippy::unwrap_used, reason = "a test: a failure here is its result")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const BLESS: &str = "BLESS=1 cargo test -p crds --test generate";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn bless() -> bool {
    std::env::var_os("BLESS").is_some()
}

#[test]
fn the_chart_holds_the_definitions() {
    let folder = root().join("charts/countersign-crds/files");
    let fresh: BTreeMap<String, String> = crds::crd::definitions()
        .iter()
        .map(|definition| (format!("{}.yaml", definition.plural), definition.yaml()))
        .collect();
    let kept: BTreeMap<String, String> = fs::read_dir(&folder)
        .map(|entries| {
            entries.map(|entry| entry.unwrap().path()).map(|path| {
                (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
            })
        })
        .into_iter()
        .flatten()
        .collect();
    if bless() {
        fs::create_dir_all(&folder).unwrap();
        for name in kept.keys().filter(|name| !fresh.contains_key(*name)) {
            fs::remove_file(folder.join(name)).unwrap();
        }
        fresh.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
        return;
    }
    assert_eq!(fresh.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>(), "{BLESS}");
    for (name, text) in &fresh {
        assert!(kept[name] == *text, "{name} is not what the Rust types give: {BLESS}");
    }
}

#[test]
fn the_documentation_names_every_kind_without_effect() {
    const BEGIN: &str = "<!-- kinds without effect: generated -->\n";
    const END: &str = "<!-- end -->\n";
    let file = root().join("docs/compatibility.md");
    let page = fs::read_to_string(&file).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the marker");
    let (kept, after) = rest.split_once(END).expect("the other marker");
    let mut fresh = "| kind | access | without it |\n|---|---|---|\n".to_owned();
    for one in crds::unimplemented() {
        fresh += &format!("| {} (`{}`) | {} | {} |\n", one.kind, one.group, one.access, one.meaning);
    }
    if bless() {
        fs::write(&file, format!("{before}{BEGIN}{fresh}{END}{after}")).unwrap();
        return;
    }
    assert!(kept == fresh, "docs/compatibility.md does not name the kinds of crds::unimplemented(): {BLESS}");
}
