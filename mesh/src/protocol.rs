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
    /// From `appProtocol` if set, else from the port's name: what stands before the first `-`. Without a word that is
    /// known, TCP for the well-known ports of protocols in which the server speaks first.
    pub fn detect(app_protocol: Option<&str>, name: &str, port: u16) -> Self {
        match app_protocol {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Tcp,
            _ => {}
        }
        let word = app_protocol.unwrap_or(name).to_ascii_lowercase();
        if word.starts_with("grpc-web") {
            return Self::Http2;
        }
        match word.split('-').next().unwrap_or_default() {
            "http" | "http_proxy" => Self::Http,
            "http2" | "grpc" => Self::Http2,
            "tcp" | "https" | "tls" | "mongo" | "redis" | "mysql" => Self::Tcp,
            _ if matches!(port, 25 | 53 | 3306 | 27017) => Self::Tcp,
            _ => Self::Auto,
        }
    }

    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Semantics §3.1.
    #[test]
    fn detection() {
        for (app_protocol, name, port, expected) in [
            (None, "http", 80, Protocol::Http),
            (None, "HTTP-web", 80, Protocol::Http),
            (None, "http_proxy", 80, Protocol::Http),
            (None, "http2-x", 80, Protocol::Http2),
            (None, "grpc", 80, Protocol::Http2),
            (None, "grpc-web", 80, Protocol::Http2),
            (None, "grpc-web-x", 80, Protocol::Http2),
            (None, "https", 443, Protocol::Tcp),
            (None, "tls-x", 443, Protocol::Tcp),
            (None, "tcp", 80, Protocol::Tcp),
            (None, "redis", 80, Protocol::Tcp),
            (None, "httpish", 80, Protocol::Auto),
            (None, "http1", 80, Protocol::Auto),
            (None, "web-http", 80, Protocol::Auto),
            (None, "", 8080, Protocol::Auto),
            (None, "", 3306, Protocol::Tcp),
            (None, "unknown", 27017, Protocol::Tcp),
            (None, "http", 3306, Protocol::Http),
            (Some("http"), "tcp-x", 80, Protocol::Http),
            (Some("tcp"), "http", 80, Protocol::Tcp),
            (Some("kubernetes.io/h2c"), "tcp", 80, Protocol::Http2),
            (Some("kubernetes.io/ws"), "tcp", 80, Protocol::Http),
            (Some("kubernetes.io/wss"), "http", 80, Protocol::Tcp),
            (Some("http-x"), "tcp", 80, Protocol::Http),
            (Some("example.com/own"), "http", 80, Protocol::Auto),
            (Some("example.com/own"), "http", 53, Protocol::Tcp),
            (None, "kubernetes.io/h2c", 80, Protocol::Auto),
        ] {
            assert_eq!(
                Protocol::detect(app_protocol, name, port),
                expected,
                "{app_protocol:?} {name:?} {port}"
            );
        }
    }
}
