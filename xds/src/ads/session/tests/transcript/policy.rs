//! Policy slots change in acknowledged steps, whatever they are changed from.

use super::*;

#[test]
fn several_policy_slots_change_in_acknowledged_steps() {
    check(
        Variant::Delta,
        "! ecds deny:0 allow:1
         > ecds +deny +allow
         < ecds allow:1 deny:0
         > ecds ack
         ! ecds deny:2 allow:12
         < ecds deny:02
         > ecds ack
         < ecds allow:12
         > ecds ack
         < ecds deny:2
         > ecds ack
         ! ecds deny allow:12
         < ecds deny
         > ecds ack
         ! ecds deny allow:1
         < ecds allow:1
         > ecds ack",
    );
}

#[test]
fn the_steps_begin_again_from_what_is_in_force() {
    check(
        Variant::Delta,
        "! ecds deny:0 allow
         > ecds +deny +allow
         < ecds allow deny:0
         > ecds ack
         ! ecds deny allow:1
         < ecds allow:1
         > ecds ack
         < ecds deny
         > ecds ack
         ! ecds deny:1 allow:2
         < ecds deny:1
         ! ecds deny:2 allow:0
         > ecds ack
         < ecds deny:12
         > ecds ack
         < ecds allow:0
         ! ecds deny:2 allow:2
         > ecds ack
         < ecds allow:2
         > ecds ack
         < ecds deny:2
         > ecds ack",
    );
}

#[test]
fn while_deny_is_refused_the_other_slots_stay_too() {
    check(
        Variant::Delta,
        "! ecds deny allow:0
         > ecds +deny +allow
         < ecds allow:0 deny
         > ecds ack
         = acked ecds 1
         ! ecds deny:1 allow
         < ecds deny:1
         > ecds nack
         = rejected ecds inbound.rbac.deny
         ! ecds deny:1 allow:2
         ! ecds deny:2 allow:2
         < ecds deny:2
         > ecds ack
         < ecds allow:2
         > ecds ack
         = acked ecds 4",
    );
}

#[test]
fn while_another_slot_is_refused_deny_stays_the_union() {
    check(
        Variant::Delta,
        "! ecds deny:0 allow
         > ecds +deny +allow
         < ecds allow deny:0
         > ecds ack
         = acked ecds 1
         ! ecds deny allow:1
         < ecds allow:1
         > ecds nack
         = rejected ecds inbound.rbac.allow
         ! ecds deny:2 allow:1
         < ecds deny:02
         > ecds ack
         ! ecds deny:2 allow:12
         < ecds allow:12
         > ecds ack
         < ecds deny:2
         > ecds ack
         = acked ecds 4",
    );
}

#[test]
fn a_proxy_from_elsewhere_is_changed_behind_a_guard() {
    check(
        Variant::Delta,
        "! ecds deny:0 allow:1 audit
         > ecds +deny +allow +audit
         < ecds allow:1 audit deny:0
         > ecds ack
         @
         ! ecds deny:1 allow:02 audit
         > ecds +deny +allow +audit ~deny ~allow ~audit
         < ecds audit:guard02
         > ecds ack
         < ecds deny:1
         > ecds ack
         < ecds allow:02
         > ecds ack
         < ecds audit
         > ecds ack",
    );
    // The stream breaks while the guard is there, and the policy has changed once more.
    check(
        Variant::Delta,
        "! ecds deny:0 allow:1 audit
         > ecds +deny +allow +audit
         < ecds allow:1 audit deny:0
         > ecds ack
         @
         ! ecds deny:1 allow:02 audit
         > ecds +deny +allow +audit ~deny ~allow ~audit
         < ecds audit:guard02
         > ecds ack
         < ecds deny:1
         @
         ! ecds deny:2 allow:0 audit
         > ecds +deny +allow +audit ~deny ~allow ~audit
         < ecds deny:*
         > ecds ack
         < ecds allow:0
         > ecds ack
         < ecds deny:2
         > ecds ack
         < ecds audit
         > ecds ack",
    );
}

#[test]
fn a_new_listener_gets_its_slots_at_once() {
    check(
        Variant::Delta,
        "! ecds deny:0 allow:1 inbound.custom.p.rbac=1
         > ecds +deny +allow
         < ecds allow:1 deny:0
         > ecds ack
         ! ecds deny:2 allow:12 inbound.custom.p.rbac=2
         < ecds deny:02
         > ecds +inbound.custom.p.rbac
         > ecds ack
         < ecds inbound.custom.p.rbac=2 allow:12
         > ecds ack
         < ecds deny:2",
    );
}

/// A rule moves from CUSTOM into ALLOW: each slot refuses what either policy refuses before any refuses less.
#[test]
fn custom_and_allow_change_together() {
    check(
        Variant::Delta,
        "! ecds custom:0 jwt deny allow audit
         > ecds +custom +jwt +deny +allow +audit
         < ecds custom:0 jwt allow audit deny
         > ecds ack
         ! ecds custom:1 jwt:2 deny allow:12 audit
         < ecds audit:guard12
         > ecds ack
         < ecds custom:01
         > ecds ack
         < ecds jwt:2
         > ecds ack
         < ecds allow:12
         > ecds ack
         < ecds custom:1
         > ecds ack
         < ecds audit
         > ecds ack
         ! ecds custom jwt:2 deny:1 allow:12 audit
         < ecds deny:1
         > ecds ack
         < ecds custom
         > ecds ack",
    );
    // Nobody knows what a proxy from elsewhere holds of these.
    check(
        Variant::Delta,
        "! ecds custom:0 jwt deny allow audit
         > ecds +custom +jwt +deny +allow +audit
         < ecds custom:0 jwt allow audit deny
         > ecds ack
         @
         ! ecds custom:1 jwt:2 deny allow audit
         > ecds +custom +jwt +deny +allow +audit ~custom ~jwt ~deny ~allow ~audit
         < ecds deny:*
         > ecds ack
         < ecds custom:1 jwt:2
         > ecds ack
         < ecds deny
         > ecds ack",
    );
}
