//! Other people's signing keys, from the place that a policy names to a real Envoy: rotated, withheld, spoilt, given up
//! and back. At no moment is a token taken whose key is not in the last good set.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use http::Method;
use serde_json::json;
use tests::here;
use tests::lab::net::BRIDGE;
use tests::lab::{
    self, ALLOWED, Caller, Credential, Got, Lab, PodSpec, Protocol, Signer, UNAUTHENTICATED, request, until,
    within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// What the identity provider answers: everything of it, from the status line on.
type Page = Arc<Mutex<String>>;

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn set(page: &Page, answer: String) {
    *page.lock().unwrap_or_else(PoisonError::into_inner) = answer;
}

/// An identity provider where the control plane can reach it.
async fn provider(first: String) -> Result<(SocketAddr, Page)> {
    let listener = TcpListener::bind((BRIDGE, 0)).await?;
    let (address, page) = (listener.local_addr()?, Page::new(Mutex::new(first)));
    let answers = page.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok((address, page))
}

fn policies(issuer: &str, keys: SocketAddr) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: login, namespace: \
         default}}\nspec:\n  jwtRules:\n  - issuer: {issuer}\n    jwksUri: http://{keys}/keys\n    timeout: 2s\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: users, namespace: \
         default}}\nspec:\n  rules:\n  - from: [{{source: {{requestPrincipals: ['*']}}}}]\n"
    )
}

async fn with(caller: &Caller, on: SocketAddr, token: &str) -> Got {
    let mut asked = request(Method::GET, "/");
    asked.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
    caller.send(on, asked).await.got
}

async fn status_says(lab: &Lab, part: &str) -> Result<()> {
    until(&format!("the status says {part:?}"), async || {
        Ok(lab.control.monitoring("/status").await.body.contains(part).then_some(()))
    })
    .await
}

async fn metric(lab: &Lab, line: &str) -> Result<()> {
    until(&format!("the metrics say {line:?}"), async || {
        let metrics = lab.control.monitoring("/metrics").await.body;
        Ok(metrics.lines().any(|found| found == line).then_some(()))
    })
    .await
}

#[test]
fn keys_are_rotated_kept_given_up_and_back() {
    lab::run(here!(), async |lab| {
        let issuer = "https://login.example";
        let (old, new) = (Signer::new(issuer)?, Signer::new(issuer)?);
        let (at, page) =
            provider("HTTP/1.1 503 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()).await?;
        lab.control.args = ["--jwks-refresh", "200ms", "--jwks-max-age", "12s"].map(str::to_owned).to_vec();
        lab.save("policies.yaml", &policies(issuer, at))?;
        lab.start().await?;
        let orders = lab.pod(PodSpec::new("default", "orders").port(8080, Protocol::Http)).await?;
        let (caller, on) = (lab.caller(Credential::Plaintext), lab[orders].on(8080));
        let tokens = [old.token(&json!({}))?, new.token(&json!({}))?];
        let [of_old, of_new] = &tokens;
        // No keys yet: nobody's token is good.
        lab.becomes(UNAUTHENTICATED, async |_| with(&caller, on, of_old).await).await?;
        status_says(lab, "JwksNotFetched").await?;
        metric(lab, "countersign_jwks_missing 1").await?;
        set(&page, ok(&old.jwks()));
        lab.becomes(ALLOWED, async |_| with(&caller, on, of_old).await).await?;
        ensure!(with(&caller, on, of_new).await == UNAUTHENTICATED, "another key");
        // Rotated.
        set(&page, ok(&new.jwks()));
        lab.becomes(ALLOWED, async |_| with(&caller, on, of_new).await).await?;
        lab.becomes(UNAUTHENTICATED, async |_| with(&caller, on, of_old).await).await?;
        // What is no key set takes none away, and is told of.
        let redirect = "HTTP/1.1 302 X\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\nconnection: \
                        close\r\n\r\n";
        for (answer, part) in [
            (ok("<html>sign in</html>"), "earlier keys of these issuers are in use"),
            (ok("{}"), "earlier keys of these issuers are in use"),
            (redirect.to_owned(), "redirected to where it must not go: address 169.254.169.254 is blocked"),
        ] {
            set(&page, answer);
            status_says(lab, part).await?;
            metric(lab, "countersign_jwks_stale 1").await?;
            ensure!(with(&caller, on, of_new).await == ALLOWED, "kept while {part}");
            ensure!(with(&caller, on, of_old).await == UNAUTHENTICATED, "never the older ones");
            set(&page, ok(&new.jwks()));
            metric(lab, "countersign_jwks_fresh 1").await?;
        }
        // The budget ends: refused, not believed for ever; and a good answer ends that.
        set(&page, String::new());
        lab.becomes(UNAUTHENTICATED, async |_| with(&caller, on, of_new).await).await?;
        status_says(lab, "JwksNotFetched").await?;
        ensure!(with(&caller, on, of_old).await == UNAUTHENTICATED, "never the older ones");
        // Failures have made the pauses longer; at most a minute.
        set(&page, ok(&new.jwks()));
        within(Duration::from_secs(90), "the keys are back", async || {
            Ok((with(&caller, on, of_new).await == ALLOWED).then_some(()))
        })
        .await
    });
}
