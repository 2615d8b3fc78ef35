use std::time::Duration;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn certificates(names: &[&str]) -> Arc<Certificates> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
    Certificates::new(names, Lifetimes::default(), metrics)
}

fn count(bundle: &[u8]) -> usize {
    std::str::from_utf8(bundle).unwrap().matches("BEGIN CERTIFICATE").count()
}

/// The whole life: made, left alone, staged, settled, used, and again.
#[test]
fn a_new_authority_is_told_before_its_certificate_is_used() {
    let ours = certificates(&["localhost", "127.0.0.1"]);
    let start = SystemTime::now();
    let first = ours.next(None, start).unwrap();
    assert_eq!(count(&ours.adopt(&first, start).unwrap()), 1);
    assert!(ours.next(Some(&first), start).is_none());
    assert!(ours.next(Some(&first), start + DAY * 59).is_none());
    let due = start + DAY * 61;
    let staged = ours.next(Some(&first), due).unwrap();
    let shown = |ours: &Certificates| ours.used.load_full().unwrap().cert.clone();
    let before = shown(&ours);
    let both = ours.adopt(&staged, due).unwrap();
    assert_eq!(count(&both), 2);
    assert_eq!(shown(&ours), before);
    assert!(ours.next(Some(&staged), due + Duration::from_secs(60)).is_none());
    let settled = due + Duration::from_secs(121);
    let used = ours.next(Some(&staged), settled).unwrap();
    let bundle = ours.adopt(&used, settled).unwrap();
    assert_ne!(shown(&ours), before);
    assert_eq!(count(&bundle), 2);
    assert!(ours.next(Some(&used), settled).is_none());
    // The old authority goes with its end.
    assert_eq!(count(&ours.adopt(&used, start + DAY * 91).unwrap()), 1);
}

#[test]
fn what_cannot_be_used_is_replaced_at_once() {
    let ours = certificates(&["localhost"]);
    let now = SystemTime::now();
    let good = ours.next(None, now).unwrap();
    let other = ours.next(None, now).unwrap();
    for (key, value) in [
        ("tls.crt", b"garbage".to_vec()),
        ("tls.crt", other["tls.crt"].clone()),
        ("tls.key", other["tls.key"].clone()),
        ("ca.crt", other["ca.crt"].clone()),
        ("ca.crt", Vec::new()),
    ] {
        let mut bad = good.clone();
        bad.insert(key.to_owned(), value);
        assert!(ours.adopt(&bad, now).is_err(), "{key}");
        assert!(!ours.next(Some(&bad), now).unwrap().contains_key(STAGED), "{key}");
    }
    // All replicas were down for longer than it lives.
    let late = now + DAY * 91;
    assert!(ours.adopt(&good, late).is_err());
    let renewed = ours.next(Some(&good), late).unwrap();
    assert_eq!(count(&ours.adopt(&renewed, late).unwrap()), 1);
}

#[test]
fn replicas_with_other_names_do_not_take_turns() {
    let (one, two) = (certificates(&["localhost", "a.example"]), certificates(&["localhost", "::1"]));
    let now = SystemTime::now();
    let first = one.next(None, now).unwrap();
    let staged = two.next(Some(&first), now).unwrap();
    let both = two.next(Some(&staged), now + Duration::from_secs(121)).unwrap();
    let later = now + Duration::from_secs(300);
    assert!(one.next(Some(&both), later).is_none() && two.next(Some(&both), later).is_none());
    let stored = read(&both, USED, later.into()).unwrap();
    let names: Vec<_> = stored.names.iter().map(String::as_str).collect();
    assert_eq!(names, ["::1", "a.example", "localhost"]);
}
