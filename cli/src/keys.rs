//! How signing keys are fetched that policies name the place of (`jwksUri`, or an issuer's discovery): the flags that
//! every process with a controller has.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use authn::jwks::{Client, Guard, Schedule};
use ipnet::IpNet;

use crate::duration;

/// Where signing keys may be fetched from, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct KeysArgs {
    /// PEM file of CAs that are trusted, besides the system's, when signing keys are fetched from a policy's jwksUri
    #[arg(long, env = "COUNTERSIGN_JWKS_CA", value_name = "FILE")]
    pub(crate) jwks_ca: Option<PathBuf>,
    /// HTTP proxy for fetching signing keys
    #[arg(long, env = "COUNTERSIGN_JWKS_PROXY", value_name = "URL")]
    pub(crate) jwks_proxy: Option<String>,
    /// Address ranges that signing keys are never fetched from, besides link-local ones and metadata services
    #[arg(long, env = "COUNTERSIGN_JWKS_BLOCK", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) jwks_block: Vec<IpNet>,
    /// How often signing keys are fetched again [default: 20m]
    #[arg(long, env = "COUNTERSIGN_JWKS_REFRESH", value_name = "DURATION")]
    pub(crate) jwks_refresh: Option<Span>,
    /// How long signing keys are used after the last fetch that succeeded; then tokens are refused [default: 24h]
    #[arg(long, env = "COUNTERSIGN_JWKS_MAX_AGE", value_name = "DURATION")]
    pub(crate) jwks_max_age: Option<Span>,
}

/// A duration longer than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration::parse(text)? {
            Duration::ZERO => Err("must be longer than nothing".to_owned()),
            span => Ok(Self(span)),
        }
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl KeysArgs {
    /// These, and where one is not set that of `file`.
    pub(crate) fn or(self, file: Self) -> Self {
        let Self { jwks_ca, jwks_proxy, jwks_block, jwks_refresh, jwks_max_age } = self;
        Self {
            jwks_ca: jwks_ca.or(file.jwks_ca),
            jwks_proxy: jwks_proxy.or(file.jwks_proxy),
            jwks_block: if jwks_block.is_empty() { file.jwks_block } else { jwks_block },
            jwks_refresh: jwks_refresh.or(file.jwks_refresh),
            jwks_max_age: jwks_max_age.or(file.jwks_max_age),
        }
    }

    /// # Errors
    /// If the CA file or the proxy cannot be used.
    pub(crate) fn client(&self) -> Result<(Client, Schedule)> {
        let Self { jwks_ca, jwks_proxy, jwks_block, jwks_refresh, jwks_max_age } = self;
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
        let bundle = jwks_ca.as_ref().map(read).transpose()?;
        let client = Client::new(Guard::new(jwks_block.clone()), bundle.as_deref(), jwks_proxy.as_deref())?;
        let default = Schedule::default();
        let schedule = Schedule {
            refresh: jwks_refresh.map_or(default.refresh, |Span(span)| span),
            staleness: jwks_max_age.map_or(default.staleness, |Span(span)| span),
            ..default
        };
        Ok((client, schedule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_and_mistakes_are_named() {
        let file = KeysArgs {
            jwks_ca: Some("/nowhere/ca.pem".into()),
            jwks_proxy: Some("http://proxy:3128".to_owned()),
            jwks_block: vec!["10.0.0.0/8".parse().unwrap()],
            jwks_refresh: Some("1s".parse().unwrap()),
            jwks_max_age: None,
        };
        let flags = KeysArgs { jwks_proxy: Some("http://other:1".to_owned()), ..KeysArgs::default() };
        let both = flags.or(file.clone());
        assert_eq!(both.jwks_proxy.as_deref(), Some("http://other:1"));
        assert_eq!(both.jwks_block, file.jwks_block);
        assert!(format!("{:#}", both.client().unwrap_err()).contains("/nowhere/ca.pem"));
        let (_, schedule) = KeysArgs { jwks_ca: None, ..both }.client().unwrap();
        assert_eq!(schedule.refresh, Duration::from_secs(1));
        assert_eq!(schedule.staleness, Schedule::default().staleness);
        let nonsense = KeysArgs { jwks_proxy: Some("::".to_owned()), ..KeysArgs::default() };
        assert!(nonsense.client().is_err());
    }
}
