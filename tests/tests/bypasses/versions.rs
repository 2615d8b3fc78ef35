//! One configuration for Envoys of every version that we test: an older one must not take a field it does not know for less.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::here;
use tests::lab::{
    self, ALLOWED, Credential, DENIED, Got, Lab, PodSpec, Protocol, Signer, UNAUTHENTICATED, programs,
};

use super::wire::{Headers, ask, get};

/// Where Envoy joins what a header was sent with twice (CVE-2026-26308): below what we ask for, and flagged.
const JOINS: &str = "1.36.2";

fn policies(signer: &Signer) -> String {
    format!(
        r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: app, namespace: default}}
spec:
  mtls: {{mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: login, namespace: default}}
spec: {{jwtRules: [{{issuer: "https://login.example", jwks: '{}', spaceDelimitedClaims: [roles], fromCookies: [token], fromHeaders: [{{name: authorization, prefix: "Bearer "}}]}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: deny, namespace: default}}
spec:
  action: DENY
  rules:
  - to: [{{operation: {{paths: ["/admin/{{*}}/x"]}}}}]
  - to: [{{operation: {{hosts: [evil.example]}}}}]
  - when: [{{key: "request.headers[x-role]", values: [admin]}}]
  - when: [{{key: "request.auth.claims[roles]", values: [banned]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: allow, namespace: default}}
spec:
  rules:
  - from: [{{source: {{serviceAccounts: [default/client], trustDomains: [cluster.local]}}}}]
  - from: [{{source: {{serviceAccounts: [other/client]}}}}]
    to: [{{operation: {{paths: [/x]}}}}]
"#,
        signer.jwks()
    )
}

/// Shows an Envoy where its user may enter.
fn envoy(lab: &Lab, version: &str) -> Result<std::path::PathBuf> {
    let program = programs::root().join(".cache/envoy").join(version).join("envoy");
    ensure!(program.is_file(), "no {}: run scripts/get-envoy {version}", program.display());
    let here = lab.envoy.with_file_name(format!("envoy-{version}"));
    std::fs::write(&here, "")?;
    let status = std::process::Command::new("mount").arg("--bind").args([&program, &here]).status()?;
    ensure!(status.success(), "mount --bind: {status}");
    Ok(here)
}

fn versions() -> Vec<String> {
    let folder = std::fs::read_dir(Path::new(programs::root()).join("tests/tools")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let version = |name: String| Some(name.strip_prefix("envoy-")?.strip_suffix(".txt")?.to_owned());
    let mut versions: Vec<String> = names.filter_map(version).collect();
    versions.sort();
    versions
}

/// CVE-2022-21679: every version takes all of it, and decides alike but for the bug by which it is flagged.
#[test]
fn every_version_decides_alike() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        lab.save("policies.yaml", &policies(&signer))?;
        lab.start().await?;
        let versions = versions();
        assert!(versions.len() >= 3, "{versions:?}");
        let banned = format!("Bearer {}", signer.token(&json!({"roles": "user banned"}))?);
        let fine = format!("Bearer {}", signer.token(&json!({"roles": "user"}))?);
        for version in versions {
            lab.envoy = envoy(lab, &version)?;
            let name = format!("v{}", version.replace('.', "-"));
            let spec = PodSpec::new("default", &name).port(8080, Protocol::Http).port(5432, Protocol::Tcp);
            let pod = lab.pod(spec).await.with_context(|| version.clone())?;
            let on = lab[pod].on(8080);
            let caller = lab.caller(lab.identity("default", "client")?);
            let joined = if version == JOINS { ALLOWED } else { DENIED };
            let rows: &[(&str, Headers<'_>, Got)] = &[
                ("/", &[], ALLOWED),
                ("/admin/a/x", &[], DENIED),
                ("/admin/%2A/x", &[], DENIED),
                ("/admin/*/x", &[], DENIED),
                ("/", &[("x-role", b"admin")], DENIED),
                ("/", &[("x-role", b"user"), ("x-role", b"admin")], joined),
                ("/", &[("authorization", fine.as_bytes())], ALLOWED),
                ("/", &[("authorization", banned.as_bytes())], DENIED),
                ("/", &[("authorization", b"Bearer a.b.c")], UNAUTHENTICATED),
                ("/", &[("cookie", b"token=a.b.c")], UNAUTHENTICATED),
            ];
            for (path, headers, expected) in rows {
                let got = ask(&caller, on, &get(path, headers)).await.got;
                assert_eq!(got, *expected, "{version}: {path} {headers:?}");
            }
            let bytes = super::wire::request("GET", "/", "EVIL.example", &[]);
            assert_eq!(ask(&caller, on, &bytes).await.got, DENIED, "{version}: by host");
            let stranger = lab.caller(lab.identity("other", "client")?);
            assert_eq!(stranger.get(on, "/").await.got, DENIED, "{version}");
            assert_eq!(stranger.get(on, "/x").await.got, ALLOWED, "{version}");
            assert_eq!(stranger.line(lab[pod].on(5432), "hello").await, Got::Closed, "{version}");
            let nobody = lab.caller(Credential::Plaintext);
            assert_eq!(nobody.get(on, "/").await.got, Got::Closed, "{version}");
        }
        Ok(())
    });
}
