//! Private keys, wiped when dropped and never printed.
//!
//! Where a key is stored, and with which file mode, is the caller's business.

use std::fmt;

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::{Zeroize, Zeroizing};

use crate::pem;

/// Why a private key could not be made or read. Never quotes the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("not exactly one PEM block that holds a private key")]
    Pem,
    #[error("the private key cannot be used")]
    Key(#[source] rcgen::Error),
}

/// A private key (ECDSA P-256 if made here) that can sign certificates and requests.
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// A new random ECDSA P-256 key.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyError::Key)
    }

    /// Reads the only PEM block of `text`: PKCS#8, SEC1 or PKCS#1.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let blocks = pem::decode(text.as_bytes()).ok_or(KeyError::Pem)?;
        match blocks.as_slice() {
            [(label, der)] if label.ends_with("PRIVATE KEY") => Self::from_der(der),
            _ => Err(KeyError::Pem),
        }
    }

    /// Reads PKCS#8, SEC1 or PKCS#1 DER.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        KeyPair::try_from(der).map(Self).map_err(KeyError::Key)
    }

    /// PKCS#8 DER. Secret.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// PKCS#8 PEM. Secret.
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode("PRIVATE KEY", self.pkcs8_der())
    }

    /// SubjectPublicKeyInfo DER of the public half.
    pub fn public_key_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self::from_der(self.pkcs8_der()).expect("a key that was read once is readable")
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_round_trip_keeps_the_key_and_debug_hides_it() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.public_key_der(), again.public_key_der());
        assert_eq!(key.clone().pkcs8_der(), key.pkcs8_der());
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
    }

    #[test]
    fn refuses_what_is_not_one_key() {
        let key = PrivateKey::generate().unwrap().to_pem();
        let two = format!("{}{}", *key, *key);
        let renamed = key.replace("PRIVATE KEY", "CERTIFICATE");
        let cut = &key[..key.len() / 2];
        for text in ["", "nonsense", &two, &renamed, cut] {
            assert!(PrivateKey::from_pem(text).is_err());
        }
    }
}
