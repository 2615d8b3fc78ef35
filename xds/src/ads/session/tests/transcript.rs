//! Each case is a text: lines that start with `>` are requests, with `!` snapshots; what the session answers must be the
//! `<` lines that follow.
//!
//! `> KIND +name -name ~name=version ack|nack|stale` (delta) or `> KIND name name ack|nack|stale` (SotW);
//! `! KIND name=content ...` replaces that type's resources; `< KIND name=content -removed`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

use crate::ads::session::{Response, Session, Variant};
use crate::resource::{Layers, Resource, ResourceType, Snapshot, Table};

fn kind(short: &str) -> ResourceType {
    ResourceType::ALL.into_iter().find(|k| k.short() == short).expect("a type's short name")
}

fn resource(spec: &str) -> Resource {
    let (name, content) = spec.split_once('=').expect("name=content");
    Resource::new(name, Bytes::from(content.to_owned()))
}

fn show(response: &Response) -> String {
    let mut line = format!("< {}", response.kind.short());
    for r in &response.resources {
        let content = String::from_utf8_lossy(&r.any);
        // A transitional slot is not text.
        let content = if content.chars().all(|c| c.is_ascii_alphanumeric()) { content } else { "*".into() };
        line.push_str(&format!(" {}={content}", r.name));
    }
    for name in &response.removed {
        line.push_str(&format!(" -{name}"));
    }
    line
}

struct Transcript {
    session: Session,
    snapshot: Snapshot,
    variant: Variant,
    nonces: HashMap<ResourceType, String>,
}

impl Transcript {
    fn step(&mut self, line: &str) -> Vec<Response> {
        let mut words = line.split_whitespace();
        let mark = words.next().expect("a mark");
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
                self.session.delta(&self.delta(kind, &words)).expect("within limits")
            }
            ">" => self.session.sotw(&self.sotw(kind, &words)).expect("within limits"),
            other => panic!("unknown mark {other}"),
        }
    }

    fn answer(&self, kind: ResourceType, word: &str) -> Option<(String, Option<Status>)> {
        let nonce = self.nonces.get(&kind).cloned().unwrap_or_default();
        let error = || Some(Status { message: "no".to_owned(), ..Status::default() });
        match word {
            "ack" => Some((nonce, None)),
            "nack" => Some((nonce, error())),
            "stale" => Some(("0".to_owned(), None)),
            _ => None,
        }
    }

    fn delta(&self, kind: ResourceType, words: &[&str]) -> DeltaDiscoveryRequest {
        let mut request =
            DeltaDiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        for word in words {
            if let Some((nonce, error)) = self.answer(kind, word) {
                (request.response_nonce, request.error_detail) = (nonce, error);
            } else if let Some(name) = word.strip_prefix('+') {
                request.resource_names_subscribe.push(name.to_owned());
            } else if let Some(name) = word.strip_prefix('-') {
                request.resource_names_unsubscribe.push(name.to_owned());
            } else {
                let held = resource(
                    word.strip_prefix('~').expect("+name, -name, ~name=content, ack, nack or stale"),
                );
                request.initial_resource_versions.insert(held.name.to_string(), held.version());
            }
        }
        request
    }

    fn sotw(&self, kind: ResourceType, words: &[&str]) -> DiscoveryRequest {
        let mut request = DiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        for word in words {
            match self.answer(kind, word) {
                Some((nonce, error)) => (request.response_nonce, request.error_detail) = (nonce, error),
                None => request.resource_names.push((*word).to_owned()),
            }
        }
        request
    }
}

#[track_caller]
fn check(variant: Variant, text: &str) {
    let snapshot = Snapshot::new(0);
    let session = Session::new(variant, Arc::new(snapshot.clone()));
    let mut transcript = Transcript { session, snapshot, variant, nonces: HashMap::new() };
    let mut got = Vec::new();
    let wanted: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    for line in wanted.iter().filter(|l| !l.starts_with('<')) {
        got.push((*line).to_owned());
        for response in transcript.step(line) {
            transcript.nonces.insert(response.kind, response.nonce.clone());
            got.push(show(&response));
        }
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
fn sotw_wildcard_sends_the_world() {
    check(
        Variant::Sotw,
        "! lds a=1 b=1
         > lds
         < lds a=1 b=1
         > lds ack
         ! lds a=2 b=1
         < lds a=2 b=1
         > lds ack
         ! lds a=2
         < lds a=2
         > lds ack",
    );
    check(Variant::Sotw, "> cds\n< cds\n> cds ack");
}

#[test]
fn sotw_names_replace_each_other() {
    check(
        Variant::Sotw,
        "! eds a=1 b=1 c=1
         > eds a
         < eds a=1
         > eds a ack
         > eds a b ack
         < eds b=1
         > eds a b ack
         > eds b ack
         ! eds a=2 b=2 c=2
         < eds b=2
         > eds b ack
         > eds ack
         ! eds a=3 b=3 c=3",
    );
}

#[test]
fn sotw_refused_world_keeps_the_last_good_version_of_the_culprit() {
    check(
        Variant::Sotw,
        "! lds a=1 b=1
         > lds
         < lds a=1 b=1
         > lds ack
         ! lds a=2 b=2
         < lds a=2 b=2
         > lds nack
         < lds a=2 b=1
         > lds ack
         < lds a=2 b=2
         > lds nack
         ! lds a=3 b=2
         < lds a=3 b=1
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
fn several_policy_slots_change_in_acknowledged_steps() {
    // The slots are not RBAC here, so the transitional slot denies everything.
    check(
        Variant::Delta,
        "! ecds inbound.rbac.deny=1 inbound.rbac.allow=1
         > ecds +inbound.rbac.deny +inbound.rbac.allow
         < ecds inbound.rbac.allow=1 inbound.rbac.deny=1
         > ecds ack
         ! ecds inbound.rbac.deny=2 inbound.rbac.allow=2
         < ecds inbound.rbac.deny=*
         > ecds ack
         < ecds inbound.rbac.allow=2
         > ecds ack
         < ecds inbound.rbac.deny=2
         > ecds ack
         ! ecds inbound.rbac.deny=3 inbound.rbac.allow=2
         < ecds inbound.rbac.deny=3
         > ecds ack
         ! ecds inbound.rbac.deny=3 inbound.rbac.allow=3
         < ecds inbound.rbac.allow=3
         > ecds ack",
    );
}

#[test]
fn a_reconnecting_proxy_with_other_slots_is_changed_in_steps_too() {
    check(
        Variant::Delta,
        "! ecds inbound.rbac.deny=2 inbound.rbac.allow=2
         > ecds +inbound.rbac.deny +inbound.rbac.allow ~inbound.rbac.deny=1 ~inbound.rbac.allow=1
         < ecds inbound.rbac.deny=*
         > ecds ack
         < ecds inbound.rbac.allow=2
         > ecds ack
         < ecds inbound.rbac.deny=2",
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
    let request = DeltaDiscoveryRequest { resource_names_subscribe: vec!["x".repeat(5000)], ..request };
    assert!(Session::new(Variant::Delta, Arc::new(Snapshot::new(0))).delta(&request).is_err());
}
