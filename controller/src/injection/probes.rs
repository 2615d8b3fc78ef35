//! The kubelet has no certificate, so what it asks of an application would be refused under STRICT. Its questions are led to
//! the agent's port, which policy does not guard, and the agent asks the application the one question that is written
//! here. What is asked of another host, and commands, stay as they are.

use serde_json::{Map, Value, json};

/// The questions of a container, and their last path element.
const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
const HOOKS: [(&str, &str); 2] = [("postStart", "poststart"), ("preStop", "prestop")];
/// Seconds that a hook may take; the kubelet's limit is the pod's grace period.
const HOOK_PATIENCE: u64 = 300;
/// What a question is made of.
const ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// What the agent is to know: path by question.
pub(super) type Questions = Map<String, Value>;

/// Leads a container's questions to `status_port`. A hook acts on the application, unlike a probe: its path ends with
/// `secret`, so that only who may read the pod can call it.
///
/// # Errors
/// A container's name that cannot be part of a path.
pub(super) fn rewrite(
    container: &mut Value,
    status_port: u16,
    secret: &str,
    questions: &mut Questions,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(format!("a container is named {name:?}"));
    }
    let ports = container["ports"].clone();
    let mut lead = |asked: &mut Value, path: String, what: &str, patience: u64| {
        let Some(action) = ACTIONS.into_iter().find(|action| asked[*action].is_object()) else { return };
        let question = match question(action, &asked[action], &ports) {
            Ok(Some(question)) => question,
            Ok(None) => return,
            Err(why) => {
                warnings.push(format!("container {name}: {what} is left as it is: {why}"));
                return;
            }
        };
        let timeout = asked["timeoutSeconds"].as_u64().unwrap_or(patience);
        let mut question = question;
        question["timeoutSeconds"] = timeout.into();
        questions.insert(path.clone(), question);
        if let Some(asked) = asked.as_object_mut() {
            asked.remove(action);
            asked.insert("httpGet".to_owned(), json!({"path": path, "port": status_port, "scheme": "HTTP"}));
        }
    };
    for (field, last) in PROBES {
        if let Some(probe) = container.get_mut(field) {
            lead(probe, format!("/app-health/{name}/{last}"), field, 1);
        }
    }
    for (field, last) in HOOKS {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|hooks| hooks.get_mut(field)) {
            lead(hook, format!("/app-lifecycle/{name}/{last}/{secret}"), field, HOOK_PATIENCE);
        }
    }
    Ok(())
}

/// The question for the agent; none if it goes to another host.
fn question(action: &str, asked: &Value, ports: &Value) -> Result<Option<Value>, String> {
    if asked["host"].as_str().is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let port = port(&asked["port"], ports)?;
    Ok(Some(match action {
        "tcpSocket" => json!({"tcp": {"port": port}}),
        "grpc" => {
            let service = asked["service"].as_str().unwrap_or_default();
            json!({"grpc": {"port": port, "service": service}})
        }
        _ => {
            let path = asked["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("/");
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            let https = asked["scheme"].as_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS"));
            let header =
                |header: &Value| json!([header["name"], header["value"].as_str().unwrap_or_default()]);
            let headers: Vec<Value> =
                asked["httpHeaders"].as_array().into_iter().flatten().map(header).collect();
            json!({"http": {"port": port, "path": path, "https": https, "headers": headers}})
        }
    }))
}

/// A port by number or by its name in the container.
fn port(asked: &Value, ports: &Value) -> Result<u16, String> {
    let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    if let Some(number) = number(asked) {
        return Ok(number);
    }
    let named = ports
        .as_array()
        .into_iter()
        .flatten()
        .find(|port| port["name"].is_string() && port["name"] == *asked);
    named
        .and_then(|port| number(&port["containerPort"]))
        .ok_or_else(|| format!("it names no port of the container: {asked}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_go_to_the_agent_and_keep_what_they_ask() {
        let mut container = json!({
            "name": "web", "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "live?x=1&y=$(A)", "port": "http", "scheme": "HTTPS",
                                "httpHeaders": [{"name": "Host", "value": "a"}]}, "periodSeconds": 7, "timeoutSeconds": 3},
            "readinessProbe": {"tcpSocket": {"port": 5432}},
            "startupProbe": {"grpc": {"port": 9000, "service": "s"}},
            "lifecycle": {"preStop": {"httpGet": {"port": 8080}}, "postStart": {"exec": {"command": ["x"]}}},
        });
        let (mut questions, mut warnings) = (Questions::new(), Vec::new());
        rewrite(&mut container, 15020, "s3cret", &mut questions, &mut warnings).unwrap();
        let to = |path: &str| json!({"path": path, "port": 15020, "scheme": "HTTP"});
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": to("/app-health/web/livez"), "periodSeconds": 7, "timeoutSeconds": 3})
        );
        assert_eq!(container["readinessProbe"], json!({"httpGet": to("/app-health/web/readyz")}));
        assert_eq!(container["startupProbe"], json!({"httpGet": to("/app-health/web/startupz")}));
        assert_eq!(
            container["lifecycle"]["preStop"],
            json!({"httpGet": to("/app-lifecycle/web/prestop/s3cret")})
        );
        assert_eq!(container["lifecycle"]["postStart"], json!({"exec": {"command": ["x"]}}));
        let http =
            json!({"port": 8080, "path": "/live?x=1&y=$(A)", "https": true, "headers": [["Host", "a"]]});
        assert_eq!(questions["/app-health/web/livez"], json!({"http": http, "timeoutSeconds": 3}));
        assert_eq!(questions["/app-health/web/readyz"], json!({"tcp": {"port": 5432}, "timeoutSeconds": 1}));
        assert_eq!(
            questions["/app-health/web/startupz"],
            json!({"grpc": {"port": 9000, "service": "s"}, "timeoutSeconds": 1})
        );
        assert_eq!((questions.len(), warnings.len()), (4, 0));
    }

    #[test]
    fn what_is_asked_elsewhere_stays() {
        let whole = json!({
            "name": "web",
            "livenessProbe": {"httpGet": {"port": 80, "host": "127.0.0.1"}},
            "readinessProbe": {"exec": {"command": ["x"]}},
            "startupProbe": {"httpGet": {"port": "nowhere"}},
        });
        let mut container = whole.clone();
        let (mut questions, mut warnings) = (Questions::new(), Vec::new());
        rewrite(&mut container, 15020, "s", &mut questions, &mut warnings).unwrap();
        assert_eq!(container, whole);
        assert!(
            questions.is_empty() && warnings.len() == 1 && warnings[0].contains("startupProbe"),
            "{warnings:?}"
        );
        for name in ["", "a/b", "../x", "A", "a b"] {
            let mut container = json!({"name": name});
            assert!(rewrite(&mut container, 1, "s", &mut questions, &mut warnings).is_err(), "{name}");
        }
    }
}
