//! Specs, and who refuses them: the schema (semantics §1.2–1.5, columns "schema" and "CEL"), or only whoever reads the
//! object (column "webhook").

use serde_json::{Value, json};

/// `(kind, spec)`: the schema accepts it and so do we.
pub(crate) const ACCEPTED: &[(&str, &str)] = &[
    ("AuthorizationPolicy", "{}"),
    ("AuthorizationPolicy", "{rules: []}"),
    ("AuthorizationPolicy", "{rules: [{}]}"),
    ("AuthorizationPolicy", "{action: ALLOW}"),
    ("AuthorizationPolicy", "{action: AUDIT}"),
    ("AuthorizationPolicy", "{action: null, rules: [{}]}"),
    ("AuthorizationPolicy", "{action: DENY, rules: [{}]}"),
    (
        "AuthorizationPolicy",
        "{action: CUSTOM, provider: {name: p}, rules: [{to: [{operation: {paths: [/a]}}]}]}",
    ),
    ("AuthorizationPolicy", "{selector: {}, rules: [{}]}"),
    ("AuthorizationPolicy", "{selector: {matchLabels: {}}, rules: [{}]}"),
    ("AuthorizationPolicy", "{selector: {matchLabels: {app: web, example.com/tier: ''}}, rules: [{}]}"),
    ("AuthorizationPolicy", "{targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: g}}"),
    (
        "AuthorizationPolicy",
        "{targetRefs: [{kind: Service, name: s, namespace: ''}, {group: core, kind: Service, name: s}]}",
    ),
    ("AuthorizationPolicy", "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: s}]}"),
    (
        "AuthorizationPolicy",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: waypoint}]}",
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{from: [{source: {principals: ['*'], notPrincipals: [a], requestPrincipals: ['i/s'], notRequestPrincipals: ['*'], namespaces: [n], notNamespaces: ['m*'], ipBlocks: [10.0.0.0/8, '::1'], notIpBlocks: [10.1.1.1], remoteIpBlocks: [1.2.3.4], notRemoteIpBlocks: [1.2.0.0/16], trustDomains: ['*.example'], notTrustDomains: [a]}}]}]}",
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{from: [{source: {serviceAccounts: [a, b/c], notServiceAccounts: [d], ipBlocks: [10.0.0.1], trustDomains: [td]}}]}]}",
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{to: [{operation: {hosts: ['*.example'], notHosts: [a], ports: ['80', '0', '65535'], notPorts: ['1'], methods: [GET], notMethods: [PUT], paths: [/a, '/b/*', '/c/{*}/d', '/e/{**}'], notPaths: ['*.js']}}]}]}",
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{when: [{key: source.ip, values: [10.0.0.1]}, {key: 'request.headers[X-A]', notValues: ['*']}, {key: 'request.auth.claims[a][b]', values: [c]}, {key: connection.sni, values: ['*.example']}, {key: destination.port, values: ['80']}]}]}",
    ),
    // Unknown fields are pruned: what is left is legal.
    ("AuthorizationPolicy", "{rules: [{}], priority: 7}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {paths: [/a], regex: x}}], name: r}]}"),
    ("PeerAuthentication", "{}"),
    ("PeerAuthentication", "{mtls: {}}"),
    ("PeerAuthentication", "{mtls: null}"),
    ("PeerAuthentication", "{mtls: {mode: UNSET}}"),
    ("PeerAuthentication", "{mtls: {mode: DISABLE}}"),
    ("PeerAuthentication", "{mtls: {mode: PERMISSIVE}}"),
    ("PeerAuthentication", "{mtls: {mode: STRICT}}"),
    (
        "PeerAuthentication",
        "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {1: {mode: DISABLE}, 65535: {}, 8080: {mode: PERMISSIVE}}}",
    ),
    ("RequestAuthentication", "{}"),
    ("RequestAuthentication", "{jwtRules: []}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a}]}"),
    ("RequestAuthentication", "{jwtRules: [{jwksUri: 'https://a.example/keys'}]}"),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, jwksUri: 'http://a:8080'}, {issuer: b, jwks_uri: 'HTTPS://b/'}]}",
    ),
    // The public half of the example in RFC 7517, appendix A.1.
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"EC\", \"crv\": \"P-256\", \"x\": \"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\", \"y\": \"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\"}]}'}]}",
    ),
    (
        "RequestAuthentication",
        "{selector: {matchLabels: {a: b}}, jwtRules: [{issuer: a, audiences: [x, y], fromHeaders: [{name: h}, {name: i, prefix: 'Bearer '}], fromParams: [p], fromCookies: [c], outputPayloadToHeader: o, forwardOriginalToken: true, outputClaimToHeaders: [{header: X_a-1, claim: a.b}], spaceDelimitedClaims: [groups]}]}",
    ),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, timeout: 1ms}, {issuer: b, timeout: 1m30s}, {issuer: c, timeout: 0.5s}]}",
    ),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, presence: REQUIRED}, {issuer: b, presence: OPTIONAL}]}",
    ),
    (
        "RequestAuthentication",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}], jwtRules: [{issuer: a}]}",
    ),
    ("Sidecar", "{}"),
    ("Sidecar", "{workloadSelector: {labels: {a: b}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"),
    (
        "Sidecar",
        "{ingress: [{port: {number: 80, protocol: HTTP, name: a}, defaultEndpoint: '127.0.0.1:81', captureMode: IPTABLES, connectionPool: {tcp: {maxConnections: 1}}}], egress: [{port: {number: 80, protocol: HTTP, name: a}, bind: 10.0.0.1, hosts: ['./*']}, {hosts: ['*/*.a', '~/*']}]}",
    ),
    ("DestinationRule", "{host: reviews}"),
    (
        "DestinationRule",
        "{host: '*.local', exportTo: ['.'], workloadSelector: {matchLabels: {a: b}}, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /r, caCrl: /l, sni: a, subjectAltNames: [b]}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, insecureSkipVerify: true}}, {port: {number: 81}, connectionPool: {tcp: {maxConnections: 1}}}]}, subsets: [{name: v1, labels: {a: b}, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}]}",
    ),
    (
        "DestinationRule",
        "{host: a.b, trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {http: {maxRetries: 1}}, outlierDetection: {interval: 1s}, retryBudget: {minRetryConcurrency: 3}}}",
    ),
    ("DestinationRule", "{host: a.b, trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}}"),
    ("WorkloadEntry", "{address: 10.0.0.1}"),
    ("WorkloadEntry", "{network: vms}"),
    (
        "WorkloadEntry",
        "{address: '2001:db8::1', ports: {http: 8080, x9-y: 65535}, labels: {app: web}, serviceAccount: web, network: n, locality: r/z/s, weight: 4294967295}",
    ),
];

/// `(kind, spec)`: the schema accepts it, the webhook does not (or a difference is documented), and neither do we.
pub(crate) const WEBHOOK: &[(&str, &str)] = &[
    ("AuthorizationPolicy", "{action: DENY}"),
    ("AuthorizationPolicy", "{action: DENY, rules: []}"),
    ("AuthorizationPolicy", "{action: CUSTOM, provider: {name: p}}"),
    ("AuthorizationPolicy", "{action: CUSTOM, rules: [{}]}"),
    ("AuthorizationPolicy", "{action: CUSTOM, provider: {}, rules: [{}]}"),
    ("AuthorizationPolicy", "{action: CUSTOM, provider: {name: ''}, rules: [{}]}"),
    ("AuthorizationPolicy", "{provider: {name: p}, rules: [{}]}"),
    (
        "AuthorizationPolicy",
        "{action: CUSTOM, provider: {name: p}, rules: [{from: [{source: {principals: [a]}}]}]}",
    ),
    (
        "AuthorizationPolicy",
        "{action: CUSTOM, provider: {name: p}, rules: [{from: [{source: {notNamespaces: [a]}}]}]}",
    ),
    (
        "AuthorizationPolicy",
        "{action: CUSTOM, provider: {name: p}, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
    ),
    (
        "AuthorizationPolicy",
        "{action: CUSTOM, provider: {name: p}, rules: [{when: [{key: source.principal, values: [a]}]}]}",
    ),
    (
        "AuthorizationPolicy",
        "{action: CUSTOM, provider: {name: p}, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}",
    ),
    ("AuthorizationPolicy", "{rules: [{from: []}]}"),
    ("AuthorizationPolicy", "{rules: [{to: []}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: null}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {principal: [a]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {path: [/a]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {notRemoteIpBlocks: [a.example]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: source.ip, values: [x]}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: remote.ip, notValues: [x]}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: destination.ip, values: ['1.2.3']}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {ports: [http]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {notPorts: ['65536']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: destination.port, values: ['-1']}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {hosts: ['']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {principals: [a, '']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {serviceAccounts: ['a*']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {notServiceAccounts: [/a]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {trustDomains: ['a*b']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {trustDomains: ['*a*']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {notTrustDomains: [a/b]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {paths: ['/a/{**}/{*}']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {paths: ['/{a}']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {notPaths: ['/a{*}']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {paths: ['/{*}/a*']}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: '', values: [a]}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: source.ip}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: source.adress, values: [a]}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: 'destination.labels[a]', values: [b]}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: destination.user, values: [b]}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: 'request.headers[]', values: [b]}]}]}"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: request.headers, values: [b]}]}]}"),
    ("AuthorizationPolicy", "{targetRefs: [{kind: Deployment, group: apps, name: d}]}"),
    ("AuthorizationPolicy", "{targetRef: {kind: Gateway, name: g}}"),
    ("RequestAuthentication", "{jwtRules: [{}]}"),
    ("RequestAuthentication", "{jwtRules: [{audiences: [a]}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwks: nonsense}]}"),
    // Narrower than Istio: docs/adr/0006-narrower-than-istio.md.
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwks: '{\"keys\": []}'}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'https:///keys'}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'https://a:70000/'}]}"),
    ("Sidecar", "{egress: [{hosts: [a.b]}]}"),
    ("Sidecar", "{egress: [{hosts: ['*/*']}, {hosts: ['./*']}]}"),
    ("Sidecar", "{ingress: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}]}"),
    ("DestinationRule", "{host: 'a.*.b'}"),
    ("DestinationRule", "{host: a, exportTo: ['*', b]}"),
    ("DestinationRule", "{host: a, trafficPolicy: {}}"),
    ("DestinationRule", "{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}"),
    (
        "DestinationRule",
        "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: x, caCertificates: /r}}}",
    ),
    ("DestinationRule", "{host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}}"),
    ("DestinationRule", "{host: a, subsets: [{name: v1}, {name: v1}]}"),
    ("DestinationRule", "{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']}"),
    // A Unix socket and a host name are legal in Istio. Here such an entry has no address (docs/compatibility.md).
    ("WorkloadEntry", "{address: vm.example}"),
    ("WorkloadEntry", "{address: 'unix:///run/a.sock'}"),
    ("WorkloadEntry", "{address: 'unix://@abstract'}"),
];

/// `(kind, spec, what the refusal must name)`: the schema refuses it, and so do we, where nobody else has.
pub(crate) const REFUSED: &[(&str, &str, &str)] = &[
    ("AuthorizationPolicy", "{action: PERMIT}", "spec.action"),
    ("AuthorizationPolicy", "{action: deny}", "spec.action"),
    ("AuthorizationPolicy", "{action: ''}", "spec.action"),
    ("AuthorizationPolicy", "{action: [DENY]}", "spec.action"),
    ("AuthorizationPolicy", "{provider: p}", "spec.provider"),
    ("AuthorizationPolicy", "{selector: {}, targetRef: {kind: Service, name: s}}", "only one of"),
    ("AuthorizationPolicy", "{selector: {}, targetRefs: [{kind: Service, name: s}]}", "only one of"),
    (
        "AuthorizationPolicy",
        "{targetRef: {kind: Service, name: s}, targetRefs: [{kind: Service, name: s}]}",
        "only one of",
    ),
    ("AuthorizationPolicy", "{selector: {matchLabels: {'a*': b}}}", "wildcards"),
    ("AuthorizationPolicy", "{selector: {matchLabels: {a: 'b*'}}}", "wildcards"),
    ("AuthorizationPolicy", "{selector: {matchLabels: {'': b}}}", "a label needs a name"),
    ("AuthorizationPolicy", "{selector: {matchLabels: {a: 1}}}", "spec.selector.matchLabels.a"),
    ("AuthorizationPolicy", "{selector: {matchLabels: [a]}}", "spec.selector.matchLabels"),
    ("AuthorizationPolicy", "{targetRefs: [{kind: Service}]}", "spec.targetRefs[0].name"),
    ("AuthorizationPolicy", "{targetRefs: [{name: s}]}", "spec.targetRefs[0].kind"),
    ("AuthorizationPolicy", "{targetRef: {kind: Service, name: ''}}", "spec.targetRef.name"),
    ("AuthorizationPolicy", "{targetRef: {kind: 'a b', name: s}}", "spec.targetRef.kind"),
    ("AuthorizationPolicy", "{targetRef: {kind: '', name: s}}", "spec.targetRef.kind"),
    ("AuthorizationPolicy", "{targetRef: {group: UPPER, kind: Service, name: s}}", "spec.targetRef.group"),
    ("AuthorizationPolicy", "{targetRef: {kind: Service, name: s, namespace: other}}", "its own namespace"),
    ("AuthorizationPolicy", "{rules: {}}", "spec.rules"),
    ("AuthorizationPolicy", "{rules: [[]]}", "spec.rules[0]"),
    ("AuthorizationPolicy", "{rules: [null]}", "spec.rules[0]"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {principals: a}}]}]}", "source.principals"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {principals: [1]}}]}]}", "source.principals[0]"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {ports: [80]}}]}]}", "operation.ports[0]"),
    ("AuthorizationPolicy", "{rules: [{when: [{values: [a]}]}]}", "when[0].key"),
    (
        "AuthorizationPolicy",
        "{rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]}",
        "cannot be combined",
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{from: [{source: {serviceAccounts: [a], notNamespaces: [b]}}]}]}",
        "cannot be combined",
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{from: [{source: {notServiceAccounts: [a], notPrincipals: [b]}}]}]}",
        "cannot be combined",
    ),
    (
        "AuthorizationPolicy",
        "{rules: [{}, {from: [{source: {notServiceAccounts: [a], namespaces: [b]}}]}]}",
        "spec.rules[1].from[0].source",
    ),
    ("PeerAuthentication", "{mtls: STRICT}", "spec.mtls"),
    ("PeerAuthentication", "{mtls: {mode: strict}}", "spec.mtls.mode"),
    ("PeerAuthentication", "{mtls: {mode: ''}}", "spec.mtls.mode"),
    ("PeerAuthentication", "{mtls: {mode: 3}}", "spec.mtls.mode"),
    ("PeerAuthentication", "{portLevelMtls: {80: {mode: STRICT}}}", "a selector that has labels"),
    (
        "PeerAuthentication",
        "{selector: {}, portLevelMtls: {80: {mode: STRICT}}}",
        "a selector that has labels",
    ),
    (
        "PeerAuthentication",
        "{selector: {matchLabels: {}}, portLevelMtls: {80: {mode: STRICT}}}",
        "a selector that has labels",
    ),
    ("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}", "spec.portLevelMtls"),
    ("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {}}}", "from 1 to 65535"),
    (
        "PeerAuthentication",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {65536: {}}}",
        "from 1 to 65535",
    ),
    ("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {-1: {}}}", "from 1 to 65535"),
    (
        "PeerAuthentication",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {}}}",
        "spec.portLevelMtls",
    ),
    (
        "PeerAuthentication",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: ON}}}",
        "spec.portLevelMtls.80.mode",
    ),
    ("RequestAuthentication", "{jwtRules: [{issuer: ''}]}", "spec.jwtRules[0].issuer"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, audiences: ['']}]}", "audiences[0]"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: ''}]}", "jwksUri"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'ftp://a/'}]}", "http or https"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: a.example/keys}]}", "jwksUri"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'http://a:x/'}]}", "jwksUri"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwks_uri: 'file:///etc'}]}", "jwks_uri"),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, jwksUri: 'http://a', jwks: '{\"keys\": []}'}]}",
        "only one of",
    ),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, jwksUri: 'http://a', jwks_uri: 'http://a'}]}",
        "only one of",
    ),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, fromHeaders: [{prefix: x}]}]}", "fromHeaders[0].name"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, fromHeaders: [{name: ''}]}]}", "fromHeaders[0].name"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, fromParams: ['']}]}", "fromParams[0]"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, fromCookies: ['']}]}", "fromCookies[0]"),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, forwardOriginalToken: 'true'}]}",
        "forwardOriginalToken",
    ),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, outputClaimToHeaders: [{header: a}]}]}",
        "outputClaimToHeaders[0].claim",
    ),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, outputClaimToHeaders: [{claim: a}]}]}",
        "outputClaimToHeaders[0].header",
    ),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, outputClaimToHeaders: [{header: 'a b', claim: a}]}]}",
        "outputClaimToHeaders[0].header",
    ),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, outputClaimToHeaders: [{header: a, claim: ''}]}]}",
        "outputClaimToHeaders[0].claim",
    ),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, timeout: 0s}]}", "at least 1ms"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, timeout: -5s}]}", "at least 1ms"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, timeout: '5'}]}", "timeout"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, timeout: 5}]}", "timeout"),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: a, spaceDelimitedClaims: ['']}]}",
        "spaceDelimitedClaims[0]",
    ),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, presence: MAYBE}]}", "presence"),
    ("Sidecar", "{egress: [{}]}", "hosts"),
    ("Sidecar", "{ingress: [{defaultEndpoint: '127.0.0.1:1'}]}", "port"),
    ("Sidecar", "{outboundTrafficPolicy: {mode: ANY}}", "mode"),
    ("Sidecar", "{egress: [{hosts: a}]}", "hosts"),
    ("DestinationRule", "{trafficPolicy: {tls: {mode: DISABLE}}}", "spec.host"),
    ("DestinationRule", "{host: 1}", "spec.host"),
    ("DestinationRule", "{host: a, trafficPolicy: {tls: {mode: simple}}}", "spec.trafficPolicy.tls.mode"),
    ("DestinationRule", "{host: a, trafficPolicy: {tls: {mode: ''}}}", "spec.trafficPolicy.tls.mode"),
    ("DestinationRule", "{host: a, trafficPolicy: {tls: {subjectAltNames: a}}}", "subjectAltNames"),
    ("DestinationRule", "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: '80'}}]}}", "number"),
    ("DestinationRule", "{host: a, workloadSelector: {matchLabels: {a: '*'}}}", "wildcards"),
    ("DestinationRule", "{host: a, subsets: [{labels: {a: b}}]}", "name"),
    ("WorkloadEntry", "{address: 10.0.0.1, ports: {a: 0}}", "from 1 to 65535"),
    ("WorkloadEntry", "{address: 10.0.0.1, ports: {a: 65536}}", "from 1 to 65535"),
    ("WorkloadEntry", "{address: 10.0.0.1, ports: {a: '80'}}", "spec.ports.a"),
    ("WorkloadEntry", "{address: 'unix://run'}", "absolute path"),
    ("WorkloadEntry", "{address: 'unix:///run/'}", "not a folder"),
    ("WorkloadEntry", "{address: 'unix:///run/a', ports: {a: 1}}", "has no ports"),
    ("WorkloadEntry", "{address: 10.0.0.1, weight: -1}", "spec.weight"),
];

/// `(kind, spec, what the refusal must name)`: the schema refuses it, so that nobody needs our opinion, which is milder.
pub(crate) const LENIENT: &[(&str, &str, &str)] = &[
    // An empty list of targets is no target.
    ("AuthorizationPolicy", "{selector: {}, targetRefs: []}", "only one of"),
    // An empty list of identities demands nothing.
    (
        "AuthorizationPolicy",
        "{rules: [{from: [{source: {serviceAccounts: [a], principals: []}}]}]}",
        "cannot be combined",
    ),
    // Such a workload has no address, and nothing is sent to it.
    ("WorkloadEntry", "{}", "an address is required"),
    ("WorkloadEntry", "{address: 10.0.0.1, ports: {a_b: 80}}", "a port's name"),
];

/// Limits: `(kind, spec at the limit, spec beyond it, what the refusal must name)`.
pub(crate) fn limits() -> Vec<(&'static str, Value, Value, &'static str)> {
    let rules = |n: usize| json!({"rules": vec![json!({}); n]});
    let from = |n: usize| json!({"rules": [{"from": vec![json!({"source": {"namespaces": ["a"]}}); n]}]});
    let accounts = |n: usize| json!({"rules": [{"from": [{"source": {"serviceAccounts": vec!["a"; n]}}]}]});
    let account =
        |n: usize| json!({"rules": [{"from": [{"source": {"notServiceAccounts": ["a".repeat(n)]}}]}]});
    let targets = |n: usize| json!({"targetRefs": vec![json!({"kind": "Service", "name": "s"}); n]});
    let target = |n: usize| json!({"targetRef": {"kind": "Service", "name": "s".repeat(n)}});
    let label = |n: usize| json!({"selector": {"matchLabels": {"a": "b".repeat(n)}}});
    let labels = |n: usize| {
        let labels: serde_json::Map<_, _> = (0..n).map(|i| (format!("l{i}"), json!("v"))).collect();
        json!({"selector": {"matchLabels": labels}})
    };
    let tokens = |n: usize| json!({"jwtRules": vec![json!({"issuer": "a"}); n]});
    let claims = |n: usize| json!({"jwtRules": [{"issuer": "a", "spaceDelimitedClaims": vec!["c"; n]}]});
    let uri = |n: usize| {
        let head = "https://a/";
        json!({"jwtRules": [{"issuer": "a", "jwksUri": format!("{head}{}", "k".repeat(n - head.len()))}]})
    };
    vec![
        ("AuthorizationPolicy", rules(512), rules(513), "spec.rules"),
        ("AuthorizationPolicy", from(512), from(513), "spec.rules[0].from"),
        ("AuthorizationPolicy", accounts(16), accounts(17), "source.serviceAccounts"),
        ("AuthorizationPolicy", account(320), account(321), "source.notServiceAccounts[0]"),
        ("AuthorizationPolicy", targets(16), targets(17), "spec.targetRefs"),
        ("AuthorizationPolicy", target(253), target(254), "spec.targetRef.name"),
        ("PeerAuthentication", label(63), label(64), "spec.selector.matchLabels.a"),
        ("RequestAuthentication", labels(4096), labels(4097), "spec.selector.matchLabels"),
        ("RequestAuthentication", tokens(4096), tokens(4097), "spec.jwtRules"),
        ("RequestAuthentication", claims(64), claims(65), "spaceDelimitedClaims"),
        ("RequestAuthentication", uri(2048), uri(2049), "jwksUri"),
    ]
}
