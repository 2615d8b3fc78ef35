//! Values of annotations and settings, each read into a type whose text is written anew: what a user wrote never reaches a
//! pod as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;

/// Longest accepted image reference.
const IMAGE: usize = 255;

/// A list of ports, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    All,
    These(BTreeSet<u16>),
}

impl Ports {
    pub(super) fn none() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::These(ports) => f.write_str(&comma(ports)),
        }
    }
}

/// A list of networks, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Networks {
    All,
    These(Vec<IpNet>),
}

impl Networks {
    pub(super) fn none() -> Self {
        Self::These(Vec::new())
    }
}

impl std::fmt::Display for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::These(networks) => f.write_str(&comma(networks)),
        }
    }
}

fn comma<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// `*`, nothing, or ports by commas.
pub(super) fn ports(text: &str) -> Result<Ports, String> {
    if text.trim() == "*" {
        return Ok(Ports::All);
    }
    items(text).map(port).collect::<Result<_, _>>().map(Ports::These)
}

/// 1 to 65535, in digits alone.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port > 0);
    port.ok_or_else(|| format!("{text:?} is no port from 1 to 65535"))
}

/// `*`, nothing, or networks (CIDR) by commas.
pub(super) fn networks(text: &str) -> Result<Networks, String> {
    if text.trim() == "*" {
        return Ok(Networks::All);
    }
    let network =
        |item: &str| item.parse::<IpNet>().map_err(|_| format!("{item:?} is no CIDR such as 10.0.0.0/8"));
    let networks: Vec<IpNet> = items(text).map(network).collect::<Result<_, _>>()?;
    Ok(Networks::These(IpNet::aggregate(&networks.iter().map(IpNet::trunc).collect())))
}

/// Names of network interfaces by commas.
pub(super) fn interfaces(text: &str) -> Result<BTreeSet<String>, String> {
    let good = |name: &str| {
        name.len() <= 15
            && name != "lo"
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let interface = |name: &str| {
        good(name)
            .then(|| name.to_owned())
            .ok_or_else(|| format!("{name:?} is no interface that can be left out"))
    };
    items(text).map(interface).collect()
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A whole number up to `max`.
pub(super) fn number(text: &str, max: u32) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && *number <= max);
    number.ok_or_else(|| format!("{text:?} is no number from 0 to {max}"))
}

/// An amount of CPU or memory as Kubernetes writes them: digits, perhaps a fraction, perhaps a unit. Not 0.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    const UNITS: [&str; 14] = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let error = || format!("{text:?} is no amount such as 100m or 128Mi");
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end).ok_or_else(error)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| (1..=15).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    let some = number.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    (UNITS.contains(&unit) && digits(whole) && digits(fraction) && some)
        .then(|| text.to_owned())
        .ok_or_else(error)
}

/// A duration as Go writes it (`1m30s`, `500ms`), or a number of seconds with `s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is no duration such as 5s or 1m30s");
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let number: u32 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(error()),
        };
        total = unit.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(error)?;
        rest = &rest[end..];
    }
    if text.is_empty() { Err(error()) } else { Ok(total) }
}

/// A container image's name: the characters that there can be in one.
pub(super) fn image(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:@[]".contains(&byte);
    let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'[');
    (starts && text.len() <= IMAGE && text.bytes().all(good))
        .then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} is no image"))
}

/// A level of Envoy's log.
pub(super) fn envoy_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];
    LEVELS
        .contains(&text)
        .then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} is none of {}", LEVELS.join(", ")))
}

/// The path of a URL, perhaps with a query.
pub(super) fn url_path(text: &str) -> Result<String, String> {
    let good =
        text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|byte| byte.is_ascii_graphic());
    good.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is no path of a URL"))
}

/// Labels or annotations: text by text.
pub(super) type Texts = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_value_is_refused() {
        for bad in ["0", "65536", "80,", "-1", "+80", "8 0", "80\n", "0x50", "", "http", "*", "٨٠"] {
            assert!(port(bad).is_err(), "{bad:?}");
        }
        assert_eq!(ports(" 443, 80,80 ").map(|p| p.to_string()), Ok("80,443".to_owned()));
        assert_eq!(ports("").map(|p| p.to_string()), Ok(String::new()));
        assert_eq!(
            networks("10.1.2.3/8, 10.0.0.0/9,fd00::1/8").map(|n| n.to_string()),
            Ok("10.0.0.0/8,fd00::/8".to_owned())
        );
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/8;drop", "*,10.0.0.0/8", "::/129", "a/8"] {
            assert!(networks(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "m", "0", "0m", "-1", "1 Gi", "1gi", "1e3", "1.2.3", "1Gi\n", "{{x}}", "1\"", "٣"] {
            assert!(quantity(bad).is_err(), "{bad:?}");
        }
        for good in ["1", "100m", "0.5", "128Mi", "1.5Gi"] {
            assert_eq!(quantity(good).as_deref(), Ok(good));
        }
        for bad in ["", "5", "s", "-1s", "1d", "1s2", "99999999999s", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(duration("1m30s").map(|d| d.as_secs()), Ok(90));
        for bad in ["", "a b", "a\nb", "-a", "a;b", "$(X)", "a'b", "../a"] {
            assert!(image(bad).is_err(), "{bad:?}");
        }
        for bad in ["lo", "eth0 accept", "a\"b", "abcdefghijklmnop", "eth0;"] {
            assert!(interfaces(bad).is_err(), "{bad:?}");
        }
        for bad in ["x", "/a b", "/a\n", ""] {
            assert!(url_path(bad).is_err(), "{bad:?}");
        }
        for bad in ["True", "yes", "1", " true", ""] {
            assert!(boolean(bad).is_err(), "{bad:?}");
        }
    }
}
