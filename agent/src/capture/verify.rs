//! Whether the traffic of this network namespace is captured, found out without the right to read the rules: a connection
//! of ours to an address of our own must arrive at Envoy's port, not where it was sent.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;

/// Longest time that a connection within this machine may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Captured,
    /// It arrived where it was sent.
    Bare,
}

/// Connects to a port of `address` that we listen on ourselves.
///
/// # Errors
/// If that cannot be tried.
pub(super) async fn captured(address: IpAddr) -> std::io::Result<Found> {
    let decoy = TcpListener::bind(SocketAddr::new(address, 0)).await?;
    let to = decoy.local_addr()?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let connected = match timeout(PATIENCE, socket.connect(to)).await {
        Ok(Ok(stream)) => stream,
        // Somebody refused it, and we did not.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Ok(Found::Captured);
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
    };
    let from = connected.local_addr()?;
    let arrives = async {
        loop {
            match decoy.accept().await {
                Ok((_, peer)) if peer == from => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    };
    match timeout(PATIENCE, arrives).await {
        Ok(Ok(())) => Ok(Found::Bare),
        Ok(Err(error)) => Err(error),
        // Connected, but not to us: Envoy of before this agent's start.
        Err(_) => Ok(Found::Captured),
    }
}
