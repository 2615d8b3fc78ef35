//! What is left out of the capture, or alone in it. The words are Istio's annotations'; the values are what
//! the rules are made of, so that nothing else can get into them.

use std::collections::BTreeSet;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;

use super::Expected;

/// Redirects this network namespace's TCP traffic to Envoy, and ends
///
/// For a pod's init container, as root with NET_ADMIN and nothing else. The agent then runs beside it as the user of
/// --proxy-uid, with --capture external. What fails is said, and the exit code is not 0: nothing must start uncaptured.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    countersign capture                               # all but ports 15020 and 15021, where the agent listens\n  \
    countersign capture --exclude-inbound-ports 15020,15021,22 --exclude-outbound-ip-ranges 10.9.0.0/16")]
pub struct CaptureArgs {
    #[command(flatten)]
    pub rules: RuleArgs,
    /// User that the agent and Envoy run as; its traffic is not redirected
    #[arg(long, env = "COUNTERSIGN_PROXY_UID", value_name = "UID", default_value_t = 1337)]
    pub proxy_uid: u32,
}

/// Exceptions from the capture. Each is a way past all policy: for what cannot be in the mesh.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "What is captured")]
pub struct RuleArgs {
    /// Ports whose arriving connections go through Envoy
    #[arg(long, env = "COUNTERSIGN_INCLUDE_INBOUND_PORTS", value_name = "PORTS|*", default_value = "*")]
    pub include_inbound_ports: Ports,
    /// Ports whose arriving connections go past Envoy [default: those where the agent listens]
    #[arg(long, env = "COUNTERSIGN_EXCLUDE_INBOUND_PORTS", value_name = "PORTS", value_parser = these_ports)]
    pub exclude_inbound_ports: Option<PortSet>,
    /// Ports that calls go through Envoy to, whatever the address
    #[arg(long, env = "COUNTERSIGN_INCLUDE_OUTBOUND_PORTS", value_name = "PORTS", value_parser = these_ports)]
    pub include_outbound_ports: Option<PortSet>,
    /// Ports that calls go past Envoy to
    #[arg(long, env = "COUNTERSIGN_EXCLUDE_OUTBOUND_PORTS", value_name = "PORTS", value_parser = these_ports)]
    pub exclude_outbound_ports: Option<PortSet>,
    /// Networks that calls go through Envoy to
    #[arg(long, env = "COUNTERSIGN_INCLUDE_OUTBOUND_IP_RANGES", value_name = "CIDRS|*", default_value = "*")]
    pub include_outbound_ip_ranges: Networks,
    /// Networks that calls go past Envoy to
    #[arg(
        long,
        env = "COUNTERSIGN_EXCLUDE_OUTBOUND_IP_RANGES",
        value_name = "CIDRS",
        value_delimiter = ',',
        value_parser = network
    )]
    pub exclude_outbound_ip_ranges: Vec<IpNet>,
    /// Interfaces that are not captured at all
    #[arg(
        long,
        env = "COUNTERSIGN_EXCLUDE_INTERFACES",
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = interface
    )]
    pub exclude_interfaces: Vec<String>,
}

/// Ports, each once and in order.
pub type PortSet = BTreeSet<u16>;

/// All ports, or these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    #[default]
    All,
    These(PortSet),
}

impl FromStr for Ports {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        if text == "*" { Ok(Self::All) } else { these_ports(text).map(Self::These) }
    }
}

/// All networks, or these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Networks {
    #[default]
    All,
    These(Vec<IpNet>),
}

impl FromStr for Networks {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let items = text.split(',').filter(|item| !item.is_empty());
        if text == "*" {
            Ok(Self::All)
        } else {
            items.map(network).collect::<Result<_, _>>().map(Self::These)
        }
    }
}

fn these_ports(text: &str) -> Result<PortSet, Expected> {
    let port = |item: &str| {
        item.parse().ok().filter(|port| *port > 0).ok_or(Expected("ports from 1 to 65535 by commas"))
    };
    text.split(',').filter(|item| !item.is_empty()).map(port).collect()
}

fn network(text: &str) -> Result<IpNet, Expected> {
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .map_err(|_| Expected("networks such as 10.0.0.0/8 by commas"))
}

fn interface(text: &str) -> Result<String, Expected> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let good = (1..=15).contains(&text.len()) && text != "lo" && text.bytes().all(plain);
    if good { Ok(text.to_owned()) } else { Err(Expected("names of interfaces (not lo) by commas")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_values_gets_in() {
        assert_eq!("*".parse(), Ok(Ports::All));
        assert_eq!("443,80,80".parse(), Ok(Ports::These([80, 443].into())));
        assert_eq!("".parse(), Ok(Ports::These(BTreeSet::new())));
        for bad in ["0", "65536", "80 ", "80;", "*,80", "-1", "http"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/8 }", "*,::/0"] {
            assert!(bad.parse::<Networks>().is_err(), "{bad}");
        }
        for bad in ["", "lo", "a b", "eth0\" accept", "sixteen-letters-x"] {
            assert!(interface(bad).is_err(), "{bad}");
        }
    }
}
