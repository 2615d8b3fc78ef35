use mesh::{ExtAuthz, ExtAuthzKind, HeaderMatch, IncludeBody};

use super::*;

#[track_caller]
fn accepted(text: &str) -> MeshConfig {
    read(text).unwrap_or_else(|findings| panic!("{text}: {findings:?}")).0
}

#[test]
fn defaults() {
    for text in ["", "# nothing\n", "---\n", "{}", "null", "trustDomain: null"] {
        assert_eq!(accepted(text), MeshConfig::default(), "{text:?}");
    }
}

#[test]
fn fields() {
    let config = accepted(
        "trustDomain: td\ntrustDomainAliases: [old.td, x_y]\nrootNamespace: root\nenableAutoMtls: false\nmeshMTLS:\n  minProtocolVersion: TLSV1_3\n  cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]\npathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}\nprotocolDetectionTimeout: 100ms\ninboundTrafficPolicy: {mode: LOCALHOST}\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\ndefaultServiceExportTo: [\".\", shared]\naccessLogFile: /dev/stdout\naccessLogFormat: x\naccessLogEncoding: JSON\ndefaultConfig: {gatewayTopology: {numTrustedProxies: 2}, other: 1}\n",
    );
    let expect = MeshConfig {
        trust_domain: "td".into(),
        trust_domain_aliases: vec!["old.td".into(), "x_y".into()],
        root_namespace: "root".into(),
        enable_auto_mtls: false,
        min_tls_1_3: true,
        cipher_suites: vec!["ECDHE-RSA-AES256-GCM-SHA384".into()],
        path_normalization: PathNormalization::DecodeAndMergeSlashes,
        protocol_detection_timeout_ms: 100,
        inbound_mode: InboundMode::Localhost,
        outbound_allow_any: false,
        default_service_export_to: mesh::ExportTo::Some { own: true, namespaces: ["shared".into()].into() },
        access_log_file: "/dev/stdout".into(),
        access_log_format: "x".into(),
        access_log_json: true,
        extension_providers: Vec::new(),
        log_providers: [].into(),
        default_log_providers: Vec::new(),
        num_trusted_proxies: 2,
    };
    assert_eq!(config, expect);
    for (value, expect) in [
        ("DEFAULT", PathNormalization::Base),
        ("NONE", PathNormalization::None),
        ("BASE", PathNormalization::Base),
        ("MERGE_SLASHES", PathNormalization::MergeSlashes),
    ] {
        assert_eq!(
            accepted(&format!("pathNormalization: {{normalization: {value}}}")).path_normalization,
            expect
        );
    }
}

#[test]
fn other_fields_are_tolerated_and_named() {
    let (config, findings) = read("trustDomian: x\ndefaultProviders: {metrics: [prometheus]}\n").unwrap();
    assert_eq!(config, MeshConfig::default());
    let found: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        ["1:1: trustDomian: has no effect here", "2:20: defaultProviders.metrics: has no effect here"]
    );
    for (text, expect) in [
        ("meshMTLS: {minProtocolVersion: TLSV1_3, ecdhCurves: [P-256]}", vec!["meshMTLS.ecdhCurves"]),
        ("outboundTrafficPolicy: {mode: ALLOW_ANY, x: 1}", vec!["outboundTrafficPolicy.x"]),
        (
            "defaultConfig: {concurrency: 2, proxyMetadata: {A: b}}",
            vec!["defaultConfig.concurrency", "defaultConfig.proxyMetadata"],
        ),
        (
            "defaultConfig: {gatewayTopology: {numTrustedProxies: 2}}",
            vec!["defaultConfig.gatewayTopology.numTrustedProxies"],
        ),
        ("defaultConfig: {gatewayTopology: {numTrustedProxies: 0}}", vec![]),
        (
            "defaultConfig: {gatewayTopology: {forwardClientCertDetails: SANITIZE}}",
            vec!["defaultConfig.gatewayTopology.forwardClientCertDetails"],
        ),
        ("extensionProviders: [{name: p, prometheus: {}}]", vec!["extensionProviders[0].prometheus"]),
        (
            "extensionProviders: [{name: p, envoyExtAuthzGrpc: {service: a, port: 1, clearRouteCache: true}}]",
            vec!["extensionProviders[0].envoyExtAuthzGrpc.clearRouteCache"],
        ),
        (
            "extensionProviders: [{name: p, envoyExtAuthzHttp: {service: a, port: 1, clearRouteCache: false}}]",
            vec![],
        ),
        ("defaultConfig: null", vec![]),
        ("defaultConfig: {concurrency: null}", vec![]),
    ] {
        let (_, findings) = read(text).unwrap_or_else(|findings| panic!("{text}: {findings:?}"));
        let found: Vec<&str> = findings.iter().map(|finding| finding.field.as_str()).collect();
        assert_eq!(found, expect, "{text}");
    }
}

#[test]
fn providers() {
    let config = accepted(
        "extensionProviders:\n- name: http\n  envoyExtAuthzHttp: {service: ns/host.example, port: 8080, timeout: 1s, pathPrefix: /check, failOpen: true, statusOnError: '503', includeRequestHeadersInCheck: [X-A, 'x-b-*', '*-c'], includeHeadersInCheck: [old], includeAdditionalHeadersInCheck: {a: b}, headersToUpstreamOnAllow: [u], headersToDownstreamOnDeny: [d], headersToDownstreamOnAllow: [o], includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}}\n- name: grpc\n  envoyExtAuthzGrpc: {service: host, port: 9000}\n- name: tracer\n  zipkin: {service: x, port: 1}\n",
    );
    let [http, grpc, tracer] = config.extension_providers.as_slice() else { panic!() };
    let exact = |name: &str| HeaderMatch::Exact(name.into());
    let expect = ExtAuthz {
        kind: ExtAuthzKind::Http {
            path_prefix: "/check".into(),
            include_headers: vec![
                exact("x-a"),
                HeaderMatch::Prefix("x-b-".into()),
                HeaderMatch::Suffix("-c".into()),
            ],
            additional_headers: [("a".to_owned(), "b".to_owned())].into(),
            upstream_on_allow: vec![exact("u")],
            downstream_on_deny: vec![exact("d")],
            downstream_on_allow: vec![exact("o")],
        },
        service: "ns/host.example".into(),
        port: 8080,
        timeout_ms: 1000,
        fail_open: true,
        status_on_error: Some(503),
        include_body: Some(IncludeBody { max_bytes: 10, allow_partial: true, pack_as_bytes: true }),
    };
    assert_eq!(http.ext_authz.as_ref(), Some(&expect));
    let grpc = grpc.ext_authz.as_ref().unwrap();
    assert_eq!((&grpc.kind, grpc.timeout_ms, grpc.fail_open), (&ExtAuthzKind::Grpc, 600_000, false));
    assert_eq!((&*tracer.name, &tracer.ext_authz), ("tracer", &None));
}

#[test]
fn refused() {
    let http = |field: &str| {
        format!("extensionProviders: [{{name: a, envoyExtAuthzHttp: {{service: s, port: 1, {field}}}}}]")
    };
    let provider = |p: &str| format!("extensionProviders: [{p}]");
    let long = format!("trustDomain: {}", "x".repeat(256));
    for (text, expect) in [
        ("trustDomain: [".to_owned(), ""),
        ("a: 1\na: 2\n".into(), "2:1: "),
        ("a: 1\n---\nb: 2\n".into(), "3: a second document"),
        ("text".into(), "1:1: a mapping of MeshConfig fields"),
        ("kind: ConfigMap\nmetadata: {}\n".into(), "1:1: kind: this is a Kubernetes object"),
        ("trustDomain: 5".into(), "1:1: trustDomain: invalid type"),
        ("trustDomain: ''".into(), "1:1: trustDomain: `` is not a trust domain"),
        ("trustDomain: Upper".into(), "1:1: trustDomain: "),
        ("trustDomain: a/b".into(), "1:1: trustDomain: "),
        (long, "1:1: trustDomain: "),
        ("trustDomainAliases: [a, '']".into(), "1:25: trustDomainAliases[1]: "),
        ("rootNamespace: a/b".into(), "1:1: rootNamespace: "),
        ("rootNamespace: ''".into(), "1:1: rootNamespace: "),
        ("enableAutoMtls: 'yes'".into(), "1:1: enableAutoMtls: invalid type"),
        (
            "meshMTLS: {minProtocolVersion: TLSV1_1}".into(),
            "1:12: meshMTLS.minProtocolVersion: `TLSV1_1` is not known",
        ),
        ("meshMTLS: {cipherSuites: ['a b']}".into(), "1:27: meshMTLS.cipherSuites[0]: "),
        (
            "pathNormalization: {normalization: MERGE}".into(),
            "1:21: pathNormalization.normalization: unknown variant",
        ),
        ("protocolDetectionTimeout: 5".into(), "1:1: protocolDetectionTimeout: invalid type"),
        ("protocolDetectionTimeout: soon".into(), "1:1: protocolDetectionTimeout: "),
        ("inboundTrafficPolicy: {mode: X}".into(), "1:24: inboundTrafficPolicy.mode: `X` is not known"),
        ("outboundTrafficPolicy: {mode: X}".into(), "1:25: outboundTrafficPolicy.mode: "),
        ("accessLogEncoding: XML".into(), "1:1: accessLogEncoding: unknown variant"),
        ("defaultConfig: {gatewayTopology: {numTrustedProxies: -1}}".into(), "1:35: "),
        (provider("{name: ''}"), "1:23: extensionProviders[0].name: "),
        (provider("{name: A}"), "1:23: extensionProviders[0].name: "),
        (provider("{name: a}, {name: a}"), "1:34: extensionProviders[1].name: `a` is given twice"),
        (provider("{name: a, envoyExtAuthzGrpc: {service: s, port: 0}}"), "1:64: "),
        (provider("{name: a, envoyExtAuthzGrpc: {service: 's/', port: 1}}"), "1:"),
        (provider("{name: a, envoyExtAuthzGrpc: {port: 1}}"), "1:"),
        (provider("{name: a, envoyExtAuthzGrpc: {service: s, port: 1, pathPrefix: /}}"), "1:"),
        (http("pathPrefix: x"), "1:"),
        (http("statusOnError: '299'"), "1:"),
        (http("statusOnError: x"), "1:"),
        (http("timeout: 0s"), "1:"),
        (http("includeRequestHeadersInCheck: ['*']"), "1:"),
        (http("failopen: true"), "1:"),
        (http("includeRequestBodyInCheck: {}"), "1:"),
        (http("includeAdditionalHeadersInCheck: {a: \"b\\nc\"}"), "1:"),
    ] {
        let findings = read(&text).expect_err(&text);
        assert!(findings.iter().any(|f| f.to_string().starts_with(expect)), "{text}: {findings:?}");
    }
    assert!(read(&"x".repeat(5 << 20)).is_err());
    assert!(read(&"[".repeat(1 << 20)).is_err());
}

#[test]
fn access_log_providers() {
    use mesh::{LogFormat, LogService, Sink};
    let config = accepted(
        "defaultProviders: {accessLogging: [own]}\nextensionProviders:\n- {name: own, envoyFileAccessLog: {path: /log, logFormat: {text: '%RESPONSE_CODE%'}}}\n- {name: json, envoyFileAccessLog: {path: /log, logFormat: {labels: {b: '%PROTOCOL%', a: '1'}}}}\n- {name: plain, envoyFileAccessLog: {path: /log}}\n- {name: als, envoyHttpAls: {service: a/logs.a.svc.cluster.local, port: 9000}}\n- {name: otel, envoyOtelAls: {service: otel.b.svc.cluster.local, port: 4317, logName: x, logFormat: {text: y}}}\n",
    );
    assert_eq!(config.default_log_providers, ["own".into()]);
    let file = |format| Sink::File { path: "/log".to_owned(), format };
    let service = |kind, service: &str, port, log_name: &str, body: &str| Sink::Service {
        kind,
        service: service.to_owned(),
        port,
        log_name: log_name.to_owned(),
        body: body.to_owned(),
    };
    for (name, expect) in [
        ("own", file(LogFormat::Text("%RESPONSE_CODE%".to_owned()))),
        ("json", file(LogFormat::Json(r#"{"a":"1","b":"%PROTOCOL%"}"#.to_owned()))),
        ("plain", file(LogFormat::Text(String::new()))),
        ("als", service(LogService::Http, "a/logs.a.svc.cluster.local", 9000, "http_envoy_accesslog", "")),
        ("otel", service(LogService::OpenTelemetry, "otel.b.svc.cluster.local", 4317, "x", "y")),
    ] {
        assert_eq!(config.log_providers.get(name), Some(&expect), "{name}");
    }
    for (text, part) in [
        ("{name: p, envoyFileAccessLog: {}}", "a path is required"),
        ("{name: p, envoyFileAccessLog: {path: /l, logFormat: {text: a, labels: {}}}}", "only one of text"),
        ("{name: p, envoyFileAccessLog: {path: /l}, envoyHttpAls: {service: a, port: 1}}", "only one kind"),
        ("{name: p, envoyTcpAls: {service: a}}", "`0` is not a port"),
        ("{name: p, envoyTcpAls: {service: a/b/c, port: 1}}", "neither HOST nor"),
    ] {
        let findings = read(&format!("extensionProviders: [{text}]\n")).expect_err(text);
        assert!(findings.iter().any(|finding| finding.message.contains(part)), "{text}: {findings:?}");
    }
}
