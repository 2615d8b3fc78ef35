use super::*;
use crate::{Kind, Severity};

#[test]
fn smoke() {
    let text = r#"
# a comment
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: orders-policy
spec:
  rules:
  - from:
    - source:
        principal: ["cluster.local/ns/default/sa/payment-service"]
    to:
    - operation:
        methods: ["POST"]
        paths: ["/orders/*"]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
kind: Deployment
apiVersion: apps/v1
"#;
    for d in read(text, "x.yaml") {
        println!("{} {:?}", d.origin, d.content);
        for f in d.findings {
            println!("   {f} {:?}", f.severity);
        }
    }
    let _ = (Kind::Pod, Severity::Error);
}
