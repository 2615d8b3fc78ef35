//! Every filter that is taken from a Telemetry is one that Envoy compiles: an expression that it refuses would take the
//! listener, and its policy, with it. Held against each Envoy that is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tests::lab;

/// By hand: each kind of token and each name that is taken, and the limits.
fn samples() -> Vec<String> {
    let mut all: Vec<String> = [
        "response.code >= 400",
        "!has(response.code) || response.code >= 400",
        "response.code in [401, 403] && request.url_path.startsWith('/admin')",
        "connection.mtls",
        "request.headers['x-tenant'] == 'acme'",
        "!('x-debug' in request.headers)",
        "metadata['envoy.common']['access_log_hint'] == true",
        "has(request.headers.authorization)",
        "request.size > 1024u ? response.code != 200 : true",
        "int(response.code) % 100 == 3 && request.duration > duration('1s')",
        "double(request.size) > 1.5e+3 || uint(1) == 1u || request.size * 2 / 3 - 1 > -0x10",
        "request.time > timestamp('2024-01-01T00:00:00Z')",
        "size(request.headers) > 3 || request.path.size() > 3",
        r#"request.path == "a\"b\u00e9\n\\" || request.path == r'\d'"#,
        "request.path == null || true",
    ]
    .map(str::to_owned)
    .into();
    for function in [
        "getFullYear",
        "getMonth",
        "getDate",
        "getDayOfMonth",
        "getDayOfWeek",
        "getDayOfYear",
        "getHours",
        "getMinutes",
        "getSeconds",
        "getMilliseconds",
    ] {
        all.push(format!("request.time.{function}() > 1"));
    }
    for depth in 1..20 {
        all.push(format!("{}true{}", "(".repeat(depth), ")".repeat(depth)));
        all.push(format!("{}true", "!".repeat(depth)));
        all.push(format!("{} 1 == 1", "1 + ".repeat(depth)));
        all.push(format!("request.headers{} == 1", ".a".repeat(depth)));
        all.push(format!("request.headers{} == 1", "['a']".repeat(depth)));
        all.push(format!("{}true{}", "true ? ".repeat(depth), " : false".repeat(depth)));
        all.push(format!("{}true", "true ? true : ".repeat(depth)));
        all.push(format!("[{}] == [1]", vec!["1"; depth * 4].join(", ")));
        all.push(vec!["true || connection.mtls && true"; depth * 2].join(" || "));
        all.push(format!("{}1{} == 1", "size([".repeat(depth), "])".repeat(depth)));
    }
    all
}

const LEAVES: [&str; 25] = [
    "1",
    "2u",
    "0x1f",
    "1.5",
    "'a'",
    "\"b\"",
    "true",
    "false",
    "null",
    "response.code",
    "request.path",
    "request.headers",
    "request.headers['a']",
    "connection.mtls",
    "metadata",
    "filter_state['x']",
    "upstream.address",
    "xds.cluster_name",
    "source.port",
    "request.time",
    "request.duration",
    "[1, 2]",
    "[]",
    "destination.port",
    "response.grpc_status",
];
const OPERATORS: [&str; 14] = ["&&", "||", "==", "!=", "<", "<=", ">", ">=", "in", "+", "-", "*", "/", "%"];
const METHODS: [&str; 3] = ["contains", "startsWith", "endsWith"];
const FUNCTIONS: [&str; 7] = ["size", "int", "uint", "double", "duration", "timestamp", "has"];

fn pick<'t>(random: &mut StdRng, from: &[&'t str]) -> &'t str {
    from[random.random_range(0..from.len())]
}

/// An expression in which anything may stand anywhere.
fn expression(random: &mut StdRng, depth: usize) -> String {
    if depth == 0 || random.random_range(0..4) == 0 {
        return pick(random, &LEAVES).to_owned();
    }
    let inner = |random: &mut StdRng| expression(random, depth - 1);
    let a = inner(random);
    match random.random_range(0..9) {
        0..3 => format!("({a}) {} ({})", pick(random, &OPERATORS), inner(random)),
        3 => format!("({a}).{}({})", pick(random, &METHODS), inner(random)),
        4 => format!("{}({a})", pick(random, &FUNCTIONS)),
        5 => format!("({a}) ? ({}) : ({})", inner(random), inner(random)),
        6 => format!("{}({a})", pick(random, &["!", "-"])),
        7 => format!("({a})[{}]", inner(random)),
        _ => format!("[{a}, {}]", inner(random)),
    }
}

/// Whether a Telemetry with this filter is understood.
fn is_taken(expression: &str) -> bool {
    let value = json!({
        "apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry", "metadata": {"name": "t"},
        "spec": {"accessLogging": [{"filter": {"expression": expression}}]},
    });
    matches!(crds::parse(&value).content, crds::Content::Object(_))
}

/// A listener that logs once with each filter.
fn bootstrap(expressions: &[String]) -> Value {
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let log = |expression: &String| {
        json!({
            "name": "envoy.access_loggers.file",
            "filter": {"extension_filter": {
                "name": "envoy.access_loggers.extension_filters.cel",
                "typed_config": {"@type": kind("access_loggers.filters.cel.v3.ExpressionFilter"), "expression": expression},
            }},
            "typed_config": {"@type": kind("access_loggers.file.v3.FileAccessLog"), "path": "/dev/null"},
        })
    };
    let logs: Vec<Value> = expressions.iter().map(log).collect();
    let proxy = json!({"@type": kind("filters.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "x", "cluster": "x",
                       "access_log": logs});
    json!({"static_resources": {
        "listeners": [{
            "name": "x", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
        }],
        "clusters": [{"name": "x", "type": "STATIC"}],
    }})
}

/// Every version that was fetched.
fn envoys(first: PathBuf) -> Vec<PathBuf> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join(".cache/envoy");
    let found = std::fs::read_dir(cache).into_iter().flatten().flatten().map(|v| v.path().join("envoy"));
    let mut all: Vec<PathBuf> = found.filter(|path| path.is_file()).collect();
    if all.is_empty() {
        all.push(first);
    }
    all
}

/// Why Envoy refuses it, if it does.
fn refusal(envoy: &Path, expressions: &[String]) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("envoy.json");
    std::fs::write(&path, bootstrap(expressions).to_string()).expect("a file");
    let out = Command::new(envoy).args(["--mode", "validate", "-l", "error", "-c"]).arg(&path).output();
    let out = out.expect("Envoy starts");
    (!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).trim().to_owned())
}

#[test]
fn every_filter_that_is_taken_is_one_that_envoy_compiles() {
    let Some(envoy) = lab::envoy_or_skip(tests::here!()) else { return };
    let mut random = StdRng::seed_from_u64(1);
    let mut all = samples();
    all.extend((0..4000).map(|_| expression(&mut random, 4)));
    let taken: Vec<String> = all.into_iter().filter(|expression| is_taken(expression)).collect();
    assert!(taken.len() > 500, "only {} expressions are taken", taken.len());
    for envoy in envoys(envoy) {
        if refusal(&envoy, &taken).is_none() {
            continue;
        }
        let alone: Vec<String> = taken
            .iter()
            .filter_map(|one| Some(format!("{one}: {}", refusal(&envoy, std::slice::from_ref(one))?)))
            .take(5)
            .collect();
        panic!("{}: {}", envoy.display(), alone.join("\n"));
    }
}

/// What is refused here because Envoy would refuse it: if it no longer does, this may take more.
#[test]
fn what_is_not_taken_is_what_envoy_refuses() {
    let Some(envoy) = lab::envoy_or_skip(tests::here!()) else { return };
    for expression in [
        "response.code >=",
        "[1].all(x, x > 0)",
        "string(response.code) == '200'",
        "request.path.nonsense()",
        "request.path.startsWith()",
    ] {
        assert!(!is_taken(expression), "{expression}");
        assert!(refusal(&envoy, &[expression.to_owned()]).is_some(), "{expression} is taken by Envoy");
    }
}
