//! What several of this crate's tests need.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::args::AgentArgs;

/// The agent's settings from a command line without its name.
pub(crate) fn arguments(line: &[&str]) -> AgentArgs {
    #[derive(Parser)]
    struct Wrapper {
        #[command(flatten)]
        agent: AgentArgs,
    }
    Wrapper::try_parse_from(std::iter::once(&"agent").chain(line)).expect("valid").agent
}

/// Every Envoy that `scripts/get-envoy` has put into the project.
pub(crate) fn envoys() -> Vec<PathBuf> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/envoy");
    let versions = std::fs::read_dir(cache).into_iter().flatten().flatten();
    versions.map(|version| version.path().join("envoy")).filter(|envoy| envoy.is_file()).collect()
}

/// A certificate chain, its key and the root, as PEM: (chain, key, root).
pub(crate) fn certificate() -> (String, zeroize::Zeroizing<String>, String) {
    let now = time::OffsetDateTime::now_utc();
    let domain = "cluster.local".parse().expect("a domain");
    let root =
        spiffe::Authority::create(&domain, now - time::Duration::DAY, time::Duration::WEEK).expect("a root");
    let key = spiffe::PrivateKey::generate().expect("a key");
    let mint = spiffe::Mint {
        id: "spiffe://cluster.local/ns/shop/sa/orders".parse().expect("an ID"),
        dns_names: Vec::new(),
        lifetime: time::Duration::HOUR,
        usage: spiffe::Usage::ServerAndClient,
    };
    let issued = root.sign_own(&key, &mint, now).expect("signed");
    (issued.to_pem(), key.to_pem(), root.root().to_pem())
}
