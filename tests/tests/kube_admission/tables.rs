//! What is refused, admitted and warned of.

use serde_json::{Value, json};

use super::{AP, PA, RA};

/// One line of semantics §1.5 (and of §1.2 to §1.4 where the webhook decides).
pub(crate) struct Refused {
    pub(crate) what: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) spec: String,
    /// Merged into the object.
    pub(crate) more: Value,
    /// In the message: the field and the reason.
    pub(crate) part: &'static str,
}

pub(crate) fn refused() -> Vec<Refused> {
    let row =
        |what, kind, spec: &str, part| Refused { what, kind, spec: spec.to_owned(), more: Value::Null, part };
    let mut rows: Vec<Refused> =
        SPECS.iter().map(|(what, kind, spec, part)| row(what, kind, spec, part)).collect();
    for (field, values) in [
        ("namespaces", "[a]"),
        ("notNamespaces", "[a]"),
        ("serviceAccounts", "[a]"),
        ("notServiceAccounts", "[a]"),
        ("trustDomains", "[a]"),
        ("notTrustDomains", "[a]"),
        ("principals", "[a]"),
        ("notPrincipals", "[a]"),
        ("requestPrincipals", "[a]"),
        ("notRequestPrincipals", "[a]"),
    ] {
        let spec = format!(
            "{{action: CUSTOM, provider: {{name: x}}, rules: [{{from: [{{source: {{{field}: {values}}}}}]}}]}}"
        );
        rows.push(row("an identity with CUSTOM", AP, &spec, "not supported with CUSTOM"));
    }
    for key in [
        "source.namespace",
        "source.serviceAccount",
        "source.trustDomain",
        "source.principal",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[a]",
    ] {
        let spec = format!(
            "{{action: CUSTOM, provider: {{name: x}}, rules: [{{when: [{{key: '{key}', values: [a]}}]}}]}}"
        );
        rows.push(row("a condition with CUSTOM", AP, &spec, "spec.rules[0].when[0].key"));
    }
    for key in [
        "destination.namespace",
        "destination.labels",
        "destination.labels[a]",
        "destination.name",
        "destination.user",
    ] {
        let spec = format!("{{rules: [{{when: [{{key: '{key}', values: [a]}}]}}]}}");
        rows.push(row("a removed key", AP, &spec, "spec.rules[0].when[0].key"));
    }
    for key in [
        "request.headers[]",
        "request.headers[a",
        "request.auth.claims",
        "request.auth.claims[]",
        "experimental.envoy.filters.x",
        "experimental.envoy.filters.x[]",
    ] {
        let spec = format!("{{rules: [{{when: [{{key: '{key}', values: [a]}}]}}]}}");
        rows.push(row("a key of a map", AP, &spec, "spec.rules[0].when[0].key"));
    }
    let long = format!("{{rules: [{{from: [{{source: {{serviceAccounts: ['{}']}}}}]}}]}}", "x".repeat(321));
    rows.push(row("a long service account", AP, &long, "serviceAccounts[0]: a service account has at most"));
    let many = format!("{{rules: [{{from: [{{source: {{serviceAccounts: [{}]}}}}]}}]}}", ["a"; 17].join(","));
    rows.push(row("many service accounts", AP, &many, "serviceAccounts: at most 16"));
    rows.extend(METADATA.iter().map(|(what, kind, spec, more, part)| Refused {
        what,
        kind,
        spec: (*spec).to_owned(),
        more: serde_yaml::from_str(more).expect("YAML"),
        part,
    }));
    let other = json!({"spec2": {}});
    rows.push(Refused {
        what: "a key beside spec",
        kind: PA,
        spec: "{}".into(),
        more: other,
        part: "spec2: unknown field",
    });
    rows
}

#[rustfmt::skip]
const SPECS: &[(&str, &str, &str, &str)] = &[
    ("DENY without rules", AP, "{action: DENY}", "spec.rules: without rules"),
    ("CUSTOM without rules", AP, "{action: CUSTOM, provider: {name: x}}", "spec.rules: without rules"),
    ("no rule", AP, "{rules: [null]}", "spec.rules[0]: nothing is given here"),
    ("the second is no rule", AP, "{rules: [{}, null]}", "spec.rules[1]: nothing is given here"),
    ("no from", AP, "{rules: [{from: [null]}]}", "spec.rules[0].from[0]: nothing"),
    ("no source", AP, "{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source: a source is required"),
    ("no to", AP, "{rules: [{to: [null]}]}", "spec.rules[0].to[0]: nothing"),
    ("no operation", AP, "{rules: [{to: [{}]}]}", "spec.rules[0].to[0].operation: an operation is required"),
    ("from is empty", AP, "{rules: [{from: []}]}", "spec.rules[0].from: an empty list"),
    ("to is empty", AP, "{rules: [{to: []}]}", "spec.rules[0].to: an empty list"),
    ("source without a field", AP, "{rules: [{from: [{source: {}}]}]}", "source: no field is set"),
    ("operation without a field", AP, "{rules: [{to: [{operation: {}}]}]}", "operation: no field is set"),
    ("service accounts and principals", AP, "{rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]}", "service accounts cannot be combined"),
    ("service accounts and namespaces", AP, "{rules: [{from: [{source: {notServiceAccounts: [a], notNamespaces: [b]}}]}]}", "service accounts cannot be combined"),
    ("ipBlocks", AP, "{rules: [{from: [{source: {ipBlocks: [a]}}]}]}", "ipBlocks[0]: `a` is neither an IP address"),
    ("notIpBlocks", AP, "{rules: [{from: [{source: {notIpBlocks: [1.2.3.4/33]}}]}]}", "notIpBlocks[0]: "),
    ("remoteIpBlocks", AP, "{rules: [{from: [{source: {remoteIpBlocks: [1.2.3]}}]}]}", "remoteIpBlocks[0]: "),
    ("every value is named", AP, "{rules: [{from: [{source: {ipBlocks: [1.2.3.4, b, c]}}]}]}", "ipBlocks[1]: `b` is neither an IP address nor a CIDR block; spec.rules[0].from[0].source.ipBlocks[2]: `c`"),
    ("source.ip", AP, "{rules: [{when: [{key: source.ip, values: [a]}]}]}", "when[0].values[0]: `a`"),
    ("remote.ip", AP, "{rules: [{when: [{key: remote.ip, notValues: [a]}]}]}", "when[0].notValues[0]: `a`"),
    ("destination.ip", AP, "{rules: [{when: [{key: destination.ip, values: [a]}]}]}", "when[0].values[0]: `a`"),
    ("ports", AP, "{rules: [{to: [{operation: {ports: ['65536']}}]}]}", "ports[0]: `65536` is not a port number"),
    ("notPorts", AP, "{rules: [{to: [{operation: {notPorts: [http]}}]}]}", "notPorts[0]: `http`"),
    ("destination.port", AP, "{rules: [{when: [{key: destination.port, values: ['-1']}]}]}", "values[0]: `-1`"),
    ("an empty principal", AP, "{rules: [{from: [{source: {principals: ['']}}]}]}", "principals[0]: an empty value"),
    ("an empty path", AP, "{rules: [{to: [{operation: {notPaths: ['']}}]}]}", "notPaths[0]: an empty value"),
    ("an empty condition value", AP, "{rules: [{when: [{key: source.principal, values: ['']}]}]}", "values[0]: an empty value"),
    ("a service account with a wildcard", AP, "{rules: [{from: [{source: {serviceAccounts: ['a*']}}]}]}", "serviceAccounts[0]: `a*`"),
    ("a service account with two slashes", AP, "{rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}", "serviceAccounts[0]: `a/b/c`"),
    ("half a service account", AP, "{rules: [{from: [{source: {serviceAccounts: [a/]}}]}]}", "serviceAccounts[0]: "),
    ("two wildcards in a trust domain", AP, "{rules: [{from: [{source: {trustDomains: ['*a*']}}]}]}", "trustDomains[0]: "),
    ("a wildcard inside a trust domain", AP, "{rules: [{from: [{source: {trustDomains: ['a*b']}}]}]}", "trustDomains[0]: `a*b`"),
    ("a slash in a trust domain", AP, "{rules: [{from: [{source: {notTrustDomains: [a/b]}}]}]}", "notTrustDomains[0]: `a/b`"),
    ("an operator after **", AP, "{rules: [{to: [{operation: {paths: ['/a/{**}/{*}']}}]}]}", "paths[0]: "),
    ("a brace in a path", AP, "{rules: [{to: [{operation: {paths: ['/{a}']}}]}]}", "paths[0]: "),
    ("an operator beside text", AP, "{rules: [{to: [{operation: {paths: ['/a{*}']}}]}]}", "paths[0]: "),
    ("a star in a template", AP, "{rules: [{to: [{operation: {paths: ['/{*}/a*']}}]}]}", "paths[0]: "),
    ("a space in a template", AP, "{rules: [{to: [{operation: {paths: ['/{*}/a b']}}]}]}", "paths[0]: "),
    ("a condition without a key", AP, "{rules: [{when: [{values: [a]}]}]}", "when[0].key: a condition needs a key"),
    ("a condition without values", AP, "{rules: [{when: [{key: source.ip}]}]}", "when[0]: values or notValues are required"),
    ("an unknown key", AP, "{rules: [{when: [{key: source.user, values: [a]}]}]}", "when[0].key: unknown key `source.user`"),
    ("CUSTOM without a provider", AP, "{action: CUSTOM, rules: [{}]}", "spec.provider: CUSTOM needs"),
    ("CUSTOM with an empty provider", AP, "{action: CUSTOM, provider: {name: ''}, rules: [{}]}", "spec.provider: CUSTOM needs"),
    ("a provider without CUSTOM", AP, "{provider: {name: x}}", "spec.provider: a provider can only be given with CUSTOM"),
    ("an unknown action", AP, "{action: allow}", "spec.action: unknown variant `allow`"),
    ("an unknown field", AP, "{rule: []}", "spec.rule: unknown field `rule`"),
    ("two attachments", AP, "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: s}]}", "spec"),
    ("an unknown target", AP, "{targetRefs: [{kind: Pod, name: p}]}", "spec.targetRefs[0]"),
    ("a target elsewhere", AP, "{targetRefs: [{kind: Service, name: p, namespace: other}]}", "spec.targetRefs[0].namespace"),
    ("a wildcard in a selector", AP, "{selector: {matchLabels: {a: '*'}}}", "spec.selector.matchLabels"),
    ("a selector without a key", AP, "{selector: {matchLabels: {'': b}}}", "spec.selector.matchLabels"),
    ("an unknown mode", PA, "{mtls: {mode: Strict}}", "spec.mtls.mode: unknown variant `Strict`"),
    ("ports without a selector", PA, "{portLevelMtls: {80: {mode: STRICT}}}", "spec.portLevelMtls"),
    ("port 0", PA, "{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: STRICT}}}", "spec.portLevelMtls"),
    ("port 65536", PA, "{selector: {matchLabels: {a: b}}, portLevelMtls: {65536: {mode: STRICT}}}", "spec.portLevelMtls"),
    ("targetRefs", PA, "{targetRefs: [{kind: Service, name: s}]}", "spec.targetRefs: unknown field"),
    ("neither issuer nor jwksUri", RA, "{jwtRules: [{audiences: [a]}]}", "spec.jwtRules[0]"),
    ("jwksUri and jwks", RA, "{jwtRules: [{issuer: i, jwksUri: 'https://i', jwks: '{}'}]}", "spec.jwtRules[0]"),
    ("jwksUri of another scheme", RA, "{jwtRules: [{issuer: i, jwksUri: 'ftp://i'}]}", "spec.jwtRules[0].jwksUri"),
    ("jwks that is none", RA, "{jwtRules: [{issuer: i, jwks: nonsense}]}", "spec.jwtRules[0].jwks"),
    ("an empty audience", RA, "{jwtRules: [{issuer: i, audiences: ['']}]}", "spec.jwtRules[0].audiences[0]"),
    ("a header without a name", RA, "{jwtRules: [{issuer: i, fromHeaders: [{prefix: a}]}]}", "spec.jwtRules[0].fromHeaders[0]"),
    ("a header that is none", RA, "{jwtRules: [{issuer: i, outputClaimToHeaders: [{header: 'a b', claim: c}]}]}", "spec.jwtRules[0].outputClaimToHeaders[0].header"),
    ("a timeout of nothing", RA, "{jwtRules: [{issuer: i, timeout: 0s}]}", "spec.jwtRules[0].timeout"),
];

#[rustfmt::skip]
const METADATA: &[(&str, &str, &str, &str, &str)] = &[
    ("dry run of a PeerAuthentication", PA, "{}", "{metadata: {annotations: {istio.io/dry-run: 'true'}}}", "only an AuthorizationPolicy can be a dry run"),
    ("dry run of CUSTOM", AP, "{action: CUSTOM, provider: {name: x}, rules: [{}]}", "{metadata: {annotations: {istio.io/dry-run: 'true'}}}", "only ALLOW and DENY can be a dry run"),
    ("dry run of AUDIT", AP, "{action: AUDIT}", "{metadata: {annotations: {istio.io/dry-run: 'true'}}}", "only ALLOW and DENY can be a dry run"),
    ("a dry run that is neither", AP, "{}", "{metadata: {annotations: {istio.io/dry-run: 'yes'}}}", "neither true nor false"),
    ("another's annotation", AP, "{}", "{metadata: {annotations: {internal.istio.io/parents: a}}}", "internal.istio.io/parents"),
    ("another's annotation", PA, "{}", "{metadata: {annotations: {internal.istio.io/parent-namespace: a}}}", "internal.istio.io/parent-namespace"),
    ("the probe", RA, "{}", "{metadata: {annotations: {internal.istio.io/webhook-always-reject: 'true'}}}", "internal.istio.io/webhook-always-reject"),
];

/// Legal in both versions.
#[rustfmt::skip]
pub(crate) fn admitted() -> Vec<(&'static str, &'static str)> {
    vec![
        (AP, "{}"),
        (AP, "{action: AUDIT}"),
        (AP, "{action: DENY, rules: [{}]}"),
        (AP, "{rules: [{from: [{source: {principals: [a], notNamespaces: [b], ipBlocks: [1.2.3.4, '::1', 10.0.0.0/8]}}], to: [{operation: {hosts: ['*.a'], ports: ['0', '65535'], methods: [GET], paths: ['/a*', '/{*}/b/{**}']}}], when: [{key: 'request.headers[x]', notValues: ['y*']}]}]}"),
        (AP, "{rules: [{from: [{source: {serviceAccounts: [a, ns/b], trustDomains: ['*.example']}}]}]}"),
        (AP, "{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/a]}}]}]}"),
        (AP, "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]}"),
        (PA, "{}"),
        (PA, "{mtls: {mode: UNSET}}"),
        (PA, "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}"),
        (RA, "{}"),
        (RA, "{jwtRules: [{issuer: i, jwksUri: 'https://i/keys', audiences: [a], fromHeaders: [{name: x, prefix: 'y '}], fromParams: [p], forwardOriginalToken: true, timeout: 2s}]}"),
        (RA, "{selector: {matchLabels: {app: web}}, jwtRules: [{jwksUri: 'https://i/keys'}]}"),
    ]
}

/// Legal but moot, with the world of the test: `web` (HTTP, 80 to 8080) and `db` (TCP, 80 to 5432).
#[rustfmt::skip]
pub(crate) fn warned() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    vec![
        ("mTLS under PERMISSIVE", AP, "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {principals: [a]}}]}]}", "principals: web is PERMISSIVE: plaintext callers are NOT denied"),
        ("not under PERMISSIVE", AP, "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {notPrincipals: [a]}}]}]}", "EVERY plaintext caller is allowed"),
        ("selects nothing", AP, "{selector: {matchLabels: {app: absent}}}", "selects nothing now"),
        ("HTTP on TCP", AP, "{selector: {matchLabels: {app: db}}, rules: [{to: [{operation: {methods: [GET]}}]}]}", "port 5432 of db is TCP: there the rule allows nothing"),
        ("a Service's port", AP, "{selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: ['80']}}]}]}", "80 is the Service's port; policies name the workload's own, 8080"),
        ("nobody's port", PA, "{selector: {matchLabels: {app: web}}, portLevelMtls: {81: {mode: STRICT}}}", "no selected workload is known to serve port 81"),
        ("no provider", AP, "{action: CUSTOM, provider: {name: absent}, rules: [{}]}", "no usable ext_authz provider"),
        ("tokens nobody asks for", RA, "{selector: {matchLabels: {app: web}}, jwtRules: [{issuer: i, jwksUri: 'https://i/keys'}]}", "requests without a token pass"),
        ("a selector without labels", PA, "{selector: {}}", "no labels: the policy applies to the whole namespace"),
        ("DENY of HTTP alone", AP, "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}", "only HTTP attributes"),
    ]
}
