//! A relay in front of an address that can be cut: connections are then closed, or stay open and silent.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    Everything,
    /// Open connections are closed, new ones are accepted and closed.
    Closed,
    /// Nothing passes and nothing is closed: what a partition looks like.
    Silent,
}

/// The relay; it ends with this value.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    through: watch::Sender<Through>,
    task: JoinHandle<()>,
}

impl Gate {
    pub(crate) async fn open(to: SocketAddr) -> Result<Self> {
        // An address its certificate names: the API server's own.
        Self::open_at(to.ip(), to).await
    }

    /// Listens on a free port of `ip`.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn open_at(ip: IpAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let (through, seen) = watch::channel(Through::Everything);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, to, seen.clone()));
            }
        });
        Ok(Self { address, through, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://IP:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// From now on.
    pub fn set(&self, through: Through) {
        self.through.send_replace(through);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
        // Relays end when they are told to close.
        self.through.send_replace(Through::Closed);
    }
}

/// Until either side closes or the gate does.
async fn relay(mut client: TcpStream, to: SocketAddr, mut seen: watch::Receiver<Through>) {
    let mut server: Option<TcpStream> = None;
    loop {
        let now = *seen.borrow_and_update();
        match (now, &mut server) {
            (Through::Closed, _) => return,
            (Through::Silent, _) => {
                if seen.changed().await.is_err() {
                    return;
                }
            }
            (Through::Everything, None) => match TcpStream::connect(to).await {
                Ok(stream) => server = Some(stream),
                Err(_) => return,
            },
            (Through::Everything, Some(server)) => {
                // Only waiting is given up when the gate changes: what was read is always written.
                let up = tokio::select! {
                    ready = client.readable() => ready.map(|()| true),
                    ready = server.readable() => ready.map(|()| false),
                    changed = seen.changed() => match changed { Ok(()) => continue, Err(_) => return },
                };
                let ended = match up {
                    Ok(true) => pump(&client, server).await,
                    Ok(false) => pump(server, &mut client).await,
                    Err(_) => true,
                };
                if ended {
                    return;
                }
            }
        }
    }
}

/// Moves what is there; true if a side has ended.
async fn pump(from: &TcpStream, to: &mut TcpStream) -> bool {
    let mut buffer = [0_u8; 16 << 10];
    match from.try_read(&mut buffer) {
        Ok(0) => true,
        Ok(n) => to.write_all(&buffer[..n]).await.is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}
