//! What must hold of `evaluate` whatever the policies are. Needs no Envoy.
