//! Addresses that processes listen on: how they are written, and binding them.

use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::net::TcpListener;

/// An address to listen on, or not to. Port 0 means any free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Listen {
    Off,
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor off"))
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Listen {
    /// Any interface.
    pub(crate) fn everywhere(port: u16) -> Self {
        Self::At(SocketAddr::from(([0, 0, 0, 0], port)))
    }

    /// This machine alone.
    pub(crate) fn local(port: u16) -> Self {
        Self::At(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// `None` if off.
    ///
    /// # Errors
    /// If the address cannot be bound; the message names it and `what` it is for.
    pub(crate) async fn bind(self, what: &'static str) -> Result<Option<TcpListener>> {
        match self {
            Self::Off => Ok(None),
            Self::At(addr) => {
                let listener =
                    TcpListener::bind(addr).await.with_context(|| format!("{what} address {addr}"))?;
                Ok(Some(listener))
            }
        }
    }
}

/// Where it listens.
///
/// # Errors
/// If the system does not know.
pub(crate) fn address(listener: Option<&TcpListener>) -> Result<Option<SocketAddr>> {
    Ok(listener.map(TcpListener::local_addr).transpose()?)
}
