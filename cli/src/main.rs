//! The one binary: every process is a subcommand, plus the tools for people.

mod demo;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "countersign", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(hide = true)]
    DemoApp(demo::app::AppArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::DemoApp(args) => demo::app::run(args).await,
    }
}
