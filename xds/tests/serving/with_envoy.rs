//! What Envoy makes of it, in both variants of the protocol.

use xds::ResourceType;
use xds::ads::Event;
use xds::ads::server::Limits;

use super::envoy::{Client, Envoy, app, own_address, until};
use super::resources::{World, bad_listener};
use super::server::Server;

const VARIANTS: [&str; 2] = ["DELTA_GRPC", "GRPC"];

async fn world() -> World {
    World { listen: own_address(), app: app().await, timeout: 1, deny: vec!["/secret"], allow: None }
}

async fn in_use(envoy: &Envoy, timeout: &str) {
    until(&format!("the cluster with a timeout of {timeout}"), || async {
        let clusters = envoy.active_clusters().await;
        clusters.iter().any(|c| c["connect_timeout"] == timeout).then_some(())
    })
    .await;
}

#[tokio::test]
async fn policy_changes_on_the_same_connection() {
    for variant in VARIANTS {
        let mut world = world().await;
        let mut server = Server::start(Limits::default(), &world.resources()).await;
        let Some(_envoy) = Envoy::start(server.address, variant) else { return };
        let mut client = Client::connect(world.listen).await;
        assert_eq!((client.get("/").await, client.get("/secret").await), (200, 403), "{variant}");
        // From a DENY to an ALLOW policy and back; /secret is refused by either.
        for round in 0..10 {
            if round % 2 == 0 {
                (world.deny, world.allow) = (Vec::new(), Some(vec!["/"]));
            } else {
                (world.deny, world.allow) = (vec!["/secret"], None);
            }
            let generation = server.publish(&world.resources());
            while !server.has_acked(ResourceType::Extension, generation) {
                assert_eq!(client.get("/secret").await, 403, "{variant}, on the way");
            }
            let other = if world.allow.is_some() { 403 } else { 200 };
            let seen = (client.get("/").await, client.get("/secret").await, client.get("/other").await);
            assert_eq!(seen, (200, 403, other), "{variant}");
        }
    }
}

#[tokio::test]
async fn a_policy_that_changed_while_nobody_was_there() {
    for variant in VARIANTS {
        let mut world = world().await;
        let mut server = Server::start(Limits::default(), &world.resources()).await;
        let Some(_envoy) = Envoy::start(server.address, variant) else { return };
        let mut client = Client::connect(world.listen).await;
        for round in 0..6 {
            assert_eq!((client.get("/").await, client.get("/secret").await), (200, 403), "{variant}");
            server.acked(ResourceType::Extension, 1).await;
            let address = server.address;
            drop(server);
            if round % 2 == 0 {
                (world.deny, world.allow) = (vec!["/other"], Some(vec!["/"]));
            } else {
                (world.deny, world.allow) = (vec!["/secret"], None);
            }
            server = Server::start_at(address, Limits::default(), &world.resources()).await;
            // Whom both admit never notices; whom both refuse is never let in.
            while !server.has_acked(ResourceType::Extension, 1) {
                let seen = (client.get("/").await, client.get("/secret").await);
                assert_eq!(seen, (200, 403), "{variant}, on the way");
            }
            let other = if world.allow.is_some() { 403 } else { 200 };
            assert_eq!(client.get("/other").await, other, "{variant}");
        }
    }
}

#[tokio::test]
async fn a_changed_cluster_is_taken_into_use() {
    for variant in VARIANTS {
        let mut world = world().await;
        let mut server = Server::start(Limits::default(), &world.resources()).await;
        let Some(envoy) = Envoy::start(server.address, variant) else { return };
        in_use(&envoy, "1s").await;
        // Its endpoints stay as they are.
        world.timeout = 2;
        server.publish(&world.resources());
        in_use(&envoy, "2s").await;
        // The same while the control plane is away.
        let address = server.address;
        drop(server);
        world.timeout = 3;
        let server = Server::start_at(address, Limits::default(), &world.resources()).await;
        in_use(&envoy, "3s").await;
        drop(server);
        assert_eq!(Client::connect(world.listen).await.get("/").await, 200, "{variant}");
    }
}

#[tokio::test]
async fn nothing_is_sent_again_to_a_proxy_that_comes_back() {
    let world = world().await;
    let server = Server::start(Limits::default(), &world.resources()).await;
    let Some(_envoy) = Envoy::start(server.address, "DELTA_GRPC") else { return };
    for kind in ResourceType::ALL {
        server.acked(kind, 1).await;
    }
    assert_eq!(Client::connect(world.listen).await.get("/").await, 200);
    let address = server.address;
    drop(server);
    let server = Server::start_at(address, Limits::default(), &world.resources()).await;
    for kind in ResourceType::ALL {
        server.acked(kind, 1).await;
    }
    let sent = |event: &Event| matches!(event, Event::Sent { .. });
    assert!(!server.journal.all().iter().any(sent), "{:?}", server.journal.all());
}

#[tokio::test]
async fn only_the_culprit_is_held_back() {
    for variant in VARIANTS {
        let mut world = world().await;
        let mut server = Server::start(Limits::default(), &world.resources()).await;
        let Some(_envoy) = Envoy::start(server.address, variant) else { return };
        Client::connect(world.listen).await;
        // A bad listener comes together with a change of the good one.
        world.listen = own_address();
        let mut resources = world.resources();
        resources.push(bad_listener());
        server.publish(&resources);
        let culprit = server
            .journal
            .next(|event| match event {
                Event::Rejected { resource: Some((name, _)), .. } => Some(name.clone()),
                _ => None,
            })
            .await;
        assert_eq!(&*culprit, "bad", "{variant}");
        assert_eq!(Client::connect(world.listen).await.get("/").await, 200, "{variant}");
        // What comes later is not held up by it.
        world.deny = vec!["/"];
        let mut resources = world.resources();
        resources.push(bad_listener());
        let generation = server.publish(&resources);
        server.acked(ResourceType::Extension, generation).await;
        assert_eq!(Client::connect(world.listen).await.get("/").await, 403, "{variant}");
    }
}
