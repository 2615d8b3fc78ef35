//! Headers that are sent twice, with odd bytes, or in the name of somebody who is trusted.

use std::net::SocketAddr;

use anyhow::Result;
use tests::here;
use tests::lab::{self, ALLOWED, Caller, Credential, DENIED, Got, Lab, PodId, PodSpec, Protocol};

use super::wire::{Application, Headers, PORT, SERVICE, ask, get, request};

const BAD: Got = Got::Status(400);

async fn scene(lab: &mut Lab, policies: &str) -> Result<(PodId, Application)> {
    lab.save("policies.yaml", policies)?;
    lab.save("service.yaml", SERVICE)?;
    lab.start().await?;
    let spec = PodSpec::new("default", "app").port(5432, Protocol::Tcp).port(7777, Protocol::Undeclared);
    let app = lab.pod(spec).await?;
    Ok((app, Application::start(lab, app).await?))
}

/// What is denied by a header's value stays denied however often and in whatever bytes the header is sent
/// (CVE-2021-32777, CVE-2026-26308, CVE-2026-73552, CVE-2019-9900).
#[test]
fn repeated_joined_and_odd_values() {
    const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules:
  - when: [{key: "request.headers[x-role]", values: [admin]}]
  - when: [{key: "request.headers[x-group]", values: ["adm*"]}]
  - when: [{key: "request.headers[x-team]", values: ["*ops"]}]
  - when: [{key: "request.headers[x-any]", values: ["*"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - to: [{operation: {paths: [/deny]}}]
  - to: [{operation: {paths: [/exact]}}]
    when: [{key: "request.headers[x-tenant]", values: [good]}]
  - to: [{operation: {paths: [/not]}}]
    when: [{key: "request.headers[x-tenant]", notValues: [evil, "evil*", "*evil"]}]
"#;
    type Row = (&'static str, Headers<'static>, Got);
    let rows: &[Row] = &[
        ("/deny", &[], ALLOWED),
        ("/deny", &[("x-role", b"admin")], DENIED),
        ("/deny", &[("X-ROLE", b"admin")], DENIED),
        ("/deny", &[("x-role", b"user"), ("x-role", b"admin")], DENIED),
        ("/deny", &[("x-role", b"admin"), ("x-role", b"user")], DENIED),
        ("/deny", &[("x-role", b"user"), ("X-Role", b"admin"), ("x-role", b"")], DENIED),
        ("/deny", &[("x-role", b" \tadmin \t")], DENIED),
        // One value that a server may take apart; with Istio as well. A prefix or suffix meets it.
        ("/deny", &[("x-role", b"user,admin")], ALLOWED),
        ("/deny", &[("x-role", b"Admin")], ALLOWED),
        ("/deny", &[("x-role", b"admin\xff")], ALLOWED),
        ("/deny", &[("x-role", b"admin\0")], BAD),
        ("/deny", &[("x-role", b"ad\0min")], BAD),
        ("/deny", &[("x-role ", b"admin")], BAD),
        // A folded line is one value.
        ("/deny", &[("x-role", b"user\r\n admin")], ALLOWED),
        ("/exact", &[("x-tenant", b"evil\r\n good")], DENIED),
        // A lone CR is dropped before anybody looks: it neither begins a header nor hides a value.
        ("/deny", &[("x-role", b"user\rx-role: admin")], ALLOWED),
        ("/deny", &[("x-role", b"ad\rmin")], DENIED),
        ("/deny", &[("x-role", b"\radmin\r")], DENIED),
        ("/deny", &[("x-role\0", b"admin")], BAD),
        ("/deny", &[("x-group", b"adm\xff\xfe")], DENIED),
        ("/deny", &[("x-group", b"adm,user")], DENIED),
        ("/deny", &[("x-group", b"user"), ("x-group", b"adm\x80in")], DENIED),
        ("/deny", &[("x-team", b"\xff\xffops")], DENIED),
        ("/deny", &[("x-team", b"user,ops")], DENIED),
        ("/deny", &[("x-team", b"ops"), ("x-team", b"x")], DENIED),
        ("/deny", &[("x-any", b"")], DENIED),
        ("/deny", &[("x-any", b"\xff")], DENIED),
        ("/deny", &[("x-any", b"\xc3\x28")], DENIED),
        ("/exact", &[], DENIED),
        ("/exact", &[("x-tenant", b"good")], ALLOWED),
        ("/exact", &[("x-tenant", b"good\xff")], DENIED),
        ("/exact", &[("x-tenant", b"good,evil")], DENIED),
        ("/not", &[], ALLOWED),
        ("/not", &[("x-tenant", b"good")], ALLOWED),
        ("/not", &[("x-tenant", b"evil")], DENIED),
        ("/not", &[("x-tenant", b"good"), ("x-tenant", b"evil")], DENIED),
        ("/not", &[("x-tenant", b"evil"), ("x-tenant", b"good")], DENIED),
        ("/not", &[("x-tenant", b"good,evil")], DENIED),
        ("/not", &[("x-tenant", b"evil\xff")], DENIED),
        ("/not", &[("x-tenant", b"\xffevil")], DENIED),
    ];
    lab::run(here!(), async |lab| {
        let (app, application) = scene(lab, POLICIES).await?;
        let on = lab[app].on(PORT);
        for caller in [lab.caller(Credential::Plaintext), lab.caller(lab.identity("default", "client")?)] {
            for (path, headers, expected) in rows {
                let before = application.arrived();
                let reply = ask(&caller, on, &get(path, headers)).await;
                let got = reply.got;
                let shown: Vec<_> = headers.iter().map(|(n, v)| (n, v.escape_ascii().to_string())).collect();
                assert_eq!(got, *expected, "{path} {shown:?} {:?}", reply.head);
                assert_eq!(application.arrived() - before, usize::from(got == ALLOWED), "{path} {shown:?}");
            }
        }
        Ok(())
    });
}

/// Hosts in any case; a port or a trailing dot is another host unless the policy says so (CVE-2021-39155).
#[test]
fn hosts_with_case_port_and_dot() {
    const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {hosts: [bare.example], paths: [/deny]}}]
  - to: [{operation: {hosts: [whole.example, "whole.example:*", whole.example., "whole.example.:*"], paths: [/deny]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - to: [{operation: {paths: [/deny]}}]
  - to: [{operation: {hosts: [good.example], paths: [/allow]}}]
  - to: [{operation: {notHosts: [evil.example, "evil.example:*"], paths: [/not]}}]
"#;
    lab::run(here!(), async |lab| {
        let (app, _) = scene(lab, POLICIES).await?;
        let (on, caller) = (lab[app].on(PORT), lab.caller(Credential::Plaintext));
        for (target, host, expected) in [
            ("/deny", "bare.example", DENIED),
            ("/deny", "BARE.Example", DENIED),
            ("/deny", "bare.example:80", ALLOWED),
            ("/deny", "bare.example.", ALLOWED),
            ("/deny", "whole.example", DENIED),
            ("/deny", "Whole.example:80", DENIED),
            ("/deny", "whole.example:", DENIED),
            ("/deny", "WHOLE.example.", DENIED),
            ("/deny", "whole.example.:8090", DENIED),
            ("http://bare.example/deny", "other", DENIED),
            ("http://BARE.example/deny", "other", DENIED),
            ("http://other/deny", "bare.example", ALLOWED),
            // Two are one, `A,B`, for policy as for the application.
            ("/allow", "good.example\r\nhost: other", DENIED),
            ("/allow", "other\r\nHost: good.example", DENIED),
            ("/not", "evil.example\r\nhost: other", ALLOWED),
            ("/allow", "good.example@other", DENIED),
            ("/allow", "other@good.example", DENIED),
            ("/allow", "good.example", ALLOWED),
            ("/allow", "Good.Example", ALLOWED),
            ("/allow", "good.example:80", DENIED),
            ("/allow", "good.example.", DENIED),
            ("/allow", "good.example.evil", DENIED),
            ("/allow", "", DENIED),
            ("/not", "evil.example", DENIED),
            ("/not", "EVIL.example:1", DENIED),
            ("/not", "other", ALLOWED),
        ] {
            let reply = ask(&caller, on, &request("GET", target, host, &[])).await;
            assert_eq!(reply.got, expected, "{host} {target}: {}", reply.head);
            if host.contains('\n') && expected == ALLOWED {
                assert_eq!(reply.values("host"), ["evil.example,other"], "{}", reply.head);
            }
        }
        Ok(())
    });
}

/// Who a caller is and what Envoy does with its request is not for the caller to say (CVE-2020-8843, CVE-2023-35944,
/// 2024-006): neither to policy nor to the application.
#[test]
fn headers_of_proxies_are_not_a_callers_to_send() {
    const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - to: [{operation: {paths: [/all]}}]
  - from: [{source: {principals: ["cluster.local/ns/default/sa/admin"]}}]
  - from: [{source: {namespaces: [admins]}}]
"#;
    lab::run(here!(), async |lab| {
        let (app, _) = scene(lab, POLICIES).await?;
        let on = lab[app].on(PORT);
        let admin = "spiffe://cluster.local/ns/default/sa/admin";
        let forged = format!("By=spiffe://cluster.local/ns/default/sa/app;Hash=00;Subject=\"\";URI={admin}");
        let headers: Headers<'_> = &[
            ("x-forwarded-client-cert", forged.as_bytes()),
            ("x-istio-attributes", b"CigKCnNvdXJjZS51aWQ="),
            ("x-envoy-internal", b"true"),
            ("x-envoy-peer-metadata", b"eyJOQU1FU1BBQ0UiOiJhZG1pbnMifQ"),
            ("x-envoy-peer-metadata-id", b"sidecar~10.0.0.1~a.admins~admins.svc.cluster.local"),
            ("x-envoy-retry-on", b"5xx"),
            ("x-envoy-max-retries", b"9"),
            ("x-envoy-upstream-alt-stat-name", b"x"),
            ("x-envoy-upstream-rq-timeout-alt-response", b"1"),
            ("x-envoy-ip-tags", b"trusted"),
        ];
        let plaintext = lab.caller(Credential::Plaintext);
        let client = lab.caller(lab.identity("default", "client")?);
        for caller in [&plaintext, &client] {
            let got = ask(caller, on, &get("/admin", headers)).await.got;
            assert_eq!(got, DENIED, "{caller:?}");
        }
        // What Envoy would act upon does not get through.
        for (caller, identity) in
            [(&plaintext, None), (&client, Some("spiffe://cluster.local/ns/default/sa/client"))]
        {
            let reply = ask(caller, on, &get("/all", headers)).await;
            assert_eq!(reply.got, ALLOWED);
            for gone in [
                "x-envoy-internal",
                "x-envoy-retry-on",
                "x-envoy-max-retries",
                "x-envoy-upstream-alt-stat-name",
                "x-envoy-upstream-rq-timeout-alt-response",
                "x-envoy-ip-tags",
            ] {
                assert_eq!(reply.values(gone), Vec::<&str>::new(), "{gone}: {}", reply.head);
            }
            // The last element is the one that our Envoy wrote; without a certificate there is none at all.
            let said = reply.values("x-forwarded-client-cert").join(",");
            let last = said.rsplit(',').next().unwrap_or_default();
            match identity {
                None => assert_eq!(said, "", "{}", reply.head),
                Some(identity) => {
                    assert!(last.contains(&format!("URI={identity}")) && !last.contains(admin), "{said}");
                }
            }
        }
        Ok(())
    });
}

/// Addresses that a caller only claims: in X-Forwarded-For, in the PROXY protocol (2020-011), or for Envoy to call.
/// `ipBlocks` is the peer's own; `remoteIpBlocks` at a sidecar is the last entry of X-Forwarded-For, as with Istio.
#[test]
fn addresses_that_are_only_claimed() {
    const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - from: [{source: {ipBlocks: [10.99.0.0/16]}}]
    to: [{operation: {paths: [/direct]}}]
  - from: [{source: {ipBlocks: [10.99.0.0/16]}}]
    to: [{operation: {ports: ["5432"]}}]
  - from: [{source: {remoteIpBlocks: [10.99.0.0/16]}}]
    to: [{operation: {paths: [/remote]}}]
  - from: [{source: {notIpBlocks: ["::ffff:10.77.0.0/112"]}}]
    to: [{operation: {paths: [/mapped]}}]
  - from: [{source: {ipBlocks: ["::ffff:10.77.0.0/112"]}}]
    to: [{operation: {paths: [/mapped-allowed]}}]
  - to: [{operation: {ports: ["7777"]}}]
"#;
    lab::run(here!(), async |lab| {
        let (app, application) = scene(lab, POLICIES).await?;
        let on = |port| -> SocketAddr { lab[app].on(port) };
        let caller: Caller = lab.caller(Credential::Plaintext);
        let rows: &[(&str, Headers<'_>, Got)] = &[
            ("/direct", &[], DENIED),
            ("/remote", &[], DENIED),
            ("/direct", &[("x-forwarded-for", b"10.99.0.1")], DENIED),
            ("/direct", &[("x-real-ip", b"10.99.0.1"), ("forwarded", b"for=10.99.0.1")], DENIED),
            ("/direct", &[("x-envoy-external-address", b"10.99.0.1")], DENIED),
            ("/remote", &[("x-envoy-external-address", b"10.99.0.1")], DENIED),
            ("/remote", &[("x-real-ip", b"10.99.0.1"), ("forwarded", b"for=10.99.0.1")], DENIED),
            ("/remote", &[("x-forwarded-for", b"10.99.0.1, 8.8.8.8")], DENIED),
            ("/remote", &[("x-forwarded-for", b"8.8.8.8, 10.99.0.1")], ALLOWED),
            ("/mapped", &[], DENIED),
            ("/mapped-allowed", &[], ALLOWED),
        ];
        for (path, headers, expected) in rows {
            assert_eq!(
                ask(&caller, on(PORT), &get(path, headers)).await.got,
                *expected,
                "{path} {headers:?}"
            );
        }
        let proxied =
            [b"PROXY TCP4 10.99.0.1 10.77.0.9 1 8090\r\n".as_slice(), &get("/direct", &[])].concat();
        let before = application.arrived();
        assert_eq!(ask(&caller, on(PORT), &proxied).await.got, BAD, "the PROXY protocol before HTTP");
        assert_eq!(application.arrived(), before);
        let mut lines = caller.lines(on(5432)).await.expect("a connection");
        assert_eq!(lines.ask("PROXY TCP4 10.99.0.1 10.77.0.9 1 5432").await, Got::Closed);
        // A port of which nobody said anything goes where it was sent to.
        let elsewhere = format!("{}:{PORT}", lab[app].at.v4);
        let steer: Headers<'_> = &[("x-envoy-original-dst-host", elsewhere.as_bytes())];
        assert_eq!(ask(&caller, on(7777), &get("/direct", steer)).await.got, ALLOWED, "its own application");
        assert_eq!(application.arrived(), before, "it was steered to another port");
        Ok(())
    });
}
