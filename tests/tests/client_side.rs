//! The client's side, where no policy is asked but must not be weakened either: who is believed to be the service (secure
//! naming), and when a connection is encrypted (auto-mTLS). The wire is looked at where the server would be.

#[path = "client_side/scene.rs"]
mod scene;

#[path = "client_side/churn.rs"]
mod churn;
#[path = "client_side/classes.rs"]
mod classes;
#[path = "client_side/naming.rs"]
mod naming;
#[path = "client_side/sidecars.rs"]
mod sidecars;
