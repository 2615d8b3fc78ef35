//! Network namespaces on one bridge, each with an IPv4 and an IPv6 address, and sockets opened inside them.
//!
//! The sandbox's own namespace holds the bridge, so the machine's network is never touched.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(5);

/// The bridge's own address: number 1.
pub const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The bridge. Number 1 is its own address.
#[derive(Debug)]
pub struct Network {
    used: u8,
}

/// One namespace; cheap to clone. It lives until the sandbox ends.
#[derive(Clone, Debug)]
pub struct Namespace {
    pub name: Arc<str>,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Network {
    pub(super) fn new() -> Result<Self> {
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").ok();
        // Its hardware address is told: else it is the lowest of its ports', changes as they come, and whoever knew the old
        // one talks to nobody for a while.
        ip(
            "link add br0 address 02:00:00:00:77:01 type bridge\nlink set br0 up\naddr add 10.77.0.1/16 dev br0\naddr add fd77::1/64 dev br0 nodad\n",
            None,
        )?;
        Ok(Self { used: 1 })
    }

    /// A new namespace with the next free addresses, everything not local routed to the bridge.
    ///
    /// # Errors
    /// If `ip` fails, with what it said.
    pub fn namespace(&mut self, name: &str) -> Result<Namespace> {
        self.used = self.used.checked_add(1).context("no addresses left")?;
        let n = self.used;
        let (v4, v6) = (Ipv4Addr::new(10, 77, 0, n), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, n.into()));
        let outside = format!(
            "netns add {name}\nlink add v{n} type veth peer name eth0 netns {name}\nlink set v{n} master br0 up\n"
        );
        ip(&outside, None)?;
        let mut inside = String::from("link set lo up\n");
        writeln!(inside, "addr add {v4}/16 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up")?;
        writeln!(inside, "route add default via 10.77.0.1\nroute add ::/0 via fd77::1")?;
        ip(&inside, Some(name))?;
        Ok(Namespace { name: name.into(), v4, v6 })
    }
}

/// `ip -batch`, in the namespace `inside` if given.
fn ip(batch: &str, inside: Option<&str>) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = inside {
        command.args(["-n", namespace]);
    }
    let mut child = command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin is piped")?.write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip -batch: {}\n{batch}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Namespace {
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&*self.name)
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Opens a TCP connection from inside.
    ///
    /// # Errors
    /// As `connect` does.
    pub async fn dial(&self, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let stream = self.inside(move || std::net::TcpStream::connect_timeout(&to, CONNECT)).await?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        tokio::net::TcpStream::from_std(stream)
    }

    /// Listens inside.
    ///
    /// # Errors
    /// As `bind` does.
    pub async fn listen(&self, at: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let listener = self.inside(move || std::net::TcpListener::bind(at)).await?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }

    /// Runs `open` on a thread of its own that has entered the namespace and ends there: a socket stays where it was
    /// made, a thread must not go back to a pool.
    async fn inside<T: Send + 'static>(
        &self,
        open: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = self.path();
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let entered = File::open(&path).and_then(|ns| Ok(setns(ns, CloneFlags::CLONE_NEWNET)?));
            done.send(entered.and_then(|()| open())).ok();
        });
        result.await.map_err(io::Error::other)?
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}
