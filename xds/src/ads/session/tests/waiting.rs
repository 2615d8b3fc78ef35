//! What a session tells of listeners that wait or are replaced.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::ExtensionConfigSource;
use envoy_types::pb::envoy::config::listener::v3 as envoy;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use crate::ads::session::{Event, Response, Session, Variant};
use crate::resource::{Resource, ResourceType, Snapshot};
use crate::table::Table;
use ResourceType::{Cluster, Extension, Listener};

/// A listener that refers to `slot`, in some version of it.
fn listener(slot: &str, version: &str) -> Resource {
    let discovery = envoy::listener_filter::ConfigType::ConfigDiscovery(ExtensionConfigSource::default());
    let filter =
        envoy::ListenerFilter { name: slot.to_owned(), config_type: Some(discovery), ..Default::default() };
    let listener = envoy::Listener {
        name: "in".to_owned(),
        stat_prefix: version.to_owned(),
        listener_filters: vec![filter],
        ..Default::default()
    };
    let any = Any { type_url: envoy::Listener::type_url(), value: listener.encode_to_vec() };
    Resource::new("in", any.encode_to_vec().into())
}

fn snapshot(generation: u64, listener: Resource, slots: &[&str]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::new(generation);
    snapshot.of_mut(Listener).own = Arc::new(Table::from_iter([listener]));
    let slot = |name: &&str| Resource::new(*name, bytes::Bytes::from_static(b"slot"));
    snapshot.of_mut(Extension).own = Arc::new(slots.iter().map(slot).collect());
    Arc::new(snapshot)
}

fn ask(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

/// Acknowledges what `responses` holds of `kind`.
fn acknowledge(session: &mut Session, responses: &[Response], kind: ResourceType) {
    let response = responses.iter().find(|response| response.kind == kind).expect("a response");
    let answer = DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..ask(kind, &[]) };
    session.delta(&answer).unwrap();
}

/// What happened, sends and all that is about other types left out.
fn told(session: &mut Session) -> Vec<Event> {
    let sent = |event: &Event| matches!(event, Event::Sent { .. });
    session.take_events().into_iter().filter(|event| !sent(event)).collect()
}

#[test]
fn an_acknowledged_listener_waits_until_its_slot_is_acknowledged() {
    let mut session = Session::new(Variant::Delta, snapshot(1, listener("a", "1"), &["a", "b"]));
    let responses = session.delta(&ask(Listener, &[])).unwrap();
    acknowledge(&mut session, &responses, Listener);
    let acked = |kind, generation| Event::Acked { kind, generation };
    assert_eq!(told(&mut session), [Event::Waiting(true), acked(Listener, 1)]);
    let responses = session.delta(&ask(Extension, &["a"])).unwrap();
    assert_eq!(told(&mut session), []);
    acknowledge(&mut session, &responses, Extension);
    assert_eq!(told(&mut session), [acked(Extension, 1), Event::Waiting(false)]);

    // Another slot, which is there already but was not asked for.
    let responses = session.update(snapshot(2, listener("b", "1"), &["a", "b"]));
    acknowledge(&mut session, &responses, Listener);
    let events = told(&mut session);
    assert_eq!((&events[0], events.last()), (&Event::Waiting(true), Some(&acked(Listener, 2))), "{events:?}");
    let responses = session.delta(&ask(Extension, &["b"])).unwrap();
    acknowledge(&mut session, &responses, Extension);
    assert_eq!(told(&mut session).last(), Some(&Event::Waiting(false)));
}

#[test]
fn listeners_from_before_the_stream_are_replaced_if_they_are_others() {
    for (held, replaced) in [("1", false), ("2", true)] {
        let mut session = Session::new(Variant::Delta, snapshot(1, listener("a", "1"), &["a"]));
        let initial = |name: &str, version: String| [(name.to_owned(), version)].into();
        let clusters = DeltaDiscoveryRequest {
            initial_resource_versions: initial("c", "x".to_owned()),
            ..ask(Cluster, &[])
        };
        session.delta(&clusters).unwrap();
        let listeners = DeltaDiscoveryRequest {
            initial_resource_versions: initial("in", listener("a", held).version()),
            ..ask(Listener, &[])
        };
        session.delta(&listeners).unwrap();
        assert_eq!(told(&mut session).contains(&Event::Replacing), replaced, "{held}");
    }
    let mut session = Session::new(Variant::Delta, snapshot(1, listener("a", "1"), &["a"]));
    session.delta(&ask(Cluster, &[])).unwrap();
    session.delta(&ask(Listener, &[])).unwrap();
    assert!(!told(&mut session).contains(&Event::Replacing), "a proxy that comes up");
}
