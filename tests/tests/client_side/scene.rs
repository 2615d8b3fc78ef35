//! Services, pods and clients as these tests need them.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tests::lab::{Answer, Caller, Credential, First, Got, Lab, PodId, PodSpec, get};

/// A way to ask that has a form of its own on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http1,
    Http2,
    Tcp,
    /// HTTP to a port whose protocol nobody declared.
    AnyHttp,
    /// Lines to that port.
    AnyLine,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Http1, Self::Http2, Self::Tcp, Self::AnyHttp, Self::AnyLine];

    /// The Service's port. The endpoint's is [`Kind::target`]: what mistakes one for the other is seen.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http1 => 80,
            Self::Http2 => 81,
            Self::Tcp => 82,
            Self::AnyHttp | Self::AnyLine => 83,
        }
    }

    pub(crate) fn target(self) -> u16 {
        self.port() + 8000
    }

    /// What begins a connection to `host`, with mesh mTLS or without (semantics §3.5).
    pub(crate) fn first(self, mtls: bool, port: u16, host: &str) -> First {
        let alpn: &[&str] = match self {
            Self::Http1 | Self::AnyHttp => &["istio-http/1.1", "istio", "http/1.1"],
            Self::Http2 => &["istio-h2", "istio", "h2"],
            Self::Tcp | Self::AnyLine => &["istio-peer-exchange", "istio"],
        };
        if mtls {
            return First::Tls {
                sni: format!("outbound_.{port}_._.{host}"),
                alpn: alpn.iter().map(|name| (*name).to_owned()).collect(),
            };
        }
        match self {
            Self::Http1 | Self::AnyHttp => First::Http1,
            Self::Http2 => First::Http2,
            Self::Tcp | Self::AnyLine => First::Bytes,
        }
    }
}

/// Every port that an endpoint has.
pub(crate) const TARGETS: [u16; 4] = [8080, 8081, 8082, 8083];

/// A Service that selects `app: NAME`, with one port of each protocol.
pub(crate) fn service(namespace: &str, name: &str, cluster_ip: Ipv4Addr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  clusterIP: {cluster_ip}\n  \
         selector: {{app: {name}}}\n  ports:\n  - {{name: http, port: 80, targetPort: 8080}}\n  - {{name: http2, port: 81, \
         targetPort: 8081}}\n  - {{name: tcp, port: 82, targetPort: 8082}}\n  - {{name: any, port: 83, targetPort: 8083}}\n---\n"
    )
}

/// The label of a pod that has a proxy.
pub(crate) const PROXIED: &str = ", security.istio.io/tlsMode: istio";

/// A pod labelled `app: APP` and with `labels` besides (`, KEY: VALUE`).
pub(crate) fn pod(
    namespace: &str,
    name: &str,
    app: &str,
    account: &str,
    at: Ipv4Addr,
    labels: &str,
) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}{labels}}}}}\nspec: \
         {{serviceAccountName: {account}, containers: [{{name: app, image: app}}]}}\nstatus:\n  phase: Running\n  podIP: {at}\n  \
         podIPs: [{{ip: {at}}}]\n  conditions: [{{type: Ready, status: \"True\"}}]\n---\n"
    )
}

pub(crate) fn peer_authentication(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: \
         {spec}\n---\n"
    )
}

pub(crate) fn spiffe_id(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

/// An application with a proxy that calls others, and knows nothing of TLS.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) caller: Caller,
    pub(crate) id: String,
    /// Without redirection HTTP goes here; with it, straight to the service.
    forward: Option<SocketAddr>,
    /// Without redirection: the local port of each `HOST:PORT` that speaks no HTTP.
    upstreams: Vec<(String, SocketAddr)>,
}

/// A service as a client names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callee<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) at: Ipv4Addr,
}

impl Callee<'_> {
    pub(crate) fn host(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }
}

impl Client {
    /// One whose connections are redirected.
    pub(crate) fn captured(lab: &Lab, id: PodId) -> Self {
        let caller = Caller::new(&lab[id].at, Credential::Plaintext);
        Self { caller, id: lab[id].spiffe_id(), forward: None, upstreams: Vec::new() }
    }

    /// One without redirection, made with [`Client::without_capture`].
    pub(crate) fn forwarding(lab: &Lab, id: PodId, callees: &[Callee<'_>]) -> Self {
        let caller = Caller::new(&lab[id].at, Credential::Plaintext);
        let upstreams = upstreams(callees);
        let forward = Some(lab[id].on(15001));
        Self { caller, id: lab[id].spiffe_id(), forward, upstreams }
    }

    /// A pod without redirection that may call these.
    pub(crate) fn without_capture(name: &str, callees: &[Callee<'_>]) -> PodSpec {
        let spec = PodSpec::new("default", name).without_capture();
        upstreams(callees)
            .into_iter()
            .fold(spec, |spec, (to, at)| spec.agent_arg("--upstream").agent_arg(&format!("{to}={at}")))
    }

    /// Asks once, over a connection of its own.
    pub(crate) async fn ask(&self, kind: Kind, callee: &Callee<'_>) -> Answer {
        self.ask_on(kind, callee, kind.port()).await
    }

    /// On another port than usual.
    pub(crate) async fn ask_on(&self, kind: Kind, callee: &Callee<'_>, port: u16) -> Answer {
        let to = SocketAddr::from((callee.at, port));
        let request = get(&format!("http://{}:{port}/", callee.host()));
        match (kind, self.forward) {
            (Kind::Tcp | Kind::AnyLine, None) => self.line(to).await,
            (Kind::Tcp | Kind::AnyLine, Some(_)) => {
                let named = format!("{}:{port}", callee.host());
                let at =
                    self.upstreams.iter().find(|(to, _)| *to == named).expect("an upstream of the client");
                self.line(at.1).await
            }
            (Kind::Http1 | Kind::AnyHttp, None) => self.caller.send(to, request).await,
            (Kind::Http2, None) => match self.caller.http2(to).await {
                Ok(mut connection) => connection.send(request).await,
                Err(got) => Answer { got, body: String::new() },
            },
            (Kind::Http1 | Kind::Http2 | Kind::AnyHttp, Some(forward)) => {
                self.caller.send(forward, request).await
            }
        }
    }

    async fn line(&self, to: SocketAddr) -> Answer {
        Answer { got: self.caller.line(to, "hello").await, body: String::new() }
    }
}

/// What an answer to this is.
pub(crate) fn answered(kind: Kind) -> Got {
    match kind {
        Kind::Tcp | Kind::AnyLine => Got::Line,
        Kind::Http1 | Kind::Http2 | Kind::AnyHttp => Got::Status(200),
    }
}

/// What a client is told whose proxy believes nobody there.
pub(crate) fn refused(kind: Kind) -> Got {
    match kind {
        Kind::Tcp | Kind::AnyLine => Got::Closed,
        Kind::Http1 | Kind::Http2 | Kind::AnyHttp => Got::Status(503),
    }
}

fn upstreams(callees: &[Callee<'_>]) -> Vec<(String, SocketAddr)> {
    let both = callees.iter().flat_map(|callee| [82, 83].map(|port| format!("{}:{port}", callee.host())));
    let local = |n: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, 20_000 + u16::try_from(n).expect("a few")));
    both.enumerate().map(|(n, to)| (to, local(n))).collect()
}

/// A client with redirection and one without, started together.
///
/// # Errors
/// If one does not start.
pub(crate) async fn clients(lab: &mut Lab, callees: &[Callee<'_>]) -> Result<[Client; 2]> {
    let pods = lab
        .pods([PodSpec::new("default", "captured"), Client::without_capture("forwarding", callees)])
        .await?;
    Ok([Client::captured(lab, pods[0]), Client::forwarding(lab, pods[1], callees)])
}
