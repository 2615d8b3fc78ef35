//! What the program was called as: `countersign`, or, linked or copied to `kubectl-countersign`, a plugin of kubectl. As a
//! plugin it speaks of itself as `kubectl countersign`, and asks the cluster that kubectl would ask. Linked to
//! `kubectl_complete-countersign` it completes kubectl's command line.

use std::path::Path;

/// The executable that kubectl looks for.
const PLUGIN: &str = "kubectl-countersign";
/// The executable that kubectl asks for completions.
const COMPLETE: &str = "kubectl_complete-countersign";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    Countersign,
    Plugin,
    Completion,
}

impl Called {
    fn of(program: &str) -> Self {
        let name = Path::new(program).file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            PLUGIN => Self::Plugin,
            COMPLETE => Self::Completion,
            _ => Self::Countersign,
        }
    }

    /// As the user sees it.
    pub(crate) fn command_name(self) -> &'static str {
        match self {
            Self::Countersign => "countersign",
            Self::Plugin | Self::Completion => "kubectl countersign",
        }
    }
}

/// What this process was called as.
pub(crate) fn called() -> Called {
    Called::of(&std::env::args().next().unwrap_or_default())
}

/// What may follow `words` on the command line, one a line, and the directive that kubectl expects at the end: 4, no
/// file names.
pub(crate) fn complete(root: &clap::Command, words: &[String]) -> String {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut command = root;
    for word in before {
        if let Some(found) = command.find_subcommand(word) {
            command = found;
        }
    }
    let mut offered: Vec<(String, String)> = if last.starts_with('-') {
        let flags = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let long = flags.filter_map(|arg| Some((format!("--{}", arg.get_long()?), arg.get_help())));
        long.map(|(flag, help)| (flag, help.map(ToString::to_string).unwrap_or_default())).collect()
    } else {
        let commands = command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help");
        let about = |c: &clap::Command| c.get_about().map(ToString::to_string).unwrap_or_default();
        commands.map(|c| (c.get_name().to_owned(), about(c))).collect()
    };
    offered.retain(|(word, _)| word.starts_with(last));
    let line = |(word, about): (String, String)| {
        let about = about.lines().next().unwrap_or_default().to_owned();
        if about.is_empty() { format!("{word}\n") } else { format!("{word}\t{about}\n") }
    };
    offered.into_iter().map(line).collect::<String>() + ":4\n"
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_name_decides() {
        for (program, called) in [
            ("countersign", Called::Countersign),
            ("/usr/local/bin/kubectl-countersign", Called::Plugin),
            ("./kubectl-countersign.exe", Called::Plugin),
            ("kubectl_complete-countersign", Called::Completion),
            ("", Called::Countersign),
        ] {
            assert_eq!(Called::of(program), called, "{program}");
        }
    }

    #[test]
    fn completions_are_as_kubectl_reads_them() {
        let root = crate::cli::Cli::command();
        let complete = |words: &[&str]| {
            complete(&root, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        let all = complete(&[""]);
        assert!(all.contains("\ncheck\t") && all.ends_with(":4\n") && !all.contains("demo-app"), "{all}");
        assert!(complete(&["proxy"]).starts_with("proxy-status\t"));
        assert!(complete(&["wait", "--f"]).starts_with("--for\t"));
        assert_eq!(complete(&["no-such"]), ":4\n");
    }
}
