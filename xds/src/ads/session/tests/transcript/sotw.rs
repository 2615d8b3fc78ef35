//! State of the world: lists that replace each other, and worlds that are sent whole.

use super::check;
use crate::ads::session::Variant;

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
fn sotw_comes_back_with_everything() {
    check(
        Variant::Sotw,
        "! lds a=1 b=1
         ! rds r=1
         > lds
         < lds a=1 b=1
         > lds ack
         > rds r
         < rds r=1
         > rds r ack
         @
         > lds same
         > rds r same
         < rds r=1
         @
         ! lds a=1
         > lds same
         < lds a=1
         > lds ack
         @
         > lds same
         @
         ! lds
         > lds same
         < lds",
    );
}

#[test]
fn sotw_a_part_is_not_taken_for_everything() {
    check(
        Variant::Sotw,
        "! ecds deny:0 allow:1 audit
         > ecds deny allow audit
         < ecds allow:1 audit deny:0
         > ecds deny allow audit ack
         ! ecds deny:1 allow:02 audit
         < ecds deny:01
         > ecds deny allow audit ack
         < ecds allow:02
         @
         > ecds deny allow audit same
         < ecds deny:*
         > ecds deny allow audit ack
         < ecds allow:02
         > ecds deny allow audit ack
         < ecds deny:1
         > ecds deny allow audit ack
         < ecds audit
         > ecds deny allow audit ack",
    );
}

#[test]
fn sotw_an_empty_list_ends_what_was_asked_for_by_name() {
    check(
        Variant::Sotw,
        "! lds a=1 b=1
         > lds
         < lds a=1 b=1
         > lds ack
         > lds * a
         < lds a=1 b=1
         > lds * a ack
         > lds a
         ! lds a=2 b=2
         < lds a=2
         > lds a ack
         > lds
         ! lds a=3 b=3
         > lds",
    );
}

#[test]
fn sotw_after_a_refusal_of_what_was_there_before_nothing_is_removed() {
    check(
        Variant::Sotw,
        "! lds a=1 b=1
         > lds
         < lds a=1 b=1
         > lds ack
         = acked lds 1
         @
         ! lds a=2 b=2
         > lds same
         < lds a=2 b=2
         > lds nack
         = rejected lds
         ! lds a=3 b=2
         < lds a=3 b=2
         > lds nack
         = rejected lds
         ! lds a=3 b=4
         < lds a=3 b=4
         > lds ack
         = acked lds 4",
    );
}
