//! Certificate signing requests (PKCS#10, RFC 2986).
//!
//! Only the public key and the proof that the caller holds its private half count: subject, names and extensions that
//! the request asks for are never read, so that nobody can ask for somebody else's identity.

use rcgen::{CertificateParams, DistinguishedName, SubjectPublicKeyInfo};
use x509_parser::{
    certification_request::X509CertificationRequest, oid_registry, prelude::FromDer, public_key::PublicKey,
};

use crate::{PrivateKey, pem};

/// Longest request in bytes of PEM that is looked at. An RSA-4096 request is about 1.7 KB.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// RSA moduli in bits: shorter ones are weak, longer ones make signing and handshakes slow.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Why a signing request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("the request is longer than 16 KiB")]
    Long,
    #[error("not exactly one PEM block CERTIFICATE REQUEST")]
    Pem,
    #[error("the request cannot be parsed")]
    Malformed,
    #[error(
        "the key is of a kind or size that is not accepted (ECDSA P-256 or P-384, Ed25519, RSA 2048 to 4096)"
    )]
    Key,
    #[error("the request is not signed by the key it holds")]
    Possession,
}

/// A public key whose owner has shown possession of the private half.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    pub(crate) public_key: SubjectPublicKeyInfo,
}

impl SigningRequest {
    /// Parses PEM and verifies the signature.
    pub fn from_pem(text: &str) -> Result<Self, CsrError> {
        if text.len() > MAX_CSR_BYTES {
            return Err(CsrError::Long);
        }
        let blocks = pem::decode(text.as_bytes()).ok_or(CsrError::Pem)?;
        match blocks.as_slice() {
            // The second label is what older tools write (RFC 7468 §7).
            [(label, der)] if label == "CERTIFICATE REQUEST" || label == "NEW CERTIFICATE REQUEST" => {
                Self::from_der(der)
            }
            _ => Err(CsrError::Pem),
        }
    }

    /// Parses DER and verifies the signature.
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CsrError::Long);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let key = &request.certification_request_info.subject_pki;
        match key.parsed().map_err(|_| CsrError::Key)? {
            PublicKey::RSA(rsa) if !RSA_BITS.contains(&rsa.key_size()) => return Err(CsrError::Key),
            _ => {}
        }
        let public_key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| CsrError::Key)?;
        let signed_with = &request.signature_algorithm.algorithm;
        let sha1 = [oid_registry::OID_PKCS1_SHA1WITHRSA, oid_registry::OID_SHA1_WITH_RSA];
        if sha1.contains(signed_with) {
            return Err(CsrError::Possession);
        }
        request.verify_signature().map_err(|_| CsrError::Possession)?;
        Ok(Self { public_key })
    }

    /// A request for `key` as PEM, without subject or names: the CA decides those.
    pub fn create(key: &PrivateKey) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(key)?.pem()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{DnType, SanType};

    use super::*;

    fn pem(der: &[u8]) -> String {
        pem::encode("CERTIFICATE REQUEST", der).to_string()
    }

    #[test]
    fn own_requests_are_read_back() {
        let key = PrivateKey::generate().unwrap();
        let request = SigningRequest::from_pem(&SigningRequest::create(&key).unwrap()).unwrap();
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&request.public_key), key.public_key_der());
    }

    #[test]
    fn requests_with_names_and_odd_extensions_are_still_only_a_key() {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.subject_alt_names = vec![SanType::URI("spiffe://td/ns/other/sa/admin".try_into().unwrap())];
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
        let text = params.serialize_request(&key).unwrap().pem().unwrap();
        assert!(SigningRequest::from_pem(&text).is_ok());
    }

    #[test]
    fn a_request_must_be_signed_by_its_own_key() {
        let key = PrivateKey::generate().unwrap();
        let text = SigningRequest::create(&key).unwrap();
        let der = pem::decode(text.as_bytes()).unwrap().remove(0).1;
        // Somebody else's key in the place of ours, our signature kept.
        let (own, other) = (key.public_key_der(), PrivateKey::generate().unwrap().public_key_der());
        let at = der.windows(own.len()).position(|window| window == own).unwrap();
        let mut stolen = der.to_vec();
        stolen[at..at + other.len()].copy_from_slice(&other);
        assert_eq!(SigningRequest::from_pem(&pem(&stolen)).unwrap_err(), CsrError::Possession);
        // A flipped bit in the signature.
        let mut broken = der.to_vec();
        *broken.last_mut().unwrap() ^= 1;
        assert!(SigningRequest::from_pem(&pem(&broken)).is_err());
    }

    #[test]
    fn refuses_what_is_not_one_request() {
        let text = SigningRequest::create(&PrivateKey::generate().unwrap()).unwrap();
        let der = pem::decode(text.as_bytes()).unwrap().remove(0).1.to_vec();
        let trailing = pem(&[der.as_slice(), b"x"].concat());
        let long = format!("{}{text}", "x".repeat(MAX_CSR_BYTES));
        for (text, error) in [
            (String::new(), CsrError::Pem),
            (format!("{text}{text}"), CsrError::Pem),
            (text.replace("REQUEST", "KEY"), CsrError::Pem),
            (pem(b"\x30\x80garbage"), CsrError::Malformed),
            (pem(&der[..der.len() - 3]), CsrError::Malformed),
            (trailing, CsrError::Malformed),
            (long, CsrError::Long),
        ] {
            assert_eq!(SigningRequest::from_pem(&text).unwrap_err(), error);
        }
    }
}
