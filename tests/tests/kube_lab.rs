//! The API server's laboratory itself: what the tests with Kubernetes take for granted.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::here;
use tests::lab::kube::{self, Claims, Kube, Through};
use tests::lab::process::command_line;
use tests::lab::{self, Credential, until};

const POLICY: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: default}
spec: {action: DENY}
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: p, namespace: default}
spec: {mtls: {mode: STRICT}}
";

/// Objects are written, read in both versions, listed by kubectl, and gone when deleted.
#[test]
fn objects_are_written_and_deleted() {
    kube::shared(here!(), async |kube| {
        kube.apply(POLICY).await?;
        for api in ["security.istio.io/v1", "security.istio.io/v1beta1"] {
            let read = kube.get(api, "AuthorizationPolicy", "default", "a").await?.context(api)?;
            assert_eq!(read["spec"]["action"], "DENY");
        }
        let listed = kube.kubectl(["get", "ap,pa", "-n", "default", "-o", "name"])?;
        ensure!(listed.contains("authorizationpolicy.security.istio.io/a"), "{listed}");
        kube.delete(POLICY).await?;
        assert!(kube.get("security.istio.io/v1", "AuthorizationPolicy", "default", "a").await?.is_none());
        Ok(())
    });
}

/// A pod runs and is ready; its Service and EndpointSlice name it.
#[test]
fn pods_run_and_have_endpoints() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("pods").await?;
        let uid = kube.pod(&ns, "web-1", "web", &[("app", "web")], "10.1.2.3", &[8080]).await?;
        kube.service(&ns, "web", &[("http", 80, 8080)], &[("web-1", &uid, "10.1.2.3")]).await?;
        let pod = kube.get("v1", "Pod", &ns, "web-1").await?.context("the pod")?;
        assert_eq!(pod["status"]["podIP"], "10.1.2.3");
        assert_eq!(pod["status"]["phase"], "Running");
        let slice =
            kube.get("discovery.k8s.io/v1", "EndpointSlice", &ns, "web-lab").await?.context("slice")?;
        assert_eq!(slice["endpoints"][0]["targetRef"]["uid"], uid);
        kube.delete_pod(&ns, "web-1").await?;
        assert!(kube.get("v1", "Pod", &ns, "web-1").await?.is_none());
        Ok(())
    });
}

async fn review(kube: &Kube, token: &str, audience: &str) -> Result<Value> {
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [audience]},
    });
    let request = http::Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes())?;
    let answer: Value = kube.client().request(request).await?;
    Ok(answer["status"].clone())
}

/// Tokens of either making are accepted for their audience and pod only, and not after their end.
#[test]
fn tokens_are_bound_to_audience_pod_and_time() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("tokens").await?;
        let pod = kube.pod(&ns, "web-1", "web", &[], "10.1.2.4", &[]).await?;
        let uid = kube.service_account(&ns, "web").await?;
        let claims = Claims {
            namespace: &ns,
            account: "web",
            uid: &uid,
            audience: "istio-ca",
            pod: Some(("web-1", &pod)),
            expires: 60,
        };
        let issued = kube.token(&ns, "web", "istio-ca", Some(("web-1", &pod)), 600).await?;
        let minted = kube.mint_token(&claims)?;
        for token in [&issued, &minted] {
            let status = review(kube, token, "istio-ca").await?;
            assert_eq!(status["authenticated"], true, "{status}");
            assert_eq!(status["user"]["username"], format!("system:serviceaccount:{ns}:web"));
            assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-uid"][0], pod);
            assert_ne!(review(kube, token, "other").await?["authenticated"], true);
        }
        let expired = kube.mint_token(&Claims { expires: -60, ..claims })?;
        assert_ne!(review(kube, &expired, "istio-ca").await?["authenticated"], true);
        kube.delete_pod(&ns, "web-1").await?;
        until("the deleted pod's token is refused", async || {
            Ok((review(kube, &issued, "istio-ca").await?["authenticated"] != true).then_some(()))
        })
        .await
    });
}

/// A service account may do what RBAC says and nothing else.
#[test]
fn service_accounts_have_the_rights_rbac_gives() {
    kube::shared(here!(), async |kube| {
        use std::os::unix::fs::PermissionsExt as _;
        let ns = kube.fresh_namespace("rights").await?;
        let file = kube.kubeconfig_of(&ns, "reader").await?;
        assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        let can = |verb: &str, what: &str| {
            let may = [
                "auth",
                "can-i",
                verb,
                what,
                "-n",
                &ns,
                "--as",
                &format!("system:serviceaccount:{ns}:reader"),
            ]
            .map(str::to_owned);
            kube.kubectl(may).is_ok_and(|said| said.trim() == "yes")
        };
        ensure!(!can("list", "pods"), "rights out of nothing");
        kube.kubectl(["create", "clusterrole", &ns, "--verb=list", "--resource=pods"])?;
        let account = format!("--serviceaccount={ns}:reader");
        kube.kubectl(["create", "clusterrolebinding", &ns, &format!("--clusterrole={ns}"), &account])?;
        until("RBAC has seen it", async || Ok(can("list", "pods").then_some(()))).await?;
        ensure!(!can("delete", "pods"), "more than was given");
        Ok(())
    });
}

/// Stopped, started, silent, compacted, cut off: what was written is there afterwards.
#[test]
fn outages_lose_nothing() {
    kube::own(here!(), async |kube| {
        let gate = kube.gate().await?;
        let config = kube.kubeconfig_at("gate", &gate.url(), kube.admin_token())?;
        let mut config = ::kube::Config::from_custom_kubeconfig(
            ::kube::config::Kubeconfig::read_from(config)?,
            &::kube::config::KubeConfigOptions::default(),
        )
        .await?;
        config.proxy_url = None;
        let behind = ::kube::Client::try_from(config)?;
        kube.apply(POLICY).await?;
        assert_eq!(behind.apiserver_version().await?.minor, "36");
        kube.compact().await?;
        kube.stop()?;
        assert!(behind.apiserver_version().await.is_err());
        kube.start().await?;
        until("it answers through the gate", async || Ok(behind.apiserver_version().await.ok())).await?;
        gate.set(Through::Closed);
        assert!(behind.apiserver_version().await.is_err());
        gate.set(Through::Silent);
        let silent = tokio::time::timeout(Duration::from_millis(200), behind.apiserver_version()).await;
        assert!(silent.is_err(), "an answer through a silent gate: {silent:?}");
        assert!(kube.get("security.istio.io/v1", "AuthorizationPolicy", "default", "a").await?.is_some());
        gate.set(Through::Everything);
        behind.apiserver_version().await?;
        kube.signal(nix::sys::signal::Signal::SIGSTOP)?;
        let silent = tokio::time::timeout(Duration::from_millis(200), behind.apiserver_version()).await;
        assert!(silent.is_err(), "an answer of a stopped process: {silent:?}");
        kube.signal(nix::sys::signal::Signal::SIGCONT)?;
        behind.apiserver_version().await?;
        Ok(())
    });
}

/// Pods reach the API server of a sandbox.
#[test]
fn pods_reach_it() {
    lab::run(here!(), async |lab| {
        lab.kube().await?;
        let kube = lab.kube.as_ref().context("it was started")?;
        assert_eq!(
            kube.get("v1", "Namespace", "", "istio-system").await?.context("a namespace")?["kind"],
            "Namespace"
        );
        let answer = lab.caller(Credential::Anonymous).get(kube.address(), "/version").await;
        assert_eq!(answer.got, lab::ALLOWED);
        Ok(())
    });
}

/// What was started is gone with the test process, also when it is killed with SIGKILL.
#[test]
fn a_killed_test_leaves_nothing() {
    if kube::assets().is_err() {
        return; // Skipped with a printed reason by the tests above.
    }
    let mut outer = Command::new(std::env::current_exe().expect("a path"))
        .args(["stays_until_it_is_killed", "--exact", "--ignored", "--nocapture"])
        .env("LAB_KUBE_STAYS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test again");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(outer.stdout.take().expect("piped")));
    let folder = loop {
        let line = lines.next().expect("it says where its files are").expect("text");
        if let Some((_, folder)) = line.split_once("files in ") {
            break folder.to_owned();
        }
    };
    assert!(Path::new(&folder).is_dir());
    outer.kill().expect("it runs");
    outer.wait().expect("a child");
    let deadline = Instant::now() + Duration::from_secs(10);
    while (running(&folder) > 0 || Path::new(&folder).exists()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(running(&folder), 0, "processes outlive their test");
    assert!(!Path::new(&folder).exists(), "files outlive their test");
}

#[test]
#[ignore = "only a_killed_test_leaves_nothing runs it"]
fn stays_until_it_is_killed() {
    if std::env::var_os("LAB_KUBE_STAYS").is_none() {
        return;
    }
    kube::own(here!(), async |kube| {
        println!("files in {}", kube.folder().display());
        std::future::pending().await
    });
}

/// How many processes of this machine have `mark` in their command line.
fn running(mark: &str) -> usize {
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    pids.filter(|pid| command_line(*pid).contains(mark)).count()
}
