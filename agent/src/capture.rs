//! How traffic gets to Envoy, and which traffic is Envoy's own. `nft` redirects all TCP of this network namespace, both
//! address families, as Istio's redirection does (semantics §7.3); `none` does nothing. The rules stay when Envoy or the
//! agent dies: traffic is then refused. UDP, and so QUIC, is not captured. In a pod the rules are made by another container
//! before ([`once`]); the agent beside it (`external`) may not even read them, and tries them instead.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::args::{AgentArgs, CaptureArgs, CaptureMode, RuleArgs};

mod loopback;
mod rules;
mod verify;

/// Mark of packets that are not to be captured.
pub(crate) const MARK: u32 = 1337;
/// Where Envoy listens for what is redirected.
const INBOUND: u16 = 15006;
const OUTBOUND: u16 = 15001;
/// What Envoy's connections to the application are bound to (semantics §3.1).
const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Ports of the proxy itself (semantics §7.3), never redirected.
const OWN_PORTS: [u16; 4] = [15008, 15020, 15021, 15090];
/// Those of a pod's agent. Nothing of ours listens on the others, so what does is the application's and is captured.
const POD_PORTS: [u16; 2] = [15020, 15021];

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("nft cannot be run (Debian: apt-get install nftables); without it use --capture none")]
    Missing(#[source] std::io::Error),
    #[error("nft refused the rules (CAP_NET_ADMIN in this network namespace is needed): {0}")]
    Refused(String),
    #[error("the address ::6 cannot be added to the loopback interface")]
    Source(#[source] std::io::Error),
    #[error("there is no user {0} in this user namespace, so Envoy's traffic could not be told apart")]
    NoUser(u32),
    #[error("capture `external` takes an agent that runs as user {expected}, not {found}")]
    OtherUser { expected: u32, found: u32 },
    #[error("the traffic of {0} is not captured: `countersign capture` must run before the agent")]
    Bare(IpAddr),
    #[error("whether the traffic of {address} is captured cannot be found out")]
    Untried { address: IpAddr, source: std::io::Error },
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
    /// Ports where connections that arrive are not redirected.
    not_inbound: BTreeSet<u16>,
    rules: RuleArgs,
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
        let external = args.capture == CaptureMode::External;
        let uid = nix::unistd::geteuid().as_raw();
        if external && uid != args.proxy_uid {
            return Err(CaptureError::OtherUser { expected: args.proxy_uid, found: uid });
        }
        let mut addresses: Vec<IpAddr> = args.address.into_iter().collect();
        if nft || external {
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
            not_inbound: args
                .rules
                .exclude_inbound_ports
                .iter()
                .flatten()
                .copied()
                .chain(OWN_PORTS)
                .collect(),
            rules: args.rules.clone(),
            addresses,
        })
    }

    /// For an agent that will run as another user, in another container.
    fn for_others(args: &CaptureArgs, map: &str) -> Result<Self, CaptureError> {
        if !uid_is_mapped(map, args.proxy_uid) {
            return Err(CaptureError::NoUser(args.proxy_uid));
        }
        Ok(Self {
            mode: CaptureMode::Nft,
            proxy_uid: Some(args.proxy_uid),
            envoy_marks: false,
            // A container may have the right to mark its packets, and must not get past by it.
            we_mark: false,
            not_inbound: args.rules.exclude_inbound_ports.clone().unwrap_or_else(|| POD_PORTS.into()),
            rules: args.rules.clone(),
            addresses: interface_addresses(),
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

    /// The rules as nft reads them; applied as a whole or not at all.
    fn rules(&self) -> String {
        let own = rules::Own { user: self.proxy_uid, marks: self.we_mark || self.envoy_marks };
        rules::text(own, &self.not_inbound, &self.rules)
    }

    /// Puts the rules in force.
    pub(crate) async fn apply(&self) -> Result<(), CaptureError> {
        match self.mode {
            CaptureMode::None => return Ok(()),
            CaptureMode::External => return self.verify().await,
            CaptureMode::Nft => {}
        }
        nft(&self.rules()).await?;
        // Unlike all of 127.0.0.0/8, this one is not there by itself.
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            loopback::add(SOURCE_V6).map_err(CaptureError::Source)?;
        }
        tracing::info!("all TCP traffic of this network namespace now goes through Envoy");
        Ok(())
    }

    /// Makes sure that somebody else has put them in force, for both address families.
    async fn verify(&self) -> Result<(), CaptureError> {
        for address in &self.addresses {
            match verify::captured(*address).await {
                Ok(verify::Found::Captured) => {}
                Ok(verify::Found::Bare) => return Err(CaptureError::Bare(*address)),
                Err(source) => return Err(CaptureError::Untried { address: *address, source }),
            }
        }
        tracing::info!("all TCP traffic of this network namespace goes through Envoy");
        Ok(())
    }

    /// Takes the rules away.
    pub(crate) async fn remove(&self) -> Result<(), CaptureError> {
        if self.mode != CaptureMode::Nft {
            return Ok(());
        }
        nft("table inet countersign\ndelete table inet countersign\n").await
    }
}

/// Captures for an agent that runs beside, and ends.
///
/// # Errors
/// If the capture is not in force: then nothing must start.
pub async fn once(args: CaptureArgs) -> Result<(), CaptureError> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    Plan::for_others(&args, &map)?.apply().await
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
        // Nor by what a capture before this agent gave to the loopback interface.
        .filter(|address| !address.is_loopback() && !link_local(address) && *address != SOURCE_V6)
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
