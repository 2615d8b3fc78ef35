use std::process::Command;

use super::*;
use crate::testing::{arguments, envoys};

fn made(capture: &str, extra: &[&str]) -> (tempfile::TempDir, Value) {
    let dir = tempfile::tempdir().expect("a folder");
    let sds = dir.path().join("sds/sds.sock");
    let sds = sds.to_str().expect("UTF-8");
    let mut line = vec!["--trust-bundle", "b", "--workload", "shop/orders", "--address", "127.0.10.3"];
    line.extend(["--capture", capture, "--sds-socket", sds]);
    line.extend(extra);
    let args = arguments(&line);
    let plan = Plan::new(&args).expect("a plan");
    let state = State::open(&args, None).expect("folders");
    let value = bootstrap(&args, &state, "spiffe://cluster.local/ns/istio-system/sa/countersign", &plan);
    (dir, value.expect("a bootstrap"))
}

#[test]
fn says_who_it_is_and_what_it_wants() {
    let (_dir, value) = made("none", &["--app", "80=unix:/a.sock", "--upstream", "db.shop:5432=15432"]);
    assert_eq!(value["node"]["id"], "sidecar~127.0.10.3~orders.shop~shop.svc.cluster.local");
    let metadata = &value["node"]["metadata"];
    assert_eq!(metadata["COUNTERSIGN_APPS"]["80"], "unix:/a.sock");
    assert_eq!(metadata["COUNTERSIGN_UPSTREAMS"]["db.shop:5432"], "127.0.10.3:15432");
    assert_eq!(metadata["COUNTERSIGN_CAPTURE"], "none");
    assert!(metadata.get("COUNTERSIGN_INLINE_POLICY").is_none());
    let (_dir, value) = made("nft", &["--inline-policy", "--xds-protocol", "sotw"]);
    assert_eq!(value["node"]["metadata"]["COUNTERSIGN_INLINE_POLICY"], "true");
    assert!(value["node"]["metadata"].get("COUNTERSIGN_CAPTURE").is_none(), "Istio's redirection");
    assert_eq!(value["dynamic_resources"]["ads_config"]["api_type"], "GRPC");
}

/// `BLESS=1` writes what is expected.
fn check(name: &str, capture: &str, extra: &[&str]) {
    let (dir, value) = made(capture, extra);
    let text = format!("{value:#}\n").replace(dir.path().to_str().expect("UTF-8"), "/run");
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bootstrap/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        std::fs::write(&file, &text).expect("written");
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text == expected, "{} is no longer what is made (BLESS=1 writes it):\n{text}", file.display());
}

#[test]
fn it_is_what_the_snapshots_say() {
    let none = ["--app", "80=unix:/a.sock", "--upstream", "db.shop:5432=127.0.0.9:15432"];
    check("none.json", "none", &none);
    check(
        "name.json",
        "none",
        &["--server", "cp.example:15012", "--xds-protocol", "sotw", "--inline-policy"],
    );
}

#[test]
fn a_mark_is_for_envoys_that_have_no_user_of_their_own() {
    let args = arguments(&[
        "--trust-bundle",
        "b",
        "--workload",
        "a/b",
        "--capture",
        "none",
        "--address",
        "10.0.0.1",
    ]);
    let plan = Plan::new(&args).expect("a plan");
    let dir = tempfile::tempdir().expect("a folder");
    let args = AgentArgs { sds_socket: dir.path().join("s/sds.sock"), ..args };
    let state = State::open(&args, None).expect("folders");
    let option = |plan: &Plan| {
        let value = bootstrap(&args, &state, "spiffe://a/b", plan).expect("a bootstrap");
        value.pointer("/cluster_manager/upstream_bind_config/socket_options/0/int_value").cloned()
    };
    assert_eq!(option(&plan), None);
    assert_eq!(option(&plan.marked()), Some(json!(1337)));
}

#[test]
fn every_envoy_accepts_it() {
    let found = envoys();
    if found.is_empty() {
        return println!("skipped: no Envoy in .cache/envoy (scripts/get-envoy fetches one)");
    }
    for (capture, extra) in
        [("none", &["--app", "80=unix:/a.sock"][..]), ("nft", &["--server", "cp.example:15012"][..])]
    {
        let (dir, value) = made(capture, extra);
        let file = dir.path().join("bootstrap.json");
        std::fs::write(&file, value.to_string()).expect("written");
        for envoy in &found {
            let mut command = Command::new(envoy);
            let output =
                command.args(["--mode", "validate", "-l", "error", "-c"]).arg(&file).output().expect("runs");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} refuses: {text}", envoy.display());
        }
    }
}
