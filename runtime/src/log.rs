//! Structured logs on stderr, as text or JSON, and what is logged, which can be changed while the process runs. Redacts
//! nothing: secrets must not be given to `tracing` in the first place (their types print as `..`).

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

/// Bytes of a filter.
const MAX_FILTER: usize = 4096;

/// The client of the API server calls every failed request an error, several a second in an outage; who asked says what
/// it means.
const QUIET: &str = "kube_client=off";

/// Of the one subscriber of this process.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Flags of every long-running subcommand.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// What to log: a level, or directives such as `info,xds=debug`
    #[arg(
        long = "log",
        env = "COUNTERSIGN_LOG",
        default_value = "info",
        value_name = "FILTER",
        global = true
    )]
    pub filter: String,
    /// One line of text or one JSON object per event
    #[arg(
        long = "log-format",
        env = "COUNTERSIGN_LOG_FORMAT",
        default_value = "text",
        value_enum,
        global = true
    )]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log filter {filter:?} cannot be read")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("the log filter is longer than {MAX_FILTER} bytes")]
    Long,
    #[error("this process does not log by our filter")]
    NotStarted,
}

impl LogArgs {
    /// Starts logging for the whole process. Later calls change nothing, so tests may call it freely.
    ///
    /// # Errors
    /// [`LogError::Filter`] if the filter is not of the form `level` or `target=level,..`.
    pub fn init(&self) -> Result<(), LogError> {
        let (filter, handle) = reload::Layer::new(parse(&self.filter)?);
        let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(true);
        let format = match self.format {
            Format::Text => format.with_ansi(std::io::stderr().is_terminal()).boxed(),
            Format::Json => format.json().flatten_event(true).with_ansi(false).boxed(),
        };
        // A failure means that logging runs already.
        let format = format.with_filter(filter);
        let subscriber = tracing_subscriber::registry().with(format).with(crate::audit::capture::layer());
        if subscriber.try_init().is_ok() {
            let _ = FILTER.set(handle);
        }
        Ok(())
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    if filter.len() > MAX_FILTER {
        return Err(LogError::Long);
    }
    // Asking for it by name brings it back.
    let parsed = match filter.is_empty() || filter.contains("kube_client") {
        true => EnvFilter::builder().parse(filter),
        false => EnvFilter::builder().parse(format!("{QUIET},{filter}")),
    };
    parsed.map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

/// What is logged now; `None` if [`LogArgs::init`] did not start the logging of this process.
pub fn filter() -> Option<String> {
    let all = FILTER.get()?.with_current(ToString::to_string).ok()?;
    Some(all.split(',').filter(|directive| *directive != QUIET).collect::<Vec<_>>().join(","))
}

/// Changes what is logged, from now until it is changed again or the process ends.
///
/// # Errors
/// If the filter cannot be read, or the process does not log by our filter.
pub fn set_filter(filter: &str) -> Result<(), LogError> {
    let parsed = parse(filter)?;
    let handle = FILTER.get().ok_or(LogError::NotStarted)?;
    handle.reload(parsed).map_err(|_| LogError::NotStarted)?;
    tracing::info!(target: "audit", ?filter, "what is logged was changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_makes_no_sense_is_refused() {
        let bad = LogArgs { filter: "xds=loudly".into(), format: Format::Text };
        assert!(matches!(bad.init(), Err(LogError::Filter { .. })));
        let good = LogArgs { filter: "warn,xds=debug".into(), format: Format::Json };
        good.init().unwrap();
        good.init().unwrap();
        // Another test of this process may have been first.
        if filter().is_some() {
            set_filter("info,xds=trace").unwrap();
            assert_eq!(filter().unwrap(), "xds=trace,info");
            assert!(matches!(set_filter("xds=loudly"), Err(LogError::Filter { .. })));
            assert!(matches!(set_filter(&"x".repeat(5000)), Err(LogError::Long)));
            assert_eq!(filter().unwrap(), "xds=trace,info");
        }
    }
}
