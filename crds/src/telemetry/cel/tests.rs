use super::*;

#[test]
fn filters_that_people_write_pass() {
    for expression in [
        "response.code >= 400",
        "!has(response.code) || response.code >= 400",
        "response.code in [401, 403] && request.url_path.startsWith('/admin')",
        "connection.mtls && connection.uri_san_peer_certificate != ''",
        "request.headers['x-tenant'] == 'acme'",
        "'x-debug' in request.headers",
        "!('x-debug' in request.headers)",
        "xds.cluster_name == 'BlackHoleCluster' || xds.cluster_name == \"PassthroughCluster\"",
        "metadata['envoy.common']['access_log_hint'] == true",
        "metadata.filter_metadata['envoy.common']['access_log_hint'] == true",
        "has(request.headers.authorization)",
        "response.code_details.contains('rbac_access_denied')",
        "request.size > 1024u ? response.code != 200 : true",
        "int(response.code) % 100 == 3 && request.duration > duration('1s')",
        "request.time.getHours() >= 9",
        "-1 < request.size",
        "size(request.headers) > 0x10",
        r#"request.path == "a\"b\u00e9" || request.path == r'\d'"#,
        "1.5e+3 > 2.0",
        "true",
        "connection.mtls",
        "connection.mtls ? response.code > 1 : !connection.mtls",
    ] {
        assert_eq!(check(expression), Ok(()), "{expression}");
    }
}

#[test]
fn others_are_refused_with_the_reason() {
    let deep = format!("{}true{}", "(".repeat(30), ")".repeat(30));
    let wide = vec!["true"; 100].join(" && ");
    let long = format!("'{}' == request.path", "x".repeat(5000));
    let steps = format!("request.headers{} == 1", ".a".repeat(30));
    for (expression, part) in [
        ("", "is required"),
        ("   ", "is required"),
        ("response.code >=", "missing at the end"),
        ("response.code >= 400)", "unexpected `)`"),
        ("(response.code >= 400", "`)` is missing"),
        ("response.code = 400", "`=` has no place"),
        ("response.code == 'x", "does not end"),
        ("response.kode >= 400", "`response.kode` is not known"),
        ("respose.code >= 400", "`respose` is nothing"),
        ("response", "alone says nothing"),
        ("response.code", ""),
        ("400", "neither true nor false"),
        ("'text'", "neither true nor false"),
        ("response.code + 1", "neither true nor false"),
        ("size(request.path)", "neither true nor false"),
        ("!'a'", "neither true nor false"),
        ("1 || true", "neither true nor false"),
        ("[1].all(x, x > 0)", ""),
        ("request.path.matches('a+')", "no function `matches`"),
        ("matches(request.path, 'a')", "no function `matches`"),
        ("string(response.code) == '200'", "no function `string`"),
        ("request.path.startsWith()", "takes 1 arguments, not 0"),
        ("has(true)", "`has` asks"),
        ("has(request.headers['a'])", "`has` asks"),
        ("1 < 2 < 3", "in a row"),
        ("request.path == {'a': 1}", "unexpected `{`"),
        ("request.path == b'a'", "bytes"),
        ("request.path == '''a'''", "three quotes"),
        ("request.path == '\\q'", "not supported"),
        ("request.path == '\\ud800'", "no character"),
        ("response.code == 99999999999999999999", "not a number"),
        ("response.code == 1.", "not a number"),
        ("response.code == 12abc", "not a number"),
        ("response.code == while", "keeps for itself"),
        ("response.code == 1; true", "has no place"),
        ("[1,] == [1]", "unexpected `]`"),
        (&deep, "levels"),
        (&wide, "parts"),
        (&long, "characters"),
        (&steps, "steps"),
    ] {
        match check(expression) {
            // An attribute may be a truth value: that shows when it is evaluated.
            Ok(()) => assert_eq!(expression, "response.code"),
            Err(why) => assert!(why.contains(part), "{expression}: {why}"),
        }
    }
}
