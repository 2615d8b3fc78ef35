use clap::Parser;
use policy::{Verdict, evaluate};

use super::parties::Caller;
use super::question::Described;
use super::*;
use crate::translate::input::Input;

const SHOP: &str = include_str!("tests/shop.yaml");

fn shop() -> World {
    let mut input = Input::with(None).unwrap();
    input.text(SHOP, "shop.yaml");
    assert!(input.understood);
    World::of(input)
}

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    command: Authz,
}

/// What the command prints over `shop.yaml`, and its exit code where that is not 0.
fn output(line: &str) -> String {
    let words = std::iter::once("authz").chain(line.split_whitespace());
    let said = Line::try_parse_from(words).unwrap().command.say(&mut shop());
    match said {
        Ok(Said { text, yes: true }) => text,
        Ok(Said { text, yes: false }) => format!("{text}exit 1\n"),
        Err(error) => format!("error: {error:#}\nexit 2\n"),
    }
}

/// Each `$` line of the file is followed by what the command prints. `BLESS=1` writes it anew.
#[test]
fn commands_print_what_the_golden_file_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/authz/tests/golden.txt");
    let golden = std::fs::read_to_string(path).unwrap();
    let commands = golden.lines().filter_map(|line| line.strip_prefix("$ "));
    let got: String = commands.map(|line| format!("$ {line}\n{}\n", output(line))).collect();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &got).unwrap();
        return;
    }
    for (got, golden) in got.split("\n$ ").zip(golden.split("\n$ ")) {
        assert_eq!(got, golden, "{got}");
    }
    assert_eq!(got.len(), golden.len());
}

const CALLERS: [&str; 6] = [
    "shop/payment",
    "shop/batch",
    "web/front",
    "plaintext",
    "spiffe://evil.example/ns/shop/sa/payment-service",
    "spiffe://cluster.local/not/kubernetes",
];
const CALLEES: [&str; 3] = ["shop/orders", "shop/payment", "web/front"];

fn described(method: &str, path: &str, port: u16) -> Described {
    Described {
        method: Some(method.to_owned()),
        path: Some(path.to_owned()),
        port: Some(port),
        ..Described::default()
    }
}

/// Every caller, callee and request of a small world.
fn each(mut check: impl FnMut(&mut World, &Caller, &parties::Callee, &Described)) {
    let mut world = shop();
    for from in CALLERS {
        for to in CALLEES {
            let (caller, callee) = (world.caller(from).unwrap(), world.callee(to, &[]).unwrap());
            for method in ["GET", "POST"] {
                for path in ["/", "/orders/1", "/admin", "//admin"] {
                    for port in [80, 8080, 5432, 9000, 1] {
                        check(&mut world, &caller, &callee, &described(method, path, port));
                    }
                }
            }
        }
    }
}

#[test]
fn can_agrees_with_explain_and_explain_with_evaluate() {
    let (mut allowed, mut denied) = (0, 0);
    each(|world, caller, callee, described| {
        let explained = world.ask(caller, callee, described).unwrap();
        let can = world.can(caller, callee, described).unwrap();
        let alike = world.alike(callee).unwrap();
        assert_eq!((explained.len(), can.len()), (alike.len(), alike.len()));
        for ((answer, can), alike) in explained.iter().zip(&can).zip(&alike) {
            let verdict = answer.explanation.verdict;
            assert_eq!(verdict == Verdict::Allow, can.allowed);
            let request = world.described(caller, callee, alike, described).unwrap();
            if answer.explanation.stage == policy::Stage::Handshake {
                assert_eq!(verdict, Verdict::Deny);
            } else {
                assert_eq!(verdict, evaluate(&alike.policy, &request).verdict);
            }
            *(if can.allowed { &mut allowed } else { &mut denied }) += 1;
        }
    });
    assert!(allowed > 50 && denied > 50, "{allowed} allowed, {denied} denied");
}

#[test]
fn who_can_names_those_who_can() {
    let mut world = shop();
    for to in CALLEES {
        let callee = world.callee(to, &[]).unwrap();
        for (method, path) in [("POST", "/orders/1"), ("GET", "/orders/1"), ("GET", "/admin")] {
            let described = described(method, path, 8080);
            let who = world.who_can(&callee, &described).unwrap();
            for from in ["shop/payment", "shop/batch", "web/front", "shop/orders"] {
                let caller = world.caller(from).unwrap();
                let can = world.can(&caller, &callee, &described).unwrap().iter().all(|can| can.allowed);
                let identity = caller.identity.as_ref().map(|id| id.as_str());
                let named = who.iter().any(|who| who.identity.as_deref() == identity);
                assert_eq!(can, named, "{from} -> {to} {method} {path}");
            }
        }
    }
}

#[test]
fn names_that_mean_nothing_are_told() {
    let mut world = shop();
    for (to, labels, error) in [
        ("orders", &[][..], "\"orders\" is not NAMESPACE/NAME"),
        ("shop/gone", &[], "no workload shop/gone is known, but shop/orders, shop/payment, web/front"),
        ("shop/x", &["app".to_owned()], "\"app\" is not KEY=VALUE"),
    ] {
        assert_eq!(world.callee(to, labels).unwrap_err().to_string(), error);
    }
    assert!(world.caller("spiffe://UPPER/x").is_err());
    let unknown = world.caller("web/nobody").unwrap();
    assert_eq!(unknown.notes, ["nothing is known of web/nobody: taken for a service account"]);
    let pod = world.caller("web/front-1").unwrap();
    assert_eq!(pod.identity.unwrap().as_str(), "spiffe://cluster.local/ns/web/sa/front");
}
