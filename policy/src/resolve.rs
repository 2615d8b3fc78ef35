//! resolve
use crate::{EffectivePolicy, PolicySet, WorkloadKey};
/// resolve
pub fn resolve(_set: &PolicySet, _workload: &WorkloadKey) -> EffectivePolicy {
    EffectivePolicy::default()
}
