//! The READMEs show the demo's table: it must be what a real run prints. `BLESS=1` writes it.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::lab;

const FILES: [&str; 2] = ["README.md", "README.zh-CN.md"];
const START: &str = "from a real run -->\n```text\n";
const END: &str = "```\n<!-- /demo -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn countersign() -> PathBuf {
    std::env::var_os("COUNTERSIGN_BIN").map_or_else(|| root().join("target/debug/countersign"), PathBuf::from)
}

/// Caller, call, answer and principle, as columns; times and places, which differ from run to run, left out.
fn table(envoy: &Path) -> String {
    let output = Command::new(countersign())
        .args(["demo", "-o", "json", "--envoy"])
        .arg(envoy)
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("no report ({e}): {}", String::from_utf8_lossy(&output.stderr)));
    let rows = report["rows"].as_array().expect("rows");
    let mut table = String::new();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    for row in rows {
        let [caller, call, got, shows] = ["caller", "call", "got", "shows"].map(|key| text(row, key));
        table.push_str(format!("{caller:15} {call:42} {got:12} {shows}").trim_end());
        table.push('\n');
    }
    table
}

#[test]
fn the_readmes_show_what_a_run_prints() {
    let Some(envoy) = lab::envoy_or_skip("the_readmes_show_what_a_run_prints") else { return };
    let table = table(&envoy);
    assert!(table.lines().count() >= 18, "{table}");
    for name in FILES {
        let path = root().join(name);
        let text = std::fs::read_to_string(&path).expect("a README");
        let start = text.find(START).expect("the start mark") + START.len();
        let end = start + text[start..].find(END).expect("the end mark");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, format!("{}{table}{}", &text[..start], &text[end..])).expect("written");
        } else {
            assert_eq!(
                &text[start..end],
                table,
                "{name} is out of date: BLESS=1 cargo test -p tests --test readme"
            );
        }
    }
}
