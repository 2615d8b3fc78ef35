//! PeerAuthentication (semantics §1.3): the wire type, its validation, and its conversion. It does not resolve scopes.

use std::collections::BTreeMap;

use policy::{Attachment, MtlsMode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::schema;
use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::{Kind, Object};
use crate::path::At;
use crate::salvage::{Spec, salvage};
use crate::selector::{Attachments, WorkloadSelector};
use crate::{Reading, degrade};

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::ports_need_labels()))]
pub struct PeerAuthenticationSpec {
    /// The workloads it applies to: those of its namespace, or in the root namespace of the mesh, if left out.
    pub selector: Option<WorkloadSelector>,
    /// Which connections those workloads take.
    pub mtls: Option<MutualTls>,
    /// Exceptions for single ports, keyed by the workload's own port (not the Service's). Needs a selector with labels.
    #[schemars(extend("minProperties" = 1, "x-kubernetes-validations" = schema::port_keys()))]
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MutualTls {
    /// STRICT: mutual TLS only. PERMISSIVE: plaintext as well. DISABLE: plaintext only. UNSET: as the wider policy says.
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

impl Mode {
    fn converted(self) -> Option<MtlsMode> {
        match self {
            Self::Unset => None,
            Self::Disable => Some(MtlsMode::Disable),
            Self::Permissive => Some(MtlsMode::Permissive),
            Self::Strict => Some(MtlsMode::Strict),
        }
    }
}

/// Reads one object: the policy it means, or, if `issues` has errors afterwards, its closed value.
pub(crate) fn read(metadata: &Metadata, spec: Spec<'_>, issues: &mut Issues) -> Reading {
    let meta = metadata.policy(Kind::PeerAuthentication, issues);
    let salvaged = salvage::<PeerAuthenticationSpec>(spec, issues);
    let readable = salvaged.is_some();
    let PeerAuthenticationSpec { selector, mtls, port_level_mtls } = salvaged.unwrap_or_default();
    let attachments = Attachments { selector: selector.as_ref(), ..Attachments::default() };
    let attachment = attachments.read(issues);
    let ports = port_level_mtls.map(|ports| read_ports(&ports, &attachment, issues)).unwrap_or_default();
    let mode = mtls.unwrap_or_default().mode.converted();
    let policy = policy::PeerAuthentication { meta, attachment, mode, ports };
    if !issues.has_errors() {
        return Reading::understood(Object::PeerAuthentication(policy));
    }
    degrade::peer_authentication(policy, readable, issues)
}

fn read_ports(
    ports: &BTreeMap<String, MutualTls>,
    attachment: &Attachment,
    issues: &mut Issues,
) -> BTreeMap<u16, Option<MtlsMode>> {
    let at = At::ROOT.key("spec");
    let at = at.key("portLevelMtls");
    if ports.is_empty() {
        issues.error(&at, "no port is given: leave it out");
    } else if !matches!(attachment, Attachment::Labels(_)) {
        issues.error(&at, "ports can only be given together with a selector that has labels");
    }
    let mut read = BTreeMap::new();
    for (port, mtls) in ports {
        match crate::values::port(port) {
            Ok(number) if number > 0 => {
                if read.insert(number, mtls.mode.converted()).is_some() {
                    issues.error(&at.key(port), "this port is given twice");
                }
            }
            _ => issues.error(&at.key(port), "not a port number from 1 to 65535"),
        }
    }
    read
}

#[cfg(test)]
mod tests;
