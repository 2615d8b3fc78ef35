//! Which rules decided a test, and which never did. Of CUSTOM rules nothing is said: who is asked decides.

use std::collections::BTreeSet;

use policy::explain::Shadow;
use policy::{Action, Explanation};
use serde::Serialize;

use crate::authz::World;

/// Rules are named `NAMESPACE/POLICY[RULE]`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Coverage {
    pub(super) rules: usize,
    /// Rules that decided no test, flagged none, and as dry runs matched none.
    pub(super) never: BTreeSet<String>,
}

impl Coverage {
    /// Nothing was decided yet.
    pub(super) fn of(world: &World) -> Self {
        let policies = world.offline.policies().namespaces().flat_map(|(_, all)| all.authorization.values());
        let counted = policies.filter(|policy| !matches!(policy.action, Action::Custom { .. }));
        let rules = counted.flat_map(|policy| {
            let id = policy.meta.id.clone();
            (0..policy.rules.len()).map(move |rule| format!("{id}[{rule}]"))
        });
        let never: BTreeSet<String> = rules.collect();
        Self { rules: never.len(), never }
    }

    pub(super) fn decided(&mut self, explanation: &Explanation) {
        for by in explanation.by.iter().chain(&explanation.audited) {
            self.never.remove(&by.to_string());
        }
        let Some(Shadow { policies, if_enforced: _ }) = &explanation.dry_run else { return };
        for policy in policies {
            if let Some(rule) = policy.rule {
                self.never.remove(&format!("{}/{}[{rule}]", policy.namespace, policy.name));
            }
        }
    }
}
