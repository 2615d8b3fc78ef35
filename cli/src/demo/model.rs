//! What our own model says about a call that no rule allowed: Envoy's log says only that none did.

use anyhow::{Context, Result, ensure};
use controller::offline::Offline;
use policy::{Deciding, Request, evaluate_with_nearest};

use super::call::How;
use super::credentials::{self, Token};
use super::log::{self, Line};
use super::rows::Row;
use super::shop::{Shop, find};
use super::watch::Files;

/// The policies of the shop's files as they are now.
pub(super) struct Model(Offline);

impl Model {
    /// # Errors
    /// If the files cannot be read.
    pub(super) fn new(shop: &Shop) -> Result<Self> {
        let text = std::fs::read_to_string(shop.mesh_config())?;
        let (mesh, _) = crds::mesh_config::read(&text).ok().context("the mesh configuration")?;
        let mut objects = Vec::new();
        for file in Files::of(&shop.files()).paths() {
            let documents = crds::read(&std::fs::read_to_string(file)?, &file.display().to_string());
            objects.extend(documents.into_iter().filter_map(|document| match document.content {
                crds::Content::Object(object) => Some(*object),
                _ => None,
            }));
        }
        Ok(Self(Offline::new(mesh, objects)))
    }

    /// The policy that came closest to allowing a call, and its fields that did not match: `NAME: FIELDS`.
    ///
    /// # Errors
    /// If the model does not agree that it is a default deny, or no rule could allow such a call.
    pub(super) fn nearest(&mut self, row: &Row, line: &Line) -> Result<String> {
        let all = self.0.workloads();
        let workload =
            all.iter().find(|workload| *workload.name == *row.decides).context("not registered")?;
        let decision = evaluate_with_nearest(&*self.0.effective(workload)?, &request(row, line));
        ensure!(decision.deciding == Deciding::DefaultDeny, "the model says: {}", decision.deciding);
        let miss = decision.nearest.context("no rule could allow it")?;
        let field = |name: &str| name.rsplit_once('.').map_or(name, |(_, last)| last).to_owned();
        let fields: Vec<String> = miss.failed.iter().map(|mismatch| field(&mismatch.field)).collect();
        let rule = log::rule(&miss.rule).unwrap_or(miss.rule);
        let policy = rule.split(['/', ' ']).nth(1).unwrap_or(&rule);
        Ok(format!("{policy}: {}", fields.join(", ")))
    }
}

/// The call as the called Envoy saw it.
fn request(row: &Row, line: &Line) -> Request {
    let port = line.local_port();
    let (mut request, token, tenant) = match row.how {
        How::Line { .. } => (Request::tcp(port), None, None),
        How::Http { token, .. } => (Request::http(port), token, None),
        How::Say { token, tenant, .. } => (Request::http(port), token, tenant),
        How::Direct { .. } => (Request::http(port), None, None),
    };
    request.peer =
        vec![find(row.caller).map_or_else(|| credentials::PAYMENT.to_owned(), |caller| caller.spiffe_id())];
    request.method = line.method.clone().unwrap_or_default();
    request.path = line.path.clone().unwrap_or_default();
    if token == Some(Token::Valid) {
        request.claims = credentials::claims(Token::Valid).as_object().cloned();
    }
    request.headers.extend(tenant.map(|tenant| ("x-tenant".to_owned(), tenant.to_owned())));
    request
}
