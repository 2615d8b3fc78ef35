//! A change of policy is felt at once, by connections that are open too, and by nobody whom it does not concern.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::here;
use tests::lab::{self, ALLOWED, Credential, DENIED, Got, Lab, PodId, PodSpec, Protocol, get, next};

/// How long a piece of a stream may be in coming.
const SILENCE: Duration = Duration::from_secs(10);

fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: \
         istio-system}}\nspec:\n  mtls: {{mode: {mode}}}\n"
    )
}

/// ALLOW policy `name` in `default` for these accounts.
fn allow(name: &str, accounts: &[&str], annotations: &str) -> String {
    let principals: Vec<String> =
        accounts.iter().map(|a| format!("cluster.local/ns/default/sa/{a}")).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: \
         default\n{annotations}spec:\n  rules:\n  - from: [{{source: {{principals: {principals:?}}}}}]\n"
    )
}

async fn app(lab: &mut Lab) -> Result<PodId> {
    lab.save("strict.yaml", &peer_authentication("STRICT"))?;
    lab.start().await?;
    lab.pod(PodSpec::new("default", "app").port(8080, Protocol::Http)).await
}

/// The next request of a live connection is refused, the connection lives, and the right comes back on it.
#[test]
fn a_revoked_right_is_refused_on_the_next_request_of_a_live_connection() {
    lab::run(here!(), async |lab| {
        lab.save("allow.yaml", &allow("allow", &["a", "b"], ""))?;
        let app = app(lab).await?;
        let (on, caller) = (lab[app].on(8080), lab.caller(lab.identity("default", "a")?));
        let mut one = caller.http1(on).await.expect("HTTP/1.1");
        let mut two = caller.http2(on).await.expect("HTTP/2");
        for round in 0..10 {
            for (accounts, expected) in [(&["a", "b"][..], ALLOWED), (&["b"][..], DENIED)] {
                lab.save("allow.yaml", &allow("allow", accounts, ""))?;
                for connection in [&mut one, &mut two] {
                    lab::until("the change is felt", async || {
                        let got = connection.get("/").await.got;
                        ensure!(got == ALLOWED || got == DENIED, "round {round}: {got}");
                        Ok((got == expected).then_some(()))
                    })
                    .await?;
                }
            }
        }
        ensure!(one.is_open() && two.is_open(), "a connection did not live through it");
        Ok(())
    });
}

/// A caller whom no change concerns keeps its stream through a hundred of them.
#[test]
fn an_unaffected_stream_survives_a_hundred_changes() {
    lab::run(here!(), async |lab| {
        lab.save("stays.yaml", &allow("stays", &["streamer"], ""))?;
        lab.save("changes.yaml", &allow("changes", &["a"], ""))?;
        let app = app(lab).await?;
        let on = lab[app].on(8080);
        let streamer = lab.caller(lab.identity("default", "streamer")?);
        let a = lab.caller(lab.identity("default", "a")?);
        let mut one = streamer.http1(on).await.expect("HTTP/1.1");
        let mut two = streamer.http2(on).await.expect("HTTP/2");
        let mut streams = Vec::new();
        for connection in [&mut one, &mut two] {
            let response = connection.open(get("/stream?count=0&interval=20")).await.expect("a stream");
            streams.push(response.into_body());
        }
        let mut asking = a.http1(on).await.expect("HTTP/1.1");
        for change in 0..100 {
            let (account, expected) = if change % 2 == 0 { ("b", DENIED) } else { ("a", ALLOWED) };
            lab.save("changes.yaml", &allow("changes", &[account], ""))?;
            lab::until("the change is felt", async || {
                Ok((asking.get("/").await.got == expected).then_some(()))
            })
            .await?;
            for stream in &mut streams {
                ensure!(next(stream, SILENCE).await?.is_some(), "a stream ended at change {change}");
            }
        }
        Ok(())
    });
}

/// A stream that is open was judged at its headers: without a wish for drain it goes on after its right is gone.
#[test]
fn an_open_stream_keeps_its_verdict_where_no_drain_is_asked_for() {
    lab::run(here!(), async |lab| {
        lab.save("allow.yaml", &allow("allow", &["a", "b"], ""))?;
        let app = app(lab).await?;
        let on = lab[app].on(8080);
        let a = lab.caller(lab.identity("default", "a")?);
        let mut streaming = a.http2(on).await.expect("HTTP/2");
        let mut stream =
            streaming.open(get("/stream?count=0&interval=20")).await.expect("a stream").into_body();
        lab.save("allow.yaml", &allow("allow", &["b"], ""))?;
        lab.becomes(DENIED, async |_| a.get(on, "/").await.got).await?;
        assert_eq!(streaming.get("/").await.got, DENIED, "a new request on the same connection");
        // Well beyond the time in which a drained listener would be gone.
        let until = std::time::Instant::now() + Duration::from_secs(4);
        while std::time::Instant::now() < until {
            ensure!(next(&mut stream, SILENCE).await?.is_some(), "the stream was cut");
        }
        Ok(())
    });
}

/// Where the policy asks for drain, an open stream of a caller that lost its right is cut.
#[test]
fn on_revoke_drain_cuts_the_stream() {
    lab::run(here!(), async |lab| {
        let drain = "  annotations: {countersign.io/on-revoke: drain}\n";
        lab.save("allow.yaml", &allow("allow", &["a", "b"], drain))?;
        let app = app(lab).await?;
        let on = lab[app].on(8080);
        let a = lab.caller(lab.identity("default", "a")?);
        let mut connections = [a.http1(on).await.expect("HTTP/1.1"), a.http2(on).await.expect("HTTP/2")];
        let mut streams = Vec::new();
        for connection in &mut connections {
            let response = connection.open(get("/stream?count=0&interval=20")).await.expect("a stream");
            streams.push(response.into_body());
        }
        for stream in &mut streams {
            ensure!(next(stream, SILENCE).await?.is_some(), "no stream to begin with");
        }
        lab.save("allow.yaml", &allow("allow", &["b"], drain))?;
        let cut = async {
            for stream in &mut streams {
                while next(stream, SILENCE).await?.is_some() {}
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(20), cut).await.expect("the streams are cut")?;
        assert_eq!(a.get(on, "/").await.got, DENIED);
        Ok(())
    });
}

/// A plaintext connection that was let in while PERMISSIVE asks in vain once STRICT is in force.
#[test]
fn strict_reaches_plaintext_connections_that_are_open() {
    lab::run(here!(), async |lab| {
        let app = app(lab).await?;
        let on = lab[app].on(8080);
        let caller = lab.caller(Credential::Plaintext);
        for _ in 0..5 {
            lab.save("strict.yaml", &peer_authentication("PERMISSIVE"))?;
            lab.becomes(ALLOWED, async |_| caller.get(on, "/").await.got).await?;
            let mut one = caller.http1(on).await.expect("HTTP/1.1");
            let mut two = caller.http2(on).await.expect("HTTP/2");
            assert_eq!((one.get("/").await.got, two.get("/").await.got), (ALLOWED, ALLOWED));
            lab.save("strict.yaml", &peer_authentication("STRICT"))?;
            for connection in [&mut one, &mut two] {
                lab::until("the connection is refused", async || {
                    let got = connection.get("/").await.got;
                    ensure!([ALLOWED, DENIED, Got::Closed].contains(&got), "{got}");
                    Ok((got != ALLOWED).then_some(()))
                })
                .await?;
                assert_ne!(connection.get("/").await.got, ALLOWED, "it was let in again");
            }
            // The guard is in force at once; a moment later the listener has no way in for plaintext at all.
            lab.becomes(Got::Closed, async |_| caller.get(on, "/").await.got).await?;
        }
        Ok(())
    });
}

/// A policy that turns from ALLOW to DENY and back under load admits nothing that both refuse.
#[test]
fn flips_between_allow_and_deny_admit_nothing_that_both_refuse() {
    lab::run(here!(), async |lab| {
        let flip = |action: &str, path: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: flip, namespace: \
                 default}}\nspec:\n  action: {action}\n  rules:\n  - to: [{{operation: {{paths: [{path}]}}}}]\n"
            )
        };
        lab.save("flip.yaml", &flip("ALLOW", "/open"))?;
        let app = app(lab).await?;
        let on = lab[app].on(8080);
        let caller = lab.caller(lab.identity("default", "a")?);
        let (stop, asked, admitted) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut load = tokio::task::JoinSet::new();
        for number in 0..4 {
            let (caller, stop, asked, admitted) =
                (caller.clone(), stop.clone(), asked.clone(), admitted.clone());
            load.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let opened =
                        if number % 2 == 0 { caller.http1(on).await } else { caller.http2(on).await };
                    let Ok(mut connection) = opened else { continue };
                    while connection.is_open() && !stop.load(Ordering::Relaxed) {
                        let got = connection.get("/closed").await.got;
                        asked.fetch_add(1, Ordering::Relaxed);
                        admitted.fetch_add(u64::from(got == ALLOWED), Ordering::Relaxed);
                    }
                }
            });
        }
        let mut probe = caller.http1(on).await.expect("HTTP/1.1");
        for turn in 0..40 {
            // ALLOW admits /open alone; DENY refuses /closed alone. Both refuse /closed.
            let (text, expected) = if turn % 2 == 0 {
                (flip("DENY", "/closed"), ALLOWED)
            } else {
                (flip("ALLOW", "/open"), DENIED)
            };
            lab.save("flip.yaml", &text)?;
            lab::until("the flip is felt", async || {
                Ok((probe.get("/other").await.got == expected).then_some(()))
            })
            .await?;
        }
        stop.store(true, Ordering::Relaxed);
        while load.join_next().await.is_some() {}
        let (asked, admitted) = (asked.load(Ordering::Relaxed), admitted.load(Ordering::Relaxed));
        ensure!(asked > 400, "too little load to prove anything: {asked} requests");
        assert_eq!(admitted, 0, "of {asked} requests that both versions refuse");
        Ok(())
    });
}
