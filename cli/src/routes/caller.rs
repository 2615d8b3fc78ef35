//! Who calls on the TLS port, as far as the connection's certificate or a reviewed token says.

use std::sync::Arc;

use authn::ConnectionInfo;
use authn::token::TokenIdentity;
use controller::Handle;
use spiffe::{SpiffeId, TrustDomain};
use xds::ads::server::{Peer, PodBinding};

/// Reads it from a request's extensions. A token's identity is of the mesh's trust domain as it is at that moment.
pub(crate) fn caller(
    controller: Handle,
) -> impl Fn(&http::Extensions) -> Peer + Clone + Send + Sync + 'static {
    move |extensions| read(extensions, &controller.mesh().trust_domain)
}

fn read(extensions: &http::Extensions, domain: &str) -> Peer {
    let connection = extensions.get::<ConnectionInfo>();
    let address = connection.map(|connection| connection.peer);
    let certificate = connection.and_then(|connection| connection.identity.as_ref());
    if let Some(certificate) = certificate {
        let identity = Some(certificate.id.clone());
        return Peer { identity, token: false, pod: None, address, secure: true };
    }
    let token = extensions.get::<Arc<TokenIdentity>>();
    let identity = token.and_then(|token| {
        let domain: TrustDomain = domain.parse().ok()?;
        SpiffeId::workload(&domain, &token.namespace, &token.service_account).ok()
    });
    let pod = token.and_then(|token| token.pod.as_ref());
    let pod = pod.map(|pod| PodBinding { name: pod.name.clone(), uid: pod.uid.clone() });
    Peer { identity, token: token.is_some(), pod, address, secure: true }
}

#[cfg(test)]
mod tests {
    use authn::token::Pod;
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn a_token_is_a_service_account_of_the_mesh() {
        let mut extensions = http::Extensions::new();
        let nobody = read(&extensions, "example.org");
        assert_eq!((nobody.identity, nobody.token, nobody.secure), (None, false, true));
        let token = |pod: Option<Pod>| TokenIdentity {
            namespace: "shop".into(),
            service_account: "web".into(),
            pod,
            expires: OffsetDateTime::now_utc(),
        };
        extensions.insert(Arc::new(token(None)));
        let unbound = read(&extensions, "example.org");
        assert!(unbound.token && unbound.pod.is_none());
        let id = unbound.identity.expect("an identity").to_string();
        assert_eq!(id, "spiffe://example.org/ns/shop/sa/web");
        extensions.insert(Arc::new(token(Some(Pod { name: "web-1".into(), uid: "u".into() }))));
        let bound = read(&extensions, "example.org");
        assert_eq!(bound.pod, Some(PodBinding { name: "web-1".into(), uid: "u".into() }));
        assert_eq!(
            read(&extensions, "no domain").identity,
            None,
            "a mesh without a usable name knows nobody"
        );
    }
}
