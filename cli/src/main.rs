//! The one binary: every process is a subcommand, plus the tools for people.

mod analyze;
mod audit;
mod authz;
mod ca;
mod check;
mod cli;
mod cluster;
mod completion;
mod controller;
mod crds;
mod demo;
mod duration;
mod inject;
mod join_token;
mod keys;
mod listen;
mod monitoring;
mod output;
mod plaintext;
mod plugin;
mod policy_test;
mod proxy_status;
mod routes;
mod settings;
mod standalone;
mod status;
mod translate;
mod version;
mod wait;

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::tls::install_provider();
    cli::main()
}
