//! `countersign authz`: who may call what, and why. Answers come from the same matchers that are compiled for Envoy, over
//! files or over what an API server has; no proxy is asked, no request is sent.

mod args;
mod check;
mod explain;
pub(crate) mod parties;
pub(crate) mod question;
mod rules;
mod who_can;
mod witness;
pub(crate) mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::cli::FINDING;
use world::WorldArgs;

pub(crate) use world::World;

/// Ask who may call what, and why
#[derive(Debug, Subcommand)]
pub(crate) enum Authz {
    Explain(Box<explain::ExplainArgs>),
    Can(Box<who_can::CanArgs>),
    WhoCan(Box<who_can::WhoCanArgs>),
    Check(Box<check::CheckArgs>),
}

/// What a command says, and whether that is a yes.
#[derive(Debug)]
struct Said {
    text: String,
    yes: bool,
}

pub(crate) async fn run(command: Authz) -> Result<ExitCode> {
    let mut world = command.world().read().await?;
    let Said { text, yes } = command.say(&mut world)?;
    crate::output::text(&text)?;
    Ok(if yes { ExitCode::SUCCESS } else { ExitCode::from(FINDING) })
}

impl Authz {
    fn world(&self) -> &WorldArgs {
        match self {
            Self::Explain(args) => &args.world,
            Self::Can(args) => &args.rest.world,
            Self::WhoCan(args) => &args.rest.world,
            Self::Check(args) => &args.world,
        }
    }

    fn say(&self, world: &mut World) -> Result<Said> {
        match self {
            Self::Explain(args) => explain::say(args, world),
            Self::Can(args) => who_can::say_can(args, world),
            Self::WhoCan(args) => who_can::say_who_can(args, world),
            Self::Check(args) => check::say(args, world),
        }
    }
}

#[cfg(test)]
mod tests;
