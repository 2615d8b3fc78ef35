use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-08-01 12:00:00 UTC);

struct Fixture {
    dir: TempDir,
    tokens: JoinTokens,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let tokens = JoinTokens::new(dir.path().join("join-tokens"));
    Fixture { dir, tokens }
}

impl Fixture {
    fn create(&self, name: &str) -> String {
        self.tokens.create(&workload(name), DEFAULT_TTL, NOW).unwrap().to_string()
    }

    fn redeem(&self, token: &str, name: &str, now: OffsetDateTime) -> bool {
        match self.tokens.redeem(token, &workload(name), now) {
            Ok(()) => true,
            Err(TokenError::Refused) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let list =
            |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let base = self.dir.path().join("join-tokens");
        [list(base.clone()), list(base.join("used"))]
            .concat()
            .into_iter()
            .filter(|path| path.is_file())
            .collect()
    }
}

fn workload(name: &str) -> WorkloadName {
    name.parse().unwrap()
}

#[test]
fn a_token_is_good_once_for_its_workload_in_its_time() {
    let fixture = fixture();
    let (end, token) = (NOW + DEFAULT_TTL, fixture.create("shop/orders"));
    assert!(!fixture.redeem(&token, "shop/payment", NOW), "another workload");
    assert!(!fixture.redeem(&token, "bank/orders", NOW), "another namespace");
    assert!(!fixture.redeem(&token, "shop/orders", end), "too late");
    assert!(fixture.redeem(&token, "shop/orders", end - Duration::SECOND), "none of these used it up");
    assert!(!fixture.redeem(&token, "shop/orders", NOW), "a replay");
    assert!(fixture.tokens.check(&token, &workload("shop/orders"), NOW).is_err());
}

#[test]
fn what_is_no_token_of_ours_is_refused_alike() {
    let fixture = fixture();
    let token = fixture.create("shop/orders");
    let (unknown, hash) = ("A".repeat(43), hash(&token));
    let padded = format!("{token}=");
    let swapped: String = token.chars().rev().collect();
    let traversal = format!("../{}", &token[..40]);
    let huge = "A".repeat(1 << 20);
    for bad in [
        "",
        &unknown,
        &hash,
        &padded,
        &swapped,
        &traversal,
        &huge,
        &token[..42],
        &format!(" {}", &token[1..]),
    ] {
        assert!(!fixture.redeem(bad, "shop/orders", NOW), "{bad}");
    }
    assert!(fixture.redeem(&token, "shop/orders", NOW));
}

#[test]
fn of_a_hundred_redemptions_at_once_one_wins() {
    let fixture = fixture();
    let token = fixture.create("shop/orders");
    let (wins, start) = (AtomicUsize::new(0), Barrier::new(100));
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                start.wait();
                if fixture.redeem(&token, "shop/orders", NOW) {
                    wins.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(wins.into_inner(), 1);
}

#[test]
fn only_the_hash_is_stored_and_only_for_the_owner() {
    let fixture = fixture();
    let token = fixture.create("shop/orders");
    for path in fixture.files() {
        let content = fs::read_to_string(&path).unwrap();
        assert!(!content.contains(&token) && !path.to_str().unwrap().contains(&token));
        assert_eq!(content, r#"{"workload":"shop/orders","expires":"2026-08-01T12:10:00Z"}"#);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    }
    for dir in ["join-tokens", "join-tokens/used"] {
        assert_eq!(fixture.dir.path().join(dir).metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    }
    assert_ne!(fixture.create("shop/orders"), token);
}

#[test]
fn ended_tokens_are_removed_used_or_not() {
    let fixture = fixture();
    let (used, _unused) = (fixture.create("shop/orders"), fixture.create("shop/payment"));
    assert!(fixture.redeem(&used, "shop/orders", NOW));
    assert_eq!((fixture.tokens.purge(NOW).unwrap(), fixture.files().len()), (0, 2));
    assert_eq!((fixture.tokens.purge(NOW + DEFAULT_TTL).unwrap(), fixture.files().len()), (2, 0));
    assert_eq!(JoinTokens::new("/nonexistent/join-tokens").purge(NOW).unwrap(), 0);
}

#[test]
fn a_damaged_record_opens_nothing_and_stops_nothing() {
    let fixture = fixture();
    let token = fixture.create("shop/orders");
    let path = fixture.files().remove(0);
    for damage in
        ["", "{", r#"{"workload":"shop/orders"}"#, r#"{"workload":"*","expires":"2026-08-01T12:10:00Z"}"#]
    {
        fs::write(&path, damage).unwrap();
        assert!(!fixture.redeem(&token, "shop/orders", NOW), "{damage:?}");
    }
    // A record that is no longer readable does not keep others from being purged or made.
    assert_eq!(fixture.tokens.purge(NOW).unwrap(), 0);
    let other = fixture.create("shop/payment");
    assert!(fixture.redeem(&other, "shop/payment", NOW));
}

#[test]
fn lifetimes_have_limits() {
    let fixture = fixture();
    for ttl in [Duration::ZERO, -Duration::HOUR, MAX_TTL + Duration::SECOND, Duration::MAX] {
        let result = fixture.tokens.create(&workload("shop/orders"), ttl, NOW);
        assert!(matches!(result, Err(TokenError::Ttl)), "{ttl}");
    }
}
