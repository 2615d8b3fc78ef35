//! The registry's name of a workload, `NAMESPACE/NAME`.
//!
//! A name says nothing about the identity: the registration does.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest namespace (DNS label) and name (DNS subdomain) in bytes, as Kubernetes has them.
const MAX_NAMESPACE: usize = 63;
const MAX_NAME: usize = 253;

/// A Pod's or WorkloadEntry's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    namespace: String,
    name: String,
}

/// A string is not the name of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a workload is written NAMESPACE/NAME in lower-case letters, digits, dashes and (in NAME) dots")]
pub struct WorkloadNameError;

impl WorkloadName {
    /// Checks both parts against Kubernetes' rules for names.
    pub fn new(namespace: &str, name: &str) -> Result<Self, WorkloadNameError> {
        let fits = namespace.len() <= MAX_NAMESPACE && name.len() <= MAX_NAME;
        if fits && is_label(namespace) && name.split('.').all(is_label) {
            Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
        } else {
            Err(WorkloadNameError)
        }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

fn is_label(label: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'-')
        && bytes.first().is_some_and(|&byte| alphanumeric(byte))
        && bytes.last().is_some_and(|&byte| alphanumeric(byte))
}

impl FromStr for WorkloadName {
    type Err = WorkloadNameError;

    fn from_str(text: &str) -> Result<Self, WorkloadNameError> {
        let (namespace, name) = text.split_once('/').ok_or(WorkloadNameError)?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for WorkloadName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WorkloadName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kubernetes_names_are_names() {
        for good in ["default/orders", "a/b.c-d.e", "n0/0"] {
            assert_eq!(good.parse::<WorkloadName>().unwrap().to_string(), good);
        }
        let long = "a".repeat(254);
        for bad in [
            "", "a", "/", "a/", "/a", "a/b/c", "A/b", "a/..", "a/b.", "a.b/c", "a/-b", "a/b\0", "a/b c",
            &long,
        ] {
            assert_eq!(bad.parse::<WorkloadName>(), Err(WorkloadNameError), "{bad:?}");
        }
        assert!(format!("a/{long}").parse::<WorkloadName>().is_err());
    }
}
