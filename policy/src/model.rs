//! Validated policy objects, as their authors wrote them: no selection, precedence or trust-domain rewriting yet.
//!
//! Values that cannot be understood never reach this module as "absent": `crds` turns them into the closed values
//! documented on each type (design decision 5).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::matcher::Atom;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The parts of an object's metadata that decide anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub id: ObjectName,
    /// `metadata.creationTimestamp` in seconds since the epoch; 0 where there is none, so that objects from files
    /// order by name and namespace (semantics §2.2).
    pub created: i64,
    /// `istio.io/dry-run: "true"`: evaluated, counted, never enforced (semantics §4.5). AuthorizationPolicy only.
    pub dry_run: bool,
    /// `countersign.io/on-revoke: drain`: a change of this policy also drains the connections it applies to.
    pub drain_on_revoke: bool,
}

impl Meta {
    pub fn new(id: ObjectName) -> Self {
        Self { id, created: 0, dry_run: false, drain_on_revoke: false }
    }

    /// Ascending creation time, then name, then namespace (semantics §2.2).
    pub fn order(&self) -> (i64, &str, &str) {
        (self.created, &self.id.name, &self.id.namespace)
    }
}

/// What a policy is attached to (semantics §1.2, §2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// No selector, an empty one, or one that could not be read: the whole namespace (the mesh, in the root namespace).
    Namespace,
    /// Every label must be present with this value. Never empty.
    Labels(BTreeMap<String, String>),
    /// Gateways and waypoints only: a sidecar ignores the policy completely.
    Targets(Vec<TargetRef>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRef {
    pub group: String,
    pub kind: String,
    pub name: String,
}

/// PeerAuthentication mode (semantics §1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    Disable,
    Permissive,
    Strict,
}

/// `None` for a mode is UNSET: inherit. An unreadable PeerAuthentication becomes `mode: Some(Strict)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub meta: Meta,
    pub attachment: Attachment,
    pub mode: Option<MtlsMode>,
    /// Keyed by the workload's own (container) port, not the Service port.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestAuthentication {
    pub meta: Meta,
    pub attachment: Attachment,
    pub rules: Vec<JwtRule>,
}

/// One `jwtRules[]` entry (semantics §1.4). `jwks_uri`, `timeout` are seconds-resolution inputs for the key fetcher.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JwtRule {
    /// Empty: any `iss` is accepted.
    pub issuer: String,
    pub audiences: Vec<String>,
    pub jwks: Jwks,
    pub from_headers: Vec<JwtHeader>,
    pub from_params: Vec<String>,
    pub from_cookies: Vec<String>,
    pub output_payload_to_header: Option<String>,
    pub forward_original_token: bool,
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    pub space_delimited_claims: Vec<String>,
    /// Milliseconds for one key fetch.
    pub timeout_ms: u64,
    pub presence: Presence,
}

/// Where the verifying keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Jwks {
    /// A JWK set that was checked to parse and to hold at least one usable public key.
    Inline(Arc<str>),
    /// Fetched by the control plane (crate `authn`); `None` means OIDC discovery below the issuer.
    Remote(Option<String>),
    /// The rule could not be read: every token of this issuer is refused (design decision 5).
    RefuseAll,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JwtHeader {
    pub name: String,
    pub prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimToHeader {
    pub header: String,
    pub claim: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    Optional,
    Required,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    pub meta: Meta,
    pub attachment: Attachment,
    pub action: Action,
    /// Empty: never matches (so an ALLOW policy without rules denies everything).
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    Deny,
    Audit,
    Custom { provider: Arc<str> },
}

/// One `rules[]` entry. `unreadable` rules are kept so that rule numbers stay those of the file: in an ALLOW policy
/// the rule allows nothing, elsewhere `crds` has already dropped the unreadable condition from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Rule {
    /// OR; empty means any source.
    pub from: Vec<Source>,
    /// OR; empty means any operation.
    pub to: Vec<Operation>,
    /// AND.
    pub when: Vec<Condition>,
    /// Set by `crds` for an ALLOW rule that could not be read: it matches nothing.
    pub never: bool,
}

/// A field with its `notX` twin: `(any is empty OR one of any matches) AND none of none matches`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Match {
    pub any: Vec<Atom>,
    pub none: Vec<Atom>,
}

impl Match {
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// `from[].source`: AND of its fields. Each field's atoms are of the kind its name says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Source {
    pub principals: Match,
    pub request_principals: Match,
    pub namespaces: Match,
    pub service_accounts: Match,
    pub trust_domains: Match,
    pub ip_blocks: Match,
    pub remote_ip_blocks: Match,
}

/// `to[].operation`: AND of its fields.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Operation {
    pub hosts: Match,
    pub ports: Match,
    pub methods: Match,
    pub paths: Match,
}

/// `when[]`: one key with its values and notValues, already parsed into atoms of that key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// As written, for messages.
    pub key: Arc<str>,
    /// Whether it constrains the operation (a permission) or the source (a principal), semantics §4.3.
    pub side: Side,
    pub values: Match,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Belongs to `to`: ports, destination, SNI, paths, methods, hosts, `experimental.envoy.filters.*`.
    Permission,
    /// Belongs to `from`: identities, addresses, headers and token attributes.
    Principal,
}
