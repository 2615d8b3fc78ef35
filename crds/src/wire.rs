//! Reading a kind that is not a policy: its whole document into a wire type, unknown fields tolerated. There are no
//! closed values for these kinds: one that cannot be read is not in the registry, and what is not there gets nothing.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::finding::{Issue, Issues};
use crate::path::At;
use crate::strict;

/// `None` after reporting the first thing that does not fit. A `null` counts as absent, as in Kubernetes.
pub(crate) fn read<T: DeserializeOwned>(document: &Map<String, Value>, issues: &mut Issues) -> Option<T> {
    let mut value = Value::Object(document.clone());
    drop_nulls(&mut value);
    strict::read(&value).map_err(|(path, message)| issues.0.push(Issue::error(path, message))).ok()
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// An IP address, an IPv4 one in IPv6 clothes as IPv4. Reports what is none.
pub(crate) fn address(text: &str, at: &At<'_>, issues: &mut Issues) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok();
    if address.is_none() {
        issues.error(at, format!("`{text}` is not an IP address"));
    }
    address.map(|address| address.to_canonical())
}

/// A port from 1 to 65535. Reports what is none.
pub(crate) fn port(number: u32, at: &At<'_>, issues: &mut Issues) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        issues.error(at, format!("`{number}` is not a port number from 1 to 65535"));
    }
    port
}
