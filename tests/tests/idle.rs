//! Ten thousand connections that say nothing, on every port that listens to others.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::here;
use tests::lab::{self, ALLOWED, Credential, Got, Lab, PodSpec, Protocol};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 10_000;

/// The control plane, its certificate authority and a pod's Envoy go on as if nobody were there.
#[test]
fn ten_thousand_idle_connections_keep_nobody_out() {
    lab::run(here!(), async |lab| {
        runtime::limits::raise_open_files();
        lab.start().await?;
        let first = lab.pod(PodSpec::new("default", "first").port(8080, Protocol::Http)).await?;
        let control = std::net::IpAddr::from(lab.control.at.v4);
        let targets = [(control, 15012).into(), (control, 15014).into(), lab[first].on(8080)];
        let mut idle: Vec<TcpStream> = Vec::with_capacity(CONNECTIONS);
        for n in 0..CONNECTIONS {
            idle.push(
                lab.outside
                    .dial(targets[n % targets.len()])
                    .await
                    .with_context(|| format!("connection {n}"))?,
            );
        }
        // Somebody new joins, gets certificates and policy, and is called; the one that was there still answers.
        let second = lab.pod(PodSpec::new("default", "second").port(8080, Protocol::Http)).await?;
        for pod in [first, second] {
            let on = lab[pod].on(8080);
            lab.becomes(ALLOWED, async |lab: &Lab| lab.caller(Credential::Plaintext).get(on, "/").await.got)
                .await?;
        }
        let ready = lab::until("the control plane says that it is ready", async || {
            Ok((lab.control.monitoring("/ready").await.got == Got::Status(200)).then_some(()))
        });
        ready.await?;
        still_running(lab)?;
        drop(idle);
        Ok(())
    });
}

fn still_running(lab: &mut Lab) -> Result<()> {
    let ended = lab.control.process.as_mut().and_then(lab::Process::ended);
    ensure!(ended.is_none(), "the control plane ended: {ended:?}");
    Ok(())
}

/// One caller's connections that never finish their handshake are given up, so that they cannot add up.
#[test]
fn a_handshake_that_never_ends_is_cut_off() {
    lab::run(here!(), async |lab| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        lab.start().await?;
        let secure = (std::net::IpAddr::from(lab.control.at.v4), 15012).into();
        let mut slow = lab.outside.dial(secure).await?;
        slow.write_all(b"\x16\x03\x01\x02\x00\x01").await?;
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(15), slow.read_to_end(&mut rest)).await;
        ensure!(end.is_ok(), "still open");
        Ok(())
    });
}
