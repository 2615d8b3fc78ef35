//! Messages that say they are larger than anybody would wait for, from callers whom nobody knows.
//!
//! The webhook's port has its own test (`controller/src/admission/tests.rs`): files have no webhook.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tests::here;
use tests::lab::{self, Caller, Credential, Got, Lab, PodSpec, Protocol};

use super::wire::{ask, http2_with, request};

/// What all of this may cost, in kB: far less than one such message.
const GROWTH: u64 = 64 << 10;

/// kB that the control plane holds in memory.
fn resident(lab: &Lab) -> Result<u64> {
    let pid = lab.control.process.as_ref().context("a control plane")?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Plaintext xDS, secure xDS, certificates, enrollment and monitoring cut an oversized message off where its length is told, and
/// go on (CVE-2022-23635, CVE-2022-24726, CVE-2022-39278, 2026-006).
#[test]
fn oversized_messages_are_cut_off_on_every_port() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        lab.pod(PodSpec::new("default", "app").port(8080, Protocol::Http)).await?;
        let inside = Caller::new(&lab.control.at, Credential::Plaintext);
        let agent = Caller {
            alpn: Some(&["h2"]),
            sni: "istiod.istio-system.svc".to_owned(),
            ..lab.caller(lab.identity("default", "app")?)
        };
        let anonymous = Caller { credential: Credential::Anonymous, ..agent.clone() };
        let secure = SocketAddr::from((lab.control.at.v4, 15012));
        let plaintext = SocketAddr::from(([127, 0, 0, 1], 15010));
        let before = resident(lab)?;
        // A gRPC message of 4 GB begins.
        let message = [&[0, 0xff, 0xff, 0xff, 0xff][..], &[0; 4096]].concat();
        for path in [
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            "/istio.v1.auth.IstioCertificateService/CreateCertificate",
            "/countersign.ca.v1.Enrollment/Join",
        ] {
            let fields = [
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", "istiod"),
                (":path", path),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ];
            for (caller, to) in [(&inside, plaintext), (&agent, secure), (&anonymous, secure)] {
                http2_with(caller, to, &fields, Some(&message))
                    .await
                    .with_context(|| format!("{path} to {to}"))?;
            }
        }
        let long = vec![b'x'; 1 << 20];
        let monitoring = SocketAddr::from(([127, 0, 0, 1], 15014));
        for (what, bytes) in [
            ("a long header", request("GET", "/ready", "localhost", &[("x-long", &long)])),
            (
                "a long path",
                request("GET", &format!("/{}", String::from_utf8(long.clone())?), "localhost", &[]),
            ),
            ("a long body", request("POST", "/ready", "localhost", &[("content-length", b"99999999999")])),
        ] {
            let got = ask(&inside, monitoring, &bytes).await.got;
            assert!(!matches!(got, Got::Status(200) | Got::Timeout), "{what}: {got}");
        }
        let many: Vec<(&str, &[u8])> = vec![("x-a", b"1"); 10_000];
        let got = ask(&inside, monitoring, &request("GET", "/ready", "localhost", &many)).await.got;
        assert!(!matches!(got, Got::Status(200) | Got::Timeout), "many headers: {got}");
        let after = resident(lab)?;
        assert!(after < before + GROWTH, "{before} kB became {after} kB");
        assert_eq!(lab.control.monitoring("/ready").await.got, Got::Status(200));
        Ok(())
    });
}
