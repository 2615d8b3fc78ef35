use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Answers to give, one per connection; the last one stays.
type Script = Arc<Mutex<VecDeque<Answer>>>;

#[derive(Clone, Debug)]
enum Answer {
    Http(u16, String, &'static str),
    Redirect(String),
    /// Takes the request and says nothing.
    Silence,
}

fn keys(text: &'static str) -> Answer {
    Answer::Http(200, text.to_owned(), "")
}

/// An HTTP server on loopback that ends with the test.
async fn serve(answers: impl IntoIterator<Item = Answer>) -> (SocketAddr, Script) {
    let script: Script = Arc::new(Mutex::new(answers.into_iter().collect()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let answers = script.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = {
                let mut answers = answers.lock().unwrap();
                if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
            };
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let (status, headers, body) = match answer {
                    Answer::Http(status, body, headers) => (status, headers.to_owned(), body),
                    Answer::Redirect(to) => (302, format!("location: {to}\r\n"), String::new()),
                    Answer::Silence => std::future::pending().await,
                };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
            });
        }
    });
    (addr, script)
}

fn client() -> Client {
    Client::new(Guard::default(), None, None).unwrap()
}

fn at(addr: SocketAddr) -> Location {
    Location::Uri(format!("http://{addr}/keys").into())
}

const SECOND: Duration = Duration::from_secs(1);

async fn fails(answer: Answer, part: &str) {
    let (addr, _) = serve([answer]).await;
    let error = client().fetch(&at(addr), SECOND).await.unwrap_err().to_string();
    assert!(error.contains(part), "{error:?} does not say {part:?}");
}

#[tokio::test]
async fn a_fetch_has_limits_and_says_what_is_wrong() {
    let (addr, _) = serve([keys("set")]).await;
    assert_eq!(client().fetch(&at(addr), SECOND).await.unwrap(), "set");
    fails(Answer::Http(500, String::new(), ""), "500").await;
    fails(Answer::Http(204, String::new(), ""), "204").await;
    fails(Answer::Http(200, "x".repeat(2 << 20), ""), "more than").await;
    fails(Answer::Redirect("http://169.254.169.254/latest".to_owned()), "must not go").await;
    fails(Answer::Redirect("http://[::ffff:169.254.169.254]/latest".to_owned()), "must not go").await;
    fails(Answer::Redirect("file:///etc/passwd".to_owned()), "").await;
    let (addr, _) = serve([Answer::Redirect("/keys".to_owned())]).await;
    assert!(client().fetch(&at(addr), SECOND).await.unwrap_err().to_string().contains("redirects"));
    let (addr, _) = serve([Answer::Silence]).await;
    let short = Duration::from_millis(50);
    assert!(matches!(client().fetch(&at(addr), short).await, Err(FetchError::Timeout(_))));
    let nowhere = Location::Uri("http://169.254.169.254/".into());
    assert!(matches!(client().fetch(&nowhere, SECOND).await, Err(FetchError::Uri(_))));
    // A name that leads to a blocked address.
    let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    let client = Client::new(guard, None, None).unwrap();
    let (addr, _) = serve([keys("set")]).await;
    let by_name = Location::Uri(format!("http://localhost:{}/", addr.port()).into());
    assert!(client.fetch(&by_name, SECOND).await.unwrap_err().to_string().contains("blocked"));
}

#[tokio::test]
async fn discovery_leads_to_the_keys() {
    let (there, _) = serve([keys("set")]).await;
    let document = format!(r#"{{"issuer": "x", "jwks_uri": "http://{there}/k"}}"#);
    let (addr, _) = serve([Answer::Http(200, document, "")]).await;
    let issuer = Location::Issuer(format!("http://{addr}/").into());
    assert_eq!(client().fetch(&issuer, SECOND).await.unwrap(), "set");
    let (addr, _) = serve([keys(r#"{"jwks_uri": "http://169.254.169.254/"}"#)]).await;
    let issuer = Location::Issuer(format!("http://{addr}").into());
    assert!(matches!(client().fetch(&issuer, SECOND).await, Err(FetchError::Uri(_))));
    let (addr, _) = serve([keys("{}")]).await;
    let issuer = Location::Issuer(format!("http://{addr}").into());
    assert!(matches!(client().fetch(&issuer, SECOND).await, Err(FetchError::Discovery(_))));
}

fn check(text: &str) -> Result<String, String> {
    if text.starts_with("set") { Ok(text.to_owned()) } else { Err("no key set".to_owned()) }
}

fn quick() -> Schedule {
    let short = Duration::from_millis(5);
    Schedule { refresh: short, retry: short, retry_max: short, staleness: Duration::from_secs(3600) }
}

async fn next(updates: &mut mpsc::Receiver<Update>) -> (Option<String>, Option<String>) {
    let update = tokio::time::timeout(Duration::from_secs(10), updates.recv()).await.unwrap().unwrap();
    (update.keys.map(|keys| keys.to_string()), update.error)
}

#[tokio::test]
async fn the_last_good_keys_survive_failures_and_nonsense() {
    let (addr, _) = serve([
        Answer::Http(503, String::new(), ""),
        keys("set 1"),
        Answer::Http(500, String::new(), ""),
        keys("<html>"),
        keys("set 2"),
    ])
    .await;
    let (_wanted, receiver) = watch::channel(Wanted::from([(at(addr), SECOND)]));
    let (sender, mut updates) = mpsc::channel(8);
    tokio::spawn(keep(client(), quick(), check, receiver, sender, Arc::default()));
    let set = |n: &str| Some(format!("set {n}"));
    let told = [
        next(&mut updates).await,
        next(&mut updates).await,
        next(&mut updates).await,
        next(&mut updates).await,
        next(&mut updates).await,
    ];
    assert_eq!(told[0].0, None);
    assert!(told[0].1.as_ref().unwrap().contains("503"));
    assert_eq!(told[1], (set("1"), None));
    assert_eq!(told[2].0, set("1"));
    assert!(told[2].1.as_ref().unwrap().contains("500"));
    assert_eq!(told[3], (set("1"), Some("no key set".to_owned())));
    assert_eq!(told[4], (set("2"), None));
}

/// A second policy may name the same place and be more patient.
#[tokio::test]
async fn another_timeout_forgets_no_keys() {
    let (addr, script) = serve([keys("set 1")]).await;
    let (wanted, receiver) = watch::channel(Wanted::from([(at(addr), SECOND)]));
    let (sender, mut updates) = mpsc::channel(8);
    tokio::spawn(keep(client(), quick(), check, receiver, sender, Arc::default()));
    assert_eq!(next(&mut updates).await, (Some("set 1".to_owned()), None));
    *script.lock().unwrap() = [Answer::Http(500, String::new(), "")].into();
    wanted.send_modify(|wanted| {
        wanted.insert(at(addr), SECOND * 2);
    });
    let (kept, error) = next(&mut updates).await;
    assert_eq!(kept.as_deref(), Some("set 1"));
    assert!(error.unwrap().contains("500"));
}

#[tokio::test]
async fn a_silent_location_harms_no_other_and_what_is_not_wanted_any_more_is_left_alone() {
    let (slow, _) = serve([Answer::Silence]).await;
    let (good, _) = serve([keys("set 1")]).await;
    let (wanted, receiver) = watch::channel(Wanted::from([(at(slow), Duration::from_secs(3600))]));
    let (sender, mut updates) = mpsc::channel(8);
    let keeping = tokio::spawn(keep(client(), quick(), check, receiver, sender, Arc::default()));
    wanted.send_modify(|wanted| {
        wanted.insert(at(good), SECOND);
    });
    assert_eq!(next(&mut updates).await.0.as_deref(), Some("set 1"));
    wanted.send_modify(Wanted::clear);
    drop(wanted);
    tokio::time::timeout(Duration::from_secs(10), keeping).await.unwrap().unwrap();
    assert!(updates.recv().await.is_none());
}

#[test]
fn keys_are_given_up_when_their_time_is_over_and_no_earlier() {
    let schedule = Schedule {
        refresh: Duration::from_secs(100),
        retry: Duration::from_secs(1),
        retry_max: Duration::from_secs(8),
        staleness: Duration::from_secs(10),
    };
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let location = Location::Uri("http://a/".into());
    let mut memory = Memory::default();
    memory.learn(Ok("keys".to_owned()), start);
    assert_eq!(memory.pause(&schedule, start), Duration::from_secs(100));
    let mut pauses = Vec::new();
    for failed in 1..=5 {
        memory.learn(Err("down".to_owned()), after(failed));
        pauses.push(memory.pause(&schedule, after(failed)).as_secs());
    }
    // Doubled, at most 8 s, and not beyond the end of the keys.
    assert_eq!(pauses, [1, 2, 4, 6, 5]);
    assert!(memory.update(&location, &schedule, after(10)).keys.is_some());
    let over = memory.update(&location, &schedule, after(11));
    assert_eq!((over.keys, over.error.as_deref()), (None, Some("down")));
    memory.learn(Ok("keys".to_owned()), after(12));
    assert_eq!(memory.update(&location, &schedule, after(12)).error, None);
}

/// One location that never answers well, one that always does: the first is asked less and less often, and costs the
/// second nothing.
#[tokio::test]
async fn backoff_is_of_one_location_alone_and_everything_is_counted() {
    let (bad, _) = serve([Answer::Http(500, String::new(), "")]).await;
    let (good, script) = serve([keys("set 1")]).await;
    let schedule =
        Schedule { refresh: Duration::from_millis(5), retry: Duration::from_secs(3600), ..quick() };
    let schedule = Schedule { retry_max: Duration::from_secs(3600), ..schedule };
    let (wanted, receiver) = watch::channel(Wanted::from([(at(bad), SECOND), (at(good), SECOND)]));
    let (sender, mut updates) = mpsc::channel(8);
    let counters = Arc::<Counters>::default();
    tokio::spawn(keep(client(), schedule, check, receiver, sender, counters.clone()));
    let told = [next(&mut updates).await, next(&mut updates).await];
    assert!(told.iter().any(|(keys, _)| keys.as_deref() == Some("set 1")), "{told:?}");
    assert!(told.iter().any(|(_, error)| error.as_ref().is_some_and(|e| e.contains("500"))), "{told:?}");
    // Many refreshes of the good one, one attempt of the bad one.
    let deadline = Instant::now() + Duration::from_secs(10);
    while counters.summary(Instant::now()).fetched < 5 {
        assert!(Instant::now() < deadline, "the good one is not refreshed");
        tokio::task::yield_now().await;
    }
    let now = counters.summary(Instant::now());
    assert_eq!((now.failed, now.fresh, now.stale, now.missing), (1, 1, 0, 1));
    // The good one goes bad: its keys are kept, and told to be stale.
    *script.lock().unwrap() = [Answer::Http(503, String::new(), "")].into();
    let (kept, error) = next(&mut updates).await;
    assert_eq!(kept.as_deref(), Some("set 1"));
    assert!(error.unwrap().contains("503"));
    let start = Instant::now();
    let now = counters.summary(start);
    assert_eq!((now.failed, now.fresh, now.stale, now.missing), (2, 0, 1, 1));
    assert!(counters.summary(start + SECOND).oldest >= SECOND);
    wanted.send_modify(|wanted| {
        wanted.remove(&at(bad));
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while counters.summary(Instant::now()).missing > 0 {
        assert!(Instant::now() < deadline, "what is not wanted is still counted");
        tokio::task::yield_now().await;
    }
}

/// Whatever a location brings that is no usable key set, the keys before it stay; and where there were none, there are
/// none afterwards: nothing is put in their place.
#[tokio::test]
async fn nothing_stands_in_for_keys() {
    for (answer, part) in [
        (keys("<html>"), "no key set"),
        (keys("{}"), "no key set"),
        (keys(""), "no key set"),
        (Answer::Http(200, "x".repeat(2 << 20), ""), "more than"),
        (Answer::Redirect("http://169.254.169.254/latest".to_owned()), "must not go"),
        (Answer::Redirect("file:///etc/passwd".to_owned()), ""),
    ] {
        for before in [None, Some("set 1")] {
            let first = before.map(keys);
            let (addr, _) = serve(first.into_iter().chain([answer.clone()])).await;
            let (_wanted, receiver) = watch::channel(Wanted::from([(at(addr), SECOND)]));
            let (sender, mut updates) = mpsc::channel(8);
            tokio::spawn(keep(client(), quick(), check, receiver, sender, Arc::default()));
            if before.is_some() {
                assert_eq!(next(&mut updates).await, (before.map(str::to_owned), None));
            }
            let (kept, error) = next(&mut updates).await;
            assert_eq!(kept.as_deref(), before, "{answer:?}");
            assert!(error.as_ref().is_some_and(|error| error.contains(part)), "{answer:?}: {error:?}");
        }
    }
}

/// The end of the budget, on real time: keys, then none, then keys again.
#[tokio::test]
async fn the_budget_ends_and_a_good_answer_begins_it_anew() {
    let (addr, script) = serve([keys("set 1"), Answer::Http(500, String::new(), "")]).await;
    let schedule = Schedule { staleness: Duration::from_millis(100), ..quick() };
    let (_wanted, receiver) = watch::channel(Wanted::from([(at(addr), SECOND)]));
    let (sender, mut updates) = mpsc::channel(8);
    tokio::spawn(keep(client(), schedule, check, receiver, sender, Arc::default()));
    let set = Some("set 1".to_owned());
    assert_eq!(next(&mut updates).await, (set.clone(), None));
    assert_eq!(next(&mut updates).await.0, set, "kept within the budget");
    let (none, error) = next(&mut updates).await;
    assert_eq!(none, None);
    assert!(error.unwrap().contains("500"));
    *script.lock().unwrap() = [keys("set 1")].into();
    assert_eq!(next(&mut updates).await, (set, None));
}

/// A private CA is believed where it was given, and only there; a proxy is asked for everything.
#[tokio::test]
async fn a_proxy_is_asked_in_place_of_the_location() {
    let (proxy, _) = serve([keys("from the proxy")]).await;
    let proxied = Client::new(Guard::default(), None, Some(&format!("http://{proxy}"))).unwrap();
    let there = Location::Uri("http://keys.example/".into());
    assert_eq!(proxied.fetch(&there, SECOND).await.unwrap(), "from the proxy");
    let nowhere = Location::Uri("http://169.254.169.254/".into());
    assert!(matches!(proxied.fetch(&nowhere, SECOND).await, Err(FetchError::Uri(_))));
    assert!(matches!(Client::new(Guard::default(), Some(b""), None), Err(UnusableClient::EmptyBundle)));
}
