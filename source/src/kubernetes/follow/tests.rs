//! A scripted server: what is asked of it and what a sink is told, in short.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use kube::client::Body;
use tokio::sync::mpsc;

use super::*;

const BOOKMARK: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"5","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
/// After the request that has no answer nothing follows.
const END: &str = "the end";
const GONE: &str =
    r#"{"type":"ERROR","object":{"kind":"Status","reason":"Expired","code":410,"message":"too old"}}"#;

fn line(kind: &str, name: &str, version: u32) -> String {
    format!(
        r#"{{"type":"{kind}","object":{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}}}}}}"#
    )
}

fn failure(code: u16, reason: &str) -> (u16, String) {
    (code, format!(r#"{{"kind":"Status","code":{code},"reason":"{reason}","message":"m"}}"#))
}

fn page(names: &[&str], next: &str) -> (u16, String) {
    let items: Vec<_> =
        names.iter().map(|n| format!(r#"{{"metadata":{{"name":"{n}","resourceVersion":"1"}}}}"#)).collect();
    let items = items.join(",");
    (200, format!(r#"{{"metadata":{{"resourceVersion":"9","continue":"{next}"}},"items":[{items}]}}"#))
}

fn lines(lines: &[&str]) -> (u16, String) {
    (200, lines.iter().map(|line| format!("{line}\n")).collect())
}

struct Recorder {
    log: mpsc::UnboundedSender<String>,
    /// Breaks off what is taken, once.
    stops: VecDeque<Stop>,
}

impl Recorder {
    fn say(&self, what: impl Into<String>) {
        let _ = self.log.send(what.into());
    }
}

impl Sink for Recorder {
    async fn resource(&mut self) -> Option<Resource> {
        Some(Resource {
            group: "".into(),
            version: "v1".into(),
            plural: "things".into(),
            kind: "Thing".into(),
            only: None,
            shape: None,
        })
    }

    async fn interrupted(&mut self) {
        std::future::pending::<()>().await;
    }

    async fn begin(&mut self) -> Outcome {
        self.say("begin");
        ControlFlow::Continue(())
    }

    async fn take(&mut self, items: Vec<Item>) -> Outcome {
        for item in &items {
            match item {
                Item::Upsert(slim) => self.say(&*slim.name),
                Item::Delete(slim) => self.say(format!("-{}", slim.name)),
            }
        }
        if items.is_empty() {
            return ControlFlow::Continue(());
        }
        self.stops.pop_front().map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    async fn end(&mut self) -> Outcome {
        self.say("end");
        ControlFlow::Continue(())
    }

    async fn live(&mut self) {
        self.say("live");
    }

    async fn lost(&mut self, error: &Error) {
        self.say(format!("lost {}", error.to_string().split(':').next().unwrap_or_default()));
    }
}

/// The story of these answers: requests (`?` everything, `?N` after N, `list`, `list NEXT`) and what the sink was told, up
/// to the request for which there is no answer.
async fn story(answers: Vec<(u16, String)>, stops: Vec<Stop>) -> Vec<String> {
    counted(answers, stops, Arc::default()).await
}

async fn counted(answers: Vec<(u16, String)>, stops: Vec<Stop>, counters: Arc<Counters>) -> Vec<String> {
    let (log, mut told) = mpsc::unbounded_channel();
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let asked = log.clone();
    let serve = move |request: Request<Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let value = |key: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(&format!("{key}=")))
                .unwrap_or_default()
                .to_owned()
        };
        let what = match &*value("watch") {
            "true" => format!("?{}", value("resourceVersion")),
            _ => format!("list {}", value("continue")).trim_end().to_owned(),
        };
        assert_eq!(value("sendInitialEvents") == "true", what == "?", "{query}");
        let _ = asked.send(what);
        let (answer, end) = (answers.lock().unwrap().pop_front(), asked.clone());
        async move {
            let Some((code, body)) = answer else {
                let _ = end.send(END.to_owned());
                return std::future::pending().await;
            };
            let body = Full::new(Bytes::from(body));
            Ok::<_, std::io::Error>(
                Response::builder().status(StatusCode::from_u16(code).unwrap()).body(body).unwrap(),
            )
        }
    };
    let client = Client::new(tower::service_fn(serve), "default");
    let sink = Recorder { log, stops: stops.into() };
    let task = tokio::spawn(follow(client, sink, ATTENTIVE, counters));
    let mut story: Vec<String> = Vec::new();
    while let Some(what) = told.recv().await.filter(|what| what != END) {
        story.push(what);
    }
    task.abort();
    story
}

#[tokio::test]
async fn a_streamed_list_and_a_watch() {
    let first = lines(&[&line("ADDED", "a", 1), &line("ADDED", "b", 2), BOOKMARK]);
    let second = lines(&[&line("MODIFIED", "a", 6), &line("DELETED", "b", 7)]);
    assert_eq!(
        story(vec![first, second], vec![]).await,
        ["?", "begin", "a", "b", "end", "?5", "live", "a", "-b", "?7"]
    );
}

/// A list that breaks off has no end; it is made again.
#[tokio::test]
async fn a_list_that_breaks_off() {
    let first = lines(&[&line("ADDED", "a", 1)]);
    let second = lines(&[&line("ADDED", "a", 1), BOOKMARK]);
    assert_eq!(
        story(vec![first, second], vec![]).await,
        ["?", "begin", "a", "lost the list ended before it was complete", "?", "begin", "a", "end", "?5"]
    );
}

#[tokio::test]
async fn pages_where_lists_are_not_streamed() {
    for refusal in [failure(422, "Invalid"), failure(400, "BadRequest")] {
        let answers = vec![
            refusal,
            page(&["a"], "n%2"),
            page(&["b"], ""),
            lines(&[GONE]),
            // What is not streamed once is not asked for again; a page that expires begins anew.
            page(&["a"], "n"),
            failure(410, "Expired"),
            page(&["b"], ""),
        ];
        assert_eq!(
            story(answers, vec![]).await,
            [
                "?",
                "begin",
                "list",
                "a",
                "list n%252",
                "b",
                "end",
                "?9",
                "live",
                "begin",
                "list",
                "a",
                "list n",
                "begin",
                "list",
                "b",
                "end",
                "?9"
            ]
        );
    }
}

/// Too old a position, in the answer or as an event, is listed again and is no loss; refusals are.
#[tokio::test]
async fn expiry_and_refusal() {
    let list = || lines(&[BOOKMARK]);
    assert_eq!(
        story(vec![list(), failure(410, "Gone"), list(), lines(&[GONE]), list()], vec![]).await,
        ["?", "begin", "end", "?5", "?", "begin", "end", "?5", "live", "?", "begin", "end", "?5"]
    );
    assert_eq!(
        story(vec![list(), failure(403, "Forbidden"), failure(500, "InternalError"), lines(&[])], vec![])
            .await,
        ["?", "begin", "end", "?5", "lost 403 Forbidden", "?5", "lost 500 InternalError", "?5", "live", "?5"]
    );
    // A kind that is not there may be served in another version now.
    assert_eq!(
        story(vec![failure(404, "NotFound"), list()], vec![]).await,
        ["?", "lost 404 NotFound", "?", "begin", "end", "?5"]
    );
}

/// What a sink could not take comes again.
#[tokio::test]
async fn what_was_not_taken_comes_again() {
    let stop = || Stop::Failed(Error::Unreachable("no".to_owned()));
    let batch = || lines(&[&line("MODIFIED", "a", 6)]);
    assert_eq!(
        story(vec![lines(&[BOOKMARK]), batch(), batch()], vec![stop()]).await,
        ["?", "begin", "end", "?5", "live", "a", "lost no", "?5", "live", "a", "?6"]
    );
    assert_eq!(
        story(vec![lines(&[BOOKMARK]), batch(), lines(&[BOOKMARK])], vec![Stop::Changed]).await,
        ["?", "begin", "end", "?5", "live", "a", "?", "begin", "end", "?5"]
    );
}

/// Anything but an event, and half an event, is a failure; the position is the last that was taken.
#[tokio::test]
async fn nonsense() {
    let good = line("ADDED", "a", 6);
    let answers =
        vec![lines(&[BOOKMARK]), lines(&[&good]), (200, "<html>\n".to_owned()), (200, good[..20].to_owned())];
    assert_eq!(
        story(answers, vec![]).await,
        [
            "?",
            "begin",
            "end",
            "?5",
            "live",
            "a",
            "?6",
            "live",
            "lost the answer cannot be read",
            "?6",
            "live",
            "?6"
        ]
    );
}

#[test]
fn pauses_grow_to_their_limit() {
    let mut backoff = Backoff::new();
    let pauses: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
    assert!(pauses[0] <= FIRST && pauses.iter().all(|pause| *pause <= LONGEST), "{pauses:?}");
    assert!(pauses[10..].iter().all(|pause| *pause >= LONGEST / 2), "{pauses:?}");
    backoff.reset();
    assert!(backoff.next() <= FIRST);
}

/// The first list counts as the first, however often it is tried.
#[tokio::test]
async fn lists_again_are_counted() {
    let counters = Arc::<Counters>::default();
    let answers = vec![failure(429, "TooManyRequests"), lines(&[BOOKMARK]), lines(&[GONE])];
    let told = counted(answers.clone(), vec![], counters.clone()).await;
    assert_eq!(told.iter().filter(|what| *what == "end").count(), 1, "{told:?}");
    assert_eq!(counters.relists.get(), 1, "after the position was too old: {told:?}");
    let counters = Arc::<Counters>::default();
    counted(answers[..2].to_vec(), vec![], counters.clone()).await;
    assert_eq!(counters.relists.get(), 0);
}
