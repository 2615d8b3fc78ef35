//! Random specs, drawn from the schemas themselves and then spoilt: what the API server refuses, the reader must not
//! take for good, for a file is read by nobody else.

use anyhow::ensure;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};
use tests::here;
use tests::lab::kube;

use super::{dry_run, errors, versions};

const SPECS: u32 = 200;
/// What stands in the place of a value that is spoilt.
const SPOILT: [&str; 12] = ["", "*", "a*", "a/b", "{*}", "/{**}/x", "-1", "0", "65536", "ftp://a", "5", "é"];
/// Texts that are good somewhere.
const GOOD: [&str; 12] = [
    "a",
    "*",
    "80",
    "10.0.0.0/8",
    "/a",
    "/{*}",
    "https://a.example/k",
    "5s",
    "source.ip",
    "Service",
    "ns/sa",
    "td.example",
];

/// A value for `schema`; one in about `spoil` is not good for it.
fn draw(schema: &Value, random: &mut StdRng, spoil: f64) -> Value {
    if random.random_bool(spoil) {
        return match random.random_range(0..4) {
            0 => json!(random.random_range(-1..70_000)),
            1 => json!([]),
            2 => json!({}),
            _ => json!(SPOILT.choose(random).expect("there are some")),
        };
    }
    match schema["type"].as_str() {
        Some("object") => Value::Object(fields(schema, random, spoil)),
        Some("array") => {
            (0..random.random_range(0..3)).map(|_| draw(&schema["items"], random, spoil)).collect()
        }
        Some("boolean") => json!(random.random_bool(0.5)),
        Some("integer") => json!(random.random_range(0..70_000)),
        _ => match schema["enum"].as_array() {
            Some(values) => values.choose(random).cloned().unwrap_or_default(),
            None => json!(GOOD.choose(random).expect("there are some")),
        },
    }
}

fn fields(schema: &Value, random: &mut StdRng, spoil: f64) -> Map<String, Value> {
    if let Some(values) = schema.get("additionalProperties") {
        let keys = ["app", "80", "65535", "", "a*", "0"];
        let count = random.random_range(0..3);
        let chosen: Vec<_> = keys.choose_multiple(random, count).copied().collect();
        return chosen.into_iter().map(|key| (key.to_owned(), draw(values, random, spoil))).collect();
    }
    let mut fields = Map::new();
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let needed = required.iter().any(|one| one == name);
        if random.random_bool(if needed { 0.98 } else { 0.3 }) {
            fields.insert(name.clone(), draw(property, random, spoil));
        }
    }
    fields
}

/// Why the schema refuses and the reader need not: see `table::LENIENT`. Both come from lists that are given and empty.
const MILD: [&str; 2] = ["only one of selector, targetRef and targetRefs can be given", "cannot be combined"];

#[test]
fn what_the_schema_refuses_the_reader_does_not_take() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("random").await?;
        let mut random = StdRng::seed_from_u64(4);
        let (mut taken, mut refused) = (0, 0);
        let policies = crds::crd::definitions().into_iter().filter(|one| one.kind.is_policy());
        for definition in policies {
            let schema =
                &definition.value()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            for _ in 0..SPECS {
                let spec = Value::Object(fields(schema, &mut random, 0.03));
                let object = versions(definition.kind.as_str(), &ns, &spec).swap_remove(0);
                match dry_run(kube, &object).await? {
                    Ok(_) => taken += 1,
                    Err(status) => {
                        refused += 1;
                        let mild = object.to_string().contains("[]")
                            && MILD.iter().any(|reason| status.message.contains(reason));
                        ensure!(
                            mild || !errors(&object).is_empty(),
                            "{object}: the schema alone refuses: {}",
                            status.message
                        );
                    }
                }
            }
        }
        ensure!(taken > 50 && refused > 50, "{taken} taken, {refused} refused: too much alike");
        Ok(())
    });
}
