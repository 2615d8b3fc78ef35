//! The laboratory itself, without a control plane: what the other tests take for granted.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::here;
use tests::lab::process::command_line;
use tests::lab::{self, ALLOWED, Credential, Family, Got, PodSpec, Protocol, get};

/// Applications answer in their own namespaces, over both families and every protocol, to clients in another one.
#[test]
fn applications_answer_from_their_namespaces() {
    lab::run(here!(), async |lab| {
        let spec = PodSpec::new("default", "app")
            .port(8080, Protocol::Http)
            .port(5432, Protocol::Tcp)
            .port(7777, Protocol::Undeclared);
        let id = lab.bare_pod(spec).await?;
        let caller = lab.caller(Credential::Plaintext);
        for family in [Family::V4, Family::V6] {
            let (http, tcp, any) =
                (lab[id].address(family, 8080), lab[id].address(family, 5432), lab[id].address(family, 7777));
            let mut one = caller.http1(http).await.expect("HTTP/1.1");
            for path in ["/a", "/b?c=d"] {
                let answer = one.get(path).await;
                assert_eq!((answer.got, answer.seen()["path"].as_str()), (ALLOWED, Some(path)));
                assert_eq!(answer.seen()["host"], "app.example");
            }
            let mut two = caller.http2(http).await.expect("HTTP/2");
            assert_eq!(two.get("/x").await.seen()["protocol"], "HTTP/2.0");
            assert_eq!(caller.line(tcp, "hello").await, Got::Line);
            assert_eq!(caller.line(any, "hello").await, Got::Line);
            assert_eq!(caller.get(any, "/").await.got, ALLOWED);
        }
        Ok(())
    });
}

/// A client tells a refused handshake from a closed connection.
#[test]
fn clients_tell_refusals_apart() {
    lab::run(here!(), async |lab| {
        let id = lab.bare_pod(PodSpec::new("default", "app").port(8080, Protocol::Http)).await?;
        let on = lab[id].on(8080);
        assert_eq!(lab.caller(Credential::Anonymous).get(on, "/").await.got, Got::TlsRefused);
        assert_eq!(lab.caller(Credential::Plaintext).get(lab[id].on(81), "/").await.got, Got::Closed);
        let mut stream = lab.caller(Credential::Plaintext).http1(on).await.expect("HTTP/1.1");
        let mut body = stream.open(get("/stream?count=3&interval=1")).await.expect("an answer").into_body();
        let mut text = Vec::new();
        while let Some(piece) = lab::next(&mut body, Duration::from_secs(5)).await? {
            text.extend_from_slice(&piece);
        }
        assert_eq!(String::from_utf8(text)?, "app 0\napp 1\napp 2\n");
        Ok(())
    });
}

/// Names the sandbox that is killed, and its application.
const MARK: &str = "LAB_MARK";

/// What a test started is gone with it, also when it is killed with SIGKILL.
#[test]
fn a_killed_sandbox_leaves_nothing() {
    let mark = format!("killed-{}", std::process::id());
    let mut outer = Command::new(std::env::current_exe().expect("a path"))
        .args(["stays_until_it_is_killed", "--exact", "--ignored"])
        .env(MARK, &mark)
        .env_remove("LAB_SANDBOX")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test again");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut seen = false;
    while !seen && outer.try_wait().expect("a child").is_none() && Instant::now() < deadline {
        seen = running(&mark) > 0;
        std::thread::sleep(Duration::from_millis(5));
    }
    let was_running = outer.try_wait().expect("a child").is_none();
    outer.kill().expect("it runs");
    outer.wait().expect("a child");
    if !was_running {
        return; // Skipped here, with a reason printed by the tests above.
    }
    assert!(seen, "the application of the sandbox was not seen");
    while running(&mark) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(running(&mark), 0, "processes outlive their sandbox");
    assert!(!Path::new("/run/netns").join(&mark).exists(), "a namespace outlives its sandbox");
}

#[test]
#[ignore = "only a_killed_sandbox_leaves_nothing runs it"]
fn stays_until_it_is_killed() {
    let Ok(mark) = std::env::var(MARK) else { return };
    lab::run(here!(), async |lab| {
        lab.bare_pod(PodSpec::new("default", &mark).port(8080, Protocol::Http)).await?;
        std::future::pending().await
    });
}

/// How many processes of this machine have `mark` in their command line.
fn running(mark: &str) -> usize {
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    pids.filter(|pid| command_line(*pid).contains(mark)).count()
}
