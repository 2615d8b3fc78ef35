//! One page of numbers: the agent's, Envoy's and the application's. What cannot be had is left out, and counted.

use std::path::PathBuf;
use std::sync::Arc;

use super::AppMetrics;
use super::ask::{Asker, text};
use crate::health::Health;

/// Where the numbers come from.
pub(super) struct Page {
    pub(super) metrics: runtime::Metrics,
    /// Envoy's admin socket.
    pub(super) envoy: PathBuf,
    pub(super) app: Option<AppMetrics>,
    pub(super) asker: Arc<Asker>,
    pub(super) health: Arc<Health>,
}

impl Page {
    pub(super) async fn text(&self) -> String {
        let app = async {
            match &self.app {
                Some(AppMetrics { port, path }) => self.asker.page(*port, path).await,
                None => Ok(String::new()),
            }
        };
        let (app, envoy) = tokio::join!(app, self.envoy());
        let mut page = String::new();
        for (whose, part) in [("application", app), ("Envoy", envoy)] {
            match part {
                Ok(part) => add(&mut page, &part, |_| true),
                Err(why) => {
                    self.health.scrape_failed();
                    tracing::debug!(whose, why, "metrics left out");
                }
            }
        }
        // The application has numbers of its process under these names, too, and they are the ones that are looked for.
        add(&mut page, &self.metrics.encode(), |name| !name.starts_with("process_"));
        page
    }

    async fn envoy(&self) -> Result<String, String> {
        let client = reqwest::Client::builder().no_proxy().unix_socket(self.envoy.as_path()).build();
        let client = client.map_err(|error| error.to_string())?;
        text(client.get("http://envoy/stats/prometheus").send().await).await
    }
}

/// The lines of `part` whose metric is wanted, without OpenMetrics' end.
fn add(page: &mut String, part: &str, wanted: impl Fn(&str) -> bool) {
    for line in part.lines().filter(|line| *line != "# EOF" && !line.is_empty()) {
        let name = match line.strip_prefix("# ") {
            Some(comment) => comment.split(' ').nth(1).unwrap_or_default(),
            None => line,
        };
        if wanted(name) {
            page.push_str(line);
            page.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_one() {
        let mut page = String::new();
        add(&mut page, "# TYPE a counter\na_total 1\n# EOF\n", |_| true);
        add(&mut page, "# TYPE process_x gauge\nprocess_x 2\n# HELP b B\nb 3\n", |name| {
            !name.starts_with("process_")
        });
        assert_eq!(page, "# TYPE a counter\na_total 1\n# HELP b B\nb 3\n");
    }
}
