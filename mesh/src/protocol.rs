//! Which protocol a Service port speaks (semantics §3.1).

/// A Service port's protocol. UDP ports never get here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1 (and WebSocket).
    Http,
    /// HTTP/2 in clear text, gRPC.
    Http2,
    /// Opaque bytes: tcp, tls, https, mongo, redis, mysql.
    Tcp,
    /// Undeclared: sniffed.
    Auto,
}

impl Protocol {
    /// From `appProtocol` if set, else from the port name's prefix before `-`; well-known TCP ports otherwise.
    pub fn detect(app_protocol: Option<&str>, name: &str, port: u16) -> Self {
        if let Some(app) = app_protocol {
            return match app.to_ascii_lowercase().as_str() {
                "kubernetes.io/h2c" => Self::Http2,
                "kubernetes.io/ws" => Self::Http,
                "kubernetes.io/wss" => Self::Tcp,
                other => Self::named(other).unwrap_or(Self::Auto),
            };
        }
        let lower = name.to_ascii_lowercase();
        let prefix = if lower.starts_with("grpc-web") { "grpc-web" } else { lower.split('-').next().unwrap_or("") };
        Self::named(prefix).unwrap_or(match port {
            25 | 53 | 3306 | 27017 => Self::Tcp,
            _ => Self::Auto,
        })
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "http" | "http_proxy" | "http1" => Some(Self::Http),
            "http2" | "grpc" | "grpc-web" => Some(Self::Http2),
            "tcp" | "https" | "tls" | "mongo" | "redis" | "mysql" => Some(Self::Tcp),
            _ => None,
        }
    }

    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }
}
