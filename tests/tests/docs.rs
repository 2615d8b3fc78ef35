//! What the documentation shows is true: its YAML is read without errors, its links lead somewhere, its command lines
//! use flags that exist, and every metric is described. It runs no command; `docs/reference/cli.md` is what is compared
//! with, and that page is held to `--help` elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Names and texts of all pages.
fn pages() -> Vec<(String, String)> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"])
        .current_dir(root())
        .output()
        .expect("git");
    let names = String::from_utf8(out.stdout).expect("file names are UTF-8");
    // A file that was removed is listed until that is committed.
    let names = names.lines().filter(|name| root().join(name).exists());
    let pages: Vec<_> = names.map(|name| (name.to_owned(), read(name))).collect();
    assert!(pages.len() > 10, "only {} pages found: is this the right folder?", pages.len());
    pages
}

/// A fenced block, and the rest of the page.
struct Block {
    language: String,
    line: usize,
    text: String,
}

fn split(page: &str) -> (Vec<Block>, String) {
    let (mut blocks, mut prose) = (Vec::new(), String::new());
    let mut open: Option<Block> = None;
    for (number, line) in page.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                let (language, line) = (language.trim().to_owned(), number + 2);
                open = Some(Block { language, line, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.extend([line, "\n"]),
            (None, None) => prose.extend([line, "\n"]),
        }
    }
    assert!(open.is_none(), "a block that does not end");
    (blocks, prose)
}

#[test]
fn examples_are_read_without_errors() {
    let (mut wrong, mut objects) = (Vec::new(), 0);
    for (name, page) in pages() {
        for Block { language, line, text } in split(&page).0 {
            if language != "yaml" {
                continue;
            }
            let place = format!("{name}:{line}");
            // What is no object is a mesh configuration.
            if !text.contains("apiVersion:") {
                match crds::mesh_config::read(&text) {
                    Ok((_, warnings)) if warnings.is_empty() => {}
                    other => wrong.push(format!("{place}: {other:?}")),
                }
                continue;
            }
            for document in crds::read(&text, &place) {
                objects += 1;
                let understood = matches!(document.content, crds::Content::Object(_));
                if !understood {
                    wrong.push(format!("{}: {:?}", document.origin, document.findings));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(objects > 30, "only {objects} objects found");
}

#[test]
fn links_lead_somewhere() {
    let pages: BTreeMap<String, String> = pages().into_iter().collect();
    let (mut wrong, mut links) = (Vec::new(), 0);
    for (name, page) in &pages {
        let folder = Path::new(name).parent().unwrap_or(Path::new(""));
        for target in targets(&split(page).1) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = if file.is_empty() { PathBuf::from(name) } else { plain(&folder.join(file)) };
            if !root().join(&file).exists() {
                wrong.push(format!("{name}: {target}: there is no {}", file.display()));
                continue;
            }
            let other = pages.get(&*file.to_string_lossy());
            if !anchor.is_empty() && !other.is_some_and(|page| anchors(page).contains(anchor)) {
                wrong.push(format!("{name}: {target}: there is no such heading"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(links > 30, "only {links} links found");
}

/// The `TARGET`s of `[text](TARGET)`.
fn targets(prose: &str) -> Vec<String> {
    let rest = prose.split("](").skip(1);
    rest.filter_map(|after| after.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// `a/b/../c` as `a/c`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// The anchors that headings get where the pages are shown.
fn anchors(page: &str) -> BTreeSet<String> {
    let prose = split(page).1;
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let slug = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn command_lines_use_what_exists() {
    let known = commands(&read("docs/reference/cli.md"));
    assert!(known.contains_key("countersign join-token create"), "{:?}", known.keys());
    let (mut wrong, mut lines) = (Vec::new(), 0);
    for (name, page) in pages() {
        for Block { language, line, text } in split(&page).0 {
            if !matches!(language.as_str(), "sh" | "ini") {
                continue;
            }
            for words in calls(&text) {
                lines += 1;
                if let Err(why) = check(&words, &known) {
                    wrong.push(format!("{name}:{line}: {why}: countersign {}", words.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(lines > 20, "only {lines} command lines found");
}

/// Flags by subcommand, from the reference page.
fn commands(reference: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut known = BTreeMap::new();
    let mut of = String::new();
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            name.clone_into(&mut of);
            known.insert(of.clone(), BTreeSet::new());
        } else if line.trim_start().starts_with('-')
            && let Some(flags) = known.get_mut(&of)
        {
            let words = line.split([' ', ',', '=']).filter(|word| word.starts_with('-'));
            flags.extend(words.map(str::to_owned));
        }
    }
    known
}

/// The words after each `countersign` of a script.
fn calls(script: &str) -> Vec<Vec<String>> {
    let joined = script.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.split_once(" #").map_or(line, |(code, _)| code));
    let mut calls = Vec::new();
    for part in lines.flat_map(|line| line.split([';', '|', '&', '(', ')'])) {
        let mut words = part.split_whitespace().map(|word| word.trim_start_matches("ExecStart="));
        if words.by_ref().any(|word| word == "countersign" || word.ends_with("/bin/countersign")) {
            calls.push(words.take_while(|word| *word != ">").map(str::to_owned).collect());
        }
    }
    calls
}

fn check(words: &[String], known: &BTreeMap<String, BTreeSet<String>>) -> Result<(), String> {
    let mut command = "countersign".to_owned();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next_if(|word| known.contains_key(&format!("{command} {word}"))) {
        command = format!("{command} {word}");
    }
    let first = words.peek().map_or("", |word| word);
    if command == "countersign" && !first.starts_with('-') {
        return Err(format!("no subcommand `{first}`"));
    }
    for flag in words.filter(|word| word.starts_with('-')) {
        let flag = flag.split('=').next().unwrap_or_default();
        if flag != "-" && !known[&command].contains(flag) {
            return Err(format!("`{command}` has no `{flag}`"));
        }
    }
    Ok(())
}

#[test]
fn a_misspelt_command_line_is_found() {
    let known = commands(&read("docs/reference/cli.md"));
    let judge = |line: &str| calls(line).iter().all(|words| check(words, &known).is_ok());
    assert!(judge("x=1 countersign status -n shop --policies | jq . # --no"));
    assert!(judge("ip netns exec a countersign wait --for=ready && (mkdir /run/countersign)"));
    for line in ["countersign statsu", "countersign status --polices", "a; countersign join-token --ttl 1m"] {
        assert!(!judge(line), "{line}");
    }
}

/// Where metrics are registered.
const METRICS: [&str; 9] = [
    "controller/src/metrics.rs",
    "controller/src/admission/metrics.rs",
    "runtime/src/audit/metrics.rs",
    "cli/src/ca/counters.rs",
    "cli/src/controller/secure_metrics.rs",
    "cli/src/controller/source_metrics.rs",
    "cli/src/standalone/counters.rs",
    "agent/src/health.rs",
    "runtime/src/metrics.rs",
];

#[test]
fn every_metric_is_described() {
    const PREFIXES: [&str; 5] = ["pilot_", "countersign_", "citadel_", "process_", "istiod_"];
    let name = |text: &str| {
        PREFIXES.iter().any(|p| text.starts_with(p))
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let mut registered = BTreeSet::new();
    for file in METRICS {
        let text = read(file);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        registered.extend(code.split('"').filter(|text| name(text)).map(str::to_owned));
    }
    let page = read("docs/reference/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let described: BTreeSet<String> = rows
        .map(|(metric, _)| metric)
        .filter(|metric| name(metric))
        .map(|metric| metric.strip_suffix("_total").unwrap_or(metric).to_owned())
        .collect();
    assert_eq!(registered, described, "in the code, and in docs/reference/metrics.md");
}

/// Pages name tests as `path/of/file.rs::name`.
#[test]
fn every_named_test_exists() {
    let (mut wrong, mut named) = (Vec::new(), 0);
    for (page, text) in pages() {
        for word in text.split('`').skip(1).step_by(2) {
            let Some((file, test)) = word.split_once(".rs::") else { continue };
            named += 1;
            let file = format!("{file}.rs");
            let source = fs::read_to_string(root().join(&file)).unwrap_or_default();
            if !is_test(&source, test) {
                wrong.push(format!("{page}: {file} has no test {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(named > 100, "only {named} tests are named");
}

/// Whether `source` has a function `name` that is marked as a test and not ignored.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let is = |line: &&str| {
        let code = line.strip_prefix("pub ").unwrap_or(line);
        let code = code.strip_prefix("async ").unwrap_or(code);
        code.strip_prefix("fn ")
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('))
    };
    let Some(at) = lines.iter().position(is) else { return false };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<_> = above.filter(|line| line.starts_with("#[")).collect();
    attributes.iter().any(|a| a.starts_with("#[test]") || a.starts_with("#[tokio::test"))
        && !attributes.iter().any(|a| a.starts_with("#[ignore"))
}

#[test]
fn what_is_no_test_is_found() {
    let source = "/// It.\n#[test]\n// why\nfn a() {}\n#[tokio::test(start_paused = true)]\nasync fn b() {}\nfn c() {}\n\
                  #[test]\n#[ignore = \"x\"]\nfn d() {}\n";
    let judged = ["a", "b", "c", "d", "aa", ""].map(|name| is_test(source, name));
    assert_eq!(judged, [true, true, false, false, false, false]);
}
