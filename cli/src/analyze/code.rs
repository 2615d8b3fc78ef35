//! The codes of `analyze`: numbers are never used again for something else.

use controller::offline;
use serde::{Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    Info,
    Warning,
    Error,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Code {
    NotUnderstood,
    Unimplemented,
    Reading,
    SelectsNothing,
    NoEffect,
    UnservedPort,
    HttpOnTcp,
    PlaintextIdentity,
    UnknownProvider,
    Ignored,
    TokenNotRequired,
    TokenOnTcp,
    DryRun,
    WalkedAround,
    Duplicate,
    Shadowed,
    Regex,
    HostPort,
    Denied,
    RequiredTwice,
    NeverMatches,
}

impl Code {
    pub(crate) const ALL: [Self; 21] = [
        Self::NotUnderstood,
        Self::Unimplemented,
        Self::Reading,
        Self::SelectsNothing,
        Self::NoEffect,
        Self::UnservedPort,
        Self::HttpOnTcp,
        Self::PlaintextIdentity,
        Self::UnknownProvider,
        Self::Ignored,
        Self::TokenNotRequired,
        Self::TokenOnTcp,
        Self::DryRun,
        Self::WalkedAround,
        Self::Duplicate,
        Self::Shadowed,
        Self::Regex,
        Self::HostPort,
        Self::Denied,
        Self::RequiredTwice,
        Self::NeverMatches,
    ];

    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::NotUnderstood => "CS0001",
            Self::Unimplemented => "CS0002",
            Self::Reading => "CS0003",
            Self::SelectsNothing => "CS0101",
            Self::NoEffect => "CS0102",
            Self::UnservedPort => "CS0103",
            Self::HttpOnTcp => "CS0104",
            Self::PlaintextIdentity => "CS0105",
            Self::UnknownProvider => "CS0106",
            Self::Ignored => "CS0107",
            Self::TokenNotRequired => "CS0108",
            Self::TokenOnTcp => "CS0109",
            Self::DryRun => "CS0110",
            Self::WalkedAround => "CS0201",
            Self::Duplicate => "CS0202",
            Self::Shadowed => "CS0203",
            Self::Regex => "CS0204",
            Self::HostPort => "CS0205",
            Self::Denied => "CS0206",
            Self::RequiredTwice => "CS0207",
            Self::NeverMatches => "CS0208",
        }
    }

    pub(crate) fn severity(self) -> Severity {
        match self {
            Self::NotUnderstood | Self::UnknownProvider | Self::RequiredTwice => Severity::Error,
            Self::TokenNotRequired | Self::DryRun => Severity::Info,
            Self::Unimplemented
            | Self::Reading
            | Self::SelectsNothing
            | Self::NoEffect
            | Self::UnservedPort
            | Self::HttpOnTcp
            | Self::PlaintextIdentity
            | Self::Ignored
            | Self::TokenOnTcp
            | Self::WalkedAround
            | Self::Duplicate
            | Self::Shadowed
            | Self::Regex
            | Self::HostPort
            | Self::Denied
            | Self::NeverMatches => Severity::Warning,
        }
    }

    /// The heading that explains it.
    pub(crate) fn docs(self) -> String {
        format!("docs/reference/analysis.md#{}", self.id().to_lowercase())
    }
}

impl From<offline::Code> for Code {
    fn from(code: offline::Code) -> Self {
        match code {
            offline::Code::NoEffect => Self::NoEffect,
            offline::Code::SelectsNothing => Self::SelectsNothing,
            offline::Code::DryRun => Self::DryRun,
            offline::Code::UnknownProvider => Self::UnknownProvider,
            offline::Code::TokenNotRequired => Self::TokenNotRequired,
            offline::Code::TokenOnTcp => Self::TokenOnTcp,
            offline::Code::PlaintextIdentity => Self::PlaintextIdentity,
            offline::Code::HttpOnTcp => Self::HttpOnTcp,
            offline::Code::UnservedPort => Self::UnservedPort,
            offline::Code::Ignored => Self::Ignored,
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}
