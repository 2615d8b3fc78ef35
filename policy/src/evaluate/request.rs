//! A request as described by a test, a person or an access log. Describes only; what a filter sees of it is `view`'s.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http,
    /// Opaque bytes; the fields about HTTP and tokens are not looked at.
    Tcp,
}

/// One HTTP request or one TCP connection that reached a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub protocol: Protocol,
    /// The names in the peer's verified certificate: every URI SAN, as in `spiffe://cluster.local/ns/a/sa/b`. Empty: no
    /// certificate, so no identity. Which trust domains are accepted was settled in the handshake.
    pub peer: Vec<String>,
    /// The TCP peer.
    pub source_ip: IpAddr,
    /// The client as X-Forwarded-For or PROXY protocol say it.
    pub remote_ip: IpAddr,
    pub destination_ip: IpAddr,
    /// The workload's own port.
    pub destination_port: u16,
    /// Empty: none was sent.
    pub sni: String,
    pub method: String,
    /// Already normalised as the mesh says (semantics §4.7).
    pub path: String,
    /// `:authority`, with the port if the client sent one. Empty: none.
    pub host: String,
    /// In order, names in any case, one entry per header line.
    pub headers: Vec<(String, String)>,
    /// The payload of a token whose signature and times are good. Its issuer and audience are checked here.
    pub claims: Option<Map<String, Value>>,
    /// Dynamic metadata of other filters: filter name, then key.
    pub metadata: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Request {
    /// `GET / HTTP/1.1` from nobody in particular to `destination_port`; callers fill in what they know.
    pub fn http(destination_port: u16) -> Self {
        let method = "GET".to_owned();
        Self { method, path: "/".to_owned(), ..Self::empty(Protocol::Http, destination_port) }
    }

    /// A connection from nobody in particular.
    pub fn tcp(destination_port: u16) -> Self {
        Self::empty(Protocol::Tcp, destination_port)
    }

    fn empty(protocol: Protocol, destination_port: u16) -> Self {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            protocol,
            peer: Vec::new(),
            source_ip: nowhere,
            remote_ip: nowhere,
            destination_ip: nowhere,
            destination_port,
            sni: String::new(),
            method: String::new(),
            path: String::new(),
            host: String::new(),
            headers: Vec::new(),
            claims: None,
            metadata: BTreeMap::new(),
        }
    }
}
