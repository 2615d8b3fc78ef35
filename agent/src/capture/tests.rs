use super::*;
use crate::args::{Networks, PortSet};

fn plan(proxy_uid: Option<u32>) -> Plan {
    Plan {
        mode: CaptureMode::Nft,
        proxy_uid,
        envoy_marks: proxy_uid.is_none(),
        we_mark: true,
        not_inbound: OWN_PORTS.into(),
        rules: RuleArgs::default(),
        addresses: vec![],
    }
}

#[test]
fn the_rules_with_a_user_for_envoy() {
    let expected = r#"table inet countersign
delete table inet countersign
table inet countersign {
  chain inbound {
    type nat hook prerouting priority dstnat; policy accept;
    tcp dport { 15008, 15020, 15021, 15090 } return
    meta l4proto tcp redirect to :15006
  }
  chain outbound {
    type nat hook output priority -100; policy accept;
    oifname "lo" ip saddr 127.0.0.6 return
    oifname "lo" ip6 saddr ::6 return
    oifname "lo" meta skuid 1337 ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15006
    oifname "lo" meta skuid 1337 ip6 daddr != ::1 meta l4proto tcp redirect to :15006
    meta mark 1337 return
    meta skuid 1337 return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    meta l4proto tcp redirect to :15001
  }
}
"#;
    assert_eq!(plan(Some(1337)).rules(), expected);
}

#[test]
fn without_a_user_of_its_own_envoy_is_known_by_its_mark() {
    let rules = plan(None).rules();
    assert!(!rules.contains("skuid"), "{rules}");
    assert!(rules.contains("oifname \"lo\" meta mark 1337 ip daddr != 127.0.0.0/8"), "{rules}");
}

#[test]
fn exceptions_are_in_the_rules_and_nothing_else_is() {
    let rules = RuleArgs {
        include_inbound_ports: "8080,9090".parse().unwrap(),
        exclude_inbound_ports: None,
        include_outbound_ports: Some([443].into()),
        exclude_outbound_ports: Some([3306, 25].into()),
        include_outbound_ip_ranges: "10.1.0.0/16,fd00::/8,10.0.0.0/15".parse().unwrap(),
        exclude_outbound_ip_ranges: vec!["10.0.0.0/24".parse().unwrap()],
        exclude_interfaces: vec!["net1".to_owned()],
    };
    let own = rules::Own { user: Some(1337), marks: false };
    let expected = r#"table inet countersign
delete table inet countersign
table inet countersign {
  chain inbound {
    type nat hook prerouting priority dstnat; policy accept;
    iifname { "net1" } return
    tcp dport { 15020, 15021 } return
    tcp dport { 8080, 9090 } redirect to :15006
  }
  chain outbound {
    type nat hook output priority -100; policy accept;
    oifname "lo" ip saddr 127.0.0.6 return
    oifname "lo" ip6 saddr ::6 return
    oifname "lo" meta skuid 1337 ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15006
    oifname "lo" meta skuid 1337 ip6 daddr != ::1 meta l4proto tcp redirect to :15006
    meta skuid 1337 return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    oifname { "net1" } return
    tcp dport { 25, 3306 } return
    ip daddr { 10.0.0.0/24 } return
    tcp dport { 443 } redirect to :15001
    ip daddr { 10.0.0.0/15 } meta l4proto tcp redirect to :15001
    ip6 daddr { fd00::/8 } meta l4proto tcp redirect to :15001
  }
}
"#;
    assert_eq!(rules::text(own, &POD_PORTS.into(), &rules), expected);
    let nothing = RuleArgs {
        include_inbound_ports: "".parse().unwrap(),
        include_outbound_ip_ranges: "".parse().unwrap(),
        ..RuleArgs::default()
    };
    let text = rules::text(own, &BTreeSet::new(), &nothing);
    assert_eq!(text.matches("redirect").count(), 2, "only Envoy's own calls to the workload: {text}");
}

const INSIDE: &str = "AGENT_TEST_NETWORK_NAMESPACE";

/// Real rules in a network namespace of their own.
#[test]
fn traffic_goes_where_the_rules_say() {
    let mut unshare = std::process::Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.arg("--net").arg(std::env::current_exe().expect("a path"));
    unshare.args(["--exact", "capture::tests::in_a_namespace_of_its_own", "--ignored", "--nocapture"]);
    let Ok(output) = unshare.env(INSIDE, "1").output() else { return println!("skipped: no unshare") };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !text.contains("namespace prepared") {
        return println!("skipped: no network namespace with nft and ip: {text}");
    }
    assert!(output.status.success(), "{text}");
}

/// Not a test of its own: the inside of the one above.
#[tokio::test]
#[ignore = "run by traffic_goes_where_the_rules_say"]
async fn in_a_namespace_of_its_own() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let setup = "ip link set lo up && ip address add 10.9.9.9/32 dev lo && ip address add fd09::9/128 dev lo && \
                 ip route add default dev lo && nft list tables";
    let done = std::process::Command::new("sh").args(["-c", setup]).env("PATH", path_with_sbin()).status();
    if !done.is_ok_and(|status| status.success()) {
        return;
    }
    println!("namespace prepared");
    let plan =
        Plan { addresses: vec!["10.9.9.9".parse().unwrap(), "fd09::9".parse().unwrap()], ..plan(None) };
    // Who may not read the rules finds out by trying, before anybody listens and while somebody does.
    let found = async || {
        let mut found = Vec::new();
        for address in &plan.addresses {
            found.push(verify::captured(*address).await.expect("tried"));
        }
        found
    };
    assert_eq!(found().await, [verify::Found::Bare; 2]);
    assert!(matches!(plan.verify().await, Err(CaptureError::Bare(_))));
    plan.apply().await.expect("applied");
    assert_eq!(found().await, [verify::Found::Captured; 2]);
    for (port, name) in [(15001, "outbound"), (15006, "inbound"), (8080, "app"), (9090, "other")] {
        serve(port, name).await;
    }
    assert_eq!(found().await, [verify::Found::Captured; 2]);
    exceptions(&plan).await;
    plan.apply().await.expect("applied");
    plan.apply().await.expect("applied again");
    assert_eq!(listed().matches("redirect to :15001").count(), 1, "replaced, not added to");
    for (to, from, mark, expected) in [
        ("10.9.9.9:8080", None, None, "outbound"),
        ("[fd09::9]:8080", None, None, "outbound"),
        ("198.51.100.1:80", None, None, "outbound"),
        // Also what must not be redirected on its way in is redirected on its way out.
        ("10.9.9.9:15020", None, None, "outbound"),
        ("127.0.0.1:8080", None, None, "app"),
        ("127.8.0.1:8080", None, None, "app"),
        ("[::1]:8080", None, None, "app"),
        ("10.9.9.9:8080", None, Some(MARK), "inbound"),
        ("[fd09::9]:8080", None, Some(MARK), "inbound"),
        ("127.0.0.1:8080", None, Some(MARK), "app"),
        ("10.9.9.9:8080", Some("127.0.0.6:0"), None, "app"),
        ("[fd09::9]:8080", Some("[::6]:0"), None, "app"),
        ("10.9.9.9:8080", Some("127.0.0.6:0"), Some(MARK), "app"),
    ] {
        let got = ask(to, from, mark).await.unwrap_or_else(|error| error.to_string());
        assert_eq!(got, expected, "{to} from {from:?} with mark {mark:?}");
    }
    if uid_is_mapped(&std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default(), 1337) {
        let plan = Plan { proxy_uid: Some(1337), envoy_marks: false, ..plan.clone() };
        plan.apply().await.expect("applied");
        for (to, expected) in [("10.9.9.9/8080", "inbound"), ("127.0.0.1/8080", "app")] {
            let script = format!("exec cat < /dev/tcp/{to}");
            let child = ["--reuid=1337", "--regid=1337", "--clear-groups", "bash", "-c", &script];
            let output = Command::new("setpriv").args(child).output().await.expect("setpriv and bash");
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{to} as 1337");
        }
        assert_eq!(ask("10.9.9.9:8080", None, None).await.expect("answered"), "outbound");
    }
    plan.remove().await.expect("removed");
    plan.remove().await.expect("nothing to remove is no error");
    assert_eq!(ask("10.9.9.9:8080", None, None).await.expect("answered"), "app");
}

/// Exceptions as a pod's annotations make them.
async fn exceptions(plan: &Plan) {
    let with = |rules| Plan { rules, ..plan.clone() };
    let ports = |list: &[u16]| Some(list.iter().copied().collect::<PortSet>());
    let networks = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<ipnet::IpNet>>();
    let cases = [
        (
            RuleArgs { exclude_outbound_ports: ports(&[8080]), ..RuleArgs::default() },
            ["app", "outbound", "app"],
        ),
        (
            RuleArgs {
                exclude_outbound_ip_ranges: networks(&["10.9.9.0/24", "10.9.9.8/30"]),
                ..RuleArgs::default()
            },
            ["app", "other", "outbound"],
        ),
        (
            RuleArgs {
                include_outbound_ip_ranges: Networks::These(networks(&["fd00::/8"])),
                include_outbound_ports: ports(&[9090]),
                ..RuleArgs::default()
            },
            ["app", "outbound", "outbound"],
        ),
        (
            RuleArgs { include_outbound_ip_ranges: Networks::These(Vec::new()), ..RuleArgs::default() },
            ["app", "other", "app"],
        ),
    ];
    for (rules, expected) in cases {
        with(rules.clone()).apply().await.expect("nft takes them");
        for (to, expected) in ["10.9.9.9:8080", "10.9.9.9:9090", "[fd09::9]:8080"].into_iter().zip(expected) {
            let got = ask(to, None, None).await.unwrap_or_else(|error| error.to_string());
            assert_eq!(got, expected, "{to} with {rules:?}");
        }
    }
    with(RuleArgs { exclude_interfaces: vec!["net1".to_owned()], ..RuleArgs::default() })
        .apply()
        .await
        .expect("nft takes interfaces that are not there");
}

/// Answers every connection with `name`.
async fn serve(port: u16, name: &'static str) {
    let listener = tokio::net::TcpListener::bind(("::", port)).await.expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
}

/// Who answers a connection `to`.
async fn ask(to: &str, from: Option<&str>, mark: Option<u32>) -> std::io::Result<String> {
    use tokio::io::AsyncReadExt;
    let to: std::net::SocketAddr = to.parse().expect("an address");
    let socket =
        if to.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark)?;
    }
    if let Some(from) = from {
        socket.bind(from.parse().expect("an address"))?;
    }
    let connect = tokio::time::timeout(std::time::Duration::from_secs(5), socket.connect(to));
    let mut text = String::new();
    connect.await??.read_to_string(&mut text).await?;
    Ok(text)
}

fn listed() -> String {
    let output = std::process::Command::new("nft")
        .args(["list", "table", "inet", "countersign"])
        .env("PATH", path_with_sbin())
        .output()
        .expect("nft");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// As `countersign capture` makes them for another container: by user alone, and only if there is such a user.
#[test]
fn for_others_there_is_no_mark_to_get_past_by() {
    let args = CaptureArgs { rules: RuleArgs::default(), proxy_uid: 1337 };
    let plan = Plan::for_others(&args, "0 0 4294967295\n").expect("there is such a user");
    let rules = plan.rules();
    assert!(!rules.contains("mark") && rules.contains("skuid 1337"), "{rules}");
    assert!(rules.contains("tcp dport { 15020, 15021 } return"), "{rules}");
    assert!(matches!(Plan::for_others(&args, "0 1000 1\n"), Err(CaptureError::NoUser(1337))));
}

#[test]
fn uid_maps() {
    assert!(uid_is_mapped("         0          0 4294967295\n", 1337));
    assert!(!uid_is_mapped("         0       1000          1\n", 1337));
    assert!(uid_is_mapped("0 1000 1\n1 100000 65536\n", 1337));
    assert!(!uid_is_mapped("", 1337));
}

#[test]
fn a_folder_that_is_closed_or_still_to_be_made_is_not_relied_upon() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir_in("/tmp").expect("a folder");
    let inside = dir.path().join("sds/sds.sock");
    let mode =
        |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).expect("set");
    mode(0o700);
    assert!(!reachable_for_others(&inside));
    mode(0o755);
    assert!(reachable_for_others(&inside));
    assert!(!reachable_for_others(&dir.path().join("missing/sds/sds.sock")));
}
