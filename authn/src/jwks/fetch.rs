//! One fetch: HTTP with limits on time, size and redirects. Keeps nothing.

use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Proxy, Url};
use serde::Deserialize;

use super::{Guard, Location};

/// Longest answer in bytes.
const MAX_BYTES: usize = 1 << 20;
const MAX_REDIRECTS: usize = 3;
const DISCOVERY: &str = "/.well-known/openid-configuration";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An HTTP client that reaches only what its [`Guard`] allows. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    guard: Guard,
}

/// A client cannot be made of these settings.
#[derive(Debug, thiserror::Error)]
pub enum UnusableClient {
    #[error("the CA bundle for key sets cannot be read")]
    Bundle(#[source] reqwest::Error),
    #[error("the CA bundle for key sets holds no certificate")]
    EmptyBundle,
    #[error("the proxy for key sets cannot be used")]
    Proxy(#[source] reqwest::Error),
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// Why there are no new keys.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("not a usable URI: {0}")]
    Uri(String),
    // reqwest says what went wrong only in its sources.
    #[error("{}", crate::chain(.0))]
    Http(#[source] reqwest::Error),
    #[error("answered {0}")]
    Status(reqwest::StatusCode),
    #[error("answered more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    #[error("the answer is not text")]
    NotText,
    #[error("the discovery document cannot be read: {0}")]
    Discovery(String),
}

impl Client {
    /// `bundle`: PEM of CAs that are trusted besides the system's. `proxy`: an HTTP proxy; names are resolved there, so
    /// that the guard sees only addresses written in URIs.
    ///
    /// # Errors
    /// If bundle or proxy cannot be used.
    pub fn new(guard: Guard, bundle: Option<&[u8]>, proxy: Option<&str>) -> Result<Self, UnusableClient> {
        let redirects = guard.clone();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("countersign/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::custom(move |attempt| redirect(&redirects, attempt)))
            .referer(false)
            .pool_max_idle_per_host(1)
            .dns_resolver(std::sync::Arc::new(guard.clone()))
            .no_proxy();
        if let Some(pem) = bundle {
            let certificates = Certificate::from_pem_bundle(pem).map_err(UnusableClient::Bundle)?;
            if certificates.is_empty() {
                return Err(UnusableClient::EmptyBundle);
            }
            builder = builder.tls_certs_merge(certificates);
        }
        if let Some(proxy) = proxy {
            builder = builder.proxy(Proxy::all(proxy).map_err(UnusableClient::Proxy)?);
        }
        Ok(Self { http: builder.build().map_err(UnusableClient::Client)?, guard })
    }

    /// The text of the key set at `location`, whatever it holds.
    ///
    /// # Errors
    /// If it cannot be had within `timeout`, redirects and discovery included.
    pub async fn fetch(&self, location: &Location, timeout: Duration) -> Result<String, FetchError> {
        let fetch = async {
            match location {
                Location::Uri(uri) => self.get(uri).await,
                Location::Issuer(issuer) => {
                    let document = self.get(&format!("{}{DISCOVERY}", issuer.trim_end_matches('/'))).await?;
                    let Document { jwks_uri } = serde_json::from_str(&document)
                        .map_err(|error| FetchError::Discovery(error.to_string()))?;
                    self.get(&jwks_uri).await
                }
            }
        };
        tokio::time::timeout(timeout, fetch).await.unwrap_or(Err(FetchError::Timeout(timeout)))
    }

    async fn get(&self, uri: &str) -> Result<String, FetchError> {
        let url: Url = uri.parse().map_err(|_| FetchError::Uri(format!("{uri:?}")))?;
        self.guard.check(&url).map_err(FetchError::Uri)?;
        let mut answer = self.http.get(url).send().await.map_err(FetchError::Http)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(FetchError::Http)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        String::from_utf8(body).map_err(|_| FetchError::NotText)
    }
}

/// OpenID Connect Discovery 1.0 §3, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Document {
    jwks_uri: String,
}

fn redirect(guard: &Guard, attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let secure = attempt.previous().last().is_some_and(|from| from.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error(format!("more than {MAX_REDIRECTS} redirects"));
    }
    if secure && attempt.url().scheme() != "https" {
        return attempt.error("redirected from https to http");
    }
    match guard.check(attempt.url()) {
        Ok(()) => attempt.follow(),
        Err(why) => attempt.error(format!("redirected to where it must not go: {why}")),
    }
}
