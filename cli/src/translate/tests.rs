use super::*;

const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/payment]}}]
    to: [{operation: {methods: [POST], paths: [/orders/*]}}]
";

fn args(file: PathBuf) -> TranslateArgs {
    TranslateArgs {
        file,
        mesh_config: None,
        workload: None,
        labels: vec!["app=orders".to_owned()],
        namespace: "shop".to_owned(),
        output: Form::Effective,
        capture: CaptureArg::Nft,
        ports: vec![port("127.0.0.1:8080=127.0.0.1:9000").unwrap()],
        protocol: ProtocolArg::Http,
        tls: Vec::new(),
    }
}

/// The arguments, and everything over a file with `text`.
fn offline(text: &str) -> (TranslateArgs, Offline, bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, text).unwrap();
    let input = input::read(&file, None).unwrap();
    (args(file), Offline::new(input.mesh, input.objects), input.understood)
}

#[test]
fn a_policy_is_shown_in_the_words_of_the_api() {
    let (args, mut offline, understood) = offline(POLICY);
    assert!(understood);
    let [workload] = &workloads(&args, &mut offline).unwrap()[..] else { panic!("one") };
    let value = effective(&mut offline, workload).unwrap();
    let rule = &value["policy"]["allow"]["rules"][0];
    assert_eq!(rule["name"], "ns[shop]-policy[orders]-rule[0]");
    assert_eq!(rule["from"][0][0]["oneOf"][0], "cluster.local/ns/shop/sa/payment");
    assert_eq!(rule["to"][0][0]["oneOf"][0], "POST");
    assert_eq!(value["policy"]["mtls"]["mode"], "PERMISSIVE");
}

#[test]
fn resources_and_a_whole_configuration_come_from_the_same_policy() {
    let (args, mut offline, _) = offline(POLICY);
    let [workload] = &workloads(&args, &mut offline).unwrap()[..] else { panic!("one") };
    let value = envoy(&args, &mut offline, workload).unwrap();
    let slots = value["ecds"].as_array().unwrap();
    assert!(slots.iter().any(|slot| slot.to_string().contains("ns[shop]-policy[orders]-rule[0]")), "{value}");
    let text = whole(&args, &mut offline, workload).unwrap();
    assert!(text.contains("ns[shop]-policy[orders]-rule[0]"), "{text}");
}

#[test]
fn what_cannot_be_understood_is_closed_and_a_finding() {
    let (args, mut offline, understood) = offline(&POLICY.replace("principals", "principles"));
    assert!(!understood);
    let [workload] = &workloads(&args, &mut offline).unwrap()[..] else { panic!("one") };
    let value = effective(&mut offline, workload).unwrap();
    let rules = value["policy"]["allow"]["rules"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["to"] == "nothing" || rule["from"] == "nothing"), "{value}");
}
