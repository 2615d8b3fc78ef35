//! SPIFFE IDs, trust bundles and X.509-SVIDs: parse, mint, verify.
//!
//! No network, no async, no clock and no files: callers pass the time in and store what comes out. Whether a certificate
//! chains to a bundle is judged by the TLS stack (`authn`); who may have which identity is judged by `ca`.

mod authority;
mod bundle;
mod csr;
mod id;
mod key;
mod pem;
mod x509;

pub use authority::{Authority, AuthorityError, BACKDATE, Issued, Mint, Usage};
pub use bundle::{BundleError, TrustBundle};
pub use csr::{CsrError, MAX_CSR_BYTES, SigningRequest};
pub use id::{IdError, MAX_ID_BYTES, SpiffeId, TrustDomain};
pub use key::{KeyError, PrivateKey};
pub use x509::{Leaf, Svid, SvidError};
