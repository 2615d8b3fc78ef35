//! A right is taken away while a connection that uses it is open: how long until that connection feels it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::call::{Calls, Connection, Outcome, order};
use super::shop::Shop;
use super::table::milliseconds;

/// How long a change may take to be felt.
const PATIENCE: Duration = Duration::from_secs(10);
const POLICY: &str = "policies/orders-policy.yaml";

/// What was measured, each from the moment the file was saved.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Live {
    pub(super) denied_after_ms: f64,
    /// Requests still answered with 200 after the file was saved.
    pub(super) still_allowed: u32,
    pub(super) allowed_again_after_ms: f64,
}

/// Gives the payment service's right to somebody else, and back, with a request after the other on one connection.
///
/// # Errors
/// If the connection does not live through it, or a change is not felt.
pub(super) async fn revoke(calls: &Calls) -> Result<Live> {
    let mut connection = match calls.live().await {
        Ok(connection) => connection,
        Err(outcome) => bail!("no connection to begin with: {outcome}"),
    };
    let before = connection.again(order("POST", "live")).await;
    if before != Outcome::Http(200) {
        bail!("the right to be taken away was not there: {before}");
    }
    let file = calls.shop.files().join(POLICY);
    let text = std::fs::read_to_string(&file)?;
    let changed = text.replace("/sa/payment-service", "/sa/nobody");
    let (denied, still_allowed) = change(&mut connection, &file, &changed, 403).await?;
    let (allowed, _) = change(&mut connection, &file, &text, 200).await?;
    Ok(Live {
        denied_after_ms: milliseconds(denied),
        still_allowed,
        allowed_again_after_ms: milliseconds(allowed),
    })
}

/// Saves, and asks on the same connection until the answer is `expected`: how long that took, and the number of other
/// answers until then.
async fn change(
    connection: &mut Connection,
    file: &Path,
    text: &str,
    expected: u16,
) -> Result<(Duration, u32)> {
    save(file, text)?;
    let saved = Instant::now();
    for others in 0.. {
        match connection.again(order("POST", "live")).await {
            Outcome::Http(status) if status == expected => return Ok((saved.elapsed(), others)),
            Outcome::Http(_) if saved.elapsed() < PATIENCE => {}
            Outcome::Http(status) => bail!("still {status} after {PATIENCE:?}"),
            other => bail!("the connection did not live through the change: {other}"),
        }
    }
    unreachable!("the loop has no end")
}

/// Whole or not at all, as an editor saves.
fn save(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, text).context("writing the new policy")?;
    std::fs::rename(&new, file).context("putting the new policy in place")
}

/// The file of the policy that is edited.
pub(super) fn policy(shop: &Shop) -> std::path::PathBuf {
    shop.files().join(POLICY)
}
