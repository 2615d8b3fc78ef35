//! The one binary: every process is a subcommand, plus the tools for people.

mod demo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "countersign", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a zero-trust shop on this machine and show what is let through
    Demo(demo::DemoArgs),
    #[command(hide = true)]
    DemoApp(demo::app::AppArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(args).await,
        Command::DemoApp(args) => demo::app::run(args).await.map(|()| ExitCode::SUCCESS),
    }
}
