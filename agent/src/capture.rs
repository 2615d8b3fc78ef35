//! How traffic gets to Envoy, and which traffic is Envoy's own. `nft` redirects all TCP of this network namespace, both
//! address families, as Istio's redirection does (semantics §7.3); `none` does nothing. The rules stay when Envoy or the
//! agent dies: traffic is then refused. UDP, and so QUIC, is not captured.

use std::net::IpAddr;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::args::{AgentArgs, CaptureMode};

/// Mark of packets that are not to be captured.
pub(crate) const MARK: u32 = 1337;
/// Where Envoy listens for what is redirected.
const INBOUND: u16 = 15006;
const OUTBOUND: u16 = 15001;
/// What Envoy's connections to the application are bound to (semantics §3.1).
const SOURCE_V4: &str = "127.0.0.6";
const SOURCE_V6: &str = "::6";
/// Ports of the proxy itself (semantics §7.3), never redirected.
const OWN_PORTS: &str = "15008, 15020, 15021, 15090";

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("nft cannot be run (Debian: apt-get install nftables); without it use --capture none")]
    Missing(#[source] std::io::Error),
    #[error("nft refused the rules (CAP_NET_ADMIN in this network namespace is needed): {0}")]
    Refused(String),
    #[error(
        "the address ::6 cannot be added to the loopback interface (Debian: apt-get install iproute2): {0}"
    )]
    Source(String),
    #[error("no network address of this workload was found; give --address")]
    NoAddress,
}

/// What is to be captured and how Envoy's own traffic is told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    mode: CaptureMode,
    /// Envoy runs as this user, which is not captured.
    proxy_uid: Option<u32>,
    /// Envoy's sockets carry [`MARK`].
    envoy_marks: bool,
    /// Our own sockets carry [`MARK`].
    we_mark: bool,
    /// The workload's addresses, primary first.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Plan {
    pub(crate) fn new(args: &AgentArgs) -> Result<Self, CaptureError> {
        let nft = args.capture == CaptureMode::Nft;
        let root = nix::unistd::geteuid().is_root();
        let mapped =
            uid_is_mapped(&std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default(), args.proxy_uid);
        let reachable = reachable_for_others(&args.sds_socket);
        let as_uid = nft && root && mapped && reachable;
        if nft && root && mapped && !reachable {
            tracing::warn!(
                uid = args.proxy_uid,
                "Envoy runs as root and by socket mark: the folder of the SDS socket is below one that others cannot enter"
            );
        }
        let mut addresses: Vec<IpAddr> = args.address.into_iter().collect();
        if nft {
            addresses.extend(interface_addresses().into_iter().filter(|a| Some(*a) != args.address));
        }
        if addresses.is_empty() {
            return Err(CaptureError::NoAddress);
        }
        Ok(Self {
            mode: args.capture,
            proxy_uid: as_uid.then_some(args.proxy_uid),
            envoy_marks: nft && root && !as_uid,
            we_mark: nft && root,
            addresses,
        })
    }

    /// The same with Envoy known by its sockets' mark.
    #[cfg(test)]
    pub(crate) fn marked(&self) -> Self {
        Self { proxy_uid: None, envoy_marks: true, ..self.clone() }
    }

    /// The user that Envoy is to run as, if not ours.
    pub(crate) fn proxy_uid(&self) -> Option<u32> {
        self.proxy_uid
    }

    /// Users that may ask for certificates: root, we, and last whoever Envoy runs as.
    pub(crate) fn allowed_uids(&self) -> Vec<u32> {
        let mut uids = vec![0, nix::unistd::geteuid().as_raw()];
        uids.extend(self.proxy_uid);
        uids
    }

    /// The mark for the agent's own connections.
    pub(crate) fn mark(&self) -> Option<u32> {
        self.we_mark.then_some(MARK)
    }

    /// The mark for Envoy's connections.
    pub(crate) fn envoy_mark(&self) -> Option<u32> {
        self.envoy_marks.then_some(MARK)
    }

    /// The rules as nft reads them; applied as a whole or not at all, replacing our own earlier ones.
    ///
    /// Envoy's connections to the application are bound to 127.0.0.6 and ::6 and pass. Any other of its connections to an
    /// address of this workload is a call that came back to it: that enters as calls from elsewhere do, so that the
    /// workload's own policy judges it.
    fn rules(&self) -> String {
        let (ours, envoy) = match self.proxy_uid {
            Some(uid) => (format!("    meta skuid {uid} return\n"), format!("meta skuid {uid}")),
            None => (String::new(), format!("meta mark {MARK}")),
        };
        format!(
            "table inet countersign
delete table inet countersign
table inet countersign {{
  chain inbound {{
    type nat hook prerouting priority dstnat; policy accept;
    tcp dport {{ {OWN_PORTS} }} return
    meta l4proto tcp redirect to :{INBOUND}
  }}
  chain outbound {{
    type nat hook output priority -100; policy accept;
    oifname \"lo\" ip saddr {SOURCE_V4} return
    oifname \"lo\" ip6 saddr {SOURCE_V6} return
    oifname \"lo\" {envoy} ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :{INBOUND}
    oifname \"lo\" {envoy} ip6 daddr != ::1 meta l4proto tcp redirect to :{INBOUND}
    meta mark {MARK} return
{ours}    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    meta l4proto tcp redirect to :{OUTBOUND}
  }}
}}
"
        )
    }

    /// Puts the rules in force.
    pub(crate) async fn apply(&self) -> Result<(), CaptureError> {
        if self.mode == CaptureMode::None {
            return Ok(());
        }
        nft(&self.rules()).await?;
        // Unlike all of 127.0.0.0/8, this one is not there by itself.
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            add_source().await?;
        }
        tracing::info!("all TCP traffic of this network namespace now goes through Envoy");
        Ok(())
    }

    /// Takes the rules away.
    pub(crate) async fn remove(&self) -> Result<(), CaptureError> {
        if self.mode == CaptureMode::None {
            return Ok(());
        }
        nft("table inet countersign\ndelete table inet countersign\n").await
    }
}

/// Makes [`SOURCE_V6`] an address of the loopback interface.
async fn add_source() -> Result<(), CaptureError> {
    let refused = |why: String| CaptureError::Source(why);
    let output = Command::new("ip")
        .args(["-6", "address", "replace", &format!("{SOURCE_V6}/128"), "dev", "lo"])
        .env("PATH", path_with_sbin())
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| refused(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

async fn nft(rules: &str) -> Result<(), CaptureError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", path_with_sbin())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(CaptureError::Missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If nft ends early its own message says why.
        let _ = stdin.write_all(rules.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(CaptureError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    Err(CaptureError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Whether a uid exists in this user namespace, by the text of `/proc/self/uid_map`.
fn uid_is_mapped(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => {
                (inside..inside + count).contains(&uid.into())
            }
            _ => false,
        }
    })
}

/// Whether another user can get to the folder that holds `socket` (which will be its own).
fn reachable_for_others(socket: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let absolute = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    // A folder that is still to be made may come out closed, depending on the umask.
    let open = |dir: &std::path::Path| std::fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0);
    absolute.ancestors().skip(2).all(open)
}

/// Addresses of all interfaces that others can reach us by.
fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|address| !address.is_loopback() && !link_local(address))
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

fn link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
