//! This process as one of several replicas: it announces itself, takes part in the election, and writes status while it
//! leads.

use std::net::SocketAddr;

use controller::Handle;
use controller::receipts::{Cluster, Dialer, lead};
use kube::Client;
use runtime::Tasks;
use source::kubernetes::events::Events;
use source::kubernetes::lease::{Election, LEADER, Timing};
use source::kubernetes::replicas::{Me, Replicas, announce, follow};
use source::kubernetes::status::Writer;
use tokio::sync::watch;

use crate::listen::Listen;
use crate::standalone::wiring::until_stopped;

/// Who this replica is.
///
/// Without an address that others can reach it is announced all the same: what its proxies enforce is then known to be
/// unknown, instead of being left out.
pub(super) fn me(advertise: Option<String>, secure: Listen) -> Me {
    let env = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let address = advertise.or_else(|| match secure {
        Listen::Off => None,
        Listen::At(addr) if !addr.ip().is_unspecified() => Some(addr.to_string()),
        Listen::At(addr) => {
            let ip = env("POD_IP")?.parse().ok()?;
            Some(SocketAddr::new(ip, addr.port()).to_string())
        }
    });
    let pod = env("POD_NAME").zip(env("POD_UID"));
    // Unique, also over time, where no pod's name is.
    let alone = || format!("process-{}-{:08x}", std::process::id(), rand::random::<u32>());
    Me { name: env("POD_NAME").unwrap_or_else(alone), address: address.unwrap_or_default(), pod }
}

/// Starts everything that makes it one of several.
pub(super) fn start(
    tasks: &mut Tasks,
    client: &Client,
    namespace: &str,
    me: Me,
    controller: Handle,
    dialer: Dialer,
    events: Events,
) {
    let stop = tasks.stop();
    let name = me.name.clone();
    let (election, leadership) = Election::new(client.clone(), namespace, LEADER, &name, Timing::default());
    let campaign = election.run(stop.clone().cancelled_owned());
    tasks.spawn("election", finished(campaign));
    let (announcing, at, stopped) = (client.clone(), namespace.to_owned(), stop.clone().cancelled_owned());
    tasks.spawn("announcement", finished(async move { announce(announcing, &at, me, stopped).await }));
    let (seen, replicas) = watch::channel(Replicas::default());
    let (following, at) = (client.clone(), namespace.to_owned());
    let follow = finished(async move { follow(following, &at, seen).await });
    tasks.spawn("replicas", until_stopped(stop.clone(), follow));
    let cluster = Cluster {
        me: name.into(),
        leadership,
        replicas,
        dialer,
        writer: Writer::new(client.clone()),
        events,
    };
    tasks.spawn("status", until_stopped(stop, finished(lead(controller, cluster))));
}

async fn finished(part: impl Future<Output = ()>) -> Result<(), std::convert::Infallible> {
    part.await;
    Ok(())
}
