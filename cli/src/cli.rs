//! The command line: which subcommands there are, and what their results mean to a shell.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};

use crate::{
    analyze, audit, authz, ca, check, completion, controller, crds, demo, inject, join_token, plugin,
    policy_test, proxy_status, standalone, status, translate, version, wait,
};

/// Exit code for "it works, and there is something to look at": a timeout, an object that is not accepted.
pub(crate) const FINDING: u8 = 1;
/// Exit code for a wrong command line or input, and for anything that could not be done.
pub(crate) const ERROR: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "countersign",
    version,
    about = "A policy control plane for Envoy: who may call what, written once, enforced at every hop",
    after_help = "Exit codes: 0 fine, 1 something to look at, 2 wrong usage or input.\n\
                  Every flag of a process has an environment name, COUNTERSIGN_FLAG_NAME.",
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: runtime::log::LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Controller(Box<controller::ControllerArgs>),
    Ca(Box<ca::CaArgs>),
    Standalone(Box<standalone::StandaloneArgs>),
    #[command(subcommand)]
    JoinToken(join_token::JoinToken),
    Agent(Box<agent::AgentArgs>),
    Capture(Box<agent::CaptureArgs>),
    #[command(subcommand)]
    Sidecar(agent::sidecar::Sidecar),
    Inject(inject::InjectArgs),
    Translate(Box<translate::TranslateArgs>),
    #[command(subcommand)]
    Authz(authz::Authz),
    Test(policy_test::TestArgs),
    Analyze(Box<analyze::AnalyzeArgs>),
    Status(status::StatusArgs),
    #[command(visible_alias = "ps")]
    ProxyStatus(proxy_status::ProxyStatusArgs),
    Wait(wait::WaitArgs),
    Check(check::CheckArgs),
    Crds(crds::CrdsArgs),
    #[command(subcommand)]
    Audit(audit::Audit),
    Demo(demo::DemoArgs),
    #[command(hide = true)]
    DemoApp(demo::app::AppArgs),
    #[command(hide = true)]
    DemoGuard(demo::GuardArgs),
    Version(version::VersionArgs),
    Completion(completion::CompletionArgs),
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let called = plugin::called();
    if called == plugin::Called::Completion {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let printed = crate::output::text(&plugin::complete(&Cli::command(), &words));
        return printed.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS);
    }
    let matches = Cli::command().bin_name(called.command_name()).get_matches();
    let Cli { command, log } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Err(error) = log.init() {
        return failed(&error.into());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(run(command)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Controller(args) => controller::run(*args).await,
        Command::Ca(args) => ca::run(*args).await,
        Command::Standalone(args) => standalone::run(*args).await,
        Command::JoinToken(command) => join_token::run(command),
        Command::Agent(args) => Ok(agent::run(*args).await.map(|()| ExitCode::SUCCESS)?),
        Command::Capture(args) => Ok(agent::capture(*args).await.map(|()| ExitCode::SUCCESS)?),
        Command::Sidecar(what) => Ok(agent::sidecar::run(what).await.map(|()| ExitCode::SUCCESS)?),
        Command::Inject(args) => inject::run(&args),
        Command::Translate(args) => translate::run(&args),
        Command::Authz(command) => authz::run(command).await,
        Command::Test(args) => policy_test::run(&args),
        Command::Analyze(args) => analyze::run(&args).await,
        Command::Status(args) => status::run(&args).await,
        Command::ProxyStatus(args) => proxy_status::run(&args).await,
        Command::Wait(args) => wait::run(&args).await,
        Command::Check(args) => check::run(args).await,
        Command::Crds(args) => crds::run(&args),
        Command::Audit(command) => audit::run(command),
        Command::Demo(args) => demo::run(args).await,
        Command::DemoApp(args) => demo::app::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::DemoGuard(args) => {
            demo::guard(&args);
            Ok(ExitCode::SUCCESS)
        }
        Command::Version(args) => version::run(&args).await,
        Command::Completion(args) => completion::run(&args, Cli::command()),
    }
}

/// The error and its causes on stderr, also where logging is off.
fn failed(error: &anyhow::Error) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::from(ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Examples in every help text; environment names for every long flag of a process.
    #[test]
    fn every_subcommand_shows_an_example() {
        fn check(command: &clap::Command, path: &str) {
            if command.is_hide_set() || command.get_name() == "help" {
                return;
            }
            let path = format!("{path} {}", command.get_name());
            let subcommands: Vec<_> = command.get_subcommands().collect();
            if subcommands.is_empty() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("countersign "), "{path} has no example");
            }
            for subcommand in subcommands {
                check(subcommand, &path);
            }
        }
        let cli = Cli::command();
        for command in cli.get_subcommands().filter(|command| !["demo"].contains(&command.get_name())) {
            check(command, "countersign");
        }
    }

    #[test]
    fn every_flag_of_standalone_has_an_environment_name() {
        let mut cli = Cli::command();
        let standalone = cli.find_subcommand_mut("standalone").unwrap();
        for arg in
            standalone.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        {
            let flag = arg.get_long().unwrap();
            let env = arg.get_env().unwrap_or_else(|| panic!("--{flag} has no environment name"));
            assert_eq!(
                env.to_string_lossy(),
                format!("COUNTERSIGN_{}", flag.replace('-', "_").to_uppercase())
            );
        }
    }

    /// `docs/reference/cli.md` is what `--help` says. `BLESS=1 cargo test -p cli reference` writes it anew.
    #[test]
    fn the_reference_is_what_help_says() {
        fn describe(command: &mut clap::Command, path: &str, text: &mut String) {
            if command.is_hide_set() || command.get_name() == "help" {
                return;
            }
            let path = format!("{path} {}", command.get_name()).trim().to_owned();
            *text += &format!("\n## {path}\n```text\n");
            for line in command.render_long_help().to_string().lines() {
                *text += line.trim_end();
                text.push('\n');
            }
            *text += "```\n";
            for subcommand in command.get_subcommands_mut() {
                describe(subcommand, &path, text);
            }
        }
        let mut text =
            "# The command line\n\nMade from `--help`: `BLESS=1 cargo test -p cli reference`.\n".to_owned();
        // Neither the terminal nor the environment may show.
        let quiet =
            |command: clap::Command| command.term_width(100).mut_args(|arg| arg.hide_env_values(true));
        let mut cli = quiet(Cli::command().disable_help_subcommand(true))
            .mut_subcommands(move |one| quiet(one).mut_subcommands(quiet));
        cli.build();
        describe(&mut cli, "", &mut text);
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli.md");
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(std::path::Path::new(file).parent().unwrap()).unwrap();
            std::fs::write(file, &text).unwrap();
        }
        let expected = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            expected == text,
            "docs/reference/cli.md is out of date: BLESS=1 cargo test -p cli reference"
        );
    }
}
