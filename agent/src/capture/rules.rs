//! The text of the rules, as nft reads it. Made of numbers, networks and interface names alone.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::{INBOUND, MARK, OUTBOUND, SOURCE_V4, SOURCE_V6};
use crate::args::{Networks, Ports, RuleArgs};

/// Whose connections are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) user: Option<u32>,
    /// Connections with [`MARK`] pass.
    pub(super) marks: bool,
}

/// The rules, replacing our own earlier ones as a whole.
///
/// Envoy's connections to the application are bound to 127.0.0.6 and ::6 and pass. Any other of its connections to an
/// address of this workload is a call that came back to it: that enters as calls from elsewhere do, so that the
/// workload's own policy judges it.
pub(super) fn text(own: Own, not_inbound: &BTreeSet<u16>, rules: &RuleArgs) -> String {
    let mut text =
        String::from("table inet countersign\ndelete table inet countersign\ntable inet countersign {\n");
    inbound(&mut text, not_inbound, rules);
    outbound(&mut text, own, rules);
    text.push_str("}\n");
    text
}

fn inbound(text: &mut String, not_inbound: &BTreeSet<u16>, rules: &RuleArgs) {
    text.push_str("  chain inbound {\n    type nat hook prerouting priority dstnat; policy accept;\n");
    line(text, "iifname", quoted(&rules.exclude_interfaces), "return");
    line(text, "tcp dport", not_inbound, "return");
    match &rules.include_inbound_ports {
        Ports::All => line_of(text, &format!("meta l4proto tcp redirect to :{INBOUND}")),
        Ports::These(ports) => line(text, "tcp dport", ports, &format!("redirect to :{INBOUND}")),
    }
    text.push_str("  }\n");
}

fn outbound(text: &mut String, own: Own, rules: &RuleArgs) {
    let envoy = own.user.map_or_else(|| format!("meta mark {MARK}"), |user| format!("meta skuid {user}"));
    let redirect = format!("redirect to :{OUTBOUND}");
    text.push_str("  chain outbound {\n    type nat hook output priority -100; policy accept;\n");
    line_of(text, &format!("oifname \"lo\" ip saddr {SOURCE_V4} return"));
    line_of(text, &format!("oifname \"lo\" ip6 saddr {SOURCE_V6} return"));
    for elsewhere in ["ip daddr != 127.0.0.0/8", "ip6 daddr != ::1"] {
        line_of(text, &format!("oifname \"lo\" {envoy} {elsewhere} meta l4proto tcp redirect to :{INBOUND}"));
    }
    if own.marks {
        line_of(text, &format!("meta mark {MARK} return"));
    }
    if own.user.is_some() {
        line_of(text, &format!("{envoy} return"));
    }
    line_of(text, "ip daddr 127.0.0.0/8 return");
    line_of(text, "ip6 daddr ::1 return");
    line(text, "oifname", quoted(&rules.exclude_interfaces), "return");
    line(text, "tcp dport", rules.exclude_outbound_ports.iter().flatten(), "return");
    networks(text, &rules.exclude_outbound_ip_ranges, "return");
    line(text, "tcp dport", rules.include_outbound_ports.iter().flatten(), &redirect);
    match &rules.include_outbound_ip_ranges {
        Networks::All => line_of(text, &format!("meta l4proto tcp {redirect}")),
        Networks::These(these) => networks(text, these, &format!("meta l4proto tcp {redirect}")),
    }
    text.push_str("  }\n");
}

fn line_of(text: &mut String, rule: &str) {
    let _ = writeln!(text, "    {rule}");
}

/// Nothing if the set is empty, which nft does not read.
fn line<T: ToString>(text: &mut String, of: &str, set: impl IntoIterator<Item = T>, verdict: &str) {
    let set: Vec<String> = set.into_iter().map(|one| one.to_string()).collect();
    if !set.is_empty() {
        line_of(text, &format!("{of} {{ {} }} {verdict}", set.join(", ")));
    }
}

/// nft refuses sets whose networks overlap.
fn networks(text: &mut String, networks: &[IpNet], verdict: &str) {
    let all = IpNet::aggregate(&networks.to_vec());
    line(text, "ip daddr", all.iter().filter(|network| network.addr().is_ipv4()), verdict);
    line(text, "ip6 daddr", all.iter().filter(|network| network.addr().is_ipv6()), verdict);
}

fn quoted(names: &[String]) -> Vec<String> {
    names.iter().map(|name| format!("\"{name}\"")).collect()
}
