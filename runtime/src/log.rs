//! Structured logs on stderr, as text or JSON. Holds no log calls of its own and redacts nothing: secrets must not be
//! given to `tracing` in the first place (their types print as `..`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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
}

impl LogArgs {
    /// Starts logging for the whole process. Later calls change nothing, so tests may call it freely.
    ///
    /// # Errors
    /// [`LogError::Filter`] if the filter is not of the form `level` or `target=level,..`.
    pub fn init(&self) -> Result<(), LogError> {
        let filter = EnvFilter::builder()
            .parse(&self.filter)
            .map_err(|source| LogError::Filter { filter: self.filter.clone(), source })?;
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
        // A failure means that logging runs already.
        let _ = match self.format {
            Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
            Format::Json => builder.json().flatten_event(true).with_ansi(false).try_init(),
        };
        Ok(())
    }
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
    }
}
