//! Which rule decided, as the Envoy that decided wrote it into its access log. Nothing is guessed here.

use std::path::Path;

use serde::Deserialize;

/// One line, as far as it says who decided what. Fields: `xds::build`'s default JSON format.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Line {
    request_id: Option<String>,
    response_code_details: Option<String>,
    connection_termination_details: Option<String>,
    downstream_transport_failure_reason: Option<String>,
    http_policy: Option<String>,
    tcp_policy: Option<String>,
    downstream_peer_uri_san: Option<String>,
    downstream_remote_address: Option<String>,
    downstream_local_address: Option<String>,
    upstream_host: Option<String>,
    pub(super) method: Option<String>,
    /// As the filters saw it: normalised.
    pub(super) path: Option<String>,
}

/// How to find a call.
#[derive(Clone, Debug)]
pub(super) enum Find<'a> {
    /// A request by its `x-request-id`.
    Request(&'a str),
    /// A connection by the caller's own address.
    From(std::net::SocketAddr),
    /// The last connection of an identity to a port.
    Peer { spiffe_id: String, port: u16 },
}

/// Who decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    /// A rule of an AuthorizationPolicy, as `NAMESPACE/NAME rule N`.
    Rule(String),
    /// No ALLOW rule matched.
    Default,
    /// The token check, with its reason.
    Token(String),
    /// No filter chain for such a connection: plaintext under STRICT.
    NoChain,
    /// The TLS handshake, with its reason.
    Tls(String),
    /// Passed, and the log names no rule: Envoy does not for raw TCP.
    Passed,
    /// Something else that Envoy says.
    Other(String),
}

/// The last line about a call; `None` while there is none (Envoy writes its log in batches).
pub(super) fn read(log: &Path, find: &Find<'_>, inbound_ports: &[u16]) -> Option<Line> {
    let text = std::fs::read(log).ok()?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| line.first() == Some(&b'{'));
    let mut lines = lines.rev().filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    lines.find(|line| inbound_ports.contains(&line.local_port()) && line.is(find))
}

impl Line {
    pub(super) fn local_port(&self) -> u16 {
        port(self.downstream_local_address.as_deref())
    }

    fn is(&self, find: &Find<'_>) -> bool {
        match find {
            Find::Request(id) => self.request_id.as_deref() == Some(id),
            Find::From(address) => self.downstream_remote_address.as_deref() == Some(&address.to_string()),
            Find::Peer { spiffe_id, port } => {
                self.local_port() == *port && self.downstream_peer_uri_san.as_deref() == Some(spiffe_id)
            }
        }
    }

    pub(super) fn decided(&self) -> Option<Decided> {
        let details = [&self.response_code_details, &self.connection_termination_details];
        for details in details.into_iter().flatten() {
            if let Some(policy) = between(details, "rbac_access_denied_matched_policy[", "]") {
                return Some(rule(policy).map_or(Decided::Default, Decided::Rule));
            }
            if let Some(reason) = between(details, "jwt_authn_access_denied{", "}") {
                return Some(Decided::Token(reason.replace('_', " ")));
            }
            if details == "filter_chain_not_found" {
                return Some(Decided::NoChain);
            }
        }
        if let Some(reason) =
            self.downstream_transport_failure_reason.as_deref().filter(|reason| !reason.is_empty())
        {
            return Some(Decided::Tls(self::reason(reason)));
        }
        let allowed = self.http_policy.iter().chain(&self.tcp_policy).find_map(|policy| rule(policy));
        let passed = || self.upstream_host.as_ref().map(|_| Decided::Passed);
        let other = || self.response_code_details.clone().map(Decided::Other);
        allowed.map(Decided::Rule).or_else(other).or_else(passed)
    }
}

/// The telling part of `TLS_error:|NUMBER:SSL_routines:OPENSSL_internal:NAME:MORE:TLS_error_end`.
fn reason(text: &str) -> String {
    if text.contains("SAN_matcher") {
        let names = between(text, "SANs_are_[", "]").unwrap_or_default();
        let domain = names.strip_prefix("spiffe://").and_then(|name| name.split('/').next());
        return format!("trust domain {} is not ours", domain.unwrap_or("of nobody"));
    }
    let text =
        text.trim_end_matches(":TLS_error_end").rsplit(':').find(|part| !part.is_empty()).unwrap_or(text);
    text.trim_matches('_').replace('_', " ")
}

fn port(address: Option<&str>) -> u16 {
    address.and_then(|a| a.rsplit_once(':')).and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
}

/// What stands between `start` and the last `end`.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = text.split_once(start)?.1;
    rest.rsplit_once(end).map(|(inner, _)| inner)
}

/// `ns[default]-policy[orders-policy]-rule[0]` as `default/orders-policy rule 0`; `None` if it is not written so.
pub(super) fn rule(policy: &str) -> Option<String> {
    let rest = policy.strip_prefix("ns[")?;
    let (namespace, rest) = rest.split_once(']')?;
    if let Some(name) = rest.strip_prefix("-peerauthentication[") {
        return Some(format!("{namespace}/{} STRICT", name.split_once(']')?.0));
    }
    let (name, rest) = rest.strip_prefix("-policy[")?.rsplit_once("]-rule[")?;
    Some(format!("{namespace}/{name} rule {}", rest.split(']').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deciding_rule_is_what_envoy_wrote() {
        let line = |json: &str| serde_json::from_str::<Line>(json).unwrap().decided();
        let rule = |text: &str| Some(Decided::Rule(text.to_owned()));
        for (json, expected) in [
            (
                r#"{"response_code_details":"via_upstream","http_policy":"ns[default]-policy[orders-policy]-rule[0]"}"#,
                rule("default/orders-policy rule 0"),
            ),
            (
                r#"{"response_code_details":"rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[3]]"}"#,
                rule("a/b rule 3"),
            ),
            (
                r#"{"response_code_details":"rbac_access_denied_matched_policy[ns[a]-peerauthentication[b]-strict]"}"#,
                rule("a/b STRICT"),
            ),
            (
                r#"{"response_code_details":"rbac_access_denied_matched_policy[none]"}"#,
                Some(Decided::Default),
            ),
            (
                r#"{"connection_termination_details":"rbac_access_denied_matched_policy[none]"}"#,
                Some(Decided::Default),
            ),
            (
                r#"{"response_code_details":"jwt_authn_access_denied{Jwt_is_expired}","http_policy":null}"#,
                Some(Decided::Token("Jwt is expired".to_owned())),
            ),
            (r#"{"response_code_details":"filter_chain_not_found"}"#, Some(Decided::NoChain)),
            (
                r#"{"downstream_transport_failure_reason":"TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_0:_certificate_has_expired:TLS_error_end"}"#,
                Some(Decided::Tls("certificate has expired".to_owned())),
            ),
            (
                r#"{"downstream_transport_failure_reason":"TLS_error:|1:SSL_routines:X:verify_cert_failed:_SAN_matcher,_certificate_SANs_are_[spiffe://a/b]:TLS_error_end"}"#,
                Some(Decided::Tls("trust domain a is not ours".to_owned())),
            ),
            (r#"{"upstream_host":"127.0.0.1:1"}"#, Some(Decided::Passed)),
            (r#"{"tcp_policy":"ns[stock]-policy[database]-rule[0]"}"#, rule("stock/database rule 0")),
            ("{}", None),
        ] {
            assert_eq!(line(json), expected, "{json}");
        }
    }

    #[test]
    fn a_call_is_found_by_its_id_its_address_or_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let lines = [
            r#"[2026-01-01] not JSON"#,
            r#"{"request_id":"a","downstream_local_address":"127.0.0.1:15001","response_code_details":"via_upstream"}"#,
            r#"{"request_id":"a","downstream_local_address":"127.0.0.1:8080","response_code_details":"filter_chain_not_found","downstream_remote_address":"127.0.0.1:5"}"#,
            r#"{"downstream_local_address":"127.0.0.1:8080","downstream_peer_uri_san":"spiffe://a","tcp_policy":"ns[a]-policy[b]-rule[1]"}"#,
        ];
        std::fs::write(&log, lines.join("\n")).unwrap();
        let found = |find: Find<'_>| read(&log, &find, &[8080])?.decided();
        assert_eq!(found(Find::Request("a")), Some(Decided::NoChain));
        assert_eq!(found(Find::From("127.0.0.1:5".parse().unwrap())), Some(Decided::NoChain));
        let peer = Find::Peer { spiffe_id: "spiffe://a".to_owned(), port: 8080 };
        assert_eq!(found(peer), Some(Decided::Rule("a/b rule 1".to_owned())));
        assert_eq!(found(Find::Request("b")), None);
    }
}
