//! Rules in force, in the words of a table: who, what, and under which conditions. Describes; decides nothing.

use policy::{Atom, Clause, EffectiveRule};
use serde::Serialize;

/// Alternatives of one cell are joined by this.
const OR: &str = "; or ";

/// One rule as cells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cells {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) when: String,
}

/// What a field of `from` is called in a cell. `principals` need no word.
const FROM: [(&str, &str); 7] = [
    ("principals", ""),
    ("requestPrincipals", "token "),
    ("namespaces", "namespace "),
    ("serviceAccounts", "service account "),
    ("trustDomains", "trust domain "),
    ("ipBlocks", "ip "),
    ("remoteIpBlocks", "remote ip "),
];
const TO: [(&str, &str); 4] = [("methods", ""), ("paths", ""), ("hosts", "host "), ("ports", "port ")];

pub(crate) fn cells(rule: &EffectiveRule) -> Cells {
    let EffectiveRule { policy: _, index: _, permissions, principals } = rule;
    let when = [permissions, principals].into_iter().filter_map(|branches| branches.first()).flatten();
    let conditions = when.filter(|clause| word(&FROM, clause).or(word(&TO, clause)).is_none());
    let conditions: Vec<String> = conditions.map(condition).collect();
    Cells {
        from: side(principals, &FROM, ["nobody", "anyone", " and "]),
        to: side(permissions, &TO, ["nothing", "anything", " "]),
        when: if conditions.is_empty() { "-".to_owned() } else { conditions.join(" and ") },
    }
}

/// The tokens that some alternative of `rule` asks for, as a condition on whoever else it allows.
pub(crate) fn token(rule: &EffectiveRule) -> Option<String> {
    let asks = |branch: &Vec<Clause>| -> Vec<String> {
        let clauses = branch.iter().filter(|clause| &*clause.field == "requestPrincipals");
        clauses.map(|clause| field("token ", clause)).collect()
    };
    let asked: Vec<Vec<String>> = rule.principals.iter().map(asks).collect();
    let always = !asked.is_empty() && asked.iter().all(|tokens| !tokens.is_empty());
    always.then(|| asked.iter().map(|tokens| tokens.join(" and ")).collect::<Vec<_>>().join(OR))
}

fn word(words: &[(&str, &'static str)], clause: &Clause) -> Option<&'static str> {
    words.iter().find(|(field, _)| *field == &*clause.field).map(|(_, word)| *word)
}

fn side(branches: &[Vec<Clause>], words: &[(&str, &'static str)], [none, any, and]: [&str; 3]) -> String {
    let mut cells: Vec<String> = Vec::new();
    for branch in branches {
        let named = words.iter().flat_map(|(name, word)| {
            let clauses = branch.iter().filter(move |clause| *clause.field == **name);
            clauses.map(move |clause| field(word, clause))
        });
        let fields: Vec<String> = named.collect();
        let cell = if fields.is_empty() { any.to_owned() } else { fields.join(and) };
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    if cells.is_empty() { none.to_owned() } else { cells.join(OR) }
}

fn field(word: &str, clause: &Clause) -> String {
    let Clause { field: _, any, none } = clause;
    let mut parts = Vec::new();
    if !any.is_empty() {
        parts.push(format!("{word}{}", values(any)));
    }
    if !none.is_empty() {
        parts.push(format!("not {word}{}", values(none)));
    }
    parts.join(" ")
}

fn condition(clause: &Clause) -> String {
    let Clause { field, any, none } = clause;
    let mut parts = Vec::new();
    if !any.is_empty() {
        parts.push(format!("{field}={}", values(any)));
    }
    if !none.is_empty() {
        parts.push(format!("{field}!={}", values(none)));
    }
    parts.join(" and ")
}

fn values(atoms: &[Atom]) -> String {
    atoms.iter().map(Atom::to_string).collect::<Vec<_>>().join(",")
}
