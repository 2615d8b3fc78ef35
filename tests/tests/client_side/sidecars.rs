//! Real Envoys on both ends, with the wire between them looked at.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use tests::here;
use tests::lab::{self, ALLOWED, First, Got, Lab, PodSpec, Protocol, Wire};

use super::scene::*;

const MIDDLE: Callee<'static> =
    Callee { namespace: "default", name: "middle", at: Ipv4Addr::new(10, 96, 1, 1) };

/// A service whose only endpoint is an address where everything is passed on to the real pod `orders`.
fn middle(account: &str, at: Ipv4Addr) -> String {
    service("default", "middle", MIDDLE.at) + &pod("default", "middle-1", "middle", account, at, PROXIED)
}

fn mode(mode: &str) -> String {
    peer_authentication("default", "default", &format!("{{mtls: {{mode: {mode}}}}}"))
}

fn server(name: &str) -> PodSpec {
    PodSpec::new("default", name)
        .port(8080, Protocol::Http)
        .port(8081, Protocol::Grpc)
        .port(8082, Protocol::Tcp)
        .port(8083, Protocol::Unnamed)
}

/// Both ends follow the mode, in whatever order they hear of it: what is answered under STRICT and PERMISSIVE was
/// encrypted, and only under DISABLE it was not.
#[test]
fn both_ends_follow_the_mode() {
    lab::run(here!(), async |lab| {
        lab.save("mode.yaml", &mode("PERMISSIVE"))?;
        lab.start().await?;
        let pods = lab.pods([server("orders"), PodSpec::new("default", "captured")]).await?;
        let at = lab.network.namespace("middle")?;
        let wire = Wire::passing_on(&at, &TARGETS, &lab[pods[0]].at).await?;
        lab.save("middle.yaml", &middle("orders", at.v4))?;
        let client = Client::captured(lab, pods[1]);
        for (to, mtls) in [
            ("PERMISSIVE", true),
            ("STRICT", true),
            ("DISABLE", false),
            ("STRICT", true),
            ("PERMISSIVE", true),
        ] {
            lab.save("mode.yaml", &mode(to))?;
            for kind in Kind::ALL {
                follows(lab, &client, kind, &wire, to, mtls).await?;
            }
        }
        Ok(())
    });
}

/// Asked until what answers came over a connection of the right kind, as the server's application saw it too.
async fn follows(lab: &Lab, client: &Client, kind: Kind, wire: &Wire, mode: &str, mtls: bool) -> Result<()> {
    let expected = kind.first(mtls, kind.port(), &MIDDLE.host());
    lab.becomes(true, async |_| {
        let answer = client.ask(kind, &MIDDLE).await;
        let last = wire.seen_on(kind.target()).into_iter().rev().find(|seen| same_kind(kind, &seen.first));
        let named = answer.body.contains(&client.id);
        let identified = matches!(kind, Kind::Tcp | Kind::AnyLine) || named == mtls;
        answer.got == answered(kind) && identified && last.is_some_and(|seen| seen.first == expected)
    })
    .await
    .map_err(|e| e.context(format!("{kind:?} under {mode}: {:?}", wire.seen_on(kind.target()))))
}

/// Two kinds share the port without declared protocol.
fn same_kind(kind: Kind, first: &First) -> bool {
    let http = match first {
        First::Tls { sni: _, alpn } => alpn.iter().any(|name| name.contains("http")),
        First::Http1 | First::Http2 => true,
        First::Bytes | First::Nothing => false,
    };
    match kind {
        Kind::AnyHttp => http,
        Kind::AnyLine => !http,
        Kind::Http1 | Kind::Http2 | Kind::Tcp => true,
    }
}

/// A pod of another account where the service's should be: its proxy would let the client in, the client's does not go.
#[test]
fn a_real_pod_in_the_place_of_another_sees_nothing() {
    lab::run(here!(), async |lab| {
        lab.save("mode.yaml", &mode("STRICT"))?;
        lab.start().await?;
        let pods =
            lab.pods([server("orders"), server("intruder"), PodSpec::new("default", "captured")]).await?;
        let at = lab.network.namespace("middle")?;
        let client = Client::captured(lab, pods[2]);
        let wire = Wire::passing_on(&at, &TARGETS, &lab[pods[1]].at).await?;
        lab.save("middle.yaml", &middle("orders", at.v4))?;
        for kind in Kind::ALL {
            // Until its listeners are there, others say other things; nobody ever says yes.
            lab.becomes(true, async |_| {
                let got = client.ask(kind, &MIDDLE).await.got;
                assert_ne!(got, answered(kind), "{kind:?}");
                got == refused(kind) && wire.seen_on(kind.target()).iter().any(|seen| seen.first.is_tls())
            })
            .await?;
        }
        let seen = lab[pods[1]].app.tail(50);
        ensure!(!seen.contains("hello"), "the application of the intruder: {seen}");
        // It is the identity that was refused, nothing else: the account that is registered there is what decides.
        lab.save("middle.yaml", &middle("intruder", at.v4))?;
        lab.becomes(ALLOWED, async |_| client.ask(Kind::Http1, &MIDDLE).await.got).await?;
        lab.becomes(Got::Line, async |_| client.ask(Kind::Tcp, &MIDDLE).await.got).await
    });
}
