use super::*;

fn resource(group: &str, only: Option<(&str, &str)>) -> Resource {
    Resource {
        group: group.into(),
        version: "v1".into(),
        plural: "things".into(),
        kind: "Thing".into(),
        only: only.map(|(namespace, name)| (namespace.into(), name.into())),
        shape: None,
    }
}

#[test]
fn addresses() {
    for (resource, query, expect) in [
        (resource("", None), vec![("limit", "5".to_owned())], "/api/v1/things?limit=5"),
        (resource("a.b", None), vec![("limit", "5".to_owned())], "/apis/a.b/v1/things?limit=5"),
        (
            resource("", Some(("n", "x y&z"))),
            vec![("continue", "a/b=".to_owned())],
            "/api/v1/namespaces/n/things?continue=a%2Fb%3D&fieldSelector=metadata.name%3Dx%20y%26z",
        ),
    ] {
        assert_eq!(resource.query(query), expect);
    }
}

#[test]
fn refusals() {
    let refused = |code: u16, reason: &str| {
        Error::from(Failure { code, reason: reason.to_owned(), message: "m\nm".repeat(1000) })
    };
    for (error, expired, invalid) in [
        (refused(410, "Gone"), true, false),
        (refused(410, "Expired"), true, false),
        (refused(422, "Invalid"), false, true),
        (refused(400, "BadRequest"), false, true),
        (refused(403, "Forbidden"), false, false),
        (refused(500, "InternalError"), false, false),
        (refused(404, "NotFound"), false, false),
        (Error::Timeout(ANSWER), false, false),
    ] {
        assert_eq!((error.expired(), error.invalid()), (expired, invalid), "{error}");
        assert!(error.to_string().len() < 400 && !error.to_string().contains('\n'), "{error}");
    }
}

/// Lines come in pieces, several at once, and empty.
#[test]
fn lines_are_put_together() {
    let event = |name: &str| {
        format!(r#"{{"type":"ADDED","object":{{"metadata":{{"name":"{name}","resourceVersion":"1"}}}}}}"#)
    };
    let text = format!("{}\n\n{}\n{}\n{{\"type\":", event("a"), event("b"), event("ç"));
    for size in [1, 2, 7, 64, 4096] {
        let mut splitter = Splitter::new(&slim::METADATA);
        let mut names = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            names.extend(splitter.push(piece).unwrap().into_iter().map(|event| match event {
                Event::Upsert(slim) => slim.name.to_string(),
                other => panic!("{other:?}"),
            }));
        }
        assert_eq!(names, ["a", "b", "ç"], "{size}");
    }
    let mut splitter = Splitter::new(&slim::METADATA);
    let endless = (0..=MAX_LINE >> 20).map(|_| splitter.push(&vec![b'x'; 1 << 20])).find(Result::is_err);
    assert!(endless.is_some());
    assert!(Splitter::new(&slim::METADATA).push(b"nonsense\n").is_err());
}
