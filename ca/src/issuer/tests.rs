use spiffe::Leaf;
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-08-01 12:00:00 UTC);

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn authority(lifetime: Duration) -> Authority {
    Authority::create(&domain(), NOW, lifetime).unwrap()
}

fn issuer(lifetime: Duration) -> Arc<Issuer> {
    Issuer::new(domain(), authority(lifetime), Lifetimes::default())
}

fn request() -> SigningRequest {
    let key = PrivateKey::generate().unwrap();
    SigningRequest::from_pem(&SigningRequest::create(&key).unwrap()).unwrap()
}

fn orders() -> SpiffeId {
    SpiffeId::workload(&domain(), "shop", "orders").unwrap()
}

#[test]
fn lifetimes_follow_the_request_within_the_limit() {
    let issuer = issuer(Duration::days(3650));
    let ends =
        |seconds| issuer.workload(orders(), &request(), seconds, NOW).map(|made| made.leaf.not_after - NOW);
    let day = Duration::DAY.whole_seconds();
    for (seconds, lifetime) in [(0, Duration::HOUR), (-5, Duration::HOUR), (i64::MIN, Duration::HOUR)] {
        assert_eq!(ends(seconds).unwrap(), lifetime);
    }
    for seconds in [1, 60, day] {
        assert_eq!(ends(seconds).unwrap(), Duration::seconds(seconds));
    }
    for seconds in [day + 1, 10 * 365 * day, i64::MAX] {
        assert!(matches!(ends(seconds), Err(Error::Lifetime { .. })), "{seconds}");
    }
}

#[test]
fn nothing_outlives_the_root_and_an_ended_root_signs_nothing() {
    let issuer = issuer(Duration::minutes(30));
    let end = issuer.root_not_after();
    let name = WorkloadName::new("shop", "orders-1").unwrap();
    assert_eq!(issuer.workload(orders(), &request(), 0, NOW).unwrap().leaf.not_after, end);
    assert_eq!(issuer.agent(&name, &request(), NOW).unwrap().leaf.not_after, end);
    assert_eq!(issuer.own(orders(), Vec::new(), NOW).unwrap().leaf.not_after, end);
    let ended = |error| matches!(error, Error::Authority(spiffe::AuthorityError::Expired(_)));
    assert!(ended(issuer.workload(orders(), &request(), 0, end).unwrap_err()));
    assert!(ended(issuer.agent(&name, &request(), end).unwrap_err()));
    assert!(ended(issuer.own(orders(), Vec::new(), end).unwrap_err()));
}

#[test]
fn an_agent_is_named_after_its_workload_and_lives_a_week() {
    let name = WorkloadName::new("shop", "orders-1").unwrap();
    let made = issuer(Duration::days(3650)).agent(&name, &request(), NOW).unwrap();
    assert_eq!(made.id.as_str(), "spiffe://cluster.local/countersign/agent/shop/orders-1");
    assert_eq!(made.leaf.not_after - NOW, Duration::days(7));
}

#[test]
fn the_chain_is_the_leaf_then_all_roots_also_while_roots_change() {
    let (issuer, next) = (issuer(Duration::days(3650)), authority(Duration::days(3650)));
    let (old, new) = (issuer.bundle(), next.root().clone());
    let chain = || issuer.workload(orders(), &request(), 0, NOW).unwrap().chain;
    assert_eq!(chain()[1..], [old.to_pem()]);
    assert!(chain().iter().all(|element| element.ends_with("-----END CERTIFICATE-----\n")));
    let mut generation = issuer.generation();
    issuer.rotate(next, std::slice::from_ref(&old));
    assert!(generation.has_changed().unwrap());
    generation.mark_unchanged();
    let after = chain();
    assert_eq!(after.len(), 2);
    assert_eq!(after[1], new.union(&old).to_pem());
    let leaf = Svid::from_pem(&after[0], PrivateKey::generate().unwrap());
    assert!(leaf.is_err(), "the key is the caller's, not ours");
}

#[test]
fn our_own_svid_comes_with_its_names() {
    let svid = issuer(Duration::days(3650)).own(orders(), vec!["localhost".into()], NOW).unwrap();
    let Leaf { id, dns_names, .. } = svid.leaf;
    assert_eq!((id, dns_names), (orders(), vec!["localhost".to_owned()]));
}
