use rcgen::{CustomExtension, OtherNameValue};
use time::macros::datetime;

use super::*;
use crate::{IdError, Leaf, Svid, SvidError};

const NOW: OffsetDateTime = datetime!(2026-08-01 12:00:00.5 UTC);

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn authority() -> Authority {
    Authority::create(&domain(), NOW, Duration::days(3650)).unwrap()
}

fn mint(lifetime: Duration) -> Mint {
    let id = SpiffeId::workload(&domain(), "shop", "orders").unwrap();
    Mint { id, dns_names: Vec::new(), lifetime, usage: Usage::ServerAndClient }
}

fn request(key: &PrivateKey) -> SigningRequest {
    SigningRequest::from_pem(&SigningRequest::create(key).unwrap()).unwrap()
}

#[test]
fn a_root_is_a_ca_for_its_trust_domain() {
    let authority = authority();
    let der = authority.root().roots().next().unwrap().to_vec();
    let (_, root) = X509Certificate::from_der(&der).unwrap();
    assert!(root.is_ca() && root.verify_signature(None).is_ok());
    let names = root.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(names.value.general_names[0].to_string(), "URI(spiffe://cluster.local)");
    assert_eq!(authority.trust_domain(), Some(domain()));
    assert_eq!(authority.not_after(), datetime!(2036-07-29 12:00:00 UTC));
    assert_eq!(Leaf::parse(&der).unwrap_err(), SvidError::Ca);
}

#[test]
fn a_leaf_carries_the_minted_identity_and_nothing_of_the_request() {
    let (authority, key) = (authority(), PrivateKey::generate().unwrap());
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into().unwrap()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let text = params.serialize_request(&key).unwrap().pem().unwrap();
    let request = SigningRequest::from_pem(&text).unwrap();
    let mint = Mint { dns_names: vec!["countersign.istio-system.svc".into()], ..mint(Duration::hours(1)) };
    let issued = authority.sign(&request, &mint, NOW).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
    let root = authority.root().roots().next().unwrap().to_vec();
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.issuer().as_raw(), root.subject().as_raw());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let parsed = Leaf::parse(&issued.certificate).unwrap();
    assert_eq!(parsed.id, mint.id);
    assert_eq!(parsed.dns_names, mint.dns_names);
    assert_eq!((parsed.not_before, parsed.not_after), (issued.not_before, issued.not_after));
    assert_eq!(parsed.not_before, datetime!(2026-08-01 11:58:00 UTC));
    assert_eq!(parsed.not_after, datetime!(2026-08-01 13:00:00 UTC));
    assert_eq!((parsed.serial.len(), &parsed.serial), (32, &issued.serial));
    assert_eq!(parsed.half_life(), datetime!(2026-08-01 12:29:00 UTC));
}

#[test]
fn an_agents_leaf_is_for_clients_only() {
    let (authority, key) = (authority(), PrivateKey::generate().unwrap());
    let mint = Mint { usage: Usage::Client, ..mint(Duration::days(7)) };
    let issued = authority.sign(&request(&key), &mint, NOW).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
    let extended = leaf.extended_key_usage().unwrap().unwrap().value.clone();
    assert!(extended.client_auth && !extended.server_auth);
}

#[test]
fn a_leaf_never_outlives_its_root() {
    let authority = Authority::create(&domain(), NOW, Duration::minutes(30)).unwrap();
    let key = PrivateKey::generate().unwrap();
    let issued = authority.sign(&request(&key), &mint(Duration::hours(1)), NOW).unwrap();
    assert_eq!(issued.not_after, authority.not_after());
    let huge = authority.sign(&request(&key), &mint(Duration::MAX), NOW).unwrap();
    assert_eq!(huge.not_after, authority.not_after());
}

#[test]
fn refuses_to_sign_outside_the_roots_validity_or_for_no_time() {
    let (authority, key) = (authority(), PrivateKey::generate().unwrap());
    let sign = |lifetime, now| authority.sign(&request(&key), &mint(lifetime), now).unwrap_err();
    let hour = Duration::hours(1);
    assert!(matches!(sign(hour, authority.not_after()), AuthorityError::Expired(_)));
    assert!(matches!(sign(hour, NOW - hour), AuthorityError::NotYetValid(_)));
    assert!(matches!(sign(Duration::ZERO, NOW), AuthorityError::Lifetime));
    assert!(matches!(sign(-hour, NOW), AuthorityError::Lifetime));
    for name in ["", "a..b", "*.example", "a b", "a\0b", "ü"] {
        let mint = Mint { dns_names: vec![name.into()], ..mint(hour) };
        let error = authority.sign(&request(&key), &mint, NOW).unwrap_err();
        assert!(matches!(error, AuthorityError::DnsName(_)), "{name:?}");
    }
}

#[test]
fn loads_what_it_made_and_nothing_that_does_not_fit() {
    let first = authority();
    let pem = first.root().to_pem();
    let again =
        Authority::load(pem.as_bytes(), PrivateKey::from_pem(&first.key().to_pem()).unwrap()).unwrap();
    assert_eq!(again.root(), first.root());
    assert_eq!(again.not_after(), first.not_after());
    let other = Authority::load(pem.as_bytes(), PrivateKey::generate().unwrap());
    assert!(matches!(other, Err(AuthorityError::OtherKey)));
    let two = format!("{pem}{}", authority().root().to_pem());
    assert!(matches!(Authority::load(two.as_bytes(), first.key().clone()), Err(AuthorityError::RootCount)));
    let leaf_key = PrivateKey::generate().unwrap();
    let leaf = first.sign_own(&leaf_key, &mint(Duration::hours(1)), NOW).unwrap().to_pem();
    assert!(matches!(
        Authority::load(leaf.as_bytes(), leaf_key),
        Err(AuthorityError::Root(BundleError::NotCa))
    ));
    assert!(matches!(
        Authority::load(&pem.as_bytes()[..200], first.key().clone()),
        Err(AuthorityError::Root(_))
    ));
}

#[test]
fn secrets_do_not_reach_debug_output() {
    let authority = authority();
    let secret: String = format!("{:?}", authority.key().pkcs8_der());
    let shown = format!("{authority:?}");
    assert!(!shown.contains(secret.trim_matches(['[', ']'])), "{shown}");
    assert!(shown.contains("elided"), "{shown}");
}

/// A leaf signed by `authority` whose parameters `change` may spoil.
fn spoiled(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Result<Leaf, SvidError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![uri(&mint(Duration::HOUR).id)];
    change(&mut params);
    let key = PrivateKey::generate().unwrap();
    Leaf::parse(params.signed_by(&key, &authority.issuer).unwrap().der())
}

fn uri_name(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// What is wrong, how to do it, how it is refused.
type Case = (&'static str, fn(&mut CertificateParams), SvidError);

#[test]
fn a_leaf_of_any_other_form_is_no_svid() {
    let authority = authority();
    let parse = |change: fn(&mut CertificateParams)| spoiled(&authority, change);
    assert!(parse(|_| {}).is_ok());
    let cases: &[Case] = &[
        ("no names", |p| p.subject_alt_names.clear(), SvidError::NoId),
        (
            "DNS only",
            |p| p.subject_alt_names = vec![SanType::DnsName("a".try_into().unwrap())],
            SvidError::NoId,
        ),
        (
            "two IDs",
            |p| p.subject_alt_names.push(uri_name("spiffe://cluster.local/b")),
            SvidError::SeveralIds,
        ),
        ("the ID twice", |p| p.subject_alt_names.push(p.subject_alt_names[0].clone()), SvidError::SeveralIds),
        ("ID and web page", |p| p.subject_alt_names.push(uri_name("https://a/")), SvidError::SeveralIds),
        ("web page", |p| p.subject_alt_names = vec![uri_name("https://a/")], SvidError::Id(IdError::Scheme)),
        (
            "NUL in the ID",
            |p| p.subject_alt_names = vec![uri_name("spiffe://cluster.local/a\0b")],
            SvidError::Name,
        ),
        (
            "NUL in a DNS name",
            |p| p.subject_alt_names.push(SanType::DnsName("a\0.evil".try_into().unwrap())),
            SvidError::Name,
        ),
        (
            "otherName",
            |p| {
                let value = OtherNameValue::Utf8String("spiffe://cluster.local/b".into());
                p.subject_alt_names.push(SanType::OtherName((vec![1, 3, 6, 1], value)));
            },
            SvidError::Name,
        ),
        ("root ID", |p| p.subject_alt_names = vec![uri_name("spiffe://cluster.local")], SvidError::RootId),
        ("CA", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), SvidError::Ca),
        ("signs certificates", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign), SvidError::KeyUsage),
        ("signs lists", |p| p.key_usages.push(KeyUsagePurpose::CrlSign), SvidError::KeyUsage),
        ("no key usage", |p| p.key_usages.clear(), SvidError::KeyUsage),
        ("no signatures", |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment], SvidError::KeyUsage),
        (
            "second name extension",
            |p| {
                let names =
                    CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x03, 0x86, 0x01, b'x']);
                p.custom_extensions.push(names);
            },
            SvidError::Malformed,
        ),
    ];
    for (name, change, expected) in cases {
        assert_eq!(spoiled(&authority, change).unwrap_err(), *expected, "{name}");
    }
}

#[test]
fn an_undecodable_name_is_refused() {
    let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x04, 0x86, 0x02, 0xc3, 0x28]);
    let result = spoiled(&authority(), |params| {
        params.subject_alt_names.clear();
        params.custom_extensions.push(names);
    });
    assert_eq!(result.unwrap_err(), SvidError::Name);
}

#[test]
fn an_svid_is_a_chain_with_its_own_key() {
    let (authority, key) = (authority(), PrivateKey::generate().unwrap());
    let leaf = authority.sign(&request(&key), &mint(Duration::HOUR), NOW).unwrap();
    let chain = format!("{}{}", leaf.to_pem(), authority.root().to_pem());
    let svid = Svid::from_pem(&chain, key).unwrap();
    assert_eq!(svid.chain, std::slice::from_ref(&leaf.certificate));
    assert_eq!(svid.chain_pem(), leaf.to_pem());
    assert_eq!(Svid::from_pem(&chain, PrivateKey::generate().unwrap()).unwrap_err(), SvidError::OtherKey);
    assert_eq!(Svid::from_pem("", PrivateKey::generate().unwrap()).unwrap_err(), SvidError::Pem);
}

#[test]
fn a_bundle_is_roots_only_each_once() {
    let (one, two) = (authority(), authority());
    let key = PrivateKey::generate().unwrap();
    let leaf = one.sign(&request(&key), &mint(Duration::HOUR), NOW).unwrap().to_pem();
    let (one, two) = (one.root().to_pem(), two.root().to_pem());
    let both = TrustBundle::from_pem(format!("# roots\n{one}\n{two}{one}").as_bytes()).unwrap();
    assert_eq!(both.roots().len(), 2);
    assert_eq!(both.to_pem(), format!("{one}{two}"));
    let read = |text: String| TrustBundle::from_pem(text.as_bytes()).unwrap_err();
    assert_eq!(read(String::new()), BundleError::Empty);
    assert_eq!(read(format!("{one}{leaf}")), BundleError::NotCa);
    assert_eq!(read(format!("{one}{}", &two[..two.len() / 2])), BundleError::Pem);
    assert_eq!(read(format!("{one}{}", &*key.to_pem())), BundleError::Label("PRIVATE KEY".into()));
    let first = TrustBundle::from_pem(one.as_bytes()).unwrap();
    let second = TrustBundle::from_pem(two.as_bytes()).unwrap();
    assert_eq!(first.clone().union(&second).union(&first), both);
}
