//! What is served: two named secrets, or nothing yet.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use zeroize::Zeroizing;

pub(crate) const TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Istio's names.
pub(crate) const CERTIFICATE: &str = "default";
pub(crate) const BUNDLE: &str = "ROOTCA";

/// A certificate chain and its key as PEM.
pub(crate) struct KeyPair {
    pub(crate) chain: String,
    pub(crate) key: Zeroizing<String>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").finish_non_exhaustive()
    }
}

/// The present secrets. `version` counts changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets {
    certificate: Option<Arc<KeyPair>>,
    bundle: Option<Arc<str>>,
    version: u64,
}

impl Secrets {
    pub(crate) fn set_certificate(&mut self, certificate: Option<KeyPair>) {
        self.certificate = certificate.map(Arc::new);
        self.version += 1;
    }

    pub(crate) fn set_bundle(&mut self, pem: String) {
        self.bundle = Some(pem.into());
        self.version += 1;
    }

    pub(crate) fn has_certificate(&self) -> bool {
        self.certificate.is_some()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The named secret, encoded; `None` while there is none.
    pub(crate) fn get(&self, name: &str) -> Option<Any> {
        let inline = |text: &str| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text.to_owned())),
                ..Default::default()
            })
        };
        let content = match name {
            CERTIFICATE => {
                let pair = self.certificate.as_ref()?;
                secret::Type::TlsCertificate(TlsCertificate {
                    certificate_chain: inline(&pair.chain),
                    private_key: inline(&pair.key),
                    ..Default::default()
                })
            }
            BUNDLE => secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(self.bundle.as_ref()?),
                ..Default::default()
            }),
            _ => return None,
        };
        let secret = Secret { name: name.to_owned(), r#type: Some(content) };
        Some(Any { type_url: TYPE_URL.to_owned(), value: secret.encode_to_vec() })
    }
}
