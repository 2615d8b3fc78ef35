//! Endpoints come and go, labels change and addresses are given to others, all under traffic: no request is ever answered by
//! the wrong identity, and what speaks mTLS is not spoken to in plaintext once the clients know.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use tests::here;
use tests::lab::{self, ALLOWED, First, Got, Lab, PodSpec, Wire};
use tokio::task::JoinHandle;

use super::scene::*;

const ORDERS: Callee<'static> =
    Callee { namespace: "default", name: "orders", at: Ipv4Addr::new(10, 96, 1, 1) };
const STOCK: Callee<'static> =
    Callee { namespace: "default", name: "stock", at: Ipv4Addr::new(10, 96, 1, 2) };

/// Requests without a pause, and who answered them.
struct Asking {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<BTreeMap<(&'static str, String), u64>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Asking {
    fn start(client: &Arc<Client>, callees: &[Callee<'static>]) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeMap::new())));
        let each = callees.iter().flat_map(|callee| [Kind::Http1, Kind::Http2].map(|kind| (*callee, kind)));
        let tasks = each.map(|(callee, kind)| {
            let (stop, answers, client) = (stop.clone(), Arc::clone(&answers), client.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.ask(kind, &callee).await;
                    let who = if answer.got == ALLOWED { answer.body } else { answer.got.to_string() };
                    let mut answers = answers.lock().expect("nobody panics with it");
                    *answers.entry((callee.name, who)).or_default() += 1;
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, answers, tasks }
    }

    /// How many requests to `name` this one answered.
    fn by(&self, name: &'static str, identity: &str) -> u64 {
        let answers = self.answers.lock().expect("nobody panics with it");
        answers.get(&(name, identity.to_owned())).copied().unwrap_or_default()
    }

    /// Ends it: who answered what.
    async fn end(self) -> Result<BTreeMap<(&'static str, String), u64>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a client")?;
        }
        let answers = self.answers.lock().expect("nobody panics with it");
        Ok(answers.clone())
    }
}

/// Each service is answered, again and from now on.
async fn settles(lab: &Lab, asking: &Asking) -> Result<()> {
    for name in ["orders", "stock"] {
        let (identity, before) = (spiffe_id("default", name), asking.by(name, &spiffe_id("default", name)));
        lab.becomes(true, async |_| asking.by(name, &identity) > before + 4)
            .await
            .with_context(|| format!("{name} is answered again"))?;
    }
    Ok(())
}

/// Pods at two addresses that change places, come and go: the registry says so before the address changes hands, or after.
#[test]
fn addresses_change_hands() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let (a, b, c) =
            (lab.network.namespace("a")?, lab.network.namespace("b")?, lab.network.namespace("c")?);
        let identities = ["orders", "stock"].map(|name| spiffe_id("default", name));
        let one = Wire::answering(lab, &a, &TARGETS, &identities[0]).await?;
        let two = Wire::answering(lab, &b, &TARGETS, &identities[1]).await?;
        // A second pod of each stays, so that there is always somebody to ask.
        let (orders, stock) =
            (Wire::answering(lab, &c, &TARGETS, &identities[0]).await?, lab.network.namespace("d")?);
        let stock = Wire::answering(lab, &stock, &TARGETS, &identities[1]).await?;
        let services = service("default", "orders", ORDERS.at) + &service("default", "stock", STOCK.at);
        let stay = pod("default", "orders-0", "orders", "orders", orders.at.v4, PROXIED)
            + &pod("default", "stock-0", "stock", "stock", stock.at.v4, PROXIED);
        lab.save("services.yaml", &(services + &stay))?;
        let place = |first: &str, second: &str| {
            pod("default", &format!("{first}-1"), first, first, a.v4, PROXIED)
                + &pod("default", &format!("{second}-1"), second, second, b.v4, PROXIED)
        };
        lab.save("places.yaml", &place("orders", "stock"))?;
        let id = lab.pod(PodSpec::new("default", "captured")).await?;
        let asking = Asking::start(&Arc::new(Client::captured(lab, id)), &[ORDERS, STOCK]);
        settles(lab, &asking).await?;
        for round in 0..6 {
            let (first, second) = if round % 2 == 0 { ("stock", "orders") } else { ("orders", "stock") };
            let change = |lab: &Lab| -> Result<()> {
                one.becomes(lab, &spiffe_id("default", first))?;
                two.becomes(lab, &spiffe_id("default", second))
            };
            if round % 3 == 0 {
                // Gone for a while.
                lab.save("places.yaml", "")?;
                settles(lab, &asking).await?;
            }
            if round < 3 {
                change(lab)?;
                settles(lab, &asking).await?;
                lab.save("places.yaml", &place(first, second))?;
            } else {
                lab.save("places.yaml", &place(first, second))?;
                settles(lab, &asking).await?;
                change(lab)?;
            }
            // Who is new is asked, and answers.
            for wire in [&one, &two] {
                let before = wire.requests();
                lab.becomes(true, async |_| wire.requests() > before).await?;
            }
        }
        for ((name, who), count) in asking.end().await? {
            let own = who == spiffe_id("default", name);
            let nobody = [Got::Status(503), Got::Closed].iter().any(|got| got.to_string() == who);
            ensure!(own || nobody, "{count} requests to {name} were answered: {who}");
        }
        for wire in [&one, &two, &orders, &stock] {
            ensure!(wire.seen().iter().all(|seen| !seen.first.is_plaintext()), "{:?}", wire.seen());
        }
        Ok(())
    });
}

/// A pod gets a proxy and loses it: its label says which, and the clients follow with every new connection. What is open
/// Envoy keeps until one end closes it, so a pod that restarts for its proxy is encrypted whole, and one that does not
/// keeps its old HTTP connections (docs/guides/gradual-adoption.md).
#[test]
fn the_label_is_followed() {
    lab::run(here!(), async |lab| {
        lab.start().await?;
        let at = lab.network.namespace("orders")?;
        let own = spiffe_id("default", "orders");
        let wire = Wire::answering(lab, &at, &TARGETS, &own).await?;
        let labelled = |labels| {
            service("default", "orders", ORDERS.at)
                + &pod("default", "orders-1", "orders", "orders", at.v4, labels)
        };
        lab.save("orders.yaml", &labelled(PROXIED))?;
        let id = lab.pod(PodSpec::new("default", "captured")).await?;
        let client = Arc::new(Client::captured(lab, id));
        let asking = Asking::start(&client, &[ORDERS]);
        for (labels, mtls) in [(PROXIED, true), ("", false), (PROXIED, true), ("", false), (PROXIED, true)] {
            lab.save("orders.yaml", &labelled(labels))?;
            // Over TCP each connection of the application is one on the wire.
            for kind in [Kind::Tcp, Kind::AnyLine] {
                begins(lab, &client, kind, &wire, mtls).await?;
            }
            wire.becomes(lab, &own)?;
            for kind in Kind::ALL {
                begins(lab, &client, kind, &wire, mtls).await?;
            }
            let before = wire.seen().len();
            let asked = asking.by("orders", &own);
            lab.becomes(true, async |_| asking.by("orders", &own) > asked + 50).await?;
            let unlike = |seen: &lab::Seen| seen.first.is_tls() != mtls && seen.first != First::Nothing;
            let since = wire.seen().split_off(before);
            ensure!(!since.iter().any(unlike), "with {labels:?}: {since:?}");
        }
        for ((name, who), count) in asking.end().await? {
            let nobody = [Got::Status(503), Got::Closed].iter().any(|got| got.to_string() == who);
            ensure!(who == spiffe_id("default", name) || nobody, "{count} requests: {who}");
        }
        Ok(())
    });
}

/// Asks until an answer came over a connection that is still open, or that this question began, and that began so.
async fn begins(lab: &Lab, client: &Client, kind: Kind, wire: &Wire, mtls: bool) -> Result<()> {
    let expected = kind.first(mtls, kind.port(), &ORDERS.host());
    lab.becomes(true, async |_| {
        let before = wire.seen().len();
        let got = client.ask(kind, &ORDERS).await.got;
        let all = wire.seen();
        let mut these = all.iter().enumerate().filter(|(n, seen)| *n >= before || seen.open);
        got == answered(kind) && these.any(|(_, seen)| seen.port == kind.target() && seen.first == expected)
    })
    .await
    .with_context(|| format!("{kind:?}, encrypted: {mtls}"))
}
