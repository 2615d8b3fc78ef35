//! Making every call of the table and saying what came of it, for people and as JSON.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::call::{self, Calls, How, Made};
use super::live::{self, Live};
use super::log::{self, Decided, Find, Line};
use super::model::Model;
use super::rows::{ROWS, Row};
use super::shop::{self, FORWARD, Shop};
use super::start;
use super::table::{Colour, Shown, milliseconds, render, render_changes};

/// How long Envoys may take to write their access logs.
const LOGS: Duration = Duration::from_secs(3);

/// Everything that came out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    envoy: String,
    rows: Vec<Shown>,
    live: Option<Live>,
    passed: usize,
    failed: usize,
}

impl Report {
    /// Makes every call once.
    pub(super) async fn make(calls: &Calls, envoy: String) -> Self {
        let mut report = Self { envoy, rows: rows(calls).await, live: None, passed: 0, failed: 0 };
        report.count();
        report
    }

    fn count(&mut self) {
        self.passed = self.rows.iter().filter(|row| row.passed).count();
        self.failed = self.rows.len() - self.passed;
    }

    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// Adds the row of the right that is taken away.
    pub(super) async fn live(&mut self, calls: &Calls) {
        let measured = live::revoke(calls).await;
        let (got, decided_by) = match &measured {
            Ok(live) => ("403".to_owned(), format!("next request, {} ms after saving", live.denied_after_ms)),
            Err(why) => ("not refused".to_owned(), format!("{why:#}")),
        };
        self.rows.push(Shown {
            name: "revoked-while-open",
            caller: "payment's SVID",
            call: "orders POST /orders/42, right revoked",
            expected: "403".to_owned(),
            got,
            passed: measured.is_ok(),
            latency_ms: measured.as_ref().map_or(0.0, |live| live.denied_after_ms),
            decided_by,
            shows: "rights end at once",
        });
        self.live = measured.ok();
        self.count();
    }

    /// Calls again after `files` were saved: what changed and what the control plane has to say, as text.
    pub(super) async fn again(&mut self, calls: &Calls, files: &[String]) -> String {
        let colour = Colour::of_stdout();
        let mut changed: Vec<(String, Shown)> = Vec::new();
        // A change is felt within milliseconds; a row that has not changed after the second look has not changed.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            for row in rows(calls).await {
                if let Some(old) = self.rows.iter_mut().find(|old| old.name == row.name) {
                    if old.got != row.got {
                        changed.push((old.got.clone(), row.clone()));
                    }
                    *old = row;
                }
            }
        }
        let mut text = format!("\n{} saved", files.join(", "));
        text += if changed.is_empty() { ": no row changed\n" } else { ", and changed:\n" };
        if !changed.is_empty() {
            text += &render_changes(&changed, colour);
        }
        for complaint in complaints(&calls.shop).await {
            text += &format!("{}\n", colour.bad(&complaint));
        }
        text
    }

    pub(super) fn text(&self) -> String {
        let colour = Colour::of_stdout();
        let mut text = format!("\n{}", render(&self.rows, colour));
        if let Some(Live { denied_after_ms, still_allowed, allowed_again_after_ms }) = self.live {
            text += &format!(
                "\norders-policy was edited while a keep-alive connection was in use: a request on that same connection was \
                 denied {denied_after_ms} ms\nafter the file was saved ({still_allowed} were still answered until then), and \
                 allowed again {allowed_again_after_ms} ms after it was restored.\n"
            );
        }
        let summary = format!("{} passed, {} failed", self.passed, self.failed);
        let summary = if self.failed == 0 { colour.good(&summary) } else { colour.bad(&summary) };
        text + &format!("\n{summary}\n")
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// What the control plane could not understand, and what it does instead.
async fn complaints(shop: &Shop) -> Vec<String> {
    let (_, body) = call::get(start::monitoring(shop), "/status").await;
    let Ok(status) = serde_json::from_str::<controller::Report>(&body) else { return Vec::new() };
    let mut complaints = Vec::new();
    for object in &status.objects {
        let accepted =
            object.conditions.iter().find(|c| c.kind == "Accepted").map_or("", |c| c.reason.as_str());
        let instead =
            if accepted == "LastGoodVersionKept" { "its last good version stays in force" } else { "closed" };
        for finding in object.findings.iter().filter(|finding| finding.severity == "error") {
            complaints.push(format!("{}: {} ({instead})", object.origin, finding.message));
        }
    }
    let unreadable = status.unreadable.iter();
    complaints
        .extend(unreadable.map(|document| format!("{}: {}", document.origin, document.finding.message)));
    complaints
}

async fn rows(calls: &Calls) -> Vec<Shown> {
    let mut made = Vec::new();
    for row in ROWS {
        // A name of its own each time: an access log also holds earlier runs.
        let id = format!("{}-{}", row.name, unique());
        made.push((row, calls.make(row.caller, row.how, &id).await));
    }
    let deadline = Instant::now() + LOGS;
    let mut model = Model::new(&calls.shop).ok();
    let mut shown = Vec::new();
    for (row, made) in made {
        let mut line = line(&calls.shop, row, &made);
        while line.is_none() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
            line = self::line(&calls.shop, row, &made);
        }
        shown.push(Shown {
            name: row.name,
            caller: row.caller,
            call: row.call,
            expected: row.expected.to_string(),
            got: made.outcome.to_string(),
            passed: made.outcome == row.expected,
            latency_ms: milliseconds(made.latency),
            decided_by: line.map_or_else(|| silence(&made), |line| words(row, &line, model.as_mut())),
            shows: row.shows,
        });
    }
    shown
}

fn unique() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_micros())
}

/// What the access log of the Envoy that was called says about a call.
fn line(shop: &Shop, row: &Row, made: &Made) -> Option<Line> {
    let find = match (row.how, made.from) {
        (How::Line { port }, _) => Find::Peer { spiffe_id: shop::find(row.caller)?.spiffe_id(), port },
        (How::Direct { .. }, Some(from)) => Find::From(from),
        _ => Find::Request(&made.id),
    };
    let workload = shop::find(row.decides)?;
    let ports: Vec<u16> = workload.serves.iter().map(|(port, _)| *port).collect();
    log::read(&shop.access_log(row.decides), &find, &ports)
}

/// For a call of which no access log speaks: the TLS alert, or the beginning of what was answered.
fn silence(made: &Made) -> String {
    if let Some(alert) = &made.alert {
        return format!("TLS alert: {alert}");
    }
    let said: String = made.body.trim().chars().take(60).collect();
    format!("(not in the access log) {said}").trim_end().to_owned()
}

fn words(row: &Row, line: &Line, model: Option<&mut Model>) -> String {
    match line.decided() {
        Some(Decided::Rule(rule)) => rule,
        Some(Decided::Default) => match model.map(|model| model.nearest(row, line)) {
            Some(Ok(nearest)) => format!("default deny ({nearest})"),
            Some(Err(why)) => format!("default deny ({why})"),
            None => "default deny".to_owned(),
        },
        Some(Decided::Token(why)) => format!("istio-system/login: {why}"),
        Some(Decided::NoChain) => "istio-system/default STRICT".to_owned(),
        Some(Decided::Tls(why)) => format!("TLS: {why}"),
        Some(Decided::Passed) => "allowed (TCP logs name no rule)".to_owned(),
        Some(Decided::Other(text)) => text,
        None => "(the access log does not say)".to_owned(),
    }
}

/// What to try with a shop that is left running.
pub(super) fn invitation(shop: &Shop, watch: bool) -> String {
    let at = |workload: &str| shop.on(workload, FORWARD);
    let policy = live::policy(shop);
    let first_edit = format!("sed -i 's/\"POST\"/\"POST\", \"DELETE\"/' {}", policy.display());
    format!(
        "\nThe shop is open until Ctrl-C. Each workload calls through its own Envoy:\n\n  \
         curl -i -H 'Host: gateway.edge:8080' http://{}/shop/orders/42\n  \
         curl -i -H 'Host: orders.default:8080' -X POST http://{}/orders/42\n  \
         curl -i -H 'Host: orders.default:8080' -X POST http://{}/orders/42\n  \
         curl -s http://{}/status\n\nPolicies: {}\nA first edit{}: let the payment service delete orders\n\n  {first_edit}\n\n",
        at("user"),
        at("payment"),
        at("intruder"),
        start::monitoring(shop),
        shop.files().join("policies").display(),
        if watch { " (the rows it changes are printed here)" } else { "" },
    )
}
