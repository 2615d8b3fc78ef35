//! Each case is a text: lines that start with `>` are requests, with `!` snapshots, with `@` a new stream; what the
//! session answers must be the `<` lines that follow, and what it reports the `=` lines (in cases that have any).
//!
//! `> KIND +name -name ~name ~name=content ack|nack|nack:NAME|stale` (delta) or `> KIND name name same ack|nack|stale` (SotW):
//! `~name` is held in the version last acknowledged, `same` comes back with the version last accepted.
//! `! KIND name=content ...` replaces that type's resources; `< KIND name=content -removed`.
//! Policy slots are `deny:01`, `allow:`, `audit`: the requests that their rules name; without rules. `*` says that a slot
//! refuses everything, `guard` that it enforces what another slot is to.

mod policy;
mod sotw;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

use super::slots;
use crate::ads::session::{Event, Response, Session, Variant};
use crate::resource::{Layers, Resource, ResourceType, Snapshot};
use crate::table::Table;

/// Policy slots: what a case calls them, their names, and what their rules do.
const SLOTS: [(&str, &str, Action); 5] = [
    ("audit", "inbound.rbac.audit", Action::Log),
    ("deny", "inbound.rbac.deny", Action::Deny),
    ("allow", "inbound.rbac.allow", Action::Allow),
    // Stands for whatever a filter of another type refuses.
    ("jwt", "inbound.jwt_authn", Action::Deny),
    ("custom", "inbound.custom.a.rbac", Action::Deny),
];

fn kind(short: &str) -> ResourceType {
    ResourceType::ALL.into_iter().find(|k| k.short() == short).expect("a type's short name")
}

/// The slot's name for what a case calls it.
fn full(name: &str) -> String {
    SLOTS.iter().find(|(slot, ..)| *slot == name).map_or(name, |(_, full, _)| full).to_owned()
}

fn resource(spec: &str) -> Resource {
    if let Some((name, content)) = spec.split_once('=') {
        return Resource::new(name, Bytes::from(content.to_owned()));
    }
    let (name, requests) = spec.split_once(':').map_or((spec, None), |(name, r)| (name, Some(r)));
    let (_, full, action) = SLOTS.iter().find(|(slot, ..)| *slot == name).expect("name=content or a slot");
    let bit = |digit: char| 1 << digit.to_digit(8).expect("a digit");
    let requests = requests.map(|r| r.chars().map(bit).fold(0, |all, one| all | one));
    if name == "custom" { slots::shadow(full, requests) } else { slots::slot(full, *action, requests, false) }
}

fn shown(r: &Resource) -> String {
    let text = String::from_utf8_lossy(&r.any);
    if text.chars().all(|c| c.is_ascii_alphanumeric()) {
        return format!("{}={text}", r.name);
    }
    let (name, _, action) = SLOTS.iter().find(|(_, full, _)| **full == *r.name).expect("a slot");
    match slots::rules(r) {
        None => (*name).to_owned(),
        Some(rules) => {
            let all = rules.policies.keys().any(|p| p == "countersign-transition");
            let own = *action as i32 == rules.action;
            let requests: String =
                rules.policies.into_keys().filter(|p| p.len() == 1).collect::<Vec<_>>().concat();
            format!("{name}:{}{requests}{}", if own { "" } else { "guard" }, if all { "*" } else { "" })
        }
    }
}

fn show(response: &Response) -> String {
    let mut line = format!("< {}", response.kind.short());
    for r in &response.resources {
        line.push_str(&format!(" {}", shown(r)));
    }
    for name in &response.removed {
        line.push_str(&format!(" -{name}"));
    }
    line
}

fn show_event(event: &Event) -> Option<String> {
    Some(match event {
        Event::Sent { .. } | Event::Replacing => return None,
        Event::Waiting(waiting) => format!("= waiting {waiting}"),
        Event::Acked { kind, generation } => format!("= acked {} {generation}", kind.short()),
        Event::Rejected { kind, resource: Some((name, _)), message: _ } => {
            format!("= rejected {} {name}", kind.short())
        }
        Event::Rejected { kind, resource: None, message: _ } => format!("= rejected {}", kind.short()),
        Event::StaleNonce { kind } => format!("= stale {}", kind.short()),
    })
}

/// What the proxy was told of one type, and what of that it has accepted.
#[derive(Default)]
struct Told {
    nonce: String,
    version: String,
    versions: HashMap<String, String>,
    accepted: String,
    accepted_versions: HashMap<String, String>,
}

struct Transcript {
    session: Session,
    snapshot: Snapshot,
    variant: Variant,
    told: HashMap<ResourceType, Told>,
}

impl Transcript {
    fn step(&mut self, line: &str) -> Vec<Response> {
        let mut words = line.split_whitespace();
        let mark = words.next().expect("a mark");
        if mark == "@" {
            self.session = Session::new(self.variant, Arc::new(self.snapshot.clone()));
            return Vec::new();
        }
        let kind = kind(words.next().expect("a type"));
        let words: Vec<&str> = words.collect();
        match mark {
            "!" => {
                let table: Table = words.iter().map(|w| resource(w)).collect();
                self.snapshot.generation += 1;
                *self.snapshot.of_mut(kind) = Layers { own: Arc::new(table), ..Layers::default() };
                self.session.update(Arc::new(self.snapshot.clone()))
            }
            ">" if self.variant == Variant::Delta => {
                let request = self.delta(kind, &words);
                self.session.delta(&request).expect("within limits")
            }
            ">" => {
                let request = self.sotw(kind, &words);
                self.session.sotw(&request).expect("within limits")
            }
            other => panic!("unknown mark {other}"),
        }
    }

    fn answer(&mut self, kind: ResourceType, word: &str) -> Option<(String, Option<Status>)> {
        let told = self.told.entry(kind).or_default();
        match word {
            "ack" => {
                told.accepted = told.version.clone();
                told.accepted_versions.extend(told.versions.drain());
                Some((told.nonce.clone(), None))
            }
            "nack" => {
                Some((told.nonce.clone(), Some(Status { message: "no".to_owned(), ..Status::default() })))
            }
            "stale" => Some(("0".to_owned(), None)),
            _ => {
                let message = format!("Error adding/updating {}: why", word.strip_prefix("nack:")?);
                Some((told.nonce.clone(), Some(Status { message, ..Status::default() })))
            }
        }
    }

    fn delta(&mut self, kind: ResourceType, words: &[&str]) -> DeltaDiscoveryRequest {
        let mut request =
            DeltaDiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        for word in words {
            if let Some((nonce, error)) = self.answer(kind, word) {
                (request.response_nonce, request.error_detail) = (nonce, error);
            } else if let Some(name) = word.strip_prefix('+') {
                request.resource_names_subscribe.push(full(name));
            } else if let Some(name) = word.strip_prefix('-') {
                request.resource_names_unsubscribe.push(full(name));
            } else {
                let held = word.strip_prefix('~').expect("+name, -name, ~name, ack, nack or stale");
                let remembered = self.told.get(&kind).and_then(|t| t.accepted_versions.get(&full(held)));
                let (name, version) = match remembered {
                    Some(version) => (full(held), version.clone()),
                    None => (resource(held).name.to_string(), resource(held).version()),
                };
                request.initial_resource_versions.insert(name, version);
            }
        }
        request
    }

    fn sotw(&mut self, kind: ResourceType, words: &[&str]) -> DiscoveryRequest {
        let mut request = DiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        for word in words {
            match self.answer(kind, word) {
                Some((nonce, error)) => (request.response_nonce, request.error_detail) = (nonce, error),
                None if *word == "same" => {
                    request.version_info = self.told.get(&kind).expect("a version").accepted.clone();
                }
                None => request.resource_names.push(full(word)),
            }
        }
        request
    }

    fn note(&mut self, response: &Response) {
        let told = self.told.entry(response.kind).or_default();
        told.nonce = response.nonce.clone();
        told.version = response.version.clone();
        told.versions =
            response.resources.iter().map(|r| (r.name.to_string(), response.version_of(r))).collect();
    }
}

#[track_caller]
fn check(variant: Variant, text: &str) {
    let snapshot = Snapshot::new(0);
    let session = Session::new(variant, Arc::new(snapshot.clone()));
    let mut transcript = Transcript { session, snapshot, variant, told: HashMap::new() };
    let mut got = Vec::new();
    let wanted: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let events = wanted.iter().any(|line| line.starts_with('='));
    for line in wanted.iter().filter(|l| !l.starts_with(['<', '='])) {
        got.push((*line).to_owned());
        for response in transcript.step(line) {
            transcript.note(&response);
            got.push(show(&response));
        }
        let happened = transcript.session.take_events();
        got.extend(happened.iter().filter_map(show_event).filter(|_| events));
    }
    assert_eq!(got, wanted, "\ngot:\n{}", got.join("\n"));
}

#[test]
fn delta_wildcard_updates_and_removals() {
    check(
        Variant::Delta,
        "! lds a=1 b=1
         > lds
         < lds a=1 b=1
         > lds ack
         ! lds a=2 b=1
         < lds a=2
         > lds ack
         ! lds a=2
         < lds -b
         > lds ack
         ! lds a=2",
    );
}

#[test]
fn delta_empty_first_answer_for_a_wildcard() {
    check(Variant::Delta, "> cds\n< cds\n> cds ack\n! cds a=1\n< cds a=1");
}

#[test]
fn delta_updates_wait_for_the_ack_and_coalesce() {
    check(
        Variant::Delta,
        "! lds a=1
         > lds
         < lds a=1
         ! lds a=2
         ! lds a=3
         > lds ack
         < lds a=3
         > lds ack",
    );
}

#[test]
fn delta_names_subscribe_unsubscribe_and_again() {
    check(
        Variant::Delta,
        "! eds a=1 b=1
         > eds +a
         < eds a=1
         > eds ack
         > eds +b
         < eds b=1
         > eds ack
         > eds -a
         ! eds a=2 b=2
         < eds b=2
         > eds ack
         > eds +a
         < eds a=2
         > eds ack
         > eds +a
         < eds a=2",
    );
}

#[test]
fn delta_a_name_that_does_not_exist_is_said_to_be_gone() {
    check(Variant::Delta, "> rds +x\n< rds -x\n> rds ack\n! rds x=1\n< rds x=1");
    // Envoy goes on waiting for its policy: it must not be told that there is none.
    check(Variant::Delta, "> ecds +x\n! ecds x=1\n< ecds x=1");
}

#[test]
fn delta_reconnect_sends_only_what_differs() {
    check(
        Variant::Delta,
        "! lds a=1 b=2
         > lds ~a=1 ~b=1 ~c=1
         < lds b=2 -c
         > lds ack",
    );
    check(Variant::Delta, "! lds a=1\n> lds ~a=1\n! eds e=1\n> eds +e ~e=1");
}

#[test]
fn delta_stale_nonce_changes_nothing() {
    check(Variant::Delta, "! lds a=1\n> lds\n< lds a=1\n! lds a=2\n> lds stale\n> lds ack\n< lds a=2");
}

#[test]
fn delta_subscription_while_a_response_is_out() {
    check(
        Variant::Delta,
        "! eds a=1 b=1
         > eds +a
         < eds a=1
         > eds +b
         > eds ack
         < eds b=1
         > eds ack",
    );
}

#[test]
fn a_refused_response_is_taken_apart_and_only_the_culprit_held_back() {
    check(
        Variant::Delta,
        "! lds a=1 bad=1 c=1
         > lds
         < lds a=1 bad=1 c=1
         > lds nack
         < lds a=1
         > lds ack
         < lds bad=1
         > lds nack
         < lds c=1
         > lds ack
         ! lds a=2 bad=1 c=1
         < lds a=2
         > lds ack
         ! lds a=2 bad=2 c=1
         < lds bad=2
         > lds ack",
    );
}

#[test]
fn clusters_go_last_when_removed_and_endpoints_follow_a_changed_cluster() {
    check(
        Variant::Delta,
        "! cds a=1 b=1
         ! eds a=1 b=1
         ! lds l=1
         > cds
         < cds a=1 b=1
         > cds ack
         > eds +a +b
         < eds a=1 b=1
         > eds ack
         > lds
         < lds l=1
         > lds ack
         ! cds a=2 b=1
         < cds a=2
         < eds a=1
         > cds ack
         > eds ack
         ! lds l=2
         < lds l=2
         ! cds a=2
         > lds ack
         < cds -b
         > cds ack",
    );
}

#[test]
fn a_cluster_does_not_wait_for_ever_for_its_endpoints() {
    // The stream breaks between a changed cluster and its endpoints.
    check(
        Variant::Delta,
        "! cds c=1
         ! eds c=1
         > cds
         < cds c=1
         > cds ack
         > eds +c
         < eds c=1
         > eds ack
         ! cds c=2
         < cds c=2
         < eds c=1
         > cds ack
         @
         > cds ~c
         > eds +c ~c
         < eds c=1
         > eds ack
         @
         > cds ~c
         > eds +c ~c",
    );
    // The cluster changes while the proxy is away; its endpoints do not.
    check(
        Variant::Delta,
        "! cds c=1
         ! eds c=1
         > cds
         < cds c=1
         > cds ack
         > eds +c
         < eds c=1
         > eds ack
         @
         ! cds c=2
         > cds ~c
         < cds c=2
         > eds +c ~c
         < eds c=1
         > cds ack
         > eds ack",
    );
    // Its endpoints are under way already when it changes.
    check(
        Variant::Delta,
        "! cds c=1
         ! eds c=1
         > cds
         < cds c=1
         > cds ack
         > eds +c
         < eds c=1
         ! cds c=2
         < cds c=2
         > cds ack
         > eds ack
         < eds c=1
         > eds ack",
    );
}

#[test]
fn delta_the_wildcard_comes_and_goes() {
    check(
        Variant::Delta,
        "! lds a=1 b=1
         > lds +a
         < lds a=1
         > lds ack
         > lds +*
         < lds a=1 b=1
         > lds ack
         > lds -*
         ! lds a=2 b=2
         < lds a=2
         > lds ack
         > lds -a
         ! lds a=3 b=3",
    );
    // Whether the wildcard stands for a name that is no longer asked for by itself.
    check(
        Variant::Delta,
        "! lds a=1
         > lds
         < lds a=1
         > lds ack
         > lds +a +x
         < lds a=1 -x
         > lds ack
         > lds -a -x
         < lds a=1 -x
         > lds ack",
    );
}

#[test]
fn what_the_proxy_complains_of_is_tried_last() {
    check(
        Variant::Delta,
        "! lds a=1 b=1 ba=1
         > lds
         < lds a=1 b=1 ba=1
         > lds ack
         ! lds a=2 b=2 ba=2
         < lds a=2 b=2 ba=2
         > lds nack:b
         < lds a=2 ba=2
         > lds ack
         < lds b=2
         > lds nack:b",
    );
    // Nothing goes back to what it was on the way.
    check(
        Variant::Sotw,
        "! lds a=1 b=1 ba=1
         > lds
         < lds a=1 b=1 ba=1
         > lds ack
         ! lds a=2 b=2 ba=2
         < lds a=2 b=2 ba=2
         > lds nack:b
         < lds a=2 b=1 ba=2
         > lds ack
         < lds a=2 b=2 ba=2
         > lds nack:b",
    );
}

#[test]
fn what_was_refused_and_is_gone_is_no_longer_in_the_way() {
    check(
        Variant::Delta,
        "! lds a=1
         > lds
         < lds a=1
         > lds ack
         = acked lds 1
         ! lds a=1 bad=1
         < lds bad=1
         > lds nack
         = rejected lds bad
         ! lds a=1
         = acked lds 3",
    );
}

#[test]
fn a_refused_removal_is_not_tried_again() {
    check(
        Variant::Delta,
        "! lds a=1
         > lds
         < lds a=1
         > lds ack
         = acked lds 1
         ! lds
         < lds -a
         > lds nack
         = rejected lds a
         ! lds
         ! lds a=2
         < lds a=2
         > lds ack
         = acked lds 4",
    );
}

#[test]
fn answers_to_older_responses_are_reported_and_ignored() {
    check(
        Variant::Delta,
        "! lds a=1
         > lds
         < lds a=1
         > lds stale
         = stale lds
         > lds ack
         = acked lds 1
         > lds ack
         = stale lds",
    );
}

#[test]
fn an_up_to_date_session_costs_no_memory_per_name() {
    // One copy of each name, as the controller makes them.
    let names: Vec<Arc<str>> = (0..1000).map(|n| format!("resource-{n}").into()).collect();
    let table = |content: &str| {
        let resource = |name: &Arc<str>| Resource::new(name.clone(), Bytes::from(content.to_owned()));
        Arc::new(names.iter().map(resource).collect::<Table>())
    };
    let snapshot = |content: &str| {
        let mut snapshot = Snapshot::new(1);
        for kind in ResourceType::ALL {
            snapshot.of_mut(kind).shared = table(content);
        }
        Arc::new(snapshot)
    };
    let mut session = Session::new(Variant::Delta, snapshot("1"));
    let mut responses = Vec::new();
    for kind in ResourceType::ALL {
        let names = names.iter().map(|name| name.to_string()).filter(|_| !kind.wildcard());
        responses.extend(
            session
                .delta(&DeltaDiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    resource_names_subscribe: names.collect(),
                    ..Default::default()
                })
                .expect("within limits"),
        );
    }
    for round in ["2", "3"] {
        while !responses.is_empty() {
            let ack = |r: Response| DeltaDiscoveryRequest {
                type_url: r.kind.type_url().to_owned(),
                response_nonce: r.nonce,
                ..Default::default()
            };
            let acks: Vec<_> = responses.drain(..).map(ack).collect();
            responses.extend(acks.iter().flat_map(|ack| session.delta(ack).expect("within limits")));
        }
        assert_eq!(session.types.iter().map(|t| t.held.exceptions()).sum::<usize>(), 0);
        responses = session.update(snapshot(round));
    }
    let asked = session.types[ResourceType::Endpoint as usize].subscription.names();
    assert!(
        asked.zip(names.iter().collect::<std::collections::BTreeSet<_>>()).all(|(a, b)| Arc::ptr_eq(a, b))
    );
}

#[test]
fn too_many_names_end_the_stream() {
    let mut session = Session::new(Variant::Delta, Arc::new(Snapshot::new(0)));
    let request = DeltaDiscoveryRequest {
        type_url: ResourceType::Endpoint.type_url().to_owned(),
        resource_names_subscribe: (0..30_000).map(|n| n.to_string()).collect(),
        ..Default::default()
    };
    assert!(session.delta(&request).is_err());
    let held = DeltaDiscoveryRequest {
        type_url: ResourceType::Cluster.type_url().to_owned(),
        initial_resource_versions: (0..30_000).map(|n| (n.to_string(), String::new())).collect(),
        ..Default::default()
    };
    assert!(session.delta(&held).is_err());
    let request = DeltaDiscoveryRequest { resource_names_subscribe: vec!["x".repeat(5000)], ..request };
    assert!(Session::new(Variant::Delta, Arc::new(Snapshot::new(0))).delta(&request).is_err());
}
