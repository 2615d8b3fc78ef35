//! The one owner of state: takes changes from a source, works out whom they affect, has effective policies translated,
//! and publishes a snapshot per proxy. Does not parse, decide, encode or carry bytes: those are `crds`, `policy`,
//! `xds::build` and `xds::ads`.
//!
//! ```text
//! source::Change ─► store ─► affected ─► effective (policy::resolve) ─► groups, services (xds::build) ─► watch ─► sessions
//!                                          equal? same Arc                equal hash? same table, nothing sent
//! ```

mod affected;
mod effective;
mod endpoints;
mod guard;
mod publish;
mod store;

#[cfg(test)]
mod fixtures;
