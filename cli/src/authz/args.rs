//! The flags that describe a request.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::question::{Described, Values, Wire};

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct RequestArgs {
    /// Port of the workload, or of a service in front of it [default: its only one]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// A bare TCP connection
    #[arg(long, conflicts_with_all = ["host", "headers", "claims", "jwt_claims"])]
    tcp: bool,
    /// Host header
    #[arg(long)]
    host: Option<String>,
    /// Header; repeatable
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// Claim of a token that is taken to be genuine; a value that is a JSON list or object is taken as such; repeatable
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<String>,
    /// All claims of the token, as a JSON object
    #[arg(long, value_name = "FILE")]
    jwt_claims: Option<PathBuf>,
    /// Address of the TCP peer [default: the caller's]
    #[arg(long, value_name = "IP")]
    source_ip: Option<IpAddr>,
    /// Address of the client as X-Forwarded-For says it [default: the TCP peer's]
    #[arg(long, value_name = "IP")]
    remote_ip: Option<IpAddr>,
    /// SNI of the TLS connection
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
}

impl RequestArgs {
    /// # Errors
    /// If a flag is malformed, or the claims cannot be read.
    pub(crate) fn described(&self, method: Option<&str>, path: Option<&str>) -> Result<Described> {
        let mut described = Described {
            port: self.port,
            protocol: self.tcp.then_some(Wire::Tcp),
            method: method.map(str::to_owned),
            path: path.map(str::to_owned),
            host: self.host.clone(),
            claims: self.claims()?,
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            sni: self.sni.clone(),
            ..Described::default()
        };
        for header in &self.headers {
            let (name, value) =
                header.split_once('=').with_context(|| format!("{header:?} is not NAME=VALUE"))?;
            let values =
                described.headers.entry(name.to_owned()).or_insert_with(|| Values::Several(Vec::new()));
            if let Values::Several(values) = values {
                values.push(value.to_owned());
            }
        }
        Ok(described)
    }

    fn claims(&self) -> Result<Option<Map<String, Value>>> {
        let mut claims = match &self.jwt_claims {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                let claims = serde_json::from_str(&text);
                Some(claims.with_context(|| format!("{} is no JSON object", file.display()))?)
            }
            None => None,
        };
        for claim in &self.claims {
            let (name, value) =
                claim.split_once('=').with_context(|| format!("{claim:?} is not NAME=VALUE"))?;
            let json = serde_json::from_str(value).ok().filter(|v: &Value| v.is_array() || v.is_object());
            let value = json.unwrap_or_else(|| Value::from(value));
            claims.get_or_insert_with(Map::new).insert(name.to_owned(), value);
        }
        Ok(claims)
    }
}
