//! What becomes of a deletion, by what the API server says of the definition when it is asked afterwards.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::sync::watch;

use super::super::definitions::Definitions;
use super::super::slim::{Event, event};
use super::*;

const NAME: &str = "authorizationpolicies.security.istio.io";

fn definition(uid: &str, terminating: bool) -> Value {
    let deletion = terminating.then_some("2026-01-01T00:00:00Z");
    json!({
        "metadata": {"name": NAME, "uid": uid, "deletionTimestamp": deletion},
        "spec": {"versions": [{"name": "v1", "served": true}]},
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    })
}

fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (code, json!({"kind": "Status", "code": code, "reason": reason, "message": message}))
}

/// A sink that follows under the definition `d1`, of which the server says `answer`.
async fn sink(answer: (u16, Value)) -> (ObjectSink, mpsc::Receiver<Tell>) {
    let serve = move |request: Request<Body>| {
        assert!(request.uri().path().ends_with(NAME), "{}", request.uri());
        let (code, body) = answer.clone();
        let body = Full::new(Bytes::from(body.to_string()));
        let code = StatusCode::from_u16(code).unwrap();
        async move { Ok::<_, std::io::Error>(Response::builder().status(code).body(body).unwrap()) }
    };
    let client = Client::new(tower::service_fn(serve), "default");
    let known = Definitions::of(NAME, serde_json::from_value(definition("d1", false)).unwrap());
    let gate = Gate::new(NAME.to_owned(), &["v1"], watch::channel(known).1, client);
    let (tells, told) = mpsc::channel(16);
    let kind = Kind::AuthorizationPolicy;
    let mut sink =
        ObjectSink { kind, gate: Some(gate), revision: "default".into(), tells, digest: RandomState::new() };
    sink.resource().await.unwrap();
    (sink, told)
}

fn item(kind: &str, name: &str) -> Item {
    let line = json!({"type": kind, "object": {
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "n", "name": name, "uid": "u", "resourceVersion": "1"},
    }});
    match event(line.to_string().as_bytes(), &slim::POLICY).unwrap() {
        Event::Upsert(slim) => Item::Upsert(slim),
        Event::Delete(slim) => Item::Delete(slim),
        other => panic!("{other:?}"),
    }
}

fn said(tell: &Tell) -> String {
    match tell {
        Tell::Seen(seen) => format!("seen {}", seen.object.id.name),
        Tell::Deleted(object) => format!("deleted {}", object.id.name),
        Tell::Listed { definition, .. } => {
            format!("listed under {}", definition.as_deref().unwrap_or_default())
        }
        Tell::Undefined { reason, .. } => reason.clone(),
        other => panic!("{other:?}"),
    }
}

fn ended(outcome: &Outcome) -> &'static str {
    match outcome {
        ControlFlow::Continue(()) => "goes on",
        ControlFlow::Break(Stop::Changed) => "begins anew",
        ControlFlow::Break(Stop::Failed(_)) => "tries again",
        ControlFlow::Break(Stop::Expired) => "expired",
    }
}

#[tokio::test]
async fn only_a_definition_that_stays_lets_its_objects_go() {
    let uninstalled = format!("the definition {NAME} is being uninstalled");
    let renewed = format!("the definition {NAME} was installed anew");
    let gone = format!("the definition {NAME} is not installed");
    let not_found = format!("customresourcedefinitions.apiextensions.k8s.io {NAME:?} not found");
    for (answer, outcome, reason) in [
        ((200, definition("d1", false)), "goes on", None),
        ((200, definition("d1", true)), "begins anew", Some(&uninstalled)),
        ((200, definition("d2", false)), "begins anew", Some(&renewed)),
        (status(404, "NotFound", &not_found), "begins anew", Some(&gone)),
        // A server that is starting.
        (status(404, "NotFound", "the server could not find the requested resource"), "tries again", None),
        (status(403, "Forbidden", &format!("{NAME:?} is forbidden")), "tries again", None),
        (status(500, "InternalError", "no"), "tries again", None),
        ((200, json!({})), "tries again", None),
    ] {
        let (mut sink, mut told) = sink(answer.clone()).await;
        let items = vec![item("ADDED", "a"), item("DELETED", "b"), item("MODIFIED", "c")];
        let taken = sink.take(items).await;
        let mut tells = Vec::new();
        while let Ok(tell) = told.try_recv() {
            tells.push(said(&tell));
        }
        let expect: Vec<&str> = match outcome {
            "goes on" => vec!["seen a", "deleted b", "seen c"],
            "begins anew" => vec!["seen a", "seen c", reason.unwrap()],
            _ => vec![],
        };
        assert_eq!(
            (ended(&taken), tells),
            (outcome, expect.into_iter().map(str::to_owned).collect()),
            "{answer:?}"
        );
        // What a full list lacks is deleted as well.
        let end = sink.end().await;
        let tells: Vec<String> =
            std::iter::from_fn(|| told.try_recv().ok()).map(|tell| said(&tell)).collect();
        let expect: Vec<&str> = match outcome {
            "goes on" => vec!["listed under d1"],
            _ => reason.into_iter().map(String::as_str).collect(),
        };
        assert_eq!(
            (ended(&end), tells),
            (outcome, expect.into_iter().map(str::to_owned).collect()),
            "{answer:?}"
        );
    }
}

/// Nothing is asked where nothing is deleted: a definition that cannot be read does not hold back what is written.
#[tokio::test]
async fn what_is_written_needs_no_answer() {
    let (mut sink, mut told) = sink(status(500, "InternalError", "no")).await;
    assert_eq!(ended(&sink.take(vec![item("ADDED", "a")]).await), "goes on");
    assert_eq!(said(&told.recv().await.unwrap()), "seen a");
}
