//! Secure naming: whoever answers at a service's address must have the identity of one of the service's workloads
//! (semantics §10.18). A client's proxy that does not find it says so before anything of the request is sent.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use tests::here;
use tests::lab::{self, Lab, Wire};

use super::scene::*;

const ORDERS: Callee<'static> =
    Callee { namespace: "default", name: "orders", at: Ipv4Addr::new(10, 96, 1, 1) };

fn orders(account: &str, at: Ipv4Addr) -> String {
    service("default", "orders", ORDERS.at) + &pod("default", "orders-1", "orders", account, at, PROXIED)
}

/// Everybody believes whoever answers, over every protocol.
async fn believed(lab: &Lab, clients: &[Client; 2]) -> Result<()> {
    for client in clients {
        for kind in Kind::ALL {
            lab.becomes(answered(kind), async |_| client.ask(kind, &ORDERS).await.got).await?;
        }
    }
    Ok(())
}

/// Nobody does, and nothing of what is asked arrives.
async fn disbelieved(lab: &Lab, clients: &[Client; 2], wire: &Wire, who: &str) -> Result<()> {
    let before = (wire.seen().len(), wire.requests());
    for client in clients {
        for kind in Kind::ALL {
            let got = client.ask(kind, &ORDERS).await.got;
            ensure!(got == refused(kind), "{kind:?} to {who}: {got}");
        }
    }
    ensure!(wire.requests() == before.1, "{who} saw a request: {:?}", wire.seen());
    let new = wire.seen().split_off(before.0);
    ensure!(!new.is_empty() && new.iter().all(|seen| seen.first.is_tls()), "{who}: {new:?}");
    lab.becomes(true, async |_| wire.seen().iter().skip(before.0).all(|seen| !seen.open)).await
}

/// Another account, another namespace, another trust domain, a name that only begins alike: all signed by the mesh's own
/// authority, none of them the service. An alias of the trust domain is.
#[test]
fn only_the_services_own_identities_are_believed() {
    lab::run(here!(), async |lab| {
        lab.control.mesh("trustDomainAliases: [old.example]\n")?;
        lab.start().await?;
        let at = lab.network.namespace("orders")?;
        let wire = Wire::answering(lab, &at, &TARGETS, &spiffe_id("default", "intruder")).await?;
        lab.save("orders.yaml", &orders("orders", at.v4))?;
        let clients = clients(lab, &[ORDERS]).await?;
        for impostor in [
            "spiffe://cluster.local/ns/default/sa/intruder",
            "spiffe://cluster.local/ns/other/sa/orders",
            "spiffe://cluster.local/ns/default/sa/orders-2",
            "spiffe://cluster.local/ns/default/sa/order",
            "spiffe://cluster.local/ns/default/sa/orders/x",
            "spiffe://cluster.local.evil/ns/default/sa/orders",
            "spiffe://older.example/ns/default/sa/orders",
        ] {
            wire.becomes(lab, impostor)?;
            disbelieved(lab, &clients, &wire, impostor).await?;
        }
        for own in
            ["spiffe://cluster.local/ns/default/sa/orders", "spiffe://old.example/ns/default/sa/orders"]
        {
            wire.becomes(lab, own)?;
            believed(lab, &clients).await?;
        }
        ensure!(wire.seen().iter().all(|seen| !seen.first.is_plaintext()), "plaintext: {:?}", wire.seen());
        Ok(())
    });
}

/// The set of accounts behind a service changes: the new one is believed from then on, the old one no more.
#[test]
fn the_set_of_accounts_is_followed() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let at = lab.network.namespace("orders")?;
        let (old, new) = (spiffe_id("default", "orders"), spiffe_id("default", "orders-v2"));
        let wire = Wire::answering(lab, &at, &TARGETS, &old).await?;
        lab.save("orders.yaml", &orders("orders", at.v4))?;
        let clients = clients(lab, &[ORDERS]).await?;
        believed(lab, &clients).await?;
        for (account, now, before) in [("orders-v2", &new, &old), ("orders", &old, &new)] {
            wire.becomes(lab, now)?;
            disbelieved(lab, &clients, &wire, now).await?;
            lab.save("orders.yaml", &orders(account, at.v4))?;
            believed(lab, &clients).await?;
            wire.becomes(lab, before)?;
            disbelieved(lab, &clients, &wire, before).await?;
        }
        // Two at once, wherever the second one runs.
        let both = orders("orders", at.v4)
            + &pod("default", "orders-2", "orders", "orders-v2", Ipv4Addr::new(10, 77, 9, 9), PROXIED)
                .replace("status: \"True\"", "status: \"False\"");
        lab.save("orders.yaml", &both)?;
        for identity in [&new, &old] {
            wire.becomes(lab, identity)?;
            believed(lab, &clients).await?;
        }
        ensure!(wire.seen().iter().all(|seen| !seen.first.is_plaintext()), "plaintext: {:?}", wire.seen());
        Ok(())
    });
}
