//! The signing keys that RequestAuthentications only name the place of: which places are wanted, and what came of them. A
//! rule without keys refuses its issuer's tokens (design decision 5). Fetches nothing: that is `authn::jwks`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use authn::jwks::{Location, Update, Wanted};
use policy::{Jwks, JwtRule, ObjectName, RequestAuthentication};
use tokio::sync::watch;

/// A RequestAuthentication as far as it can be enforced.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) policy: RequestAuthentication,
    /// Issuers whose tokens are refused because there are no keys, each with the reason.
    pub(crate) missing: Vec<String>,
    /// Issuers whose keys are earlier ones, because the last fetch failed, each with the reason.
    pub(crate) stale: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Keys {
    /// Policies that name a place, as they were read.
    policies: BTreeMap<ObjectName, RequestAuthentication>,
    learnt: BTreeMap<Location, Learnt>,
    wanted: watch::Sender<Wanted>,
}

#[derive(Debug)]
struct Learnt {
    keys: Option<Arc<str>>,
    error: Option<String>,
}

impl Keys {
    /// Whoever fetches follows the receiver.
    pub(crate) fn new() -> (Self, watch::Receiver<Wanted>) {
        let (wanted, receiver) = watch::channel(Wanted::new());
        (Self { policies: BTreeMap::new(), learnt: BTreeMap::new(), wanted }, receiver)
    }

    /// Takes over a new version of a policy.
    pub(crate) fn resolve(&mut self, policy: RequestAuthentication) -> Resolved {
        let remote = policy.rules.iter().any(|rule| location(rule).is_some());
        let before = match remote {
            true => self.policies.insert(policy.meta.id.clone(), policy.clone()),
            false => self.policies.remove(&policy.meta.id),
        };
        if remote || before.is_some() {
            self.want();
        }
        self.with_keys(policy)
    }

    /// The policy was deleted.
    pub(crate) fn forget(&mut self, id: &ObjectName) {
        if self.policies.remove(id).is_some() {
            self.want();
        }
    }

    /// Takes over what came of a place: the policies that it changes.
    pub(crate) fn learn(&mut self, update: Update) -> Vec<Resolved> {
        let Update { location: place, keys, error } = update;
        // Told before it was known that nobody wants it any more.
        if !self.wanted.borrow().contains_key(&place) {
            return Vec::new();
        }
        self.learnt.insert(place.clone(), Learnt { keys, error });
        let names = |policy: &&RequestAuthentication| {
            policy.rules.iter().any(|rule| location(rule).as_ref() == Some(&place))
        };
        self.policies.values().filter(names).map(|policy| self.with_keys(policy.clone())).collect()
    }

    fn with_keys(&self, mut policy: RequestAuthentication) -> Resolved {
        let (mut missing, mut stale) = (Vec::new(), Vec::new());
        for rule in &mut policy.rules {
            let Some(place) = location(rule) else { continue };
            rule.jwks = match self.learnt.get(&place) {
                Some(Learnt { keys: Some(keys), error }) => {
                    stale.extend(error.as_ref().map(|error| format!("{} ({error})", rule.issuer)));
                    Jwks::Inline(keys.clone())
                }
                learnt => {
                    let error = learnt.and_then(|learnt| learnt.error.as_deref());
                    missing.push(match error {
                        Some(error) => format!("{} ({error})", rule.issuer),
                        None => format!("{} (not fetched yet)", rule.issuer),
                    });
                    Jwks::RefuseAll
                }
            };
        }
        Resolved { policy, missing, stale }
    }

    /// Brings up to date what is to be fetched.
    fn want(&mut self) {
        let mut wanted = Wanted::new();
        for rule in self.policies.values().flat_map(|policy| &policy.rules) {
            let Some(place) = location(rule) else { continue };
            let timeout = wanted.entry(place).or_default();
            // Where several rules name the place, the most patient decides.
            *timeout = Duration::from_millis(rule.timeout_ms).max(*timeout);
        }
        self.learnt.retain(|place, _| wanted.contains_key(place));
        self.wanted.send_if_modified(|current| {
            let changed = *current != wanted;
            *current = wanted;
            changed
        });
    }
}

/// Where the keys of `rule` are; `None` if they need not be fetched.
fn location(rule: &JwtRule) -> Option<Location> {
    match &rule.jwks {
        Jwks::Remote(Some(uri)) => Some(Location::Uri(uri.as_str().into())),
        Jwks::Remote(None) => Some(Location::Issuer(rule.issuer.as_str().into())),
        Jwks::Inline(_) | Jwks::RefuseAll => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::{Attachment, Meta};

    fn rule(issuer: &str, jwks: Jwks, timeout_ms: u64) -> JwtRule {
        JwtRule {
            issuer: issuer.to_owned(),
            audiences: Vec::new(),
            jwks,
            from_headers: Vec::new(),
            from_params: Vec::new(),
            from_cookies: Vec::new(),
            output_payload_to_header: None,
            forward_original_token: false,
            output_claim_to_headers: Vec::new(),
            space_delimited_claims: Vec::new(),
            timeout_ms,
            presence: policy::Presence::Optional,
        }
    }

    fn policy(name: &str, rules: Vec<JwtRule>) -> RequestAuthentication {
        let id = ObjectName::new("foo", name);
        let meta = Meta { id, created: 0, dry_run: false, drain_on_revoke: false };
        RequestAuthentication { meta, attachment: Attachment::Namespace, rules }
    }

    fn remote(uri: &str) -> Jwks {
        Jwks::Remote(Some(uri.to_owned()))
    }

    fn told(uri: &str, keys: Option<&str>, error: Option<&str>) -> Update {
        let location = Location::Uri(uri.into());
        Update { location, keys: keys.map(Into::into), error: error.map(Into::into) }
    }

    #[test]
    fn a_rule_refuses_until_its_keys_come_and_whenever_they_are_given_up() {
        let (mut keys, _wanted) = Keys::new();
        let here = rule("here", Jwks::Inline("own".into()), 1);
        let first = keys.resolve(policy("p", vec![rule("there", remote("http://a"), 5), here]));
        assert_eq!(first.policy.rules[0].jwks, Jwks::RefuseAll);
        assert_eq!(first.policy.rules[1].jwks, Jwks::Inline("own".into()));
        assert_eq!(first.missing, ["there (not fetched yet)"]);
        let [second] = &keys.learn(told("http://a", Some("set"), None))[..] else { panic!("one policy") };
        assert_eq!(second.policy.rules[0].jwks, Jwks::Inline("set".into()));
        assert!(second.missing.is_empty());
        assert!(second.stale.is_empty());
        // A fetch that fails leaves them, and says so.
        let [kept] = &keys.learn(told("http://a", Some("set"), Some("slow")))[..] else {
            panic!("one policy")
        };
        assert_eq!(kept.policy, second.policy);
        assert_eq!((&kept.missing[..], &kept.stale[..]), (&[][..], &["there (slow)".to_owned()][..]));
        // A new version of the policy has them at once.
        let other = keys.resolve(policy("q", vec![rule("there", remote("http://a"), 5)]));
        assert_eq!(other.policy.rules[0].jwks, Jwks::Inline("set".into()));
        let both = keys.learn(told("http://a", None, Some("down")));
        assert_eq!(both.len(), 2);
        assert!(both.iter().all(|one| one.policy.rules[0].jwks == Jwks::RefuseAll));
        assert_eq!(both[0].missing, ["there (down)"]);
    }

    #[test]
    fn what_no_policy_names_is_neither_fetched_nor_kept() {
        let (mut keys, wanted) = Keys::new();
        let discovered = rule("https://issuer", Jwks::Remote(None), 7);
        keys.resolve(policy("p", vec![rule("there", remote("http://a"), 5), discovered]));
        keys.resolve(policy("q", vec![rule("there", remote("http://a"), 9)]));
        let places = |wanted: &watch::Receiver<Wanted>| wanted.borrow().clone();
        let milliseconds = Duration::from_millis;
        let a = (Location::Uri("http://a".into()), milliseconds(9));
        let issuer = (Location::Issuer("https://issuer".into()), milliseconds(7));
        assert_eq!(places(&wanted), Wanted::from([a.clone(), issuer]));
        keys.learn(told("http://a", Some("set"), None));
        keys.forget(&ObjectName::new("foo", "p"));
        assert_eq!(places(&wanted), Wanted::from([a]));
        keys.resolve(policy("q", vec![rule("there", Jwks::Inline("own".into()), 9)]));
        assert!(places(&wanted).is_empty());
        assert!(keys.learn(told("http://a", Some("late"), None)).is_empty());
        // Old keys are not taken up again.
        let again = keys.resolve(policy("q", vec![rule("there", remote("http://a"), 9)]));
        assert_eq!(again.policy.rules[0].jwks, Jwks::RefuseAll);
    }
}
