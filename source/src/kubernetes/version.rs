//! What the API server's version allows.

use std::time::Duration;

use kube::Client;

/// The first minor version of Kubernetes 1 whose kubelets run native sidecars without being told to.
const NATIVE_SIDECARS: u32 = 29;
const PAUSE: Duration = Duration::from_secs(1);

/// Whether the cluster runs native sidecars. Asks until it is answered.
pub async fn native_sidecars(client: Client) -> bool {
    loop {
        match client.apiserver_version().await {
            Ok(version) => {
                let native = at_least(&version.major, &version.minor, NATIVE_SIDECARS);
                tracing::info!(version = version.git_version, native = native, "native sidecars");
                return native;
            }
            Err(error) => tracing::debug!(%error, "the API server does not tell its version"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Some vendors add a `+` to the minor version.
fn at_least(major: &str, minor: &str, wanted: u32) -> bool {
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().unwrap_or(0);
    number(major) > 1 || number(major) == 1 && number(minor) >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (major, minor, expected) in [
            ("1", "29", true),
            ("1", "28", false),
            ("1", "29+", true),
            ("2", "0", true),
            ("1", "x", false),
            ("", "", false),
        ] {
            assert_eq!(at_least(major, minor, 29), expected, "{major}.{minor}");
        }
    }
}
