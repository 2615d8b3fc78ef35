//! Against a stand-in for the API server: what is asked of it, what is remembered, and what a failure means.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::UserInfo;

use super::*;

#[derive(Clone, Default)]
struct Fake {
    asked: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
    slow: Arc<AtomicBool>,
    deaf_to_audiences: Arc<AtomicBool>,
}

impl Fake {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Review for Fake {
    /// Knows tokens whose signature is `good`, and says that their subject is the caller.
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> Reviewing<'a> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            if self.slow.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            if self.down.load(Ordering::SeqCst) {
                return Err(NoAnswer("down".to_owned()));
            }
            let audiences =
                (!self.deaf_to_audiences.load(Ordering::SeqCst)).then(|| vec![audience.to_owned()]);
            Ok(TokenReviewStatus {
                audiences,
                authenticated: Some(token.ends_with(".good")),
                error: None,
                user: Some(UserInfo {
                    groups: Some(vec!["system:serviceaccounts".to_owned()]),
                    username: Some("system:serviceaccount:shop:orders".to_owned()),
                    ..UserInfo::default()
                }),
            })
        })
    }
}

fn token(number: usize, signature: &str) -> String {
    let exp = OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let claims = format!(r#"{{"aud":["istio-ca"],"exp":{exp},"jti":"{number}"}}"#);
    format!("e30.{}.{signature}", URL_SAFE_NO_PAD.encode(claims))
}

fn peer(n: u8) -> Source {
    Source::Peer([10, 0, 0, n].into())
}

#[tokio::test]
async fn a_token_is_asked_about_once() {
    let fake = Fake::default();
    let reviewer = TokenReviewer::new(fake.clone());
    let one = token(1, "good");
    for _ in 0..3 {
        let identity = reviewer.judge(&one, peer(1)).await.unwrap();
        assert_eq!(&*identity.service_account, "orders");
    }
    assert_eq!(fake.asked(), 1);
    reviewer.judge(&token(2, "good"), peer(1)).await.unwrap();
    assert_eq!(fake.asked(), 2);
    // Remembered, and still believed, while the API server is away; a new one is neither believed nor refused.
    fake.down.store(true, Ordering::SeqCst);
    assert!(reviewer.judge(&one, peer(1)).await.is_ok());
    let error = reviewer.judge(&token(3, "good"), peer(1)).await.unwrap_err();
    assert_eq!(Status::from(&error).code(), Code::Unavailable);
}

#[tokio::test]
async fn junk_does_not_reach_the_api_server_and_refusals_are_limited_per_peer() {
    let fake = Fake::default();
    let reviewer = TokenReviewer::new(fake.clone());
    let long = format!("e30.{}.x", "a".repeat(MAX_TOKEN_BYTES));
    assert_eq!(reviewer.judge(&long, peer(1)).await, Err(TokenError::Long));
    assert_eq!(reviewer.judge("junk", peer(1)).await, Err(TokenError::Malformed));
    assert_eq!(fake.asked(), 0);
    let mut limited = 0;
    for n in 0..100 {
        match reviewer.judge(&token(n, "forged"), peer(1)).await.unwrap_err() {
            TokenError::Unknown => {}
            TokenError::RateLimited => limited += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((fake.asked(), limited), (20, 80));
    // Neither another peer nor what a relay says of this peer is touched by it.
    assert!(reviewer.judge(&token(7, "good"), peer(2)).await.is_ok());
    assert!(reviewer.judge(&token(8, "good"), Source::Relayed([10, 0, 0, 1].into())).await.is_ok());
    assert_eq!(Status::from(&TokenError::Unknown).code(), Code::Unauthenticated);
    assert_eq!(Status::from(&TokenError::RateLimited).code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn an_api_server_that_does_not_speak_of_audiences_is_not_believed() {
    let fake = Fake::default();
    fake.deaf_to_audiences.store(true, Ordering::SeqCst);
    let reviewer = TokenReviewer::new(fake);
    assert_eq!(reviewer.judge(&token(1, "good"), peer(1)).await, Err(TokenError::UnsaidAudience));
}

#[tokio::test]
async fn reviews_under_way_are_bounded_and_the_same_token_waits_for_its_answer() {
    let fake = Fake::default();
    fake.slow.store(true, Ordering::SeqCst);
    let reviewer = TokenReviewer::new(fake.clone());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200u8 {
        let reviewer = Arc::clone(&reviewer);
        tasks.spawn(async move { reviewer.judge(&token(n.into(), "good"), peer(n)).await.is_ok() });
    }
    assert!(tasks.join_all().await.into_iter().all(|good| good));
    assert!(fake.most_at_once.load(Ordering::SeqCst) <= REVIEWS);
    let before = fake.asked();
    let same = token(1000, "good");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200u8 {
        let (reviewer, same) = (Arc::clone(&reviewer), same.clone());
        tasks.spawn(async move { reviewer.judge(&same, peer(n)).await.is_ok() });
    }
    assert!(tasks.join_all().await.into_iter().all(|good| good));
    assert!(fake.asked() - before <= REVIEWS, "{}", fake.asked() - before);
}
