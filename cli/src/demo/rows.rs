//! The rows of the demo's table: who calls what, what must come of it, and which principle that shows.

use super::call::{How, Outcome};
use super::credentials::{Certificate, Token};
use How::{Direct, Http, Line, Say};

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    /// A stable name, for `-o json` and for finding the call in access logs.
    pub(super) name: &'static str,
    /// A workload, or what stands in for one.
    pub(super) caller: &'static str,
    /// The workload whose Envoy decides.
    pub(super) decides: &'static str,
    pub(super) call: &'static str,
    pub(super) how: How,
    pub(super) expected: Outcome,
    pub(super) shows: &'static str,
}

const fn http(to: &'static str, method: &'static str, path: &'static str) -> How {
    Http { to, method, path, token: None }
}

const fn account(token: Option<Token>) -> How {
    Http { to: "gateway.edge:8080", method: "GET", path: "/account/me", token }
}

const fn say(to: &'static str, token: Option<Token>, tenant: Option<&'static str>) -> How {
    Say { to, token, tenant }
}

/// `name | caller | decides | call | how | expected | shows`.
macro_rules! rows {
    ($($name:literal $caller:literal -> $decides:literal, $call:literal, $how:expr => $expected:expr, $shows:literal;)*) => {
        &[$(Row { name: $name, caller: $caller, decides: $decides, call: $call, how: $how, expected: $expected, shows: $shows }),*]
    };
}

const GATEWAY: &str = "gateway.edge:8080";
const ORDERS: &str = "orders.default:8080";
const PAYMENT: &str = "payment.default:9090";
const STOCK: &str = "inventory.stock:9090";

/// Every row, in the order in which they are called and printed.
pub(super) const ROWS: &[Row] = rows! {
    "whole-chain" "user" -> "gateway", "gateway GET /shop/orders/42", http(GATEWAY, "GET", "/shop/orders/42") => Outcome::Http(200), "an identity for every hop";
    "shortcut" "user" -> "orders", "orders GET /orders/42", http(ORDERS, "GET", "/orders/42") => Outcome::Http(403), "no way round the gateway";
    "right-identity" "payment" -> "orders", "orders POST /orders/42", http(ORDERS, "POST", "/orders/42") => Outcome::Http(200), "the right identity";
    "second-policy" "gateway" -> "orders", "orders GET /orders/42", http(ORDERS, "GET", "/orders/42") => Outcome::Http(200), "policies add up";
    "wrong-identity" "gateway" -> "orders", "orders POST /orders/42", http(ORDERS, "POST", "/orders/42") => Outcome::Http(403), "another identity, another right";
    "intruder" "intruder" -> "orders", "orders POST /orders/42", http(ORDERS, "POST", "/orders/42") => Outcome::Http(403), "known is not allowed";
    "wrong-method" "payment" -> "orders", "orders DELETE /orders/42", http(ORDERS, "DELETE", "/orders/42") => Outcome::Http(403), "least privilege: the method";
    "wrong-path" "payment" -> "orders", "orders POST /refunds/42", http(ORDERS, "POST", "/refunds/42") => Outcome::Http(403), "least privilege: the path";
    "path-trick" "payment" -> "orders", "orders POST /orders/../refunds/42", http(ORDERS, "POST", "/orders/../refunds/42") => Outcome::Http(403), "paths are normalised first";
    "own-certificate" "payment's SVID" -> "orders", "orders POST /orders/42, by hand", Direct { tls: Some(Certificate::Payment) } => Outcome::Http(200), "identity is the certificate";
    "plaintext" "no sidecar" -> "orders", "orders POST /orders/42, plaintext", Direct { tls: None } => Outcome::Closed, "nothing without mutual TLS";
    "no-certificate" "no sidecar" -> "orders", "orders, TLS, no certificate", Direct { tls: Some(Certificate::None) } => Outcome::TlsRefused, "both sides prove who they are";
    "expired-certificate" "no sidecar" -> "orders", "orders, certificate expired", Direct { tls: Some(Certificate::Expired) } => Outcome::TlsRefused, "identities are short-lived";
    "foreign-certificate" "no sidecar" -> "orders", "orders, payment's name, foreign CA", Direct { tls: Some(Certificate::Foreign) } => Outcome::TlsRefused, "one root of trust";
    "other-trust-domain" "no sidecar" -> "orders", "orders, other trust domain", Direct { tls: Some(Certificate::OtherDomain) } => Outcome::TlsRefused, "one trust domain";
    "token-missing" "user" -> "gateway", "gateway GET /account/me, no token", account(None) => Outcome::Http(403), "the user is asked, too";
    "token-valid" "user" -> "gateway", "gateway GET /account/me, token", account(Some(Token::Valid)) => Outcome::Http(200), "workload and user, both";
    "token-expired" "user" -> "gateway", "gateway GET /account/me, expired token", account(Some(Token::Expired)) => Outcome::Http(401), "tokens run out";
    "token-forged" "user" -> "gateway", "gateway GET /account/me, forged token", account(Some(Token::Forged)) => Outcome::Http(401), "signatures are checked";
    "tcp-allowed" "inventory" -> "database", "database:5432 get 42", Line { port: 5432 } => Outcome::Answered, "raw TCP by identity";
    "tcp-wrong-port" "inventory" -> "database", "database:5433 get 42", Line { port: 5433 } => Outcome::Closed, "raw TCP by port";
    "tcp-wrong-identity" "orders" -> "database", "database:5432 get 42", Line { port: 5432 } => Outcome::Closed, "only through inventory";
    "tcp-intruder" "intruder" -> "database", "database:5432 get 42", Line { port: 5432 } => Outcome::Closed, "a network path is no right";
    "grpc-identity" "orders" -> "inventory", "inventory gRPC Say", say(STOCK, None, None) => Outcome::Grpc(0), "gRPC by identity";
    "grpc-intruder" "intruder" -> "inventory", "inventory gRPC Say", say(STOCK, None, None) => Outcome::Grpc(7), "gRPC by identity";
    "grpc-token" "gateway" -> "payment", "payment gRPC Say, token", say(PAYMENT, Some(Token::Valid), None) => Outcome::Grpc(0), "gRPC by token";
    "grpc-token-missing" "gateway" -> "payment", "payment gRPC Say, no token", say(PAYMENT, None, None) => Outcome::Grpc(7), "gRPC by token";
    "grpc-token-expired" "gateway" -> "payment", "payment gRPC Say, expired token", say(PAYMENT, Some(Token::Expired), None) => Outcome::Grpc(16), "gRPC by token";
    "grpc-metadata" "orders" -> "payment", "payment gRPC Say, x-tenant: acme", say(PAYMENT, None, Some("acme")) => Outcome::Grpc(0), "gRPC by metadata";
    "grpc-wrong-metadata" "orders" -> "payment", "payment gRPC Say, x-tenant: other", say(PAYMENT, None, Some("other")) => Outcome::Grpc(7), "gRPC by metadata";
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::shop::WORKLOADS;

    #[test]
    fn rows_have_names_of_their_own_and_speak_of_workloads_that_exist() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
        assert!(ROWS.len() >= 18);
        for row in ROWS {
            let known = |name: &str| WORKLOADS.iter().any(|w| w.name == name);
            assert!(known(row.decides), "{}", row.name);
            assert!(known(row.caller) || matches!(row.how, Direct { .. }), "{}", row.name);
        }
    }

    /// Both a refusal and a success for each way to be judged: a table that only refuses proves nothing.
    #[test]
    fn every_kind_of_call_is_allowed_and_refused_somewhere() {
        type Kind = fn(&How) -> bool;
        let kinds: [Kind; 4] = [
            |how| matches!(how, Http { .. }),
            |how| matches!(how, Say { .. }),
            |how| matches!(how, Line { .. }),
            |how| matches!(how, Direct { .. }),
        ];
        let good =
            |row: &&Row| matches!(row.expected, Outcome::Http(200) | Outcome::Grpc(0) | Outcome::Answered);
        for kind in kinds {
            let of_kind: Vec<&Row> = ROWS.iter().filter(|row| kind(&row.how)).collect();
            assert!(of_kind.iter().any(good) && !of_kind.iter().all(good));
        }
    }
}
