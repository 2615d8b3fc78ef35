//! Secrets that are files beside the proxy, which a DestinationRule names: `file-cert:CHAIN~KEY`, `file-root:ROOTS` and
//! `file-root:system`, as Istio's agent calls them. Read when they are asked for, with this process's rights; what is
//! missing or no file is no secret, and then the proxy makes no connection. It checks no certificate: Envoy does.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use zeroize::Zeroizing;

use super::secrets::TYPE_URL;

const CERTIFICATE: &str = "file-cert:";
const ROOTS: &str = "file-root:";
const SYSTEM: &str = "system";
/// The largest file that is read. Bundles of public roots have a few hundred kilobytes.
const MAX_BYTES: u64 = 2 << 20;

/// Where systems keep the roots that they trust; the first that is there.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whether a secret of that name is a file.
pub(super) fn is_file(name: &str) -> bool {
    name.starts_with(CERTIFICATE) || name.starts_with(ROOTS)
}

/// The secret as the files are now, encoded; `None` while one is missing.
pub(super) fn get(name: &str) -> Option<Any> {
    let content = if let Some(paths) = name.strip_prefix(CERTIFICATE) {
        let (chain, key) = paths.split_once('~')?;
        secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: read(Path::new(chain)),
            private_key: Some(read(Path::new(key))?),
            ..Default::default()
        })
    } else {
        let trusted_ca = match name.strip_prefix(ROOTS)? {
            SYSTEM => SYSTEM_ROOTS.iter().find_map(|path| read(Path::new(path))),
            path => read(Path::new(path)),
        };
        secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(trusted_ca?),
            ..Default::default()
        })
    };
    if let secret::Type::TlsCertificate(TlsCertificate { certificate_chain: None, .. }) = &content {
        return None;
    }
    let secret = Secret { name: name.to_owned(), r#type: Some(content) };
    Some(Any { type_url: TYPE_URL.to_owned(), value: secret.encode_to_vec() })
}

fn read(path: &Path) -> Option<DataSource> {
    let open = || {
        // Of a pipe or a device there is no end.
        let regular = std::fs::metadata(path)?.is_file() && path.is_absolute();
        let mut text = Zeroizing::new(String::new());
        if regular {
            File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        }
        Ok::<_, std::io::Error>(text)
    };
    match open() {
        Ok(text) if !text.is_empty() && text.len() as u64 <= MAX_BYTES => Some(DataSource {
            specifier: Some(Specifier::InlineString((*text).clone())),
            ..Default::default()
        }),
        Ok(_) => {
            tracing::debug!(path = %path.display(), "empty, too large, or no file with an absolute path");
            None
        }
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "a file that a DestinationRule names cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str) -> Option<Secret> {
        get(name).map(|any| Secret::decode(&*any.value).expect("what was encoded"))
    }

    fn text(source: Option<&DataSource>) -> &str {
        match source.and_then(|source| source.specifier.as_ref()) {
            Some(Specifier::InlineString(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_read_whenever_they_are_asked_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (chain, key, roots) = (path("chain"), path("key"), path("roots"));
        let (pair, bundle) = (format!("file-cert:{chain}~{key}"), format!("file-root:{roots}"));
        assert!(is_file(&pair) && is_file(&bundle) && !is_file("default") && !is_file("ROOTCA"));
        assert_eq!((secret(&pair), secret(&bundle)), (None, None));
        std::fs::write(&chain, "chain").expect("written");
        assert_eq!(secret(&pair), None, "the key is still missing");
        for content in ["one", "two"] {
            std::fs::write(&key, content).expect("written");
            std::fs::write(&roots, content).expect("written");
            let Some(secret::Type::TlsCertificate(found)) = secret(&pair).and_then(|s| s.r#type) else {
                panic!()
            };
            assert_eq!(text(found.certificate_chain.as_ref()), "chain");
            assert_eq!(text(found.private_key.as_ref()), content);
            let Some(secret::Type::ValidationContext(found)) = secret(&bundle).and_then(|s| s.r#type) else {
                panic!()
            };
            assert_eq!(text(found.trusted_ca.as_ref()), content);
        }
        std::fs::remove_file(&chain).expect("removed");
        assert_eq!(secret(&pair), None);
    }

    #[test]
    fn what_is_no_file_is_no_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let large = dir.path().join("large");
        std::fs::write(&large, vec![b'x'; MAX_BYTES as usize + 1]).expect("written");
        std::fs::write(dir.path().join("empty"), "").expect("written");
        let large = large.display();
        let empty = dir.path().join("empty");
        for name in [
            format!("file-root:{large}"),
            format!("file-root:{}", dir.path().display()),
            format!("file-root:{}", empty.display()),
            "file-root:/dev/zero".to_owned(),
            "file-root:Cargo.toml".to_owned(),
            "file-cert:/etc/hostname".to_owned(),
            "file-root:".to_owned(),
        ] {
            assert_eq!(get(&name), None, "{name}");
        }
    }
}
