//! TokenReview by a Kubernetes API server.

use k8s_openapi::{
    api::authentication::v1::{TokenReview, TokenReviewSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};

use super::{NoAnswer, Review, Reviewing};

/// The API server behind a client.
#[derive(Clone)]
pub struct ApiServer(Api<TokenReview>);

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl ApiServer {
    /// The one that `client` talks to.
    pub fn new(client: kube::Client) -> Self {
        Self(Api::all(client))
    }
}

impl Review for ApiServer {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> Reviewing<'a> {
        Box::pin(async move {
            let spec =
                TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) };
            let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
            // The error holds what the API server says, never what was asked.
            let answer = self.0.create(&PostParams::default(), &review).await;
            let answer = answer.map_err(|error| NoAnswer(error.to_string()))?;
            answer.status.ok_or_else(|| NoAnswer("the API server's answer has no status".to_owned()))
        })
    }
}
