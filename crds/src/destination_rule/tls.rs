//! `tls` of a DestinationRule: the rules of Istio's ValidateTLS (semantics §1.6). It opens no file: all of them are
//! at the proxies.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Context;
use crate::finding::Issues;
use crate::path::At;

/// `tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ClientTlsSettings {
    /// DISABLE (also if left out): plaintext. SIMPLE: TLS. MUTUAL: TLS with a certificate from files. ISTIO_MUTUAL: mesh
    /// mTLS, never anything else.
    pub mode: Option<TlsMode>,
    /// MUTUAL: path of the client's certificate at the proxy.
    pub client_certificate: String,
    /// MUTUAL: path of its private key at the proxy.
    pub private_key: String,
    /// Path of the roots that the server's certificate must chain to; those of the system, if left out.
    pub ca_certificates: String,
    /// Path of a list of revoked certificates at the proxy.
    pub ca_crl: String,
    /// A Secret instead of files: cannot be had by sidecars here, so that nothing is sent.
    pub credential_name: String,
    /// Names of which the server's certificate must carry one.
    pub subject_alt_names: Vec<String>,
    /// The name that is asked for in the TLS handshake; the host that is called, if left out.
    pub sni: String,
    /// Takes whatever certificate the server has.
    pub insecure_skip_verify: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    #[default]
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

impl ClientTlsSettings {
    pub(super) fn read(self, context: &Context<'_>, at: &At<'_>, issues: &mut Issues) -> mesh::ClientTls {
        self.validate(context, at, issues);
        let Self {
            mode,
            client_certificate,
            private_key,
            ca_certificates,
            ca_crl,
            credential_name,
            subject_alt_names,
            sni,
            insecure_skip_verify,
        } = self;
        let mut certificate = None;
        match mode.unwrap_or_default() {
            TlsMode::Disable => return mesh::ClientTls::Disable,
            TlsMode::IstioMutual => return mesh::ClientTls::IstioMutual { sni, subject_alt_names },
            _ if !credential_name.is_empty() => return mesh::ClientTls::Refuse,
            TlsMode::Simple => {}
            TlsMode::Mutual => certificate = Some((client_certificate, private_key)),
        }
        let some = |path: String| (!path.is_empty()).then_some(path);
        mesh::ClientTls::Originate(mesh::Originate {
            certificate,
            roots: some(ca_certificates),
            revoked: some(ca_crl),
            sni,
            subject_alt_names,
            verify: !insecure_skip_verify.unwrap_or_default(),
        })
    }

    fn validate(&self, context: &Context<'_>, at: &At<'_>, issues: &mut Issues) {
        let mode = self.mode.unwrap_or_default();
        let originates = matches!(mode, TlsMode::Simple | TlsMode::Mutual);
        if let Some(name) = self.credential_name.strip_prefix("configmap://")
            && name.split_once('/').is_none_or(|(ns, name)| ns != context.namespace || name.is_empty())
        {
            issues.error(&at.key("credentialName"), "a ConfigMap must be of the rule's own namespace");
        }
        if self.insecure_skip_verify.unwrap_or_default() && originates {
            let at = at.key("insecureSkipVerify");
            if !self.ca_certificates.is_empty() || !self.subject_alt_names.is_empty() {
                issues.error(&at, "cannot be true together with caCertificates or subjectAltNames");
            }
            if mode == TlsMode::Simple && !self.credential_name.is_empty() {
                issues.error(&at, "cannot be true together with credentialName");
            }
            issues.warning(&at, "whoever answers is believed: the server's certificate is not verified");
        }
        if originates && !self.credential_name.is_empty() {
            let files = [&self.client_certificate, &self.private_key, &self.ca_certificates, &self.ca_crl];
            if files.iter().any(|path| !path.is_empty()) {
                issues.error(&at.key("credentialName"), "cannot be given together with paths of files");
            }
            let ignored =
                if context.selector { "" } else { ", with Istio neither without a workloadSelector" };
            issues.warning(
                &at.key("credentialName"),
                format!("sidecars get no Secrets here{ignored}: they do not connect to this host at all"),
            );
        } else if mode == TlsMode::Mutual {
            for (field, path) in
                [("clientCertificate", &self.client_certificate), ("privateKey", &self.private_key)]
            {
                if path.is_empty() {
                    issues.missing(&at.key(field), "required for MUTUAL");
                }
            }
        }
        self.warn(mode, at, issues);
    }

    fn warn(&self, mode: TlsMode, at: &At<'_>, issues: &mut Issues) {
        if self.mode.is_none() {
            issues.warning(&at.key("mode"), "no mode is DISABLE: callers use plaintext");
        }
        let unused: &[(&str, bool)] = match mode {
            TlsMode::Disable | TlsMode::IstioMutual => &[
                ("clientCertificate", !self.client_certificate.is_empty()),
                ("privateKey", !self.private_key.is_empty()),
                ("caCertificates", !self.ca_certificates.is_empty()),
                ("caCrl", !self.ca_crl.is_empty()),
                ("credentialName", !self.credential_name.is_empty()),
                ("insecureSkipVerify", self.insecure_skip_verify.unwrap_or_default()),
            ],
            TlsMode::Simple => &[
                ("clientCertificate", !self.client_certificate.is_empty()),
                ("privateKey", !self.private_key.is_empty()),
            ],
            TlsMode::Mutual => &[],
        };
        for (field, _) in unused.iter().filter(|(_, given)| *given) {
            issues.warning(&at.key(field), "has no effect in this mode");
        }
    }
}
