//! What the CA signs with and whom it has told to trust what, as text in a Secret. No I/O.
//!
//! Every replica signs with what the Secret says. A change of roots is in it as a state, so that whoever is killed in the
//! middle of one goes on where it was.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize};
use spiffe::{Authority, AuthorityError, BundleError, KeyError, PrivateKey, TrustBundle, TrustDomain};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::ROOT_LIFETIME;

/// Keys of Istio's Secret `cacerts`; ours has the first three, too.
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";
/// Keys of our Secret besides: the signer's own roots, the successor, and how far a change of roots is. `root-cert.pem`
/// holds everything that is to be trusted, for tools; it is written, never read.
const OWN_ROOTS: &str = "ca-root-cert.pem";
const NEXT: [&str; 4] =
    ["next-ca-cert.pem", "next-ca-key.pem", "next-cert-chain.pem", "next-ca-root-cert.pem"];
const ROTATION: &str = "rotation.json";
/// Longest value in bytes that is read.
const MAX_BYTES: usize = 64 * 1024;
/// Whoever reads the list of Secrets should see what this one is.
const LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/managed-by", "countersign-ca"), ("app.kubernetes.io/part-of", "countersign")];

/// Why a Secret's content cannot be used. Never quotes it.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is no text or too long")]
    Text(&'static str),
    #[error("{KEY} is no private key")]
    Key(#[source] KeyError),
    #[error("the certificates do not fit together")]
    Authority(#[source] AuthorityError),
    #[error("a root certificate cannot be read")]
    Roots(#[source] BundleError),
    #[error("{ROTATION} cannot be read")]
    Rotation,
    #[error("the root is for the trust domain {found}, not for {expected}")]
    TrustDomain { found: TrustDomain, expected: TrustDomain },
    #[error("a new root cannot be made")]
    Create(#[source] AuthorityError),
}

/// A signing certificate with its key and what leads to its roots, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Material {
    certificate: String,
    key: Zeroizing<String>,
    chain: String,
    roots: String,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

type Data = BTreeMap<String, ByteString>;

impl Material {
    /// A new self-signed root for `domain`.
    pub(crate) fn create(domain: &TrustDomain, now: OffsetDateTime) -> Result<Self, MaterialError> {
        let authority = Authority::create(domain, now, ROOT_LIFETIME).map_err(MaterialError::Create)?;
        let root = authority.root().to_pem();
        let key = authority.key().to_pem();
        Ok(Self { certificate: root.clone(), key, chain: String::new(), roots: root })
    }

    /// What an operator put into Istio's Secret `cacerts`.
    pub(crate) fn plugged(secret: &Secret, domain: &TrustDomain) -> Result<Self, MaterialError> {
        Self::read(secret.data.as_ref(), [CERTIFICATE, KEY, CHAIN, ROOTS], domain)
    }

    fn read(
        data: Option<&Data>,
        keys: [&'static str; 4],
        domain: &TrustDomain,
    ) -> Result<Self, MaterialError> {
        let [certificate, key, chain, roots] = keys;
        let material = Self {
            certificate: text(data, certificate)?.ok_or(MaterialError::Missing(certificate))?,
            key: Zeroizing::new(text(data, key)?.ok_or(MaterialError::Missing(key))?),
            chain: text(data, chain)?.unwrap_or_default(),
            roots: text(data, roots)?.ok_or(MaterialError::Missing(roots))?,
        };
        let authority = material.authority()?;
        // A root of somebody else's making often names no trust domain; ours does, and then it must be the right one.
        match authority.trust_domain() {
            Some(found) if found != *domain => {
                Err(MaterialError::TrustDomain { found, expected: domain.clone() })
            }
            _ => Ok(material),
        }
    }

    fn write(&self, keys: [&'static str; 4], data: &mut Data) {
        let Self { certificate, key, chain, roots } = self;
        for (name, text) in keys.into_iter().zip([certificate, &**key, chain, roots]) {
            data.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
        }
    }

    /// What signs.
    pub(crate) fn authority(&self) -> Result<Authority, MaterialError> {
        let key = PrivateKey::from_pem(&self.key).map_err(MaterialError::Key)?;
        Authority::plugged(self.certificate.as_bytes(), key, self.chain.as_bytes(), self.roots.as_bytes())
            .map_err(MaterialError::Authority)
    }

    pub(crate) fn roots_pem(&self) -> &str {
        &self.roots
    }

    /// Whom its leaves are trusted by.
    pub(crate) fn roots(&self) -> Result<TrustBundle, MaterialError> {
        TrustBundle::from_pem(self.roots.as_bytes()).map_err(MaterialError::Roots)
    }
}

fn text(data: Option<&Data>, key: &'static str) -> Result<Option<String>, MaterialError> {
    let Some(ByteString(bytes)) = data.and_then(|data| data.get(key)) else { return Ok(None) };
    if bytes.len() > MAX_BYTES {
        return Err(MaterialError::Text(key));
    }
    String::from_utf8(bytes.clone()).map(Some).map_err(|_| MaterialError::Text(key))
}

/// Whose the signing certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// Made here, and replaced in time.
    Own,
    /// The operator's, who replaces it.
    Plugged,
}

/// What signs next, once its roots are everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) material: Material,
    pub(crate) origin: Origin,
    /// Since when its roots are in every namespace.
    pub(crate) published: Option<OffsetDateTime>,
    /// Not to wait for agents that learn of roots only with their next certificate.
    pub(crate) at_once: bool,
}

/// Roots that no longer sign, and until when leaves of theirs may live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retired {
    pub(crate) roots: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) until: OffsetDateTime,
}

/// Everything in the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) signer: Material,
    pub(crate) origin: Origin,
    pub(crate) next: Option<Next>,
    pub(crate) retired: Vec<Retired>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotation {
    origin: Origin,
    next_origin: Option<Origin>,
    #[serde(with = "time::serde::rfc3339::option", default)]
    next_published: Option<OffsetDateTime>,
    #[serde(default)]
    next_at_once: bool,
    #[serde(default)]
    retired: Vec<Retired>,
}

impl State {
    pub(crate) fn new(signer: Material, origin: Origin) -> Self {
        Self { signer, origin, next: None, retired: Vec::new() }
    }

    /// Everything that is to be trusted now: what signs first, then what will sign or has signed.
    pub(crate) fn bundle(&self) -> Result<TrustBundle, MaterialError> {
        let others = self.others()?;
        Ok(others.iter().fold(self.signer.roots()?, TrustBundle::union))
    }

    /// The roots besides the signer's.
    pub(crate) fn others(&self) -> Result<Vec<TrustBundle>, MaterialError> {
        let next = self.next.iter().map(|next| next.material.roots());
        let retired = self
            .retired
            .iter()
            .map(|retired| TrustBundle::from_pem(retired.roots.as_bytes()).map_err(MaterialError::Roots));
        next.chain(retired).collect()
    }

    /// Reads our Secret.
    pub(crate) fn from_secret(secret: &Secret, domain: &TrustDomain) -> Result<Self, MaterialError> {
        let data = secret.data.as_ref();
        let signer = Material::read(data, [CERTIFICATE, KEY, CHAIN, OWN_ROOTS], domain)?;
        let rotation = text(data, ROTATION)?.ok_or(MaterialError::Missing(ROTATION))?;
        let Rotation { origin, next_origin, next_published, next_at_once, retired } =
            serde_json::from_str(&rotation).map_err(|_| MaterialError::Rotation)?;
        let next = match next_origin {
            None => None,
            Some(origin) => Some(Next {
                material: Material::read(data, NEXT, domain)?,
                origin,
                published: next_published,
                at_once: next_at_once,
            }),
        };
        let state = Self { signer, origin, next, retired };
        state.bundle()?;
        Ok(state)
    }

    /// The Secret `name` in `namespace` for it; `version` is the one that it replaces.
    pub(crate) fn to_secret(
        &self,
        namespace: &str,
        name: &str,
        version: Option<&str>,
    ) -> Result<Secret, MaterialError> {
        let Self { signer, origin, next, retired } = self;
        let mut data = Data::new();
        signer.write([CERTIFICATE, KEY, CHAIN, OWN_ROOTS], &mut data);
        if let Some(next) = next {
            next.material.write(NEXT, &mut data);
        }
        let rotation = Rotation {
            origin: *origin,
            next_origin: next.as_ref().map(|next| next.origin),
            next_published: next.as_ref().and_then(|next| next.published),
            next_at_once: next.as_ref().is_some_and(|next| next.at_once),
            retired: retired.clone(),
        };
        let rotation = serde_json::to_vec(&rotation).map_err(|_| MaterialError::Rotation)?;
        data.insert(ROTATION.to_owned(), ByteString(rotation));
        data.insert(ROOTS.to_owned(), ByteString(self.bundle()?.to_pem().into_bytes()));
        let labels = LABELS.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            resource_version: version.map(str::to_owned),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        };
        Ok(Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() })
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) mod testing {
    //! Material below a root of the test's own.

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

    use super::Material;

    pub(crate) type Root = (CertificateParams, KeyPair, String);

    fn ca(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    /// An intermediate below `root`, or below a new one.
    pub(crate) fn intermediate(root: Option<Root>) -> (Root, Material) {
        let (params, key, pem) = root.unwrap_or_else(|| {
            let (params, key) = (ca("root"), KeyPair::generate().unwrap());
            let pem = params.self_signed(&key).unwrap().pem();
            (params, key, pem)
        });
        let own = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&params, &key);
        let certificate = ca("intermediate").signed_by(&own, &issuer).unwrap().pem();
        let material = Material {
            chain: format!("{certificate}{pem}"),
            certificate,
            key: own.serialize_pem().into(),
            roots: pem.clone(),
        };
        ((params, key, pem), material)
    }
}
