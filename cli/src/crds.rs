//! `countersign crds`: prints the CustomResourceDefinitions that this binary was built with. It talks to no cluster.

use std::process::ExitCode;

use anyhow::bail;
use crds::crd::{Definition, definitions};
use serde_json::json;

use crate::output::{self, Format, Table};

/// Print the custom resource definitions of the kinds that Countersign reads
#[derive(Debug, clap::Args)]
#[command(
    after_help = "They are Istio's own kinds. Where an Istio has installed them already, keep its definitions: only the\n\
    printer columns differ.\n\n\
    Examples:\n  \
    countersign crds | kubectl apply --server-side -f -\n  \
    countersign crds -o table\n  \
    countersign crds ap peerauthentications -o json"
)]
pub(crate) struct CrdsArgs {
    /// Only these: a kind, its plural, its short name or PLURAL.GROUP, in any case of letters
    #[arg(value_name = "KIND")]
    kinds: Vec<String>,
    /// How to print; table only names them
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
}

pub(crate) fn run(args: &CrdsArgs) -> anyhow::Result<ExitCode> {
    let CrdsArgs { kinds, output } = args;
    output::text(&print(*output, &chosen(kinds)?)?)?;
    Ok(ExitCode::SUCCESS)
}

/// In the order of [`definitions`], each once.
fn chosen(names: &[String]) -> anyhow::Result<Vec<Definition>> {
    let all = definitions();
    if let Some(name) = names.iter().find(|name| !all.iter().any(|one| is(one, name))) {
        let known: Vec<&str> = all.iter().map(|one| one.kind.as_str()).collect();
        bail!("there is no definition of {name:?}: {}", known.join(", "));
    }
    Ok(all.into_iter().filter(|one| names.is_empty() || names.iter().any(|name| is(one, name))).collect())
}

fn is(definition: &Definition, name: &str) -> bool {
    let names = [definition.kind.as_str(), definition.plural, definition.short_name, &definition.name()];
    names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

fn print(format: Format, definitions: &[Definition]) -> anyhow::Result<String> {
    Ok(match format {
        Format::Yaml => definitions.iter().map(Definition::yaml).collect::<Vec<_>>().join("---\n"),
        Format::Json => {
            let items: Vec<_> = definitions.iter().map(Definition::value).collect();
            serde_json::to_string_pretty(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?
                + "\n"
        }
        Format::Table => {
            let mut table = Table::new(&["NAME", "KIND", "SHORT", "VERSIONS"]);
            for one in definitions {
                table.row([
                    one.name(),
                    one.kind.to_string(),
                    one.short_name.to_owned(),
                    one.kind.versions().join(", "),
                ]);
            }
            table.to_string()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(kinds: &[&str]) -> anyhow::Result<Vec<String>> {
        let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        Ok(chosen(&kinds)?.iter().map(Definition::name).collect())
    }

    #[test]
    fn kinds_go_by_all_their_names() {
        assert_eq!(names(&[]).unwrap().len(), definitions().len());
        let ap = ["authorizationpolicies.security.istio.io"];
        for name in ["ap", "AP", "AuthorizationPolicy", "authorizationpolicies", ap[0]] {
            assert_eq!(names(&[name]).unwrap(), ap, "{name}");
        }
        assert_eq!(names(&["ap", "ap"]).unwrap(), ap);
        assert_eq!(names(&["we", "pa"]).unwrap().len(), 2);
        let error = names(&["ap", "VirtualService"]).unwrap_err().to_string();
        assert!(error.contains("VirtualService") && error.contains("PeerAuthentication"), "{error}");
    }

    #[test]
    fn every_format_holds_all_of_them() {
        let all = definitions();
        let yaml = print(Format::Yaml, &all).unwrap();
        let documents: Vec<_> = yaml.split("---\n").collect();
        assert_eq!(documents.len(), all.len());
        for (document, one) in documents.iter().zip(&all) {
            assert_eq!(serde_yaml::from_str::<serde_json::Value>(document).unwrap(), *one.value());
        }
        let json: serde_json::Value = serde_json::from_str(&print(Format::Json, &all).unwrap()).unwrap();
        assert_eq!(json["items"].as_array().unwrap().len(), all.len());
        assert_eq!(print(Format::Table, &all).unwrap().lines().count(), all.len() + 1);
    }
}
