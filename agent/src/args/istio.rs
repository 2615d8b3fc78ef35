//! What Istio's injection template tells an agent by environment (semantics §6.9), as defaults of our own settings.

use std::net::IpAddr;
use std::sync::LazyLock;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `POD_NAMESPACE/POD_NAME`.
pub(super) fn pod() -> Option<&'static str> {
    static POD: LazyLock<Option<String>> =
        LazyLock::new(|| Some(format!("{}/{}", variable("POD_NAMESPACE")?, variable("POD_NAME")?)));
    POD.as_deref()
}

/// `INSTANCE_IP`, if it is an address.
pub(super) fn instance_ip() -> Option<&'static str> {
    static IP: LazyLock<Option<String>> =
        LazyLock::new(|| variable("INSTANCE_IP").filter(|ip| ip.parse::<IpAddr>().is_ok()));
    IP.as_deref()
}

/// `CA_ADDR`.
pub(super) fn ca_address() -> Option<&'static str> {
    static ADDRESS: LazyLock<Option<String>> = LazyLock::new(|| variable("CA_ADDR"));
    ADDRESS.as_deref()
}

/// `discoveryAddress` of `PROXY_CONFIG` (JSON).
pub(super) fn discovery_address() -> Option<&'static str> {
    static ADDRESS: LazyLock<Option<String>> =
        LazyLock::new(|| variable("PROXY_CONFIG").and_then(|config| discovery_of(&config)));
    ADDRESS.as_deref()
}

fn discovery_of(config: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    config["discoveryAddress"].as_str().filter(|address| !address.is_empty()).map(str::to_owned)
}

/// `TRUST_DOMAIN`: for roots that name none.
pub(crate) fn trust_domain() -> Option<spiffe::TrustDomain> {
    variable("TRUST_DOMAIN")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_config_names_the_control_plane() {
        let address = |config| discovery_of(config);
        assert_eq!(
            address(r#"{"discoveryAddress":"istiod.a.svc:15012","x":1}"#).as_deref(),
            Some("istiod.a.svc:15012")
        );
        for none in ["", "{}", "[", r#"{"discoveryAddress":7}"#, r#"{"discoveryAddress":""}"#] {
            assert_eq!(address(none), None, "{none}");
        }
    }
}
