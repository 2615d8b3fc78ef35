//! What the API server's answer says of the caller. Pure.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use time::OffsetDateTime;

use super::{Pod, TokenError, TokenIdentity};

/// Keys under which the API server tells the pod that a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// The group of every service account.
const GROUP: &str = "system:serviceaccounts";

/// The caller, if `status` says that the token is a service account's, and for `audience`.
pub(super) fn identity(
    status: &TokenReviewStatus,
    audience: &str,
    expires: OffsetDateTime,
) -> Result<TokenIdentity, TokenError> {
    let TokenReviewStatus { audiences, authenticated, error, user } = status;
    let failed = error.as_ref().is_some_and(|error| !error.is_empty());
    if failed || *authenticated != Some(true) {
        return Err(TokenError::Unknown);
    }
    // An API server (or a webhook behind it) that does not know of audiences accepts every token and leaves this empty.
    if !audiences.iter().flatten().any(|said| said == audience) {
        return Err(TokenError::UnsaidAudience);
    }
    let UserInfo { extra, groups, uid: _, username } = user.as_ref().ok_or(TokenError::NotServiceAccount)?;
    if !groups.iter().flatten().any(|group| group == GROUP) {
        return Err(TokenError::NotServiceAccount);
    }
    let (namespace, service_account) =
        username.as_deref().and_then(service_account).ok_or(TokenError::NotServiceAccount)?;
    let only = |key| match extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice) {
        None | Some([]) => Ok(None),
        Some([value]) if !value.is_empty() => Ok(Some(Arc::<str>::from(value.as_str()))),
        Some(_) => Err(TokenError::Pod),
    };
    let pod = match (only(POD_NAME)?, only(POD_UID)?) {
        (None, None) => None,
        (Some(name), Some(uid)) => Some(Pod { name, uid }),
        _ => return Err(TokenError::Pod),
    };
    Ok(TokenIdentity { namespace, service_account, pod, expires })
}

/// `system:serviceaccount:NAMESPACE:NAME`, exactly.
fn service_account(username: &str) -> Option<(Arc<str>, Arc<str>)> {
    let mut parts = username.split(':');
    let (Some("system"), Some("serviceaccount"), Some(namespace), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    (!namespace.is_empty() && !name.is_empty()).then(|| (namespace.into(), name.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn good() -> TokenReviewStatus {
        let extra = [(POD_NAME, "orders-1"), (POD_UID, "u-1")]
            .map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        TokenReviewStatus {
            audiences: Some(vec!["istio-ca".to_owned()]),
            authenticated: Some(true),
            error: None,
            user: Some(UserInfo {
                extra: Some(BTreeMap::from(extra)),
                groups: Some(vec!["system:serviceaccounts".to_owned(), "system:authenticated".to_owned()]),
                uid: None,
                username: Some("system:serviceaccount:shop:orders".to_owned()),
            }),
        }
    }

    fn judged(change: impl FnOnce(&mut TokenReviewStatus)) -> Result<TokenIdentity, TokenError> {
        let mut status = good();
        change(&mut status);
        identity(&status, "istio-ca", OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_good_answer_names_service_account_and_pod() {
        let identity = judged(|_| {}).unwrap();
        assert_eq!((&*identity.namespace, &*identity.service_account), ("shop", "orders"));
        let pod = identity.pod.clone().unwrap();
        assert_eq!((&*pod.name, &*pod.uid), ("orders-1", "u-1"));
        let domain = "cluster.local".parse().unwrap();
        assert_eq!(identity.spiffe_id(&domain).unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
        assert_eq!(judged(|status| status.user.as_mut().unwrap().extra = None).unwrap().pod, None);
    }

    #[test]
    fn everything_else_is_refused() {
        fn user(status: &mut TokenReviewStatus) -> &mut UserInfo {
            status.user.as_mut().unwrap()
        }
        let name = |name: &'static str| judged(move |status| user(status).username = Some(name.to_owned()));
        assert_eq!(judged(|status| status.authenticated = None), Err(TokenError::Unknown));
        assert_eq!(judged(|status| status.authenticated = Some(false)), Err(TokenError::Unknown));
        assert_eq!(judged(|status| status.error = Some("half".to_owned())), Err(TokenError::Unknown));
        assert_eq!(judged(|status| status.audiences = None), Err(TokenError::UnsaidAudience));
        let other = Some(vec!["https://kubernetes.default.svc".to_owned()]);
        assert_eq!(judged(|status| status.audiences = other), Err(TokenError::UnsaidAudience));
        assert_eq!(judged(|status| status.user = None), Err(TokenError::NotServiceAccount));
        assert_eq!(judged(|status| user(status).groups = None), Err(TokenError::NotServiceAccount));
        for username in [
            "admin",
            "",
            "system:serviceaccount:shop",
            "system:serviceaccount::orders",
            "system:serviceaccount:shop:",
            "system:serviceaccount:shop:orders:more",
            "xsystem:serviceaccount:shop:orders",
            "system:node:a:b",
        ] {
            assert_eq!(name(username), Err(TokenError::NotServiceAccount), "{username}");
        }
        let extra = |key: &'static str, values: Vec<&'static str>| {
            judged(move |status| {
                let values = values.into_iter().map(str::to_owned).collect();
                user(status).extra.as_mut().unwrap().insert(key.to_owned(), values);
            })
        };
        for values in [vec![], vec![""], vec!["a", "b"]] {
            assert_eq!(extra(POD_NAME, values.clone()), Err(TokenError::Pod), "{values:?}");
            assert_eq!(extra(POD_UID, values.clone()), Err(TokenError::Pod), "{values:?}");
        }
    }
}
