//! What `check` found: groups of checks, as a list for people (√ fine, ‼ look at it, × wrong) or for programs.

use serde::{Serialize, Serializer};

use crate::output::printable;

/// Where every anchor leads.
const PAGE: &str = "docs/troubleshooting.md";
/// Names of one kind that are listed; the rest is counted.
const LISTED: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Table,
    Short,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Success,
    Warning,
    Error,
}

/// A section of the troubleshooting page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    ApiServer,
    ApiVersion,
    Clock,
    Definitions,
    ForeignDefinitions,
    Rights,
    InstallRights,
    ControlPlane,
    OtherControlPlane,
    VersionSkew,
    Leader,
    RootCertificate,
    Webhook,
    NotTold,
    EnvoyFloor,
    ProxyBehind,
    NotAccepted,
    NotEnforced,
    NoStatus,
    Kinds,
}

impl Anchor {
    #[cfg(test)]
    const ALL: [Self; 20] = [
        Self::ApiServer,
        Self::ApiVersion,
        Self::Clock,
        Self::Definitions,
        Self::ForeignDefinitions,
        Self::Rights,
        Self::InstallRights,
        Self::ControlPlane,
        Self::OtherControlPlane,
        Self::VersionSkew,
        Self::Leader,
        Self::RootCertificate,
        Self::Webhook,
        Self::NotTold,
        Self::EnvoyFloor,
        Self::ProxyBehind,
        Self::NotAccepted,
        Self::NotEnforced,
        Self::NoStatus,
        Self::Kinds,
    ];

    fn slug(self) -> &'static str {
        match self {
            Self::ApiServer => "api-server-not-reached",
            Self::ApiVersion => "api-server-too-old",
            Self::Clock => "clocks-differ",
            Self::Definitions => "definitions-missing",
            Self::ForeignDefinitions => "definitions-of-another-installation",
            Self::Rights => "rights-missing",
            Self::InstallRights => "rights-to-install",
            Self::ControlPlane => "control-plane-not-running",
            Self::OtherControlPlane => "another-control-plane",
            Self::VersionSkew => "versions-differ",
            Self::Leader => "nobody-writes-status",
            Self::RootCertificate => "root-certificate",
            Self::Webhook => "admission-webhook",
            Self::NotTold => "status-not-told",
            Self::EnvoyFloor => "envoy-with-known-bypasses",
            Self::ProxyBehind => "rejected",
            Self::NotAccepted => "objects-with-errors",
            Self::NotEnforced => "not-enforced",
            Self::NoStatus => "policy-without-status",
            Self::Kinds => "kinds-without-effect",
        }
    }
}

impl Serialize for Anchor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{PAGE}#{}", self.slug()))
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Check {
    description: String,
    result: Level,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<Anchor>,
}

/// Checks of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Group {
    category_name: &'static str,
    checks: Vec<Check>,
}

impl Group {
    pub(super) fn new(category_name: &'static str) -> Self {
        Self { category_name, checks: Vec::new() }
    }

    pub(super) fn pass(&mut self, description: impl Into<String>) {
        let description = description.into();
        self.checks.push(Check { description, result: Level::Success, error: None, hint: None });
    }

    pub(super) fn warn(&mut self, description: impl Into<String>, why: impl Into<String>, anchor: Anchor) {
        self.found(description.into(), Level::Warning, why.into(), anchor);
    }

    pub(super) fn fail(&mut self, description: impl Into<String>, why: impl Into<String>, anchor: Anchor) {
        self.found(description.into(), Level::Error, why.into(), anchor);
    }

    fn found(&mut self, description: String, result: Level, why: String, anchor: Anchor) {
        self.checks.push(Check { description, result, error: Some(why), hint: Some(anchor) });
    }

    /// Fine if there are no findings, else one line with them.
    pub(super) fn none(
        &mut self,
        description: impl Into<String>,
        level: Level,
        findings: &[String],
        anchor: Anchor,
    ) {
        match findings {
            [] => self.pass(description),
            some => self.found(description.into(), level, listed(some), anchor),
        }
    }

    /// Nothing of it is an error.
    pub(super) fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.result < Level::Error)
    }
}

/// The first few, a line each.
fn listed(names: &[String]) -> String {
    let mut lines: Vec<String> = names.iter().take(LISTED).cloned().collect();
    if names.len() > LISTED {
        lines.push(format!("and {} more", names.len() - LISTED));
    }
    lines.join("\n")
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report(Vec<Group>);

impl Report {
    pub(super) fn add(&mut self, group: Group) {
        self.0.push(group);
    }

    pub(super) fn worst(&self) -> Level {
        let levels = self.0.iter().flat_map(|group| &group.checks).map(|check| check.result);
        levels.max().unwrap_or(Level::Success)
    }

    /// # Errors
    /// Never in practice: only if the data could not be made JSON or YAML.
    pub(super) fn print(&self, format: Format) -> anyhow::Result<String> {
        let data = || serde_json::json!({ "success": self.worst() < Level::Error, "categories": self.0 });
        Ok(match format {
            Format::Table => self.lines(Level::Success),
            Format::Short => self.lines(Level::Warning),
            Format::Json => serde_json::to_string_pretty(&data())? + "\n",
            Format::Yaml => serde_yaml::to_string(&data())?,
        })
    }

    /// What is of that level or worse.
    fn lines(&self, least: Level) -> String {
        let mut text = String::new();
        for Group { category_name, checks } in &self.0 {
            let shown: Vec<&Check> = checks.iter().filter(|check| check.result >= least).collect();
            if shown.is_empty() {
                continue;
            }
            text += &format!("{category_name}\n{}\n", "-".repeat(category_name.len()));
            for Check { description, result, error, hint } in shown {
                text += &format!("{} {}\n", mark(*result), printable(description));
                for line in error.iter().flat_map(|error| error.lines()) {
                    text += &format!("    {}\n", printable(line));
                }
                if let Some(anchor) = hint {
                    text += &format!("    see {PAGE}#{}\n", anchor.slug());
                }
            }
            text.push('\n');
        }
        text + &format!("Status check results are {}\n", mark(self.worst()))
    }
}

fn mark(level: Level) -> &'static str {
    match level {
        Level::Success => "√",
        Level::Warning => "‼",
        Level::Error => "×",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut one = Group::new("first-group");
        one.pass("it is there");
        one.warn("it is new", "it is old\u{1b}[2J\nvery", Anchor::VersionSkew);
        let mut two = Group::new("second");
        two.none("no findings", Level::Error, &[], Anchor::Rights);
        let mut report = Report::default();
        report.add(one);
        report.add(two);
        report
    }

    #[test]
    fn people_see_marks_and_where_to_read_on() {
        let text = report().print(Format::Table).expect("text");
        assert_eq!(
            text,
            "first-group\n-----------\n√ it is there\n‼ it is new\n    it is old [2J\n    very\n    \
             see docs/troubleshooting.md#versions-differ\n\nsecond\n------\n√ no findings\n\n\
             Status check results are ‼\n"
        );
        let short = report().print(Format::Short).expect("text");
        assert!(!short.contains('√') && !short.contains("second"), "{short}");
    }

    #[test]
    fn programs_see_linkerds_shape() {
        let data: serde_json::Value =
            serde_json::from_str(&report().print(Format::Json).expect("text")).expect("JSON");
        assert_eq!(data["success"], true);
        let check = &data["categories"][0]["checks"][1];
        assert_eq!((&check["result"], &check["description"]), (&"warning".into(), &"it is new".into()));
        assert_eq!(check["hint"], "docs/troubleshooting.md#versions-differ");
        let yaml: serde_json::Value =
            serde_yaml::from_str(&report().print(Format::Yaml).expect("text")).expect("YAML");
        assert_eq!(yaml, data);
    }

    #[test]
    fn many_findings_are_counted() {
        let many: Vec<String> = (0..9).map(|n| format!("policy-{n}")).collect();
        let text = listed(&many);
        assert!(text.contains("policy-4") && !text.contains("policy-5") && text.ends_with("and 4 more"));
    }

    #[test]
    fn every_anchor_is_a_heading_of_the_page() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md"));
        let page = page.expect("the page");
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let slug = |heading: &str| -> String {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            text.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        let slugs: Vec<String> = page.lines().filter(|line| line.starts_with('#')).map(slug).collect();
        for anchor in Anchor::ALL {
            assert!(slugs.iter().any(|slug| slug == anchor.slug()), "no heading for #{}", anchor.slug());
        }
    }
}
