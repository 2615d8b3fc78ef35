//! One resource, many spellings: what Envoy judges, what the application is sent, and what it may take it for.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use mesh::PathNormalization;
use tests::here;
use tests::lab::{self, ALLOWED, Caller, Credential, DENIED, Got, Lab, PodId, PodSpec, programs};

use super::wire::{self, Application, PORT, SERVICE, ask, get, request};

const LEVELS: [(&str, PathNormalization); 4] = [
    ("NONE", PathNormalization::None),
    ("BASE", PathNormalization::Base),
    ("MERGE_SLASHES", PathNormalization::MergeSlashes),
    ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes),
];

const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin"]}}]}]
"#;

async fn scene(lab: &mut Lab, policies: &str) -> Result<(Caller, PodId, Application)> {
    lab.save("policies.yaml", policies)?;
    lab.save("service.yaml", SERVICE)?;
    lab.start().await?;
    let app = lab.pod(PodSpec::new("default", "app")).await?;
    let caller = lab.caller(Credential::Plaintext);
    Ok((caller, app, Application::start(lab, app).await?))
}

/// Puts a normalisation in force; each shows by what it makes of three paths.
async fn normalise(lab: &Lab, caller: &Caller, on: SocketAddr, level: &str) -> Result<()> {
    lab.control.mesh(&format!("pathNormalization: {{normalization: {level}}}\n"))?;
    let expected = match level {
        "NONE" => ["/public/x/../y", "/public//y", "/public/%2Fy"],
        "BASE" => ["/public/y", "/public//y", "/public/%2Fy"],
        "MERGE_SLASHES" => ["/public/y", "/public/y", "/public/%2Fy"],
        _ => ["/public/y"; 3],
    };
    let seen = async |_: &Lab| {
        let mut seen = Vec::new();
        for path in ["/public/x/../y", "/public//y", "/public/%2Fy"] {
            seen.push(ask(caller, on, &get(path, &[])).await.target().to_owned());
        }
        seen
    };
    lab.becomes(expected.map(str::to_owned).to_vec(), seen).await.with_context(|| level.to_owned())
}

/// `D`enied, `p`assed on, or no `h`TTP at all.
fn letter(got: Got) -> char {
    match got {
        DENIED => 'D',
        ALLOWED => 'p',
        Got::Status(400) => 'h',
        other => panic!("{other}"),
    }
}

/// What a lenient server takes a path for: Tomcat cuts parameters off, others decode `%2F` and turn `\` round.
fn lenient(target: &str) -> String {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path = path.replace("%2F", "/").replace("%2f", "/").replace("%5C", "\\").replace("%5c", "\\");
    let path = path.replace("%2e", ".").replace("%2E", ".").replace("%61", "a").replace('\\', "/");
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').map(|part| part.split(';').next().unwrap_or_default()) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Asks every row under every level: `(spelling, a letter for each level)`. Says where a server as lenient as can be
/// would have served what `reached` says although Envoy let it pass: `(level, spelling)`.
async fn matrix(
    lab: &Lab,
    caller: &Caller,
    on: SocketAddr,
    rows: &[(&str, &str)],
    reached: impl Fn(&str) -> bool,
) -> Result<Vec<(&'static str, String)>> {
    let mut seen: Vec<(String, String)> =
        rows.iter().map(|(spelling, _)| ((*spelling).to_owned(), String::new())).collect();
    let mut round = Vec::new();
    for (level, normalization) in LEVELS {
        normalise(lab, caller, on, level).await?;
        for (spelling, letters) in &mut seen {
            let reply = ask(caller, on, &get(spelling, &[])).await;
            letters.push(letter(reply.got));
            if reply.got != ALLOWED {
                continue;
            }
            // What our own tools say of a path is what Envoy makes of it.
            assert_eq!(normalization.apply(spelling).as_deref(), Some(reply.target()), "{level} {spelling}");
            if reached(&lenient(reply.target())) {
                round.push((level, spelling.clone()));
            }
        }
    }
    let expected: Vec<(String, String)> =
        rows.iter().map(|(spelling, letters)| ((*spelling).to_owned(), (*letters).to_owned())).collect();
    assert_eq!(seen, expected, "NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES");
    Ok(round)
}

/// Every spelling of a denied path at every level; and where one gets through that some server takes for the denied path,
/// `countersign analyze` warns of this policy at this level (CVE-2019-9901, CVE-2021-31920, CVE-2021-39156,
/// CVE-2026-73553, CVE-2026-26205).
#[test]
fn spellings_of_a_denied_path() {
    lab::run(here!(), async |lab| {
        let (caller, app, _) = scene(lab, DENY).await?;
        let on = lab[app].on(PORT);
        let rows = [
            ("/admin", "DDDD"),
            ("/admin?x", "DDDD"),
            ("/admin?/../public", "DDDD"),
            ("/admin#x", "hhhh"),
            ("/public#/../admin", "hhhh"),
            ("/./admin", "pDDD"),
            ("/public/../admin", "pDDD"),
            ("/public/%2e%2E/admin", "pDDD"),
            ("/public/..;x/admin", "pDDD"),
            ("/%61dmin", "pDDD"),
            ("//admin", "ppDD"),
            ("///admin", "ppDD"),
            ("/public//../admin", "pppp"),
            ("/public\\..\\admin", "pDDD"),
            ("\\admin", "hhhh"),
            ("/\\admin", "ppDD"),
            ("/%5Cadmin", "pppD"),
            ("/%2Fadmin", "pppD"),
            ("/%2fadmin", "pppD"),
            ("/public%2F..%2Fadmin", "pppD"),
            ("/public%2f%2e%2e%2fadmin", "pppD"),
            ("/admin;x", "pppp"),
            ("/admin;x=/y", "pppp"),
            ("/;x/admin", "pppp"),
            ("/ADMIN", "pppp"),
            ("/admin/", "pppp"),
            ("/admin%00", "phhh"),
            ("/admin%20", "pppp"),
            ("/%252Fadmin", "pppp"),
        ];
        let round = matrix(lab, &caller, on, &rows, |path| path == "/admin").await?;
        for (level, _) in LEVELS {
            let spellings: Vec<_> = round.iter().filter(|(l, _)| *l == level).collect();
            assert!(!spellings.is_empty(), "parameters get through at every level");
            let said = analyze(lab, level)?;
            assert!(said.contains("CS0201"), "{level}: {spellings:?} get through, and {said}");
        }
        Ok(())
    });
}

/// What `countersign analyze` says of [`DENY`] under a normalisation.
fn analyze(lab: &Lab, level: &str) -> Result<String> {
    let mesh = lab.control.files.with_file_name(format!("{level}.yaml"));
    std::fs::write(&mesh, format!("pathNormalization: {{normalization: {level}}}\n"))?;
    let mut command = std::process::Command::new(programs::countersign());
    command.arg("analyze").arg(lab.control.files.join("policies.yaml")).arg("--mesh-config").arg(mesh);
    let output = command.output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Ways out of an allowed prefix: from BASE on none is left but those that only a server finds which decodes `%2F` or
/// takes `\` that was encoded for a slash, and none of these under DECODE_AND_MERGE_SLASHES.
#[test]
fn ways_out_of_an_allowed_prefix() {
    const ALLOW: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules: [{to: [{operation: {paths: ["/public/*"]}}]}]
"#;
    lab::run(here!(), async |lab| {
        let (caller, app, application) = scene(lab, ALLOW).await?;
        let on = lab[app].on(PORT);
        let rows = [
            ("/public/a", "pppp"),
            ("/admin", "DDDD"),
            ("/PUBLIC/a", "DDDD"),
            ("/admin?/public/", "DDDD"),
            ("/admin#/public/", "hhhh"),
            ("/admin;/public/", "DDDD"),
            ("/public/../admin", "pDDD"),
            ("/public/x/../../admin", "pDDD"),
            ("/public/%2e%2e/admin", "pDDD"),
            ("/public/.%2E/admin", "pDDD"),
            ("/public/..;/admin", "pDDD"),
            ("/public/..;a=b/admin", "pDDD"),
            ("/public/;/../../admin", "pDDD"),
            ("/public\\..\\admin", "DDDD"),
            ("/public/..\\admin", "pDDD"),
            ("/public/..%2Fadmin", "pppD"),
            ("/public/..%5Cadmin", "pppD"),
            ("/public/%2e%2e%2Fadmin", "pppD"),
            ("//public/../admin", "DDDD"),
        ];
        let round = matrix(lab, &caller, on, &rows, |path| path == "/admin").await?;
        for (level, spelling) in &round {
            let decoded = spelling.contains("%2F") || spelling.contains("%5C");
            assert!(*level == "NONE" || (decoded && !level.starts_with("DECODE")), "{level} {spelling}");
        }
        // Nothing that was refused has arrived.
        let passed = rows.iter().flat_map(|(_, letters)| letters.chars()).filter(|c| *c == 'p').count();
        assert!(application.arrived() >= passed);
        Ok(())
    });
}

/// A template sees the path that the application is sent, whatever stars and encodings are in it (CVE-2025-46821).
#[test]
fn templates_take_stars_and_encodings_for_characters() {
    const TEMPLATES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ["/one/{*}/secret", "/any/{**}/secret"]}}]}]
"#;
    lab::run(here!(), async |lab| {
        let (caller, app, application) = scene(lab, TEMPLATES).await?;
        let on = lab[app].on(PORT);
        for (target, expected) in [
            ("/one/a/secret", DENIED),
            ("/one/*/secret", DENIED),
            ("/one/%2A/secret", DENIED),
            ("/one/**/secret", DENIED),
            ("/one/a*/secret", DENIED),
            ("/one/{*}/secret", DENIED),
            ("/one/%7B*%7D/secret", DENIED),
            ("/one/a;b=c/secret", DENIED),
            ("/one/a%2Fb/secret", DENIED),
            ("/one/../one/a/secret", DENIED),
            ("/one/a/b/secret", ALLOWED),
            ("/any/a/b/secret", DENIED),
            ("/any/*/%2A/secret", DENIED),
            ("/any/**/secret", DENIED),
            ("/any//secret", DENIED),
        ] {
            let before = application.arrived();
            let reply = ask(&caller, on, &get(target, &[])).await;
            assert_eq!(reply.got, expected, "{target}: {}", reply.target());
            assert_eq!(application.arrived() - before, usize::from(expected == ALLOWED), "{target}");
        }
        Ok(())
    });
}

/// Headers that name another path or host are only headers (CVE-2023-27487).
#[test]
fn headers_that_name_another_path_change_nothing() {
    const ALLOW: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules: [{to: [{operation: {hosts: [app.example], methods: [GET], paths: ["/public", "/public/{*}"]}}]}]
"#;
    lab::run(here!(), async |lab| {
        let (caller, app, application) = scene(lab, ALLOW).await?;
        let on = lab[app].on(PORT);
        let own = lab.identity("default", "client")?;
        for caller in [caller, lab.caller(own)] {
            for (name, public, other) in [
                ("x-envoy-original-path", "/public", "/admin"),
                ("x-original-url", "/public", "/admin"),
                ("x-rewrite-url", "/public", "/admin"),
                ("x-forwarded-prefix", "/public", "/admin"),
                ("x-envoy-original-host", "app.example", "other"),
                ("x-forwarded-host", "app.example", "other"),
                ("x-http-method-override", "GET", "DELETE"),
                (":path", "/public", "/admin"),
                (":authority", "app.example", "other"),
                (":method", "GET", "DELETE"),
            ] {
                let before = application.arrived();
                for (method, target, host) in [
                    ("GET", "/admin", "app.example"),
                    ("GET", "/public", "evil"),
                    ("DELETE", "/public", "app.example"),
                ] {
                    let bytes = request(method, target, host, &[(name, public.as_bytes())]);
                    let got = ask(&caller, on, &bytes).await.got;
                    assert!(
                        [DENIED, Got::Status(400)].contains(&got),
                        "{name}: {public}: {method} {host}{target}: {got}"
                    );
                }
                assert_eq!(application.arrived(), before, "{name}");
                let bytes = request("GET", "/public", "app.example", &[(name, other.as_bytes())]);
                let reply = ask(&caller, on, &bytes).await;
                assert!([ALLOWED, Got::Status(400)].contains(&reply.got), "{name}: {other}: {}", reply.got);
            }
        }
        Ok(())
    });
}

/// Requests whose target is no absolute path reach nothing that is not allowed, and end nothing (CVE-2025-64527,
/// CVE-2026-33186).
#[test]
fn requests_without_an_absolute_path() {
    const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ["/shop.Secret/*"]}}]}]
"#;
    lab::run(here!(), async |lab| {
        let (caller, app, application) = scene(lab, POLICIES).await?;
        let on = lab[app].on(PORT);
        let envoy = lab[app].envoy_pid().context("an Envoy")?;
        for (line, expected) in [
            ("GET http://app.example/shop.Secret/Get", DENIED),
            ("GET HTTP://app.example/shop.Secret/Get", DENIED),
            ("GET hTTp://other.example:80/shop.Secret/Get", DENIED),
            ("GET http://app.example/x/../shop.Secret/Get", DENIED),
            ("GET shop.Secret/Get", Got::Status(400)),
            ("POST shop.Secret/Get", Got::Status(400)),
            ("GET app.example/shop.Secret/Get", Got::Status(400)),
            ("GET //app.example/shop.Secret/Get", ALLOWED),
            ("OPTIONS *", Got::Status(404)),
            ("GET *", Got::Status(400)),
            ("CONNECT app.example:8090", Got::Status(404)),
            ("CONNECT /shop.Secret/Get", Got::Status(400)),
            ("CONNECT *", Got::Status(400)),
        ] {
            let (method, target) = line.split_once(' ').context("two words")?;
            let reply = ask(&caller, on, &request(method, target, "app.example", &[])).await;
            assert_eq!(reply.got, expected, "{line}: {}", reply.head);
        }
        let post = [(":method", "POST"), (":scheme", "http"), (":authority", "app.example")];
        let connect = [(":method", "CONNECT"), (":authority", "app.example:8090")];
        let path = |path| [&post[..], &[(":path", path), ("content-type", "application/grpc")]].concat();
        // The control: another method of the same kind arrives. The application does not understand HTTP/2.
        let before = application.arrived();
        wire::http2(&caller, on, &path("/shop.Other/Get")).await?;
        assert!(application.arrived() > before, "a request that nobody denies");
        let before = application.arrived();
        for fields in [
            path("/shop.Secret/Get"),
            path("shop.Secret/Get"),
            path(""),
            path("http://app.example/shop.Secret/Get"),
            path("\\shop.Secret/Get"),
            post.to_vec(),
            connect.to_vec(),
            [&connect[..], &[(":path", "shop.Secret/Get")]].concat(),
            [&connect[..], &[(":protocol", "websocket"), (":scheme", "http")]].concat(),
            [&connect[..], &[(":protocol", "websocket"), (":scheme", "http"), (":path", "shop.Secret/Get")]]
                .concat(),
            [&path("/shop.Other/Get")[..], &[(":path", "/shop.Secret/Get")]].concat(),
            [&path("/shop.Secret/Get")[..], &[(":path", "/shop.Other/Get")]].concat(),
        ] {
            // Answered or reset; to gRPC a refusal is a 200 as well.
            wire::http2(&caller, on, &fields).await?;
            assert_eq!(application.arrived(), before, "{fields:?}");
        }
        assert_eq!(lab[app].envoy_pid(), Some(envoy), "Envoy is the one it was");
        Ok(())
    });
}
