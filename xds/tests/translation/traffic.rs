//! Decisions of a real Envoy under what is generated.

use policy::{Atom, EffectivePolicy, MtlsMode, StringMatch};

use super::bed::{AUTO, Bed, HTTP, MESH_HTTP, MESH_TCP, TCP};
use super::pki::Ca;
use super::{fixtures, net};

fn allow_paths(prefix: &str) -> EffectivePolicy {
    let mut policy = EffectivePolicy::default();
    let path = Atom::Path(policy::PathMatch::Plain(StringMatch::parse(prefix)));
    let caller = Atom::Principal(StringMatch::parse("cluster.local/ns/foo/sa/client"));
    policy.allow.enforced = Some(vec![fixtures::rule("allow", &[path], &[caller])]);
    policy
}

#[tokio::test]
async fn modes_and_identities() {
    let Some(bed) = Bed::new().await else { return };
    let client = Some(&bed.client);
    bed.enforce(&EffectivePolicy::default()).await;
    for port in [HTTP, AUTO] {
        assert_eq!(bed.http(port, client, "/").await, Ok(200), "{port}");
        assert_eq!(bed.http(port, None, "/").await, Ok(200), "{port}");
    }
    for port in [AUTO, TCP] {
        assert!(bed.tcp(port, client).await, "{port}");
        assert!(bed.tcp(port, None).await, "{port}");
    }

    let mut strict = EffectivePolicy::default();
    strict.mtls.mode = MtlsMode::Strict;
    bed.enforce(&strict).await;
    let foreign = Ca::new().issue(&["spiffe://cluster.local/ns/foo/sa/client"]);
    let elsewhere = bed.ca.issue(&["spiffe://cluster.local.evil/ns/foo/sa/client"]);
    for port in [HTTP, AUTO] {
        assert_eq!(bed.http(port, client, "/").await, Ok(200), "{port}");
        for wrong in [None, Some(&foreign), Some(&elsewhere)] {
            assert!(bed.http(port, wrong, "/").await.is_err(), "{port}");
        }
    }
    for port in [AUTO, TCP] {
        assert!(bed.tcp(port, client).await, "{port}");
        for wrong in [None, Some(&foreign), Some(&elsewhere)] {
            assert!(!bed.tcp(port, wrong).await, "{port}");
        }
    }
}

#[tokio::test]
async fn a_revoked_permission_is_refused_on_the_same_connection() {
    let Some(bed) = Bed::new().await else { return };
    bed.enforce(&allow_paths("/a*")).await;
    let mut stream = net::tls(bed.at(HTTP), Some(&bed.client), &MESH_HTTP).await.unwrap();
    assert_eq!(net::http(&mut stream, "GET", "/a", "").await.unwrap().0, 200);
    assert_eq!(net::http(&mut stream, "GET", "/b", "").await.unwrap().0, 403);
    bed.enforce(&allow_paths("/b*")).await;
    assert_eq!(net::http(&mut stream, "GET", "/a", "").await.unwrap().0, 403);
    assert_eq!(net::http(&mut stream, "GET", "/b", "").await.unwrap().0, 200);
    // HTTP rules allow nothing over TCP.
    assert!(!bed.tcp(TCP, Some(&bed.client)).await);
    assert!(!bed.tcp(AUTO, Some(&bed.client)).await);
}

/// Design decision 3: a chain that STRICT removes still serves what is open, so the DENY slot has to refuse it.
#[tokio::test]
async fn strict_refuses_the_next_request_on_an_open_plaintext_connection() {
    let Some(bed) = Bed::new().await else { return };
    bed.enforce(&EffectivePolicy::default()).await;
    let mut stream = net::plain(bed.at(HTTP)).await.unwrap();
    assert_eq!(net::http(&mut stream, "GET", "/", "").await.unwrap().0, 200);
    let mut strict = EffectivePolicy::default();
    strict.mtls.mode = MtlsMode::Strict;
    bed.enforce(&strict).await;
    let next = net::http(&mut stream, "GET", "/", "").await;
    assert!(!matches!(next, Ok((200, _))), "{next:?}");
    assert_eq!(bed.http(HTTP, Some(&bed.client), "/").await, Ok(200));
}

/// The guard by itself, where the plaintext chain is still there: PERMISSIVE port in the listener, STRICT in the slot.
#[tokio::test]
async fn the_guard_denies_unauthenticated_callers_on_its_ports_only() {
    let Some(bed) = Bed::new().await else { return };
    let permissive = EffectivePolicy::default();
    bed.enforce(&permissive).await;
    let mut strict = EffectivePolicy::default();
    strict.mtls.ports = [(HTTP, MtlsMode::Strict)].into();
    strict.mtls.ports_set_by = Some(policy::ObjectName::new("foo", "ports"));
    // The slot of one, everything else of the other.
    let mut resources = bed.resources(&permissive);
    let slot = |r: &(xds::ResourceType, xds::Resource)| &*r.1.name == xds::build::rbac::DENY_SLOT;
    resources.retain(|r| !slot(r));
    resources.extend(bed.resources(&strict).into_iter().filter(slot));
    bed.envoy.server.publish(resources).await.unwrap();
    assert_eq!(bed.http(HTTP, None, "/").await, Ok(403));
    assert_eq!(bed.http(HTTP, Some(&bed.client), "/").await, Ok(200));
    assert_eq!(bed.http(AUTO, None, "/").await, Ok(200));
    assert!(
        bed.envoy
            .log()
            .contains("rbac_access_denied_matched_policy[ns[foo]-peerauthentication[ports]-strict]")
    );
}

#[tokio::test]
async fn tcp_rules_and_their_names_in_the_log() {
    let Some(bed) = Bed::new().await else { return };
    let mut policy = EffectivePolicy::default();
    let intruder = Atom::Principal(StringMatch::parse("*/sa/intruder"));
    policy.deny.enforced = Some(vec![fixtures::rule("no-intruder", &[], &[intruder])]);
    let shop = Atom::Namespace("foo".into());
    policy.allow.enforced = Some(vec![fixtures::rule("shop", &[], &[shop])]);
    bed.enforce(&policy).await;
    let intruder = bed.ca.issue(&["spiffe://cluster.local/ns/foo/sa/intruder"]);
    let elsewhere = bed.ca.issue(&["spiffe://cluster.local/ns/bar/sa/client"]);
    for port in [TCP, AUTO] {
        assert!(bed.tcp(port, Some(&bed.client)).await);
        for wrong in [None, Some(&intruder), Some(&elsewhere)] {
            assert!(!bed.tcp(port, wrong).await, "{port}");
        }
    }
    for (who, status) in
        [(Some(&bed.client), 200), (None, 403), (Some(&intruder), 403), (Some(&elsewhere), 403)]
    {
        assert_eq!(bed.http(HTTP, who, "/").await, Ok(status));
    }
    for detail in [
        "response_code_details=rbac_access_denied_matched_policy[ns[foo]-policy[no-intruder]-rule[0]]",
        "response_code_details=rbac_access_denied_matched_policy[none]",
        "connection_termination_details=rbac_access_denied_matched_policy[ns[foo]-policy[no-intruder]-rule[0]]",
        "http_policy=ns[foo]-policy[shop]-rule[0]",
        "downstream_peer_uri_san=spiffe://cluster.local/ns/foo/sa/client",
    ] {
        bed.envoy.logged(detail).await;
    }
}

/// The rejected plaintext and the rejected certificate are in the log as well.
#[tokio::test]
async fn strict_rejections_are_logged() {
    let Some(bed) = Bed::new().await else { return };
    let mut strict = EffectivePolicy::default();
    strict.mtls.mode = MtlsMode::Strict;
    bed.enforce(&strict).await;
    assert!(bed.http(HTTP, None, "/").await.is_err());
    let foreign = Ca::new().issue(&["spiffe://cluster.local/ns/foo/sa/client"]);
    assert!(bed.http(HTTP, Some(&foreign), "/").await.is_err());
    bed.envoy.logged("filter_chain_not_found").await;
    bed.envoy.logged("CERTIFICATE_VERIFY_FAILED").await;
    assert!(!bed.tcp(TCP, Some(&foreign)).await);
    bed.envoy.logged("filter_chain=inbound_8082_mtls-tcp").await;
}

#[tokio::test]
async fn a_draining_policy_closes_open_connections() {
    let Some(bed) = Bed::new().await else { return };
    let mut policy = EffectivePolicy::default();
    bed.enforce(&policy).await;
    let mut stream = net::tls(bed.at(HTTP), Some(&bed.client), &MESH_HTTP).await.unwrap();
    assert_eq!(net::http(&mut stream, "GET", "/", "").await.unwrap().0, 200);
    policy.drain = vec![(policy::ObjectName::new("foo", "a"), 1)];
    bed.enforce(&policy).await;
    net::closed(&mut stream).await;
}

/// Bytes of two RBAC modes differ, decisions do not.
#[tokio::test]
async fn inlined_policy_decides_alike() {
    let Some(mut bed) = Bed::new().await else { return };
    bed.inline = true;
    bed.enforce(&allow_paths("/a*")).await;
    assert_eq!(bed.http(HTTP, Some(&bed.client), "/a").await, Ok(200));
    assert_eq!(bed.http(HTTP, Some(&bed.client), "/b").await, Ok(403));
    assert_eq!(bed.http(HTTP, None, "/a").await, Ok(403));
}

/// A server that speaks first is heard, and only by those who have shown their certificate.
#[tokio::test]
async fn server_first_protocols() {
    let Some(mut bed) = Bed::new().await else { return };
    let (app, accepted) = net::greeter().await;
    bed.app = app;
    let mut strict = EffectivePolicy::default();
    strict.mtls.mode = MtlsMode::Strict;
    bed.enforce(&strict).await;
    let foreign = Ca::new().issue(&["spiffe://cluster.local/ns/foo/sa/client"]);
    for port in [TCP, AUTO] {
        let mut stream = net::tls(bed.at(port), Some(&foreign), &MESH_TCP).await.unwrap();
        assert!(!net::greeted(&mut stream).await, "{port}");
        let mut stream = net::tls(bed.at(port), Some(&bed.client), &MESH_TCP).await.unwrap();
        assert!(net::greeted(&mut stream).await, "{port}");
    }
    let accepted = accepted.load(std::sync::atomic::Ordering::Relaxed);
    // Envoy 1.36 connects before it has verified.
    assert!(accepted == 2 || bed.envoy.version().starts_with("1.36."), "{accepted} connections");
}
