//! Which addresses may be dialled to fetch keys. Policies are written by many, and a URI in one must not make the control
//! plane read from places that only it can reach (server-side request forgery): instance metadata, above all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The addresses that are never dialled, checked after name resolution and again on each redirect.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    blocked: Arc<[IpNet]>,
}

impl Guard {
    /// Blocks `blocked` besides what is always blocked: link-local addresses (where clouds have their metadata services),
    /// multicast, and "this network".
    pub fn new(blocked: Vec<IpNet>) -> Self {
        Self { blocked: blocked.into() }
    }

    /// Whether `address` may be dialled. An IPv4 address may be written as IPv6.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = canonical(address);
        let reserved = match address {
            IpAddr::V4(v4) => {
                v4.is_link_local()
                    || v4.is_multicast()
                    || v4.is_broadcast()
                    || v4.octets()[0] == 0
                    // Metadata services outside the link-local range (Alibaba Cloud, Oracle).
                    || [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)].contains(&v4)
            }
            IpAddr::V6(v6) => {
                v6.is_unicast_link_local()
                    || v6.is_multicast()
                    || v6.is_unspecified()
                    // Amazon's and Google's metadata services over IPv6.
                    || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
                    || v6 == Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)
            }
        };
        !reserved && !self.blocked.iter().any(|net| net.contains(&address))
    }

    /// Whether `url` may be asked, as far as can be said before its name is resolved.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, url: &Url) -> Result<(), String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("scheme {:?} is neither http nor https", url.scheme()));
        }
        // A resolver is not asked about addresses.
        let Some(host) = url.host_str() else { return Err("no host".to_owned()) };
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        match literal {
            Some(address) if !self.allows(address) => Err(format!("address {address} is blocked")),
            _ => Ok(()),
        }
    }
}

/// The IPv4 address in an IPv6 one that stands for it: mapped, compatible (RFC 4291 §2.5.5), or by NAT64 (RFC 6052 §2.1).
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let last = Ipv4Addr::from_bits(v6.to_bits() as u32);
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => IpAddr::V4(last),
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 1) => IpAddr::V4(last),
        _ => address,
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<_> = found.iter().copied().filter(|addr| guard.allows(addr.ip())).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(format!("{} has only blocked addresses", name.as_str()).into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_services_are_out_of_reach_however_they_are_written() {
        let guard = Guard::new(vec!["10.0.0.0/8".parse().unwrap(), "fc00::/7".parse().unwrap()]);
        for blocked in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "fd00:ec2::254",
            "10.1.2.3",
            "::ffff:10.1.2.3",
            "fc00::1",
        ] {
            assert!(!guard.allows(blocked.parse().unwrap()), "{blocked}");
        }
        for fine in ["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "172.16.0.1"] {
            assert!(guard.allows(fine.parse().unwrap()), "{fine}");
        }
    }

    #[test]
    fn urls_with_addresses_are_judged_before_they_are_asked() {
        let guard = Guard::default();
        // Also in the spellings that URLs allow.
        for blocked in [
            "http://169.254.169.254/latest",
            "http://2852039166/",
            "http://0xa9.0xfe.0xa9.0xfe/",
            "http://[::ffff:a9fe:a9fe]/",
            "ftp://example.com/",
            "file:///etc/passwd",
        ] {
            assert!(guard.check(&blocked.parse().unwrap()).is_err(), "{blocked}");
        }
        guard.check(&"https://example.com/keys".parse().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn names_are_judged_by_what_they_resolve_to() {
        let resolve = |guard: &Guard| guard.resolve("localhost".parse().unwrap());
        assert!(resolve(&Guard::default()).await.unwrap().next().is_some());
        let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        let error = resolve(&guard).await.err().unwrap();
        assert!(error.to_string().contains("blocked"));
    }
}
